"""Pressure without scarcity: a neighbour thrashes in its own small group while the machine has plenty.

Purpose: the system's memory.pressure rises for a reason that no block given back could cure. The neighbour is eight
processes that read a mapping of 256 MiB again and again in a memory group of 64 MiB. llama.cpp with psi_cache and a full cache decodes, first
outside of any group, then in a group of its own with room to spare.
Command: .venv/bin/python bench/neighbour.py [--minutes 10]      (for each of the two: 10 minutes by default)
Bar: not one block trimmed: trims and trimmed_bytes of `psi-cache status --json PID` do not move. And the neighbour must
have stalled for more than 20 % of the time, else nothing was tried. Ends with 1 when either is missed.
Writes build/bench/neighbour.json.
"""
import argparse
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import benign  # noqa: E402
import loads  # noqa: E402
import rig  # noqa: E402

MIB = rig.MIB
LEAST_STALL_SHARE = 0.2
# Reading a pressure file often can swallow a trigger's wake-up: the files are left alone in between.
LOOK_INTERVAL_S = 10.0
SAID = ("guarded", "culprit")  # prefixes of what a status may say about pressure that is not ours


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for each place (default 10)")
    parser.add_argument("--where", choices=("free", "group"), action="append",
                        help="the engine outside of any group, or in one with room to spare (may be repeated)")
    parser.add_argument("--processes", type=int, default=8, help="of the neighbour (default 8)")
    parser.add_argument("--neighbour-group-mib", type=float, default=64)
    parser.add_argument("--neighbour-file-mib", type=int, default=256)
    parser.add_argument("--group-mib", type=float, default=3072, help="limit of the engine's group (default 3072)")
    parser.add_argument("--mode", choices=("auto", "psi", "avg10"), default="auto", help="of the controller, for comparison")
    parser.add_argument("--weights", choices=("mapped", "locked"), default="mapped")
    options = parser.parse_args()
    options.wheres = options.where or ["free", "group"]
    return options


def system_pressure():
    try:
        with open("/proc/pressure/memory") as file:
            return file.read()
    except OSError:
        return None


class Pressure:
    """Stall and avg10 of the neighbour's group and of the system, in rows LOOK_INTERVAL_S apart."""

    def __init__(self, neighbour_group):
        self._sources = {"neighbour": neighbour_group.pressure, "system": system_pressure}
        self.rows, self._begin_s = [], time.monotonic()
        self.look()

    def look(self):
        row = {"after_s": round(time.monotonic() - self._begin_s, 3)}
        for name, read in self._sources.items():
            text = read()
            for kind in ("some", "full"):
                row["%s_%s_us" % (name, kind)] = rig.demo.stall_us(text, kind)
            row[name + "_avg10"] = float(text.split("avg10=")[1].split()[0]) if text else None
        self.rows.append(row)

    def shares(self):
        """{"neighbour_some": share of all the time, ...} and the highest avg10 (per cent) that was met."""
        first, last = self.rows[0], self.rows[-1]
        found = {}
        for name in self._sources:
            for kind in ("some", "full"):
                key = "%s_%s_us" % (name, kind)
                known = first[key] is not None and last[key] is not None
                found["%s_%s" % (name, kind)] = ((last[key] - first[key]) / 1e6 / (last["after_s"] - first["after_s"])
                                                 if known else None)
            found[name + "_avg10_most"] = max((row[name + "_avg10"] for row in self.rows if row[name + "_avg10"] is not None),
                                              default=None)
        return found


def said(status):
    """What the status says of pressure without scarcity and of who makes it; {} for a library that says nothing."""
    return {key: value for key, value in status.items() if key.startswith(SAID)}


def watch(engine, pressure, minutes):
    """Until the time is over or the engine has ended. Everything that a status said, each thing once."""
    heard, end_s = [], time.monotonic() + 60 * minutes
    while time.monotonic() < end_s and engine.alive():
        time.sleep(max(0.0, min(LOOK_INTERVAL_S, end_s - time.monotonic())))
        pressure.look()
        status = benign.counters(engine)
        if said(status) and (not heard or said(status) != heard[-1]["said"]):
            heard.append({"after_s": pressure.rows[-1]["after_s"], "said": said(status)})
        if sys.stderr.isatty():
            sys.stderr.write("\r%4.0f s, trims %d " % (pressure.rows[-1]["after_s"], status["trims"]))
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    return heard


def neighbour(options, group):
    seconds = 60 * options.minutes + 60  # ended by us
    return loads.Load("thrash", group, seconds, ["--bytes", options.neighbour_file_mib * MIB,
                                                 "--processes", options.processes])


def run_where(where, options, neighbour_group):
    with rig.Stage(int(options.group_mib * MIB) if where == "group" else None) as stage:
        engine = rig.Engine(options.mode, weights=options.weights, group=stage.group if where == "group" else None, threads=1)
        try:
            engine.wait_ready(20)
            time.sleep(3)
            quiet_ms = rig.median([ms for _, ms in list(engine.steps)])
            with neighbour(options, neighbour_group) as thrashing:
                before, begin_s = benign.counters(engine), time.monotonic()
                pressure = Pressure(neighbour_group)
                thrashing.go()
                heard = watch(engine, pressure, options.minutes)
                after, end_s = benign.counters(engine), time.monotonic()
        finally:
            engine.finish()
    change, shares = benign.moved(before, after), pressure.shares()
    tried = (shares["neighbour_some"] or 0) > LEAST_STALL_SHARE
    return {"where": where, "took_s": end_s - begin_s, "change": change, "tried": tried,
            "met": tried and change["trims"] == 0 and change["trimmed_bytes"] == 0, "pressure": shares,
            "pressure_rows": pressure.rows, "highest": benign.highest(engine, begin_s, end_s),
            "first_trim": benign.first_trim(engine, before, begin_s), "heard": heard, "status_at_end": after,
            "step_median_quiet_ms": quiet_ms,
            "step_median_ms": rig.median([ms for _, ms in engine.steps_between(begin_s, end_s)])}


def percent(share):
    return "unknown" if share is None else "%.1f %%" % (100 * share)


def tell(row):
    shares = row["pressure"]
    rig.say("engine %s, %.0f s" % ("outside of any group" if row["where"] == "free" else "in a group with room to spare",
                                   row["took_s"]))
    rig.say("  neighbour stalled %s of the time (full %s, avg10 at most %s), the system %s (full %s, avg10 at most %s)"
            % (percent(shares["neighbour_some"]), percent(shares["neighbour_full"]), shares["neighbour_avg10_most"],
               percent(shares["system_some"]), percent(shares["system_full"]), shares["system_avg10_most"]))
    rig.say("  %s; median step %.1f ms, %.1f before" % (benign.tell_highest(row["highest"]), row["step_median_ms"],
                                                        row["step_median_quiet_ms"]))
    for heard in row["heard"] or [{"after_s": 0, "said": "nothing about guarding or a culprit"}]:
        rig.say("  status after %.0f s: %s" % (heard["after_s"], heard["said"]))
    if not row["tried"]:
        rig.say("  the neighbour hardly stalled: nothing was tried")
    if row["first_trim"]:
        rig.say("  first trim after %(after_s).1f s: stall %(index_stall).2f, headroom %(index_headroom).2f, "
                "forecast %(index_forecast).2f, thrash %(index_thrash).2f" % row["first_trim"])
    rig.say("  %d trims, %s trimmed   %s" % (row["change"]["trims"], rig.demo.mib(row["change"]["trimmed_bytes"]),
                                             "ok" if row["met"] else "MISSED"))


def main():
    rig.leave_on_signals()
    options = arguments()
    rig.prepare()
    rig.say(rig.machine_line())
    rows = []
    for where in options.wheres:
        with rig.MemoryGroup(int(options.neighbour_group_mib * MIB)) as neighbour_group:
            rows.append(run_where(where, options, neighbour_group))
        tell(rows[-1])
    rig.save("neighbour.json", {"rows": rows, "mode": options.mode, "minutes": options.minutes,
                                "neighbour_group_bytes": int(options.neighbour_group_mib * MIB),
                                "neighbour_file_bytes": options.neighbour_file_mib * MIB, "processes": options.processes,
                                "machine": rig.demo.machine()})
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as error:
        raise SystemExit(str(error))
