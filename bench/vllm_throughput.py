"""vLLM's throughput with the connector and without, in pairs: both servers are up, and answer the same 16 clients in turn,
each order as often as the other. What is told is the median over two neighbouring pairs' mean.

  --withheld   ours with all but its floor withheld (trimmed by hand, controller off), against a stock vLLM that was
               started with as small a cache
Writes build/bench/vllm_throughput.json; ends with 1 when the bar is missed (0.99, with --withheld 0.95).
"""
import argparse
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))
from demo import machine  # noqa: E402
from demo_vllm import status_of  # noqa: E402
from rig_base import leave_on_signals  # noqa: E402
from vllm_server import Load, Server  # noqa: E402

BUILD = ROOT / "build" / "bench"
COMMAND = str(pathlib.Path(sys.executable).parent / "psi-cache")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / ".cache" / "models" / "gemma-3-270m-vllm"))
    parser.add_argument("--pairs", type=int, default=12, help="an even number: each order as often as the other")
    parser.add_argument("--requests", type=int, default=32, help="of each side in a pair (default 32)")
    parser.add_argument("--prompt-tokens", type=int, default=120)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--kv", type=float, metavar="MIB", help="the KV cache (default 256; --withheld 108: its floor, in "
                                                                "16 bits, is 15 per cent of that)")
    parser.add_argument("--withheld", action="store_true")
    parser.add_argument("--bar", type=float)
    options = parser.parse_args()
    options.kv = options.kv or (108 if options.withheld else 256)
    options.bar = options.bar or (0.95 if options.withheld else 0.99)
    return options


def load(server, options, first):
    run = Load(server, 16, options.requests, options.prompt_tokens, options.tokens, first=first)
    run.start()
    run.join()
    if run.failed:
        raise SystemExit(f"{len(run.failed)} requests failed: {run.failed[0]}")
    return run.tokens_per_s()


def fill(server, options):
    """More prefixes than the cache takes."""
    run = Load(server, 16, int(options.kv / 2), 300, 4, first=10**6)
    run.start()
    run.join()


def withhold(server, options):
    """Fills ours, trims it while idle until nothing more goes, and answers how many bytes stay in use."""
    fill(server, options)
    core, withheld = server.pids()["core"], -1
    while status_of(core)["withheld_bytes"] != withheld:
        withheld = status_of(core)["withheld_bytes"]
        subprocess.run([COMMAND, "trim", str(core), "1.0"], check=True)
        time.sleep(3)
    print(f"  withheld: {withheld >> 20} of {status_of(core)['capacity_bytes'] >> 20} MiB", flush=True)
    return status_of(core)["capacity_bytes"] - withheld


def balanced(ratios):
    """Of two neighbouring pairs, one with ours first and one with stock first: whoever comes first in a pair was faster by
    some per cent, on a machine whose other processor worked for somebody else."""
    return [math.sqrt(one * other) for one, other in zip(ratios[::2], ratios[1::2])]


def interval(ratios):
    """Of the median, 95 %, by drawing anew."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[1949]


def pairs_of(options, ours, stock):
    ratios = []
    for number in range(options.pairs):
        order = [("ours", ours), ("stock", stock)] if number % 2 else [("stock", stock), ("ours", ours)]
        speed = {name: load(server, options, 1000 * (number + 1)) for name, server in order}
        ratios.append(speed["ours"] / speed["stock"])
        print(f"  pair {number + 1}: ours {speed['ours']:.1f}, stock {speed['stock']:.1f} tokens/s: {ratios[-1]:.3f}",
              flush=True)
    return ratios


def main():
    options = arguments()
    leave_on_signals()
    BUILD.mkdir(parents=True, exist_ok=True)
    environment = {"PSI_CACHE_CONTROLLER": "off"} if options.withheld else {}
    kv_bytes = int(options.kv) << 20
    ours = Server(options.model, True, kv_bytes, 512, environment=environment)
    stock = None
    try:
        if not ours.wait_ready():
            raise SystemExit("ours does not start:\n" + ours.said()[-3000:])
        if options.withheld:
            kv_bytes = withhold(ours, options)
        stock = Server(options.model, False, kv_bytes, 512)
        if not stock.wait_ready():
            raise SystemExit("stock does not start:\n" + stock.said()[-3000:])
        if options.withheld:
            fill(stock, options)  # as ours: a process that had larger steps has another heap
        load(ours, options, 1)
        load(stock, options, 1)
        ratios = pairs_of(options, ours, stock)
    finally:
        for server in (ours, stock):
            if server is not None:
                server.stop()
    both_orders = balanced(ratios)
    median, (low, high) = statistics.median(both_orders), interval(both_orders)
    name = "withheld" if options.withheld else "plain"
    print(f"{name}: median of ours / stock {median:.4f} (95 %: {low:.4f} to {high:.4f}); bar {options.bar}; "
          f"{machine()['cpu']}, {os.cpu_count()} CPUs")
    result = {"command": "make bench-vllm-throughput ARGS=\"%s\"" % " ".join(sys.argv[1:]), "case": name,
              "pairs": len(ratios), "ratios": ratios, "balanced": both_orders, "median": median, "interval": [low, high],
              "bar": options.bar, "kv_bytes": int(options.kv) << 20, "kv_bytes_stock": kv_bytes,
              "withheld_share": 1 - kv_bytes / (int(options.kv) << 20), "machine": machine()}
    (BUILD / f"vllm_throughput-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if median >= options.bar else 1


if __name__ == "__main__":
    sys.exit(main())
