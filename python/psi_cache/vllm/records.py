"""The store of one worker: libpsicache's numbered records in one unlinked file. Its options are the library's
(PSI_CACHE_STORE, _STORE_DIR, _STORE_MAX_BYTES, _STORE_HOUR_MAX_BYTES)."""

from __future__ import annotations

import ctypes
import os
from typing import List, Tuple

from .. import _native

Parts = List[Tuple[int, int]]  # address and bytes


class Part(ctypes.Structure):
    """psi_part of psicache.h, field by field."""

    _fields_ = [("address", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


def _declare() -> ctypes.CDLL:
    library = ctypes.CDLL(_native.library()._name, use_errno=True)  # the same copy, with errno kept
    library.psi_records_open.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32]
    library.psi_records_open.restype = ctypes.c_void_p
    library.psi_records_count.argtypes, library.psi_records_count.restype = [ctypes.c_void_p], ctypes.c_uint32
    for call in (library.psi_records_put, library.psi_records_get):
        call.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.POINTER(Part), ctypes.c_uint32]
        call.restype = ctypes.c_int
    library.psi_records_forget.argtypes, library.psi_records_forget.restype = [ctypes.c_void_p, ctypes.c_uint32], None
    library.psi_records_close.argtypes, library.psi_records_close.restype = [ctypes.c_void_p], None
    return library


def _array(parts: Parts) -> "ctypes.Array[Part]":
    return (Part * len(parts))(*(Part(address, size) for address, size in parts))


class Records:
    """Raises OSError: ENOTSUP where no store is wanted."""

    def __init__(self, record_bytes: int, records: int) -> None:
        self._library = _declare()
        self._records = self._library.psi_records_open(None, record_bytes, records)
        if not self._records:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def __len__(self) -> int:
        return int(self._library.psi_records_count(self._records))

    def put(self, number: int, parts: Parts) -> int:
        """0, or an errno: there is no such record then."""
        return -int(self._library.psi_records_put(self._records, number, _array(parts), len(parts)))

    def get(self, number: int, parts: Parts) -> int:
        """0, or an errno: the memory is untouched then."""
        return -int(self._library.psi_records_get(self._records, number, _array(parts), len(parts)))

    def forget(self, number: int) -> None:
        """Its room on the disk is free."""
        self._library.psi_records_forget(self._records, number)

    def close(self) -> None:
        self._library.psi_records_close(self._records)
        self._records = None
