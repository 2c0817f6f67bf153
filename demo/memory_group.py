"""A memory limit with a real out-of-memory killer behind it, for the demo and the benches.

Makes one group of our own in cgroup v1's memory hierarchy, in the cgroup v2 tree, or in both where a
machine mounts both (v1 then sets the limit and v2 reports the group's pressure). Removes it again on
every way out. Touches no group that it did not make.
"""
import errno
import itertools
import os
import signal
import subprocess
import time

CURE = ("a memory limit needs root, or a delegated group: "
        "systemd-run --user --scope -p Delegate=yes -p MemoryMax=4G -- make demo")

_numbers = itertools.count(1)


class NoRights(RuntimeError):
    """No memory limit can be set here. The text is one line that names the cure."""


def _read(path):
    with open(path) as file:
        return file.read()


def _write(path, text):
    # One write(2), unbuffered: the kernel answers each write of a control file by itself.
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, str(text).encode())
    finally:
        os.close(descriptor)


def _try_write(path, text):
    """For what a kernel without swap accounting does not have."""
    try:
        _write(path, text)
    except OSError:
        pass


def _keyed(path, key):
    """The number behind `key` in a file of 'key number' lines; None without file or key."""
    try:
        for line in _read(path).splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except OSError:
        pass
    return None


def _mounts():
    """Where the v1 memory controller and the v2 tree are mounted; None for what is not."""
    v1 = v2 = None
    for line in _read("/proc/mounts").splitlines():
        _, where, kind, options = line.split()[:4]
        where = where.replace("\\040", " ")
        if kind == "cgroup" and "memory" in options.split(",") and v1 is None:
            v1 = where
        elif kind == "cgroup2" and v2 is None:
            v2 = where
    return v1, v2


def _own_path_v2():
    for line in _read("/proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            return line[3:].lstrip("/")
    return ""


def _why(error):
    return "%s: %s" % (error.filename or "cgroup", os.strerror(error.errno)) if error.errno else str(error)


class MemoryGroup:
    """with MemoryGroup(limit_bytes) as group: group.start([...]) ... `limit_bytes` None: no limit."""

    def __init__(self, limit_bytes=None):
        self.limit_bytes = limit_bytes
        self.name = "llm-psi-cache-%d-%d" % (os.getpid(), next(_numbers))
        self.v1 = None         # directory in the v1 memory hierarchy
        self.v2 = None         # directory in the v2 tree
        self.v2_limits = False  # the v2 tree is the one with the memory controller
        self._undo = []        # what to set back on the way out, last first
        self._old_handlers = {}

    # ---- making and removing ----------------------------------------------------------------

    def open(self):
        v1, v2 = _mounts()
        try:
            if v1 is not None:
                self._make_v1(v1)
            if v2 is not None:
                self._make_v2(v2)
        except BaseException:
            self.close()
            raise
        if self.v1 is None and not self.v2_limits:
            self.close()
            raise NoRights("no cgroup memory controller on this machine (Raspberry Pi: "
                           "cgroup_enable=memory on the kernel command line); " + CURE)
        return self

    def _make_v1(self, mount):
        directory = os.path.join(mount, self.name)
        try:
            os.mkdir(directory)
            self.v1 = directory
            self.set_limit(self.limit_bytes)
        except OSError as error:
            raise NoRights("no memory limit (%s); %s" % (_why(error), CURE)) from None
        _try_write(directory + "/memory.swappiness", 0)

    def _make_v2(self, mount):
        if self.v1 is not None:  # only for the group's memory.pressure; losing it costs no limit
            try:
                directory = os.path.join(mount, self.name)
                os.mkdir(directory)
                self.v2 = directory
            except OSError:
                pass
            return
        if "memory" not in _read(mount + "/cgroup.controllers").split():
            return
        error = None
        for parent in (lambda: mount, lambda: self._delegated_parent(mount)):
            try:
                self._make_v2_in(parent())
                return
            except OSError as why:
                error = why
        raise NoRights("no memory limit (%s); %s" % (_why(error), CURE))

    def _make_v2_in(self, parent):
        if "memory" not in _read(parent + "/cgroup.subtree_control").split():
            _write(parent + "/cgroup.subtree_control", "+memory")
        directory = os.path.join(parent, self.name)
        os.mkdir(directory)
        self.v2 = directory
        self.v2_limits = True
        self.set_limit(self.limit_bytes)
        _try_write(directory + "/memory.swap.max", 0)

    def set_limit(self, limit_bytes):
        """Sets or lowers the limit of the living group; None leaves it without one."""
        self.limit_bytes = limit_bytes
        if limit_bytes is None:
            return
        if self.v1 is not None:
            _write(self.v1 + "/memory.limit_in_bytes", limit_bytes)
            # Memory and swap together get the same limit: nothing of the group goes to swap.
            _try_write(self.v1 + "/memory.memsw.limit_in_bytes", limit_bytes)
        else:
            _write(self.v2 + "/memory.max", limit_bytes)

    def lift_limit(self):
        """As if there had been none. The limit of memory and swap together first: it may not be the lower one."""
        self.limit_bytes = None
        if self.v1 is not None:
            _try_write(self.v1 + "/memory.memsw.limit_in_bytes", -1)
            _write(self.v1 + "/memory.limit_in_bytes", -1)
        else:
            _write(self.v2 + "/memory.max", "max")

    def allow_swap(self, bytes_):
        """So much of the group may go to swap, beside the limit of its memory."""
        if self.v1 is not None:
            _write(self.v1 + "/memory.memsw.limit_in_bytes", self.limit_bytes + bytes_)
            _write(self.v1 + "/memory.swappiness", 100)
        else:
            _write(self.v2 + "/memory.swap.max", bytes_)

    def lower_memory(self, bytes_):
        """Of memory alone; what swap may have stays. OSError where the kernel cannot get so low now (v1)."""
        _write(self.v1 + "/memory.limit_in_bytes" if self.v1 is not None else self.v2 + "/memory.max", bytes_)

    def _delegated_parent(self, mount):
        """Our own group, where it was handed to us. A v2 group with limits below it may hold no
        process itself, so this process moves one down first, and back at the end."""
        own = os.path.join(mount, _own_path_v2()).rstrip("/")
        aside = os.path.join(own, self.name + "-harness")
        os.mkdir(aside)

        def back():
            try:
                _write(own + "/cgroup.subtree_control", "-memory")
                _write(own + "/cgroup.procs", os.getpid())
            except OSError:
                pass
            _remove(aside)

        self._undo.append(back)
        _write(aside + "/cgroup.procs", os.getpid())
        return own

    def close(self):
        """Kills what is left in the group and removes it. May be called twice."""
        for directory in (self.v1, self.v2):
            if directory is not None:
                self._empty(directory)
        for directory in (self.v1, self.v2):
            if directory is not None:
                _remove(directory)
        self.v1 = self.v2 = None
        while self._undo:
            self._undo.pop()()

    @staticmethod
    def _empty(directory):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                pids = [int(pid) for pid in _read(directory + "/cgroup.procs").split()]
            except OSError:
                return
            if not pids:
                return
            for pid in pids:
                if pid not in (0, os.getpid()):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            time.sleep(0.02)

    def __enter__(self):
        self._old_handlers = {}
        try:
            for number in (signal.SIGTERM, signal.SIGHUP):
                self._old_handlers[number] = signal.signal(number, _leave)
        except ValueError:
            pass  # not the main thread: its owner handles signals
        try:
            return self.open()
        except BaseException:
            self._restore_handlers()
            raise

    def __exit__(self, *_):
        try:
            self.close()
        finally:
            self._restore_handlers()

    def _restore_handlers(self):
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}

    # ---- processes --------------------------------------------------------------------------

    def _procs_files(self):
        return [d + "/cgroup.procs" for d in (self.v1, self.v2) if d is not None]

    def add(self, pid):
        for path in self._procs_files():
            _write(path, pid)

    def start(self, command, **popen_arguments):
        """subprocess.Popen of `command`, in the group from its first instruction on. A shell that
        moves itself and then becomes the command: no Python code between fork and exec."""
        files = self._procs_files()
        script = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 >"$1" || exit 126; shift; n=$((n-1)); done; exec "$@"'
        return subprocess.Popen(["/bin/sh", "-c", script, "sh", str(len(files)), *files, *command],
                                **popen_arguments)

    # ---- what the group says ----------------------------------------------------------------

    def usage_path(self):
        return self.v1 + "/memory.usage_in_bytes" if self.v1 else self.v2 + "/memory.current"

    def usage(self):
        """Bytes charged now."""
        return int(_read(self.usage_path()))

    def peak(self):
        """Most bytes ever charged; None where the kernel does not say (v2 before Linux 5.19)."""
        path = self.v1 + "/memory.max_usage_in_bytes" if self.v1 else self.v2 + "/memory.peak"
        try:
            return int(_read(path))
        except OSError:
            return None

    def file_bytes(self):
        """Page cache charged to the group: (all of it, how much of it is known as locked)."""
        path = (self.v1 or self.v2) + "/memory.stat"
        return _keyed(path, "cache" if self.v1 else "file") or 0, _keyed(path, "unevictable") or 0

    def pressure(self):
        """Text of the group's memory.pressure; None where there is none (v1 only, PSI off)."""
        try:
            return _read(self.v2 + "/memory.pressure") if self.v2 else None
        except OSError:
            return None

    def oom_kills(self):
        """Processes of the group that the out-of-memory killer ended; None where not counted."""
        if self.v1:
            return _keyed(self.v1 + "/memory.oom_control", "oom_kill")
        return _keyed(self.v2 + "/memory.events", "oom_kill")


def _leave(number, _frame):
    # An exception rather than an end: the with blocks on the way out remove the group.
    raise SystemExit(128 + number)


def _remove(directory):
    """rmdir, again while the kernel is still taking the last process out."""
    deadline = time.monotonic() + 10
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
