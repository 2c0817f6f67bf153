"""From the first sign of a spike to vLLM's pages returned, as the controller counts it (reaction_last_us: from the last
reading that showed no need, to the workers' answer). A server in a memory group, spikes one after the other.

  --busy       16 clients the whole time (default: idle)
  --scheduler  with --busy: a scheduler class, such as psi_cache.vllm.preempt.PreemptingScheduler
Writes build/bench/vllm_reaction-<case>.json; ends with 1 when the bar is missed (p99: idle 50 ms, busy 200 ms, with a
scheduler class 200 ms and the longest step).
"""
import argparse
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))
import demo  # noqa: E402
from demo import MIB, machine  # noqa: E402
from demo_vllm import needed_bytes, new_group, status_of  # noqa: E402
from vllm_server import Load, Server  # noqa: E402

BUILD = ROOT / "build" / "bench"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / ".cache" / "models" / "gemma-3-270m-vllm"))
    parser.add_argument("--spikes", type=int, default=20)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--scheduler")
    parser.add_argument("--kv", type=float, default=384, metavar="MIB")
    parser.add_argument("--rate", type=float, default=500, metavar="MIB/S")
    return parser.parse_args()


def one_spike(options, group, core, program):
    """Microseconds, or None where nothing was given back."""
    before = status_of(core)
    size = max(0, group.limit_bytes - needed_bytes(group)) + 96 * MIB
    process, _ = demo.start_spike(group, program, argparse.Namespace(
        spike_bytes=size, rate_bytes_per_s=options.rate * MIB), argparse.Namespace(hold=1.0, spike_processes=2))
    process.wait()
    after = status_of(core)
    if not after or after["trimmed_bytes"] == before.get("trimmed_bytes"):
        return None
    return after["reaction_last_us"]


def run(options, group, server, program):
    warm = Load(server, 16, 48, 300, 16)
    warm.start()
    warm.join()
    group.set_limit(needed_bytes(group) // MIB * MIB + 512 * MIB)
    core, load = server.pids()["core"], None
    if options.busy:
        load = Load(server, 16, 10**9, 200, 32, first=1000)
        load.start()
    found = []
    for number in range(options.spikes):
        found.append(one_spike(options, group, core, program))
        print(f"  spike {number + 1}: {found[-1]} us", flush=True)
        if not server.alive():
            raise SystemExit("the server is gone:\n" + server.said()[-3000:])
        if load is None:  # the prefixes of before come back, so that there is something to give
            again = Load(server, 16, 32, 300, 8, first=2000 + 100 * number)
            again.start()
            again.join()
        time.sleep(4)
    if load is not None:
        load.over = True
        load.join()
    return found


def main():
    options = arguments()
    BUILD.mkdir(parents=True, exist_ok=True)
    os.makedirs(demo.BUILD, exist_ok=True)
    program, case = demo.spike_program(), "preempting" if options.scheduler else "busy" if options.busy else "idle"
    with new_group() as group:
        server = Server(options.model, True, int(options.kv * MIB), 2048, group, options.scheduler)
        try:
            if not server.wait_ready():
                raise SystemExit("the server does not start:\n" + server.said()[-3000:])
            found = run(options, group, server, program)
            kills = group.oom_kills()
        finally:
            server.stop()
    seen = sorted(us for us in found if us is not None)
    quantile = {share: demo.quantile_ms(seen, share) for share in (0.5, 0.99, 1.0)}
    bar_ms = {"idle": 50, "busy": 200, "preempting": None}[case]
    print(f"{case}: {len(seen)} of {len(found)} spikes gave memory back; reaction p50 {quantile[0.5]}, p99 {quantile[0.99]}, "
          f"worst {quantile[1.0]} ms; kills {kills}; bar {bar_ms} ms; {machine()['cpu']}, {os.cpu_count()} CPUs")
    (BUILD / f"vllm_reaction-{case}.json").write_text(json.dumps(
        {"reaction_us": found, "kills": kills, "machine": machine()}, indent=1) + "\n")
    return 0 if seen and kills == 0 and (bar_ms is None or quantile[0.99] <= bar_ms) else 1


if __name__ == "__main__":
    sys.exit(main())
