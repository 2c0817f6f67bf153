"""What other programs do to memory: a compile, a large copy, a cold model load, page-cache churn, a thrashing
neighbour, a square wave.

Purpose: one kind of load each for the other benches, and to try by hand. Each runs as its own process, in the memory
group of whoever started it, and says in JSON lines what it did.
Command: .venv/bin/python bench/loads.py {compile,copy,model,churn,thrash,wave} --seconds 20
Bar: none of its own; ends with 1 when the load could not do its work (a compiler that fails, a full disk).

Files lie in a directory of the load's own, on a disk (build/bench), and go with it: also on Ctrl-C and SIGTERM. Only
`copy` needs much: twice its size. Sizes are bounded; nothing here takes memory that cannot be reclaimed but `wave`,
which takes what it is told. From a bench: `with loads.Load("copy", group) as load: ...`
"""
import argparse
import ctypes
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, "..", "build", "bench")
KIB, MIB = 1024, 1024 * 1024
PIECE_BYTES = 4 * MIB
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
START_LIMIT_S = 120  # until a load says that its files are made
BENIGN = ("compile", "copy", "model", "churn")


def say(event, **fields):
    os.write(1, (json.dumps({"event": event, "time_s": time.monotonic(), **fields}) + "\n").encode())


# ---- files -------------------------------------------------------------------------------------------

def write_file(path, size_bytes):
    """Bytes that no disk and no file system can fold together."""
    piece = os.urandom(PIECE_BYTES)
    with open(path, "wb", buffering=0) as file:
        for at in range(0, size_bytes, PIECE_BYTES):
            file.write(piece[:min(PIECE_BYTES, size_bytes - at)])


def forget_file_pages(path):
    """Drops one file from the page cache; dirty pages have to reach the disk first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_file(path, until_s):
    done_bytes = 0
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(PIECE_BYTES)
        while time.monotonic() < until_s:
            got_bytes = file.readinto(buffer)
            if not got_bytes:
                break
            done_bytes += got_bytes
    return done_bytes


def touch_mapping(path, until_s):
    """Reads one byte of each page through a mapping, as an engine reads its weights."""
    size_bytes = os.path.getsize(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size_bytes, prot=mmap.PROT_READ) as mapped:
        done_bytes = 0
        for at in range(0, size_bytes, PIECE_BYTES):
            if time.monotonic() >= until_s:
                break
            done_bytes += len(mapped[at:at + PIECE_BYTES:PAGE_BYTES]) * PAGE_BYTES
    return done_bytes


# ---- the loads: each does one round and says what it did; called until the time is over --------------

def c_source(number, functions):
    """A C file that gives the optimiser something to do."""
    lines = ["#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>", "#include <math.h>"]
    for i in range(functions):
        lines.append("""
static double f%(i)d(const double *x, double *y, int n) {
    double sum = %(i)d;
    for (int a = 0; a < n; a++)
        for (int b = 0; b < n; b++) {
            y[a] += x[b] * sin(x[a] + %(i)d.5) / (1.0 + fabs(x[(a * b + %(k)d) %% n]));
            if (y[a] > %(k)d.0)
                sum += sqrt(y[a]) * (double)(a ^ b);
        }
    switch (n %% 7) {
    case 0: return sum * 3.0;
    case 1: return sum + y[n / 2];
    case 2: return exp(-sum * sum);
    default: return sum - x[n / 3];
    }
}""" % {"i": i, "k": 3 + (i * 7 + number) % 91})
    calls = "".join("    sum += f%d(x, y, n);\n" % i for i in range(functions))
    lines.append("double unit%d(const double *x, double *y, int n) {\n    double sum = 0;\n%s    return sum;\n}\n"
                 % (number, calls))
    return "\n".join(lines)


def compile_prepare(directory, options):
    if shutil.which(options.compiler) is None:
        raise SystemExit("no %s here" % options.compiler)
    for number in range(options.units):
        with open(os.path.join(directory, "unit%d.c" % number), "w") as file:
            file.write(c_source(number, options.functions))


def compile_round(directory, options, until_s):
    """All units, `jobs` at a time, as make -j does."""
    waiting, running, done = list(range(options.units)), [], 0
    try:
        while (waiting or running) and time.monotonic() < until_s:
            while waiting and len(running) < options.jobs:
                unit = os.path.join(directory, "unit%d" % waiting.pop())
                running.append(subprocess.Popen([options.compiler, "-O2", "-g", "-c", unit + ".c", "-o", unit + ".o"]))
            for process in [p for p in running if p.poll() is not None]:
                running.remove(process)
                if process.returncode != 0:
                    raise SystemExit("the compiler ended with %d" % process.returncode)
                done += 1
            time.sleep(0.01)
    finally:
        for process in running:
            process.kill()
            process.wait()
    return {"units": done}


def copy_prepare(directory, options):
    need_bytes, free_bytes = 2 * options.bytes + 1024 * MIB, shutil.disk_usage(directory).free
    if free_bytes < need_bytes:
        raise SystemExit("%d MiB free on the disk, %d wanted" % (free_bytes // MIB, need_bytes // MIB))
    write_file(os.path.join(directory, "original"), options.bytes)
    forget_file_pages(os.path.join(directory, "original"))


def copy_round(directory, options, until_s):
    """cp as a program: read and write through the page cache, its dirty pages included."""
    copy = os.path.join(directory, "copy")
    process = subprocess.Popen(["cp", "--reflink=never", os.path.join(directory, "original"), copy])
    try:
        while process.poll() is None and time.monotonic() < until_s:
            time.sleep(0.02)
    finally:
        process.kill()
        status = process.wait()
        done_bytes = os.path.getsize(copy) if os.path.exists(copy) else 0
        if os.path.exists(copy):
            os.unlink(copy)
    if status not in (0, -signal.SIGKILL):
        raise SystemExit("cp ended with %d" % status)
    return {"copied_bytes": done_bytes}


def model_prepare(directory, options):
    """A copy of its own: pages of a file that the engine maps could not be dropped."""
    if options.model is None:
        sys.path.insert(0, os.path.join(HERE, "..", "demo"))
        import demo
        options.model = demo.model_file(options)
    shutil.copyfile(options.model, os.path.join(directory, "model.gguf"))


def model_round(directory, options, until_s):
    """Once with read, once through a mapping, cold each time."""
    path, counts = os.path.join(directory, "model.gguf"), {}
    for how, load in (("read_bytes", read_file), ("mapped_bytes", touch_mapping)):
        forget_file_pages(path)
        counts[how] = load(path, until_s)
    return counts


def churn_prepare(directory, options):
    for number in range(options.files):
        path = os.path.join(directory, "file%d" % number)
        write_file(path, options.bytes // options.files)
        forget_file_pages(path)


def churn_round(directory, options, until_s):
    """One file after the other, again and again: with a set larger than the group, each page comes back just
    after it was thrown out, which the kernel counts as refaults and as memory stall."""
    return {"read_bytes": sum(read_file(os.path.join(directory, "file%d" % number), until_s)
                              for number in range(options.files))}


def thrash_prepare(directory, options):
    path = os.path.join(directory, "mapped")
    write_file(path, options.bytes)
    forget_file_pages(path)


def read_mapping_for_ever(path, size_bytes, begin, until_s):
    """One byte of each page, from page `begin` on and round again. No madvise: the kernel does not take what is read
    through a mapping with advice for a working set, and waiting for anything else is no memory stall."""
    pages, touched = size_bytes // PAGE_BYTES, 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size_bytes, prot=mmap.PROT_READ) as mapped:
        while time.monotonic() < until_s:
            for page in range(begin + touched, begin + touched + 256):
                mapped[page % pages * PAGE_BYTES]
            touched += 256
    return touched


def thrash_round(directory, options, until_s):
    """For a group smaller than the file: what is wanted has just been thrown out, for each of some processes that
    read it at different places. One alone waits for the disk for the most part, which counts as memory stall only
    in part."""
    path, children, read_end, write_end = os.path.join(directory, "mapped"), [], *os.pipe()
    try:
        for number in range(options.processes):
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                begin = number * options.bytes // PAGE_BYTES // options.processes
                touched = read_mapping_for_ever(path, options.bytes, begin, until_s)
                os.write(write_end, b"%d\n" % touched)
                os._exit(0)
            children.append(pid)
        os.close(write_end)
        with os.fdopen(read_end) as counts:
            return {"touched_pages": sum(int(line) for line in counts)}
    finally:
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)  # no effect on those that have ended
            except ProcessLookupError:
                pass
            os.waitpid(pid, 0)


def wave_prepare(directory, options):
    pass


def wave_round(directory, options, until_s):
    """Half a period with `bytes` held, half a period without. The rise has a rate: a neighbour that takes all in no
    time is another bench's subject."""
    begin_s = time.monotonic()
    high_end_s, low_end_s = begin_s + options.period / 2, begin_s + options.period
    held = mmap.mmap(-1, options.bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    say("rise", bytes=options.bytes)
    for at in range(0, options.bytes, MIB):
        ctypes.memset(address + at, 1, min(MIB, options.bytes - at))
        sleep_until(min(begin_s + (at + MIB) / options.rate, high_end_s))
    say("high", bytes=options.bytes)
    sleep_until(min(high_end_s, until_s))
    held.close()
    say("low", bytes=0)
    sleep_until(min(low_end_s, until_s))
    return {"periods": 1}


def sleep_until(when_s):
    time.sleep(max(0.0, when_s - time.monotonic()))


LOADS = {name: (globals()[name + "_prepare"], globals()[name + "_round"])
         for name in ("compile", "copy", "model", "churn", "thrash", "wave")}


def run(options):
    """Makes the files, says so, waits for a line on stdin where it was asked to, and does rounds until the time is
    over."""
    prepare, do_round = LOADS[options.load]
    os.makedirs(BUILD, exist_ok=True)
    directory = options.directory or tempfile.mkdtemp(prefix="load-", dir=BUILD)
    try:
        prepare(directory, options)
        say("ready", load=options.load)
        if options.wait:
            sys.stdin.readline()
        begin_s = time.monotonic()
        until_s, total, rounds = begin_s + options.seconds, {}, 0
        say("begin", load=options.load)
        while time.monotonic() < until_s:
            for name, value in do_round(directory, options, until_s).items():
                total[name] = total.get(name, 0) + value
            rounds += 1
        say("end", load=options.load, rounds=rounds, took_s=round(time.monotonic() - begin_s, 3), **total)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# ---- for benches: a load as a child ------------------------------------------------------------------

class Load:
    """A load in a memory group (None: in the caller's). Its files are made outside the group and charged to nobody
    of interest: what is measured begins with go(). Ends, and its files go, with the `with` block."""

    def __init__(self, name, group=None, seconds=20.0, arguments=()):
        os.makedirs(BUILD, exist_ok=True)
        self.name, self.events = name, []
        self.directory = tempfile.mkdtemp(prefix="load-", dir=BUILD)
        self._log = tempfile.TemporaryFile()
        command = [sys.executable, os.path.abspath(__file__), name, "--seconds", str(seconds), "--wait",
                   "--directory", self.directory, *map(str, arguments)]
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        self._group = group

    def _take(self, line):
        event = json.loads(line)
        self.events.append(event)
        return event["event"]

    def prepare(self):
        """Waits until the files are made, and moves the load into its group."""
        for line in self.process.stdout:
            if self._take(line) == "ready":
                break
        else:
            raise RuntimeError("%s: %s" % (self.name, self.said()))
        if self._group is not None:
            self._group.add(self.process.pid)
        return self

    def go(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return self

    def finish(self, limit_s=60.0):
        """What it says at its end; raises when it failed."""
        output, _ = self.process.communicate(timeout=limit_s)
        for line in output.splitlines():
            self._take(line)
        if self.process.returncode != 0:
            raise RuntimeError("%s ended with %d: %s" % (self.name, self.process.returncode, self.said()))
        return self.events[-1]

    def said(self):
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace").strip()[-1500:]

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        try:
            return self.prepare()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_):
        self.close()


def size_bytes(text):
    units = {"K": KIB, "M": MIB, "G": 1024 * MIB}
    scale = units.get(text[-1:].upper(), 1)
    return int(float(text[:-1] if scale > 1 else text) * scale)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="load", required=True, metavar="LOAD")

    def add(name, what):
        sub = subparsers.add_parser(name, help=what, description=what)
        sub.add_argument("--seconds", type=float, default=20.0)
        sub.add_argument("--directory", help="for its files, removed at the end; default: one of its own in build/bench")
        sub.add_argument("--wait", action="store_true", help="begin with a line on stdin, not at once")
        return sub

    sub = add("compile", "gcc -O2 over generated C files, again and again")
    sub.add_argument("--jobs", type=int, default=os.cpu_count())
    sub.add_argument("--units", type=int, default=24, help="C files (default 24)")
    sub.add_argument("--functions", type=int, default=30, help="in each (default 30)")
    sub.add_argument("--compiler", default="gcc")
    sub = add("copy", "cp of a large file through the page cache")
    sub.add_argument("--bytes", type=size_bytes, default=2048 * MIB, help="default 2G")
    sub = add("model", "a model file, cold, with read and through a mapping")
    sub.add_argument("--model", help="default: the demo's model")
    sub = add("churn", "a set of files read again and again")
    sub.add_argument("--bytes", type=size_bytes, default=4096 * MIB, help="of all files (default 4G)")
    sub.add_argument("--files", type=int, default=16)
    sub = add("thrash", "a file mapping read again and again by some processes: for a group smaller than the file")
    sub.add_argument("--bytes", type=size_bytes, default=256 * MIB, help="default 256M")
    sub.add_argument("--processes", type=int, default=8, help="that read it (default 8)")
    sub = add("wave", "anonymous memory, up and down")
    sub.add_argument("--bytes", type=size_bytes, default=256 * MIB, help="default 256M")
    sub.add_argument("--period", type=float, default=5.0, metavar="S")
    sub.add_argument("--rate", type=size_bytes, default=1024 * MIB, metavar="BYTES/S", help="of the rise (default 1G)")
    return parser.parse_args()


def leave(number, _frame):
    raise SystemExit(128 + number)  # so that `finally` removes the files


def main():
    signal.signal(signal.SIGTERM, leave)
    try:
        run(arguments())
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print("%s: %s" % (error.filename or "load", error.strerror), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
