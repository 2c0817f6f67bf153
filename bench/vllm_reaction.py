"""From the first sign of a spike to vLLM's pages returned, as the controller counts it (reaction_last_us: from the last
reading that showed no need, to the workers' answer). A server in a memory group, spikes one after the other.

  --busy       16 clients the whole time (default: idle)
  --scheduler  with --busy: a scheduler class, such as psi_cache.vllm.preempt.PreemptingScheduler
Writes build/bench/vllm_reaction-<case>.json; ends with 1 when the bar is missed (p99: idle 50 ms, busy 200 ms, with a
scheduler class each spike 200 ms and the longest step around it, as the longest pause of one stream shows it).
"""
import argparse
import http.client
import json
import os
import pathlib
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))
import demo  # noqa: E402
from demo import MIB, machine  # noqa: E402
from demo_vllm import needed_bytes, new_group, status_of, take_all_again  # noqa: E402
from vllm_server import NAME, Load, Server, prompt  # noqa: E402

BUILD = ROOT / "build" / "bench"
FLOOR = 0.2  # of a cache of 256 MiB, and a little more: one longest request


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / ".cache" / "models" / "gemma-3-270m-vllm"))
    parser.add_argument("--spikes", type=int, default=20)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--scheduler")
    parser.add_argument("--kv", type=float, default=256, metavar="MIB")
    parser.add_argument("--beyond", type=float, default=96, metavar="MIB", help="of a spike, beyond what is free (default 96)")
    parser.add_argument("--room", type=float, default=512, metavar="MIB",
                        help="of the limit, above what is needed before the spike (default 512; more where the controller "
                             "has learnt that an answer takes long, and keeps more)")
    parser.add_argument("--prompt-tokens", type=int, default=200, help="with --busy (default 200)")
    parser.add_argument("--rate", type=float, default=500, metavar="MIB/S")
    return parser.parse_args()


class Stream(threading.Thread):
    """One long answer after the other, by the token: the oldest request, so the last to be preempted. Its pauses are steps."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.over, self.times = server, False, []

    def run(self):
        number = 0
        while not self.over and self.server.alive():
            number += 1
            try:
                self._one(prompt(9 * 10**6 + number, 30))
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)

    def _one(self, text):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=300)
        body = {"model": NAME, "prompt": text, "max_tokens": 1900, "temperature": 0, "ignore_eos": True, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        while not self.over and (line := answer.readline()):
            if line.startswith(b"data: {"):
                self.times.append(time.monotonic())
        connection.close()

    def longest_ms(self, begin_s, end_s):
        """The longest pause that touches this time."""
        pauses = [b - a for a, b in zip(self.times, self.times[1:]) if b >= begin_s and a <= end_s]
        return round(1000 * max(pauses, default=0.0), 1)


def make_ready(options, group, server, core):
    """Without a limit the cache grows again, at once, and fills; then there is one, and the controller has time to see it."""
    take_all_again(group, core)
    until = time.monotonic() + 60
    while status_of(core).get("resident_bytes", 0) < 0.9 * options.kv * MIB and time.monotonic() < until:
        fill = Load(server, 4 if options.busy else 16, 16, 300, 1, first=int(time.monotonic() * 1000))
        fill.start()
        fill.join()
    time.sleep(0.5)
    group.set_limit(needed_bytes(group) // MIB * MIB + int(options.room) * MIB)
    time.sleep(2)


def one_spike(options, group, core, program):
    """Microseconds, the longest of those that were seen at it, or None where nothing was given back."""
    before = status_of(core)
    needed = needed_bytes(group)
    beyond = min(options.beyond * MIB, 0.6 * (before.get("resident_bytes", 0) - FLOOR * options.kv * MIB))  # of what can go
    size = max(0, group.limit_bytes - needed) + max(0, int(beyond))
    print("  needs %s of %s, cache %s, withheld %s, spike %s" % tuple(demo.mib(bytes_) for bytes_ in (
        needed, group.limit_bytes, before.get("resident_bytes"), before.get("withheld_bytes"), size)), flush=True)
    process, _ = demo.start_spike(group, program, argparse.Namespace(
        spike_bytes=size, rate_bytes_per_s=options.rate * MIB), argparse.Namespace(hold=1.0, spike_processes=2))
    seen = []
    while process.poll() is None:
        time.sleep(0.3)
        seen.append(status_of(core))
    return max((now["reaction_last_us"] for now in seen if now and now["trimmed_bytes"] > before.get("trimmed_bytes", 0)),
               default=None)


def run(options, group, server, program):
    core, load, stream = server.pids()["core"], None, Stream(server)
    if options.busy:
        load = Load(server, 15, 10**9, options.prompt_tokens, 32, first=10**6)
        load.start()
        stream.start()
    found, steps_ms = [], []
    for number in range(options.spikes):
        make_ready(options, group, server, core)
        began = time.monotonic()
        found.append(one_spike(options, group, core, program))
        steps_ms.append(stream.longest_ms(began, time.monotonic()))
        print(f"  spike {number + 1}: {found[-1]} us; longest step {steps_ms[-1]} ms", flush=True)
        if not server.alive() or group.oom_kills():
            ours = [line for line in server.said().splitlines() if "psi-cache" in line]
            raise SystemExit("%d kills; the last that the server said of its cache:\n%s"
                             % (group.oom_kills(), "\n".join(ours[-60:])))
    if load is not None:
        load.over = stream.over = True
        load.join()
    return found, steps_ms


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
            found, steps_ms = run(options, group, server, program)
            kills, preemptions = group.oom_kills(), server.metric("vllm:num_preemptions_total")
        finally:
            server.stop()
    result = {"command": "make bench-vllm-reaction ARGS=\"%s\"" % " ".join(sys.argv[1:]), "case": case,
              "spikes": len(found), "kills": kills, "preemptions": preemptions, **judged(case, found, steps_ms),
              "reaction_us": found, "longest_step_ms": steps_ms, "machine": machine()}
    (BUILD / f"vllm_reaction-{case}.json").write_text(json.dumps(result, indent=1) + "\n")
    print("%s: %d of %d spikes gave memory back; reaction p50 %s, p99 %s, worst %s ms; bar %s, missed by %d; kills %d, "
          "%d preemptions" % (case, result["answered"], len(found), result["p50_ms"], result["p99_ms"], result["worst_ms"],
                              result["bar"], result["missed"], kills, preemptions or 0))
    return 1 if result["missed"] or kills or not result["answered"] else 0


def judged(case, found, steps_ms):
    seen = sorted(us for us in found if us is not None)
    figures = {name: demo.quantile_ms(seen, share) for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("worst_ms", 1.0))}
    if case == "preempting":
        bar = "200 ms and a step"
        missed = sum(us is not None and us / 1000 > 200 + step for us, step in zip(found, steps_ms))
    else:
        bar_ms = {"idle": 50, "busy": 200}[case]
        bar, missed = f"{bar_ms} ms", sum(us / 1000 > bar_ms for us in seen)
    return {"answered": len(seen), **figures, "bar": bar, "missed": missed}


if __name__ == "__main__":
    sys.exit(main())
