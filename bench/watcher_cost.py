"""What the watcher thread costs: processor time and wake-ups while memory is plenty, processor time near a limit.

Purpose: a library that watches all day must not be seen in the battery or in top. Hosts: `host`, a C process with a
full cache and nothing else in it (bench/idle_host.c), and `engine`, llama.cpp with its cache full, idle. Each once
without a limit and once in a memory group with room to spare. The thread is the one named psi-watcher; where no
thread has that name, the one that wakes most while the process is idle.
`near`: llama.cpp decoding in a group that leaves little more than a reserve, and nothing moves: there it looks often.
Command: .venv/bin/python bench/watcher_cost.py [--seconds 60]      (about 6 minutes)
Bar: below 0.1 % of one core and at most 2 wake-ups a second, for each; near 2 %. Ends with 1 above it.
Writes build/bench/watcher_cost.json.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import rig  # noqa: E402

MIB = rig.MIB
THREAD_NAME = "psi-watcher"
SETTLE_S = 5.0  # after the start; the watcher learns that nothing is near
PROBE_S = 5.0   # to find the thread where it has no name
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="measured for each (default 60)")
    parser.add_argument("--host", choices=("host", "engine", "near"), action="append", help="only this one (may be repeated)")
    parser.add_argument("--group-mib", type=float, default=3072, help="limit of the group with room to spare")
    parser.add_argument("--cache-mib", type=float, default=64, help="cache of the C host (default 64)")
    parser.add_argument("--library-dir", help="where libpsicache.so is; default: the installed package's")
    parser.add_argument("--share", type=float, default=0.001, help="bar: of one core (default 0.001)")
    parser.add_argument("--wake-ups", type=float, default=2.0, help="bar: a second (default 2)")
    parser.add_argument("--near-mib", type=float, default=250, help="what the group leaves of `near` (default 250)")
    parser.add_argument("--near-share", type=float, default=0.02, help="bar there: of one core (default 0.02)")
    options = parser.parse_args()
    options.hosts = options.host or ["host", "engine", "near"]
    return options


# ---- what a thread has used --------------------------------------------------------------------------

def read(path):
    with open(path) as file:
        return file.read()


def threads(pid):
    """{thread id: what it has used so far}"""
    found = {}
    for tid in os.listdir("/proc/%d/task" % pid):
        base = "/proc/%d/task/%s" % (pid, tid)
        try:
            status = dict(line.split(":\t", 1) for line in read(base + "/status").splitlines() if ":\t" in line)
            fields = read(base + "/stat").rsplit(")", 1)[1].split()
            # schedstat counts nanoseconds; stat's ticks of 10 ms would round a few microseconds a wake-up to nothing.
            run_ns = int(read(base + "/schedstat").split()[0]) if os.path.exists(base + "/schedstat") else None
            found[int(tid)] = {"name": read(base + "/comm").strip(), "run_ns": run_ns,
                               "ticks": int(fields[11]) + int(fields[12]),
                               "wake_ups": int(status["voluntary_ctxt_switches"]),
                               "preempted": int(status["nonvoluntary_ctxt_switches"])}
        except (OSError, KeyError):
            pass  # ended meanwhile
    return found


def find_watcher(pid):
    """(thread id, how it was found)"""
    before = threads(pid)
    for tid, thread in before.items():
        if thread["name"] == THREAD_NAME:
            return tid, "by its name"
    time.sleep(PROBE_S)
    woken = {tid: thread["wake_ups"] - before[tid]["wake_ups"] for tid, thread in threads(pid).items()
             if tid in before and tid != pid}
    if not woken:
        raise RuntimeError("process %d has no second thread: is the library in it?" % pid)
    return max(woken, key=woken.get), "by its wake-ups (no thread is named %s)" % THREAD_NAME


def measure(pid, seconds):
    time.sleep(SETTLE_S)
    tid, how = find_watcher(pid)
    begin_s, before = time.monotonic(), threads(pid)
    time.sleep(seconds)
    took_s, after = time.monotonic() - begin_s, threads(pid)
    if tid not in after or tid not in before:
        raise RuntimeError("the watcher thread ended")
    used = {key: after[tid][key] - before[tid][key] for key in ("ticks", "wake_ups", "preempted")}
    run_ns = None if after[tid]["run_ns"] is None else after[tid]["run_ns"] - before[tid]["run_ns"]
    cpu_s = used["ticks"] / TICKS_A_SECOND if run_ns is None else run_ns / 1e9
    others_ns = sum((t["run_ns"] or 0) - (before[i]["run_ns"] or 0) for i, t in after.items() if i in before and i != tid)
    return {"thread": after[tid]["name"], "found": how, "took_s": took_s, "cpu_s": cpu_s, "core_share": cpu_s / took_s,
            "cpu_ticks_s": used["ticks"] / TICKS_A_SECOND, "wake_ups": used["wake_ups"],
            "wake_ups_a_second": used["wake_ups"] / took_s, "preempted": used["preempted"],
            "us_a_wake_up": cpu_s * 1e6 / max(1, used["wake_ups"]), "other_threads_cpu_s": others_ns / 1e9}


# ---- hosts -------------------------------------------------------------------------------------------

def library_dir(options):
    if options.library_dir:
        return os.path.abspath(options.library_dir)
    from psi_cache import _native
    return str(_native.find("libpsicache.so").parent)


def compile_host(options, directory):
    path, libraries = os.path.join(directory, "idle_host"), library_dir(options)
    subprocess.run(["cc", "-O2", "-I", os.path.join(HERE, "..", "include"), os.path.join(HERE, "idle_host.c"), "-o", path,
                    "-L", libraries, "-Wl,-rpath," + libraries, "-lpsicache"], check=True)
    return path


def measure_host(options, group):
    with tempfile.TemporaryDirectory() as directory:
        start = group.start if group is not None else subprocess.Popen
        process = start([compile_host(options, directory), str(int(options.cache_mib * MIB))], stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE)
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the C host did not start")
            return measure(process.pid, options.seconds)
        finally:
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def measure_engine(options, group):
    """Cache full, no step running, and no reports: the engine's own threads sleep."""
    engine = rig.Engine("auto", weights="locked", group=group, stats_ms=0)
    try:
        engine.wait_ready(20)
        engine.order("pause")
        return measure(engine.pid, options.seconds)
    finally:
        engine.finish()


def measure_near(options, group):
    """It decodes on one thread. The limit comes when the cache is there."""
    engine = rig.Engine("auto", weights="locked", group=group, stats_ms=0, threads=1)
    try:
        engine.wait_ready(20)
        group.set_limit(group.usage() + int(options.near_mib * MIB))
        return measure(engine.pid, options.seconds)
    finally:
        engine.finish()


def one(options, host, limit_bytes):
    if host == "near":
        with rig.MemoryGroup() as group:
            return {**measure_near(options, group), "near_bytes": int(options.near_mib * MIB)}
    run = measure_host if host == "host" else measure_engine
    if limit_bytes is None:
        return run(options, None)
    with rig.MemoryGroup(limit_bytes) as group:
        return run(options, group)


def tell(row):
    rig.say("%-6s  %-17s  %.4f %% of a core, %.2f wake-ups a second, %.0f us each; thread %s, found %s; other threads "
            "%.4f %%   %s" % (
                row["host"], "%d MiB are left" % (row["near_bytes"] // MIB) if "near_bytes" in row else
                "no limit" if row["limit_bytes"] is None else "group of %d MiB" % (row["limit_bytes"] // MIB),
                100 * row["core_share"], row["wake_ups_a_second"], row["us_a_wake_up"], row["thread"], row["found"],
                100 * row["other_threads_cpu_s"] / row["took_s"], "ok" if row["met"] else "MISSED"))


def main():
    rig.leave_on_signals()
    options = arguments()
    rig.say(rig.machine_line())
    if "engine" in options.hosts:
        rig.prepare()
    os.makedirs(rig.BUILD, exist_ok=True)
    rows = []
    for host in options.hosts:
        for limit_bytes in (None,) if host == "near" else (None, int(options.group_mib * MIB)):
            row = {"host": host, "limit_bytes": limit_bytes, **one(options, host, limit_bytes)}
            # One more is a matter of where the measured time begins.
            row["met"] = row["core_share"] < options.near_share if host == "near" else (
                row["core_share"] < options.share and row["wake_ups"] <= options.wake_ups * row["took_s"] + 1)
            rows.append(row)
            tell(row)
    rig.save("watcher_cost.json", {"rows": rows, "bar": {"core_share": options.share, "near_share": options.near_share,
                                           "wake_ups_a_second": options.wake_ups},
                                   "machine": rig.demo.machine()})
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as error:
        raise SystemExit(str(error))
