"""Thrash: a limit below weights, cache and neighbour together, with mapped weights. Nobody is killed; the kernel takes
the weights back instead, and a model without psi_cache re-reads them from disk at every token. With psi_cache the
cache gives way and the weights stay.

    .venv/bin/python bench/thrash.py                  # about 4 minutes: 10 runs of ours, 3 of stock

A neighbour takes memory at 1 GB/s until only --left of the weights could stay beside a full cache, and holds it 8 s.
Step times are compared with those before, in the same process. Bars: ours is back within 1.5x of its unpressed step
time 2 s after the neighbour's first byte, in every run, and stays there; stock stays above 10x. Ends with 1 when one
is missed, or when anything is killed. Writes build/bench/thrash.json and build/bench/thrash.png.
"""
import argparse
import os
import sys
import time

import rig

CONTEXT_TOKENS = 26624  # the state nearly fills it: what the neighbour takes must come from weights or cache
BEFORE_S = 1.5
HOLD_S = 8.0
RATE = 1000 * rig.MB
WINDOW_S = 0.5          # recovered: the median step of each such window from then on is within the bar
BACK_BAR, BACK_BAR_S, STOCK_BAR = 1.5, 2.0, 10.0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="of ours (default 10)")
    parser.add_argument("--stock-runs", type=int, default=3)
    parser.add_argument("--mode", choices=rig.MODES, default="auto", help="of ours (default auto)")
    parser.add_argument("--left", type=float, default=0.15, metavar="SHARE",
                        help="of the weights that could stay beside a full cache (default 0.15)")
    return parser.parse_args()


def neighbour_bytes(plan, left):
    """Takes the slack of the limit, and all but `left` of the weights."""
    return int(plan.limit_bytes - plan.stock_bytes + (1 - left) * plan.weights_bytes)


def run_once(mode, plan, size_bytes):
    with rig.Stage(plan.limit_bytes) as stage:
        engine = stage.engine(mode, weights="mapped", context_tokens=CONTEXT_TOKENS)
        ready_s, faults = time.monotonic(), engine.faults()
        time.sleep(BEFORE_S)
        faults_before = engine.faults() - faults
        neighbour = stage.spike(size_bytes, RATE, hold_s=HOLD_S)
        neighbour.wait(HOLD_S + 15)
        kills, faults_after = stage.kills(), engine.faults()
        return facts(mode, engine, neighbour, kills, ready_s, faults_before,
                     None if faults_after is None else faults_after - faults - faults_before)


def facts(mode, engine, neighbour, kills, ready_s, faults_before, faults_within):
    begin_s, full_s = neighbour.begin_s, neighbour.full_s or neighbour.begin_s
    end_s = neighbour.end_s or time.monotonic()
    unpressed_ms = rig.median([ms for _, ms in engine.steps_between(ready_s, begin_s)])
    within = engine.steps_between(begin_s, end_s)
    held = [ms for at, ms in within if at >= full_s]
    stats = engine.last_stats()
    return {"mode": mode, "killed": kills["count"] > 0, "kills": kills, "unpressed_ms": unpressed_ms,
            "recover_s": recovered_after(within, begin_s, end_s, BACK_BAR * unpressed_ms),
            # The time that a step takes on average while the neighbour is there, one under way included.
            "factor": (end_s - full_s) * 1e3 / max(1, len(held)) / unpressed_ms,
            "median_ms": rig.median(held), "worst_ms": max((ms for _, ms in within), default=None),
            "worst_held_ms": max(held, default=None), "steps_held": len(held),
            "major_faults": [faults_before, faults_within], "trims": stats.get("trims"),
            "resident_bytes": stats.get("resident_bytes"), "refused": engine.refused,
            "steps": [[round(at - begin_s, 4), ms] for at, ms in engine.steps_between(begin_s - BEFORE_S, end_s)]}


def recovered_after(steps, begin_s, end_s, bar_ms):
    """Seconds from begin_s to the earliest moment from which on each window's median step is within bar_ms; None if
    there is none. A window without a step is one that is not."""
    starts = []
    at = end_s - WINDOW_S
    while at >= begin_s:
        inside = [ms for when, ms in steps if at <= when <= at + WINDOW_S]
        if not inside or rig.median(inside) > bar_ms:
            break
        starts.append(at)
        at -= WINDOW_S / 10
    return round(starts[-1] - begin_s, 3) if starts else None


def tell(run):
    back = "never" if run["recover_s"] is None else "%.2f s" % run["recover_s"]
    rig.say("  %-5s unpressed %5.1f ms; under pressure %7.1f ms a step on average (%.1fx), worst %6.0f ms; back within "
            "%.1fx after %s; %s major faults%s"
            % (run["mode"], run["unpressed_ms"], run["factor"] * run["unpressed_ms"], run["factor"], run["worst_ms"],
               BACK_BAR, back, run["major_faults"][1], "; KILLED" if run["killed"] else ""))


def draw(runs, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axis = plt.subplots(figsize=(9, 4.2))
    for run, colour, name in ((next((r for r in runs if r["mode"] == "stock"), None), "#7f7f7f", "stock llama.cpp"),
                              (next((r for r in runs if r["mode"] != "stock"), None), "#1f77b4", "with psi_cache")):
        if run:
            axis.plot([at for at, _ in run["steps"]], [ms for _, ms in run["steps"]], ".-", color=colour, label=name,
                      markersize=4, linewidth=0.8)
    axis.axvline(0, color="#c62828", linewidth=1, linestyle="--")
    axis.set_yscale("log")
    axis.set_xlabel("seconds since the neighbour's first byte")
    axis.set_ylabel("time for a token (ms)")
    axis.grid(True, which="both", color="#e6e6e6", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    axis.set_title("weights, cache and neighbour do not fit together", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def verdict(runs):
    ours = [r for r in runs if r["mode"] != "stock"]
    stock = [r for r in runs if r["mode"] == "stock"]
    back = [r["recover_s"] for r in ours]
    held = sum(b is not None and b <= BACK_BAR_S for b in back)
    slow = sum(r["factor"] > STOCK_BAR for r in stock)
    killed = sum(r["killed"] for r in runs)
    known = sorted(b for b in back if b is not None)
    if ours:
        rig.say("ours: back within %.1fx in %.0f s in %d of %d runs%s" % (
            BACK_BAR, BACK_BAR_S, held, len(ours),
            "; median %.2f s, worst %.2f s" % (rig.median(known), known[-1]) if known else ""))
    if stock:
        rig.say("stock: above %.0fx in %d of %d runs; %s" % (STOCK_BAR, slow, len(stock),
                                                          ", ".join("%.0fx" % r["factor"] for r in stock)))
    rig.say("killed: %d of %d runs (bar: 0)" % (killed, len(runs)))
    return held == len(ours) and slow == len(stock) and not killed


def main():
    options = arguments()
    rig.leave_on_signals()
    plan = rig.plan_for("mapped", context_tokens=CONTEXT_TOKENS)
    size = neighbour_bytes(plan, options.left)
    rig.say(rig.machine_line())
    rig.say("limit %s, of it stock needs %s with its weights (%s); the neighbour takes %s; about %.0f minutes" % (
        tuple(rig.demo.mib(v) for v in (plan.limit_bytes, plan.stock_bytes, plan.weights_bytes, size))
        + ((options.runs + options.stock_runs) * (HOLD_S + BEFORE_S + 4) / 60,)))
    runs = []
    for number in range(max(options.runs, options.stock_runs)):
        for mode, count in (("stock", options.stock_runs), (options.mode, options.runs)):
            if number < count:
                runs.append(run_once(mode, plan, size))
                tell(runs[-1])
    good = verdict(runs)
    rig.save("thrash.json", {"runs": runs, "plan": plan.facts(), "neighbour_bytes": size, "hold_s": HOLD_S,
                             "build": rig.library_build(), "machine": rig.demo.machine()})
    draw(runs, os.path.join(rig.BUILD, "thrash.png"))
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as error:
        sys.exit(str(error))
