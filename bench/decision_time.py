"""How long a pool of 2,000 blocks takes to decide: which blocks go, and give them back, at one safe point.

Through the public C interface, with scores on every block, no store (what goes is dropped), a fifth of the blocks each
time. Looking at all blocks, rating, the heap, marking, and the system's part (madvise) are all in it: an upper bound of
the decision. Prints p50, p99 and the worst for each policy; ends with 1 when a worst is above the bar.
"""
import argparse
import ctypes
import os
import random
import sys
import time

os.environ.update(PSI_CACHE_CONTROLLER="off", PSI_CACHE_STORE="none", PSI_CACHE_FLOOR_BYTES="1")
from psi_cache import _native  # noqa: E402

POLICIES = ("fifo", "lru", "attention", "keys", "auto")
ATTENTION, KEYS = 0, 1


def load():
    library = _native.library()
    library.psi_cache_open.restype = library.psi_pool_create.restype = ctypes.c_void_p
    library.psi_block_alloc.restype = ctypes.c_void_p
    library.psi_pool_create.argtypes = [ctypes.c_void_p, ctypes.POINTER(_native.PoolOptions)]
    library.psi_block_alloc.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.psi_block_write.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.psi_pool_score.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    for name in ("psi_pool_step", "psi_pool_step_end", "psi_pool_clear", "psi_pool_destroy", "psi_cache_close"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    return library


def fill(library, pool, blocks, page_bytes, addresses, random_):
    """All blocks written, scored, and read by the coming step: none is asleep."""
    for block in range(blocks):
        library.psi_block_write(pool, block)
        ctypes.memset(addresses[block], 1, page_bytes)
    library.psi_pool_step(pool)
    for kind in (ATTENTION, KEYS):
        library.psi_pool_score(pool, kind, (ctypes.c_float * blocks)(*(random_.random() for _ in range(blocks))))
    library.psi_pool_mark(ctypes.c_void_p(pool), b"\1" * blocks)


def measure(library, pool, options, addresses, policy):
    _native.set_option("policy", policy)
    times_us, random_ = [], random.Random(1)
    for _ in range(options.runs):
        fill(library, pool, options.blocks, 4096, addresses, random_)
        _native.trim(0.2)
        begin_ns = time.perf_counter_ns()
        moved = library.psi_pool_step(pool)
        times_us.append((time.perf_counter_ns() - begin_ns) / 1000)
        if moved < options.blocks // 6:
            sys.exit(f"{policy}: only {moved} blocks went")
    return sorted(times_us)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--bar-ms", type=float, default=5)
    options = parser.parse_args()
    library = load()
    cache = library.psi_cache_open(None)
    pool = library.psi_pool_create(cache, _native.PoolOptions(
        size=ctypes.sizeof(_native.PoolOptions), block_bytes=4096, blocks=options.blocks))
    addresses = [library.psi_block_alloc(pool, None) for _ in range(options.blocks)]
    worst_ms = 0
    for policy in POLICIES:
        times_us = measure(library, pool, options, addresses, policy)
        worst_ms = max(worst_ms, times_us[-1] / 1000)
        print(f"{policy:9} p50 {times_us[len(times_us) // 2]:6.0f} us   p99 {times_us[len(times_us) * 99 // 100]:6.0f} us"
              f"   worst {times_us[-1]:6.0f} us   ({options.blocks} blocks, {options.runs} trims)")
    library.psi_pool_destroy(pool)
    library.psi_cache_close(cache)
    return 1 if worst_ms > options.bar_ms else 0


if __name__ == "__main__":
    sys.exit(main())
