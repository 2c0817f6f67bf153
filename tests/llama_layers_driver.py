"""One process, one engine, one scenario of safe points inside a step: run by test_llama_layers.py. As llama_driver.py, whose
engine it uses; the steps are watched, and stock's masks edited, through the engine's own evaluation callback.

    python llama_layers_driver.py SCENARIO '{"ours": true, "model": "...", ...}'
"""

import ctypes
import hashlib
import json
import pathlib
import sys
import threading

import llama_driver
from llama_driver import Engine, fake_memory, low, options, stats_now, wait_for

CELLS, BLOCK = 8192, 32  # of the cache; of a block
HIDDEN_HALF = 0xFC00  # -infinity
HIDDEN_SINGLE = 0xFF800000


class Tensor(ctypes.Structure):
    """struct ggml_tensor, as far as it is read here."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


def op_name_function():
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        if "libggml-base" in line:
            function = ctypes.CDLL(line.split(maxsplit=5)[5]).ggml_op_name
            function.restype = ctypes.c_char_p
            return function
    raise RuntimeError("no libggml-base is loaded")


def hide_columns(mask, stream, first, last):
    """Writes -infinity into all rows of a mask's columns."""
    half = mask.type == 1
    value, kind = (HIDDEN_HALF, ctypes.c_uint16) if half else (HIDDEN_SINGLE, ctypes.c_uint32)
    assert half or mask.type == 0
    for row in range(mask.ne[1]):
        at = mask.data + stream * mask.nb[3] + row * mask.nb[1] + first * mask.nb[0]
        (kind * (last - first)).from_address(at)[:] = [value] * (last - first)


class Watched:
    """An engine whose steps are watched: `at(layer)` is called when a layer's output is there, or, with before=True, just
    before its attention is computed. In stock, `hidden` are the (stream, first cell, last cell) that are hidden from
    every attention to come."""

    def __init__(self, **settings):
        self.hidden, self.at, self.before = [], None, False
        self.nodes, self.order = 0, []  # asked for in this step; attention nodes' numbers in the first one
        self.stop, self.layer, self.names = None, None, []
        self.keep = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(self.on_node)
        self.engine = Engine(callback=self.keep, **settings)
        self.op_name = op_name_function()

    def begin(self):
        """Before each step."""
        self.nodes, self.layer = 0, -1

    def on_node(self, address, ask, _):
        node = Tensor.from_address(address)
        return self.asked(node) if ask else self.done(node)

    def asked(self, node):
        self.nodes += 1
        operation = self.op_name(node.op).decode() if hasattr(self, "op_name") else ""
        if operation in ("FLASH_ATTN_EXT", "SOFT_MAX"):
            mask = Tensor.from_address(node.src[3] if operation == "FLASH_ATTN_EXT" else node.src[1])
            self.order.append(self.nodes - (1 if operation == "FLASH_ATTN_EXT" else 2))
            for stream, first, last in self.hidden:
                hide_columns(mask, stream, first, last)
        if self.before:
            return self.nodes == self.stop
        return node.name.startswith(b"l_out-")

    def done(self, node):
        if self.at is not None:
            self.at(-1 if self.before else int(node.name.split(b"-")[1]))
        return True

    def decode(self, tokens, position, sequence=0):
        self.begin()
        return self.engine.decode(tokens, position, sequence)

    def stop_before(self, layer):
        """The steps to come are stopped where the attention of `layer` comes next, as in the last one of this size."""
        self.before, self.stop = True, self.order[layer]


def some_tokens(seed, count):
    """That they mean nothing does not matter here: bits are compared."""
    return [3 + (seed * 7919 + i * i * 31) % 500 for i in range(count)]


def blocks_out(stats):
    """Of each cache, where it is the same in all."""
    return stats["stored_bytes"] * (CELLS // BLOCK) // stats["capacity_bytes"] if stats else 0


def digest(logits):
    return hashlib.sha256(logits.tobytes()).hexdigest()


def elsewhere(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def by_hand():
    """A trim that another thread asks for in the middle of a prompt's piece, after layer 5; or, in stock, the same blocks
    hidden from layer 6 on. Then a token while they are out, and one after they are back."""
    layer, sequences, blocks = options.get("layer", 5), options.get("sequences", 1), options.get("blocks", 0)
    watched = Watched(
        cells=CELLS,
        flash_attention=options["flash_attention"],
        sequences=sequences,
        batch=options.get("batch", 512),
    )
    engine, length = watched.engine, options["prompt"]
    prompts = [some_tokens(s + 1, length) for s in range(sequences)]
    for sequence, prompt in enumerate(prompts):
        assert watched.decode(prompt, 0, sequence) == 0
    seen = []

    def at(number):
        if options["ours"]:
            seen.append(stats_now()["stored_bytes"])
        if number == layer and len(seen) <= layer + 1:
            if options["ours"]:
                elsewhere(lambda: llama_driver.psi_cache.trim(options["share"]))
            else:
                watched.hidden = [(0, BLOCK, BLOCK * (1 + blocks))]
                seen.extend([0] * (layer + 2))

    watched.at = at
    watched.begin()
    piece = some_tokens(9, options.get("piece", 512))
    assert decode_all(engine, piece, length, sequences) == 0
    results = {"step": digest(engine.logits()), "stored": list(seen)}
    watched.at = None
    end = length + len(piece) // sequences
    assert watched.decode([piece[0]], end) == 0
    results["out"] = digest(engine.logits())
    if options["ours"]:
        results["blocks"] = blocks_out(stats_now())
        llama_driver.psi_cache.restore()
    watched.hidden = []
    assert watched.decode([piece[1]], end + 1) == 0
    results["back"] = digest(engine.logits())
    results["stored_at_last"] = stats_now().get("stored_bytes", 0)
    return results


def decode_all(engine, tokens, position, sequences):
    """One batch, its tokens dealt to all sequences."""
    engine.batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        engine.batch.token[i] = token
        engine.batch.pos[i] = position + i // sequences
        engine.batch.n_seq_id[i] = 1
        engine.batch.seq_id[i][0] = i % sequences
        engine.batch.logits[i] = i == len(tokens) - sequences  # the last one of the first sequence
    return low.llama_decode(engine.context, engine.batch)


def by_watcher():
    """Memory ends just before the attention of layer 6, where the engine's thread then waits: the watcher gives blocks back
    without it. Layer 6 still sees them. In stock the same blocks are hidden from layer 7 on."""
    layer, blocks = 6, options.get("blocks", 0)
    available = fake_memory(pathlib.Path(options["root"])) if options["ours"] else lambda mib: None
    available(8000)
    watched = Watched(cells=CELLS, flash_attention=options["flash_attention"])
    engine = watched.engine
    prompt = some_tokens(1, 1024)
    watched.order.clear()
    assert watched.decode(prompt[:512], 0) == 0
    given = []

    def spike(_):
        given.append(stats_now()["stored_bytes"])
        available(1)
        wait_for(lambda: stats_now()["stored_bytes"] > 0)
        available(8000)
        wait_for(lambda: stats_now()["index"] < 0.3)
        given.append(stats_now()["stored_bytes"])

    def hide(number):
        if number == layer:
            watched.hidden = [(0, BLOCK, BLOCK * (1 + blocks))]

    if options["ours"]:
        watched.stop_before(layer)
        watched.at = spike
    else:
        watched.at = hide
    assert watched.decode(prompt[512:], 512) == 0
    return {"step": digest(engine.logits()), "given": given, "blocks": blocks_out(stats_now())}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
