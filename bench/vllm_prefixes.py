"""How long a prompt takes whose prefix was never seen, is in vLLM's cache, or in the store: to its first token, by size.

Each text is asked anew (computed), again (vLLM's own cache), and once more after its pages were given back (read from the
store). One engine in this process, tests/vllm_driver.py's. Writes build/bench/vllm_prefixes.json; ends with 1 unless reading
is faster than computing at each size, and the tokens are the same.
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "tests")]
from demo import machine  # noqa: E402
from vllm_driver import SETTINGS, WORDS, Engine, give_all, loaded  # noqa: E402


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / ".cache" / "models" / "gemma-3-270m-vllm"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def timed(engine, text):
    began = time.monotonic()
    said = engine.texts([text])
    return (time.monotonic() - began) * 1000, said


def one_round(engine, tokens, number):
    text = " ".join(random.Random(1000 * tokens + number).choices(WORDS, k=tokens))
    computed, said = timed(engine, text)
    cached, again = timed(engine, text)
    if not give_all(engine):
        raise SystemExit("the engine gave nothing back")
    before = loaded(engine)
    read, third = timed(engine, text)
    return {"computed_ms": computed, "cached_ms": cached, "read_ms": read, "loaded_blocks": loaded(engine) - before,
            "same": said == again == third}


def main():
    options = arguments()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.update(DRIVER_TOKENS="1", PSI_CACHE_FLOOR_BYTES="1")  # a short text is less than the floor
    engine = Engine(options.model, max_model_len=4096, kv_cache_memory_bytes=512 << 20, max_num_seqs=4)
    one_round(engine, options.tokens[0], -1)
    results, good = {}, True
    for tokens in options.tokens:
        rounds = [one_round(engine, tokens, number) for number in range(options.rounds)]
        median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0] if name != "same"}
        results[tokens] = {"rounds": rounds, "median": median}
        same = all(each["same"] for each in rounds)
        good = good and same and median["loaded_blocks"] > 0 and median["read_ms"] < median["computed_ms"]
        print(f"  {tokens} words: computed {median['computed_ms']:.0f} ms, cached {median['cached_ms']:.0f} ms, read "
              f"{median['read_ms']:.0f} ms ({median['loaded_blocks']:.0f} blocks of {engine.keeper.block_bytes >> 10} KiB); "
              f"{'the same tokens' if same else 'OTHER TOKENS'}", flush=True)
    path = ROOT / "build" / "bench" / "vllm_prefixes.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = "make bench-vllm-prefixes ARGS=\"%s\"" % " ".join(sys.argv[1:])
    path.write_text(json.dumps({"command": command, "sizes": results, "machine": machine()}, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
