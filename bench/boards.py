"""Three boards and the models they are to run: the arithmetic of bench/context.py. Nothing here runs or measures.

What a board has is its maker's figure as Linux shows it, what its system takes is an assumption, written down here to be
disputed: a bare system without a desktop. Models have the shapes that their makers published, 4-bit weights (Q4_0) and a
16-bit cache.
"""
import dataclasses

import random_model

GIB = 1 << 30
MIB = 1 << 20
CACHE_VALUE_BYTES = 2  # f16
KEYS_AND_VALUES = 2
# psicache.h's defaults: reserve_bytes, a sixteenth of the memory within these bounds, and floor_bytes.
RESERVE_LEAST_BYTES, RESERVE_MOST_BYTES, RESERVE_SHARE, FLOOR_SHARE = 16 * MIB, 256 * MIB, 1 / 16, 1 / 32


@dataclasses.dataclass(frozen=True)
class Board:
    """has_bytes, system_bytes: see above. stock_tokens, ours_tokens: the contexts that were promised. layers_run: of the
    model, in a run here; measured_layers: in which stock's need is measured, for the straight line. One layer is not on it:
    50 MiB less for a 7B model."""
    name: str
    device: str
    has_bytes: int
    system_bytes: int
    model: str
    layers: int
    embedding: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int
    stock_tokens: int
    ours_tokens: int
    layers_run: int
    measured_layers: tuple

    def shape(self, path, layers):
        return random_model.arguments([path] + [str(word) for pair in (
            ("--layers", layers), ("--embedding", self.embedding), ("--ffn", self.ffn), ("--heads", self.heads),
            ("--kv-heads", self.kv_heads), ("--vocabulary", self.vocabulary)) for word in pair])

    def weights_bytes(self, layers):
        return random_model.weights_bytes(self.shape("-", layers))

    @property
    def token_bytes(self):
        """Of the cache, a token and layer."""
        return KEYS_AND_VALUES * self.kv_heads * (self.embedding // self.heads) * CACHE_VALUE_BYTES


BOARDS = (
    Board("orin-nano-8gb", "Jetson Orin Nano 8 GB", int(7.4 * GIB), int(1.5 * GIB), "Llama 2 7B", 32, 4096, 11008, 32, 32,
          32000, 2048, 8192, 2, (2, 3, 4)),
    Board("orin-nx-16gb", "Jetson Orin NX 16 GB", int(15.3 * GIB), int(1.5 * GIB), "Llama 2 13B", 40, 5120, 13824, 40, 40,
          32000, 4096, 16384, 1, (2, 3, 4)),
    Board("pi-5-8gb", "Raspberry Pi 5 8 GB", int(7.9 * GIB), int(0.7 * GIB), "Llama 3.2 3B", 28, 3072, 8192, 24, 8, 128256,
          1024, 4096, 4, (2, 4, 6)))


def line(board, needs):
    """(fixed, a layer) of bytes = fixed + a layer * layers through the first and the last, and how far the others are off."""
    (first, low), *between, (last, high) = [(layers, needs[layers]) for layers in sorted(board.measured_layers)]
    layer = (high - low) / (last - first)
    fixed = low - layer * first
    off = max((abs(value - fixed - layer * layers) / value for layers, value in between), default=0.0)
    return fixed, layer, off


def whole(board, needs):
    """All layers on the board: what stock needs with its context, what is left for a spike, and what that leaves ours."""
    fixed, layer, off = line(board, needs)
    memory = board.has_bytes - board.system_bytes
    stock = fixed + layer * board.layers
    cache = board.layers * board.token_bytes
    spike = memory - stock
    if spike <= 0:
        raise ValueError("%s: stock does not fit with %d tokens" % (board.device, board.stock_tokens))
    left = memory - spike - (stock - cache * board.stock_tokens)  # for ours's cache while the spike is there
    reserve = min(RESERVE_MOST_BYTES, max(RESERVE_LEAST_BYTES, memory * RESERVE_SHARE))
    kept = max(left - reserve, FLOOR_SHARE * cache * board.ours_tokens)
    return {"memory_bytes": memory, "stock_bytes": int(stock), "spike_bytes": int(spike), "off_the_line": off,
            "token_bytes": cache, "ours_cache_bytes": cache * board.ours_tokens, "left_in_spike_bytes": int(left),
            "reserve_bytes": int(reserve), "kept_bytes": int(kept), "kept_share": kept / (cache * board.ours_tokens),
            "static_bytes": int(stock + cache * (board.ours_tokens - board.stock_tokens))}


def scaled(board, needs, whole_, slack_bytes):
    """The same with layers_run layers: cache and spike in proportion, the limit what stock needs and the spike."""
    share = board.layers_run / board.layers
    stock = needs[board.layers_run]
    spike = int(whole_["spike_bytes"] * share) // MIB * MIB
    return {"layers": board.layers_run, "stock_bytes": int(stock), "spike_bytes": spike,
            "limit_bytes": int(stock + spike + slack_bytes) // MIB * MIB,
            "ours_cache_bytes": board.layers_run * board.token_bytes * board.ours_tokens}


def arithmetic(board, needs, whole_, scaled_):
    def gib(value):
        return "%.2f GiB" % (value / GIB)
    fixed, layer, off = line(board, needs)
    return [
        "%s, %s (random weights, Q4_0), 16-bit cache of %d KiB a token" % (board.device, board.model,
                                                                           whole_["token_bytes"] // 1024),
        "  measured, stock with %d tokens: %s" % (board.stock_tokens, ", ".join(
            "%d layers %.0f MiB" % (layers, value / MIB) for layers, value in sorted(needs.items()))),
        "  so: %.0f MiB + %.0f MiB a layer (%.1f %% off the line at most); %d layers: %s (weights alone %s)" % (
            fixed / MIB, layer / MIB, 100 * off, board.layers, gib(whole_["stock_bytes"]), gib(board.weights_bytes(board.layers))),
        "  memory: %s less %s for the system (assumed) = %s; left for a spike beside stock: %s" % (
            gib(board.has_bytes), gib(board.system_bytes), gib(whole_["memory_bytes"]), gib(whole_["spike_bytes"])),
        "  %d tokens: cache %s; with a static one %s in all, and the spike" % (
            board.ours_tokens, gib(whole_["ours_cache_bytes"]), gib(whole_["static_bytes"])),
        "  ours has %s for its cache in the spike, less %.0f MiB that it keeps free, but not less than its floor: %s, %.0f %% of the "
        "cache; the rest is on the disk" % (gib(whole_["left_in_spike_bytes"]), whole_["reserve_bytes"] / MIB,
                                            gib(whole_["kept_bytes"]), 100 * whole_["kept_share"]),
        "  run here: %d of %d layers, limit %.0f MiB, spike %.0f MiB, cache of %d tokens %.0f MiB" % (
            board.layers_run, board.layers, scaled_["limit_bytes"] / MIB, scaled_["spike_bytes"] / MIB, board.ours_tokens,
            scaled_["ours_cache_bytes"] / MIB)]
