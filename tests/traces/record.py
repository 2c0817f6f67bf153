"""Records the traces of this directory anew, from real runs: python3 tests/traces/record.py PSI_CACHE [NAME...]

Needs root and a cgroup memory controller (demo/memory_group.py), and about 20 seconds a trace. The loads run in
memory groups of their own, which are removed again; only the one process of the load "oom" is killed.

  oom        256 MiB are held in a group of 512 MiB, which then grows by 100 MiB/s until the kernel kills it
  thrash     a mapped file is read over and over in a group that it fits into, until a neighbour in the same group
             takes what it needs
  load       a mapped file is read for the first time, cold, in a group of 2.5 times its size
  churn      files are written, read and read again, cold, on a machine with memory to spare
  neighbour  another group reads a mapped file twice the size of its limit; our process, outside, has nothing to fear

--expect writes the .expected files from the traces that are there and records nothing.
"""
import argparse
import contextlib
import mmap
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "demo"))
from memory_group import MemoryGroup  # noqa: E402

MIB = 1 << 20

# ---- Loads: each runs in a process of its own, "record.py --load NAME ARGUMENTS" ---------------------


def ready():
    print("ready", flush=True)


def hold(size):
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(0, size, MIB):
        memory.write(MIB * b"\1")
    return memory


def grow(begin_mib, mib_per_s, wait_s):
    """Holds some memory, and after a while takes more, without end."""
    held = [hold(begin_mib * MIB)]
    ready()
    time.sleep(wait_s)
    begin = time.monotonic()
    while True:
        held.append(hold(MIB))
        time.sleep(max(0, begin + (len(held) - 1) / mib_per_s - time.monotonic()))


def reread(path, seconds, warm):
    """Reads a mapped file over and over, a byte a page, as weights are read for each token. warm: ready after the
    first time; else with a second to go before it."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        if warm:
            sum(pages[::mmap.PAGESIZE])
        ready()
        time.sleep(0 if warm else 1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for begin in range(0, len(pages), 8 * MIB):
                sum(pages[begin:begin + 8 * MIB:mmap.PAGESIZE])
                time.sleep(0.0005)


def hold_for(mib, seconds):
    held = hold(mib * MIB)
    ready()
    time.sleep(seconds)
    del held


def churn(directory, mib, seconds):
    """A copy, a cold read: all the page cache that a machine has to spare."""
    block, end = os.urandom(MIB), time.monotonic() + seconds
    ready()
    while time.monotonic() < end:
        path = os.path.join(directory, "churn")
        with open(path, "wb") as file:
            for _ in range(mib):
                file.write(block)
                if time.monotonic() > end:
                    break
            os.fsync(file.fileno())
        for _ in range(2):
            forget(path)
            with open(path, "rb") as file:
                while file.read(MIB) and time.monotonic() < end:
                    pass


LOADS = {"grow": (grow, int, int, float), "reread": (reread, str, float, int), "hold": (hold_for, int, float),
         "churn": (churn, str, int, float)}


def start(group, name, *arguments):
    """A load, in the group, that has come to its first line."""
    command = [sys.executable, str(HERE / "record.py"), "--load", name, *map(str, arguments)]
    process = group.start(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


# ---- Recordings --------------------------------------------------------------------------------------


def forget(path):
    """Page cache belongs to the group that read it first: so that it is read anew, by the one that uses it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def big_file(mib):
    # On a disk: a file in memory could not be dropped and read again.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        path = os.path.join(directory, "weights")
        with open(path, "wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
        forget(path)
        yield path


@contextlib.contextmanager
def recording(tool, name, pid, seconds, interval_ms=None):
    command = [tool, "record", str(pid), "-o", str(HERE / (name + ".trace")), "--seconds", str(seconds)]
    recorder = subprocess.Popen(command + (["--interval", str(interval_ms)] if interval_ms else []))
    try:
        yield recorder
        recorder.wait(timeout=seconds + 10)
    finally:
        recorder.kill()
        recorder.wait()


def record_oom(tool):
    with MemoryGroup(512 * MIB) as group:
        process = start(group, "grow", 256, 100, 2)
        with recording(tool, "oom", process.pid, 20):
            process.wait(timeout=30)
        assert process.returncode == -9, process.returncode
        assert group.oom_kills() == 1


def record_thrash(tool):
    with big_file(200) as path, MemoryGroup(320 * MIB) as group:
        process = start(group, "reread", path, 14, 1)
        with recording(tool, "thrash", process.pid, 12, interval_ms=25):
            time.sleep(4)
            start(group, "hold", 170, 30)
        process.wait(timeout=30)
        assert group.oom_kills() == 0


def record_load(tool):
    with big_file(400) as path, MemoryGroup(1024 * MIB) as group:
        process = start(group, "reread", path, 5, 0)
        with recording(tool, "load", process.pid, 5):
            pass
        process.wait(timeout=30)


def record_churn(tool):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, MemoryGroup() as group:
        process = start(group, "churn", directory, 1024, 12)
        with recording(tool, "churn", process.pid, 11):
            pass
        process.wait(timeout=60)


def record_neighbour(tool):
    with big_file(256) as path, MemoryGroup(128 * MIB) as group, MemoryGroup() as own:
        if own.v1 and own.v2:
            # In no v2 group: its stall is the whole machine's, which the neighbour raises.
            os.rmdir(own.v2)
            own.v2 = None
        ours = start(own, "hold", 200, 30)
        with recording(tool, "neighbour", ours.pid, 12, interval_ms=25):
            time.sleep(1)
            for _ in range(2):
                start(group, "reread", path, 30, 0)
        ours.kill()
        ours.wait()


RECORDINGS = {"oom": record_oom, "thrash": record_thrash, "load": record_load, "churn": record_churn, "neighbour": record_neighbour}


def expect(tool, name):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PSI_CACHE_")}
    answer = subprocess.run([tool, "replay", str(HERE / (name + ".trace"))], check=True, capture_output=True,
                            env=environment)
    (HERE / (name + ".expected")).write_bytes(answer.stdout)
    print("%-10s %s" % (name, answer.stdout.decode().split("samples in")[-1].splitlines()[1]))


def main():
    if sys.argv[1:2] == ["--load"]:
        call, *kinds = LOADS[sys.argv[2]]
        return call(*(kind(text) for kind, text in zip(kinds, sys.argv[3:])))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("psi_cache", help="the command to record with")
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join(RECORDINGS))
    parser.add_argument("--expect", action="store_true", help="only write the .expected files anew")
    arguments = parser.parse_args()
    for name in arguments.names or RECORDINGS:
        if not arguments.expect:
            RECORDINGS[name](arguments.psi_cache)
        expect(arguments.psi_cache, name)


if __name__ == "__main__":
    main()
