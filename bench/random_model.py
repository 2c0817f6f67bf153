"""Writes a model of a given shape with random weights (GGUF, Q4_0): to measure what depends on the shape alone.

    .venv/bin/python bench/random_model.py build/bench/7b-shape.gguf            # 3 layers of Llama 2 7B: 490 MB
    .venv/bin/python bench/random_model.py tiny.gguf --embedding 256 --ffn 512 --heads 4 --kv-heads 4 --vocabulary 512

Needs the Python package gguf (pip install gguf). It says nothing that makes sense, at the speed of a model that does.
"""
import argparse
import os

import numpy


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
    return blocks.reshape(rows, columns // 32 * 18)


def make(options):
    import gguf

    random = numpy.random.default_rng(1)
    writer = gguf.GGUFWriter(options.path + ".new", "llama")
    writer.add_context_length(options.context)
    writer.add_embedding_length(options.embedding)
    writer.add_block_count(options.layers)
    writer.add_feed_forward_length(options.ffn)
    writer.add_head_count(options.heads)
    writer.add_head_count_kv(options.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(options.embedding // options.heads)
    writer.add_vocab_size(options.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)

    def matrix(name, rows, columns):
        writer.add_tensor(name, q4_0(random, rows, columns), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def norm(name):
        writer.add_tensor(name, numpy.ones(options.embedding, dtype=numpy.float32))

    wide, narrow = options.embedding, options.embedding // options.heads * options.kv_heads
    matrix("token_embd.weight", options.vocabulary, wide)
    matrix("output.weight", options.vocabulary, wide)
    norm("output_norm.weight")
    for layer in range(options.layers):
        block = "blk.%d." % layer
        norm(block + "attn_norm.weight")
        norm(block + "ffn_norm.weight")
        matrix(block + "attn_q.weight", wide, wide)
        matrix(block + "attn_k.weight", narrow, wide)
        matrix(block + "attn_v.weight", narrow, wide)
        matrix(block + "attn_output.weight", wide, wide)
        matrix(block + "ffn_gate.weight", options.ffn, wide)
        matrix(block + "ffn_up.weight", options.ffn, wide)
        matrix(block + "ffn_down.weight", wide, options.ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(options.path + ".new", options.path)


if __name__ == "__main__":
    make(arguments())
