"""A language model's KV cache that gives memory back before the kernel kills the process.

>>> import psi_cache.llama              # before llama_cpp
>>> import llama_cpp
>>> import psi_cache
>>> psi_cache.set_cache_limit(0.7)      # trim above pressure index 0.7, regrow below 0.3
>>> psi_cache.stats()["resident_bytes"]

All calls act on every cache of this process, and are safe from any thread. What fails raises
:class:`PsiCacheError`, an ``OSError`` whose text names the cure.
"""

from __future__ import annotations

from typing import Dict, Optional, Union

from . import _native
from ._native import PsiCacheError, PsiCacheValueError

__version__ = "0.1.0"

__all__ = [
    "PsiCacheError",
    "PsiCacheValueError",
    "restore",
    "set_cache_limit",
    "set_option",
    "stats",
    "trim",
    "version",
]


def set_cache_limit(high: float, low: Optional[float] = None) -> None:
    """Trims while the pressure index (0 to 1) is above ``high``; regrows once it is below ``low``.

    ``low`` is 3/7 of ``high`` by default, so 0.7 goes with 0.3. Takes effect at once, on open caches too.
    Raises PsiCacheValueError unless 0 <= low < high <= 1.
    """
    _native.set_limits(high, low)


def set_option(name: str, value: str) -> None:
    """Sets ``policy`` ("auto", "attention", "keys", "fifo", "lru"), ``recall`` ("on", "off"), ``score_share`` or
    ``recall_share`` (0 to 1) while the caches run, from the next step on.

    Raises PsiCacheError (ENODEV) while no cache is open, (ENOENT) for another name; PsiCacheValueError for a value that
    the option does not take.
    """
    _native.set_option(name, value)


def stats() -> Dict[str, Union[int, float, str, None]]:
    """What the caches of this process do now.

    ``index`` is the pressure index, 0 to 1: the largest of ``index_stall``, ``index_headroom``,
    ``index_forecast`` and ``index_thrash``; ``high`` and ``low`` are the limits it is compared with.
    ``headroom_bytes`` can still be allocated below ``limit_bytes`` (both None where not known), and shrinks by
    ``fill_bytes_per_s``. ``capacity_bytes`` is the caches' address space; ``resident_bytes``,
    ``stored_bytes`` and ``dropped_bytes`` say where its content is. ``trims``, ``restores``, ``refusals``,
    ``trimmed_bytes``, ``restored_bytes``, ``store_errors`` and ``steps`` count since the start; ``pools`` is how
    many there are. ``mode``, ``band`` ("none", "comfort", "safety"), ``effect`` ("good", "eaten", "futile", ...) and
    ``guarded`` say what the controller is doing and whether it helped; ``grower`` and ``staller`` name the cgroups
    that pressed. ``recalls``, ``recalled_bytes`` and ``recall_us`` count exchanges of hidden blocks that the model
    wanted, ``recomputed_bytes`` and ``recompute_us`` dropped blocks that were computed again. psicache.h has a line on each field. Raises PsiCacheError (ENODEV) while no cache is open.
    """
    return _native.read_stats()


def trim(fraction: float) -> None:
    """Asks for ``fraction`` (above 0, up to 1) of the resident bytes to be given back at the engine's next safe point."""
    _native.trim(fraction)


def restore() -> None:
    """Asks for all that is stored to be read back at the engine's next safe point."""
    _native.restore()


def version() -> str:
    """The library's version, such as "0.1.0"."""
    return str(_native.library().psi_version().decode())
