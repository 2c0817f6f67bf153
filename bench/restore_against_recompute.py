"""Reading a sleeping sequence back from the store against computing it again: ours and stock, in turn.

Ours: a sequence of N tokens is decoded, falls asleep, and is trimmed: its blocks rest in the store, whose pages the
kernel is asked to forget. Then one more token of it is decoded, which brings back first what the token can see: the time
until the sleeper answers. Then all is trimmed and forgotten again, and all of it is restored in a step of another
sequence: what the restore took is that step less one without. Stock: the same N tokens are decoded. Prints medians, and
the ratios of the prefill to both. Writes build/bench/restore_against_recompute.json; ends with 1 where a ratio of restore is below the bar.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "demo"))
import demo  # noqa: E402
import generate  # noqa: E402

BUILD = os.path.join(HERE, "..", "build", "bench")
SLEEPER, RUNNER = 0, 1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=(4000, 16000))
    parser.add_argument("--rounds", type=int, default=5, help="pairs of processes for each number of tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flash-attention", choices=("on", "off"), default="on")
    parser.add_argument("--store-dir", default="/var/tmp")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model")
    parser.add_argument("--bar", type=float, default=50, help="ends with 1 below this ratio (default 50)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- the child: one engine, one number of tokens -----------------------------------------------------

class Engine(generate.Engine):
    """The demo's engine with two sequences in one cache."""

    def _context_params(self, *arguments):
        params = super()._context_params(*arguments)
        params.n_seq_max, params.kv_unified = 2, True
        if hasattr(params, "n_outputs_max"):
            params.n_outputs_max = 2
        return params

    def decode(self, tokens, position, sequence):
        """Microseconds."""
        api, batch = self._api, self._api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position + i, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, i == len(tokens) - 1
        began_ns = time.perf_counter_ns()
        result = api.llama_decode(self._context, batch)
        took_us = (time.perf_counter_ns() - began_ns) / 1000
        api.llama_batch_free(batch)
        if result != 0:
            raise SystemExit("llama_decode: %d" % result)
        return took_us

    def clear(self):
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def read(self, tokens, sequence):
        return sum(self.decode(tokens[at:at + 512], at, sequence) for at in range(0, len(tokens), 512))


def forget_the_store():
    """Its pages, where it is not read past the page cache anyway."""
    os.sync()
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink("/proc/self/fd/" + number).endswith("(deleted)"):
                os.posix_fadvise(int(number), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            continue


def store_it(engine, token, position):
    """The sleeper is no part of these steps, so its blocks go first. The steps' times without a trim, and the next position."""
    import psi_cache
    steps_us = []
    for _ in range(3):
        psi_cache.trim(1.0)
        engine.decode([token], position, RUNNER)
        steps_us.append(engine.decode([token], position + 1, RUNNER))
        position += 2
    forget_the_store()
    return steps_us, position


def sleep_and_wake(engine, tokens):
    import psi_cache
    count, token = len(tokens), tokens[-1]
    engine.decode(tokens[:1], 0, RUNNER)
    _, position = store_it(engine, token, 1)
    answer_us = engine.decode([token], count, SLEEPER)
    steps_us, position = store_it(engine, token, position)
    before = psi_cache.stats()
    psi_cache.restore()
    restoring_us = engine.decode([token], position, RUNNER)
    after = psi_cache.stats()
    return {"step_us": statistics.median(steps_us), "answer_us": answer_us,
            "restore_us": restoring_us - statistics.median(steps_us),
            "stored_bytes": before["stored_bytes"], "left_bytes": before["resident_bytes"],
            "restored_bytes": after["restored_bytes"] - before["restored_bytes"],
            "still_out_bytes": after["stored_bytes"] + after["dropped_bytes"]}


def child(options):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not land among the answers
    ours = options.child == "ours"
    os.environ.update(PSI_CACHE_CONTROLLER="off", PSI_CACHE_STORE="file", PSI_CACHE_STORE_DIR=options.store_dir,
                      PSI_CACHE_FLOOR_BYTES="1")
    generate.load_psi_cache("ours" if ours else "stock")
    count = options.tokens[0]
    engine = Engine(options.model, context_tokens=(count + 1279) // 256 * 256,
                    flash_attention=options.flash_attention == "on", lock_weights=False, threads=options.threads)
    tokens = generate.prompt_tokens(engine, count, options.seed)
    engine.read(tokens[:64], SLEEPER)  # first touches of weights and buffers are no part of it
    engine.clear()
    result = {"prefill_us": engine.read(tokens, SLEEPER)}
    if ours:
        result.update(sleep_and_wake(engine, tokens))
    print(json.dumps(result), file=answers, flush=True)
    os._exit(0)


# ---- the harness -------------------------------------------------------------------------------------

def run(mode, count, options):
    command = [sys.executable, os.path.abspath(__file__), "--child", mode, "--model", options.model, "--tokens",
               str(count), "--threads", str(options.threads), "--flash-attention", options.flash_attention,
               "--store-dir", options.store_dir, "--seed", str(options.seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stderr[-3000:])
        raise SystemExit("%s ended: status %d" % (mode, done.returncode))
    return json.loads(done.stdout)


def measure(count, options):
    ours, stock = [], []
    for turn in range(options.rounds):
        for mode, into in (("ours", ours), ("stock", stock)) if turn % 2 == 0 else (("stock", stock), ("ours", ours)):
            into.append(run(mode, count, options))
        print("  %d tokens, %d of %d rounds: restored in %.1f ms, prefill %.0f ms" % (
            count, turn + 1, options.rounds, ours[-1]["restore_us"] / 1000, stock[-1]["prefill_us"] / 1000), flush=True)
    prefill_us = statistics.median(each["prefill_us"] for each in stock)
    restore_us = statistics.median(each["restore_us"] for each in ours)
    answer_us = statistics.median(each["answer_us"] for each in ours)
    return {"tokens": count, "prefill_us": prefill_us, "restore_us": restore_us, "answer_us": answer_us,
            "ratio": prefill_us / restore_us, "answer_ratio": prefill_us / answer_us,
            "restored_share": min(each["restored_bytes"] / max(each["stored_bytes"] + each["left_bytes"], 1)
                                  for each in ours),
            "still_out_bytes": max(each["still_out_bytes"] for each in ours), "ours": ours, "stock": stock}


def main():
    options = arguments()
    if options.child:
        return child(options)
    os.makedirs(BUILD, exist_ok=True)
    os.makedirs(demo.BUILD, exist_ok=True)
    options.model = demo.model_file(options)
    results = [measure(count, options) for count in options.tokens]
    where = demo.machine()
    demo.save(os.path.join(BUILD, "restore_against_recompute.json"), {"results": results, "machine": where})
    print("%s, %d CPUs, Linux %s" % (where["cpu"], where["cpus"], where["kernel"]))
    for r in results:
        print("%d tokens: restored in %.1f ms (%.0f %% of the cache; %d bytes still out), prefill of stock %.1f ms: "
              "%.1f times (bar: at least %.0f)" % (r["tokens"], r["restore_us"] / 1000, 100 * r["restored_share"],
                                                  r["still_out_bytes"], r["prefill_us"] / 1000, r["ratio"], options.bar))
        print("    the sleeping sequence answers after %.1f ms: %.1f times faster than anew"
              % (r["answer_us"] / 1000, r["answer_ratio"]))
    return 0 if all(r["ratio"] >= options.bar for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
