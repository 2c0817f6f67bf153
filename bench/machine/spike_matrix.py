"""The spike matrix on a whole system: no memory group, the kernel's own out-of-memory killer.

Boots a stock Debian kernel in an emulated machine for each (mode, weights), and runs all rates in it.
A spike takes all that is available and half of what the cache can give. Prints kills / runs a cell;
writes build/bench/machine_spikes.json. Goes on where it was interrupted. Needs no right but, the first
time, to install qemu (setup.sh).
"""
import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import machine  # noqa: E402

MODES = ("auto", "psi", "avg10", "stock")
WEIGHTS = ("mapped", "locked", "none")
RATES = (50, 200, 500, 1000, 2000, 4000)
WEIGHTS_MIB = 100
FREE_MIB = 240  # beside the engine, before the spike
BOOTS = 3       # a machine that ends badly is started again so often


def words(text, known):
    found = text.split(",")
    for word in found:
        if word not in known:
            raise argparse.ArgumentTypeError("%s is not one of %s" % (word, ", ".join(known)))
    return found


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", type=lambda text: words(text, MODES), default=list(MODES))
    parser.add_argument("--weights", type=lambda text: words(text, WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--rates", type=lambda text: [int(rate) for rate in text.split(",")], default=list(RATES),
                        metavar="MB/S,...", help="default %s" % ",".join(map(str, RATES)))
    parser.add_argument("--runs", type=int, default=10, help="a cell, of auto (default 10)")
    parser.add_argument("--other-runs", type=int, default=3, help="a cell, of each other mode (default 3)")
    parser.add_argument("--quick", action="store_true", help="one run of each mode and weights at 200 MB/s")
    parser.add_argument("--no-psi", action="store_true", help="a kernel with PSI off, as on a Raspberry Pi")
    parser.add_argument("--settle", type=float, default=2, metavar="S",
                        help="between a whole cache and the spike (default 2): time to write ahead; stock needs none")
    parser.add_argument("--cache-mib", type=int, default=192)
    parser.add_argument("--block-kib", type=int, default=256)
    parser.add_argument("--memory-mib", type=int, default=768, help="of the machine (default 768)")
    parser.add_argument("--cpus", type=int, default=2, help="of the machine (default 2)")
    parser.add_argument("--disk-mb-s", type=int, default=0, help="hold the disk to this (default: as fast as it is)")
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto")
    parser.add_argument("--source", default=machine.ROOT, help="the tree to build the library from")
    parser.add_argument("--fresh", action="store_true", help="forget the runs of an earlier call")
    parser.add_argument("--triggers", action="store_true", help="only show who may arm which PSI trigger there")
    parser.add_argument("--verbose", action="store_true", help="the library's log, in build/machine/console-*")
    options = parser.parse_args()
    if options.quick:
        options.rates, options.runs, options.other_runs = [200], 1, 1
    return options


def say(text):
    print(text, flush=True)


# ---- what was run already ----------------------------------------------------------------------------

class Record:
    """Runs so far, one a line. Those of another build or setting are put aside, never mixed in."""

    def __init__(self, path, setting, fresh):
        self.path, self.runs = path, []
        key = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]
        if not fresh and self._load(key):
            if self.runs:
                say("going on after %d runs (%s)" % (len(self.runs), os.path.relpath(path, machine.ROOT)))
            return
        if os.path.exists(path):
            os.replace(path, path + ".old")
            say("earlier runs (another build or setting, or --fresh) are put aside: %s.old"
                % os.path.relpath(path, machine.ROOT))
        self._write({"event": "setting", "key": key, **setting}, "w")

    def _load(self, key):
        try:
            with open(self.path) as file:
                lines = [json.loads(line) for line in file if line.endswith("\n")]
        except (OSError, ValueError):
            return False
        if not lines or lines[0].get("key") != key:
            return False
        self.runs = lines[1:]
        return True

    def _write(self, line, how):
        with open(self.path, how) as file:
            file.write(json.dumps(line) + "\n")

    def add(self, run):
        self.runs.append(run)
        self._write(run, "a")

    def cell(self, mode, weights, rate):
        return [run for run in self.runs
                if (run["mode"], run["weights"], run["rate_mb_s"]) == (mode, weights, rate)]


# ---- running -----------------------------------------------------------------------------------------

def wanted(options, mode):
    return options.runs if mode == "auto" else options.other_runs


def plan(options, record, mode, weights):
    """RATExRUNS of what is left to do; empty: nothing."""
    left = [(rate, wanted(options, mode) - len(record.cell(mode, weights, rate))) for rate in options.rates]
    return ",".join("%dx%d" % pair for pair in left if pair[1] > 0)


def ballast_mib(options, weights):
    """Other programs' memory: so much that FREE_MIB are left beside the engine."""
    kernel_mib = 95 + options.memory_mib // 100
    engine_mib = options.cache_mib + (WEIGHTS_MIB if weights != "none" else 0)
    return max(0, options.memory_mib - kernel_mib - engine_mib - FREE_MIB)


def boot(options, files, mode, weights, todo):
    """A machine for the runs of `todo`."""
    init_words = ["mode=" + mode, "weights=" + weights, "plan=" + todo,
                  "cache_mib=%d" % options.cache_mib, "block_kib=%d" % options.block_kib,
                  "ballast_mib=%d" % ballast_mib(options, weights),
                  "settle_s=%g" % (0.3 if mode == "stock" else options.settle), "verbose=%d" % options.verbose]
    return machine.Machine(files["initramfs"], files["disk"], init_words, accel=files["accel"],
                           memory_mib=options.memory_mib, cpus=options.cpus, psi=not options.no_psi,
                           disk_mb_s=options.disk_mb_s, name="%s-%s" % (mode, weights))


def show(run):
    least = "cache %.0f -> %.0f MiB" % (run["cache_mib"], run["cache_least_mib"])
    more = [word for word, is_so in (("%d killed" % run["oom_kills"], run["oom_kills"]),
                                     (run["trouble"], run["trouble"]),
                                     ("%d blocks wrong" % run["wrong"], run["wrong"]),
                                     ("%d blocks lost" % run["lost"], run["lost"])) if is_so]
    say("  %-5s %-6s %4d MB/s (reached %4d): %-8s %s%s, %.1f s" % (
        run["mode"], run["weights"], run["rate_mb_s"], run["reached_mb_s"], run["engine"], least,
        "".join(", " + word for word in more), run["took_s"]))


def run_boot(options, files, record, mode, weights, todo):
    with boot(options, files, mode, weights, todo) as guest:
        for event in guest.events():
            if event["event"] == "boot":
                say("%s, weights %s: Linux %s, %d MiB, PSI %s, touches %d MB/s, writes %d MB/s" % (
                    mode, weights, event["kernel"], event["mem_total_mib"], event["psi"], event["touch_mb_s"],
                    event["write_mb_s"]))
                speeds = {"touch_mb_s": event["touch_mb_s"], "write_mb_s": event["write_mb_s"], "psi": event["psi"],
                          "kernel": event["kernel"]}
            elif event["event"] == "run":
                record.add({**event, **speeds, "host_load": os.getloadavg()[0]})
                show(event)


def run_matrix(options, files, record):
    """Machines that ended badly, as text."""
    troubles = []
    for weights in options.weights:
        for mode in options.modes:
            for _ in range(BOOTS):
                todo = plan(options, record, mode, weights)
                if not todo:
                    break
                try:
                    run_boot(options, files, record, mode, weights, todo)
                except machine.Trouble as trouble:
                    troubles.append("%s, weights %s: %s" % (mode, weights, trouble))
                    say("  " + troubles[-1])
    return troubles


def show_triggers(options, files):
    with boot(options, files, "triggers", "none", "0x0") as guest:
        for event in guest.events():
            if event["event"] == "trigger":
                say("%(user)-6s %(file)-38s %(trigger)-20s %(outcome)s; without pressure, events: %(events)s" % event)


# ---- the tables --------------------------------------------------------------------------------------

def is_bad(run):
    return run["oom_kills"] > 0 or run["engine"] != "ok"


def median(runs, key):
    return statistics.median(run[key] for run in runs) if runs else None


def reached(options, record, weights, rate):
    """What the spike reached; of runs without a kill where there are any, since a kill takes its time."""
    runs = [run for mode in options.modes for run in record.cell(mode, weights, rate)]
    return median([run for run in runs if not run["oom_kills"]] or runs, "reached_mb_s")


def table(options, record, weights):
    width = max(len(mode) for mode in options.modes) + 2
    say("\nweights %s: runs with a kill / runs" % weights)
    say("MB/s asked".ljust(12) + "".join("%10d" % rate for rate in options.rates))
    for mode in options.modes:
        cells = []
        for rate in options.rates:
            runs = record.cell(mode, weights, rate)
            other = sum(is_bad(run) and run["oom_kills"] == 0 for run in runs)
            kills = sum(run["oom_kills"] > 0 for run in runs)
            cells.append("%d/%d%s" % (kills, len(runs), "!%d" % other if other else ""))
        say(mode.ljust(max(12, width)) + "".join("%10s" % cell for cell in cells))
    rates = [reached(options, record, weights, rate) for rate in options.rates]
    say("reached".ljust(12) + "".join("%10s" % ("-" if rate is None else "%.0f" % rate) for rate in rates))


def summary(options, record, troubles, files):
    cells = []
    for weights in options.weights:
        for mode in options.modes:
            for rate in options.rates:
                runs = record.cell(mode, weights, rate)
                cells.append({"mode": mode, "weights": weights, "rate_mb_s": rate, "runs": len(runs),
                              "kills": sum(run["oom_kills"] > 0 for run in runs),
                              "engine_killed": sum(run["engine"] == "killed" for run in runs),
                              "otherwise_bad": sum(is_bad(run) and run["oom_kills"] == 0 for run in runs),
                              "reached_mb_s": median(runs, "reached_mb_s"), "took_s": median(runs, "took_s"),
                              "cache_least_mib": median(runs, "cache_least_mib")})
    return {"what": "whole system, emulated", "psi": not options.no_psi, "accel": files["accel"],
            "memory_mib": options.memory_mib, "cpus": options.cpus, "cache_mib": options.cache_mib,
            "disk_mb_s": options.disk_mb_s, "cells": cells, "troubles": troubles, "runs": record.runs}


def verdict(options, cells, troubles):
    """0 when the bar is met: every run made, none of auto's with a kill or a wrong byte."""
    auto = [cell for cell in cells if cell["mode"] == "auto"]
    short = [cell for cell in cells if cell["runs"] < wanted(options, cell["mode"])]
    kills = sum(cell["kills"] for cell in auto)
    bad = sum(cell["otherwise_bad"] for cell in auto)
    say("\nauto: %d runs with a kill and %d with another fault, of %d (bar: 0)" % (
        kills, bad, sum(cell["runs"] for cell in auto)))
    say("  N/M!K: K more runs in which the engine got stuck, read a wrong byte or did not start")
    if short or troubles:
        say("incomplete: %d cells short of runs, %d machines ended badly" % (len(short), len(troubles)))
    return 1 if kills or bad or short else 0


def drop_unknown_modes(options, archive):
    """A library without modes would run `auto` under their names."""
    with open(archive, "rb") as file:
        if b"\0avg10\0" in file.read():
            return
    left = [mode for mode in options.modes if mode in ("auto", "stock")]
    if left != options.modes:
        say("this library knows no modes: left out psi and avg10")
        options.modes = left


def prepare(options):
    if subprocess.call(["sh", os.path.join(HERE, "setup.sh")]) != 0:
        raise SystemExit(1)
    os.makedirs(machine.BUILD, exist_ok=True)
    accel, why = machine.accelerator() if options.accel == "auto" else (options.accel, "as asked")
    say("accelerator: %s%s" % (accel, " (%s)" % why if why else ""))
    archive = machine.library(options.source)
    drop_unknown_modes(options, archive)
    program = machine.guest(options.source, archive)
    return {"accel": accel, "program": program, "initramfs": machine.initramfs(program),
            "disk": machine.disk(WEIGHTS_MIB)}


def setting(options, files):
    """What must be equal for two runs to be counted together."""
    with open(files["program"], "rb") as file:
        program = hashlib.sha256(file.read()).hexdigest()
    same = {name: getattr(options, name) for name in ("cache_mib", "block_kib", "memory_mib", "cpus", "disk_mb_s",
                                                      "settle", "no_psi")}
    return {"program": program, "accel": files["accel"], "free_mib": FREE_MIB, **same}


def main():
    options = arguments()
    machine.leave_on_signals()
    begin_s = time.monotonic()
    files = prepare(options)
    if options.triggers:
        show_triggers(options, files)
        return 0
    results = os.path.join(machine.ROOT, "build", "bench")
    os.makedirs(results, exist_ok=True)
    name = "machine_spikes" + ("_no_psi" if options.no_psi else "") + ("_quick" if options.quick else "")
    record = Record(os.path.join(results, name + ".jsonl"), setting(options, files), options.fresh)
    troubles = run_matrix(options, files, record)
    for weights in options.weights:
        table(options, record, weights)
    found = summary(options, record, troubles, files)
    with open(os.path.join(results, name + ".json"), "w") as file:
        json.dump(found, file, indent=1)
    status = verdict(options, found["cells"], troubles)
    say("%.0f s; build/bench/%s.json" % (time.monotonic() - begin_s, name))
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except machine.Trouble as trouble:
        sys.exit("error: %s" % trouble)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; call again to go on")
