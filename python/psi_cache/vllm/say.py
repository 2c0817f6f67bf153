"""Lines for people, on stderr, as libpsicache writes them: PSI_CACHE_VERBOSE decides."""

from __future__ import annotations

import os
import sys

ERROR, WARN, INFO, DEBUG = range(4)


def level() -> int:
    try:
        return int(os.environ.get("PSI_CACHE_VERBOSE", "1"))
    except ValueError:
        return WARN


def say(importance: int, line: str) -> None:
    if importance <= level():
        print(f"psi-cache: vLLM: {line}", file=sys.stderr, flush=True)
