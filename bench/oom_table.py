"""The OOM table: one memory limit, spikes out of a seeded distribution, all sides in turn: who is killed, what
memory it holds, how long its steps take, and whether its tokens are those of a run without a spike.

    .venv/bin/python bench/oom_table.py                  # 1,000 runs of two sides, 200 of the others; hours
    .venv/bin/python bench/oom_table.py --quick          # 20 runs of each
    .venv/bin/python bench/oom_table.py --report         # run nothing: the table of what there is

May be stopped at any run and started again with the same options; it goes on where it stopped. Each run is a line of
build/bench/oom_table.jsonl, with its samples. Sides, limit and draw: bench/oom_draw.py. Writes
build/bench/oom_table.json. Bar: no kill of ours-auto, some of stock-static; ends with 1 otherwise, or while runs are
missing.
"""
import argparse
import contextlib
import os
import sys
import time

import oom_draw
import oom_rivals
import oom_summary
import records
import rig

VERSION = 2            # of what a run is: runs of another do not count
AFTER_S = 0.5          # after the spike's end
HOLD_S = 0.7           # how long a spike stays
TOKENS_LEAST = 32      # in each run that is not killed
SAMPLE_US = 2000
KEPT_SAMPLE_S = 0.05   # the record keeps the most in each so many seconds
RECORDS, REFERENCES, NEEDS = "oom_table.jsonl", "oom_references.jsonl", "oom_needs.jsonl"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="of %s and %s (default 1000)" % oom_draw.MAIN)
    parser.add_argument("--others", type=int, help="of each other side (default 200, or as many as --runs if less)")
    parser.add_argument("--quick", action="store_true", help="20 runs of each side, without what others use instead")
    parser.add_argument("--sides", help="default: all; with --quick %s" % ",".join(
        side.name for side in oom_draw.SIDES if not side.other))
    parser.add_argument("--seed", type=int, default=1, help="of the spikes (default 1)")
    parser.add_argument("--context", type=int, default=24576, metavar="TOKENS", help="of the engine (24,576)")
    parser.add_argument("--fill", type=int, default=6144, metavar="TOKENS", help="in the cache at the start (6,144)")
    parser.add_argument("--slack-mib", type=int, default=144, help="limit above stock's need (default 144)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the engine")
    parser.add_argument("--reference-tokens", type=int, default=400, help="of an unpressed run, to compare with (400)")
    parser.add_argument("--run-limit", type=float, default=60, metavar="S",
                        help="without a step: then the run is ended (default 60). On a busy machine a step of a prompt's 64 "
                        "tokens takes seconds, more with a quantised cache")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER",
                        help="begin there: so that two processes share the runs, each on processors of its own (default 0)")
    parser.add_argument("--report", action="store_true", help="run nothing: table and JSON of what there is")
    parser.add_argument("--any-library", action="store_true",
                        help="with --report: runs of other builds of psi_cache, too; each side names its builds")
    options = parser.parse_args()
    if options.any_library and not options.report:
        parser.error("--any-library is for --report: a table is made with one build")
    if options.quick:
        options.runs = 20
    options.others = min(options.runs, 200 if options.others is None else options.others)
    known = {side.name: side for side in oom_draw.SIDES}
    usual = [side.name for side in oom_draw.SIDES if not (options.quick and side.other)]
    chosen = usual if options.sides is None else [name for name in options.sides.split(",") if name]
    if options.runs < 1 or not chosen or any(name not in known for name in chosen):
        parser.error("needs --runs of 1 or more and --sides of %s" % ", ".join(known))
    options.sides = [known[name] for name in chosen]
    return options


def path_of(name):
    return os.path.join(rig.BUILD, name)


# ---- what a run is a run of --------------------------------------------------------------------------

def setting(options):
    """What must be the same for two runs to be compared, whatever the side."""
    where = rig.demo.machine()
    return {"version": VERSION, "context_tokens": options.context, "fill_tokens": options.fill,
            "threads": options.threads, "llama_cpp_python": where["llama_cpp_python"], "kernel": where["kernel"],
            "cpu": where["cpu"], "model_bytes": os.path.getsize(rig.model_file())}


def plan_for(options):
    """Measures once what stock needs with the whole static cache, without a limit."""
    def plan(stock_bytes):
        return oom_draw.Plan(stock_bytes, options.context, options.fill, options.slack_mib * rig.MIB,
                             rig.CACHE_BYTES_PER_TOKEN, rig.FLOOR_SHARE)
    plan(0).check()
    key = setting(options)
    known = records.load(path_of(NEEDS), lambda record: record["setting"] == key)
    if not known:
        with rig.Stage() as stage:
            engine_of(stage, oom_draw.SIDES[0], plan(0), options, 0).wait_ready(steps=20)
            known = [{"setting": key, "stock_bytes": stage.unreclaimable_bytes("locked")}]
        records.append(path_of(NEEDS), known[0])
    return plan(known[0]["stock_bytes"])


def engine_of(stage, side, plan, options, prompt):
    return stage.engine(side.mode, ready=False, weights="locked", context_tokens=plan.context_of(side),
                        state_tokens=plan.fill_of(side), span=oom_draw.SPAN_TOKENS, threads=options.threads,
                        cache_type=side.cache_type, stats_ms=200, arguments=(
                            "--prompt-tokens", oom_draw.PROMPT_TOKENS, "--prompt-piece", oom_draw.PROMPT_PIECE,
                            "--prompt-seed", prompt + 2))


def references(options, plan, runs):
    """{(reference, prompt): tokens of stock without limit and spike}, made where `runs` need them and have them not."""
    key = setting(options) | {"smaller_tokens": plan.smaller_tokens, "tokens": options.reference_tokens}
    found = {(r["reference"], r["prompt"]): r["ids"]
             for r in records.load(path_of(REFERENCES), lambda record: record["setting"] == key)}
    kinds = {side.reference(): side for side in oom_draw.SIDES if side.mode == "stock"}
    wanted = {(kind, oom_draw.spike(options.seed, number, plan.most_bytes).prompt)
              for side, number in runs for kind in (side.reference(), "f16")}
    missing = sorted(wanted - set(found))
    for at, (kind, prompt) in enumerate(missing):
        rig.say("  unpressed tokens %d of %d: %s, prompt %d" % (at + 1, len(missing), kind, prompt))
        with rig.Stage() as stage:
            engine = engine_of(stage, kinds[kind], plan, options, prompt)
            engine.wait_ready(steps=options.reference_tokens, timeout_s=1800)
            ids = engine.ids[:options.reference_tokens]
        records.append(path_of(REFERENCES), {"setting": key, "reference": kind, "prompt": prompt, "ids": ids})
        found[kind, prompt] = ids
    return found


# ---- one run -----------------------------------------------------------------------------------------

def run_once(side, number, plan, options, expected):
    drawn = oom_draw.spike(options.seed, number, plan.most_bytes)
    begin_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        zram = stack.enter_context(oom_rivals.Zram()) if side.rival == "zram" else None
        stage = stack.enter_context(rig.Stage(plan.limit_bytes if side.pressed else None))
        if zram:
            zram.charge(stage.group)
        engine = engine_of(stage, side, plan, options, drawn.prompt)
        if not engine.wait_for(lambda: engine.of("loaded"), options.run_limit):
            raise RuntimeError("the engine did not load its cache: " + engine.said()[-1000:])
        ready_s = time.monotonic()
        sampler = stage.sampler(engine, SAMPLE_US, most_s=900)
        rule = oom_rivals.EarlyoomRule(stage, engine) if side.rival == "earlyoom" else None
        spike, in_time = play(stage, engine, side, drawn, options)
        again = start_again(stage, engine, side, plan, options) if side.rival in ("restart", "earlyoom") else None
        end_spike(engine, spike)
        stage.settle()
        kills, as_said = stage.kills(), not engine.alive() or rig.weights_are_as_said(stage, engine)
        if rule:
            rule.stop()
            kills["rule"] = int(rule.fired_s is not None)
        if zram:
            zram.settle()
        end_s = time.monotonic()
        samples = [sample for sample in sampler.stop() if sample[2] > 0]
        if engine.alive():
            engine.stop()
        return record_of(side, number, plan, options, drawn, engine, spike, kills, samples, expected, {
            "ready_s": ready_s, "end_s": end_s, "wall_s": round(end_s - begin_s, 2), "in_time": in_time,
            "weights_as_said": as_said, "again": again, "zram_bytes": zram.most_bytes if zram else None})


def play(stage, engine, side, drawn, options):
    """The spike at its moment, and until it and the least number of tokens are done. (spike, in time). A run
    that does not come to its spike says nothing of the side: RuntimeError."""
    if not engine.wait_for(lambda: engine.progress() >= drawn.moment, options.run_limit):
        raise RuntimeError("no spike after %d steps of %d: the engine %s" % (
            engine.progress(), drawn.moment, "made none for %.0f s (--run-limit)" % options.run_limit
            if engine.alive() else "ended: " + engine.said()[-1000:]))
    spike_s = drawn.size_bytes / drawn.bytes_per_s + HOLD_S
    # A spike of zeros would cost zram nothing. The others keep theirs at their own cost, whatever is in them.
    spike = stage.spike(drawn.size_bytes, drawn.bytes_per_s, hold_s=HOLD_S, noise=side.rival == "zram")
    in_time = engine.wait_for(lambda: spike.process.poll() is not None
                              and len(engine.steps) >= TOKENS_LEAST, spike_s + options.run_limit)
    if in_time:
        time.sleep(AFTER_S)
    return spike, in_time or not engine.alive()


def end_spike(engine, spike):
    """One that nobody lives to see."""
    if not engine.alive() and spike.process.poll() is None:
        spike.end()


def start_again(stage, engine, side, plan, options):
    """What a supervisor does after a kill, and how long it is until the next token; None where none was needed."""
    if engine.alive():
        return None
    return oom_rivals.answer_again(stage, side, plan, options, plan.fill_of(side) + oom_draw.PROMPT_TOKENS, time.monotonic())


def record_of(side, number, plan, options, drawn, engine, spike, kills, samples, expected, timing):
    """All that is known of a run. Times are from the engine's readiness on."""
    zero_s, weights_bytes = timing["ready_s"], os.path.getsize(rig.model_file())
    held = [anon + weights_bytes for _, _, anon in samples]
    ids = engine.ids[:]
    killed = kills["count"] > 0 or kills.get("rule", 0) > 0
    failed = not killed and (not timing["in_time"] or not engine.ended_well())
    spike_s = [spike.begin_s, spike.full_s, spike.end_s]
    return {"setting": setting(options), "seed": options.seed, "side": side.name, "number": number,
            "build": rig.build_of(side.mode), "limit_bytes": plan.limit_bytes, "most_bytes": plan.most_bytes,
            "context_tokens": plan.context_of(side), "fill_tokens": plan.fill_of(side),
            "spike": vars(drawn), "killed": killed, "kills": kills,
            "failed": failed, "said": engine.said()[-600:] if failed else "", "refused": engine.refused,
            "peak_bytes": max(held, default=None), "mean_bytes": sum(held) // len(held) if held else None,
            "group_peak_bytes": max((usage for _, usage, _ in samples), default=None),
            "tokens": len(ids), "quality": quality(side, drawn, ids, expected),
            "spike_s": [at and round(at - zero_s, 4) for at in spike_s],
            "prompt_ms": [[round(at - zero_s, 4), ms] for at, ms in engine.prompt],
            "steps_ms": [[round(at - zero_s, 4), ms] for at, ms in list(engine.steps)],
            "again": timing["again"], "zram_bytes": timing["zram_bytes"],
            "memory": thin(samples, zero_s), "trims": engine.last_stats().get("trims"),
            "wall_s": timing["wall_s"], "weights_as_said": timing["weights_as_said"],
            "date": time.strftime("%Y-%m-%d %H:%M:%S")}


def quality(side, drawn, ids, expected):
    """Tokens that are those of stock's unpressed run, from the first on until one differs: of the same kind of cache
    (what the spike did), and of the whole 16-bit cache (what was given up before)."""
    def same(reference):
        wanted = expected[reference, drawn.prompt]
        length = min(len(ids), len(wanted))
        until = next((i for i in range(length) if ids[i] != wanted[i]), length)
        return {"same": until, "of": length}
    return {"unpressed": same(side.reference()), "stock": same("f16")}


def thin(samples, zero_s):
    """[time_s, group's usage, engine's private memory]: the most of each interval."""
    bins = {}
    for at_s, usage, anon in samples:
        key = int((at_s - zero_s) / KEPT_SAMPLE_S)
        most = bins.get(key, (0, 0))
        bins[key] = (max(most[0], usage), max(most[1], anon))
    return [[round(key * KEPT_SAMPLE_S, 3), *most] for key, most in sorted(bins.items())]


# ---- the harness -------------------------------------------------------------------------------------

def load_runs(options, plan, only=None):
    """The runs that count, one of each side and number."""
    wanted, builds = setting(options), {side.name: rig.build_of(side.mode) for side in options.sides}

    def counts(record):
        return (record["setting"] == wanted and record["seed"] == options.seed
                and (only is None or record["side"] == only.name)
                and record["limit_bytes"] == plan.limit_bytes and record["side"] in builds
                and (options.any_library or builds[record["side"]] == record["build"]))
    return list({(r["side"], r["number"]): r for r in records.load(path_of(RECORDS), counts)}.values())


def missing_runs(options, runs):
    done = {(record["side"], record["number"]) for record in runs}
    return oom_draw.schedule(options.sides, options.runs, options.others, done)


def tell_run(record):
    spike = record["spike"]
    what = "KILLED" if record["killed"] else "FAILED" if record["failed"] else "alive"
    worst = max((ms for _, ms in record["steps_ms"]), default=None)
    return "%-15s %3.0f MiB at %4.0f MB/s %-6s peak %s, worst step %s ms, %d tokens, %d of %d as unpressed, %.1f s" % (
        record["side"], spike["size_bytes"] / rig.MIB, spike["bytes_per_s"] / rig.MB, what, rig.demo.mib(record["peak_bytes"]),
        "-" if worst is None else "%.0f" % worst, record["tokens"], record["quality"]["unpressed"]["same"],
        record["quality"]["unpressed"]["of"], record["wall_s"])


def run_all(options, plan):
    missing = [(side, number) for side, number in missing_runs(options, load_runs(options, plan)) if number >= options.first]
    if missing:
        expected = references(options, plan, missing)
    begin_s, total = time.monotonic(), len(missing)
    for at, (side, number) in enumerate(missing):
        try:
            record = run_once(side, number, plan, options, expected)
        except RuntimeError as error:  # an engine that does not come up, or no zram, is no result, and no reason to stop
            rig.say("  %s %d does not count, and is done again at the next start: %s" % (side.name, number, error))
            continue
        if not record["weights_as_said"]:
            rig.say("  %s %d does not count: the weights are not charged to the group, or not locked (another process "
                    "maps them, or ulimit -l)" % (side.name, number))
            continue
        records.append(path_of(RECORDS), record)
        left_s = (time.monotonic() - begin_s) / (at + 1) * (total - at - 1)
        rig.say("  %4d/%d run %d %s; %.0f min left" % (at + 1, total, number, tell_run(record), left_s / 60))


def report(options, plan):
    runs = load_runs(options, plan)
    if not runs:
        rig.say("no runs yet")
        return 1
    result = oom_summary.summary(runs, options.sides)
    missing = len(missing_runs(options, runs))
    result |= {"machine": rig.demo.machine(), "library_build": None if options.any_library else rig.library_build(),
               "missing_runs": missing,
               "plan": vars(plan) | {name: getattr(plan, name) for name in (
                   "limit_bytes", "room_bytes", "give_bytes", "most_bytes", "smaller_tokens")},
               "options": {**vars(options), "sides": [side.name for side in options.sides]},
               "command": oom_summary.command(options)}
    rig.save("oom_table.json", result)
    rig.say("\n" + oom_summary.table(result))
    rig.say("%s; build/bench/oom_table.json%s" % (rig.machine_line(), "; %d runs are missing" % missing
                                                  if missing else ""))
    kills = {side["name"]: side["kills"] + side["failed"] for side in result["sides"]}
    return 0 if not missing and kills.get("ours-auto", 0) == 0 and kills.get("stock-static", 1) > 0 else 1


def leave_out(options):
    """Without the sides that cannot be had here."""
    if any(side.rival == "zram" for side in options.sides) and not options.report:
        try:
            with oom_rivals.Zram():
                pass
        except oom_rivals.NoZram as error:
            rig.say("  stock-zram is left out: %s" % error)
            options.sides = [side for side in options.sides if side.rival != "zram"]


def main():
    options = arguments()
    rig.leave_on_signals()
    os.makedirs(rig.BUILD, exist_ok=True)
    rig.model_file()
    for name in ("spike", "sampler"):
        rig.program(name)
    try:
        plan = plan_for(options)
    except ValueError as error:
        sys.exit(str(error))
    rig.say(rig.machine_line())
    leave_out(options)
    rig.say("  limit %s (stock needs %s), spikes %s to %s; the smaller context has %d tokens" % (
        *map(rig.demo.mib, (plan.limit_bytes, plan.stock_bytes, oom_draw.SPIKE_LEAST_BYTES, plan.most_bytes)),
        plan.smaller_tokens))
    if not options.report:
        run_all(options, plan)
    else:
        options.sides = [side for side in options.sides if load_runs(options, plan, side)]
    return report(options, plan)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as error:
        sys.exit(str(error))
