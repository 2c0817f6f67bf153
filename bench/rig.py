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
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "demo"))
import demo  # noqa: E402
import generate  # noqa: E402
from memory_group import MemoryGroup, NoRights  # noqa: E402,F401

BUILD = os.path.join(HERE, "..", "build", "bench")
MIB = 1024 * 1024
MB = 1000 * 1000
MODES = ("auto", "psi", "avg10", "off", "stock")
WEIGHTS = ("mapped", "locked", "unreclaimable")

CONTEXT_TOKENS = 32768
STATE_TOKENS = 24576
CACHE_BYTES_PER_TOKEN = demo.CACHE_BYTES_PER_TOKEN
FLOOR_SHARE = 1 / 32          # of the capacity: below this no trim goes (psicache.h, floor_bytes)
STOCK_SLACK_BYTES = 24 * MIB  # how far the limit lies above what stock needs without a spike
SPIKE_SHARE = 0.6             # of what the cache can give above its floor, wanted beyond the free room
READY_LIMIT_S = 60
PLAN_VERSION = 1


def say(text=""):
    print(text, flush=True)


def machine_line():
    where = demo.machine()
    return "%s, %d CPUs, Linux %s, %d MiB memory" % (where["cpu"], where["cpus"], where["kernel"],
                                                   where["memory_bytes"] // MIB)


def save(name, value):
    """build/bench/<name>, whole or not at all. Returns the path."""
    path = os.path.join(BUILD, name)
    demo.save(path, value)
    return path


# ---- what must be there first ------------------------------------------------------------------------

def model_file():
    """A copy of the model of the rig's own: pages of a file that another process maps cannot be dropped from the
    page cache, and would then not be charged to the group that reads them next."""
    path = os.path.join(BUILD, "model.gguf")
    if not os.path.exists(path):
        os.makedirs(demo.BUILD, exist_ok=True)
        shutil.copyfile(demo.model_file(argparse.Namespace(model=os.environ.get("PSI_BENCH_MODEL"))), path + ".new")
        os.replace(path + ".new", path)
    return path


def program(name):
    """bench/<name>.c, compiled when it is newer than its program."""
    path, source = os.path.join(BUILD, name), os.path.join(HERE, name + ".c")
    if not os.path.exists(path) or os.path.getmtime(path) < os.path.getmtime(source):
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise SystemExit("no C compiler for bench/%s.c (Debian: apt install gcc libc6-dev)" % name)
        subprocess.run([compiler, "-O2", "-o", path + ".new", source], check=True)
        os.replace(path + ".new", path)
    return path


def state_file(tokens=STATE_TOKENS, cache_type="f16"):
    path = os.path.join(BUILD, "state-%d%s.bin" % (tokens, "" if cache_type == "f16" else "-" + cache_type))
    if not os.path.exists(path):
        say("making a cache of %d tokens, once (about a minute) ..." % tokens)
        command = engine_command("stock", "locked", path + ".new", tokens, CONTEXT_TOKENS) + [
            "--make-state", "--cache-type", cache_type, "--threads", str(len(os.sched_getaffinity(0)))]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        os.replace(path + ".new", path)
    return path


def prepare(tokens=STATE_TOKENS):
    """Makes model copy, state and programs. Called by whatever needs them; calling it first keeps the waiting out
    of a measurement."""
    os.makedirs(BUILD, exist_ok=True)
    model_file()
    state_file(tokens)
    for name in ("spike", "sampler"):
        program(name)


def keep_in_page_cache(path):
    """Reads a file here, so that its pages are charged to this process's group and not to the engine's."""
    with open(path, "rb", buffering=0) as file:
        block = bytearray(8 * MIB)
        while file.readinto(block):
            pass


@functools.lru_cache(maxsize=None)
def library_file():
    """The libpsicache-llama.so that an engine with psi_cache loads."""
    from psi_cache import _native
    return str(_native.find("libpsicache-llama.so"))


@functools.lru_cache(maxsize=None)
def library_build():
    """Twelve digits that name the library's bytes."""
    with open(library_file(), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:12]


def library_knows_modes():
    """Whether PSI_CACHE_MODE does anything in this build."""
    with open(library_file(), "rb") as file:
        return b"MODE\0" in file.read()


# ---- the engine --------------------------------------------------------------------------------------

def engine_command(mode, weights, state, state_tokens, context_tokens, model=None):
    return [sys.executable, os.path.join(HERE, "engine.py"), "--mode", "stock" if mode == "stock" else "ours",
            "--model", model or model_file(), "--weights", weights, "--context", str(context_tokens)] + (
                ["--state", state, "--state-tokens", str(state_tokens)] if state else [])


def environment_of(mode, extra=None):
    environment = {key: value for key, value in os.environ.items() if key != "PSI_CACHE_MODE"}
    if mode == "off":
        environment["PSI_CACHE_CONTROLLER"] = "off"
    elif mode != "stock":
        environment["PSI_CACHE_MODE"] = mode
    environment.update(extra or {})
    return environment


class Engine:
    """engine.py as a child. Its lines are read by a thread of their own; look at steps, stats and events at any
    time. Made by Stage.engine; outside a group with group=None."""

    def __init__(self, mode, weights="locked", group=None, context_tokens=CONTEXT_TOKENS, state_tokens=STATE_TOKENS,
                 span=1024, rest_ms=0.0, stats_ms=50.0, threads=2, environment=None, piece=1,
                 cache_type="f16", model=None, arguments=()):
        """state_tokens: 0: none is loaded. model: a file, if not the usual one. span: tokens decoded before they are taken back and decoded anew (an engine so decodes for ever, and its
        cache grows by no more than that). piece: tokens in a step. rest_ms: pause after each step. stats_ms: how often the engine reports
        psi_cache.stats(); 0 never. environment: added to the child's, for example PSI_CACHE_* options. arguments: more
        of engine.py's own."""
        self.mode, self.weights = mode, weights
        self.events = []   # all lines, as they came
        self.steps = []    # (time_s at the end of the step, step_ms)
        self.ids = []      # the token that each step chose
        self.prompt = []   # as steps, of the prompt behind the state, if there is one
        self.stats = []    # (time_s, psi_cache.stats()); empty for stock
        self.refused = 0   # decodes that were told to wait
        self.ended_by_us = False
        state = state_file(state_tokens, cache_type) if state_tokens else None
        if state:
            keep_in_page_cache(state)
        self.model = model or model_file()
        if weights == "unreclaimable":
            keep_in_page_cache(self.model)  # it is the private copy that the group pays for
        else:
            demo.forget_file_pages(self.model)
        read_end, write_end = os.pipe()
        command = engine_command(mode, weights, state, state_tokens, context_tokens, model) + [
            "--span", str(span), "--piece", str(piece), "--rest-ms", str(rest_ms), "--stats-ms", str(stats_ms), "--threads", str(threads),
            "--cache-type", cache_type, "--events-fd", str(write_end), *map(str, arguments)]
        self._log = tempfile.TemporaryFile()
        start = group.start if group is not None else subprocess.Popen
        self.process = start(command, pass_fds=(write_end,), stdin=subprocess.PIPE, stdout=self._log,
                             stderr=self._log, env=environment_of(mode, environment))
        os.close(write_end)
        self.pid = self.process.pid
        self._pipe = os.fdopen(read_end)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._pipe:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # the last line of a process that was killed while it wrote
            self.events.append(event)
            if event["event"] == "step":
                self.ids.append(event["id"])
                self.steps.append((event["time_s"], event["ms"]))
            elif event["event"] == "prompt":
                self.prompt.append((event["time_s"], event["ms"]))
            elif event["event"] == "stats":
                self.stats.append((event["time_s"], event["stats"]))
            elif event["event"] == "refused":
                self.refused += 1

    def wait_ready(self, steps=3, timeout_s=READY_LIMIT_S):
        """Until it has loaded its cache and decoded some steps. RuntimeError with what it said if it ends before."""
        deadline = time.monotonic() + timeout_s
        while len(self.steps) < steps:
            if self.process.poll() is not None:
                raise RuntimeError("the engine ended (status %s) before it was ready: %s"
                                   % (self.process.returncode, self.said()[-2000:]))
            if time.monotonic() > deadline:
                raise RuntimeError("the engine was not ready after %.0f s: %s" % (timeout_s, self.said()[-2000:]))
            time.sleep(0.005)
        return self

    def alive(self):
        return self.process.poll() is None

    def killed(self):
        """By a SIGKILL that is not ours."""
        return self.process.poll() == -signal.SIGKILL and not self.ended_by_us

    def ended_well(self):
        """It is still at work, or ended after stop() as it should."""
        return self.process.poll() in (None, 0) or self.ended_by_us

    def order(self, text):
        """"pause", "resume", "reload" (the cache filled anew from the state: all of it resident), "trim SHARE",
        "restore" or "stop"; each is obeyed between two steps."""
        try:
            self.process.stdin.write(text.encode() + b"\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            pass  # it is gone; alive() says so

    def reload(self, timeout_s=10):
        """Orders a reload and waits for it. False when the engine ended or took longer."""
        def count():
            return sum(event["event"] == "reloaded" for event in list(self.events))
        before, deadline = count(), time.monotonic() + timeout_s
        self.order("reload")
        while count() == before:
            if not self.alive() or time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def stop(self, timeout_s=10):
        """Ends it after its step; last_stats() is then of its very end."""
        self.order("stop")
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        self.finish()

    def finish(self):
        if self.process.poll() is None:
            self.ended_by_us = True
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        if self.process.stdin:
            try:
                self.process.stdin.close()
            except OSError:
                pass

    def said(self):
        """Its standard output and error so far: also the library's own log lines."""
        where = self._log.tell()
        self._log.seek(0)
        text = self._log.read().decode("utf-8", "replace")
        self._log.seek(where)
        return text.strip()

    def steps_between(self, begin_s, end_s):
        return [step for step in list(self.steps) if begin_s <= step[0] <= end_s]

    def last_stats(self):
        """The newest psi_cache.stats() the engine reported; {} for stock."""
        for event in reversed(list(self.events)):
            if event["event"] in ("stats", "done", "loaded") and event.get("stats"):
                return event["stats"]
        return {}

    def anon_bytes(self):
        """RssAnon now, from /proc; None when it is gone."""
        try:
            return generate.rss_anon_bytes(self.pid)
        except OSError:
            return None

    def locked_bytes(self):
        """VmLck: what mlock holds. None when it is gone."""
        try:
            with open("/proc/%d/status" % self.pid) as file:
                return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmLck:")), 0)
        except OSError:
            return None

    def faults(self):
        """Major page faults so far; None when it is gone."""
        try:
            with open("/proc/%d/stat" % self.pid) as file:
                return int(file.read().rsplit(")", 1)[1].split()[9])
        except (OSError, IndexError):
            return None

    def status(self):
        """`psi-cache status --json PID`, parsed; None where it says nothing. Starts a process: not in a tight loop."""
        return status_json(self.pid)


def status_json(pid):
    answer = subprocess.run([tool(), "status", "--json", str(pid)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    lines = answer.stdout.decode().splitlines()
    return json.loads(lines[0]) if answer.returncode == 0 and lines else None


def tool():
    """The psi-cache command beside this Python, else the one on PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "psi-cache")
    return beside if os.path.exists(beside) else "psi-cache"


# ---- neighbours and looking on -----------------------------------------------------------------------

class Spike:
    """bench/spike.c in a group: takes size_bytes at bytes_per_s, holds them hold_s, ends. Its size is shared by
    `processes`, so that the engine is the biggest process of the group (the kernel kills the biggest)."""

    def __init__(self, group, size_bytes, bytes_per_s, hold_s=1.0, processes=2):
        self.size_bytes, self.asked_bytes_per_s = int(size_bytes), float(bytes_per_s)
        self._output = tempfile.TemporaryFile()
        start = group.start if group is not None else subprocess.Popen
        self.process = start([program("spike"), "%d" % size_bytes, "%.0f" % bytes_per_s, str(hold_s), str(processes)],
                             stdin=subprocess.DEVNULL, stdout=self._output)
        self.pid = self.process.pid

    def lines(self):
        return {line["event"]: line for line in self._all_lines()}

    def _all_lines(self):
        text = os.pread(self._output.fileno(), 1 << 16, 0).decode()
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def wait(self, timeout_s):
        """Until it has ended. False if it had not by then."""
        try:
            self.process.wait(timeout_s)
            return True
        except subprocess.TimeoutExpired:
            return False

    def wait_full(self, timeout_s):
        """Until it holds all of its memory, or has ended. True when it holds it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if "spike_full" in self.lines():
                return True
            if self.process.poll() is not None:
                return "spike_full" in self.lines()
            time.sleep(0.002)
        return False

    def end(self):
        """Ends it now; its memory goes with it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _time_of(self, *events):
        lines = self.lines()
        for event in events:
            if event in lines:
                return lines[event]["time_s"]
        return None

    @property
    def begin_s(self):
        return self._time_of("spike_begin")

    @property
    def full_s(self):
        """When it held all, or was cut short; None before."""
        return self._time_of("spike_full", "spike_short")

    @property
    def end_s(self):
        return self._time_of("spike_end")

    @property
    def reached_bytes_per_s(self):
        """The rate it really had, stalls and competition for the processor included; None before it is full."""
        lines = self.lines()
        line = lines.get("spike_full") or lines.get("spike_short")
        return line["reached_bytes_per_s"] if line else None

    @property
    def fastest_bytes_per_s(self):
        """The same over its fastest 32 MiB: the rate where nothing held it up; None before it is full."""
        lines = self.lines()
        line = lines.get("spike_full") or lines.get("spike_short")
        return line["fastest_bytes_per_s"] if line else None

    def short(self):
        """A part of it was killed before it held all."""
        return "spike_short" in self.lines()


class Sampler:
    """bench/sampler.c: usage of the group and RssAnon of the engine, each interval_us, from outside. It is not in
    the group, and sends its samples when it is stopped."""

    def __init__(self, group, pid, interval_us=1000, most_s=60):
        self._output = tempfile.TemporaryFile()
        self.process = subprocess.Popen([program("sampler"), group.usage_path(), str(pid), str(interval_us),
                                         str(most_s)], stdin=subprocess.DEVNULL, stdout=self._output)

    def stop(self):
        """[(time_s, usage_bytes, engine_anon_bytes)]"""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        self._output.seek(0)
        rows = [line.split() for line in self._output.read().decode().splitlines()]
        return [(float(row[0]), int(row[1]), int(row[2])) for row in rows if len(row) == 3]


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

    def spike(self, size_bytes, bytes_per_s, hold_s=1.0, processes=2):
        spike = Spike(self.group, size_bytes, bytes_per_s, hold_s, processes)
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


def stock_bytes(weights, context_tokens=CONTEXT_TOKENS):
    """What stock needs when it decodes with a full cache: measured once on this machine, then remembered."""
    path = os.path.join(BUILD, "plan.json")
    where = demo.machine()
    key = "%d %s %d %d %s %s %d" % (PLAN_VERSION, weights, context_tokens, STATE_TOKENS, where["llama_cpp_python"],
                                   where["kernel"], os.path.getsize(model_file()))
    known = {}
    if os.path.exists(path):
        with open(path) as file:
            known = json.load(file)
    if key not in known:
        with Stage() as stage:
            stage.engine("stock", weights=weights, context_tokens=context_tokens).wait_ready(steps=20)
            known[key] = stage.unreclaimable_bytes(weights)
        demo.save(path, known)
    return known[key]


def plan_for(weights, share=SPIKE_SHARE, context_tokens=CONTEXT_TOKENS):
    prepare()
    return Plan(stock_bytes(weights, context_tokens), weights, share, context_tokens)


# ---- figures -----------------------------------------------------------------------------------------

def quantile(values, share):
    """The value at that share of the ordered values; None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def median(values):
    return quantile(values, 0.5)


def weights_are_as_said(stage, engine):
    """Whether the weights are charged to the group, and locked where they should be (ulimit -l)."""
    enough = os.path.getsize(model_file()) // 2
    if engine.weights == "unreclaimable":
        return (engine.anon_bytes() or 0) > enough
    charged = stage.group.file_bytes()[0] > enough
    return charged and (engine.weights != "locked" or (engine.locked_bytes() or 0) > enough)


def leave_on_signals():
    """Ctrl-C and SIGTERM become a SystemExit, so that with blocks remove their groups; call first in main()."""
    def leave(number, _frame):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, leave)


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
