"""A worker's step, which the scheduler's half may hold open for a moment: while a step runs vLLM's scheduler waits for its
result, and its block pool is at rest. That is how a busy engine gives memory back without waiting for a long step's end.
The model's thread calls begin and end, the thread that answers the scheduler's half hold and release."""

from __future__ import annotations

import threading


class Step:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs = self._is_held = False

    def begin(self) -> None:
        with self._changed:
            self._runs = True

    def end(self) -> None:
        """Not before it is released. May be called twice."""
        with self._changed:
            while self._is_held:
                self._changed.wait()
            self._runs = False

    def hold(self) -> bool:
        """False: none runs."""
        with self._changed:
            self._is_held = self._runs
            return self._runs

    def release(self) -> None:
        with self._changed:
            self._is_held = False
            self._changed.notify_all()
