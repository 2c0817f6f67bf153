"""How much context fits the same memory, ours against stock: with a spike, and with the answer still found.

    .venv/bin/python bench/context.py                  # both parts; 40 minutes; stops and goes on
    .venv/bin/python bench/context.py --part key       # the real model and the pass key
    .venv/bin/python bench/context.py --part boards    # three boards, models of the true shapes
    .venv/bin/python bench/context.py --quick          # 1 trial, contexts up to 4 times as long

key: the limit is what stock needs with --base tokens of context, and a spike of --spike-mib more. A document that fills the
context and has a pass key in it is read; the spike comes and stays; the question, which was not read before, is asked in
the spike, and again after it. The longest context that is never killed and finds the key each time, in the spike.

boards: what the boards of bench/boards.py have, less what their system takes, is the memory; the spike is what stock leaves
of it with its context. Weights are random (bench/random_model.py), so no answer is judged. A few layers of the true shape
are run in as much less memory, and the whole is computed from them: the arithmetic is printed. Each run is a line of
build/bench/context.jsonl. Writes build/bench/context.json. Bar: 4 times; ends with 1 below it.
"""
import argparse
import json
import os
import random
import sys
import time

import boards
import quality_tasks
import records
import rig

VERSION = 2
BAR = 4
SLACK_BYTES = 8 * rig.MIB     # of the limit, above what stock needs with the spike
TAIL_TOKENS = 256             # of the context, for question, answer and what is decoded meanwhile
SETTLE_S = 1.0                # the spike holds all of its memory so long before the question
STEPS = 16                    # of the boards' engines while the spike holds
LONGEST_STEP_S = 240.0        # an engine that makes none for so long is ended
RECORDS = "context.jsonl"
NOT_CHARGED = ("the weights are not charged to the group, or not locked (another process maps them, or ulimit -l): start it "
               "again when that is mended; what was done is kept")
SIDES = {"stock": "stock", "ours": "auto"}  # rig's modes


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("key", "boards", "all"), default="all")
    parser.add_argument("--base", type=int, default=2048, metavar="TOKENS", help="stock's context (default 2048)")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4, 8], help="contexts: so many times base")
    parser.add_argument("--stock-times", type=int, nargs="+", default=[1, 2], help="the same for stock: above 1 it is killed")
    parser.add_argument("--trials", type=int, default=5, help="documents a context (default 5)")
    parser.add_argument("--ubatch", type=int, default=512, metavar="TOKENS", help="computed at once, as llama-server's -ub: what "
                        "the engine needs for that grows with the context (default 512)")
    parser.add_argument("--spike-mib", type=int, default=256)
    parser.add_argument("--rate", type=float, default=500, metavar="MB/S", help="of the spike (default 500)")
    parser.add_argument("--boards", nargs="+", default=[board.name for board in boards.BOARDS], metavar="NAME")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="1 trial, contexts up to 4 times as long, one board")
    parser.add_argument("--report", action="store_true", help="run nothing: what there is")
    options = parser.parse_args()
    if options.quick:
        options.trials, options.times, options.boards = 1, [1, 4], [boards.BOARDS[-1].name]
    known = {board.name: board for board in boards.BOARDS}
    if any(name not in known for name in options.boards):
        parser.error("--boards of %s" % ", ".join(known))
    options.boards = [known[name] for name in options.boards]
    if options.base < 1024 or min(options.times + options.stock_times + [options.trials, options.spike_mib]) < 1:
        parser.error("needs a --base of 1024 or more, and counts of 1 or more")
    return options


def setting(part, **more):
    where = rig.demo.machine()
    return {"version": VERSION, "part": part, "cpu": where["cpu"], "kernel": where["kernel"],
            "llama_cpp_python": where["llama_cpp_python"], **more}


def load(wanted):
    return records.load(os.path.join(rig.BUILD, RECORDS), lambda record: record["setting"] == wanted
                        and record["build"] == rig.build_of(record["side"]))


def keep(record):
    records.append(os.path.join(rig.BUILD, RECORDS), record)
    return record


# ---- one run -----------------------------------------------------------------------------------------

def ask(engine, path):
    """The text that it answers; None when it does not."""
    before = len(engine.of("answer"))
    engine.order("ask " + path)
    if not engine.wait_for(lambda: len(engine.of("answer")) > before, LONGEST_STEP_S):
        return None
    return engine.of("answer")[-1]["text"]


def weights_of(model):
    """The real model's are mapped and locked. Those of the boards' models are read into private memory, as llama.cpp does
    with --no-mmap: it repacks Q4_0 for the processor, and a locked mapping beside that would be a second copy."""
    return "locked" if model is None else "unreclaimable"


def run(side, context_tokens, limit_bytes, spike_bytes, document, options, question=None, model=None):
    """Reads a document, bears a spike, and answers in it and after it. All that is known of it."""
    said = {"in_spike": None, "after": None}
    with rig.Stage(limit_bytes) as stage:
        begin_s = time.monotonic()
        engine = stage.engine(SIDES[side], ready=False, weights=weights_of(model), context_tokens=context_tokens, state_tokens=0,
                              span=TAIL_TOKENS // 2, stats_ms=200, threads=options.threads, model=model,
                              arguments=("--document", document, "--ubatch", options.ubatch))
        sampler = stage.sampler(engine, 5000, most_s=3600)
        read = engine.wait_for(lambda: engine.of("read"), LONGEST_STEP_S)
        read_s = time.monotonic()
        stats = {"read": engine.last_stats()}
        if read and not rig.weights_are_as_said(stage, engine):
            raise RuntimeError(NOT_CHARGED)
        if read:
            spike = stage.spike(spike_bytes, options.rate * rig.MB, hold_s=3600)
            full = spike.wait_full(120)
            time.sleep(SETTLE_S)
            stats["spike"] = engine.last_stats()
            if question:
                said["in_spike"] = ask(engine, question)
            else:
                steps = len(engine.steps)
                engine.wait_for(lambda: len(engine.steps) >= steps + STEPS, LONGEST_STEP_S)
            in_spike_s = time.monotonic()
            spike.end()
            if question and engine.alive():
                said["after"] = ask(engine, question)
        stage.settle()
        kills = stage.kills()
        samples = [sample for sample in sampler.stop() if sample[2] > 0]
        alive = engine.alive()
        if alive:
            engine.stop()
        return {"context_tokens": context_tokens, "limit_bytes": limit_bytes, "spike_bytes": spike_bytes,
                "killed": kills["count"] > 0, "kills": kills, "read": read, "spike_full": full if read else None,
                "failed": not alive and kills["count"] == 0, "refused": engine.refused,
                "said": "" if alive else engine.said()[-600:], "answers": said,
                "resident_bytes": {key: value.get("resident_bytes") for key, value in stats.items()},
                "peak_bytes": max((anon for _, _, anon in samples), default=None),
                "prompt_ms": [ms for _, ms in engine.prompt],
                "steps_in_spike_ms": [ms for at_s, ms in list(engine.steps) if read and read_s <= at_s <= in_spike_s],
                "read_s": round(read_s - begin_s, 1), "wall_s": round(time.monotonic() - begin_s, 1),
                "date": time.strftime("%Y-%m-%d %H:%M:%S")}


def need_bytes(context_tokens, document, options, model=None):
    """What stock cannot do without, with this context, once it has read the document."""
    with rig.Stage() as stage:
        engine = stage.engine("stock", ready=False, weights=weights_of(model), context_tokens=context_tokens, state_tokens=0,
                              threads=options.threads, model=model, span=64,
                              arguments=("--document", document, "--ubatch", options.ubatch))
        if not engine.wait_for(lambda: len(engine.steps) >= 5, LONGEST_STEP_S):
            raise RuntimeError("stock did not come up without a limit: " + engine.said()[-1000:])
        if not rig.weights_are_as_said(stage, engine):
            raise RuntimeError(NOT_CHARGED)
        return stage.unreclaimable_bytes(weights_of(model))


def write_tokens(name, tokens):
    path = os.path.abspath(os.path.join(rig.BUILD, "context-%s.json" % name))
    with open(path, "w") as file:
        json.dump([int(token) for token in tokens], file)
    return path


def tell(what, side, record):
    rig.say("  %s %-6s %6d tokens: %s%s, resident in the spike %s, %.0f s" % (
        what, side, record["context_tokens"], "KILLED" if record["killed"] else "FAILED" if record["failed"] else "alive",
        "" if record["found"] is None else ", key %s in the spike, %s after it" % tuple(
            "found" if record["found"][when] else "not found" for when in ("in_spike", "after")),
        rig.demo.mib(record["resident_bytes"].get("spike")), record["wall_s"]))


# ---- the real model and the pass key ----------------------------------------------------------------------

class Tokenizer:
    """The model's, without its weights in memory."""

    def __init__(self, model):
        import llama_cpp
        self._api = llama_cpp
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, None)
        self._model = llama_cpp.llama_load_model_from_file(model.encode(), params)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def __call__(self, text, begin):
        raw = text.encode()
        tokens = (self._api.llama_token * (len(raw) + 8))()
        count = self._api.llama_tokenize(self._vocab, raw, len(raw), tokens, len(tokens), begin, False)
        return list(tokens[:count])


def key_plan(options, tokenize):
    """Limit and spike, the same for all: what stock needs with the base context, the spike, and a little."""
    wanted = setting("need", tokens=options.base, threads=options.threads, ubatch_tokens=options.ubatch)
    known = load(wanted)
    if not known:
        document, _, _ = quality_tasks.document(tokenize, ("passkey",), 0, options.base - TAIL_TOKENS)
        known = [keep({"setting": wanted, "side": "stock", "build": "stock",
                       "bytes": need_bytes(options.base, write_tokens("need", document), options)})]
    stock_bytes, spike_bytes = known[0]["bytes"], options.spike_mib * rig.MIB
    return stock_bytes, (stock_bytes + spike_bytes + SLACK_BYTES) // rig.MIB * rig.MIB, spike_bytes


def key_runs(options):
    """[(seed, side, times)], a document for all contexts and sides before the next one."""
    return [(seed, side, times) for seed in range(options.trials) for side, many in (
        ("stock", options.stock_times), ("ours", options.times)) for times in many]


def key_setting(options, limit_bytes, spike_bytes):
    return setting("key", base_tokens=options.base, limit_bytes=limit_bytes, spike_bytes=spike_bytes, rate_mb_s=options.rate,
                   threads=options.threads, ubatch_tokens=options.ubatch)


def key_part(options):
    tokenize = Tokenizer(rig.model_file())
    stock_bytes, limit_bytes, spike_bytes = key_plan(options, tokenize)
    wanted = key_setting(options, limit_bytes, spike_bytes)
    rig.say("pass key: limit %s: stock with %d tokens needs %s; spike %s" % (
        rig.demo.mib(limit_bytes), options.base, rig.demo.mib(stock_bytes), rig.demo.mib(spike_bytes)))
    done = {(r["seed"], r["side"], r["times"]) for r in load(wanted)}
    missing = [] if options.report else [each for each in key_runs(options) if each not in done]
    for at, (seed, side, times) in enumerate(missing):
        context = times * options.base
        document, asked, _ = quality_tasks.document(tokenize, ("passkey",), seed, context - TAIL_TOKENS)
        question, answers = asked[0]
        record = run(side, context, limit_bytes, spike_bytes, write_tokens("document", document), options,
                     write_tokens("question", question))
        record["found"] = {when: text is not None and quality_tasks.score(text, answers) == 1
                           for when, text in record["answers"].items()}
        keep({**record, "setting": wanted, "build": rig.build_of(side), "seed": seed, "side": side, "times": times})
        tell("%d/%d document %d" % (at + 1, len(missing), seed), side, record)
    return key_summary(load(wanted), options, limit_bytes, spike_bytes, stock_bytes)


def key_summary(runs, options, limit_bytes, spike_bytes, stock_bytes):
    rows = []
    for side in SIDES:
        for times in sorted({r["times"] for r in runs if r["side"] == side}):
            mine = [r for r in runs if (r["side"], r["times"]) == (side, times)]
            resident = [r["resident_bytes"]["spike"] for r in mine if r["resident_bytes"].get("spike")]
            rows.append({"side": side, "context_tokens": times * options.base, "runs": len(mine),
                         "killed": sum(r["killed"] for r in mine),
                         "failed": sum(r["failed"] and not r["killed"] for r in mine),
                         "found_in_spike": sum(r["found"]["in_spike"] for r in mine),
                         "found_after": sum(r["found"]["after"] for r in mine),
                         "resident_in_spike_bytes": sum(resident) // len(resident) if resident else None})
    longest = {side: max((row["context_tokens"] for row in rows if row["side"] == side and row["killed"] + row["failed"] == 0
                          and row["found_in_spike"] == row["runs"]), default=0) for side in SIDES}
    missing = [each for each in key_runs(options) if each not in {(r["seed"], r["side"], r["times"]) for r in runs}]
    return {"rows": rows, "longest_tokens": longest, "ratio": longest["ours"] / longest["stock"] if longest["stock"] else None,
            "limit_bytes": limit_bytes, "spike_bytes": spike_bytes, "stock_bytes": stock_bytes, "missing_runs": len(missing),
            "samples": runs}


# ---- boards ------------------------------------------------------------------------------------------------

def board_model(board, layers):
    import random_model
    path = os.path.join(rig.BUILD, "%s-%d-layers.gguf" % (board.name, layers))
    if not os.path.exists(path):
        rig.say("  making %d layers of %s's shape, random weights ..." % (layers, board.model))
        random_model.make(board.shape(path, layers))
    return path


def board_needs(board, options):
    """{layers: bytes}: stock with its context, in a few sizes, without a limit."""
    found = {}
    for layers in sorted({*board.measured_layers, board.layers_run}):
        wanted = setting("board need", board=board.name, layers=layers, tokens=board.stock_tokens, threads=options.threads,
                         ubatch_tokens=options.ubatch)
        known = load(wanted)
        if not known and options.report:
            return None
        if not known:
            document = write_tokens("need", numbers(board, 512))
            known = [keep({"setting": wanted, "side": "stock", "build": "stock", "bytes": need_bytes(
                board.stock_tokens, document, options, board_model(board, layers))})]
        found[layers] = known[0]["bytes"]
    return found


def numbers(board, count):
    draw = random.Random(count)
    return [draw.randrange(1, board.vocabulary) for _ in range(count)]


def board_part(board, options):
    needs = board_needs(board, options)
    if needs is None:
        return None
    whole = boards.whole(board, needs)
    scaled = boards.scaled(board, needs, whole, SLACK_BYTES)
    rig.say("\n" + "\n".join(boards.arithmetic(board, needs, whole, scaled)))
    wanted = setting("board", board=board.name, layers=board.layers_run, limit_bytes=scaled["limit_bytes"],
                     spike_bytes=scaled["spike_bytes"], rate_mb_s=options.rate, threads=options.threads, ubatch_tokens=options.ubatch)
    done = {(r["side"], r["context_tokens"]) for r in load(wanted)}
    for side, context in (("stock", board.stock_tokens), ("stock", board.ours_tokens), ("ours", board.ours_tokens)):
        if (side, context) in done or options.report:
            continue
        # stock has all of its cache from the start: what it has read changes nothing.
        tokens = context - TAIL_TOKENS if side == "ours" else 512
        record = run(side, context, scaled["limit_bytes"], scaled["spike_bytes"], write_tokens(
            "document", numbers(board, tokens)), options, model=board_model(board, board.layers_run))
        keep({**record, "setting": wanted, "build": rig.build_of(side), "side": side})
        tell(board.name, side, record | {"found": None})
    return {"board": board.name, "device": board.device, "model": board.model, "stock_tokens": board.stock_tokens,
            "ours_tokens": board.ours_tokens, "layers_run": board.layers_run, "layers": board.layers, "whole": whole,
            "scaled": scaled, "arithmetic": boards.arithmetic(board, needs, whole, scaled), "runs": load(wanted)}


def survives(rows, side, context):
    """None: not run."""
    mine = [r for r in rows if (r["side"], r["context_tokens"]) == (side, context)]
    return all(not r["killed"] and not r["failed"] for r in mine) if mine else None


# ---- all of it ---------------------------------------------------------------------------------------------

def conclude(result):
    """What it shows, a line each; and whether the bar was held."""
    lines, held = [], bool(result.get("key") or result["boards"])
    if result.get("key"):
        key = result["key"]
        for row in key["rows"]:
            lines.append("%-6s %6d tokens: killed %d of %d, failed %d, key found in the spike %d, after it %d, resident in the "
                         "spike %s" % (row["side"], row["context_tokens"], row["killed"], row["runs"], row["failed"],
                                       row["found_in_spike"], row["found_after"],
                                       rig.demo.mib(row["resident_in_spike_bytes"])))
        held = (key["ratio"] or 0) >= BAR and not key["missing_runs"]
        lines.append("longest that survives and finds the key: ours %d, stock %d tokens: %s times%s" % (
            key["longest_tokens"]["ours"], key["longest_tokens"]["stock"], "-" if key["ratio"] is None else "%g" % key["ratio"],
            "; %d runs are missing" % key["missing_runs"] if key["missing_runs"] else ""))
    for board in result["boards"]:
        rows = board["runs"]
        stock, stock_long, ours = (survives(rows, "stock", board["stock_tokens"]), survives(
            rows, "stock", board["ours_tokens"]), survives(rows, "ours", board["ours_tokens"]))
        held = held and bool(stock and ours)
        words = {None: "not run", True: "survives", False: "is killed"}
        resident = [r["resident_bytes"].get("spike") or 0 for r in rows if r["side"] == "ours"]
        lines.append("%s, %s, %d of %d layers: stock with %d tokens %s, with %d %s; ours with %d %s%s" % (
            board["device"], board["model"], board["layers_run"], board["layers"], board["stock_tokens"], words[stock],
            board["ours_tokens"], words[stock_long], board["ours_tokens"], words[ours], ", %.0f %% of its cache in memory" % (
                100 * max(resident) / board["scaled"]["ours_cache_bytes"]) if resident else ""))
    return lines, held


def main():
    options = arguments()
    rig.leave_on_signals()
    os.makedirs(rig.BUILD, exist_ok=True)
    for name in ("spike", "sampler"):
        rig.program(name)
    rig.say(rig.machine_line())
    result = {"machine": rig.demo.machine(), "library_build": rig.library_build(), "bar": BAR, "key": None, "boards": []}
    if options.part != "boards":
        result["key"] = key_part(options)
    if options.part != "key":
        result["boards"] = [found for board in options.boards if (found := board_part(board, options))]
    lines, held = conclude(result)
    command = "make bench-context ARGS=\"--base %d --times %s --trials %d --ubatch %d --spike-mib %d --rate %g --threads %d\"" % (
        options.base, " ".join(map(str, options.times)), options.trials, options.ubatch, options.spike_mib, options.rate,
        options.threads)
    rig.save("context.json", result | {"held": held, "lines": lines, "command": command})
    rig.say("\n" + "\n".join(lines))
    rig.say("bar: %d times the context: %s; build/bench/context.json" % (BAR, "held" if held else "missed"))
    return 0 if held else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (rig.NoRights, RuntimeError) as error:
        sys.exit(str(error))
