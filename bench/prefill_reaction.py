"""Reaction inside a long step: memory ends at a random moment of a 512-token batch; how long until pages are back, and how
long a layer takes. Any model; by default one with random weights and 3 layers of a 7B model's shape (made on first use, 490 MB).

    .venv/bin/python bench/prefill_reaction.py                          # 7B shape, 20 batches: about 4 minutes
    .venv/bin/python bench/prefill_reaction.py --model build/bench/model.gguf --depth 8192 --batches 100
    .venv/bin/python bench/prefill_reaction.py --long-step-us 1000000000  # without safe points inside, to compare
    .venv/bin/python bench/prefill_reaction.py --cost --model build/bench/model.gguf    # what the stops cost, paired

Memory ends in a made-up /proc/meminfo: nothing is pressed, nothing else of the machine is read. Between two batches the cache is
whole again. What is measured:

  layer     between two layers' outputs, through the engine's own evaluation callback (stops of its own): the longest of each batch
  step      the batch
  reaction  from the file's change to the first bytes of the cache given back, looked at each millisecond; the watcher looks
            every 2 ms near a limit, and more rarely far from one, so it counts, too
  hand      the same from psi_cache.trim(0.1) by another thread: the engine's own thread answers it, between two layers

--cost: two contexts in one process, one with safe points in each step and one with none, batch about batch in turn; the
ratio of their medians, of wall time and of processor time, for batches of 512 and of 1.

Bar: p99 of reaction at most 100 ms; ends with 1 when it is missed. Writes build/bench/prefill_reaction-<model>.json.
"""
import argparse
import ctypes
import json
import os
import random
import sys
import threading
import time

from figures import quantile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "demo"))
BUILD = os.path.join(HERE, "..", "build", "bench")
BATCH = 512
BAR_MS = 100.0
PLENTY_MIB, SCARCE_MIB = 1500, 40  # of 8 GiB: below seven reserves, so that blocks are written ahead; below the reserve
NAME_AT = 256                      # in struct ggml_tensor


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file; default: made with the 7B shape")
    parser.add_argument("--depth", type=int, default=2048, metavar="TOKENS", help="in the cache before each batch")
    parser.add_argument("--context", type=int, default=0, help="default: enough")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--long-step-us", default="0", help="PSI_CACHE_LONG_STEP_US (0: safe points in each step)")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def seven_b():
    path = os.path.join(BUILD, "7b-shape.gguf")
    if not os.path.exists(path):
        import random_model
        os.makedirs(BUILD, exist_ok=True)
        print("making a model of a 7B model's shape, once ...", flush=True)
        random_model.make(random_model.arguments([path]))
    return path


class Memory:
    """A made-up /proc/meminfo."""

    def __init__(self, root):
        self.path = os.path.join(root, "proc", "meminfo")
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self.available(PLENTY_MIB)
        os.environ["PSI_CACHE_ROOT"] = root

    def available(self, mib):
        with open(self.path + ".new", "w") as file:
            file.write("MemTotal: 8388608 kB\nMemFree: %d kB\nMemAvailable: %d kB\n" % (mib * 1024, mib * 1024))
        os.replace(self.path + ".new", self.path)


def make_engine(generate, options, on_layer=None):
    class Engine(generate.Engine):
        def _context_params(self, *words):
            params = super()._context_params(*words)
            if on_layer is not None:
                params.cb_eval = ctypes.cast(on_layer, type(params.cb_eval))
            return params

    context = options.context or (options.depth + 2 * BATCH + 255) // 256 * 256
    engine = Engine(options.model, context, flash_attention=True, lock_weights=False, threads=options.threads)
    for at in range(0, options.depth, BATCH):
        if engine.decode(some_tokens(engine, at, min(BATCH, options.depth - at))) != 0:
            raise SystemExit("the cache cannot be filled")
    return engine


def some_tokens(engine, seed, count):
    return [3 + (seed * 7919 + i * i * 31) % (engine.vocab_tokens - 3) for i in range(count)]


def take_back(engine, position):
    engine._api.llama_memory_seq_rm(engine._api.llama_get_memory(engine._context), 0, position, -1)
    engine.position = position


class Layers:
    """Times at which layers' outputs are there."""

    def __init__(self):
        self.times = []
        kind = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
        self.callback = kind(self.on_node)

    def on_node(self, node, ask, _):
        if ask:
            return ctypes.string_at(node + NAME_AT, 6) == b"l_out-"
        self.times.append(time.monotonic())
        return True

    def longest_ms(self, begin_s):
        ends = [begin_s] + self.times
        self.times = []
        return max(b - a for a, b in zip(ends, ends[1:])) * 1e3


def wait_given(psi_cache, before, until):
    """Milliseconds until bytes are given back; None: not before `until` was set."""
    begin_s = time.monotonic()
    while not until.is_set():
        if psi_cache.stats()["trimmed_bytes"] > before:
            return (time.monotonic() - begin_s) * 1e3
        time.sleep(0.001)
    return None


def one_batch(engine, memory, layers, psi_cache, wait_s, by_hand, number):
    """A batch with a spike wait_s after it began."""
    row, done = {"hand": by_hand}, threading.Event()

    def spike():
        if done.wait(wait_s):
            return
        before = psi_cache.stats()["trimmed_bytes"]
        psi_cache.trim(0.1) if by_hand else memory.available(SCARCE_MIB)
        row["inside"] = not done.is_set()
        row["reaction_ms"] = wait_given(psi_cache, before, done)
        if row["reaction_ms"] is None:  # the batch is over: it goes at the next safe point
            row["waited_for_the_end"] = True

    thread = threading.Thread(target=spike)
    thread.start()
    begin_s = time.monotonic()
    if engine.decode(some_tokens(engine, number, BATCH)) != 0:
        raise SystemExit("a batch was refused")
    end_s = time.monotonic()
    done.set()
    thread.join()
    row.update(step_ms=(end_s - begin_s) * 1e3, layer_ms=layers.longest_ms(begin_s))
    return row


def settle(memory, psi_cache, engine, position):
    """Plenty again, everything back, and what is there written ahead."""
    memory.available(PLENTY_MIB)
    take_back(engine, position)
    psi_cache.restore()
    engine.decode(some_tokens(engine, 1, 1))
    take_back(engine, position)
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        stats = psi_cache.stats()
        if stats["index"] < stats["low"] and stats["clean_bytes"] > 0.5 * stats["resident_bytes"]:
            return
        time.sleep(0.02)


def figures(rows, key):
    values = [row[key] for row in rows if row.get(key) is not None]
    return {"count": len(values), "p50_ms": quantile(values, 0.5), "p99_ms": quantile(values, 0.99),
            "most_ms": max(values, default=None)}


def tell(name, what):
    if what["count"]:
        print("  %-9s p50 %8.1f ms   p99 %8.1f ms   most %8.1f ms   (%d)"
              % (name, what["p50_ms"], what["p99_ms"], what["most_ms"], what["count"]), flush=True)
    else:
        print("  %-9s never inside a batch" % name, flush=True)


def measure(options, generate, psi_cache, memory):
    layers, chance = Layers(), random.Random(options.seed)
    engine = make_engine(generate, options, layers.callback)
    position = engine.position
    settle(memory, psi_cache, engine, position)
    layers.times = []
    begin_s = time.monotonic()
    engine.decode(some_tokens(engine, 2, BATCH))
    usual_s = time.monotonic() - begin_s
    take_back(engine, position)
    rows = []
    for number in range(options.batches):
        settle(memory, psi_cache, engine, position)
        layers.times = []
        rows.append(one_batch(engine, memory, layers, psi_cache, chance.uniform(0, 0.9) * usual_s, number % 4 == 3, number))
    by_watcher, by_hand = [r for r in rows if not r["hand"]], [r for r in rows if r["hand"]]
    late = sum(bool(row.get("waited_for_the_end")) for row in rows)
    result = {"step": figures(rows, "step_ms"), "layer": figures(rows, "layer_ms"),
              "reaction": figures(by_watcher, "reaction_ms"), "hand": figures(by_hand, "reaction_ms"),
              "waited_for_the_end": late, "rows": rows}
    for name in ("step", "layer", "reaction", "hand"):
        tell(name, result[name])
    print("  answered only after their batch: %d of %d" % (late, len(rows)), flush=True)
    held = late == 0 and result["reaction"]["count"] and result["reaction"]["p99_ms"] <= BAR_MS
    return result, 0 if held else 1


def cost(options, generate):
    os.environ["PSI_CACHE_LONG_STEP_US"] = "0"
    engines = [make_engine(generate, options)]
    os.environ["PSI_CACHE_LONG_STEP_US"] = str(10 ** 12)
    engines.append(make_engine(generate, options))
    result = {}
    for count in (BATCH, 1):
        times = ([], [])
        for number in range(options.batches * (1 if count > 1 else 10)):
            for side in ((0, 1), (1, 0))[number % 2]:
                engine = engines[side]
                position = engine.position
                wall, used = time.monotonic(), time.process_time()
                engine.decode(some_tokens(engine, number, count))
                engine.best_token()
                times[side].append((time.monotonic() - wall, time.process_time() - used))
                take_back(engine, position)
        wall = [quantile([t[0] for t in side], 0.5) for side in times]
        used = [quantile([t[1] for t in side], 0.5) for side in times]
        least = [min(t[1] for t in side) for side in times]
        result[count] = {"wall_ms": [w * 1e3 for w in wall], "used_ms": [u * 1e3 for u in used]}
        print("  batches of %3d: %8.2f ms with, %8.2f ms without: wall %.4f, processor %.4f (of the least %.4f)"
              % (count, wall[0] * 1e3, wall[1] * 1e3, wall[0] / wall[1], used[0] / used[1], least[0] / least[1]), flush=True)
    return result, 0


def main():
    options = arguments()
    import tempfile

    options.model = options.model or seven_b()
    os.environ.setdefault("PSI_CACHE_CONTROLLER", "off" if options.cost else "on")
    os.environ["PSI_CACHE_LONG_STEP_US"] = options.long_step_us
    os.environ.setdefault("PSI_CACHE_VERBOSE", "0")
    with tempfile.TemporaryDirectory() as root:
        memory = Memory(root)
        import psi_cache
        import psi_cache.llama  # before generate's llama_cpp
        import generate
        print("%s, %d threads, %d tokens in the cache, load %.1f"
              % (os.path.basename(options.model), options.threads, options.depth, os.getloadavg()[0]), flush=True)
        if options.cost:
            result, status = cost(options, generate)
        else:
            result, status = measure(options, generate, psi_cache, memory)
    name = os.path.splitext(os.path.basename(options.model))[0]
    os.makedirs(BUILD, exist_ok=True)
    with open(os.path.join(BUILD, "prefill_%s-%s.json" % ("cost" if options.cost else "reaction", name)), "w") as file:
        json.dump({**result, "settings": vars(options), "load": os.getloadavg()[0]}, file, indent=1)
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
