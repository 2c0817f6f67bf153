"""The differential test's other half: random sessions, run by two processes (operations_driver.py), and compared."""

import json
import os
import pathlib
import random
import select
import subprocess
import sys
import tempfile
import time

DRIVER = pathlib.Path(__file__).with_name("operations_driver.py")
ANSWER_S = 300  # a hang is an error, too


class Crash(AssertionError):
    """A process ended, or did not answer."""


class Process:
    """One driver. A new one is started after a crash."""

    def __init__(self, ours: bool, **environment: str):
        self.ours, self.process = ours, None
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PSI_CACHE_") or name == "PSI_CACHE_LIB_DIR"
        }
        self.environment.update({"PSI_CACHE_CONTROLLER": "off", **environment} if ours else {})
        # Blocks come back as far as there is room: here always, whatever else the machine does meanwhile.
        self.root = tempfile.TemporaryDirectory(prefix="psi-cache-operations-")
        meminfo = pathlib.Path(self.root.name, "proc", "meminfo")
        meminfo.parent.mkdir()
        meminfo.write_text("MemTotal: 8388608 kB\nMemFree: 8000000 kB\nMemAvailable: 8000000 kB\n")
        self.environment["PSI_CACHE_ROOT"] = self.root.name
        self.environment.update(OMP_WAIT_POLICY="passive", OPENBLAS_NUM_THREADS="1")  # others compute here, too
        self.environment["GGML_NO_BACKTRACE"] = "1"  # a debugger would write where the answers are read

    def start(self):
        self.errors = tempfile.TemporaryFile(buffering=0)
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), json.dumps({"ours": self.ours})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=self.environment,
        )

    def ask(self, session: dict) -> list:
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write(json.dumps(session).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line, end = b"", time.monotonic() + ANSWER_S
        while not line.endswith(b"\n"):
            ready = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]
            part = os.read(self.process.stdout.fileno(), 1 << 20) if ready else b""
            if not part:
                raise Crash(self.crash())
            line += part
        return json.loads(line)

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def crash(self) -> str:
        self.process.kill()
        code, said = self.process.wait(), self.said()[-2000:]
        self.process = None
        return f"{'ours' if self.ours else 'stock'} ended with {code}: {said}"

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(timeout=60)
            self.process.stdout.close()
            self.errors.close()
            self.process = None
        self.root.cleanup()


class Pair:
    """Ours and stock."""

    def __init__(self, **environment: str):
        self.lossy = environment.get("PSI_CACHE_STORE") == "none"
        if self.lossy:  # what is computed again may differ in the order of its sums: test_llama_recompute.py looks at it
            environment = {"PSI_CACHE_RECOMPUTE": "off", **environment}
        self.ours, self.stock = Process(True, **environment), Process(False)
        self.operations = self.sessions = self.differences = self.hidden_cells = 0
        self.engine_s_own = 0  # sessions that end stock, too

    def compare(self, session: dict) -> list:
        """Raises AssertionError with the first difference. What ours answered."""
        if self.lossy:  # what is dropped does not come back: logits are compared with the same cells hidden
            session = {**session, "lossy": True, "watched": True}
        self.sessions += 1
        self.operations += len(session["ops"])
        try:
            ours = self.ours.ask(session)
        except Crash as crash:
            if self.stock_crashes(session):
                self.engine_s_own += 1
                return []
            self.differences += 1
            raise Crash(f"{crash}\n{json.dumps(session)}") from None
        stock = self.stock.ask({**session, "told": ours})
        for i, (op, a, b) in enumerate(zip(session["ops"], ours, stock)):
            why = difference(a, b)
            self.hidden_cells += b.get("newly_hidden", 0)
            if why:
                self.differences += 1
                said = "".join(line for line in self.ours.said().splitlines(True) if line.startswith("psi-cache"))
                raise AssertionError(f"operation {i}, {op}: {why}\n{said[-1000:]}{json.dumps(session)}")
        return ours

    def stock_crashes(self, session: dict) -> bool:
        """The engine ends itself where it is asked what it does not foresee."""
        try:
            self.stock.ask({**session, "told": [{"saved": True}] * len(session["ops"])})
        except Crash:
            return True
        return False

    def close(self):
        self.ours.close()
        self.stock.close()


def difference(ours: dict, stock: dict) -> str:
    """'' when the two did the same."""
    for name in ("code", "taken", "outputs", "steps", "state", "positions", "saved"):
        if ours.get(name) != stock.get(name):
            return f"{name}: ours {ours.get(name)}, stock {stock.get(name)}"
    if stock.get("masks_differ"):
        return f"{stock['masks_differ']} masks differ by more than the hidden columns"
    if ours.get("whole") and stock.get("newly_hidden"):
        return f"{stock['newly_hidden']} columns are hidden after everything was asked back"
    return ""


# ---- Random sessions ----------------------------------------------------------------------------------
# Not hypothesis: its sessions were small or repeats of one another, and in 400 operations not one cell was hidden.

F16, Q4_0, Q8_0 = 1, 2, 8
_HOW_OFTEN = {
    "decode": 24,
    "again": 4,
    "trim": 14,
    "restore": 6,
    "remove": 3,
    "remove_tail": 2,
    "remove_all": 1,
    "copy": 4,
    "keep": 1,
    "shift": 5,
    "add": 2,
    "divide": 2,
    "clear": 1,
    "save": 3,
    "load": 2,
    "save_sequence": 4,
    "load_sequence": 4,
    "policy": 2,
    "recall": 1,
    "free": 1,
    "new": 1,
}


def _part(r: random.Random) -> list:
    return [r.randrange(4), r.choice([1, 1, 2, r.randint(1, 12), r.randint(1, 48)]), r.randrange(10)]


def _arguments(r: random.Random, name: str) -> list:
    """What follows the context's number: sequences, sixteenths of what they hold, slots, shares."""
    sequence, sixteenths, slot = r.randrange(4), [r.randint(0, 16), r.randint(0, 16)], r.randrange(4)
    return {
        "decode": [[_part(r) for _ in range(r.choice([1, 1, 2, 3]))], r.random() < 0.5],
        "again": [sequence, r.randrange(10)],
        "trim": [r.choice([50, 200, 500, 900, 1000]), sequence],
        "remove": [sequence, *sixteenths],
        "remove_tail": [sequence, sixteenths[0]],
        "remove_all": [sequence],
        "copy": [sequence, r.randrange(4), *sixteenths],
        "keep": [sequence],
        "shift": [sequence, *sixteenths],
        "add": [sequence, sixteenths[0], r.randint(0, 40)],
        "divide": [sequence, r.choice([2, 3])],
        "clear": [r.random() < 0.5],
        "save": [slot, r.random() < 0.5],
        "load": [slot],
        "save_sequence": [sequence, slot, r.randrange(3)],
        "load_sequence": [sequence, slot],
        "policy": [r.randrange(5)],
        "recall": [r.random() < 0.5],
        "new": [r.randrange(4)],
    }.get(name, [])


def random_config(r: random.Random, model_paths: dict) -> dict:
    flash = r.choice([1, 0, -1])
    types = [(F16, F16), (Q8_0, F16), (Q4_0, F16)] + ([(Q8_0, Q8_0), (F16, Q4_0)] if flash == 1 else [])
    type_k, type_v = r.choice(types)
    return {
        "model": r.choice(sorted(model_paths.values())),
        "cells": r.choice([256, 512, 512, 1024]),
        "sequences": r.choice([1, 3, 4, 4]),
        "unified": r.random() < 0.5,
        "flash": flash,
        "swa_full": r.random() < 0.5,
        "type_k": type_k,
        "type_v": type_v,
    }


def random_session(r: random.Random, model_paths: dict, most: int) -> dict:
    """Contexts that are there from the start, each with something in it, and then anything."""
    is_short = most < 20
    contexts = 1 if is_short else r.choice([1, 1, 2, 3])
    ops = [["new", i, i] for i in range(contexts)]
    for i in range(contexts):
        for sequence in [s for s in range(r.randint(1, 3)) for _ in range(1 if is_short else r.randint(1, 3))]:
            ops.append(["decode", i, [[sequence, r.randint(30, 96), sequence]], False])
    names = r.choices(list(_HOW_OFTEN), list(_HOW_OFTEN.values()), k=r.randint(most // 2, most))
    ops += [[name, r.randrange(contexts), *_arguments(r, name)] for name in names]
    ops += [["restore", i] for i in range(contexts)]
    ops += [["decode", i, [[s, 1, 8] for s in range(4)], True] for i in range(contexts)]
    configs = [random_config(r, model_paths) for _ in range(r.choice([1, 2]))]
    return {"watched": r.random() < 0.5, "configs": configs, "ops": ops}


def fails(pair: Pair, session: dict):
    try:
        pair.compare(session)
    except AssertionError as error:
        return error
    return None


def shrunk(pair: Pair, session: dict, error: AssertionError, tries: int = 400) -> AssertionError:
    """The error of a session without all operations that it does not need. Longer runs of them are tried first."""
    size = len(session["ops"]) // 2
    while size > 0:
        at = 0
        while at < len(session["ops"]) and tries > 0:
            tries -= 1
            less = {**session, "ops": session["ops"][:at] + session["ops"][at + size :]}
            found = fails(pair, less)
            if found is None:
                at += size
            else:
                session, error = less, found
        size //= 2
    return error


def random_sessions(pair: Pair, model_paths: dict, seed: int, operations: int, most: int = 40) -> None:
    """So many operations, `most` or half as many a session, and what each begins and ends with. A session is made from the
    seed and its own number; one that fails is shrunk and raised."""
    enough, number = pair.operations + operations, 0
    while pair.operations < enough:
        session = random_session(random.Random(f"{seed}/{number}"), model_paths, most)
        error = fails(pair, session)
        if error is not None:
            raise shrunk(pair, session, error)
        number += 1
        if number % 25 == 0:
            print(f"{pair.operations} operations so far", file=sys.stderr, flush=True)
