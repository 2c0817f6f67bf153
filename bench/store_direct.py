"""Writing and reading the store's records past the page cache (O_DIRECT) or through it: speed, and what is charged.

In a memory group of its own, each way in a process of its own: records are written to new room, written again over the same
room, their room is freed (a hole), and they are read back, as the store does it. Through the page cache a record is flushed
and dropped from it after each transfer, as the store does where there is no O_DIRECT; "kept" is the same without that. The
last column is the page cache that the group is charged with at the end.
"""
import argparse
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "demo"))
from memory_group import MemoryGroup, NoRights  # noqa: E402

WAYS = ("direct", "cached", "kept")
WAIT_AND_WRITE = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER
PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_uint]


def timed_us(calls):
    times = []
    for call in calls:
        begin_ns = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - begin_ns) / 1000)
    return statistics.median(times), sorted(times)[len(times) * 99 // 100]


def run(way, directory, size, count):
    """One way, in this process. What it prints is read by the other."""
    buffer = mmap.mmap(-1, size)
    buffer.write(os.urandom(size))
    descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | (os.O_DIRECT if way == "direct" else 0), 0o600)

    def write(i):
        assert os.pwritev(descriptor, [buffer], i * size) == size
        if way == "cached":  # the bytes, and not the file system's journal: the file has no name to be found by
            assert libc.sync_file_range(descriptor, i * size, size, WAIT_AND_WRITE) == 0
            os.posix_fadvise(descriptor, i * size, size, os.POSIX_FADV_DONTNEED)

    def read(i):
        assert os.preadv(descriptor, [buffer], i * size) == size
        if way == "cached":
            os.posix_fadvise(descriptor, i * size, size, os.POSIX_FADV_DONTNEED)

    result = {"new": timed_us(lambda i=i: write(i) for i in range(count)),
              "again": timed_us(lambda i=i: write(i) for i in range(count)),
              "read": timed_us(lambda i=i: read(i) for i in range(count))}
    print(json.dumps(result), flush=True)
    sys.stdin.readline()  # the charge is read now
    print(json.dumps(timed_us(lambda i=i: libc.fallocate(descriptor, PUNCH, i * size, size) for i in range(count))))


def number_of(path):
    try:
        with open(path) as file:
            return int(file.read())
    except OSError:
        return None


def cache_bytes(group):
    for name, field in (("memory.stat", "cache"), ("memory.stat", "file")):
        for directory in (group.v1, group.v2):
            if not directory or not os.path.exists(os.path.join(directory, name)):
                continue
            with open(os.path.join(directory, name)) as file:
                for line in file:
                    if line.split()[0] == field:
                        return int(line.split()[1])
    return None


def measure(way, options):
    with MemoryGroup(options.limit_mib << 20) as group:
        child = group.start([sys.executable, __file__, "--way", way, "--directory", options.directory, "--kib",
                             str(options.kib), "--count", str(options.count)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)
        result = json.loads(child.stdout.readline())
        charged = cache_bytes(group)
        result["punch"] = json.loads(child.communicate("\n")[0])
    size = options.kib << 10
    cells = [f"{name} {size / result[name][0]:6.0f} MB/s (p99 {result[name][1] / 1000:5.1f} ms)"
             for name in ("new", "again", "read")]
    print(f"{way:7} {', '.join(cells)}, punch {result['punch'][0]:.0f} us (p99 {result['punch'][1]:.0f}); charged "
          f"{'?' if charged is None else charged >> 20} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", default="/var/tmp")
    parser.add_argument("--kib", type=int, default=576, help="bytes of a record, KiB: 32 tokens of Gemma 3 270M")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--limit-mib", type=int, default=512)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run(options.way, options.directory, options.kib << 10, options.count)
        return 0
    print(f"{options.count} records of {options.kib} KiB below {options.directory}, limit {options.limit_mib} MiB")
    try:
        for way in WAYS:
            measure(way, options)
    except NoRights as error:
        sys.exit(f"no memory group: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
