"""Do vLLM's greedy texts change when blocks go and come? And where they do in bf16: why?

Each row is an engine of its own (tests/vllm_driver.py) that answers the same requests; compared with the row "reference",
an engine with a large cache and without us:

  native   without us, in a cache so small that vLLM preempts and computes again
  keep     with us under random trims; withheld blocks keep their pages and bytes
  drop     with us under random trims; their pages go back
  poison   with us under random trims; withheld blocks are filled with what is not a number

If bf16 texts differ by rounding (a request that is computed again is cut into other pieces), native differs as much, and
only at near-ties: the gap shown is that of the reference's two best tokens where a text first differs, in nats. In f32
nothing may differ. The requests are asked in parts, each of an engine of its own; parts that are there already
(build/bench/vllm_differences/) are not run again, so it can be stopped and goes on, and --most-parts ends it early.
Writes build/bench/vllm_differences-<dtype>.json; ends with 1 when the bar is missed.
"""
import argparse
import json
import math
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))
from demo import machine  # noqa: E402

BUILD = ROOT / "build" / "bench"
ROWS = ("reference", "native", "keep", "drop", "poison")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / ".cache" / "models" / "gemma-3-270m-vllm"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--blocks", type=int, default=108, help="of the small cache (default 108): six requests or so")
    parser.add_argument("--part", type=int, default=100, help="requests of one engine (default 100)")
    parser.add_argument("--most-parts", type=int, default=10**9, help="run no more than so many now")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    return parser.parse_args()


def engine_of(row, options):
    """Environment and engine options of a row. The small cache is too small for the eight that run at once."""
    block_bytes = 3 * 128 * 1024 * (2 if options.dtype == "float32" else 1)
    small, large = options.blocks * block_bytes, 512 * block_bytes
    settings = {"dtype": options.dtype, "kv_cache_memory_bytes": large if row == "reference" else small}
    if row in ("reference", "native"):
        settings["kv_transfer_config"] = None
    return {"PSI_CACHE_VLLM_PAGES": row if row in ("keep", "poison") else "drop"}, settings


def run(row, options, first, count):
    environment, settings = engine_of(row, options)
    environment.update(DRIVER_OPTIONS=json.dumps(settings), DRIVER_REQUESTS=str(count), DRIVER_FIRST=str(first),
                       DRIVER_TOKENS=str(options.tokens))
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "vllm_driver.py"), options.model, "written"],
                          env={**os.environ, **environment}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{row} did not finish:\n{done.stdout[-1500:]}{done.stderr[-3000:]}")
    return json.loads(lines[-1][len("RESULT "):])["written"]


class Enough(Exception):
    """--most-parts were run."""


def part(row, options, first, budget):
    """One part's texts, run now or before."""
    count = min(options.part, options.requests - first)
    path = BUILD / "vllm_differences" / f"{options.dtype}-{options.blocks}-{options.tokens}-{row}-{first}-{count}.json"
    if not path.exists():
        if budget[0] <= 0:
            raise Enough
        budget[0] -= 1
        found = run(row, options, first, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".partial").write_text(json.dumps(found))
        path.with_suffix(".partial").rename(path)
    return json.loads(path.read_text())


def texts_of(row, options, budget):
    """All parts as one; of what is there when the budget is spent."""
    whole = {"tokens": [], "gaps": [], "preemptions": 0, "trims": 0, "given_bytes": 0, "loaded": 0}
    for first in range(0, options.requests, options.part):
        try:
            found = part(row, options, first, budget)
        except Enough:
            break
        for name in whole:
            whole[name] += found[name] or 0
    return whole


def not_numbers(found):
    """Tokens whose log-probabilities were not numbers."""
    return sum(not math.isfinite(gap) for gaps in found["gaps"] for gap in gaps)


def differences(reference, other):
    """For each text that differs: (number, place, gap there)."""
    found = []
    for number, (left, right) in enumerate(zip(reference["tokens"], other["tokens"])):
        if left != right:
            place = next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
            gaps = reference["gaps"][number]
            found.append((number, place, gaps[place] if place < len(gaps) else None))
    return found


def main():
    options = arguments()
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"vllm_differences-{options.dtype}.json"
    results, texts, budget = {}, {}, [options.most_parts]
    rows = ["reference", *[row for row in options.rows if row != "reference"]]
    for row in rows:
        texts[row] = texts_of(row, options, budget)
        different = differences(texts["reference"], texts[row])
        largest = max((gap for _, _, gap in different if gap is not None), default=None)
        compared = min(len(texts[row]["tokens"]), len(texts["reference"]["tokens"]))
        results[row] = {"requests": compared, "different": different, "preemptions": texts[row]["preemptions"],
                        "trims": texts[row]["trims"], "given_bytes": texts[row]["given_bytes"],
                        "loaded_blocks": texts[row]["loaded"], "largest_gap": largest,
                        "tokens": sum(map(len, texts[row]["tokens"])), "not_numbers": not_numbers(texts[row])}
        print(f"  {row:10} {len(different):4} of {compared} differ; largest gap {largest}; "
              f"{texts[row]['preemptions']:.0f} preemptions, {texts[row]['trims']} trims, "
              f"{texts[row]['given_bytes'] >> 20} MiB given back, {texts[row]['loaded']} blocks from the store, "
              f"{results[row]['not_numbers']} not numbers", flush=True)
        path.write_text(json.dumps({
            "command": "make bench-vllm-differences ARGS=\"%s\"" % " ".join(sys.argv[1:]), "dtype": options.dtype,
            "tokens": options.tokens, "blocks": options.blocks, "rows": results, "machine": machine()}, indent=1) + "\n")
    good = not any(results[row]["not_numbers"] for row in rows)
    if not good:
        print("bar missed: what is not a number reached an output")
    if options.dtype == "float32" and any(results[row]["different"] for row in rows):
        print("bar missed: in f32 every text must be identical")
        good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
