"""Where a block's pages are, and how they go back to the system.

vLLM keeps one buffer in which each layer has a row of blocks: a plane. A block's share of a plane is one run of bytes.
A page goes when all blocks on it go (a buffer of torch's begins 64 bytes behind a page; in our arena no page is shared).
What was given back reads as zero and is committed again by touch: so a block needs no call to come back.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Set, Tuple

from .channel import Run

PAGE_BYTES = mmap.PAGESIZE
# What giving back does (PSI_CACHE_VLLM_PAGES): drop; for experiments: nothing (keep), or all ones, which are not a number in
# each floating-point type (poison).
HOW = ("drop", "keep", "poison")
_MADV_DONTNEED, _MADV_NOHUGEPAGE = 4, 15
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class NotUnderstood(ValueError):
    """A KV cache of a shape that is not known here. The text says what is different."""


@dataclass(frozen=True)
class Plane:
    """A row of blocks: block i lies at base + i * block_bytes."""

    base: int
    block_bytes: int


def plane_of(name: str, tensor: Any, blocks: int) -> Plane:
    """The row of blocks that a layer's tensor shows. Raises NotUnderstood."""
    shape, strides = list(tensor.shape), list(tensor.stride())
    if tensor.device.type != "cpu":
        raise NotUnderstood(
            f"{name} lies on {tensor.device}: giving a device's pages back needs its virtual memory calls, which are not "
            "built here"
        )
    if not shape or shape[0] % blocks != 0 or shape[0] == 0:
        raise NotUnderstood(f"{name} is {tuple(shape)}: its first dimension should count {blocks} blocks")
    item = tensor.element_size()
    inside = 1 + sum((size - 1) * stride for size, stride in zip(shape[1:], strides[1:]))
    if inside > strides[0]:
        raise NotUnderstood(f"{name} is {tuple(shape)} with strides {tuple(strides)}: its blocks lie within each other")
    return Plane(tensor.data_ptr(), strides[0] * item * (shape[0] // blocks))


def planes_of(tensors: Dict[str, Any], blocks: int) -> List[Plane]:
    """The different rows of all layers; layers of different groups share them. Raises NotUnderstood."""
    found: Set[Plane] = set()
    for name, tensor in tensors.items():
        for part in tensor if isinstance(tensor, (list, tuple)) else [tensor]:
            found.add(plane_of(name, part, blocks))
    planes = sorted(found, key=lambda plane: plane.base)
    for plane, following in zip(planes, planes[1:]):
        if plane.base + blocks * plane.block_bytes > following.base:
            raise NotUnderstood("the layers' rows of blocks lie within each other: blocks are not contiguous")
    if not planes:
        raise NotUnderstood("the model has no KV cache")
    return planes


def span(plane: Plane, run: Run) -> Tuple[int, int]:
    """Begin and end of the whole pages that go with a run; the end may lie before the begin: none."""
    begin = plane.base + run.first * plane.block_bytes
    end = begin + run.blocks * plane.block_bytes
    up = PAGE_BYTES - 1
    begin = begin & ~up if run.with_left else (begin + up) & ~up
    return begin, ((end + up) & ~up if run.with_right else end & ~up)


def resident_bytes(begin: int, end: int) -> int:
    """How much of these whole pages is memory of ours. Not what only mincore() counts: pages that were read and never
    written, which all show the one zero page."""
    if end <= begin:
        return 0
    first, pages = begin // PAGE_BYTES, (end - begin) // PAGE_BYTES
    found = 0
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for at in range(first, first + pages, _ENTRIES):
            entries = os.pread(pagemap.fileno(), 8 * min(_ENTRIES, first + pages - at), 8 * at)
            found += entries[_HIGH_BYTE::8].translate(_IS_OWN).count(1)
    return found * PAGE_BYTES


# An entry is 64 bits: the highest says that a page is there, bit 56 that nobody else has it.
_ENTRIES = 1 << 16
_HIGH_BYTE = 7 if sys.byteorder == "little" else 0
_IS_OWN = bytes(value & 0x81 == 0x81 for value in range(256))


class Pages:
    """The pages of one worker's KV cache."""

    def __init__(self, planes: Iterable[Plane], blocks: int, how: str = "drop") -> None:
        self.planes, self.blocks, self.how = list(planes), blocks, how if how in HOW else "drop"
        self.block_bytes = sum(plane.block_bytes for plane in self.planes)
        self.gone_bytes = 0  # so far

    def check(self, run: Run) -> None:
        if not (0 < run.blocks and run.first + run.blocks <= self.blocks):
            raise ValueError(f"blocks {run.first} to {run.first + run.blocks - 1} of {self.blocks}")

    def give(self, runs: Iterable[Run]) -> int:
        """Gives the runs' pages back. Bytes that were in memory and are not any more. Raises OSError."""
        gone = 0
        for run in runs:
            self.check(run)
            for plane in self.planes:
                gone += self._drop(*span(plane, run)) if self.how == "drop" else self._pretend(plane, run)
        self.gone_bytes += gone
        return gone

    def _drop(self, begin: int, end: int) -> int:
        """Bytes that went; all of the range where the kernel does not say what was there."""
        if end <= begin:
            return 0
        try:
            bytes_before = resident_bytes(begin, end)
        except OSError:
            bytes_before = end - begin
        if _libc.madvise(begin, end - begin, _MADV_DONTNEED) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"madvise: {os.strerror(error)}")
        return bytes_before

    def _pretend(self, plane: Plane, run: Run) -> int:
        """For experiments: nothing goes back, and the answer is as if."""
        size = run.blocks * plane.block_bytes
        if self.how == "poison":
            ctypes.memset(plane.base + run.first * plane.block_bytes, 0xFF, size)
        return size

    def clean(self, block: int) -> None:
        self.check(Run(block, 1))
        for plane in self.planes:
            ctypes.memset(plane.base + block * plane.block_bytes, 0, plane.block_bytes)

    def parts(self, block: int) -> List[Tuple[int, int]]:
        """Address and bytes of all that is a block's."""
        self.check(Run(block, 1))
        return [(plane.base + block * plane.block_bytes, plane.block_bytes) for plane in self.planes]

    def commit_by_touch(self) -> int:
        """A cache that was filled with zeros at start and not used since: all of it goes back, and comes when it is
        written. Pages of the small size, so that a token commits no 2 MiB. Bytes that went."""
        gone = 0
        for plane in self.planes:
            begin, end = span(plane, Run(0, self.blocks))
            if _libc.madvise(begin, max(0, end - begin), _MADV_NOHUGEPAGE) != 0 and ctypes.get_errno() not in (
                errno.EINVAL,
                errno.ENOSYS,
            ):
                continue
            gone += self._drop(begin, end)
        self.gone_bytes += gone
        return gone
