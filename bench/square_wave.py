"""A neighbour whose memory goes up and down: does the cache go up and down with it, or does it flutter?

Purpose: a controller that trims and regrows several times for one change of the world burns the disk and the answer.
llama.cpp with psi_cache and a full cache decodes over a context of constant length in a memory group; a program in the
same group takes and frees memory as a square wave, so much that the group's limit would be met. Then it stays at one
level: just below the level that calls for a trim, just above it, and above the limit.
Command: .venv/bin/python bench/square_wave.py [--periods 1 2 5 10 20 60]      (about 10 minutes)
Bar: no more than one trim and one regrow a period; at a steady level no more than one of each, and none once the level
has stood for 10 s; nobody is killed. Ends with 1 when it is missed. Writes build/bench/square_wave.json and .png.

A trim (a regrow) is a run of reports in which trimmed_bytes (restored_bytes) grows and the other does not. The engine
writes 64 tokens, takes them back and writes them anew; where their blocks were trimmed meanwhile they count as restored.
Runs below 512 KiB are therefore left out: they are at most five blocks.

Blocks that no step can see (behind the sliding window: most of this cache) go first and do not come back by
themselves. They are trimmed before anything is measured, so that each wave is about blocks that do come back.
"""
import argparse
import math
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import loads  # noqa: E402
import rig  # noqa: E402

MIB = rig.MIB
STATS_MS = 20             # 50 reports a second; 20 are wanted at least
LEAST_REPORTS_A_S = 20
SPAN_TOKENS = 64          # the engine takes back what it wrote after so many tokens
LEAST_RUN_BYTES = 512 * 1024
QUIET_S = 3.0             # nothing moved for so long (more than the dwell time): the cache is as large as it will be
QUIET_LIMIT_S = 30.0
STEADY_SETTLE_S = 10.0
STEADY_RATE_BYTES_S = 100 * MIB  # a slow rise: what a forecast fears of a fast one is no part of a steady state
FREE_SHARE = 0.3          # of the limit: free while the wave is low, so that there is no cause to hold anything back
GIVE_SHARE = 0.5          # of what the cache can give: wanted beyond the limit while the wave is high


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--periods", type=float, nargs="*", default=[1, 2, 5, 10, 20, 60], metavar="S")
    parser.add_argument("--least-s", type=float, default=30, help="of each period's part, and at least 3 periods (default 30)")
    parser.add_argument("--steady-s", type=float, default=30, help="of each steady part; 0: none (default 30)")
    parser.add_argument("--rate", type=loads.size_bytes, default=2048 * MIB, metavar="BYTES/S",
                        help="at which the wave rises (default 2G)")
    parser.add_argument("--mode", choices=("auto", "psi", "avg10"), default="auto", help="of the controller, for comparison")
    parser.add_argument("--weights", choices=("mapped", "locked"), default="locked")
    return parser.parse_args()


# ---- what happened to the cache ----------------------------------------------------------------------

def runs(reports):
    """[(kind, begin_s, end_s, bytes)], kind "trim" or "regrow": runs of growth of one counter without growth of the
    other. Where both grew between two reports, the run that was going on is taken to have gone on first."""
    found = []
    for (_, before), (time_s, now) in zip(reports, reports[1:]):
        grew = {"trim": now["trimmed_bytes"] - before["trimmed_bytes"],
                "regrow": now["restored_bytes"] - before["restored_bytes"]}
        last = found[-1][0] if found else "trim"
        for kind in (last, "regrow" if last == "trim" else "trim"):
            if grew[kind] > 0:
                join(found, (kind, time_s, time_s, grew[kind]))
    return found


def join(found, run):
    """Adds a run; to the last one where that is of its kind."""
    if found and found[-1][0] == run[0]:
        found[-1] = (run[0], found[-1][1], run[2], found[-1][3] + run[3])
    else:
        found.append(run)


def episodes(reports):
    """The runs, less those that are the engine's own writing."""
    found = []
    for run in runs(reports):
        if run[3] >= LEAST_RUN_BYTES:
            join(found, run)
    return found


def reports_between(engine, begin_s, end_s):
    return [(time_s, stats) for time_s, stats in list(engine.stats) if begin_s <= time_s <= end_s]


def count(found, kind):
    return sum(episode[0] == kind for episode in found)


def wait_until_quiet(engine):
    """Until the cache has not moved for QUIET_S. Returns how long it took; None when that did not come."""
    begin_s = quiet_s = time.monotonic()
    last_bytes = None
    while time.monotonic() - begin_s < QUIET_LIMIT_S and engine.alive():
        stats = engine.last_stats()
        moved_bytes = stats["trimmed_bytes"] + stats["restored_bytes"]
        if last_bytes is None or moved_bytes - last_bytes >= LEAST_RUN_BYTES:
            last_bytes, quiet_s = moved_bytes, time.monotonic()
        if time.monotonic() - quiet_s > QUIET_S:
            return round(time.monotonic() - begin_s, 3)
        time.sleep(0.05)
    return None


def give_what_no_step_sees(engine):
    """Trims all by hand, and waits until the controller has taken back what it wants."""
    subprocess.run([rig.tool(), "trim", str(engine.pid), "1"], check=True, stdout=subprocess.DEVNULL)
    time.sleep(1)
    wait_until_quiet(engine)


# ---- how high the wave goes --------------------------------------------------------------------------

class Levels:
    """Sizes of limit and wave, from what the engine needs with a full cache."""

    def __init__(self, needed_bytes, evictable_bytes):
        self.needed_bytes, self.evictable_bytes = needed_bytes, evictable_bytes
        self.limit_bytes = int(needed_bytes / (1 - FREE_SHARE)) // MIB * MIB
        free_bytes = self.limit_bytes - needed_bytes
        # The headroom at which the index calls for a trim: as psicache.h gives it for a limit of this size.
        self.reserve_bytes = min(max(self.limit_bytes // 16, 16 * MIB), 256 * MIB)
        self.wave_bytes = int(free_bytes + GIVE_SHARE * evictable_bytes) // MIB * MIB
        self.steady_bytes = {"just below the trim level": free_bytes - int(1.3 * self.reserve_bytes),
                             "just above the trim level": free_bytes - int(0.9 * self.reserve_bytes),
                             "above the limit": self.wave_bytes}

    def __str__(self):
        return "limit %s: the engine needs %s, of which the cache can give %s; the wave takes %s, %s more than is free" % tuple(
            rig.demo.mib(value) for value in (self.limit_bytes, self.needed_bytes, self.evictable_bytes, self.wave_bytes,
                                              self.wave_bytes - (self.limit_bytes - self.needed_bytes)))


def measure_levels(stage, engine, weights):
    stats = engine.last_stats()
    evictable = int(stats["resident_bytes"] - stats["capacity_bytes"] * rig.FLOOR_SHARE)
    return Levels(stage.unreclaimable_bytes(weights), evictable)


# ---- the parts ---------------------------------------------------------------------------------------

def part(engine, group, seconds, arguments, until_low=False):
    """One load of kind wave in the group, and what the cache did meanwhile; or only until the wave's last fall."""
    quiet_after_s = wait_until_quiet(engine)
    kills = group.oom_kills()
    with loads.Load("wave", group, seconds, arguments) as wave:
        begin_s = time.monotonic()
        wave.go().finish(seconds + 60)
        end_s = time.monotonic()
        if until_low:
            end_s = max(e["time_s"] for e in wave.events if e["event"] == "low")
        marks = [(e["time_s"], e["event"], e["bytes"]) for e in wave.events if e["event"] in ("rise", "high", "low")]
    reports = reports_between(engine, begin_s, end_s)
    found = episodes(reports)
    steps = [ms for _, ms in engine.steps_between(begin_s, end_s)]
    return {"begin_s": begin_s, "end_s": end_s, "quiet_after_s": quiet_after_s,
            "reports_a_second": len(reports) / (end_s - begin_s), "runs_left_out": len(runs(reports)) - len(found),
            "longest_gap_s": max((b[0] - a[0] for a, b in zip(reports, reports[1:])), default=None),
            "trims": count(found, "trim"), "regrows": count(found, "regrow"),
            "trimmed_bytes": sum(e[3] for e in found if e[0] == "trim"),
            "episodes": [(kind, round(a - begin_s, 3), round(b - begin_s, 3), size) for kind, a, b, size in found],
            "kills": (group.oom_kills() or 0) - (kills or 0), "alive": engine.alive(), "refused": engine.refused,
            "step_median_ms": rig.median(steps), "step_most_ms": max(steps, default=None), "marks": marks,
            "index_most": max((stats["index"] for _, stats in reports), default=None),
            "series": [(round(t - begin_s, 3), s["resident_bytes"], s["trimmed_bytes"], s["restored_bytes"], round(s["index"], 3),
                        s["headroom_bytes"]) for t, s in reports]}


def fair(row):
    return row["kills"] == 0 and row["alive"] and row["reports_a_second"] >= LEAST_REPORTS_A_S


def run_period(period_s, options, levels, engine, group):
    wanted = max(3, math.ceil(options.least_s / period_s))
    row = part(engine, group, wanted * period_s - 0.001, ["--bytes", levels.wave_bytes, "--period", period_s, "--rate",
                                                          options.rate])
    periods = sum(event == "rise" for _, event, _ in row["marks"])  # fewer than wanted where the rise itself had to wait
    row.update(part="period %g s" % period_s, period_s=period_s, periods=periods)
    row["met"] = fair(row) and row["trims"] <= periods and row["regrows"] <= periods
    return row


def run_steady(name, size_bytes, options, engine, group):
    """A wave of one period, whose first half lasts for all of the part."""
    seconds = size_bytes / STEADY_RATE_BYTES_S + STEADY_SETTLE_S + options.steady_s
    row = part(engine, group, seconds, ["--bytes", size_bytes // MIB * MIB, "--period", 2 * seconds + 10, "--rate",
                                        STEADY_RATE_BYTES_S], until_low=True)
    high_s = next((at for at, event, _ in row["marks"] if event == "high"), row["begin_s"]) - row["begin_s"]
    late = [episode for episode in row["episodes"] if episode[2] > high_s + STEADY_SETTLE_S]
    row.update(part="steady, " + name, steady_bytes=size_bytes, late=late)
    row["met"] = fair(row) and row["trims"] <= 1 and row["regrows"] <= 1 and not late
    return row


def tell(row):
    rig.say("%-34s  %3d trims, %3d regrows%s; %s trimmed, index at most %.2f, %d kills, step median %.0f ms, worst %.0f; "
            "%.0f reports a second   %s" % (
                row["part"], row["trims"], row["regrows"], " in %d periods" % row["periods"] if "periods" in row else ", %d of them late" % len(row["late"]),
                rig.demo.mib(row["trimmed_bytes"]), row["index_most"], row["kills"], row["step_median_ms"],
                row["step_most_ms"], row["reports_a_second"], "ok" if row["met"] else "MISSED"))


def run(options):
    rows = []
    with rig.Stage() as stage:
        engine = stage.engine(options.mode, weights=options.weights, threads=1, span=SPAN_TOKENS, stats_ms=STATS_MS).wait_ready(20)
        give_what_no_step_sees(engine)
        levels = measure_levels(stage, engine, options.weights)
        stage.group.set_limit(levels.limit_bytes)
        rig.say(str(levels))
        for period_s in options.periods:
            rows.append(run_period(period_s, options, levels, engine, stage.group))
            tell(rows[-1])
        for name, size_bytes in levels.steady_bytes.items() if options.steady_s else ():
            rows.append(run_steady(name, size_bytes, options, engine, stage.group))
            tell(rows[-1])
    return rows, levels


# ---- the picture -------------------------------------------------------------------------------------

def draw_wave(axis, row):
    points, held = [(0, 0)], 0
    for at, event, size in row["marks"]:
        at_s = at - row["begin_s"]
        points += {"rise": [(at_s, 0)], "high": [(at_s, size / MIB)], "low": [(at_s, held), (at_s, 0)]}[event]
        held = points[-1][1]
    points.append((row["end_s"] - row["begin_s"], held))
    axis.plot([p[0] for p in points], [p[1] for p in points], color="#999999", linewidth=1)


def draw(rows, path):
    """One line a part: the wave (grey), the cache in memory (blue)."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(len(rows), 1, figsize=(10, 1.7 * len(rows) + 0.6), squeeze=False)
    for axis, row in zip(axes[:, 0], rows):
        draw_wave(axis, row)
        axis.plot([s[0] for s in row["series"]], [s[1] / MIB for s in row["series"]], color="#1f77b4", linewidth=1.4)
        axis.set_title("%s: %d trims, %d regrows" % (row["part"], row["trims"], row["regrows"]), fontsize=9, loc="left")
        axis.set_ylim(bottom=0)
        axis.grid(True, color="#eeeeee")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("seconds; blue: cache in memory, grey: the other program (MiB)")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main():
    rig.leave_on_signals()
    options = arguments()
    rig.prepare()
    rig.say(rig.machine_line())
    rows, levels = run(options)
    path = rig.save("square_wave.json", {"rows": rows, "levels": vars(levels), "mode": options.mode, "weights": options.weights,
                                         "machine": rig.demo.machine()})
    draw(rows, path[:-len("json")] + "png")
    rig.say("%d of %d parts within the bar; %s" % (sum(row["met"] for row in rows), len(rows), os.path.relpath(path)))
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as error:
        raise SystemExit(str(error))
