"""An emulated machine: a stock Debian kernel in qemu, with a program of ours as its init.

Nothing of the real machine is put under pressure: the machine's memory is its process's, fixed at
start. Called by spike_matrix.py, whose machine this is; setup.sh gets qemu and the kernel. What does not
depend on the machine's kind is shared with tests/arm64/run.py: images, and Emulated.
"""
import glob
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CACHE = os.path.join(ROOT, ".cache", "machine")
BUILD = os.path.join(ROOT, "build", "machine")
KERNEL = os.path.join(CACHE, "vmlinuz")
QEMU = "qemu-system-x86_64"
C_FLAGS = ("-std=c11 -D_GNU_SOURCE= -O2 -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes "
           "-Wmissing-prototypes -Werror").split()
# One release of emulated processor for every host; without the instruction that fills memory byte by
# byte, which emulation makes a loop of (the kernel then fills by words).
TCG_CPU = "max,-erms,-fsrm,-la57"


class Trouble(RuntimeError):
    """The text says what is wrong and what to do."""


def run(command, what):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Trouble("%s failed:\n%s" % (what, done.stdout[-4000:]))


def tool(name):
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise Trouble("no %s: run the setup.sh of this machine" % name)
    return found


# ---- what the machine is made of ---------------------------------------------------------------------

def library(source):
    """The static library of the sources in `source`; cmake knows what of it is new."""
    source = os.path.abspath(source)
    directory = os.path.join(BUILD, "library")
    if source != ROOT:  # cmake keeps to the tree that it began with
        directory += "-" + hashlib.sha256(source.encode()).hexdigest()[:8]
    run(["cmake", "-S", source, "-B", directory, "-DPSI_TESTS=OFF", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"], "cmake")
    run(["cmake", "--build", directory, "--target", "psi_core_archive", "-j2"], "building the library")
    return os.path.join(directory, "libpsi_core_archive.a")


def guest(source, archive):
    """The machine's one program, without a shared library."""
    program = os.path.join(BUILD, "init")
    sources = sorted(glob.glob(os.path.join(HERE, "guest", "*.c")))
    run([os.environ.get("CC", "cc"), *C_FLAGS, "-static", "-I", os.path.join(source, "include"), *sources, archive,
          "-lpthread", "-ldl", "-lm", "-o", program], "building the guest")
    return program


def _cpio_entry(number, name, mode, data):
    name = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def write_initramfs(path, files):
    """A file system of these files: {name: data}, all of them executable; directories as the names need them."""
    directories = sorted({directory for name in files for directory in _parents(name)})
    with open(path, "wb") as file:
        for number, name in enumerate(directories, 1):
            file.write(_cpio_entry(number, name, 0o040755, b""))
        for number, name in enumerate(files, 1 + len(directories)):
            file.write(_cpio_entry(number, name, 0o100755, files[name]))
        file.write(_cpio_entry(0, "TRAILER!!!", 0, b""))
    return path


def _parents(name):
    parts = name.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def initramfs(program):
    """A file system of one file."""
    with open(program, "rb") as file:
        return write_initramfs(os.path.join(BUILD, "initramfs"), {"init": file.read()})


def make_image(path, contents, size_mib):
    """A disk with an ext4 of what is in the directory `contents`; the path appears when it is whole."""
    partial = path + ".partial"
    with open(partial, "wb") as file:
        file.truncate(size_mib << 20)
    run([tool("mke2fs"), "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", "-d",
         contents, partial], "mke2fs")
    os.replace(partial, path)
    return path


def disk(weights_mib, size_mib=512):
    """A disk with the weights on it; made once. Runs write to a copy that ends with them."""
    path = os.path.join(BUILD, "disk-%d.img" % weights_mib)
    if os.path.exists(path):
        return path
    with tempfile.TemporaryDirectory(dir=BUILD) as contents:
        with open(os.path.join(contents, "weights"), "wb") as file:
            for _ in range(weights_mib):
                file.write(os.urandom(1 << 20))
        return make_image(path, contents, size_mib)


def accelerator():
    """("kvm" or "tcg", why). KVM that exists is not yet KVM that works: ask it for a processor."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "no /dev/kvm that we may use"
    try:
        done = subprocess.run([tool(QEMU), "-accel", "kvm", "-cpu", "host", "-m", "64", "-nodefaults",
                               "-display", "none", "-S", "-monitor", "stdio"], input="quit\n", text=True,
                              timeout=20, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        return "tcg", "KVM does not answer"
    if done.returncode == 0:
        return "kvm", ""
    lines = done.stderr.strip().splitlines()
    return "tcg", "KVM does not work here: " + (lines[0] if lines else "qemu ended with %d" % done.returncode)


# ---- a boot ------------------------------------------------------------------------------------------

class Emulated:
    """with Emulated(...) as machine: for line in machine.lines(): ...  Dies with this process.

    `words` are qemu's: what the machine consists of. Its console goes to a file, and what its program writes to the
    character device "results" are the lines.
    """

    def __init__(self, qemu, words, kernel, kernel_words, initramfs_path, console):
        self.console = console
        self.kernel = kernel
        self.command = [tool("setpriv"), "--pdeathsig", "KILL", tool(qemu), "-nodefaults", "-no-user-config",
                        "-display", "none", "-no-reboot", "-kernel", kernel, "-initrd", initramfs_path,
                        "-serial", "file:" + console, "-chardev", "stdio,id=results,signal=off", *words,
                        "-append", " ".join(kernel_words)]
        self.process = None

    def __enter__(self):
        if not os.path.exists(self.kernel):
            raise Trouble("no kernel: run the setup.sh of this machine")
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def lines(self, silence_s=180):
        """The machine's lines, until it powers off. Trouble when it says nothing for long."""
        rest, deadline = b"", time.monotonic() + silence_s
        descriptor = self.process.stdout.fileno()
        while True:
            if not select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]:
                raise Trouble("the machine said nothing for %d s\n%s" % (silence_s, self.last_words(rest)))
            got = os.read(descriptor, 65536)
            if not got:
                break
            deadline = time.monotonic() + silence_s
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace").rstrip("\r")
        if self.process.wait() != 0 or rest.strip():
            raise Trouble("the machine ended badly (%s)\n%s" % (self.process.returncode, self.last_words(rest)))

    def last_words(self, rest):
        try:
            with open(self.console, errors="replace") as file:
                console = file.read()[-2000:]
        except OSError:
            console = ""
        return rest.decode(errors="replace") + console


class Machine(Emulated):
    """The one of the spikes: x86-64, with an NVMe disk. Its lines are dictionaries: for event in machine.events()."""

    def __init__(self, initramfs_path, disk_path, words, accel="tcg", memory_mib=768, cpus=2, psi=True,
                 disk_mb_s=0, name="machine"):
        # tsc=reliable: the clock of an emulated machine looks unsteady, and the others are slow to read.
        # mitigations=off, init_on_alloc=0: they protect nobody here, and emulation makes them dear: without them
        # a spike reaches several times the rate.
        kernel_words = ["console=ttyS0", "loglevel=3", "panic=-1", "tsc=reliable", "mitigations=off",
                        "init_on_alloc=0", "psi=%d" % psi, "--", *words]
        # prealloc: or the machine's first runs are slowed by the real kernel, which hands out and clears its memory
        memory = "memory-backend-ram,id=ram,size=%dM,prealloc=on" % memory_mib
        drive = "file=%s,format=raw,if=none,id=disk,snapshot=on,cache=unsafe" % disk_path
        if disk_mb_s:
            drive += ",throttling.bps-total=%d" % (disk_mb_s * 1000000)
        accelerators = {"kvm": ["-accel", "kvm", "-cpu", "host"],
                        "tcg": ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", TCG_CPU]}
        super().__init__(QEMU, [*accelerators[accel], "-smp", str(cpus), "-m", str(memory_mib), "-object", memory,
                                "-machine", "pc,memory-backend=ram", "-drive", drive,
                                "-device", "nvme,drive=disk,serial=psi-cache", "-serial", "chardev:results"],
                         KERNEL, kernel_words, initramfs_path, os.path.join(BUILD, "console-%s.log" % name))

    def events(self, silence_s=180):
        for line in self.lines(silence_s):
            yield self._event(line.strip())

    def _event(self, line):
        try:
            event = json.loads(line)
        except ValueError:
            raise Trouble("not a line of ours: %r\n%s" % (line, self.last_words(b""))) from None
        if event.get("event") == "error":
            raise Trouble("the machine says: %s" % event["text"])
        return event


def leave_on_signals():
    """So that the with blocks on the way out end the machine."""
    def leave(number, _frame):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
