"""Finds libpsicache and calls it. Used by the rest of the package only.

A process may hold the library twice: once inside libpsicache-llama.so (preloaded by ``psi-cache run``, or
loaded by ``psi_cache.llama``), once as libpsicache.so. Only the copy that the engine meets has numbers to
show, so the process's global symbols are asked first, at each call that finds none loaded yet.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

Number = Union[int, float]

UNKNOWN = 2**64 - 1

# What the numbers of psi_stats stand for, in their order.
WORDS = {
    "mode": ("auto", "psi", "avg10"),
    "band": ("none", "comfort", "safety"),
    "effect": ("none", "waits", "good", "eaten", "futile"),
}


class PsiCacheError(OSError):
    """A call that failed. ``errno`` says why for programs, the text for people, with the cure."""


class PsiCacheValueError(PsiCacheError, ValueError):
    """An argument out of range."""


class PoolOptions(ctypes.Structure):
    """``psi_pool_options`` of psicache.h, field by field."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("block_bytes", ctypes.c_size_t),
        ("blocks", ctypes.c_uint32),
        ("lanes", ctypes.c_uint32),
        ("planes", ctypes.c_void_p),
        ("planes_per_lane", ctypes.c_uint32),
        ("keep_first", ctypes.c_uint32),
        ("keep_newest", ctypes.c_uint32),
        ("floor_bytes", ctypes.c_uint64),
        ("moved", ctypes.c_void_p),
        ("moved_user", ctypes.c_void_p),
        ("wake_fd", ctypes.c_int),
    ]


class Stats(ctypes.Structure):
    """``psi_stats`` of psicache.h, field by field."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("index", ctypes.c_double),
        ("index_stall", ctypes.c_double),
        ("index_headroom", ctypes.c_double),
        ("index_forecast", ctypes.c_double),
        ("index_thrash", ctypes.c_double),
        ("high", ctypes.c_double),
        ("low", ctypes.c_double),
        ("headroom_bytes", ctypes.c_uint64),
        ("limit_bytes", ctypes.c_uint64),
        ("fill_bytes_per_s", ctypes.c_int64),
        ("capacity_bytes", ctypes.c_uint64),
        ("resident_bytes", ctypes.c_uint64),
        ("stored_bytes", ctypes.c_uint64),
        ("dropped_bytes", ctypes.c_uint64),
        ("trims", ctypes.c_uint64),
        ("restores", ctypes.c_uint64),
        ("refusals", ctypes.c_uint64),
        ("trimmed_bytes", ctypes.c_uint64),
        ("restored_bytes", ctypes.c_uint64),
        ("store_errors", ctypes.c_uint64),
        ("steps", ctypes.c_uint64),
        ("pools", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("band", ctypes.c_uint64),
        ("guarded", ctypes.c_uint64),
        ("effect", ctypes.c_uint64),
        ("missing_bytes", ctypes.c_uint64),
        ("ceiling_bytes", ctypes.c_uint64),
        ("safety_trims", ctypes.c_uint64),
        ("comfort_trims", ctypes.c_uint64),
        ("guarded_trims", ctypes.c_uint64),
        ("trim_cycles", ctypes.c_uint64),
        ("regrow_cycles", ctypes.c_uint64),
        ("reaction_last_us", ctypes.c_uint64),
        ("reaction_most_us", ctypes.c_uint64),
        ("written_bytes", ctypes.c_uint64),
        ("clean_bytes", ctypes.c_uint64),
        ("readings", ctypes.c_uint64),
        ("trigger_events", ctypes.c_uint64),
        ("reserve_bytes", ctypes.c_uint64),
        ("reaction_us", ctypes.c_uint64),
        ("write_bytes_per_s", ctypes.c_double),
        ("stall_normal_share", ctypes.c_double),
        ("stall_at_anchor", ctypes.c_double),
        ("fill_most_bytes_per_s", ctypes.c_double),
        ("stall_some_share", ctypes.c_double),
        ("avg10_share", ctypes.c_double),
        ("refaults_per_s", ctypes.c_double),
        ("major_faults_per_s", ctypes.c_double),
        ("grower", ctypes.c_char * 96),
        ("staller", ctypes.c_char * 96),
        ("recalls", ctypes.c_uint64),
        ("recalled_bytes", ctypes.c_uint64),
        ("recall_us", ctypes.c_uint64),
        ("recomputed_bytes", ctypes.c_uint64),
        ("recompute_us", ctypes.c_uint64),
        ("store_hour_bytes", ctypes.c_uint64),
        ("store_hour_max_bytes", ctypes.c_uint64),
        ("withheld_bytes", ctypes.c_uint64),
    ]

    def to_dict(self) -> Dict[str, Union[Number, str, None]]:
        """All fields but the size; ``None`` where the library does not know."""
        values: Dict[str, Union[Number, str, None]] = {name: getattr(self, name) for name, _ in self._fields_[1:]}
        for name in ("headroom_bytes", "limit_bytes", "ceiling_bytes"):
            if values[name] == UNKNOWN:
                values[name] = None
        for name in ("stall_some_share", "avg10_share", "refaults_per_s", "major_faults_per_s"):
            if getattr(self, name) < 0:
                values[name] = None
        for name, words in WORDS.items():
            number = getattr(self, name)
            values[name] = words[number] if number < len(words) else None
        for name in ("grower", "staller"):
            values[name] = getattr(self, name).decode("utf-8", "replace") or None
        values["guarded"] = bool(self.guarded)
        return values


_library: Optional[ctypes.CDLL] = None
_is_global = False
_limits: Optional[Tuple[float, float]] = None  # set through us: told again to a copy that is loaded later


def directories() -> List[Path]:
    """Where the libraries may be, best first."""
    found = []
    named = os.environ.get("PSI_CACHE_LIB_DIR")
    if named:
        found.append(Path(named))
    found.append(Path(__file__).resolve().parent / "native")
    return found


def find(name: str) -> Path:
    """A file of ours, by name. Raises PsiCacheError (ENOENT) that says where it was looked for."""
    for directory in directories():
        if (directory / name).is_file():
            return (directory / name).resolve()
    places = ", ".join(str(directory) for directory in directories())
    raise PsiCacheError(
        errno.ENOENT,
        f"{name} is not in {places}; install again (pip install llm-psi-cache), "
        "or set PSI_CACHE_LIB_DIR to the directory of your build",
    )


def load(path: Path, mode: int) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode=mode)
    except OSError as error:
        raise PsiCacheError(errno.ELIBACC, f"{path} cannot be loaded: {error}") from None


def global_library(symbol: str = "psi_stats_read") -> Optional[ctypes.CDLL]:
    """The process's own symbols, where ``symbol`` is among them: the copy that an engine meets."""
    process = ctypes.CDLL(None)
    return process if hasattr(process, symbol) else None


def _declare(library: ctypes.CDLL) -> None:
    library.psi_version.argtypes, library.psi_version.restype = [], ctypes.c_char_p
    for name, arguments in {
        "psi_set_cache_limit": [ctypes.c_double],
        "psi_set_cache_limits": [ctypes.c_double, ctypes.c_double],
        "psi_stats_read": [ctypes.c_void_p, ctypes.POINTER(Stats)],
        "psi_cache_trim": [ctypes.c_void_p, ctypes.c_double],
        "psi_cache_restore": [ctypes.c_void_p],
    }.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int


def _adopt(library: ctypes.CDLL, is_global: bool) -> ctypes.CDLL:
    from . import __version__

    global _library, _is_global
    try:
        _declare(library)
    except AttributeError as error:
        raise PsiCacheError(errno.ELIBBAD, f"the library found lacks a call ({error}); {_REINSTALL}") from None
    version = library.psi_version().decode()
    if version.split(".")[:2] != __version__.split(".")[:2]:
        raise PsiCacheError(errno.ELIBBAD, f"the library is version {version}, this package {__version__}; {_REINSTALL}")
    if _limits is not None and _library is not None and is_global and not _is_global:
        library.psi_set_cache_limits(*_limits)
    _library, _is_global = library, is_global
    return library


_REINSTALL = "install both from one release, or correct PSI_CACHE_LIB_DIR or LD_PRELOAD"


def library() -> ctypes.CDLL:
    """The one copy to act on; loads libpsicache.so only where the process has none yet."""
    if _library is not None and _is_global:
        return _library
    found = global_library()
    if found is not None:
        return _adopt(found, True)
    if _library is not None:
        return _library
    return _adopt(load(find("libpsicache.so"), ctypes.RTLD_LOCAL), False)


def follow() -> None:
    """After a global copy was loaded: the limits set so far are told to that one."""
    if _library is not None and not _is_global:
        library()


def check(result: int, doing: str, **cures: str) -> int:
    """Raises for a negative errno. ``cures``: a text for a name such as EINVAL."""
    if result >= 0:
        return result
    name = errno.errorcode.get(-result, "")
    text = cures.get(name, os.strerror(-result))
    kind: Any = PsiCacheValueError if -result == errno.EINVAL else PsiCacheError
    raise kind(-result, f"{doing}: {text}")


def set_limits(high: float, low: Optional[float]) -> None:
    global _limits
    high = float(high)
    chosen = high * 3 / 7 if low is None else float(low)
    if low is None:
        result = library().psi_set_cache_limit(high)
    else:
        result = library().psi_set_cache_limits(high, chosen)
    check(result, f"limits high={high:g}, low={chosen:g}", EINVAL="choose 0 <= low < high <= 1")
    _limits = (high, chosen)


def read_stats() -> Dict[str, Union[Number, str, None]]:
    numbers = Stats(size=ctypes.sizeof(Stats))
    result = library().psi_stats_read(None, ctypes.byref(numbers))
    check(
        result,
        "stats",
        ENODEV="no cache is open in this process: make the engine's context first, and start the process with "
        "'psi-cache run --' or import psi_cache.llama before llama_cpp",
        EINVAL=f"the library's numbers are of another size; {_REINSTALL}",
    )
    return numbers.to_dict()


def trim(share: float) -> None:
    share = float(share)
    check(library().psi_cache_trim(None, share), f"trim({share:g})", EINVAL="give a share above 0, up to 1")


def set_option(name: str, value: str) -> None:
    result = library().psi_cache_set(None, str(name).encode(), str(value).encode())
    check(
        result,
        f"set_option({name!r}, {value!r})",
        ENODEV="no cache is open in this process: make the engine's context first",
        ENOENT="no option of this name can be set while the cache runs; choose policy, recall, score_share or "
        "recall_share",
        EINVAL="not a value of it: policy takes auto, attention, keys, fifo, lru; recall on, off; shares 0 to 1",
    )


def restore() -> None:
    check(library().psi_cache_restore(None), "restore()")
