"""Step times in and around trims and restores, to the last sample: what a loop with a deadline may count on.

    .venv/bin/python bench/latency.py                    # 4 turns of each side and work, 40 trims and restores a turn
                                                         # when decoding, 8 when reading, whose steps are longer
    .venv/bin/python bench/latency.py --turns 1 --cycles 3

No memory limit and no spike: an engine decodes (one token a step) or reads a prompt (128 a step), and is told again and
again to give back a quarter of its cache, and then to take it back. Ours with its controller off, so that nothing else
moves; stock is told the same and does nothing, so that its steps fall into the same classes. In: the step that does it;
around: the 10 steps after it; apart: all others. Sides in turn; each turn is a line of build/bench/latency.jsonl, with
every step; may be stopped and started again. Writes build/bench/latency.json. No bar of its own.
"""
import argparse
import math
import os
import sys
import time

import figures
import records
import rig

SIDES = {"stock": "stock", "ours": "off"}  # rig's modes
WORKS = {"decode": 1, "prefill": 128}      # tokens a step
DECODE_CYCLES_PER_PREFILL = 5              # its steps are some 20 times shorter
AROUND_STEPS = 10
BETWEEN_STEPS = 25
WAIT_S = 300.0                             # for a turn's next step
BIN = 1.1                                  # a histogram's bin is so many times as wide as the one before
RECORDS = "latency.jsonl"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=4, help="of each side and work (default 4)")
    parser.add_argument("--cycles", type=int, default=40, help="a trim and a restore each, in a turn of decode (default 40);"
                        " in one of prefill a fifth of them")
    parser.add_argument("--share", type=float, default=0.25, help="of the cache that a trim gives back (default 0.25)")
    parser.add_argument("--fill", type=int, default=8192, metavar="TOKENS", help="in the cache (default 8192)")
    parser.add_argument("--works", default=",".join(WORKS), help="default: decode,prefill")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    options.works = [work for work in options.works.split(",") if work]
    if any(work not in WORKS for work in options.works) or not 0 < options.share <= 1 or min(
            options.turns, options.cycles) < 1:
        parser.error("needs --works of %s, a --share above 0 and up to 1, --turns and --cycles of 1 or more"
                     % ",".join(WORKS))
    return options


# ---- pure parts --------------------------------------------------------------------------------------

def classify(events):
    """{class: [ms]} of an engine's events in their order."""
    found = {"trim": [], "restore": [], "around": [], "apart": []}
    due, since = None, AROUND_STEPS
    for event in events:
        if event["event"] == "asked":
            due = event["move"]
        elif event["event"] == "step":
            when = due or ("around" if since < AROUND_STEPS else "apart")
            found[when].append(event["ms"])
            due, since = None, 0 if due else since + 1
    return found


def histogram(values):
    """[[lower edge, count]] in bins that grow, from the first value's to the last's; every value is in one."""
    if not values:
        return []
    bins = [math.floor(math.log(value) / math.log(BIN)) for value in values]
    return [[round(BIN ** at, 6), bins.count(at)] for at in range(min(bins), max(bins) + 1)]


def row_of(side, work, when, values):
    return {"side": side, "work": work, "when": when, "steps": len(values), "p50_ms": figures.quantile(values, 0.5),
            "p99_ms": figures.quantile(values, 0.99), "p999_ms": figures.quantile(values, 0.999),
            "worst_ms": max(values), "histogram": histogram(values)}


def rows_of(turns):
    rows = []
    for work in WORKS:
        for side in SIDES:
            mine = [turn["steps_ms"] for turn in turns if (turn["side"], turn["work"]) == (side, work)]
            for when in ("apart", "around", "trim", "restore"):
                if values := [ms for steps in mine for ms in steps[when]]:
                    rows.append(row_of(side, work, when, values))
    return rows


def schedule(options, done):
    """[(number, work, side)], A B B A, of what is missing. `done`: a set of them."""
    sides = list(SIDES)
    return [(number, work, side) for number in range(options.turns) for work in options.works
            for side in (sides if number % 2 == 0 else sides[::-1]) if (number, work, side) not in done]


def cycles_of(work, cycles):
    return cycles if work == "decode" else math.ceil(cycles / DECODE_CYCLES_PER_PREFILL)


# ---- a turn ------------------------------------------------------------------------------------------

def wait_steps(engine, count):
    wanted, deadline = len(engine.steps) + count, time.monotonic() + WAIT_S
    while len(engine.steps) < wanted:
        if not engine.alive() or time.monotonic() > deadline:
            raise RuntimeError("the engine ended, or no step in %.0f s: %s" % (WAIT_S, engine.said()[-1000:]))
        time.sleep(0.002)


def turn(number, work, side, options):
    with rig.Stage() as stage:
        engine = stage.engine(SIDES[side], ready=False, weights="locked", state_tokens=options.fill, piece=WORKS[work],
                              span=1024, stats_ms=0, threads=options.threads)
        engine.wait_ready(steps=5, timeout_s=WAIT_S)
        begin = len(engine.events)
        wait_steps(engine, BETWEEN_STEPS)
        for _ in range(cycles_of(work, options.cycles)):
            for order in ("trim %g" % options.share, "restore"):
                engine.order(order)
                wait_steps(engine, BETWEEN_STEPS)
        steps = classify(engine.events[begin:])
        engine.stop()
        stats = engine.last_stats()
    return {"setting": setting(options), "build": rig.build_of(side), "number": number, "work": work, "side": side,
            "steps_ms": steps, "trimmed_bytes": stats.get("trimmed_bytes"), "restored_bytes": stats.get("restored_bytes"),
            "date": time.strftime("%Y-%m-%d %H:%M:%S")}


def setting(options):
    where = rig.demo.machine()
    return {"share": options.share, "fill_tokens": options.fill, "threads": options.threads, "cycles": options.cycles,
            "cpu": where["cpu"], "kernel": where["kernel"], "llama_cpp_python": where["llama_cpp_python"]}


def load_turns(options):
    return records.load(os.path.join(rig.BUILD, RECORDS), lambda record: record["setting"] == setting(options)
                        and record["build"] == rig.build_of(record["side"]))


def main():
    options = arguments()
    rig.leave_on_signals()
    os.makedirs(rig.BUILD, exist_ok=True)
    rig.say(rig.machine_line())
    missing = schedule(options, {(t["number"], t["work"], t["side"]) for t in load_turns(options)})
    for at, (number, work, side) in enumerate(missing):
        try:
            record = turn(number, work, side, options)
        except RuntimeError as error:
            sys.exit("%s, %s, turn %d: %s\nwhat was done is kept; start it again to go on" % (side, work, number, error))
        records.append(os.path.join(rig.BUILD, RECORDS), record)
        rig.say("  %d/%d %-7s %-5s worst in a trim %.1f ms, in a restore %.1f ms, apart %.1f ms" % (
            at + 1, len(missing), work, side, *(max(record["steps_ms"][when]) for when in ("trim", "restore", "apart"))))
    rows = rows_of(load_turns(options))
    rig.save("latency.json", {
        "rows": rows, "around_steps": AROUND_STEPS, "between_steps": BETWEEN_STEPS, "machine": rig.demo.machine(),
        "library_build": rig.library_build(), "options": vars(options),
        "command": "make bench-latency ARGS=\"--turns %d --cycles %d --share %g --fill %d --works %s\"" % (
            options.turns, options.cycles, options.share, options.fill, ",".join(options.works))})
    for row in rows:
        rig.say("%-8s %-6s %-8s %6d steps  p50 %8.2f  p99 %8.2f  p99.9 %8.2f  worst %8.2f ms" % tuple(
            row[key] for key in ("work", "side", "when", "steps", "p50_ms", "p99_ms", "p999_ms", "worst_ms")))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as error:
        sys.exit(str(error))
