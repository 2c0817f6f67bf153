"""What people use instead, beside the OOM table's engine: a supervisor that starts a killed server again, earlyoom's rule,
zram as swap. Each acts on the bench's own memory group alone.

earlyoom itself watches the whole machine and kills whoever is biggest on it, so its rule (not the program) is applied to
the group here: the side's name says so. systemd-oomd needs systemd as the first process and memory.pressure of 60 % over 30
seconds (its defaults): a spike that kills within a second of the first stall is over before that.
"""
import json
import os
import random
import signal
import subprocess
import threading
import time

import rig

# earlyoom 1.7's defaults: SIGTERM at 10 % of available memory, SIGKILL at 5 %; no swap counts as swap that is full.
TERM_SHARE, KILL_SHARE = 0.10, 0.05
FILL_BYTES_PER_S = 6000 * rig.MIB   # it sleeps as long as memory lasts at this rate
SLEEP_LEAST_S, SLEEP_MOST_S = 0.1, 1.0
RESTART_S = 0.1                     # systemd's RestartSec
AGAIN_MOST_S = 600.0
ZRAM = "/dev/zram0"
ZRAM_BYTES = 1024 * rig.MIB
WORDS = 200_000                     # token ids below this are words of the model


def earlyoom_sleep_s(available_bytes, total_bytes):
    """Until memory could have fallen to the first threshold."""
    room = available_bytes - TERM_SHARE * total_bytes
    return min(SLEEP_MOST_S, max(SLEEP_LEAST_S, room / FILL_BYTES_PER_S))


def earlyoom_signal(available_bytes, total_bytes):
    """What it would send now; None for nothing."""
    share = available_bytes / total_bytes
    return signal.SIGKILL if share <= KILL_SHARE else signal.SIGTERM if share <= TERM_SHARE else None


class EarlyoomRule(threading.Thread):
    """Sends the engine, as the biggest process, what earlyoom would, as often as it would look."""

    def __init__(self, stage, engine):
        super().__init__(daemon=True)
        self.fired_s, self._stage, self._engine, self._over = None, stage, engine, threading.Event()
        self.start()

    def run(self):
        total = self._stage.limit_bytes
        while not self._over.is_set() and self._engine.alive():
            available = total - self._stage.unreclaimable_bytes("locked")
            number = earlyoom_signal(available, total)
            if number is not None:
                self.fired_s = time.monotonic()
                os.kill(self._engine.pid, number)
                return
            self._over.wait(earlyoom_sleep_s(available, total))

    def stop(self):
        self._over.set()
        self.join(5)


# ---- starting again --------------------------------------------------------------------------------------

def conversation(tokens):
    """A file of as many tokens as the engine had in its cache: what a new one must read before it can go on."""
    path = os.path.abspath(os.path.join(rig.BUILD, "conversation-%d.json" % tokens))
    if not os.path.exists(path):
        draw = random.Random(tokens)
        with open(path, "w") as file:
            json.dump([draw.randrange(1000, WORDS) for _ in range(tokens)], file)
    return path


def answer_again(stage, side, plan, options, tokens, died_s):
    """Starts engines until one has read the conversation and goes on: {"starts", "again_s"}, None where none did."""
    starts = 0
    while time.monotonic() - died_s < AGAIN_MOST_S:
        time.sleep(RESTART_S)
        starts += 1
        engine = stage.engine(side.mode, ready=False, weights="locked", context_tokens=plan.context_of(side), state_tokens=0,
                              threads=options.threads, cache_type=side.cache_type,
                              arguments=("--document", conversation(tokens)))
        if engine.wait_for(lambda: engine.steps, options.run_limit):
            return {"starts": starts, "again_s": round(time.monotonic() - died_s, 2)}
        if engine.alive():
            break  # it stands still
    return {"starts": starts, "again_s": None}


# ---- zram ------------------------------------------------------------------------------------------------

class NoZram(RuntimeError):
    """One line that says why."""


class Zram:
    """with Zram() as zram: swap on a compressed disk in memory, for as long as it is there; refuses where the machine has
    swap of any kind. What it takes of memory is not charged to any group: charge() takes it off the group's limit."""

    def __init__(self):
        self._over, self._thread = threading.Event(), None
        self.most_bytes = 0

    @staticmethod
    def _sys(name):
        return os.path.join("/sys/block", os.path.basename(ZRAM), name)

    def _write(self, name, text):
        with open(self._sys(name), "w") as file:
            file.write(str(text))

    def __enter__(self):
        with open("/proc/swaps") as file:
            if len(file.read().splitlines()) > 1:
                raise NoZram("the machine has swap of its own")
        try:
            with open(self._sys("disksize")) as file:
                if int(file.read()) != 0:
                    raise NoZram("%s is in use" % ZRAM)
            self._write("disksize", ZRAM_BYTES)
        except OSError as error:
            raise NoZram("no zram that may be used here (%s)" % error) from None
        for command in (["mkswap", ZRAM], ["swapon", "--priority", "100", ZRAM]):
            answer = self._tool(command)
            if answer:
                self._write("reset", 1)
                raise NoZram("%s: %s" % (" ".join(command), answer))
        return self

    @staticmethod
    def _tool(command):
        """None, or what went wrong."""
        try:
            answer = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except OSError as error:
            return str(error)
        return None if answer.returncode == 0 else answer.stderr.decode("utf-8", "replace").strip() or "failed"

    def used_bytes(self):
        with open(self._sys("mm_stat")) as file:
            return int(file.read().split()[2])  # mem_used_total

    def charge(self, group):
        """From now on the group's limit is less by what zram holds."""
        limit_bytes = group.limit_bytes
        group.allow_swap(ZRAM_BYTES)

        def follow():
            told = 0
            while not self._over.wait(0.005):
                used = self.used_bytes()
                self.most_bytes = max(self.most_bytes, used)
                if abs(used - told) >= rig.MIB:
                    try:
                        group.lower_memory(limit_bytes - used)
                        told = used
                    except OSError:  # not so low: it is full
                        pass

        self._thread = threading.Thread(target=follow, daemon=True)
        self._thread.start()

    def settle(self):
        self._over.set()
        if self._thread is not None:
            self._thread.join(5)

    def __exit__(self, *_):
        self.settle()
        self._tool(["swapoff", ZRAM])
        self._write("reset", 1)
