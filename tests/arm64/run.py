"""The C tests on an emulated Arm machine with pages of 16 KiB: make test-arm64 ARGS="--pages 4k --only test_store"

The library, the llama.cpp adapter, the command and their C tests are cross-built for aarch64 and run as they are under
Debian's own kernel, in qemu's software emulation of a Cortex-A76 (a Raspberry Pi 5 has four of them, and such pages),
on an ext4 of its own. Nothing of this machine is put under pressure. On an x86-64 host the emulation keeps that host's
strict order of memory accesses, mostly: this is a test of page sizes, alignment and instructions, less of memory order.

Ends with 0 when every program passed, 1 when one failed or the machine did not get to the end of its list.
"""
import argparse
import glob
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "bench", "machine"))
import machine  # noqa: E402

CACHE = os.path.join(machine.ROOT, ".cache", "machine-arm64")
BUILD = os.path.join(machine.ROOT, "build", "arm64")
COMPILER = "aarch64-linux-gnu-gcc"
LIBRARIES = ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1")
DISK_MIB = 4096  # sparse; what the tests write goes to a copy that ends with the machine
LIMIT_S = 120  # as in CMakeLists.txt; times --slower


def say(text):
    print(text, flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", choices=["16k", "4k"], default="16k", help="the kernel's page size (16k)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these programs, for example test_store")
    parser.add_argument("--cpus", type=int, default=2, help="processors of the machine (2)")
    parser.add_argument("--memory-mib", type=int, default=768, help="its memory (768)")
    parser.add_argument("--slower", type=float, default=10, 
                        help="how much longer a program may take than on a real machine (10)")
    parser.add_argument("--minutes", type=float, default=120, help="how long all of it may take (120)")
    parser.add_argument("--verbose", action="store_true", help="show all output, not only that of what failed")
    return parser.parse_args()


# ---- what the machine is made of ---------------------------------------------------------------------

def build():
    say("==> cross-building for aarch64 (build/arm64)")
    machine.run(["cmake", "--preset", "arm64", "-S", machine.ROOT], "cmake")
    machine.run(["cmake", "--build", BUILD], "the build")
    machine.run(["ctest", "--test-dir", BUILD, "-R", "^exports$"], "the test of the exported functions")


def programs(options):
    """[(name, command)], in the order in which they run; commands for the machine's shell, in /build."""
    found = [(name, "./tests/" + name) for name in sorted(os.listdir(os.path.join(BUILD, "tests")))]
    found.append(("small_engine", "LD_LIBRARY_PATH=/build ./examples/small_engine"))
    found.append(("tool_run", "./psi-cache run -- ./psi-cache --version"))
    found.append(("tool_doctor", "./psi-cache doctor"))
    for trace in sorted(glob.glob(os.path.join(machine.ROOT, "tests", "traces", "*.trace"))):
        name = os.path.basename(trace)[:-len(".trace")]
        found.append(("tool_replay_" + name, "./psi-cache replay traces/%s.trace >/tmp/decisions && "
                      "diff traces/%s.expected /tmp/decisions" % (name, name)))
    known = {name for name, _ in found}
    unknown = [name for name in options.only or [] if name not in known]
    if unknown:
        raise machine.Trouble("no such program: %s; there are %s" % (", ".join(unknown), ", ".join(sorted(known))))
    return [program for program in found if not options.only or program[0] in options.only]


def fill_disk(contents, todo, options):
    """The machine's root: busybox, the libraries that the programs are linked to, the programs, and their list."""
    for name in ("bin", "lib", "dev", "proc", "sys", "run", "etc", "arm64", "build/traces"):
        os.makedirs(os.path.join(contents, name))
    for name in ("tmp", "var/tmp"):
        os.makedirs(os.path.join(contents, name))
        os.chmod(os.path.join(contents, name), 0o1777)
    shutil.copy(os.path.join(CACHE, "system", "busybox"), os.path.join(contents, "bin"))
    os.symlink("busybox", os.path.join(contents, "bin", "sh"))
    for name in LIBRARIES:
        path = subprocess.run([COMPILER, "-print-file-name=" + name], check=True, text=True,
                              stdout=subprocess.PIPE).stdout.strip()
        shutil.copy(path, os.path.join(contents, "lib", name))
    for path in glob.glob(os.path.join(CACHE, "system", "lib", "*")):
        shutil.copy(path, os.path.join(contents, "lib"))
    shutil.copy(os.path.join(CACHE, "system", "mke2fs"), os.path.join(contents, "bin", "mkfs.ext4"))
    for name in ("tests", "examples"):
        shutil.copytree(os.path.join(BUILD, name), os.path.join(contents, "build", name))
    for path in [os.path.join(BUILD, "psi-cache"), *glob.glob(os.path.join(BUILD, "libpsicache*.so*"))]:
        shutil.copy(path, os.path.join(contents, "build"))
    for path in glob.glob(os.path.join(machine.ROOT, "tests", "traces", "*.[te]*e*")):
        shutil.copy(path, os.path.join(contents, "build", "traces"))
    shutil.copy(os.path.join(HERE, "all"), os.path.join(contents, "arm64"))
    with open(os.path.join(contents, "arm64", "list"), "w") as file:
        for name, command in todo:
            file.write("%s %d %s\n" % (name, LIMIT_S * options.slower, command))


def initramfs(pages):
    """busybox, init, and the few modules between the kernel and its disk."""
    files = {}
    for path in sorted(glob.glob(os.path.join(CACHE, pages, "*.ko*"))):
        opener = lzma.open if path.endswith(".xz") else open
        with opener(path, "rb") as file:
            files["modules/" + os.path.basename(path).split(".")[0] + ".ko"] = file.read()
    for name, path in (("bin/busybox", os.path.join(CACHE, "system", "busybox")), ("init", os.path.join(HERE, "init"))):
        with open(path, "rb") as file:
            files[name] = file.read()
    return machine.write_initramfs(os.path.join(BUILD, "initramfs"), files)


def boot(options, disk):
    # A Cortex-A76 knows pages of 16 KiB. mitigations=off: they protect nobody here, and cost emulation dear.
    kernel_words = ["console=ttyAMA0", "loglevel=4", "panic=-1", "mitigations=off", "psi=1"]
    words = ["-machine", "virt,gic-version=3", "-cpu", "cortex-a76", "-accel", "tcg,thread=multi,tb-size=256",
             "-smp", str(options.cpus), "-m", str(options.memory_mib),
             "-drive", "file=%s,format=raw,if=none,id=disk,snapshot=on,cache=unsafe" % disk,
             "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-serial-pci",
             "-device", "virtconsole,chardev=results"]
    return machine.Emulated("qemu-system-aarch64", words, os.path.join(CACHE, options.pages, "vmlinuz"), kernel_words,
                            initramfs(options.pages), os.path.join(BUILD, "console.log"))


# ---- what it says ------------------------------------------------------------------------------------

class Verdicts:
    """Reads the machine's lines; what failed, what was left out, and whether it got to the end."""

    def __init__(self, verbose):
        self.verbose = verbose
        self.passed, self.failed, self.skipped = [], [], []
        self.output, self.ended = [], False

    def take(self, line):
        word, _, rest = line.partition(" ")
        if word == "boot":
            kernel, page_kb, cpus = rest.split()
            say("    Linux %s, pages of %s KiB, %s processors" % (kernel, page_kb, cpus))
        elif word == "begin":
            self.output = []
        elif word == ":":
            self.output.append(rest)
        elif word == "end":
            self.end(*rest.split())
        elif word == "done":
            self.ended = True

    def end(self, name, status, begin, end):
        good = status == "0"
        (self.passed if good else self.failed).append(name)
        skipped = self.skips()
        self.skipped += ["%s: %s" % (name, text) for text in skipped]
        why = "" if good else " (exit status %s%s)" % (status, ": took too long" if status == "137" else "")
        say("%-8s %-28s %6.1f s%s%s" % ("passed" if good else "FAILED", name, float(end) - float(begin), why,
                                       ", %d skipped" % len(skipped) if skipped else ""))
        if not good or self.verbose:
            say("\n".join("    | " + text for text in self.output))

    def skips(self):
        """cmocka names a test that was skipped twice; the line before the first is its reason."""
        found, names = [], set()
        for at, line in enumerate(self.output):
            if line.startswith("[  SKIPPED ] ") and "test(s)" not in line:
                name = line.split("] ", 1)[1].strip()
                if name not in names:
                    before = self.output[at - 1].strip() if at else ""
                    found.append(name + (" (%s)" % before if before and not before.startswith("[") else ""))
                names.add(name)
        return found

    def summary(self, seconds):
        for text in self.skipped:
            say("skipped  " + text)
        say("%d passed, %d failed, %d tests in them skipped, in %d s%s" % (
            len(self.passed), len(self.failed), len(self.skipped), seconds,
            "" if self.ended else "; the machine did not get to the end of its list"))
        if self.failed:
            say("failed: " + " ".join(self.failed))
        return 0 if self.ended and self.passed and not self.failed else 1


def read_all(emulated, options, verdicts):
    """What was said until then counts, however the machine ends."""
    try:
        for line in emulated.lines(silence_s=LIMIT_S * options.slower + 120):
            verdicts.take(line)
    except machine.Trouble as trouble:
        say("error: %s" % trouble)


def end_after(minutes):
    def end(_number, _frame):
        raise machine.Trouble("not done after %g minutes" % minutes)
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60)


def run(options):
    end_after(options.minutes)
    begin_s = time.monotonic()
    if subprocess.call(["sh", os.path.join(HERE, "setup.sh"), options.pages]) != 0:
        return 1
    build()
    todo = programs(options)
    verdicts = Verdicts(options.verbose)
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        contents = os.path.join(directory, "contents")
        fill_disk(contents, todo, options)
        disk = machine.make_image(os.path.join(directory, "disk.img"), contents, DISK_MIB)
        say("==> %d programs on the emulated machine (console: build/arm64/console.log)" % len(todo))
        with boot(options, disk) as emulated:
            read_all(emulated, options, verdicts)
    return verdicts.summary(time.monotonic() - begin_s)


if __name__ == "__main__":
    machine.leave_on_signals()
    try:
        sys.exit(run(arguments()))
    except machine.Trouble as trouble:
        sys.exit("error: %s" % trouble)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
