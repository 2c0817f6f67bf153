"""Tiny models with random weights, as GGUF files: what an engine does with its cache shows on them in a thousandth of the time.

    python tiny_models.py DIRECTORY    # writes one file a model there
"""

import os
import pathlib
import struct
import sys

import numpy

# Heads of 64, not less: with smaller ones llama.cpp (0.3.36, 11434) ends itself where keys that are quantised are shifted.
WIDTH, HEADS, KEY_HEADS, HEAD, INNER, WORDS = 64, 2, 1, 64, 64, 128
_ALIGNMENT = 32


def _value(value) -> bytes:
    """A value of a GGUF header, with its type before it."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    if isinstance(value[0], float):
        return struct.pack("<IIQ", 9, 6, len(value)) + struct.pack(f"<{len(value)}f", *value)
    return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def write_gguf(path: pathlib.Path, header: dict, tensors: dict) -> None:
    """`tensors`: name -> array, its dimensions in numpy's order, which is the reverse of ggml's."""
    out, offset = [], 0
    for name, array in tensors.items():
        dims = array.shape[::-1]
        out.append(_text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, offset))
        offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(header))
    head += b"".join(_text(key) + _value(value) for key, value in header.items()) + b"".join(out)
    with path.open("wb") as file:
        file.write(head)
        for array in tensors.values():
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            file.write(array.astype("<f4").tobytes())


class _Weights(dict):
    """Random tensors, of a size that keeps activations near 1; each name has its own seed."""

    def matrix(self, name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        made = numpy.random.default_rng(len(self) + 1).standard_normal((rows, columns), dtype=numpy.float32)
        self[name] = made * numpy.float32(scale / columns**0.5)

    def ones(self, name: str, *shape: int) -> None:
        self[name] = numpy.ones(shape, dtype=numpy.float32)

    def zeros(self, name: str, *shape: int) -> None:
        self[name] = numpy.zeros(shape, dtype=numpy.float32)

    def attention(self, layer: str, head: int = HEAD) -> None:
        self.matrix(layer + "attn_q.weight", HEADS * head, WIDTH, 2)
        self.matrix(layer + "attn_k.weight", KEY_HEADS * head, WIDTH, 2)
        self.matrix(layer + "attn_v.weight", KEY_HEADS * head, WIDTH)
        self.matrix(layer + "attn_output.weight", WIDTH, HEADS * head)

    def gated(self, layer: str) -> None:
        self.ones(layer + "ffn_norm.weight", WIDTH)
        self.matrix(layer + "ffn_gate.weight", INNER, WIDTH)
        self.matrix(layer + "ffn_up.weight", INNER, WIDTH)
        self.matrix(layer + "ffn_down.weight", WIDTH, INNER)


def _header(kind: str, layers: int, **more) -> dict:
    named = {
        "context_length": 8192,
        "embedding_length": WIDTH,
        "block_count": layers,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KEY_HEADS,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "vocab_size": WORDS,
        **more,
    }
    return {
        "general.architecture": kind,
        "general.alignment": _ALIGNMENT,
        "tokenizer.ggml.model": "no_vocab",
        **{f"{kind}.{name}": value for name, value in named.items()},
    }


def _begin() -> _Weights:
    weights = _Weights()
    weights.matrix("token_embd.weight", WORDS, WIDTH, WIDTH**0.5)
    weights.ones("output_norm.weight", WIDTH)
    return weights


def llama(path: pathlib.Path) -> None:
    """Two layers of attention over everything."""
    weights = _begin()
    for i in range(2):
        weights.ones(f"blk.{i}.attn_norm.weight", WIDTH)
        weights.attention(f"blk.{i}.")
        weights.gated(f"blk.{i}.")
    write_gguf(path, _header("llama", 2, **{"rope.dimension_count": HEAD}), weights)


def _vocabulary() -> dict:
    """One token a printable character; bytes for all others. What cannot be said: unknown, begin, end, and bytes, first."""
    unsaid = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    said = ["\n", "\u2581", *(chr(code) for code in range(33, 127))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": unsaid + said,
        "tokenizer.ggml.scores": [0.0] * len(unsaid) + [-1.0] * len(said),
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(said),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def with_words(path: pathlib.Path) -> None:
    """As gemma2, with a vocabulary, for programs that read and write text. It never ends, and says printable characters
    only: the rows of all other tokens are 0, and so are their logits."""
    vocabulary = _vocabulary()
    words = len(vocabulary["tokenizer.ggml.tokens"])
    weights = _begin()
    weights.matrix("token_embd.weight", words, WIDTH, WIDTH**0.5)
    weights["token_embd.weight"][:259] = 0
    _window_layers(weights)
    write_gguf(path, {**_header("gemma2", 2, **{"attention.sliding_window": 40, "vocab_size": words}), **vocabulary}, weights)


def gemma2(path: pathlib.Path) -> None:
    """Two layers, the first behind a window of 40 tokens; logits of attention are capped."""
    weights = _begin()
    _window_layers(weights)
    write_gguf(path, _header("gemma2", 2, **{"attention.sliding_window": 40}), weights)


def _window_layers(weights: _Weights) -> None:
    for i in range(2):
        weights.ones(f"blk.{i}.attn_norm.weight", WIDTH)
        weights.attention(f"blk.{i}.")
        weights.ones(f"blk.{i}.post_attention_norm.weight", WIDTH)
        weights.gated(f"blk.{i}.")
        weights.ones(f"blk.{i}.post_ffw_norm.weight", WIDTH)


def mamba(path: pathlib.Path) -> None:
    """A recurrent state and no KV cache at all."""
    weights, inner, states, rank, kernel = _begin(), 2 * WIDTH, 16, 8, 4
    for i in range(2):
        layer = f"blk.{i}."
        weights.ones(layer + "attn_norm.weight", WIDTH)
        weights.matrix(layer + "ssm_in.weight", 2 * inner, WIDTH)
        weights.matrix(layer + "ssm_conv1d.weight", inner, kernel)
        weights.zeros(layer + "ssm_conv1d.bias", inner)
        weights.matrix(layer + "ssm_x.weight", rank + 2 * states, inner)
        weights.matrix(layer + "ssm_dt.weight", inner, rank)
        weights.zeros(layer + "ssm_dt.bias", inner)
        weights[layer + "ssm_a"] = -numpy.ones((inner, states), dtype=numpy.float32)
        weights.ones(layer + "ssm_d", inner)
        weights.matrix(layer + "ssm_out.weight", WIDTH, inner)
    more = {
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": states,
        "ssm.time_step_rank": rank,
        "attention.head_count": 0,
        "attention.head_count_kv": 0,
        "feed_forward_length": 0,
    }
    write_gguf(path, _header("mamba", 2, **more), weights)


def lfm2(path: pathlib.Path) -> None:
    """A hybrid: short convolutions, with a recurrent state, and two layers of attention."""
    weights = _begin()
    weights["token_embd_norm.weight"] = weights.pop("output_norm.weight")
    key_heads, head = [0, KEY_HEADS, 0, KEY_HEADS], WIDTH // HEADS
    for i, count in enumerate(key_heads):
        layer = f"blk.{i}."
        weights.ones(layer + "attn_norm.weight", WIDTH)
        if count > 0:
            weights.ones(layer + "attn_q_norm.weight", head)
            weights.ones(layer + "attn_k_norm.weight", head)
            weights.attention(layer, head)
        else:
            weights.matrix(layer + "shortconv.conv.weight", WIDTH, 3)
            weights.matrix(layer + "shortconv.in_proj.weight", 3 * WIDTH, WIDTH)
            weights.matrix(layer + "shortconv.out_proj.weight", WIDTH, WIDTH)
        weights.gated(layer)
    more = {
        "attention.head_count_kv": key_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "shortconv.l_cache": 3,
    }
    write_gguf(path, _header("lfm2", 4, **more), weights)


MODELS = {"llama": llama, "gemma2": gemma2, "mamba": mamba, "lfm2": lfm2, "with_words": with_words}


def write_all(directory: pathlib.Path) -> dict:
    """Name -> path; each file is whole or not there, since several tests may write at once."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, make in MODELS.items():
        paths[name] = str(directory / f"{name}.gguf")
        unfinished = directory / f"{name}.gguf.{os.getpid()}"
        make(unfinished)
        unfinished.rename(paths[name])
    return paths


if __name__ == "__main__":
    print(write_all(pathlib.Path(sys.argv[1])))
