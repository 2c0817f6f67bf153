"""Loads that must not cost a block: a compile, a large copy, a cold model load, page-cache churn, memory to spare.

Purpose: a controller that shrinks for nothing is switched off by its users. llama.cpp with psi_cache and a full cache
decodes, first with no limit, then in a memory group with room to spare and each load in the same group, so that all
page cache that a load makes is charged where the engine is.
Command: .venv/bin/python bench/benign.py [--seconds 20]      (about 5 minutes)
Bar: not one block trimmed: trims and trimmed_bytes of `psi-cache status --json PID` do not move. Ends with 1 when they do.
Writes build/bench/benign.json.
"""
import argparse
import os
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import loads  # noqa: E402
import rig  # noqa: E402

MIB = rig.MIB
PARTS = ("index_stall", "index_headroom", "index_forecast", "index_thrash")
COUNTERS = ("trims", "trimmed_bytes", "restores", "refusals")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each load (default 20)")
    parser.add_argument("--load", choices=loads.BENIGN, action="append", help="only this one (may be repeated)")
    parser.add_argument("--where", choices=("free", "group"), action="append",
                        help="only without a limit, or only in the group (may be repeated)")
    parser.add_argument("--group-mib", type=float, default=3072, help="limit of the group (default 3072)")
    parser.add_argument("--mode", choices=("auto", "psi", "avg10"), default="auto", help="of the controller, for comparison")
    parser.add_argument("--weights", choices=("mapped", "locked"), default="mapped",
                        help="mapped (default): a load's page cache competes with them")
    options = parser.parse_args()
    options.loads = options.load or list(loads.BENIGN)
    options.wheres = options.where or ["free", "group"]
    return options


# ---- shared with neighbour.py ------------------------------------------------------------------------

def counters(engine):
    """What the engine's board says, as anybody can read it: `psi-cache status --json PID`."""
    answer = engine.status()
    if not answer or not answer.get("processes"):
        raise RuntimeError("psi-cache status shows nothing for the engine (it %s): %s"
                           % ("lives" if engine.alive() else "has ended", engine.said()[-1000:]))
    return answer["processes"][0]


def moved(before, after):
    return {name: after[name] - before[name] for name in COUNTERS}


def highest(engine, begin_s, end_s):
    """The highest index meanwhile and what it was made of; {} while the engine reported nothing."""
    rows = [stats for time_s, stats in list(engine.stats) if begin_s <= time_s <= end_s]
    if not rows:
        return {}
    top = max(rows, key=lambda stats: stats["index"])
    return {"index": top["index"], **{part: top[part] for part in PARTS}, "reports": len(rows),
            "headroom_bytes_least": min((s["headroom_bytes"] for s in rows if s["headroom_bytes"] is not None), default=None)}


def tell_highest(top):
    if not top:
        return "index unknown"
    part = max(PARTS, key=lambda name: top[name])
    return "index at most %.2f (%s), headroom at least %s" % (top["index"], part[len("index_"):],
                                                             rig.demo.mib(top["headroom_bytes_least"]))


def first_trim(engine, before, begin_s):
    """The report in which the first trim shows: why, as far as the index says. None without one."""
    for time_s, stats in list(engine.stats):
        if time_s >= begin_s and stats["trims"] > before["trims"]:
            return {"after_s": round(time_s - begin_s, 3), **{key: stats[key] for key in ("index", *PARTS, "headroom_bytes")}}
    return None


# ---- one load ----------------------------------------------------------------------------------------

class GroupMeanwhile:
    """What became of the group meanwhile, in proof that the load did reach its limit: the most it was charged, and
    the share of the time in which a task of it stalled. All None without a group."""

    def __init__(self, group):
        self._group, self._stop, self.usage_bytes_most = group, threading.Event(), None
        self._begin_us, self._begin_s = self._some_us(), time.monotonic()
        self._thread = threading.Thread(target=self._look, daemon=True)
        if group is not None:
            self._thread.start()

    def _some_us(self):
        return rig.demo.stall_us(self._group.pressure(), "some") if self._group is not None else None

    def _look(self):
        while not self._stop.wait(0.05):
            self.usage_bytes_most = max(self.usage_bytes_most or 0, self._group.usage())

    def end(self):
        self._stop.set()
        if self._group is not None:
            self._thread.join()
        end_us, took_s = self._some_us(), time.monotonic() - self._begin_s
        known = end_us is not None and self._begin_us is not None
        return {"usage_bytes_most": self.usage_bytes_most,
                "stall_share": (end_us - self._begin_us) / 1e6 / took_s if known else None}


def run_load(name, options, engine, group):
    """The engine decodes; the load comes, works and goes."""
    with loads.Load(name, group, options.seconds) as load:
        before, begin_s = counters(engine), time.monotonic()
        meanwhile = GroupMeanwhile(group)
        try:
            done = load.go().finish(options.seconds + 120)
        finally:
            of_group = meanwhile.end()
        end_s = time.monotonic()
    after = counters(engine)
    change = moved(before, after)
    return {"load": name, "change": change, "met": change["trims"] == 0 and change["trimmed_bytes"] == 0,
            "highest": highest(engine, begin_s, end_s), "first_trim": first_trim(engine, before, begin_s),
            "group": of_group, "did": {k: v for k, v in done.items() if k not in ("event", "time_s", "load")},
            "step_median_ms": rig.median([ms for _, ms in engine.steps_between(begin_s, end_s)]),
            "resident_bytes": after["resident_bytes"]}


def tell_group(group):
    if group["usage_bytes_most"] is None:
        return ""
    stalled = "" if group["stall_share"] is None else ", stalled %.1f %%" % (100 * group["stall_share"])
    return "; group at most %s%s" % (rig.demo.mib(group["usage_bytes_most"]), stalled)


def tell(where, row):
    rig.say("%-5s  %-8s  %s trims, %s trimmed   %s%s   %s" % (
        where, row["load"], row["change"]["trims"], rig.demo.mib(row["change"]["trimmed_bytes"]), tell_highest(row["highest"]),
        tell_group(row["group"]),
        "ok" if row["met"] else "MISSED"))
    if row["first_trim"]:
        rig.say("                 first trim after %(after_s).1f s: stall %(index_stall).2f, headroom %(index_headroom).2f, "
                "forecast %(index_forecast).2f, thrash %(index_thrash).2f" % row["first_trim"])


def run_where(where, options):
    rows = []
    with rig.Stage(int(options.group_mib * MIB) if where == "group" else None) as stage:
        group = stage.group if where == "group" else None
        engine = rig.Engine(options.mode, weights=options.weights, group=group, threads=1)
        try:
            engine.wait_ready(20)
            for name in options.loads:
                rows.append({"where": where, **run_load(name, options, engine, group)})
                tell(where, rows[-1])
                time.sleep(2)  # so that what one load leaves behind is not the next one's
        finally:
            engine.finish()
    return rows


def main():
    rig.leave_on_signals()
    options = arguments()
    rig.prepare()
    rig.say(rig.machine_line())
    rows = []
    for where in options.wheres:
        rows += run_where(where, options)
    path = rig.save("benign.json", {"rows": rows, "mode": options.mode, "weights": options.weights, "seconds": options.seconds,
                                    "group_bytes": int(options.group_mib * MIB), "machine": rig.demo.machine()})
    rig.say("%d of %d without a block trimmed; %s" % (sum(row["met"] for row in rows), len(rows), os.path.relpath(path)))
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as error:
        raise SystemExit(str(error))
