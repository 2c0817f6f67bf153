"""Pictures of what the kernel says before it kills, and while a model crawls: docs/signals-oom.png, signals-thrash.png.

Purpose: to see why avg10 is not enough. Stock llama.cpp (Gemma 3 270M, 32K context) in a memory group of its own beside
a program that takes memory. Three cases, each with all signals of the group sampled every 10 ms:
  mapped   the spike exceeds the limit; the weights are mapped, so the kernel can take them first, then it kills
  locked   the same with the weights locked: nothing can be reclaimed, and the kernel kills almost at once
  thrash   the spike ends below the limit but leaves less than the weights need: nobody is killed, each token re-reads
           the weights from the disk
Command: .venv/bin/python bench/signals_picture.py     (about 80 s; writes build/bench/signals_picture.json and docs/)
Bar: both oom cases end in a real kill while avg10 is still below 10 %, and in the thrash case a token takes 10 times
what it took before. Ends with 1 when that is not what happened.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "demo"))
import demo  # noqa: E402
from figures import quantile  # noqa: E402
from memory_group import MemoryGroup, NoRights  # noqa: E402

BUILD = os.path.join(HERE, "..", "build", "bench")
DOCS = os.path.join(HERE, "..", "docs")
MIB = 1024 * 1024
SAMPLE_INTERVAL_S = 0.010
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
START_LIMIT_S = 180
CASES = ("mapped", "locked", "thrash")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one (may be repeated); the others are "
                        "taken from the last run's build/bench/signals_picture.json")
    parser.add_argument("--draw-only", action="store_true", help="draw the last run's figures again")
    parser.add_argument("--rate", type=float, default=500, metavar="MIB/S", help="of the spike (default 500)")
    parser.add_argument("--room", type=float, default=100, metavar="MIB",
                        help="thrash: what the spike leaves for weights of 241 MiB (default 100)")
    parser.add_argument("--hold", type=float, default=24, metavar="S", help="thrash: how long (default 24)")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--model")
    parser.add_argument("--docs", default=DOCS, metavar="DIRECTORY", help="where the pictures go (default docs/)")
    return parser.parse_args()


# ---- one engine, one spike, one sampler --------------------------------------------------------------

class StockEngine:
    """demo/generate.py as a child in the group; its events, read by a thread."""

    def __init__(self, group, model, lock_weights, prompt_tokens):
        read_end, write_end = os.pipe()
        # One thread: the other CPU is the spike's and the sampler's.
        command = [sys.executable, os.path.join(HERE, "..", "demo", "generate.py"), "--mode", "stock", "--model", model,
                   "--prompt-tokens", str(prompt_tokens), "--tokens", "30000", "--threads", "1", "--lock-weights",
                   "on" if lock_weights else "off", "--events-fd", str(write_end)]
        self._log = tempfile.TemporaryFile()
        self.process = group.start(command, pass_fds=(write_end,), stdin=subprocess.DEVNULL, stdout=self._log,
                                   stderr=self._log)
        os.close(write_end)
        self.steps, self.ready = [], threading.Event()  # steps: [end_s, step_us]
        self._pipe = os.fdopen(read_end)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._pipe:
            event = json.loads(line)
            if event["event"] == "token":
                self.steps.append([event["time_s"], event["step_us"]])
            elif event["event"] == "prefill_done":
                self.ready.set()

    def wait_until_decoding(self):
        deadline_s = time.monotonic() + START_LIMIT_S
        while not self.ready.wait(0.1):
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                self._log.seek(0)
                raise RuntimeError("the engine did not start: " + self._log.read().decode("utf-8", "replace")[-1500:])


class Sampler:
    """All signals of the group and of the engine, as the kernel has them at one instant."""

    def __init__(self, group, engine):
        self._group, self._engine = group, engine
        self._statm = "/proc/%d/statm" % engine.process.pid
        self.samples = []

    def _mapped_bytes(self):
        try:
            with open(self._statm) as file:
                return int(file.read().split()[2]) * PAGE_BYTES
        except (OSError, IndexError):
            return 0

    def _stat(self):
        with open((self._group.v1 or self._group.v2) + "/memory.stat") as file:
            return dict((line.split()[0], int(line.split()[1])) for line in file)

    def sample(self):
        time_s, usage_bytes, stat = time.monotonic(), self._group.usage(), self._stat()
        some, full = (self._group.pressure() or "\n").splitlines()[:2]
        self.samples.append({
            "time_s": time_s, "usage_bytes": usage_bytes, "cache_bytes": stat.get("cache", stat.get("file")),
            "locked_bytes": stat.get("unevictable", 0), "mapped_bytes": self._mapped_bytes(),
            "major_faults": stat.get("pgmajfault", 0),
            "refaults": stat.get("workingset_refault_file", 0) + stat.get("workingset_refault_anon", 0),
            "avg10_percent": float(some.split("avg10=")[1].split()[0]), "some_us": int(some.rsplit("total=", 1)[1]),
            "full_us": int(full.rsplit("total=", 1)[1]), "oom_kills": self._group.oom_kills()})
        return self.samples[-1]

    def run(self, until):
        """Every 10 ms until `until(sample)`."""
        due_s = time.monotonic()
        while not until(self.sample()):
            due_s = max(due_s + SAMPLE_INTERVAL_S, time.monotonic())
            time.sleep(max(0.0, due_s - time.monotonic()))

    def run_for(self, seconds):
        end_s = time.monotonic() + seconds
        self.run(lambda sample: sample["time_s"] >= end_s)


def private_bytes(group, model):
    """What the group needs and cannot give: usage less the page cache."""
    return group.usage() - group.file_bytes()[0]


def spike_command(options, size_bytes, hold_s):
    # Two processes, so that the model is the biggest of the group and the one that is killed.
    return [demo.spike_program(), str(int(size_bytes)), "%.0f" % (options.rate * MIB), str(hold_s), "2"]


def run_case(case, options, model):
    """Returns the case's record: samples, steps, when the spike began, when the kill came."""
    demo.forget_file_pages(model)  # so that the weights are charged to the new group
    with MemoryGroup(None) as group:
        if group.pressure() is None:
            raise SystemExit("no memory.pressure of the group here (a cgroup v2 tree and psi=1 are needed)")
        engine = StockEngine(group, model, case == "locked", options.prompt_tokens)
        sampler = Sampler(group, engine)
        spike = None
        try:
            engine.wait_until_decoding()
            needed_bytes = private_bytes(group, model)
            limit_bytes = (needed_bytes + os.path.getsize(model) + 300 * MIB) // MIB * MIB
            group.set_limit(limit_bytes)
            sampler.run_for(3.0)
            spike_bytes = limit_bytes - needed_bytes - options.room * MIB if case == "thrash" else limit_bytes
            spike_begin_s = time.monotonic()
            spike = group.start(spike_command(options, spike_bytes, options.hold if case == "thrash" else 30),
                                stdout=subprocess.DEVNULL)
            if case == "thrash":
                sampler.run(lambda _: spike.poll() is not None)
                sampler.run_for(3.0)
            else:
                sampler.run(lambda sample: sample["oom_kills"] or sample["time_s"] > spike_begin_s + 30)
                sampler.run_for(0.5)
        finally:
            for process in (spike, engine.process):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()
        kill = next((s for s in sampler.samples if s["oom_kills"]), None)
        return {"case": case, "limit_bytes": limit_bytes, "needed_bytes": needed_bytes, "spike_bytes": spike_bytes,
                "spike_begin_s": spike_begin_s, "kill_s": kill["time_s"] if kill else None,
                "engine_killed": engine.process.returncode == -signal.SIGKILL and kill is not None,
                "weights_bytes": os.path.getsize(model), "steps": list(engine.steps), "samples": sampler.samples}


# ---- signals from samples ----------------------------------------------------------------------------

def headroom_bytes(record, sample):
    """What can still be allocated: below the limit, with the page cache that nobody needs counted as free. The
    weights that the engine reads at every token are needed."""
    needed = max(sample["mapped_bytes"], sample["locked_bytes"])
    spare = max(0, sample["cache_bytes"] - needed)
    return max(0, record["limit_bytes"] - sample["usage_bytes"] + spare)


def rates(samples, key, window_s=0.1, scale=1.0):
    """[(time_s, change a second over the last window)]"""
    points, first = [], 0
    for sample in samples:
        while samples[first]["time_s"] < sample["time_s"] - window_s:
            first += 1
        before = samples[max(first - 1, 0)]
        if sample["time_s"] - before["time_s"] >= window_s * 0.9:
            points.append((sample["time_s"], (sample[key] - before[key]) / (sample["time_s"] - before["time_s"]) * scale))
    return points


def first_time(points, reached):
    return next((time_s for time_s, value in points if reached(value)), None)


def lead_s(kill_s, time_s):
    return None if time_s is None or kill_s is None else round(kill_s - time_s, 3)


def oom_summary(record):
    """What each signal showed in the last second, and how long before the kill it first showed anything."""
    before = [s for s in record["samples"] if record["kill_s"] and s["time_s"] < record["kill_s"]]
    last = [s for s in before if s["time_s"] >= record["kill_s"] - 1.0]
    if not last:
        return None
    quiet = [s for s in before if s["time_s"] < record["spike_begin_s"]]
    room = [(s["time_s"], headroom_bytes(record, s)) for s in before if s["time_s"] >= record["spike_begin_s"]]
    stall0_us = quiet[-1]["some_us"]
    stall = [(s["time_s"], s["some_us"] - stall0_us) for s in before if s["time_s"] >= record["spike_begin_s"]]

    def grew(key):
        return last[-1][key] - last[0][key]

    return {"avg10_at_kill_percent": last[-1]["avg10_percent"], "stall_last_second_ms": round(grew("some_us") / 1000, 1),
            "major_faults_last_second": grew("major_faults"), "refaults_last_second": grew("refaults"),
            "headroom_second_before_bytes": headroom_bytes(record, last[0]),
            "headroom_below_128_mib_lead_s": lead_s(record["kill_s"], first_time(room, lambda v: v < 128 * MIB)),
            "headroom_zero_lead_s": lead_s(record["kill_s"], first_time(room, lambda v: v < 4 * MIB)),
            "stall_1_ms_lead_s": lead_s(record["kill_s"], first_time(stall, lambda v: v >= 1000)),
            "stall_10_ms_lead_s": lead_s(record["kill_s"], first_time(stall, lambda v: v >= 10000)),
            "avg10_above_10_lead_s": lead_s(record["kill_s"], first_time(
                [(s["time_s"], s["avg10_percent"]) for s in before], lambda v: v > 10))}


def thrash_summary(record):
    held_s = record["spike_begin_s"] + record["spike_bytes"] / record["rate_bytes_per_s"]
    end_s = held_s + record["hold_s"]
    held = [s for s in record["samples"] if held_s + 1 <= s["time_s"] <= end_s]
    before_us = [us for at, us in record["steps"] if at < record["spike_begin_s"]]
    during_us = [us for at, us in record["steps"] if held_s + 1 <= at <= end_s]

    def a_second(key):
        return (held[-1][key] - held[0][key]) / (held[-1]["time_s"] - held[0]["time_s"])

    return {"step_before_p50_ms": quantile(before_us, 0.5) / 1000, "step_during_p50_ms": (quantile(during_us, 0.5) or 0) / 1000,
            "tokens_during": len(during_us), "avg10_most_percent": max(s["avg10_percent"] for s in held),
            "stall_share": a_second("some_us") / 1e6, "major_faults_a_second": a_second("major_faults"),
            "refaults_a_second": a_second("refaults"), "oom_kills": held[-1]["oom_kills"]}


# ---- pictures ----------------------------------------------------------------------------------------

BLUE, ORANGE, RED, GREY, GREEN, VIOLET = "#1f77b4", "#c77f1a", "#c62828", "#777777", "#2e7d32", "#6a3d9a"


def pyplot():
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                         "grid.color": "#e8e8e8", "grid.linewidth": 0.6, "axes.axisbelow": True})
    return plt


def plot(axis, points, zero_s, colour, **more):
    axis.plot([t - zero_s for t, _ in points], [v for _, v in points], color=colour, linewidth=1.5, **more)


def note(axis, text, x=0.02, y=0.93, colour="#222222", ha="left", va="top"):
    axis.text(x, y, text, transform=axis.transAxes, ha=ha, va=va, fontsize=9, color=colour,
              bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5})


def draw_headroom(axis, record, zero_s):
    points = [(s["time_s"], headroom_bytes(record, s) / MIB) for s in record["samples"]]
    axis.fill_between([t - zero_s for t, _ in points], [v for _, v in points], color=BLUE, alpha=0.15, linewidth=0)
    plot(axis, points, zero_s, BLUE)
    quiet = max(v for t, v in points if t <= record["spike_begin_s"])
    axis.set_ylim(0, 1.45 * quiet)  # what a killed process leaves behind is of no interest


def draw_avg10(axis, record, zero_s, top):
    plot(axis, [(s["time_s"], s["avg10_percent"]) for s in record["samples"]], zero_s, RED)
    axis.set_ylim(-0.02 * top, top)


def draw_stall(axis, record, zero_s):
    plot(axis, rates(record["samples"], "some_us", 0.1, 1e-4), zero_s, ORANGE)
    axis.set_ylim(-2, 100)


def draw_faults(axis, record, zero_s):
    plot(axis, rates(record["samples"], "refaults"), zero_s, GREEN)
    plot(axis, rates(record["samples"], "major_faults"), zero_s, VIOLET)
    axis.set_yscale("symlog", linthresh=10)
    axis.set_ylim(0, 1e6)
    axis.set_yticks([0, 10, 100, 1e3, 1e4, 1e5])
    axis.set_yticklabels(["0", "10", "100", "1,000", "10,000", "100,000"])


def mark_kill(axes):
    for axis in axes:
        axis.axvspan(-1, 0, color="#fbeaea", linewidth=0, zorder=0)
        axis.axvline(0, color=RED, linewidth=1.8)


def mark_spike(axis, record, spike_s):
    left = spike_s > -2
    axis.axvline(spike_s, color=GREY, linewidth=1, linestyle=":")
    axis.annotate("another program begins\nto take %.0f MiB a second" % (record["rate_bytes_per_s"] / MIB), (spike_s, 0.97),
                  xycoords=("data", "axes fraction"), xytext=(-5 if left else 5, 0), textcoords="offset points", fontsize=8,
                  color=GREY, ha="right" if left else "left", va="top")
    axis.annotate("killed here", (0, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), va="bottom", ha="center",
                  textcoords="offset points", color=RED, fontweight="bold", fontsize=10)


def before(value, unit="s"):
    return "never" if value is None else "%.2f %s before" % (value, unit)


def thousands(value):
    return "{:,.0f}".format(value)


def draw_oom(records, path, machine):
    plt = pyplot()
    figure, grid = plt.subplots(4, len(records), figsize=(5.6 * len(records) + 0.4, 9.4), sharex=True, sharey="row",
                                squeeze=False)
    for column, record in enumerate(records):
        axes, zero_s, s = grid[:, column], record["kill_s"], record["summary"]
        mark_kill(axes)
        draw_headroom(axes[0], record, zero_s)
        draw_avg10(axes[1], record, zero_s, 100)
        draw_stall(axes[2], record, zero_s)
        draw_faults(axes[3], record, zero_s)
        mark_spike(axes[0], record, record["spike_begin_s"] - zero_s)
        note(axes[0], "below 128 MiB: %s\nused up: %s" % (before(s["headroom_below_128_mib_lead_s"]),
                                                          before(s["headroom_zero_lead_s"])), y=0.34, colour=BLUE)
        for level, text in ((70, "trim at 70 % would be here"), (10, "10 %")):
            axes[1].axhline(level, color=GREY, linewidth=0.9, linestyle="--")
            axes[1].annotate(text, (0.02, level), xycoords=("axes fraction", "data"), xytext=(0, 2),
                             textcoords="offset points", fontsize=8, color=GREY)
        note(axes[1], "when the kernel kills: %.2f %%" % s["avg10_at_kill_percent"], y=0.55, colour=RED)
        note(axes[2], "last second: %.1f ms stalled in all\nfirst 1 ms: %s the kill\nfirst 10 ms: %s the kill"
             % (s["stall_last_second_ms"], before(s["stall_1_ms_lead_s"]), before(s["stall_10_ms_lead_s"])), colour=ORANGE)
        note(axes[3], "last second: %s refaults\n(pages that had been in use, read again)"
             % thousands(s["refaults_last_second"]), colour=GREEN)
        note(axes[3], "last second: %s major faults" % thousands(s["major_faults_last_second"]), y=0.60, colour=VIOLET)
        axes[3].set_xlabel("seconds before the kill")
        axes[0].set_title("weights mapped: the kernel can take them first" if record["case"] == "mapped" else
                          "weights locked: nothing left to reclaim", fontsize=11, fontweight="bold", pad=18)
    finish_oom(figure, grid, records, path, machine, plt)


def finish_oom(figure, grid, records, path, machine, plt):
    for axis, text in zip(grid[:, 0], ("headroom (MiB)", "memory.pressure\navg10 of \"some\" (%)",
                                       "stalled, of the last\n100 ms (%), from total=", "a second, in\nthe group")):
        axis.set_ylabel(text)
    grid[0, 0].set_xlim(-3, 0.3)
    figure.suptitle("The last seconds of a language model: avg10 does not see the kill coming, headroom does",
                    fontsize=13, fontweight="bold")
    footer(figure, machine, "stock llama.cpp, Gemma 3 270M, 32K context; memory limit %d MiB; sampled every 10 ms; shaded: the last second"
           % (records[0]["limit_bytes"] // MIB))
    figure.tight_layout(rect=(0, 0.02, 1, 1.0))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def footer(figure, machine, text):
    figure.text(0.5, 0.006, "%s. %s, %d CPUs, Linux %s, no swap." % (text, machine["cpu"], machine["cpus"],
                                                                  machine["kernel"]), ha="center", fontsize=7.5, color=GREY)


def draw_steps(axis, record, zero_s):
    axis.scatter([at - zero_s for at, _ in record["steps"]], [us / 1000 for _, us in record["steps"]], s=9, color="#222222",
                 linewidths=0)
    axis.set_yscale("log")
    axis.set_ylim(5, 20000)
    axis.set_yticks([10, 100, 1000, 10000])
    axis.set_yticklabels(["10 ms", "100 ms", "1 s", "10 s"])


def draw_thrash(record, path, machine):
    plt = pyplot()
    figure, axes = plt.subplots(5, 1, figsize=(9, 10), sharex=True)
    zero_s, s = record["spike_begin_s"], record["summary"]
    full_s = record["spike_bytes"] / record["rate_bytes_per_s"]
    for axis in axes:
        axis.axvspan(0, full_s + record["hold_s"], color="#f6f1e4", linewidth=0, zorder=0)
    draw_steps(axes[0], record, zero_s)
    draw_avg10(axes[1], record, zero_s, 100)
    draw_stall(axes[2], record, zero_s)
    draw_headroom(axes[3], record, zero_s)
    draw_faults(axes[4], record, zero_s)
    axes[1].axhline(70, color=GREY, linewidth=0.9, linestyle="--")
    axes[1].annotate("trim at 70 % would be here", (0.01, 70), xycoords=("axes fraction", "data"), xytext=(0, 2),
                     textcoords="offset points", fontsize=8, color=GREY)
    note(axes[0], "a token takes %.0f ms instead of %.0f: %.0f times as long. Nobody is killed."
         % (s["step_during_p50_ms"], s["step_before_p50_ms"], s["step_during_p50_ms"] / s["step_before_p50_ms"]), x=0.14, y=0.3)
    note(axes[1], "at most %.2f %%" % s["avg10_most_percent"], x=0.14, y=0.5, colour=RED)
    # In one step, all beyond what it takes unpressed is waiting.
    waits = 1 - s["step_before_p50_ms"] / s["step_during_p50_ms"]
    note(axes[2], "%.0f %% on average, while the model waits %.0f %% of its time"
         % (100 * s["stall_share"], 100 * waits), x=0.14, y=0.93, colour=ORANGE)
    note(axes[3], "used up, and it stays so: what the weights need is missing", x=0.14, y=0.6, colour=BLUE)
    note(axes[4], "%s refaults a second (pages that had been in use, read again)" % thousands(s["refaults_a_second"]), x=0.14,
         y=0.72, colour=GREEN)
    note(axes[4], "%s major faults a second" % thousands(s["major_faults_a_second"]), x=0.14, y=0.56, colour=VIOLET)
    finish_thrash(figure, axes, record, path, machine, plt, full_s)


def finish_thrash(figure, axes, record, path, machine, plt, full_s):
    for axis, text in zip(axes, ("time for\na token", "memory.pressure\navg10 of \"some\" (%)", "stalled, of the\nlast 100 ms (%)",
                                 "headroom (MiB)", "a second, in\nthe group")):
        axis.set_ylabel(text)
    axes[4].set_xlabel("seconds since another program began to take memory (shaded: until it lets go)")
    axes[0].set_xlim(-3, full_s + record["hold_s"] + 3)
    figure.suptitle("A model that crawls: its weights do not fit beside the others any more", fontsize=13, fontweight="bold")
    footer(figure, machine, "stock llama.cpp, Gemma 3 270M, weights of %d MiB mapped; limit %d MiB"
           % (record["weights_bytes"] // MIB, record["limit_bytes"] // MIB))
    figure.tight_layout(rect=(0, 0.02, 1, 1.0))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(records, options, machine):
    os.makedirs(options.docs, exist_ok=True)
    killed = [records[case] for case in ("mapped", "locked") if records.get(case, {}).get("kill_s")]
    if killed:
        draw_oom(killed, os.path.join(options.docs, "signals-oom.png"), machine)
    if "thrash" in records:
        draw_thrash(records["thrash"], os.path.join(options.docs, "signals-thrash.png"), machine)


# ---- the bar -----------------------------------------------------------------------------------------

def checks(records):
    found = []
    for case in ("mapped", "locked"):
        if case in records:
            summary = records[case]["summary"]
            found.append(("%s: killed for real" % case, records[case]["engine_killed"]))
            found.append(("%s: avg10 below 10 %% when killed" % case,
                          bool(summary) and summary["avg10_at_kill_percent"] < 10))
    if "thrash" in records:
        s = records["thrash"]["summary"]
        found.append(("thrash: a token takes 10 times as long, nobody is killed",
                      s["step_during_p50_ms"] >= 10 * s["step_before_p50_ms"] and not s["oom_kills"]))
    return found


def measure(options, path):
    model = os.path.abspath(options.model) if options.model else demo.model_file(options)
    records = load(path)["records"] if options.case and os.path.exists(path) else {}
    for case in options.case or CASES:
        print("%s ..." % case, flush=True)
        record = run_case(case, options, model)
        record.update(rate_bytes_per_s=options.rate * MIB, hold_s=options.hold)
        records[case] = record
    return {"records": records, "machine": demo.machine()}


def load(path):
    with open(path) as file:
        return json.load(file)


def main():
    options = arguments()
    for directory in (BUILD, demo.BUILD):
        os.makedirs(directory, exist_ok=True)
    path = os.path.join(BUILD, "signals_picture.json")
    try:
        result = load(path) if options.draw_only else measure(options, path)
    except NoRights as error:
        raise SystemExit(str(error))
    records, machine = result["records"], result["machine"]
    for record in records.values():
        record["summary"] = thrash_summary(record) if record["case"] == "thrash" else oom_summary(record)
    demo.save(path, result)
    print("%s, %d CPUs, Linux %s" % (machine["cpu"], machine["cpus"], machine["kernel"]))
    for case, record in records.items():
        print("%s: %s" % (case, json.dumps(record["summary"])))
    found = checks(records)
    for text, true in found:
        print("%s  %s" % ("yes" if true else "NO ", text))
    draw(records, options, machine)
    print("pictures: docs/signals-oom.png, docs/signals-thrash.png; figures: build/bench/signals_picture.json")
    return 0 if all(true for _, true in found) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
