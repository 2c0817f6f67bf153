"""The rig under the pressure benches: a real engine, a real memory limit, a neighbour that takes memory.

    plan = rig.plan_for("locked")                       # limit and spike, from what stock needs (see Plan)
    with rig.Stage(plan.limit_bytes) as stage:          # a memory group of its own; everything in it ends with it
        engine = stage.engine("auto", weights="locked")  # llama.cpp, full cache, decoding; ready on return
        sampler = stage.sampler(engine)                 # optional: group and engine from outside, each millisecond
        time.sleep(0.5)
        spike = stage.spike(plan.spike_bytes, 500 * rig.MB, hold_s=0.7)
        spike.wait(20)
        kills = stage.kills()                           # who was killed by the kernel
        steps = engine.steps_between(spike.begin_s, spike.end_s)   # [(time_s, step_ms)]

Modes (MODES): "auto", "psi", "avg10" (psi_cache with PSI_CACHE_MODE set), "off" (psi_cache, controller off) and
"stock" (psi_cache is not imported). Weights (WEIGHTS): "mapped" (the kernel may take them back and read them again),
"locked", "unreclaimable" (read into private memory).

The cache is loaded from a state file (made once, about a minute: build/bench/state-<tokens>.bin), so that an
engine stands with STATE_TOKENS tokens in its cache 1-2 s after its start. All times are time.monotonic().
"""
import argparse
import json
import os
import sys
import time

from rig_base import (BUILD, CONTEXT_TOKENS, HERE, MB, MIB, MODES, STATE_TOKENS, WEIGHTS, build_of, demo, engine_command,  # noqa: F401
                      leave_on_signals, library_build, library_file, library_knows_modes, machine_line, model_file,
                      prepare, program, save, say, state_file)
from rig_beside import Sampler, Spike
from rig_engine import Engine, keep_in_page_cache, status_json, tool  # noqa: F401
from figures import quantile
from memory_group import MemoryGroup, NoRights
import generate  # noqa: F401

CACHE_BYTES_PER_TOKEN = demo.CACHE_BYTES_PER_TOKEN
FLOOR_SHARE = 1 / 32          # of the capacity: below this no trim goes (psicache.h, floor_bytes)
STOCK_SLACK_BYTES = 24 * MIB  # how far the limit lies above what stock needs without a spike
SPIKE_SHARE = 0.6             # of what the cache can give above its floor, wanted beyond the free room
PLAN_VERSION = 1


class Stage:
    """with Stage(limit_bytes) as stage: a memory group of our own, and what is started in it. All of it ends, and
    the group goes, on every way out. Only on a main thread (signals). limit_bytes None: a group without a limit."""

    def __init__(self, limit_bytes=None):
        self.limit_bytes = limit_bytes
        self.group = MemoryGroup(limit_bytes)
        self._engines, self._spikes, self._samplers = [], [], []

    def __enter__(self):
        self.group.__enter__()
        return self

    def __exit__(self, *problem):
        try:
            for item in self._samplers:
                item.stop()
            for item in self._engines:
                item.finish()
            for item in self._spikes:
                item.end()
        finally:
            self.group.__exit__(*problem)

    def engine(self, mode, ready=True, **settings):
        """An Engine in this group (its settings: see there); returns when it is ready, if that is wanted."""
        engine = Engine(mode, group=self.group, **settings)
        self._engines.append(engine)
        return engine.wait_ready() if ready else engine

    def spike(self, size_bytes, bytes_per_s, hold_s=1.0, processes=2, noise=False):
        """noise: pages that do not compress; else zeros."""
        spike = Spike(self.group, size_bytes, bytes_per_s, hold_s, processes, noise)
        self._spikes.append(spike)
        return spike

    def sampler(self, engine, interval_us=1000, most_s=60):
        sampler = Sampler(self.group, engine.pid, interval_us, most_s)
        self._samplers.append(sampler)
        return sampler

    def settle(self, seconds=2.0):
        """Waits until those who were killed are gone, so that their exit status can be read."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(e.alive() for e in self._engines) and self.group.oom_kills():
            if any(spike.short() for spike in self._spikes):
                return
            time.sleep(0.01)

    def kills(self):
        """What the kernel's out-of-memory killer did here: {"count", "engine": bool, "spike": bool}. A spike that
        was ended with end() does not count as killed unless a part of it was killed before."""
        count = self.group.oom_kills() or 0
        return {"count": count, "engine": count > 0 and any(engine.killed() for engine in self._engines),
                "spike": count > 0 and any(spike.short() or spike.process.poll() == 1 for spike in self._spikes)}

    def unreclaimable_bytes(self, weights):
        """Of what is charged, how much the kernel cannot take back; mapped weights are counted as if it could not,
        since a model without them is too slow to be of use."""
        return unreclaimable_bytes(self.group, weights, self._engines[0].model if self._engines else None)


def unreclaimable_bytes(group, weights, model=None):
    cached, locked = group.file_bytes()
    # The kernel moves a locked page to its unevictable list only when it meets it: take the weights at their size.
    kept = 0 if weights == "unreclaimable" else min(cached, max(os.path.getsize(model or model_file()), locked))
    return group.usage() - (cached - kept)


# ---- limit and spike ---------------------------------------------------------------------------------

class Plan:
    """Limit and spike that fit each other, the same for all modes.

    limit_bytes     what stock needs without a spike, plus 24 MiB: stock is never killed before the spike
    give_bytes      what the cache can give above its floor: the tokens in it, less 1/32 of its capacity
    room_bytes      what is free for an engine with psi_cache: the slack, and the cells not written yet
    spike_bytes     room_bytes + 0.6 * give_bytes: four tenths of what the cache can give are to spare
    weights_bytes   of the model file

    With mapped weights stock has the weights to lose, too; the spike is larger than slack and weights together
    (see lacking_bytes), so stock is killed there as well."""

    def __init__(self, stock_bytes, weights, share=SPIKE_SHARE, context_tokens=CONTEXT_TOKENS):
        self.weights = weights
        self.stock_bytes = stock_bytes
        self.weights_bytes = os.path.getsize(model_file())
        self.limit_bytes = (stock_bytes + STOCK_SLACK_BYTES) // MIB * MIB
        self.context_tokens = context_tokens
        capacity = CACHE_BYTES_PER_TOKEN * context_tokens
        written = CACHE_BYTES_PER_TOKEN * STATE_TOKENS
        self.give_bytes = int(written - capacity * FLOOR_SHARE)
        self.room_bytes = self.limit_bytes - stock_bytes + capacity - written
        self.spike_bytes = int(self.room_bytes + share * self.give_bytes) // MIB * MIB

    def lacking_bytes(self):
        """How much stock lacks at the spike's top, after all of its mapped weights are taken back."""
        lost = self.weights_bytes if self.weights == "mapped" else 0
        return self.spike_bytes - STOCK_SLACK_BYTES - lost

    def facts(self):
        return {key: value for key, value in vars(self).items()} | {"lacking_bytes": self.lacking_bytes()}

    def __str__(self):
        return ("weights %s: limit %s, spike %s (room %s, the cache can give %s; stock lacks %s)"
                % ((self.weights,) + tuple(demo.mib(v) for v in (self.limit_bytes, self.spike_bytes, self.room_bytes,
                                                                  self.give_bytes, self.lacking_bytes()))))


def stock_bytes(weights, context_tokens=CONTEXT_TOKENS, piece=1):
    """What stock needs when it decodes `piece` tokens a step with a full cache: measured once on this machine, then
    remembered."""
    path = os.path.join(BUILD, "plan.json")
    where = demo.machine()
    key = "%d %s %d %d %s %s %d" % (PLAN_VERSION, weights, context_tokens, STATE_TOKENS, where["llama_cpp_python"],
                                   where["kernel"], os.path.getsize(model_file())) + (" piece %d" % piece if piece != 1 else "")
    known = {}
    if os.path.exists(path):
        with open(path) as file:
            known = json.load(file)
    if key not in known:
        with Stage() as stage:
            stage.engine("stock", weights=weights, context_tokens=context_tokens, piece=piece).wait_ready(steps=20 if piece == 1 else 3)
            known[key] = stage.unreclaimable_bytes(weights)
        demo.save(path, known)
    return known[key]


def plan_for(weights, share=SPIKE_SHARE, context_tokens=CONTEXT_TOKENS, piece=1):
    prepare()
    return Plan(stock_bytes(weights, context_tokens, piece), weights, share, context_tokens)


# ---- figures -----------------------------------------------------------------------------------------

def median(values):
    return quantile(values, 0.5)


def weights_are_as_said(stage, engine):
    """Whether the weights are charged to the group, and locked where they should be (ulimit -l)."""
    enough = os.path.getsize(engine.model) // 2
    if engine.weights == "unreclaimable":
        return (engine.anon_bytes() or 0) > enough
    charged = stage.group.file_bytes()[0] > enough
    return charged and (engine.weights != "locked" or (engine.locked_bytes() or 0) > enough)


def main():
    parser = argparse.ArgumentParser(description="Makes what the pressure benches need before they can measure (a copy "
                                     "of the model, a saved cache, two small C programs, what stock needs here) and "
                                     "prints the limits and spikes that follow. The benches do it themselves, too; "
                                     "doing it first keeps the waiting out of the way. About two minutes, once.")
    parser.parse_args()
    leave_on_signals()
    say(machine_line())
    for weights in WEIGHTS:
        say("  %s" % plan_for(weights))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NoRights as problem:
        sys.exit(str(problem))
