"""The differential test's other half: random sessions, run by two processes (operations_driver.py), and compared."""

import json
import os
import pathlib
import select
import subprocess
import sys
import time

import hypothesis
from hypothesis import strategies as st

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

    def start(self):
        self.errors = open(f"/dev/shm/psi-cache-operations.{os.getpid()}.{id(self)}", "w+b", buffering=0)
        os.unlink(self.errors.name)
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


class Pair:
    """Ours and stock."""

    def __init__(self, **environment: str):
        self.ours, self.stock = Process(True, **environment), Process(False)
        self.lossy = environment.get("PSI_CACHE_STORE") == "none"
        self.operations = self.sessions = self.differences = self.hidden_cells = 0

    def compare(self, session: dict) -> list:
        """Raises AssertionError with the first difference. What ours answered."""
        if self.lossy:  # what is dropped does not come back: logits are compared with the same cells hidden
            session = {**session, "lossy": True, "watched": True}
        self.sessions += 1
        self.operations += len(session["ops"])
        try:
            ours = self.ours.ask(session)
        except Crash as crash:
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

_sixteenth, _sequence, _slot, _seed = st.integers(0, 16), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)


_part = st.tuples(_sequence, st.one_of(st.integers(1, 4), st.integers(1, 48)), _seed)
_OPERATIONS = {  # name: (how often, what follows the context's number)
    "decode": (24, st.lists(_part, min_size=1, max_size=3), st.booleans()),
    "again": (4, _sequence, _seed),
    "trim": (14, st.sampled_from([50, 200, 500, 900, 1000]), _sequence),
    "restore": (6,),
    "remove": (3, _sequence, _sixteenth, _sixteenth),
    "remove_tail": (2, _sequence, _sixteenth),
    "remove_all": (2, _sequence),
    "copy": (4, _sequence, _sequence, _sixteenth, _sixteenth),
    "keep": (1, _sequence),
    "shift": (5, _sequence, _sixteenth, _sixteenth),
    "add": (2, _sequence, _sixteenth, st.integers(0, 40)),
    "divide": (2, _sequence, st.integers(2, 3)),
    "clear": (1, st.booleans()),
    "save": (3, _slot, st.booleans()),
    "load": (3, _slot),
    "save_sequence": (4, _sequence, _slot, st.integers(0, 2)),
    "load_sequence": (4, _sequence, _slot),
    "policy": (2, st.integers(0, 4)),
    "recall": (1, st.booleans()),
    "free": (1,),
    "new": (2, st.integers(0, 3)),
}
_NAMES = [name for name, (often, *_) in _OPERATIONS.items() for _ in range(often)]


@st.composite
def _operation(draw, contexts: int):
    name = draw(st.sampled_from(_NAMES))
    return [name, draw(st.integers(0, contexts - 1)), *[draw(argument) for argument in _OPERATIONS[name][1:]]]


F16, Q4_0, Q8_0 = 1, 2, 8


@st.composite
def configs(draw, model_paths: dict):
    flash = draw(st.sampled_from([1, 0, -1]))
    types = [(F16, F16), (Q8_0, F16), (Q4_0, F16)] + ([(Q8_0, Q8_0), (F16, Q4_0)] if flash == 1 else [])
    type_k, type_v = draw(st.sampled_from(types))
    return {
        "model": model_paths[draw(st.sampled_from(sorted(model_paths)))],
        "cells": draw(st.sampled_from([512, 256, 1024])),
        "sequences": draw(st.sampled_from([4, 1, 3])),
        "unified": draw(st.booleans()),
        "flash": flash,
        "swa_full": draw(st.booleans()),
        "type_k": type_k,
        "type_v": type_v,
        "threads": draw(st.sampled_from([1, 1, 2])),
    }


def random_sessions(pair: Pair, model_paths: dict, seed: int, operations: int, most: int = 40) -> None:
    """So many operations, in random sessions. A failing session is shrunk, and raised as AssertionError."""
    enough = pair.operations + operations

    @hypothesis.settings(
        max_examples=10 * operations,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.seed(seed)
    @hypothesis.given(sessions(model_paths, most))
    def run(session):
        if pair.operations >= enough and pair.differences == 0:
            raise Enough
        pair.compare(session)

    try:
        run()
    except Enough:
        pass


class Enough(BaseException):
    """Not an error: it ends hypothesis's search. It is no Exception, so nothing is shrunk."""


@st.composite
def sessions(draw, model_paths: dict, most: int = 40):
    """Contexts that are there from the start, each with something in it, and then anything."""
    contexts = draw(st.sampled_from([1, 1, 2, 3]))
    made = [draw(configs(model_paths)) for _ in range(draw(st.sampled_from([1, 2])))]
    ops = [["new", i, i] for i in range(contexts)]
    for i in range(contexts):
        for sequence in range(draw(st.integers(1, 3))):
            ops.append(["decode", i, [[sequence, draw(st.integers(30, 96)), sequence]], False])
    ops += draw(st.lists(_operation(contexts), min_size=draw(st.sampled_from([1, most // 2, most])), max_size=most))
    ops += [["restore", i] for i in range(contexts)]
    ops += [["decode", i, [[s, 1, 8] for s in range(4)], True] for i in range(contexts)]
    return {"watched": draw(st.booleans()), "configs": made, "ops": ops}
