"""Scenarios of several contexts in one process, for test_llama_operations.py: with psi_cache and without. One JSON object.

python contexts_driver.py '{"ours": true, "scenario": "threads", "models": {...}}'
"""

import json
import os
import threading

import operations_driver as driver
from operations_driver import low, options

if options["ours"]:
    import psi_cache


def trim(share: float) -> None:
    if options["ours"]:
        psi_cache.trim(share)


def restore() -> None:
    if options["ours"]:
        psi_cache.restore()


def stats() -> dict:
    try:
        return psi_cache.stats() if options["ours"] else {}
    except psi_cache.PsiCacheError:
        return {}  # no cache was opened: there was none that we know


def context(model: str, **config):
    return driver.Context({"model": options["models"][model], "cells": 512, "sequences": 2, **config}, False)


def fill(c, sequences=(0, 1), tokens=80) -> list:
    return [c.decode([[s, tokens, s + 1]])["outputs"] for s in sequences]


def other_memory():
    """A model with a recurrent state, or with one and a KV cache: sequences, states, and a trim of what is asleep."""
    c = context(options["kind"])
    out = fill(c, (1, 1, 0, 0), 64)  # whole blocks, so that none is of both
    trim(0.2)
    for i in range(12):
        out.append(c.decode([[0, 1, i]])["outputs"])
    stored = stats().get("stored_bytes", 0)
    low.llama_memory_seq_rm(c.memory, 0, -1, -1)
    low.llama_memory_seq_cp(c.memory, 1, 0, -1, -1)
    out += [c.decode([[s, 9, 5]])["outputs"] for s in (0, 1)]
    size = low.llama_state_get_size(c.context)
    state = (driver.ctypes.c_uint8 * size)()
    low.llama_state_get_data(c.context, state, size)
    out.append(driver.hashlib.sha256(bytes(state)).hexdigest())
    low.llama_memory_clear(c.memory, True)
    out.append(low.llama_state_set_data(c.context, state, size))
    out += [c.decode([[s, 3, 6]])["outputs"] for s in (1, 0)]
    return {"out": out, "stored_bytes": stored}


def many_contexts():
    """Forty contexts at once; what the last one wants of what is hidden is still heard."""
    kept = [context("llama", cells=256) for _ in range(40)]
    for c in kept:
        fill(c, tokens=3)
    last = context("llama", sequences=1, cells=1024)
    for _ in range(6):
        last.decode([[0, 80, 1]])
    psi_cache.set_option("policy", "fifo")
    psi_cache.trim(0.6)
    before = psi_cache.stats()["recalls"]
    for i in range(6):
        last.decode([[0, 20, i]])
    recalls = psi_cache.stats()["recalls"] - before
    for c in [*kept, last]:
        c.free()
    return {"recalls": recalls, "pools": psi_cache.stats()["pools"]}


def fork():
    """A child goes on with what its parent has, stored blocks too; the parent is as if nothing had been."""
    c = context("llama")
    fill(c, (1, 1, 0, 0), 64)
    trim(0.3)
    for i in range(4):
        c.decode([[0, 1, i]])
    stored = stats().get("stored_bytes", 0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        out = [c.decode([[s, 2, 9]])["outputs"] for s in (0, 1, 0)]
        low.llama_memory_seq_rm(c.memory, 1, 20, 60)
        low.llama_memory_seq_add(c.memory, 1, 60, -1, -40)
        out.append(c.decode([[1, 2, 9]])["outputs"])
        os.write(writing, json.dumps(out).encode())
        os._exit(0)
    os.close(writing)
    status = os.waitpid(child, 0)[1]
    out = json.loads(os.read(reading, 1 << 16))
    mine = [c.decode([[s, 2, 9]])["outputs"] for s in (0, 1, 0)]
    return {"child": out, "parent": mine, "stored_bytes": stored, "status": status}


def threads():
    """A context a thread: steps while blocks of all of them come and go, taken back; then everything is back."""
    contexts = [context(model) for model in ("llama", "gemma2", "llama", "gemma2")]
    out: dict = {}

    filled = threading.Barrier(len(contexts) + 1)

    def work(number):
        c = contexts[number]
        fill(c), fill(c)
        filled.wait()
        for i in range(30):
            c.again(i, i)

    running = [threading.Thread(target=work, args=[i]) for i in range(len(contexts))]
    for thread in running:
        thread.start()
    filled.wait()
    while any(thread.is_alive() for thread in running):
        trim(0.3)
        running[0].join(0.01)
    for c in contexts:  # a trim that is still asked for
        c.again(0, 1)
    stored = stats().get("stored_bytes", 0)
    restore()

    def finish(number):
        out[number] = [contexts[number].decode([[s, 3, 7]], True)["outputs"] for s in (0, 1)]

    running = [threading.Thread(target=finish, args=[i]) for i in range(len(contexts))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return {"out": [out[i] for i in range(len(contexts))], "stored_bytes": stored}


def dropped_state():
    """States of two sequences, of which one has lost blocks."""
    c = context("llama", cells=1024)
    fill(c, (0, 0, 0, 0, 0, 1), 64)
    psi_cache.trim(0.4)  # of the oldest
    c.decode([[0, 1, 0], [1, 1, 0]])
    sizes = []
    for sequence in (1, 0):
        size = low.llama_state_seq_get_size(c.context, sequence)
        state = (driver.ctypes.c_uint8 * size)()
        sizes.append(low.llama_state_seq_get_data(c.context, state, size, sequence) == size)
        print(f"saved {sequence}", file=driver.sys.stderr, flush=True)
    return {"sizes": sizes, "dropped_bytes": stats()["dropped_bytes"]}


print(json.dumps(globals()[options["scenario"]]()))
