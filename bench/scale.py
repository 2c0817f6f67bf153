"""What a trim and a restore can do against what memory and the disk can, and what a safe point costs in large caches.

    .venv/bin/python bench/scale.py                      # about two minutes; 512 MiB of memory, 512 MiB of disk
    .venv/bin/python bench/scale.py --mib 64 --rounds 3 --cells 32768 1048576

Without an engine, through the C interface. Bandwidth: blocks that have a copy in the store are trimmed (no byte is
written) and read back; in turn with it, one madvise over as many bytes, and one plain read of as many bytes of a file in
the same directory, past the page cache where the file system allows, in pieces of 4 MiB: the disk's limit. Beside it, to
tell where the time goes: the same read in pieces of a block (a disk needs as long for a small request as for a large one),
and writing to as many fresh pages (the kernel takes and clears each). Cost: a pool as a context of so many cells would
have it, 32 cells a block, each block of one page: a safe point with nothing to do while a step reads all blocks, and one
that trims a tenth of them (dropped, no store): deciding, marking and giving back. Writes build/bench/scale.json.
Bar: trim and restore at least half of what memory and the disk can do; ends with 1 otherwise.
"""
import argparse
import ctypes
import mmap
import os
import random
import statistics
import sys
import time
import typing

import decision_time  # before psi_cache: it sets the options of the environment
import figures
import rig
from psi_cache import _native

BAR = 0.5
CELLS_A_BLOCK = 32
PAGE_BYTES = mmap.PAGESIZE
READ_PIECE_BYTES = 4 * rig.MIB
KEPT_BLOCKS = 3  # a pool keeps its first and its two newest
MADV_DONTNEED = 4
libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="of a pool, and of the file beside it (default 256)")
    parser.add_argument("--kib", type=int, nargs="+", default=[64, 576], help="a block; 576: 32 tokens of Gemma 3 270M")
    parser.add_argument("--rounds", type=int, default=9, help="of trim and restore (default 9)")
    parser.add_argument("--cells", type=int, nargs="+", default=[4096, 32768, 131072, 1048576])
    parser.add_argument("--steps", type=int, default=200, help="safe points for the cost of one (default 200)")
    parser.add_argument("--trims", type=int, default=20, help="for the cost of a decision (default 20)")
    parser.add_argument("--store-dir", default="/var/tmp")
    options = parser.parse_args()
    if min(options.mib, options.rounds, options.steps, options.trims, *options.kib) < 1 or min(options.cells) < 1024:
        parser.error("sizes and counts are 1 or more, --cells 1024 or more")
    if any(kib * 1024 % PAGE_BYTES for kib in options.kib):
        parser.error("--kib: a block is whole pages of %d bytes" % PAGE_BYTES)
    if not os.path.isdir(options.store_dir):
        parser.error("--store-dir %s is no directory" % options.store_dir)
    return options


class Took(typing.NamedTuple):
    """By the clock, and of processor time: on a machine that does other things the second is nearer to the truth."""
    us: float
    cpu_us: float


def now():
    return time.perf_counter_ns(), time.process_time_ns()


def since(begin):
    return Took(*((after - before) / 1000 for before, after in zip(begin, now())))


class Pool:
    """A pool of the C interface, all of its blocks handed out and written."""

    def __init__(self, library, blocks, block_bytes, store, store_dir):
        os.environ.update(PSI_CACHE_STORE=store, PSI_CACHE_STORE_DIR=store_dir)
        self._library, self.blocks, self.block_bytes = library, blocks, block_bytes
        self._cache = library.psi_cache_open(None)
        self._pool = library.psi_pool_create(self._cache, _native.PoolOptions(
            size=ctypes.sizeof(_native.PoolOptions), block_bytes=block_bytes, blocks=blocks))
        self._addresses = [library.psi_block_alloc(self._pool, None) for _ in range(blocks)]
        if not self._pool or None in self._addresses:
            sys.exit("no memory for %d blocks of %d bytes" % (blocks, block_bytes))

    def write(self, bytes_of_each):
        page = os.urandom(bytes_of_each)  # what no disk folds together
        for block, address in enumerate(self._addresses):
            self._library.psi_block_write(self._pool, block)
            ctypes.memmove(address, page, bytes_of_each)

    def score(self, draw):
        scores = (ctypes.c_float * self.blocks)(*(draw.random() for _ in range(self.blocks)))
        for kind in (decision_time.ATTENTION, decision_time.KEYS):
            self._library.psi_pool_score(self._pool, kind, scores)

    def mark(self, marks):
        self._library.psi_pool_mark(ctypes.c_void_p(self._pool), marks)

    def step(self):
        """(Took, blocks that moved)"""
        begin = now()
        moved = self._library.psi_pool_step(self._pool)
        return since(begin), moved

    def close(self):
        self._library.psi_pool_destroy(self._pool)
        self._library.psi_cache_close(self._cache)


# ---- bandwidth ---------------------------------------------------------------------------------------

def memory_took(length):
    """One madvise over so many bytes that were written to."""
    with mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)  # as a cache's pages are
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        ctypes.memset(address, 1, length)
        begin = now()
        if libc.madvise(address, length, MADV_DONTNEED) != 0:
            sys.exit("madvise: %s" % os.strerror(ctypes.get_errno()))
        return since(begin)


def fresh_took(length):
    """Writing to so many bytes of pages that are not there yet: the kernel takes and clears each."""
    with mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        begin = now()
        ctypes.memset(address, 1, length)
        return since(begin)


class File:
    """As many bytes in a file without a name, in the store's directory."""

    def __init__(self, directory, length):
        self._length = length // READ_PIECE_BYTES * READ_PIECE_BYTES
        self._piece = mmap.mmap(-1, READ_PIECE_BYTES)
        self._piece.write(os.urandom(READ_PIECE_BYTES))
        flags = os.O_TMPFILE | os.O_RDWR
        try:
            self._descriptor, self.direct = os.open(directory, flags | os.O_DIRECT, 0o600), True
        except OSError:  # a file system without it
            self._descriptor, self.direct = os.open(directory, flags, 0o600), False
        for at in range(0, self._length, READ_PIECE_BYTES):
            os.pwritev(self._descriptor, [self._piece], at)
        os.fsync(self._descriptor)

    def read_mb_s(self, piece_bytes=READ_PIECE_BYTES):
        if not self.direct:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        piece = memoryview(self._piece)[:piece_bytes]
        begin_ns = time.perf_counter_ns()
        for at in range(0, self._length - piece_bytes + 1, piece_bytes):
            os.preadv(self._descriptor, [piece], at)
        took_us = (time.perf_counter_ns() - begin_ns) / 1000
        piece.release()
        return self._length // piece_bytes * piece_bytes / took_us

    def close(self):
        os.close(self._descriptor)


def bandwidth(library, kib, options):
    blocks = options.mib * 1024 // kib
    pool, file = Pool(library, blocks, kib * 1024, "file", options.store_dir), File(options.store_dir,
                                                                                 options.mib * rig.MIB)
    samples = {name: [] for name in ("trim_mb_s", "memory_mb_s", "restore_mb_s", "disk_mb_s", "disk_pieces_mb_s", "fresh_mb_s",
                                     "trim_cpu_us", "memory_cpu_us")}
    try:
        pool.write(kib * 1024)
        pool.step()
        give_and_take(pool, blocks)  # writes the copies
        for _ in range(options.rounds):
            trim, restore, moved_bytes = give_and_take(pool, blocks)
            memory = memory_took(moved_bytes)
            for name, took in (("trim", trim), ("memory", memory)):
                samples[name + "_mb_s"].append(moved_bytes / took.us)
                samples[name + "_cpu_us"].append(took.cpu_us)
            samples["restore_mb_s"].append(moved_bytes / restore.us)
            samples["disk_mb_s"].append(file.read_mb_s())
            samples["disk_pieces_mb_s"].append(file.read_mb_s(min(kib * 1024, READ_PIECE_BYTES)))
            samples["fresh_mb_s"].append(moved_bytes / fresh_took(moved_bytes).us)
    finally:
        pool.close()
        file.close()
    row = {"blocks": blocks, "block_bytes": kib * 1024, "samples": samples, "direct": file.direct,
           **{name: statistics.median(values) for name, values in samples.items()}}
    row["trim_share"] = row["trim_mb_s"] / row["memory_mb_s"]
    row["trim_cpu_share"] = row["memory_cpu_us"] / row["trim_cpu_us"]
    row["restore_share"] = row["restore_mb_s"] / row["disk_mb_s"]
    # One after the other: a block is read, then its pages are taken.
    row["one_by_one_mb_s"] = 1 / (1 / row["disk_pieces_mb_s"] + 1 / row["fresh_mb_s"])
    return row


def give_and_take(pool, blocks):
    """All out, all back: (the trim Took, the restore, bytes that moved each time)."""
    _native.trim(1.0)
    trim, out = pool.step()
    _native.restore()
    restore, back = pool.step()
    if out < blocks - KEPT_BLOCKS or back != out:
        sys.exit("of %d blocks %d went and %d came back: no bandwidth can be told (free memory, or disk, is short?)"
                 % (blocks, out, back))
    return trim, restore, out * pool.block_bytes


# ---- cost --------------------------------------------------------------------------------------------

def cost(library, cells, options):
    blocks, draw = cells // CELLS_A_BLOCK, random.Random(1)
    pool = Pool(library, blocks, PAGE_BYTES, "none", options.store_dir)
    try:
        pool.write(PAGE_BYTES)
        idle_us, decide_us = [], []
        for _ in range(options.steps):
            pool.mark(b"\1" * blocks)
            idle_us.append(pool.step()[0].us)
        for _ in range(options.trims):
            pool.write(PAGE_BYTES)
            pool.step()
            pool.score(draw)
            pool.mark(b"\1" * blocks)
            _native.trim(0.1)
            took, moved = pool.step()
            if moved < blocks // 12:
                sys.exit("only %d of %d blocks went" % (moved, blocks))
            decide_us.append(took.us)
    finally:
        pool.close()
    return {"cells": cells, "blocks": blocks, "samples": {"step_us": idle_us, "decide_us": decide_us},
            "step_p50_us": figures.quantile(idle_us, 0.5), "step_p99_us": figures.quantile(idle_us, 0.99),
            "step_worst_us": max(idle_us), "decide_p50_us": figures.quantile(decide_us, 0.5),
            "decide_worst_us": max(decide_us)}


def main():
    options = arguments()
    os.makedirs(rig.BUILD, exist_ok=True)
    library = decision_time.load()
    rig.say(rig.machine_line())
    bandwidths, costs = [], []
    for kib in options.kib:
        row = bandwidth(library, kib, options)
        bandwidths.append(row)
        rig.say("  blocks of %4d KiB: trim %6.0f MB/s (memory %6.0f: %.2f; of processor time %.2f), restore %5.0f MB/s "
                "(disk %5.0f: %.2f; in pieces of a block %.0f, fresh pages %.0f, one after the other %.0f)" % (
            kib, row["trim_mb_s"], row["memory_mb_s"], row["trim_share"], row["trim_cpu_share"], row["restore_mb_s"],
            row["disk_mb_s"], row["restore_share"], row["disk_pieces_mb_s"], row["fresh_mb_s"], row["one_by_one_mb_s"]))
    for cells in options.cells:
        row = cost(library, cells, options)
        costs.append(row)
        rig.say("  %8d cells: safe point p50 %.1f us, p99 %.1f us; one that trims a tenth p50 %.2f ms, worst %.2f ms" % (
            cells, row["step_p50_us"], row["step_p99_us"], row["decide_p50_us"] / 1000, row["decide_worst_us"] / 1000))
    held = all(row[name] >= BAR for row in bandwidths for name in ("trim_share", "restore_share"))
    settings = {key: value for key, value in vars(options).items() if key != "store_dir"}
    rig.save("scale.json", {
        "bandwidth": bandwidths, "cost": costs, "bar": BAR, "held": held, "options": settings,
        "machine": rig.demo.machine(), "library_build": rig.library_build(), "command":
        "make bench-scale ARGS=\"--mib %d --kib %s --rounds %d --cells %s\"" % (
            options.mib, " ".join(map(str, options.kib)), options.rounds, " ".join(map(str, options.cells)))})
    rig.say("bar: trim and restore at least %.1f of what memory and the disk can do: %s" % (
        BAR, "held" if held else "missed"))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
