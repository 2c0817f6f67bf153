"""Writes a model of a given shape with random weights (GGUF, Q4_0): to measure what depends on the shape alone.

    .venv/bin/python bench/random_model.py build/bench/7b-shape.gguf            # 3 layers of Llama 2 7B: 490 MB
    .venv/bin/python bench/random_model.py tiny.gguf --embedding 256 --ffn 512 --heads 4 --kv-heads 4 --vocabulary 512

It says nothing that makes sense, at the speed of a model that does, in the memory of a model that does.
"""
import argparse
import os
import struct

import numpy

ALIGNMENT = 32
F32, Q4_0 = 0, 2  # ggml_type
MOSTLY_Q4_0 = 2   # llama_ftype


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--embedding", type=int, default=4096)
    parser.add_argument("--ffn", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--context", type=int, default=32768)
    return parser.parse_args(words)


def q4_0(random, rows, columns):
    """Blocks of 32 weights: a scale (f16) and 16 bytes. Scales of both signs, so that weights have no mean that would make
    all tokens alike."""
    blocks = random.integers(0, 256, (rows, columns // 32, 18), dtype=numpy.uint8)
    scales = (0.3 / numpy.sqrt(columns) * random.uniform(0.5, 1, (rows, columns // 32, 1))
              * random.choice((-1, 1), (rows, columns // 32, 1))).astype(numpy.float16)
    blocks[:, :, :2] = scales.view(numpy.uint8)
    return blocks


def shapes(options):
    """{tensor: (rows, columns)}, rows 0 for a norm's vector; in the order of the file."""
    wide, narrow = options.embedding, options.embedding // options.heads * options.kv_heads
    found = {"token_embd.weight": (options.vocabulary, wide), "output.weight": (options.vocabulary, wide),
             "output_norm.weight": (0, wide)}
    for layer in range(options.layers):
        for name, rows, columns in (("attn_norm", 0, wide), ("ffn_norm", 0, wide), ("attn_q", wide, wide),
                                    ("attn_k", narrow, wide), ("attn_v", narrow, wide), ("attn_output", wide, wide),
                                    ("ffn_gate", options.ffn, wide), ("ffn_up", options.ffn, wide),
                                    ("ffn_down", wide, options.ffn)):
            found["blk.%d.%s.weight" % (layer, name)] = rows, columns
    return found


def size_of(rows, columns):
    return rows * columns // 32 * 18 if rows else columns * 4


def weights_bytes(options):
    return sum(size_of(*shape) for shape in shapes(options).values())


def header(options):
    """As gguf has it: strings are type 8, whole numbers 4, floats 6."""
    def text(words):
        return struct.pack("<Q", len(words)) + words.encode()
    numbers = {"context_length": options.context, "embedding_length": options.embedding, "block_count": options.layers,
               "feed_forward_length": options.ffn, "attention.head_count": options.heads,
               "attention.head_count_kv": options.kv_heads, "rope.dimension_count": options.embedding // options.heads,
               "vocab_size": options.vocabulary}
    entries = [text("general.architecture") + struct.pack("<I", 8) + text("llama"),
               text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("no_vocab"),
               text("general.file_type") + struct.pack("<II", 4, MOSTLY_Q4_0),
               text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)]
    entries += [text("llama." + name) + struct.pack("<II", 4, value) for name, value in numbers.items()]
    tensors, offset = [], 0
    for name, (rows, columns) in shapes(options).items():
        dims = (columns, rows) if rows else (columns,)
        tensors.append(text(name) + struct.pack("<I%dQIQ" % len(dims), len(dims), *dims, Q4_0 if rows else F32, offset))
        offset += -(-size_of(rows, columns) // ALIGNMENT) * ALIGNMENT
    return struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)) + b"".join(entries + tensors)


def make(options):
    random = numpy.random.default_rng(1)
    with open(options.path + ".new", "wb") as file:
        file.write(header(options))
        for rows, columns in shapes(options).values():
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            file.write((q4_0(random, rows, columns) if rows else numpy.ones(columns, numpy.float32)).tobytes())
    os.replace(options.path + ".new", options.path)


if __name__ == "__main__":
    make(arguments())
