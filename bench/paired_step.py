"""Time of a decode step, without pressure or with a part of the cache evicted: ours against stock, paired in turn.

One process of each, both with the same prompt read. They take turns of a few tokens each, in the
order A B B A, so that what the machine does meanwhile hits both alike. Prints the ratio of the
median step times with a 95 % interval; writes build/bench/paired_step.json.
"""
import argparse
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "demo"))
import demo  # noqa: E402
import generate  # noqa: E402

BUILD = os.path.join(HERE, "..", "build", "bench")
REST_S = 0.05  # between turns: worker threads of the one that just ran stop spinning


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", nargs=2, default=("stock", "ours"), choices=("stock", "lazy", "ours"),
                        metavar=("BASE", "OTHER"), help="stock stock shows the measurement's own error")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=40, help="for each side")
    parser.add_argument("--tokens", type=int, default=20, help="in a turn")
    parser.add_argument("--evicted", type=float, default=0, metavar="SHARE",
                        help="of our cache, kept out of memory, recall at work; tokens then differ from stock's")
    parser.add_argument("--flash-attention", choices=("on", "off"), default="on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model")
    parser.add_argument("--bar", type=float, default=1.02, help="ends with 1 above this ratio (default 1.02)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- the child: one engine that does as it is told ---------------------------------------------------

def child(options):
    """Reads 'go N' lines; answers each with a JSON list of N step times in microseconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not land among the answers
    if options.evicted:
        os.environ["PSI_CACHE_CONTROLLER"] = "off"  # or it would all come back at once
    generate.load_psi_cache(options.child)
    engine = generate.Engine(options.model, flash_attention=options.flash_attention == "on",
                             lock_weights=False, threads=options.threads)
    events = generate.Events(2)
    tokens = generate.prompt_tokens(engine, options.prompt_tokens, options.seed)
    token = generate.prefill(engine, tokens, lambda *_, **__: None)
    if options.evicted and options.child == "ours":
        evict(options.evicted)
    print(json.dumps([]), file=answers, flush=True)
    for line in sys.stdin:
        steps_us, ids = [], []
        for _ in range(int(line.split()[1])):
            begin_ns = time.perf_counter_ns()
            generate.decode_or_wait(engine, [token], events)
            token = engine.best_token()
            steps_us.append((time.perf_counter_ns() - begin_ns) / 1000)
            ids.append(token)
        print(json.dumps([steps_us, ids]), file=answers, flush=True)
    answers.flush()
    os._exit(0)


def evict(share):
    """Takes effect in the next step, which is one of those that are not counted."""
    import psi_cache
    psi_cache.trim(share)


class Side:
    def __init__(self, mode, options):
        command = [sys.executable, os.path.abspath(__file__), "--child", mode, "--model", options.model,
                   "--prompt-tokens", str(options.prompt_tokens), "--flash-attention", options.flash_attention,
                   "--threads", str(options.threads), "--seed", str(options.seed),
                   "--evicted", str(options.evicted)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.turns, self.ids = [], []
        self._answer()  # the prompt is read

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side ended: status %d" % self.process.wait())
        return json.loads(line)

    def go(self, count, keep=True):
        self.process.stdin.write("go %d\n" % count)
        self.process.stdin.flush()
        steps_us, ids = self._answer()
        self.ids += ids
        if keep:
            self.turns.append(steps_us)
        time.sleep(REST_S)

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# ---- the harness -------------------------------------------------------------------------------------

def take_turns(base, other, turns, tokens):
    for side in (base, other):
        side.go(tokens, keep=False)  # first touches, branch predictors, caches
    for turn in range(turns):
        for side in ((base, other) if turn % 2 == 0 else (other, base)):
            side.go(tokens)
        if sys.stderr.isatty():
            sys.stderr.write("\r%d of %d turns" % (turn + 1, turns))
        elif (turn + 1) % 10 == 0:
            print("  %d of %d turns" % (turn + 1, turns), flush=True)
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")


def interval(base_turns, other_turns, draws=4000):
    """Ratio of medians, and its 95 % interval by drawing whole pairs of turns again."""
    import numpy
    base, other = numpy.array(base_turns), numpy.array(other_turns)
    generator = numpy.random.default_rng(1)
    ratios = numpy.empty(draws)
    for i in range(draws):
        pick = generator.integers(0, len(base), len(base))
        ratios[i] = numpy.median(other[pick]) / numpy.median(base[pick])
    return float(numpy.median(other) / numpy.median(base)), [float(q) for q in numpy.quantile(ratios, (0.025, 0.975))]


def main():
    options = arguments()
    if options.child:
        return child(options)
    os.makedirs(BUILD, exist_ok=True)
    os.makedirs(demo.BUILD, exist_ok=True)
    options.model = demo.model_file(options)
    sides = []
    try:
        for mode in options.sides:
            print("  %s: reading a prompt of %d tokens ..." % (mode, options.prompt_tokens), flush=True)
            sides.append(Side(mode, options))
        take_turns(sides[0], sides[1], options.turns, options.tokens)
    finally:
        for side in sides:
            side.end()
    ratio, (low, high) = interval(sides[0].turns, sides[1].turns)
    medians_ms = [sorted(sum(side.turns, []))[options.turns * options.tokens // 2] / 1000 for side in sides]
    result = {"sides": list(options.sides), "ratio": ratio, "interval_95": [low, high], "median_ms": medians_ms,
              "turns": options.turns, "tokens_a_turn": options.tokens, "prompt_tokens": options.prompt_tokens,
              "flash_attention": options.flash_attention, "evicted": options.evicted, "tokens_identical": sides[0].ids == sides[1].ids,
              "bar": options.bar, "machine": demo.machine()}
    demo.save(os.path.join(BUILD, "paired_step.json"), {**result, "steps_us": [side.turns for side in sides]})
    where = result["machine"]
    print("%s, %d CPUs, Linux %s" % (where["cpu"], where["cpus"], where["kernel"]))
    print("median step: %s %.3f ms, %s %.3f ms" % (options.sides[0], medians_ms[0], options.sides[1], medians_ms[1]))
    print("ratio %.4f, 95 %% interval %.4f to %.4f (bar: at most %.2f); tokens %s"
          % (ratio, low, high, options.bar, "identical" if result["tokens_identical"] else
             "differ, as some of the cache is out" if options.evicted else "DIFFER"))
    return 0 if ratio <= options.bar and (options.evicted or result["tokens_identical"]) else 1


if __name__ == "__main__":
    sys.exit(main())
