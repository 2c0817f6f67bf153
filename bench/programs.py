"""llama-perplexity and llama-bench under psi-cache run, without pressure, against themselves without us.

llama-perplexity reads Python's manual, as it comes with the interpreter: all that it prints of perplexity must be the
same to the last digit. llama-bench measures prompt reading and decoding. The two sides take turns, in the order
A B B A, so that what the machine does meanwhile hits both alike; the speed is the median of the ratios of the pairs, with
a 95 % interval by drawing pairs again.
"""
import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import llama_server  # noqa: E402
import quality_tasks  # noqa: E402
import rig  # noqa: E402
from rig import say  # noqa: E402


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10, help="of runs of each program (default 10)")
    parser.add_argument("--chunks", type=int, default=8, help="of perplexity's text")
    parser.add_argument("--context", type=int, default=2048, help="of a chunk")
    parser.add_argument("--prompt", type=int, default=512, help="tokens that llama-bench reads")
    parser.add_argument("--decode", type=int, default=64, help="tokens that it decodes")
    parser.add_argument("--depth", type=int, default=0, help="tokens in the cache before")
    parser.add_argument("--repeat", type=int, default=3, help="of llama-bench, in one run")
    parser.add_argument("--flash-attention", choices=("on", "off", "auto"), default="auto")
    parser.add_argument("--sides", nargs=2, default=("stock", "ours"), choices=("stock", "ours"),
                        help="stock stock shows the measurement's own error")
    parser.add_argument("--programs", nargs="+", default=("perplexity", "bench"), choices=("perplexity", "bench"))
    parser.add_argument("--threads", type=int, default=2, help="1 on a busy machine: two wait for each other")
    parser.add_argument("--bar", type=float, default=1.01)
    return parser.parse_args()


def start(side, program, threads, *options):
    command = [os.path.join(llama_server.engine_folder(), program), "-m", rig.model_file(), "-t", str(threads), *options]
    if side == "ours":
        command = [rig.tool(), "run", "-v", "--", *command]
    begin_s = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    took_s = time.monotonic() - begin_s
    if done.returncode != 0:
        raise SystemExit("%s ended with %d: %s" % (program, done.returncode, done.stderr[-2000:]))
    if side == "ours" and "psi-cache: managing a KV cache" not in done.stderr:
        raise SystemExit("%s is not under psi-cache: %s" % (program, done.stderr[-2000:]))
    return done, took_s


def text_file():
    path = os.path.join(rig.BUILD, "manual.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write(quality_tasks.MANUAL)
    return path


def perplexity(side, options):
    """What it says of perplexity, and how long a chunk took."""
    done, took_s = start(side, "llama-perplexity", options.threads, "-f", text_file(), "-c", str(options.context), "--chunks",
                         str(options.chunks), "-fa", options.flash_attention)
    said = done.stdout + done.stderr
    pieces = re.findall(r"\[(\d+)\]([\d.]+)", said)
    final = re.findall(r"Final estimate: PPL = .*", said)
    if not final or len(pieces) < options.chunks:
        raise SystemExit("llama-perplexity said nothing of perplexity: " + said[-2000:])
    timed = re.findall(r"prompt eval time =\s*([\d.]+) ms", said)
    return {"said": [pieces, final[-1]], "times_s": {"perplexity": float(timed[-1]) / 1000 if timed else took_s}}


def bench(side, options):
    done, _ = start(side, "llama-bench", options.threads, "-p", str(options.prompt), "-n", str(options.decode), "-r", str(options.repeat), "-d",
                    str(options.depth), "-o", "json", *(["-fa", {"on": "1", "off": "0"}[options.flash_attention]]
                                                        if options.flash_attention != "auto" else []))
    rows = json.loads(done.stdout[done.stdout.index("["):])
    return {"said": None, "times_s": {"read %d" % row["n_prompt"] if row["n_prompt"] else "decode %d" % row["n_gen"]:
                                      min(row["samples_ns"]) / 1e9 for row in rows}}


def interval(ratios, draws=4000):
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def main():
    options = arguments()
    os.makedirs(rig.BUILD, exist_ok=True)
    say(rig.machine_line())
    result, good = {"options": vars(options), "machine": rig.demo.machine()}, True
    for name in options.programs:
        program, runs = {"perplexity": perplexity, "bench": bench}[name], ([], [])
        for pair in range(options.pairs):
            order = (0, 1) if pair % 2 == 0 else (1, 0)
            for which in order:
                runs[which].append(program(options.sides[which], options))
        said = [json.dumps(run["said"]) for run in runs[0] + runs[1]]
        same = len(set(said)) == 1
        if name == "perplexity":
            say("llama-perplexity: %s, %d chunks, %s" % ("identical to the last digit" if same else "DIFFERENT", options.chunks,
                                                        runs[0][0]["said"][1]))
            good = good and same
        for what in runs[0][0]["times_s"]:
            ratios = [other["times_s"][what] / base["times_s"][what] for base, other in zip(*runs)]
            low, high = interval(ratios)
            ratio = statistics.median(ratios)
            say("  %-14s %s / %s, time: %.4f, 95 %% interval %.4f to %.4f, %d pairs (median %.3f s; bar %.2f)"
                % (what, options.sides[1], options.sides[0], ratio, low, high, options.pairs,
                   statistics.median(run["times_s"][what] for run in runs[0]), options.bar))
            result[what] = {"ratio": ratio, "interval_95": [low, high], "ratios": ratios}
            good = good and ratio <= options.bar
        result[name] = {"identical": same, "runs": runs}
    rig.demo.save(os.path.join(rig.BUILD, "programs.json"), result)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
