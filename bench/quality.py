"""Answers with a part of the cache evicted: policies, with and without recall, against the whole cache.

A trial is one document, read once; then each cell of the table: trim, ask, answer, take the question back, restore.
Each trial is appended to build/bench/quality-<length>.jsonl, so that a run that was stopped goes on. Prints the table
with 95 % intervals; quality_plot.py draws it.
"""
import argparse
import ctypes
import json
import math
import os
import platform
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "demo")]
import demo  # noqa: E402
import quality_tasks as tasks  # noqa: E402

BUILD = os.path.join(HERE, "..", "build", "bench")
POLICIES = ("fifo", "lru", "attention", "keys", "auto")
EVICTED = (0.25, 0.5, 0.75, 0.9)
TITLES = {"passkey": "pass key", "multikey": "one of four numbers", "lookup": "one of eight keys",
          "variables": "variable tracking", "continuation": "text continuation"}
WITH_RECALL = ("fifo", "auto")  # where the others start from matters little once blocks come back
BATCH_TOKENS = 512
CONTINUED_TOKENS, CONTINUED_BATCH = 128, 32


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="tokens of a document (default 4096)")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--tasks", nargs="+", default=tasks.TASKS, metavar="TASK",
                        help=f"of {', '.join(tasks.TASKS)}; A+B: both in one document, which is read once")
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES, metavar="POLICY")
    parser.add_argument("--evicted", nargs="+", type=float, default=EVICTED, metavar="SHARE")
    parser.add_argument("--order", nargs="+", default=("unseen", "seen"), choices=("unseen", "seen"),
                        help="is the question read before the trim?")
    parser.add_argument("--flash-attention", choices=("on", "off"), default="on")
    parser.add_argument("--model", help="another model; its results go to files of its own")
    parser.add_argument("--block-cells", type=int, help="cells of a block; its results go to a file of its own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", nargs=2, type=int, default=(0, 1), metavar=("K", "N"),
                        help="only each N-th trial, from the K-th on: one process of one thread for each processor "
                             "is quicker than one process with all of them")
    parser.add_argument("--report", action="store_true", help="only print what is there")
    parser.add_argument("--markdown", action="store_true", help="the same as docs/policies.md has it")
    options = parser.parse_args()
    options.documents = [tuple(group.split("+")) for group in options.tasks]
    odd = {task for names in options.documents for task in names} - set(tasks.TASKS)
    if odd:
        parser.error(f"no task {', '.join(sorted(odd))}: choose of {', '.join(tasks.TASKS)}")
    return options


# ---- The engine ------------------------------------------------------------------------------------------

class Engine:
    """llama.cpp through its low-level interface, so that what is decoded, and where, is ours to choose."""

    def __init__(self, options):
        os.environ["PSI_CACHE_CONTROLLER"] = "off"  # nothing goes but what is asked for
        import psi_cache.llama  # noqa: F401  before llama_cpp
        import psi_cache
        from llama_cpp import llama_cpp as api
        self.api, self.psi = api, psi_cache
        self._log = api.llama_log_callback(lambda level, text, user: None)
        api.llama_log_set(self._log, None)
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(options.model.encode(), api.llama_model_default_params())
        if not self.model:
            sys.exit(f"{options.model} is not a model that llama.cpp can load: give --model a GGUF file")
        params = api.llama_context_default_params()
        params.n_ctx = -(-options.length * 5 // 4 // 1024) * 1024 + 1024
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = options.threads
        params.n_seq_max, params.swa_full = 1, True
        params.flash_attn_type = 1 if options.flash_attention == "on" else 0
        self.context = api.llama_init_from_model(self.model, params)
        self.vocabulary = api.llama_model_get_vocab(self.model)
        self.words = api.llama_vocab_n_tokens(self.vocabulary)
        self.batch = api.llama_batch_init(BATCH_TOKENS, 0, 1)

    def tokenize(self, text, begin):
        data = text.encode()
        tokens = (self.api.llama_token * (len(data) + 8))()
        count = self.api.llama_tokenize(self.vocabulary, data, len(data), tokens, len(tokens), begin, True)
        return list(tokens[:count])

    def text(self, tokens):
        piece, made = ctypes.create_string_buffer(128), b""
        for token in tokens:
            count = self.api.llama_token_to_piece(self.vocabulary, token, piece, 128, 0, True)
            made += piece.raw[:count]
        return made.decode(errors="replace")

    def decode(self, tokens, position, all_logits=False, last_logits=True):
        for begin in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[begin:begin + BATCH_TOKENS]
            self.batch.n_tokens = len(part)
            for i, token in enumerate(part):
                self.batch.token[i], self.batch.pos[i] = token, position + begin + i
                self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0
                self.batch.logits[i] = all_logits or (last_logits and i == len(part) - 1)
            result = self.api.llama_decode(self.context, self.batch)
            if result != 0:
                raise RuntimeError(f"llama_decode returned {result}")

    def logits(self, index=-1):
        import numpy
        return numpy.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, index), shape=(self.words,))

    def forget_from(self, position):
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, position, -1)

    def clear(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def generate(self, position, count, is_right):
        """Greedy, from the logits that are there, until it is right, or of `count` tokens; they are taken back."""
        made = []
        for i in range(count):
            made.append(int(self.logits().argmax()))
            if i + 1 == count or is_right(self.text(made)):
                break
            self.decode(made[-1:], position + i)
        self.forget_from(position)
        return self.text(made)

    def score(self, position, task, answers):
        """Of the answer to the question that was just read."""
        made = self.generate(position, tasks.ANSWER_TOKENS[task], lambda text: tasks.score(text, answers) == 1)
        return tasks.score(made, answers)


# ---- A trial ---------------------------------------------------------------------------------------------

def set_options(engine, **options):
    for name, value in options.items():
        engine.psi.set_option(name, str(value))


class Evicted:
    """The next decode runs with `share` of the cache out of memory; afterwards everything comes back."""

    def __init__(self, engine, document, share):
        self.engine, self.document = engine, document
        engine.psi.trim(share)

    def __enter__(self):
        return self

    def check(self):
        if self.engine.psi.stats()["stored_bytes"] == 0:
            raise RuntimeError("nothing was evicted")

    def __exit__(self, *error):
        end = len(self.document)
        self.engine.forget_from(end)
        self.engine.psi.set_option("recall", "off")  # and what was wanted is forgotten
        self.engine.psi.restore()
        self.engine.decode(self.document[-1:], end, last_logits=False)  # the safe point
        self.engine.forget_from(end)
        if self.engine.psi.stats()["stored_bytes"] != 0:
            raise RuntimeError("the cache did not come back whole")


def cells(options):
    for policy in options.policies:
        for recall in ("off", "on") if policy in WITH_RECALL else ("off",):
            for share in options.evicted:
                yield policy, recall, share


def key(order, policy, recall, share):
    return f"{order} {policy} {recall} {share:g}"


def ask_unseen(engine, options, task, document, question, answers, results):
    for policy, recall, share in cells(options):
        set_options(engine, policy=policy, recall=recall)
        with Evicted(engine, document, share) as evicted:
            engine.decode(question, len(document))
            evicted.check()
            score = engine.score(len(document) + len(question), task, answers)
        results[key("unseen", policy, recall, share)] = score


def ask_seen(engine, options, task, document, question, answers, results):
    """The question is read with the whole cache, listened to; its last token is read again after the trim."""
    set_options(engine, policy="auto", recall="off", score_share=0.01)
    engine.decode(question, len(document))
    set_options(engine, score_share=0)
    end = len(document) + len(question)
    whole = document + question
    for policy, recall, share in cells(options):
        set_options(engine, policy=policy, recall=recall)
        engine.forget_from(end - 1)
        with Evicted(engine, whole, share) as evicted:
            engine.decode(question[-1:], end - 1)
            evicted.check()
            score = engine.score(end, task, answers)
        results[key("seen", policy, recall, share)] = score


def read(engine, document):
    """With attention listened to, as always; nothing that is asked afterwards leaves a trace in the scores."""
    engine.clear()
    set_options(engine, policy="auto", recall="off", score_share=0.01)
    engine.decode(document, 0)
    set_options(engine, score_share=0)


def ask(engine, options, task, document, question, answers):
    results = {}
    engine.forget_from(len(document))
    engine.decode(question, len(document))
    whole = engine.score(len(document) + len(question), task, answers)
    engine.forget_from(len(document))
    if "unseen" in options.order:
        ask_unseen(engine, options, task, document, question, answers, results)
    if "seen" in options.order:
        ask_seen(engine, options, task, document, question, answers, results)
    return whole, results


def log_likelihood(engine, before, text):
    """Mean over the text's tokens, each given all before it. The first is judged by the logits that are there."""
    import numpy

    def judge(row, token):
        most = row.max()
        return float(row[token] - most) - math.log(numpy.exp(row - most).sum(dtype=numpy.float64))

    total, previous = 0.0, engine.logits().copy()
    for begin in range(0, len(text), CONTINUED_BATCH):
        part = text[begin:begin + CONTINUED_BATCH]
        engine.decode(part, before + begin, all_logits=True)
        total += judge(previous, part[0])
        total += sum(judge(engine.logits(i), token) for i, token in enumerate(part[1:]))
        previous = engine.logits(len(part) - 1).copy()
    return total / len(text)


def judge_continuation(engine, options, document, text):
    """The document's last token is read again after each trim: its logits judge the text's first."""
    begin, document, results = document[-1:], document[:-1], {}

    def judged():
        engine.decode(begin, len(document))
        return log_likelihood(engine, len(document) + 1, text)

    engine.forget_from(len(document))
    whole = judged()
    engine.forget_from(len(document))
    for policy, recall, share in cells(options):
        set_options(engine, policy=policy, recall=recall)
        with Evicted(engine, document, share):
            results[key("unseen", policy, recall, share)] = judged()
    return whole, results


def trials_of(engine, options, names, seed):
    """One document for all named tasks; yields (task, whole, results)."""
    document, asked, text = tasks.document(engine.tokenize, names, seed, options.length, CONTINUED_TOKENS)
    read(engine, document)
    questions = iter(asked)
    for task in names:
        if task == "continuation":
            yield (task, *judge_continuation(engine, options, document, text))
        else:
            yield (task, *ask(engine, options, task, document, *next(questions)))


# ---- Results ---------------------------------------------------------------------------------------------

def results_path(options):
    model = "" if options.is_default_model else "-" + os.path.splitext(os.path.basename(options.model))[0]
    flash = "" if options.flash_attention == "on" else "-no-flash"
    blocks = f"-blocks-{options.block_cells}" if options.block_cells else ""
    return os.path.join(BUILD, f"quality-{options.length}{model}{flash}{blocks}.jsonl")


def load(options):
    try:
        with open(results_path(options), encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []


def wanted_keys(options, task):
    orders = ("unseen",) if task == "continuation" else options.order
    return {key(order, *cell) for order in orders for cell in cells(options)}


def is_done(trials, options, task, names, seed):
    done = set()
    for trial in trials:
        if (trial["task"], trial["document"], trial["seed"]) == (task, "+".join(names), seed) \
                and trial["text"] == tasks.MANUAL_SHA256:
            done |= set(trial["cells"])
    return wanted_keys(options, task) <= done


def run(options):
    os.makedirs(BUILD, exist_ok=True)
    trials = load(options)
    part, parts = options.part
    left = [(names, seed) for seed in range(part, options.trials, parts) for names in options.documents
            if not all(is_done(trials, options, task, names, seed) for task in names)]
    engine = Engine(options) if left else None
    for at, (names, seed) in enumerate(left):
        for task, whole, results in trials_of(engine, options, names, seed):
            trial = {"task": task, "document": "+".join(names), "seed": seed, "whole": whole, "cells": results,
                     "text": tasks.MANUAL_SHA256, "python": platform.python_version()}
            with open(results_path(options), "a", encoding="utf-8") as file:
                file.write(json.dumps(trial) + "\n")
            print(f"{at + 1}/{len(left)} {task} {seed}: whole {whole:.3g}", file=sys.stderr, flush=True)


# ---- The table -------------------------------------------------------------------------------------------

def ratio_interval(pairs):
    """Score over the whole cache's, all trials together, with a 95 % bootstrap interval (seed fixed)."""
    def ratio(sample):
        whole = sum(w for w, _ in sample)
        return sum(s for _, s in sample) / whole if whole else float("nan")

    random_ = random.Random(1)
    ratios = sorted(ratio(random_.choices(pairs, k=len(pairs))) for _ in range(1000))
    return ratio(pairs), ratios[25], ratios[974]


def pairs_of(trials, task, cell):
    """One (whole, score) a seed, for one cell."""
    found = {t["seed"]: (t["whole"], t["cells"][cell]) for t in trials if t["task"] == task and cell in t["cells"]}
    return [found[seed] for seed in sorted(found)]


def print_table(trials, options):
    print(f"{platform.machine()}, {os.cpu_count()} CPUs; documents of {options.length} tokens; share of the whole "
          "cache's score [95 % interval]")
    for task in tasks.TASKS:
        first = next((t for t in trials if t["task"] == task), None)
        if first is None:
            continue
        whole = {t["seed"]: t["whole"] for t in trials if t["task"] == task}
        print(f"\n{task}: {len(whole)} trials, whole cache {sum(whole.values()) / len(whole):.3f}")
        for order in ("unseen",) if task == "continuation" else options.order:
            for policy in options.policies:
                for recall in ("off", "on"):
                    print_line(trials, options, task, order, policy, recall)


def print_line(trials, options, task, order, policy, recall):
    texts = []
    for share in options.evicted:
        pairs = pairs_of(trials, task, key(order, policy, recall, share))
        if pairs:
            ratio, low, high = ratio_interval(pairs)
            digits = 4 if task == "continuation" else 2
            texts.append(f"{share:4.0%} {ratio:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
    if texts:
        print(f"  {order:6} {policy:9} {'recall' if recall == 'on' else '':6}  " + "   ".join(texts))


def print_markdown(trials, options):
    for task in tasks.TASKS:
        orders = [order for order in (("unseen",) if task == "continuation" else options.order)
                  if any(t["task"] == task and cell.startswith(order) for t in trials for cell in t["cells"])]
        for order in orders:
            whole = {t["seed"]: t["whole"] for t in trials if t["task"] == task}
            question = "" if task == "continuation" else f", question {'not ' if order == 'unseen' else ''}seen"
            print(f"\n| {TITLES[task]}{question}; {len(whole)} trials, whole cache {sum(whole.values()) / len(whole):.2f} | "
                  + " | ".join(f"{share:.0%} evicted".replace("%", " %") for share in options.evicted) + " |")
            print("|---" * (1 + len(options.evicted)) + "|")
            for policy in options.policies:
                for recall in ("off", "on"):
                    print_markdown_line(trials, options, task, order, policy, recall)


def print_markdown_line(trials, options, task, order, policy, recall):
    digits = 3 if task == "continuation" else 2
    pairs = [pairs_of(trials, task, key(order, policy, recall, share)) for share in options.evicted]
    texts = ["{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*ratio_interval(p), d=digits) if p else "" for p in pairs]
    if any(texts):
        print(f"| {policy}{' with recall' if recall == 'on' else ''} | " + " | ".join(texts) + " |")


def bars(trials):
    """(what, value, bar) for each bar that the results can judge."""
    def share(task, order, policy, recall, evicted):
        pairs = pairs_of(trials, task, key(order, policy, recall, evicted))
        return ratio_interval(pairs)[0] if pairs else None

    yield "passkey, seen, 50 %: auto", share("passkey", "seen", "auto", "off", 0.5), 0.98
    for evicted, bar, recalled in ((0.5, 0.89, 0.99), (0.75, 0.78, 0.98), (0.9, None, 0.95)):
        for task in ("passkey", "lookup"):
            ours, fifo = share(task, "unseen", "auto", "off", evicted), share(task, "unseen", "fifo", "off", evicted)
            if bar is not None and ours is not None and fifo is not None:
                yield f"{task}, unseen, {evicted:.0%}: auto", ours, bar
                yield f"{task}, unseen, {evicted:.0%}: auto above fifo", ours - fifo, 0.20
            yield f"{task}, unseen, {evicted:.0%}: auto, recall", share(task, "unseen", "auto", "on", evicted), recalled
    difference = share("continuation", "unseen", "auto", "on", 0.5)
    if difference is not None:
        yield "continuation, 50 %: auto, recall: log-likelihood within", 1 - abs(1 - difference), 0.995


def print_bars(trials):
    missed = 0
    for what, value, bar in bars(trials):
        if value is not None:
            missed += value < bar
            print(f"{'ok    ' if value >= bar else 'MISSED'} {what}: {value:.3f}, bar {bar:g}")
    return missed


def main():
    options = arguments()
    options.is_default_model = options.model is None
    if options.block_cells:
        os.environ["PSI_CACHE_BLOCK_CELLS"] = str(options.block_cells)
    if options.is_default_model:
        options.model = demo.model_file(argparse.Namespace(model=None))
    if not (options.report or options.markdown):
        run(options)
    trials = load(options)
    if options.markdown:
        print_markdown(trials, options)
        return
    print_table(trials, options)
    print()
    sys.exit(1 if print_bars(trials) else 0)


if __name__ == "__main__":
    main()
