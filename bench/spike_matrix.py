"""Spikes of 50 MB/s to 4 GB/s beside a decoding engine, in a memory limit with a real out-of-memory killer:
who is killed, with psi_cache (auto), with its two comparison modes (psi, avg10) and without it (stock).

    .venv/bin/python bench/spike_matrix.py            # about 35 minutes; may be stopped and started again
    .venv/bin/python bench/spike_matrix.py --runs 1 --compare 1 --cells 500:locked

A cell is a rate of the spike and a way of having the weights (mapped, locked, unreclaimable). Limit and spike of a
cell are the same for all modes (rig.Plan): the limit lies just above what stock needs, the spike takes what is free
and 0.6 of what the cache can give above its floor. Bar: no process of the group killed in any run of auto, in any
cell; ends with 1 otherwise, or while runs are missing. A kill is what the group's own counter and a process's
SIGKILL say. Each run is appended to build/bench/spike_matrix.jsonl; runs of another build of the library (stock:
of another limit and spike) do not count. Writes build/bench/spike_matrix.json and .png.
"""
import argparse
import json
import os
import random
import sys
import time

import rig

RATES_MB_S = (50, 200, 500, 1000, 2000, 4000)
OURS = "auto"
OTHERS = ("psi", "avg10", "stock")
BEFORE_S = 0.5        # unpressed decoding before the spike
HOLD_S = 0.7          # how long the spike stays
OVERHEAD_S = 2.6      # start, load, end: for the estimate only
SPIKE_LIMIT_S = 12.0  # beyond the spike's own time: a run that takes longer is ended and counts as failed
RECORDS = "spike_matrix.jsonl"


# ---- what to run -------------------------------------------------------------------------------------

def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="of auto, a cell (default 10)")
    parser.add_argument("--compare", type=int, default=3, help="of psi, avg10 and stock, a cell (default 3)")
    parser.add_argument("--modes", default=",".join((OURS,) + OTHERS), help="default: auto,psi,avg10,stock")
    parser.add_argument("--cells", default="", metavar="LIST",
                        help="such as 500:locked,4000:mapped, or 50,200 (all weights), or locked (all rates)")
    parser.add_argument("--fresh", action="store_true", help="set earlier runs aside (the .jsonl is renamed)")
    parser.add_argument("--report", action="store_true", help="run nothing: table and picture of what there is")
    options = parser.parse_args()
    options.modes = [mode for mode in options.modes.split(",") if mode]
    for mode in options.modes:
        if mode not in rig.MODES:
            parser.error("no such mode: " + mode)
    try:
        options.cells = chosen_cells(options.cells)
    except ValueError as error:
        parser.error(str(error))
    return options


def chosen_cells(text):
    every = [(rate, weights) for rate in RATES_MB_S for weights in rig.WEIGHTS]
    if not text:
        return every
    chosen = []
    for item in text.split(","):
        rate, _, weights = item.partition(":")
        if rate in rig.WEIGHTS:
            rate, weights = "", rate
        if weights not in ("",) + rig.WEIGHTS or (rate and not rate.isdigit()):
            raise ValueError("no such cell: %s (RATE:WEIGHTS, weights one of %s)" % (item, ", ".join(rig.WEIGHTS)))
        chosen += [(int(r) if rate else r, w) for r, w in
                   ([(rate, x) for x in rig.WEIGHTS] if rate else [(x, weights) for x in RATES_MB_S])
                   if not weights or w == weights]
    return list(dict.fromkeys(chosen))


def schedule(options, done):
    """(cell, mode, number) of all runs that are missing, round by round: in a round each cell once in each of its
    modes, cells in a drawn order, modes rotating, so that what the machine does meanwhile hits all alike."""
    wanted = []
    for number in range(max(options.runs, options.compare)):
        draw = random.Random(number)
        cells = list(options.cells)
        draw.shuffle(cells)
        for at, cell in enumerate(cells):
            turn = (number + at) % len(options.modes)
            for mode in options.modes[turn:] + options.modes[:turn]:
                if number < (options.runs if mode == OURS else options.compare):
                    if done.get((cell, mode), 0) <= number:
                        wanted.append((cell, mode, number))
    return wanted


def seconds_of(cell, mode, plans):
    """An estimate. Stock is killed on the way, and its run then over."""
    rate, weights = cell
    share = 0.4 if mode == "stock" else 1.0
    return OVERHEAD_S + BEFORE_S + share * (HOLD_S + plans[weights].spike_bytes / (rate * rig.MB))


# ---- one run -----------------------------------------------------------------------------------------

def run_once(cell, mode, plan):
    rate, weights = cell
    begin_s = time.monotonic()
    with rig.Stage(plan.limit_bytes) as stage:
        engine = stage.engine(mode, weights=weights)
        ready_s = time.monotonic()
        time.sleep(BEFORE_S)
        before_bytes, valid = stage.unreclaimable_bytes(weights), rig.weights_are_as_said(stage, engine)
        spike = stage.spike(plan.spike_bytes, rate * rig.MB, hold_s=HOLD_S)
        ended = watch(engine, spike, plan.spike_bytes / (rate * rig.MB) + HOLD_S + SPIKE_LIMIT_S)
        stage.settle()
        kills = stage.kills()
        return record_of(cell, mode, plan, engine, spike, kills,
                         {"before_bytes": before_bytes, "weights_as_said": valid,
                          "ready_s": round(ready_s - begin_s, 2), "in_time": ended,
                          "wall_s": round(time.monotonic() - begin_s, 2)}, ready_s)


def watch(engine, spike, most_s):
    """Until the spike has ended; or the engine has (the spike's further course then shows nothing)."""
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline:
        if spike.wait(0.01) or not engine.alive():
            return True
    return False


def record_of(cell, mode, plan, engine, spike, kills, timing, ready_s):
    before = [ms for _, ms in engine.steps_between(ready_s, spike.begin_s or 0)]
    within = [ms for _, ms in engine.steps_between(spike.begin_s or 0, spike.end_s or time.monotonic())]
    # A step that is still under way when the time is over counts with what it has taken so far.
    open_ms = [(time.monotonic() - engine.steps[-1][0]) * 1e3] if engine.alive() and not timing["in_time"] else []
    reached, fastest = spike.reached_bytes_per_s, spike.fastest_bytes_per_s
    stats = engine.last_stats()
    failed = kills["count"] == 0 and (not timing["in_time"] or not engine.alive())
    return {"rate_mb_s": cell[0], "weights": cell[1], "mode": mode, "build": rig.build_of(mode),
            "limit_bytes": plan.limit_bytes, "spike_bytes": plan.spike_bytes, "killed": kills["count"] > 0,
            "kills": kills, "failed": failed, "said": engine.said()[-600:] if failed else "",
            "unpressed_ms": rig.median(before), "median_ms": rig.median(within),
            "worst_ms": max(within + open_ms, default=None), "steps_in_spike": len(within),
            "reached_mb_s": round(reached / rig.MB, 1) if reached else None,
            "fastest_mb_s": round(fastest / rig.MB, 1) if fastest else None,
            "spike_full": spike.full_s is not None and not spike.short(), "refused": engine.refused,
            "trims": stats.get("trims"), "resident_bytes": stats.get("resident_bytes"),
            "reaction_most_us": stats.get("reaction_most_us"), "date": time.strftime("%Y-%m-%d %H:%M:%S"), **timing}


# ---- what there is -----------------------------------------------------------------------------------

def records_path():
    return os.path.join(rig.BUILD, RECORDS)


def load_records(plans):
    """Runs that count: of this build (stock: any), with this limit and spike."""
    records, builds = [], {}
    if not os.path.exists(records_path()):
        return records
    with open(records_path()) as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut off by a power cut; that run is done again
            mode = record["mode"]
            if mode not in builds:
                builds[mode] = rig.build_of(mode)
            plan = plans[record["weights"]]
            if record["build"] == builds[mode] and (record["limit_bytes"], record["spike_bytes"]) == (
                    plan.limit_bytes, plan.spike_bytes):
                records.append(record)
    return records


def append(record):
    with open(records_path(), "a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def count_done(records):
    done = {}
    for r in records:
        key = ((r["rate_mb_s"], r["weights"]), r["mode"])
        done[key] = done.get(key, 0) + 1
    return done


def summary_of(records):
    """One row a cell and mode."""
    rows = []
    for rate in RATES_MB_S:
        for weights in rig.WEIGHTS:
            for mode in rig.MODES:
                runs = [r for r in records if (r["rate_mb_s"], r["weights"], r["mode"]) == (rate, weights, mode)]
                if runs:
                    rows.append(summary_row(rate, weights, mode, runs))
    return rows


def summary_row(rate, weights, mode, runs):
    def known(key, of=runs):
        return [r[key] for r in of if r[key] is not None]
    full = [r for r in runs if r["spike_full"] and not r["killed"]]
    return {"rate_mb_s": rate, "weights": weights, "mode": mode, "runs": len(runs),
            "killed": sum(r["killed"] for r in runs), "engine_killed": sum(r["kills"]["engine"] for r in runs),
            "failed": sum(r["failed"] for r in runs), "unpressed_ms": rig.median(known("unpressed_ms")),
            "median_ms": rig.median(known("median_ms")), "worst_ms": max(known("worst_ms"), default=None),
            "reached_mb_s": rig.median(known("reached_mb_s", full or runs)),
            "fastest_mb_s": rig.median(known("fastest_mb_s", full or runs)),
            "fastest_least_mb_s": min(known("fastest_mb_s", full or runs), default=None)}


# ---- telling -----------------------------------------------------------------------------------------

def tell_run(record):
    what = "KILLED (%s)" % ", ".join(k for k in ("engine", "spike") if record["kills"][k]) if record["killed"] else \
        "FAILED" if record["failed"] else "alive"
    note = "" if record["weights_as_said"] else "; does not count: weights not charged to the group, or not locked"
    return "%-5s %-22s worst %s ms, median %s ms, reached %s, whole %s MB/s, %.1f s%s" % (
        record["mode"], what, number(record["worst_ms"]), number(record["median_ms"]),
        number(record["fastest_mb_s"]), number(record["reached_mb_s"]), record["wall_s"], note)


def number(value, form="%.0f"):
    return "-" if value is None else form % value


def table(rows):
    """Cells down, modes across: kills/runs, and the worst and the median step in the spike. Rates of the spike: over
    its fastest 32 MiB, and over all of it, waiting at the limit included (medians of the first mode)."""
    modes = [mode for mode in rig.MODES if any(r["mode"] == mode for r in rows)]
    at = {(r["rate_mb_s"], r["weights"], r["mode"]): r for r in rows}
    lines = ["%-20s %15s" % ("spike, weights", "reached") + "".join("%24s" % mode for mode in modes),
             "%-20s %15s" % ("MB/s", "fastest  whole") + "%24s" % "killed worst median ms" * len(modes)]
    for rate, weights in dict.fromkeys((r["rate_mb_s"], r["weights"]) for r in rows):
        cells = [at.get((rate, weights, mode)) for mode in modes]
        first = next(r for r in cells if r is not None)
        lines.append("%5d %-14s %8s %6s" % (rate, weights, number(first["fastest_mb_s"]),
                                            number(first["reached_mb_s"])) + "".join(
            "%24s" % ("" if r is None else "%d/%d %6s %6s" % (
                r["killed"] + r["failed"], r["runs"], number(r["worst_ms"]), number(r["median_ms"]))) for r in cells))
    return "\n".join(lines)


def draw(rows, path):
    """One panel a mode: colour is the share of runs with a kill."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap
    colours = LinearSegmentedColormap.from_list("kills", ["#dcefdc", "#f7d9a8", "#d9534f"])
    modes = [mode for mode in rig.MODES if any(r["mode"] == mode for r in rows)]
    titles = {"auto": "auto: headroom, its slope and stall", "psi": "psi: stall alone", "avg10": "avg10 alone",
              "stock": "stock llama.cpp", "off": "pages taken late, controller off"}
    figure, axes = plt.subplots(len(modes), 1, figsize=(9.2, 2.0 * len(modes) + 0.9), squeeze=False)
    for axis, mode in zip(axes[:, 0], modes):
        panel(axis, [r for r in rows if r["mode"] == mode], colours)
        axis.set_title(titles[mode], fontsize=11, loc="left", fontweight="bold")
    axes[-1, 0].set_xlabel("rate of the spike (MB/s)")
    figure.suptitle("processes killed / runs, and the worst step in the spike", fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def panel(axis, rows, colours):
    from matplotlib.patches import Rectangle
    at = {(r["rate_mb_s"], r["weights"]): r for r in rows}
    for x, rate in enumerate(RATES_MB_S):
        for y, weights in enumerate(rig.WEIGHTS):
            r = at.get((rate, weights))
            share = (r["killed"] + r["failed"]) / r["runs"] if r else None
            axis.add_patch(Rectangle(
                (x - 0.5, y - 0.5), 1, 1, facecolor=colours(share) if r else "#f4f4f4", edgecolor="white", linewidth=2))
            if r:
                axis.text(x, y - 0.14, "%d / %d" % (r["killed"] + r["failed"], r["runs"]), ha="center", va="center",
                          fontsize=11, fontweight="bold")
                axis.text(x, y + 0.24, number(r["worst_ms"]) + " ms", ha="center", va="center", fontsize=8)
    axis.set_xlim(-0.5, len(RATES_MB_S) - 0.5)
    axis.set_ylim(len(rig.WEIGHTS) - 0.5, -0.5)
    axis.set_xticks(range(len(RATES_MB_S)), RATES_MB_S)
    axis.set_yticks(range(len(rig.WEIGHTS)), rig.WEIGHTS)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def report(options, plans):
    """Table, JSON, picture, verdict. 0 when the bar is held and nothing is missing."""
    records = load_records(plans)
    rows = summary_of(records)
    if not rows:
        rig.say("no runs yet")
        return 1
    rig.say("\n" + table(rows))
    rig.save("spike_matrix.json", {"rows": rows, "plans": {w: p.facts() for w, p in plans.items()},
                                   "runs_wanted": options.runs, "compare_wanted": options.compare,
                                   "hold_s": HOLD_S, "machine": rig.demo.machine()})
    draw(rows, os.path.join(rig.BUILD, "spike_matrix.png"))
    return verdict(options, records)


def verdict(options, records):
    bad = [r for r in records if r["mode"] == OURS and (r["killed"] or r["failed"])]
    stock = [r for r in records if r["mode"] == "stock"]
    missing = len(schedule(options, count_done(records)))
    runs = sum(r["mode"] == OURS for r in records)
    rig.say("\nauto: %d of %d runs with a kill or a failure (bar: 0)%s; stock: %d of %d killed"
            % (len(bad), runs, "; %d runs of all modes are missing" % missing if missing else "",
               sum(r["killed"] for r in stock), len(stock)))
    rig.say("%s; build/bench/spike_matrix.json, .png" % rig.machine_line())
    return 0 if not bad and not missing else 1


# ---- the harness -------------------------------------------------------------------------------------

def leave_out_unknown_modes(options):
    unknown = [mode for mode in options.modes if mode in ("psi", "avg10")]
    if unknown and not rig.library_knows_modes():
        rig.say("this build of the library knows no PSI_CACHE_MODE: %s left out" % " and ".join(unknown))
        options.modes = [mode for mode in options.modes if mode not in unknown]


def run_all(options, plans):
    wanted = schedule(options, count_done(load_records(plans)))
    seconds = sum(seconds_of(cell, mode, plans) for cell, mode, _ in wanted)
    rig.say("%d runs to do, about %.0f minutes" % (len(wanted), seconds / 60))
    for at, (cell, mode, _) in enumerate(wanted):
        try:
            record = run_once(cell, mode, plans[cell[1]])
        except RuntimeError as error:  # an engine that does not come up is no result, and no reason to stop
            rig.say("  %5d %-14s %s: %s" % (cell + (mode, error)))
            continue
        # Weights that another process maps, too, are not charged here: the limit then means something else.
        if record["weights_as_said"]:
            append(record)
        rig.say("  %4d/%d %5d %-14s %s" % ((at + 1, len(wanted)) + cell + (tell_run(record),)))


def main():
    options = arguments()
    rig.leave_on_signals()
    plans = {weights: rig.plan_for(weights) for weights in rig.WEIGHTS}
    leave_out_unknown_modes(options)
    rig.say(rig.machine_line())
    for plan in plans.values():
        rig.say("  %s" % plan)
    if options.fresh and os.path.exists(records_path()):
        os.replace(records_path(), records_path() + time.strftime(".%Y%m%d-%H%M%S"))
    if not options.report:
        run_all(options, plans)
    return report(options, plans)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as error:
        sys.exit(str(error))
