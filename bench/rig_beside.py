"""What stands beside the rig's engine: a spike that takes memory, and a look from outside. Benches import rig."""
import json
import os
import subprocess
import tempfile
import time

from rig_base import program


class Spike:
    """bench/spike.c in a group: takes size_bytes at bytes_per_s, holds them hold_s, ends. Its size is shared by
    `processes`, so that the engine is the biggest process of the group (the kernel kills the biggest)."""

    def __init__(self, group, size_bytes, bytes_per_s, hold_s=1.0, processes=2):
        self.size_bytes, self.asked_bytes_per_s = int(size_bytes), float(bytes_per_s)
        self._output = tempfile.TemporaryFile()
        start = group.start if group is not None else subprocess.Popen
        self.process = start([program("spike"), "%d" % size_bytes, "%.0f" % bytes_per_s, str(hold_s), str(processes)],
                             stdin=subprocess.DEVNULL, stdout=self._output)
        self.pid = self.process.pid

    def lines(self):
        return {line["event"]: line for line in self._all_lines()}

    def _all_lines(self):
        text = os.pread(self._output.fileno(), 1 << 16, 0).decode()
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def wait(self, timeout_s):
        """Until it has ended. False if it had not by then."""
        try:
            self.process.wait(timeout_s)
            return True
        except subprocess.TimeoutExpired:
            return False

    def wait_full(self, timeout_s):
        """Until it holds all of its memory, or has ended. True when it holds it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if "spike_full" in self.lines():
                return True
            if self.process.poll() is not None:
                return "spike_full" in self.lines()
            time.sleep(0.002)
        return False

    def end(self):
        """Ends it now; its memory goes with it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _time_of(self, *events):
        lines = self.lines()
        for event in events:
            if event in lines:
                return lines[event]["time_s"]
        return None

    @property
    def begin_s(self):
        return self._time_of("spike_begin")

    @property
    def full_s(self):
        """When it held all, or was cut short; None before."""
        return self._time_of("spike_full", "spike_short")

    @property
    def end_s(self):
        return self._time_of("spike_end")

    @property
    def reached_bytes_per_s(self):
        """The rate it really had, stalls and competition for the processor included; None before it is full."""
        lines = self.lines()
        line = lines.get("spike_full") or lines.get("spike_short")
        return line["reached_bytes_per_s"] if line else None

    @property
    def fastest_bytes_per_s(self):
        """The same over its fastest 32 MiB: the rate where nothing held it up; None before it is full."""
        lines = self.lines()
        line = lines.get("spike_full") or lines.get("spike_short")
        return line["fastest_bytes_per_s"] if line else None

    def short(self):
        """A part of it was killed before it held all."""
        return "spike_short" in self.lines()


class Sampler:
    """bench/sampler.c: usage of the group and RssAnon of the engine, each interval_us, from outside. It is not in
    the group, and sends its samples when it is stopped."""

    def __init__(self, group, pid, interval_us=1000, most_s=60):
        self._output = tempfile.TemporaryFile()
        self.process = subprocess.Popen([program("sampler"), group.usage_path(), str(pid), str(interval_us),
                                         str(most_s)], stdin=subprocess.DEVNULL, stdout=self._output)

    def stop(self):
        """[(time_s, usage_bytes, engine_anon_bytes)]"""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        self._output.seek(0)
        rows = [line.split() for line in self._output.read().decode().splitlines()]
        return [(float(row[0]), int(row[1]), int(row[2])) for row in rows if len(row) == 3]
