"""One process, one engine, one scenario: run by test_llama_python.py, with and without psi_cache, because what stands in for
the engine's calls must be loaded before it. Prints one JSON object.

    python llama_driver.py SCENARIO '{"ours": true, "model": "...", ...}'
"""

import ctypes
import hashlib
import json
import os
import pathlib
import sys
import time

options = json.loads(sys.argv[2])
if options["ours"]:
    import psi_cache.llama
    import psi_cache

import llama_cpp  # noqa: E402  after psi_cache.llama
import numpy  # noqa: E402
from llama_cpp import llama_cpp as low  # noqa: E402


def rss_anon_bytes() -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


class Engine:
    """A context of llama.cpp through its own low-level interface, so that sequences and positions are ours to choose."""

    def __init__(self, cells=32768, flash_attention=True, sequences=1, unified=False, batch=512, callback=None):
        low.llama_backend_init()
        model_parameters = low.llama_model_default_params()
        if options.get("one_cache"):  # no sliding window: all layers share one cache
            self.overrides = (low.llama_model_kv_override * 2)()
            self.overrides[0].tag = low.LLAMA_KV_OVERRIDE_TYPE_INT
            self.overrides[0].key = b"gemma3.attention.sliding_window"
            self.overrides[0].value.val_i64 = 0
            model_parameters.kv_overrides = self.overrides
        self.model = low.llama_model_load_from_file(options["model"].encode(), model_parameters)
        assert self.model
        parameters = low.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = cells, batch, min(batch, 512)
        parameters.n_threads = parameters.n_threads_batch = options.get("threads", 2)
        parameters.n_seq_max, parameters.kv_unified, parameters.swa_full = (
            sequences,
            unified,
            options.get("swa_full", True),
        )
        parameters.type_k = parameters.type_v = options.get("cache_type", 1)  # 1: f16, 8: q8_0
        parameters.flash_attn_type = 1 if flash_attention else 0
        if callback is not None:
            parameters.cb_eval = ctypes.cast(callback, type(parameters.cb_eval))
        self.context = low.llama_init_from_model(self.model, parameters)
        assert self.context
        self.vocabulary = low.llama_model_get_vocab(self.model)
        self.words = low.llama_vocab_n_tokens(self.vocabulary)
        self.batch = low.llama_batch_init(batch, 0, 1)
        self.batch_size = batch
        self.rss_after_context_bytes = rss_anon_bytes()

    def tokens(self, text: str, count: int = 0):
        """The first `count` tokens of a text that has them; 0: all of them."""
        data = text.encode()
        buffer = (low.llama_token * (len(data) + 8))()
        got = low.llama_tokenize(self.vocabulary, data, len(data), buffer, len(buffer), True, False)
        assert got >= count, (got, count)
        return list(buffer[: count or got])

    def decode(self, tokens, first_position: int, sequence: int = 0) -> int:
        """Decodes tokens of one sequence; the last one's logits are wanted. The engine's return value."""
        for at in range(0, len(tokens), self.batch_size):
            part = tokens[at : at + self.batch_size]
            self.batch.n_tokens = len(part)
            for i, token in enumerate(part):
                self.batch.token[i] = token
                self.batch.pos[i] = first_position + at + i
                self.batch.n_seq_id[i] = 1
                self.batch.seq_id[i][0] = sequence
                self.batch.logits[i] = i == len(part) - 1
            result = low.llama_decode(self.context, self.batch)
            if result != 0:
                return result
        return 0

    def logits(self):
        pointer = low.llama_get_logits_ith(self.context, -1)
        return numpy.ctypeslib.as_array(pointer, shape=(self.words,)).copy()

    def again(self, token: int, position: int, sequence: int = 0):
        """Takes the sequence's last token back, decodes it anew, and gives its logits."""
        low.llama_memory_seq_rm(low.llama_get_memory(self.context), sequence, position, -1)
        result = self.decode([token], position, sequence)
        assert result == 0, result
        return self.logits()


def text(seed: int, entries: int = 700) -> str:
    return "".join(
        f"Log entry {i}: arm {seed + i % 7} moved to {(i * 37 + seed) % 360} degrees and held for {i % 11} seconds. "
        for i in range(entries)
    )


def digest(hashed, logits) -> None:
    hashed.update(logits.tobytes())


def greedy():
    """Greedy output and all its logits."""
    engine = Engine(flash_attention=options["flash_attention"])
    prompt = engine.tokens(text(1), options["prompt"])
    assert engine.decode(prompt, 0) == 0
    hashed, out = hashlib.sha256(), []
    for i in range(options["count"]):
        logits = engine.logits()
        digest(hashed, logits)
        out.append(int(logits.argmax()))
        assert engine.decode([out[-1]], len(prompt) + i) == 0
    return {"tokens": out, "logits": hashed.hexdigest(), "rss_after_context_bytes": engine.rss_after_context_bytes}


def stats_now():
    return psi_cache.stats() if options["ours"] else {}


def round_trip():
    """Trims half the cells of each sequence, restores them, and evaluates the last token again each time."""
    sequences = options.get("sequences", 1)
    engine = Engine(
        cells=options.get("cells", 32768),
        flash_attention=options["flash_attention"],
        sequences=sequences,
        unified=options.get("unified", False),
    )
    prompts = [engine.tokens(text(s + 1), options["prompt"]) for s in range(sequences)]
    for s, prompt in enumerate(prompts):
        assert engine.decode(prompt, 0, s) == 0
    last = options["prompt"] - 1

    def all_again():
        return [engine.again(prompt[-1], last, s) for s, prompt in enumerate(prompts)]

    before = all_again()
    rss = [rss_anon_bytes()]
    psi_cache.trim(0.5)
    first_hidden = engine.again(prompts[0][-1], last, 0)
    trimmed = stats_now()
    rss.append(rss_anon_bytes())
    psi_cache.restore()
    after = all_again()
    rss.append(rss_anon_bytes())
    return {
        "identical": [a.tobytes() == b.tobytes() for a, b in zip(before, after)],
        "changed_while_trimmed": bool((first_hidden != before[0]).any()),
        "finite_while_trimmed": bool(numpy.isfinite(first_hidden).all()),
        "trimmed": trimmed,
        "restored": stats_now(),
        "rss_bytes": rss,
    }


def hidden_is_removed():
    """What the engine computes while blocks are out, or while stock's own seq_rm has removed the same cells. There another
    sequence keeps them, so that the last token lies in the same cell and every sum runs in the same order."""
    engine = Engine(flash_attention=options["flash_attention"], sequences=2, unified=True, cells=8192)
    prompt = engine.tokens(text(1), 4000)
    assert engine.decode(prompt, 0) == 0
    if options["ours"]:
        psi_cache.trim(0.5)
    else:
        memory, end = low.llama_get_memory(engine.context), 32 * (1 + options["blocks"])
        low.llama_memory_seq_cp(memory, 0, 1, 32, end)
        low.llama_memory_seq_rm(memory, 0, 32, end)
    return {"logits": hashlib.sha256(engine.again(prompt[-1], 3999).tobytes()).hexdigest(), "stats": stats_now()}


def asleep():
    """Only what no step can see goes: the output must not change at all, and sequence 1 must wake exactly."""
    engine = Engine(cells=8192, flash_attention=options["flash_attention"], sequences=2, unified=options["unified"])
    prompts = [engine.tokens(text(s + 1), 1500) for s in range(2)]
    for s in (1, 0):
        assert engine.decode(prompts[s], 0, s) == 0
    hashed, stored = hashlib.sha256(), 0
    for i in range(24):
        logits = engine.logits()
        digest(hashed, logits)
        if options["ours"] and i == 4:
            psi_cache.trim(0.3)
        assert engine.decode([int(logits.argmax())], 1500 + i, 0) == 0
        stored = max(stored, stats_now().get("stored_bytes", 0))
    digest(hashed, engine.again(prompts[1][-1], 1499, 1))
    return {"logits": hashed.hexdigest(), "stored_bytes": stored}


def save_state():
    """Saves a trimmed context, loads it into the same one, and compares."""
    engine = Engine(cells=8192, flash_attention=options["flash_attention"])
    prompt = engine.tokens(text(1), 2000)
    assert engine.decode(prompt, 0) == 0
    before = engine.again(prompt[-1], 1999)
    if options["ours"]:
        psi_cache.trim(0.5)
        engine.again(prompt[-1], 1999)
    stored = stats_now().get("stored_bytes", 0)
    size = low.llama_state_get_size(engine.context)
    state = (ctypes.c_uint8 * size)()
    assert low.llama_state_get_data(engine.context, state, size) == size
    # What the numbers of the file header and the last logits are does not matter here: the KV bytes must be whole.
    low.llama_memory_clear(low.llama_get_memory(engine.context), True)
    resident_when_cleared = stats_now().get("resident_bytes", 0)
    assert low.llama_state_set_data(engine.context, state, size) == size
    after = engine.again(prompt[-1], 1999)
    return {
        "before": hashlib.sha256(before.tobytes()).hexdigest(),
        "after": hashlib.sha256(after.tobytes()).hexdigest(),
        "stored_bytes": stored,
        "resident_when_cleared_bytes": resident_when_cleared,
    }


def shift():
    """Context shift: the engine turns all keys in place, stored ones too."""
    engine = Engine(cells=4096, flash_attention=options["flash_attention"])
    prompt = engine.tokens(text(1), 1000)
    assert engine.decode(prompt, 0) == 0
    if options["ours"]:
        psi_cache.trim(0.5)
    engine.again(prompt[0], 1000)  # the safe point; what was computed there goes again
    stored = stats_now().get("stored_bytes", 0)
    memory = low.llama_get_memory(engine.context)
    low.llama_memory_seq_rm(memory, 0, 1000, -1)
    low.llama_memory_seq_rm(memory, 0, 10, 110)
    low.llama_memory_seq_add(memory, 0, 110, -1, -100)
    assert engine.decode([prompt[5]], 900) == 0
    if options["ours"]:
        psi_cache.restore()
    return {"logits": hashlib.sha256(engine.again(prompt[5], 900).tobytes()).hexdigest(), "stored_bytes": stored}


def shift_memory():
    """What a context shift costs in memory, of a cache that is mostly empty and half stored."""
    engine = Engine(cells=options["cells"], flash_attention=options["flash_attention"])
    prompt = engine.tokens(text(1), 1000)
    assert engine.decode(prompt, 0) == 0
    psi_cache.trim(0.5)
    engine.again(prompt[0], 1000)
    before, rss = stats_now(), rss_anon_bytes()
    memory = low.llama_get_memory(engine.context)
    low.llama_memory_seq_rm(memory, 0, 1000, -1)
    low.llama_memory_seq_rm(memory, 0, 10, 110)
    low.llama_memory_seq_add(memory, 0, 110, -1, -100)
    assert engine.decode([prompt[5]], 900) == 0
    return {"before": before, "after": stats_now(), "grew_bytes": rss_anon_bytes() - rss}


def copy_memory():
    """What it costs to copy a sequence of which half is stored to another stream."""
    engine = Engine(cells=16384, flash_attention=options["flash_attention"], sequences=2)
    prompt = engine.tokens(text(1), 1500)
    assert engine.decode(prompt, 0) == 0
    psi_cache.trim(0.5)
    engine.again(prompt[0], 1500)
    before, rss = stats_now(), rss_anon_bytes()
    low.llama_memory_seq_cp(low.llama_get_memory(engine.context), 0, 1, -1, -1)
    engine.again(prompt[0], 1500, 1)
    return {"before": before, "after": stats_now(), "grew_bytes": rss_anon_bytes() - rss}


def fake_memory(root):
    """A fake /proc/meminfo of the driver's own; the function sets how many MiB are available."""

    def available(mib: int) -> None:
        (root / "proc").mkdir(parents=True, exist_ok=True)
        written = root / "proc" / "meminfo.new"
        written.write_text(f"MemTotal: 8388608 kB\nMemFree: {mib * 1024} kB\nMemAvailable: {mib * 1024} kB\n")
        written.rename(root / "proc" / "meminfo")

    os.environ.update(PSI_CACHE_ROOT=str(root))
    return available


def wait_for(holds) -> None:
    """The bound is for a hang; it times nothing."""
    for _ in range(4000):
        if holds():
            return
        time.sleep(0.005)
    raise RuntimeError("what was waited for did not come")


def refusal():
    """Pressure, and so few blocks that none can go for a new one: decode says 1 and the cache is as before; then it goes."""
    available = fake_memory(pathlib.Path(options["root"]))

    def wait(refusing: bool) -> None:
        wait_for(lambda: bool(psi_cache.llama._library.psi_llama_refuses(engine.context, 512)) == refusing)

    available(8000)
    engine = Engine(cells=4096, flash_attention=options["flash_attention"])
    prompt = engine.tokens(text(1), 490)
    assert engine.decode(prompt[:90], 0) == 0
    before = engine.again(prompt[89], 89)
    available(1)
    wait(True)
    refused = engine.decode(prompt[90:], 90)
    if options.get("around_the_wrapper"):
        refused = low.llama_decode.__wrapped__(engine.context, engine.batch)
    during = engine.again(prompt[89], 89)
    available(8000)
    wait(False)
    assert engine.decode(prompt[90:], 90) == 0
    after = engine.logits()
    low.llama_memory_clear(low.llama_get_memory(engine.context), True)
    assert engine.decode(prompt[:90], 0) == 0
    engine.again(prompt[89], 89)
    assert engine.decode(prompt[90:], 90) == 0
    return {
        "refused": refused,
        "unchanged": before.tobytes() == during.tobytes(),
        "afterwards": after.tobytes() == engine.logits().tobytes(),
    }


def exact():
    """Half of the cache is taken before each step, and no step runs without it: output and logits are as with none taken.
    Then pressure comes: the step waits and is refused, and goes when it is over."""
    available = fake_memory(pathlib.Path(options["root"]))
    available(8000)
    engine = Engine(cells=4096, flash_attention=options["flash_attention"])
    prompt = engine.tokens(text(1), 1500)

    def out(trim):
        low.llama_memory_clear(low.llama_get_memory(engine.context), True)
        made = [engine.decode(prompt[at : at + 300], at) for at in range(0, 1500, 300)]
        for i in range(20):
            made.append(engine.logits().tobytes())
            if trim:
                psi_cache.trim(0.5)
            assert engine.decode([int(engine.logits().argmax())], 1500 + i) == 0
        return made

    whole = out(False)
    before = stats_now()["trims"]
    taken = out(True)
    trims = stats_now()["trims"] - before
    psi_cache.trim(1.0)  # so that the store has all of it: a memory that ends at once drops what it has not
    logits = engine.again(prompt[-1], 1499)
    available(1)
    wait_for(lambda: psi_cache.stats()["index"] > 0.7)
    low.llama_memory_seq_rm(low.llama_get_memory(engine.context), 0, 1499, -1)
    refused = low.llama_decode.__wrapped__(engine.context, engine.batch)  # of the same token once more
    during = stats_now()
    available(8000)
    wait_for(lambda: psi_cache.stats()["index"] < 0.3)
    return {
        "identical": whole == taken,
        "trims": trims,
        "refused": refused,
        "resident_share": during["resident_bytes"] / (during["resident_bytes"] + during["stored_bytes"]),
        "afterwards": engine.again(prompt[-1], 1499).tobytes() == logits.tobytes(),
        "steps_refused": stats_now()["refusals"],
    }


def exchange():
    """Pressure at the floor: new tokens are taken in exchange for old ones, and the cache does not grow."""
    available = fake_memory(pathlib.Path(options["root"]))
    available(8000)
    engine = Engine(cells=options["cells"], flash_attention=options["flash_attention"])
    end = options["cells"] // 4 * 3
    prompt = engine.tokens(text(1), end)
    sizes = []
    for at in range(0, end - 59, 60):
        if at == 300:
            available(1)
            wait_for(lambda: psi_cache.stats()["index"] > 0.7)
        assert engine.decode(prompt[at : at + 60], at) == 0
        sizes.append(stats_now()["resident_bytes"])
    return {"resident_bytes": sizes, "stats": stats_now(), "finite": bool(numpy.isfinite(engine.logits()).all())}


def contexts():
    """Contexts made and freed again: nothing is left of them."""
    sizes = []
    for _ in range(3):
        engine = Engine(cells=8192, flash_attention=True)
        assert engine.decode(engine.tokens(text(1), 1000), 0) == 0
        low.llama_free(engine.context)
        low.llama_model_free(engine.model)
        sizes.append(stats_now())
    return {"stats": sizes}


KEY, QUESTION = "47316", "\n\nWhat is the special pass key mentioned in the text? The special pass key is:"


def recall():
    """A fact in a part of the cache that is out: asked for with recall off and on; then everything comes back."""
    sequences = options.get("sequences", 1)
    engine = Engine(
        cells=8192,
        flash_attention=options["flash_attention"],
        sequences=sequences,
        unified=options.get("unified", False),
    )
    fact = f"\n\nThe special pass key is: {KEY}. Remember it. {KEY} is the special pass key.\n\n"
    filler = engine.tokens(text(1), 2000)
    prompt = filler[:300] + engine.tokens(fact)[1:] + filler[300:]
    question = engine.tokens(QUESTION)[1:]
    end = len(prompt)
    for sequence in range(sequences):
        assert engine.decode(prompt, 0, sequence) == 0
    before = engine.again(prompt[-1], end - 1)

    def ask():
        made, piece = [], ctypes.create_string_buffer(64)
        psi_cache.trim(0.6)
        assert engine.decode(question, end) == 0
        for i in range(8):
            made.append(int(engine.logits().argmax()))
            assert engine.decode(made[-1:], end + len(question) + i) == 0
        out = stats_now()
        low.llama_memory_seq_rm(low.llama_get_memory(engine.context), 0, end, -1)
        psi_cache.restore()
        engine.again(prompt[-1], end - 1)
        answer = b""
        for token in made:
            count = low.llama_token_to_piece(engine.vocabulary, token, piece, 64, 0, True)
            answer += piece.raw[:count]
        return answer.decode(errors="replace"), out

    psi_cache.set_option("policy", "fifo")
    results = {}
    for recall in ("off", "off", "on"):  # the first one leaves blocks behind that the others find
        psi_cache.set_option("recall", recall)
        results[recall], results[recall + "_stats"] = ask()
    results["identical"] = before.tobytes() == engine.again(prompt[-1], end - 1).tobytes()
    results["restored"] = stats_now()
    return results


def callback():
    """The user of the engine has an evaluation callback, and sees what it sees without us."""
    seen = []

    name_at = 256  # in struct ggml_tensor

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
    def on_node(node, ask, _):
        name = ctypes.string_at(node + name_at).decode()
        if ask:
            return name.startswith("l_out-")
        seen.append(name)
        return True

    engine = Engine(cells=4096, flash_attention=options["flash_attention"], callback=on_node)
    prompt = engine.tokens(text(1), 600)
    hashed = hashlib.sha256()
    assert engine.decode(prompt, 0) == 0
    for i in range(40):
        digest(hashed, engine.logits())
        assert engine.decode([prompt[i]], 600 + i) == 0
    return {"seen": seen, "logits": hashed.hexdigest()}


def cell_bytes(engine, last, sequence=0):
    """The state of a sequence without its last token: its cells' positions and all their bytes."""
    low.llama_memory_seq_rm(low.llama_get_memory(engine.context), sequence, last, -1)
    size = low.llama_state_seq_get_size(engine.context, sequence)
    state = (ctypes.c_uint8 * size)()
    assert low.llama_state_seq_get_data(engine.context, state, size, sequence) == size
    return numpy.frombuffer(state, dtype=numpy.uint8).copy()


def distance(a, b):
    """The share of bytes that differ, and how far apart they are as 16-bit floats, against their size."""
    assert a.shape == b.shape, (a.shape, b.shape)
    x, y = (v[: len(v) // 2 * 2].view(numpy.float16).astype(numpy.float64) for v in (a, b))
    good = numpy.isfinite(x) & numpy.isfinite(y)
    x, y = numpy.where(good, x, 0), numpy.where(good, y, 0)
    return {"bytes_differ": float((a != b).mean()), "apart": float(((x - y) ** 2).sum() / (x**2).sum()) ** 0.5}


def divergence(a, b):
    """Kullback-Leibler, of the two next-token distributions, in nats; and whether the likeliest token is the same."""
    p, q = (v.astype(numpy.float64) - v.max() for v in (a, b))
    p, q = (v - numpy.log(numpy.exp(v).sum()) for v in (p, q))
    return {"kl": float((numpy.exp(p) * (p - q)).sum()), "same": bool(a.argmax() == b.argmax())}


def recompute():
    """Blocks are dropped (no store), and computed again: bytes and next logits against those before."""
    sequences, count, batch = options.get("sequences", 1), options["prompt"], options.get("batch", 512)
    engine = Engine(
        cells=options.get("cells", 4096),
        flash_attention=options["flash_attention"],
        sequences=sequences,
        unified=options.get("unified", False),
        batch=batch,
    )
    prompts = [engine.tokens(text(s + 1), count) for s in range(sequences)]
    for s, prompt in enumerate(prompts):
        assert engine.decode(prompt, 0, s) == 0
    logits = [engine.again(prompt[-1], count - 1, s) for s, prompt in enumerate(prompts)]
    states = [cell_bytes(engine, count - 1, s) for s in range(sequences)]
    engine.again(prompts[0][-1], count - 1, 0)  # what was read of a sequence that sleeps stays for a step
    psi_cache.trim(options.get("share", 0.5))
    hidden = [engine.again(prompt[-1], count - 1, s) for s, prompt in enumerate(prompts)]
    trimmed = stats_now()
    result = {"trimmed": trimmed, "changed": [bool((a != b).any()) for a, b in zip(logits, hidden)]}
    how = options.get("how", "call")
    if how == "call":
        result["returned_bytes"] = psi_cache.llama.recompute(engine.context)
    elif how == "restore":  # at the safe points of the steps that follow, a piece at a time
        psi_cache.restore()
        for i in range(200):
            engine.again(prompts[0][-1], count - 1, 0)
            if stats_now()["dropped_bytes"] == 0:
                break
        result["steps"] = i + 1
    # how == "save": reading the state does it
    after = [cell_bytes(engine, count - 1, s) for s in range(sequences)]
    result["saved"] = stats_now()
    again = [engine.again(prompt[-1], count - 1, s) for s, prompt in enumerate(prompts)]
    result["restored"] = stats_now()
    result["states"] = [distance(a, b) for a, b in zip(states, after)]
    result["logits"] = [divergence(a, b) for a, b in zip(logits, again)]
    return result


def dropped_again(engine, prompt):
    """Half of the blocks are dropped at the safe point of a step that changes nothing that is compared."""
    psi_cache.trim(0.5)
    engine.again(prompt[-1], len(prompt) - 1)
    return stats_now()["dropped_bytes"]


def recompute_after_rewrite():
    """The end of a sequence is taken back and another one written: what is computed again is the new text."""
    engine = Engine(cells=2048, flash_attention=options["flash_attention"])
    old, new = engine.tokens(text(1), 400), engine.tokens(text(3), 300)
    assert engine.decode(old, 0) == 0
    low.llama_memory_seq_rm(low.llama_get_memory(engine.context), 0, 130, -1)
    prompt = old[:130] + new[1:]
    assert engine.decode(new[1:], 130) == 0
    last = len(prompt) - 1
    logits = engine.again(prompt[-1], last)
    state = cell_bytes(engine, last)
    engine.decode([prompt[-1]], last)
    dropped = dropped_again(engine, prompt)
    returned = psi_cache.llama.recompute()
    after = cell_bytes(engine, last)
    engine.decode([prompt[-1]], last)
    return {
        "dropped": dropped,
        "returned": returned,
        "state": distance(state, after),
        "logits": divergence(logits, engine.logits()),
    }


def decode_embeddings(engine, count):
    """Vectors in the place of tokens, as of an image."""
    width = low.llama_model_n_embd(engine.model)
    batch = low.llama_batch_init(count, width, 1)
    batch.n_tokens = count
    numpy.ctypeslib.as_array(batch.embd, (count * width,))[:] = numpy.random.default_rng(1).normal(0, 1, count * width)
    for i in range(count):
        batch.pos[i], batch.n_seq_id[i], batch.logits[i] = i, 1, i == count - 1
        batch.seq_id[i][0] = 0
    assert low.llama_decode(engine.context, batch) == 0
    low.llama_batch_free(batch)


def falsified():
    """Keys that are there are turned around in memory, as if the books told of other tokens than those that made them."""
    engine = Engine(cells=2048, flash_attention=options["flash_attention"])
    prompt = engine.tokens(text(1), 300)
    assert engine.decode(prompt, 0) == 0
    size = low.llama_state_seq_get_size(engine.context, 0)
    state = (ctypes.c_uint8 * size)()
    assert low.llama_state_seq_get_data(engine.context, state, size, 0) == size
    pattern, found = bytes(state[8000:8512]), 0  # keys of the first block, in the first layer that is saved
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
            fields = line.split()
            if fields[1] != "rw-p" or len(fields) > 5:  # ours is private, anonymous memory
                continue
            first, last = (int(number, 16) for number in fields[0].split("-"))
            if last - first > 1 << 30:
                continue
            memory.seek(first)
            at = memory.read(last - first).find(pattern)
            if at >= 0 and not first <= ctypes.addressof(state) < last:
                memory.seek(first + at)
                turned = bytes(byte ^ (0x80 * (i % 2)) for i, byte in enumerate(memory.read(8192)))
                memory.seek(first + at)
                memory.write(turned)
                found += 1
    assert found > 0
    dropped = dropped_again(engine, prompt)
    hidden = engine.again(prompt[-1], 299)
    returned = psi_cache.llama.recompute()
    return {
        "dropped": dropped,
        "returned": returned,
        "same": hidden.tobytes() == engine.again(prompt[-1], 299).tobytes(),
    }


def not_recomputable():
    """What was shifted, loaded, or follows such cells is not computed again: it stays hidden, and nothing else changes."""
    engine = Engine(cells=2048, flash_attention=options["flash_attention"])
    prompt = engine.tokens(text(1), 400)
    memory = low.llama_get_memory(engine.context)
    if options["by"] == "embeddings":
        decode_embeddings(engine, 100)
        assert engine.decode(prompt[100:], 100) == 0
    else:
        assert engine.decode(prompt, 0) == 0
    if options["by"] == "shift":
        low.llama_memory_seq_rm(memory, 0, 10, 40)
        low.llama_memory_seq_add(memory, 0, 40, -1, -30)
        prompt = prompt[:10] + prompt[40:]
    elif options["by"] == "load":
        size = low.llama_state_get_size(engine.context)
        state = (ctypes.c_uint8 * size)()
        assert low.llama_state_get_data(engine.context, state, size) == size
        low.llama_memory_clear(memory, True)
        assert low.llama_state_set_data(engine.context, state, size) == size
    more = engine.tokens(text(5), 100)[1:]
    assert engine.decode(more, len(prompt)) == 0
    prompt = prompt + more
    dropped = dropped_again(engine, prompt)
    hidden = engine.again(prompt[-1], len(prompt) - 1)
    returned = psi_cache.llama.recompute()
    after = engine.again(prompt[-1], len(prompt) - 1)
    return {"dropped": dropped, "returned": returned, "same": hidden.tobytes() == after.tobytes(), "stats": stats_now()}


def run():
    """A trim, a restore, and what they did to the last token's logits."""
    engine = Engine(cells=4096, flash_attention=options["flash_attention"])
    prompt = engine.tokens(text(1), 600)
    assert engine.decode(prompt, 0) == 0
    before = engine.again(prompt[-1], 599)
    if options["ours"]:
        psi_cache.trim(0.5)
        engine.again(prompt[-1], 599)
        trimmed = stats_now()
        psi_cache.restore()
    after = engine.again(prompt[-1], 599)
    return {
        "identical": before.tobytes() == after.tobytes(),
        "logits": hashlib.sha256(before.tobytes()).hexdigest(),
        "trimmed": trimmed if options["ours"] else {},
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
