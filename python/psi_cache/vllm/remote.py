"""The controller: a pool of counts in libpsicache (psi_pool_remote). One watcher thread senses the pressure; what it
wants is asked for with report(), and wake_fd says when there is something to ask for."""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from typing import Any, Optional

from .. import _native

ALL = 2**64 - 1


class PoolCounts(ctypes.Structure):
    """psi_pool_counts of psicache.h, field by field."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("resident", ctypes.c_uint32),
        ("evictable", ctypes.c_uint32),
        ("withheld", ctypes.c_uint32),
        ("refusals", ctypes.c_uint32),
        ("given_bytes", ctypes.c_uint64),
        ("taken_bytes", ctypes.c_uint64),
        ("going_bytes", ctypes.c_uint64),
        ("stored", ctypes.c_uint32),
        ("store_errors", ctypes.c_uint32),
    ]


class PoolWish(ctypes.Structure):
    """psi_pool_wish of psicache.h, field by field."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("trim_bytes", ctypes.c_uint64),
        ("restore_bytes", ctypes.c_uint64),
        ("pressed", ctypes.c_int),
        ("write_ahead", ctypes.c_int),
    ]


@dataclass
class Counts:
    """What the owner of the memory tells; blocks, but for the bytes. As psi_pool_counts."""

    resident: int = 0
    evictable: int = 0
    withheld: int = 0
    given_bytes: int = 0
    taken_bytes: int = 0
    going_bytes: int = 0
    stored: int = 0
    store_errors: int = 0


@dataclass
class Wish:
    """What the controller or a person wants. As psi_pool_wish."""

    trim_bytes: int = 0
    restore_bytes: int = 0
    pressed: bool = False
    write_ahead: bool = False


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    library.psi_cache_open.argtypes, library.psi_cache_open.restype = [ctypes.c_void_p], ctypes.c_void_p
    library.psi_cache_close.argtypes, library.psi_cache_close.restype = [ctypes.c_void_p], None
    library.psi_pool_remote.argtypes = [ctypes.c_void_p, ctypes.POINTER(_native.PoolOptions)]
    library.psi_pool_remote.restype = ctypes.c_void_p
    library.psi_pool_destroy.argtypes, library.psi_pool_destroy.restype = [ctypes.c_void_p], None
    library.psi_pool_report.argtypes = [ctypes.c_void_p, ctypes.POINTER(PoolCounts), ctypes.POINTER(PoolWish)]
    library.psi_pool_report.restype = ctypes.c_int
    return library


class Remote:
    """One cache and its pool. Raises PsiCacheError where they cannot be made."""

    def __init__(self, blocks: int, block_bytes: int, name: str = "vllm") -> None:
        self._library = _declare(_native.library())
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pool: Optional[int] = None
        self._cache = self._library.psi_cache_open(None)
        if not self._cache:
            self.close()
            raise _native.PsiCacheError(errno.EINVAL, "libpsicache opens no cache: the line above names the option")
        options = _native.PoolOptions(
            size=ctypes.sizeof(_native.PoolOptions),
            name=name.encode(),
            block_bytes=block_bytes,
            blocks=blocks,
            wake_fd=self._wake_write,
        )
        self._pool = self._library.psi_pool_remote(self._cache, ctypes.byref(options))
        if not self._pool:
            self.close()
            raise _native.PsiCacheError(errno.ENOMEM, "libpsicache makes no pool")
        self._counts = PoolCounts(size=ctypes.sizeof(PoolCounts))
        self._wish = PoolWish(size=ctypes.sizeof(PoolWish))

    @property
    def wake_fd(self) -> int:
        """Readable when something is asked."""
        return self._wake_read

    def silence(self) -> None:
        try:
            while os.read(self._wake_read, 4096):
                pass
        except BlockingIOError:
            pass

    def report(self, counts: Counts) -> Wish:
        told: Any = self._counts
        for name, value in vars(counts).items():
            setattr(told, name, value)
        if self._library.psi_pool_report(self._pool, ctypes.byref(told), ctypes.byref(self._wish)) != 0:
            return Wish()
        wish = self._wish
        return Wish(wish.trim_bytes, wish.restore_bytes, bool(wish.pressed), bool(wish.write_ahead))

    def close(self) -> None:
        if self._pool:
            self._library.psi_pool_destroy(self._pool)
        if self._cache:
            self._library.psi_cache_close(self._cache)
        self._pool = self._cache = None
        for descriptor in (self._wake_read, self._wake_write):
            if descriptor >= 0:
                os.close(descriptor)
        self._wake_read = self._wake_write = -1
