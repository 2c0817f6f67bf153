"""The rig's engine: bench/engine.py as a child process, its lines read as they come. Benches import rig, which has it."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

from rig_base import CONTEXT_TOKENS, MIB, STATE_TOKENS, demo, engine_command, model_file, state_file
import generate

READY_LIMIT_S = 60


def keep_in_page_cache(path):
    """Reads a file here, so that its pages are charged to this process's group and not to the engine's."""
    with open(path, "rb", buffering=0) as file:
        block = bytearray(8 * MIB)
        while file.readinto(block):
            pass


def environment_of(mode, extra=None):
    environment = {key: value for key, value in os.environ.items() if key != "PSI_CACHE_MODE"}
    if mode == "off":
        environment["PSI_CACHE_CONTROLLER"] = "off"
    elif mode != "stock":
        environment["PSI_CACHE_MODE"] = mode
    environment.update(extra or {})
    return environment


class Engine:
    """engine.py as a child. Its lines are read by a thread of their own; look at steps, stats and events at any
    time. Made by Stage.engine; outside a group with group=None."""

    def __init__(self, mode, weights="locked", group=None, context_tokens=CONTEXT_TOKENS, state_tokens=STATE_TOKENS,
                 span=1024, rest_ms=0.0, stats_ms=50.0, threads=2, environment=None, piece=1,
                 cache_type="f16", model=None, arguments=()):
        """state_tokens: 0: none is loaded. model: a file, if not the usual one. span: tokens decoded before they are taken back and decoded anew (an engine so decodes for ever, and its
        cache grows by no more than that). piece: tokens in a step. rest_ms: pause after each step. stats_ms: how often the engine reports
        psi_cache.stats(); 0 never. environment: added to the child's, for example PSI_CACHE_* options. arguments: more
        of engine.py's own."""
        self.mode, self.weights = mode, weights
        self.events = []   # all lines, as they came
        self.steps = []    # (time_s at the end of the step, step_ms)
        self.ids = []      # the token that each step chose
        self.prompt = []   # as steps, of the prompt behind the state, if there is one
        self.stats = []    # (time_s, psi_cache.stats()); empty for stock
        self.refused = 0   # decodes that were told to wait
        self.ended_by_us = False
        state = state_file(state_tokens, cache_type) if state_tokens else None
        if state:
            keep_in_page_cache(state)
        self.model = model or model_file()
        if weights == "unreclaimable":
            keep_in_page_cache(self.model)  # it is the private copy that the group pays for
        else:
            demo.forget_file_pages(self.model)
        read_end, write_end = os.pipe()
        command = engine_command(mode, weights, state, state_tokens, context_tokens, model) + [
            "--span", str(span), "--piece", str(piece), "--rest-ms", str(rest_ms), "--stats-ms", str(stats_ms), "--threads", str(threads),
            "--cache-type", cache_type, "--events-fd", str(write_end), *map(str, arguments)]
        self._log = tempfile.TemporaryFile()
        start = group.start if group is not None else subprocess.Popen
        self.process = start(command, pass_fds=(write_end,), stdin=subprocess.PIPE, stdout=self._log,
                             stderr=self._log, env=environment_of(mode, environment))
        os.close(write_end)
        self.pid = self.process.pid
        self._pipe = os.fdopen(read_end)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._pipe:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # the last line of a process that was killed while it wrote
            self.events.append(event)
            if event["event"] == "step":
                self.ids.append(event["id"])
                self.steps.append((event["time_s"], event["ms"]))
            elif event["event"] == "prompt":
                self.prompt.append((event["time_s"], event["ms"]))
            elif event["event"] == "stats":
                self.stats.append((event["time_s"], event["stats"]))
            elif event["event"] == "refused":
                self.refused += 1

    def wait_ready(self, steps=3, timeout_s=READY_LIMIT_S):
        """Until it has loaded its cache and decoded some steps. RuntimeError with what it said if it ends before."""
        deadline = time.monotonic() + timeout_s
        while len(self.steps) < steps:
            if self.process.poll() is not None:
                raise RuntimeError("the engine ended (status %s) before it was ready: %s"
                                   % (self.process.returncode, self.said()[-2000:]))
            if time.monotonic() > deadline:
                raise RuntimeError("the engine was not ready after %.0f s: %s" % (timeout_s, self.said()[-2000:]))
            time.sleep(0.005)
        return self

    def progress(self):
        """Steps so far, those of a prompt or document too."""
        return len(self.prompt) + len(self.steps)

    def wait_for(self, condition, stalled_s):
        """Whether it came to hold before the engine ended, or made no step for so long. How long all of it takes is for
        the machine to say: a quantised cache on a shared processor needs minutes for what others do in seconds."""
        done, since_s = -1, time.monotonic()
        while not condition():
            if done != self.progress():
                done, since_s = self.progress(), time.monotonic()
            if not self.alive() or time.monotonic() > since_s + stalled_s:
                return False
            time.sleep(0.002)
        return True

    def of(self, name):
        """Its events of that name."""
        return [event for event in list(self.events) if event["event"] == name]

    def alive(self):
        return self.process.poll() is None

    def killed(self):
        """By a SIGKILL that is not ours."""
        return self.process.poll() == -signal.SIGKILL and not self.ended_by_us

    def ended_well(self):
        """It is still at work, or ended after stop() as it should."""
        return self.process.poll() in (None, 0) or self.ended_by_us

    def order(self, text):
        """"pause", "resume", "reload" (the cache filled anew from the state: all of it resident), "trim SHARE",
        "restore" or "stop"; each is obeyed between two steps."""
        try:
            self.process.stdin.write(text.encode() + b"\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            pass  # it is gone; alive() says so

    def reload(self, timeout_s=10):
        """Orders a reload and waits for it. False when the engine ended or took longer."""
        def count():
            return sum(event["event"] == "reloaded" for event in list(self.events))
        before, deadline = count(), time.monotonic() + timeout_s
        self.order("reload")
        while count() == before:
            if not self.alive() or time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def stop(self, timeout_s=10):
        """Ends it after its step; last_stats() is then of its very end."""
        self.order("stop")
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        self.finish()

    def finish(self):
        if self.process.poll() is None:
            self.ended_by_us = True
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        if self.process.stdin:
            try:
                self.process.stdin.close()
            except OSError:
                pass

    def said(self):
        """Its standard output and error so far: also the library's own log lines."""
        where = self._log.tell()
        self._log.seek(0)
        text = self._log.read().decode("utf-8", "replace")
        self._log.seek(where)
        return text.strip()

    def steps_between(self, begin_s, end_s):
        return [step for step in list(self.steps) if begin_s <= step[0] <= end_s]

    def last_stats(self):
        """The newest psi_cache.stats() the engine reported; {} for stock."""
        for event in reversed(list(self.events)):
            if event["event"] in ("stats", "done", "loaded") and event.get("stats"):
                return event["stats"]
        return {}

    def anon_bytes(self):
        """RssAnon now, from /proc; None when it is gone."""
        try:
            return generate.rss_anon_bytes(self.pid)
        except OSError:
            return None

    def locked_bytes(self):
        """VmLck: what mlock holds. None when it is gone."""
        try:
            with open("/proc/%d/status" % self.pid) as file:
                return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmLck:")), 0)
        except OSError:
            return None

    def faults(self):
        """Major page faults so far; None when it is gone."""
        try:
            with open("/proc/%d/stat" % self.pid) as file:
                return int(file.read().rsplit(")", 1)[1].split()[9])
        except (OSError, IndexError):
            return None

    def status(self):
        """`psi-cache status --json PID`, parsed; None where it says nothing. Starts a process: not in a tight loop."""
        return status_json(self.pid)


def status_json(pid):
    answer = subprocess.run([tool(), "status", "--json", str(pid)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    lines = answer.stdout.decode().splitlines()
    return json.loads(lines[0]) if answer.returncode == 0 and lines else None


def tool():
    """The psi-cache command beside this Python, else the one on PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "psi-cache")
    return beside if os.path.exists(beside) else "psi-cache"
