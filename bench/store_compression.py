"""What compression of the store's records would give: ratio, MB/s of one processor, against the disk's own speed.

Reads real text (this project's documentation) with a real model, takes the KV cache's bytes out of the engine's state, and
cuts them as the store does: 32 tokens of all layers, keys and values, a record. Each codec sees each record as it lies, with
its bytes shuffled (f16: high bytes, then low bytes; q8_0: the 34 bytes of a group side by side), and shuffled with each
channel's 32 values in a row. Speeds are of processor time, bytes before compression. The disk is written and read past the
page cache, one record at a time, as the store does. "store" and "fetch" are the time of a record with compression, one
after the other on one thread, by the time without: below 1 it saves time.

Needs zstandard and lz4 (pip install zstandard lz4), which nothing else here does.
"""
import argparse
import mmap
import os
import statistics
import struct
import sys
import time

import numpy

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
BLOCK_TOKENS = 32
F16, Q8_0 = 1, 8
PAGE = 4096


def text():
    root = os.path.join(HERE, "..")
    found = []
    for directory in ("", "docs", "man", "include", "bench"):
        for name in sorted(os.listdir(os.path.join(root, directory))):
            if name.endswith((".md", ".h", ".1", ".3")):
                with open(os.path.join(root, directory, name), encoding="utf-8") as file:
                    found.append(file.read())
    return "\n".join(found)


def state_of(model, type_, tokens):
    """The state of sequence 0 after `tokens` tokens of text."""
    import llama_cpp
    from llama_cpp import llama_cpp as low
    llama = llama_cpp.Llama(model, n_ctx=tokens + 64, n_batch=512, flash_attn=True, type_k=type_, type_v=type_,
                            swa_full=True, verbose=False)
    ids = llama.tokenize(text().encode(), add_bos=True)[:tokens]
    llama.eval(ids)
    context = llama._ctx.ctx
    size = low.llama_state_seq_get_size(context, 0)
    buffer = (low.ctypes.c_uint8 * size)()
    got = low.llama_state_seq_get_data(context, buffer, size, 0)
    return bytes(memoryview(buffer)[:got])


def tensors(state, type_):
    """Each layer's K and V as they lie in the state: a head (type, bytes of a row), then the rows. Sliding-window layers
    have fewer of them. Where a tensor is the last of its cache, it is as long as the one before."""
    row_bytes = {F16: 512, Q8_0: 272}[type_]  # 256 values: one key head of Gemma 3 270M
    head, heads, found, rows = struct.pack("<iQ", type_, row_bytes), [], [], 0
    at = state.find(head)
    while at >= 0:
        heads.append(at + len(head))
        at = state.find(head, at + 1)
    for begin, end in zip(heads, heads[1:] + [len(state)]):
        fit = end - len(head) - begin
        rows = fit // row_bytes if fit % row_bytes == 0 else min(rows, fit // row_bytes)
        found.append(numpy.frombuffer(state, numpy.uint8, rows * row_bytes, begin).reshape(rows, row_bytes))
    if len(found) != 36:
        sys.exit(f"{len(found)} tensors found: the state of this build looks different")
    return found


def records(found):
    """Of as many tokens as all layers have. A sliding-window layer's rows are of other tokens than the others': to a codec
    that is the same."""
    cells = min(len(tensor) for tensor in found)
    return [[tensor[at:at + BLOCK_TOKENS] for tensor in found] for at in range(0, cells - BLOCK_TOKENS + 1, BLOCK_TOKENS)]


def plain(pieces, _):
    return b"".join(piece.tobytes() for piece in pieces)


def shuffled(pieces, unit):
    """Byte i of every value (f16) or group (q8_0) side by side."""
    return b"".join(piece.reshape(-1, unit).T.tobytes() for piece in pieces)


def channels(pieces, unit):
    """The same, and a channel's values of all tokens in a row."""
    return b"".join(piece.reshape(len(piece), -1, unit).transpose(2, 1, 0).tobytes() for piece in pieces)


def codecs():
    import lz4.block
    import zstandard
    for level in (1, 3):
        packer, unpacker = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
        yield f"zstd -{level}", packer.compress, unpacker.decompress
    yield "lz4", lz4.block.compress, lz4.block.decompress


def cpu_s(call, argument):
    begin_ns = time.thread_time_ns()
    result = call(argument)
    return (time.thread_time_ns() - begin_ns) / 1e9, result


def measure_codec(pack, unpack, pieces_of_records, arrange, unit):
    """Bytes before and after, seconds to pack and unpack. What comes back is compared."""
    before = after = 0
    pack_s, unpack_s = 0.0, 0.0
    for pieces in pieces_of_records:
        record = arrange(pieces, unit)
        took_s, packed = cpu_s(pack, record)
        back_s, back = cpu_s(unpack, packed)
        assert back == record
        before, after = before + len(record), after + len(packed)
        pack_s, unpack_s = pack_s + took_s, unpack_s + back_s
    return before, after, pack_s, unpack_s


def disk_mb_s(directory, record_bytes, count):
    """Median speed of a record, written to new room and read back, past the page cache."""
    size = (record_bytes + PAGE - 1) // PAGE * PAGE
    buffer = mmap.mmap(-1, size)
    buffer.write(os.urandom(size))
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600)
    except OSError as error:
        sys.exit(f"{directory}: {error}; name a directory on a disk with --directory")
    sides = []
    for call in (os.pwritev, os.preadv):
        times = []
        for i in range(count):
            begin_ns = time.perf_counter_ns()
            assert call(descriptor, [buffer], i * size) == size
            times.append((time.perf_counter_ns() - begin_ns) / 1e9)
        sides.append(size / statistics.median(times) / 1e6)
    os.close(descriptor)
    return sides


def report(name, found, unit, write_mb_s, read_mb_s, most):
    pieces_of_records = records(found)[:most]
    size = len(plain(pieces_of_records[0], unit))
    print(f"\n{name}: {len(found) // 2} layers, {len(pieces_of_records)} records of {size >> 10} KiB")
    print(f"{'codec':8} {'bytes':9} {'ratio':>6} {'pack MB/s':>10} {'unpack MB/s':>12} {'store':>6} {'fetch':>6}")
    for codec, pack, unpack in codecs():
        for arrange in (plain, shuffled, channels):
            before, after, pack_s, unpack_s = measure_codec(pack, unpack, pieces_of_records, arrange, unit)
            ratio, pack_mb_s, unpack_mb_s = before / after, before / pack_s / 1e6, before / unpack_s / 1e6
            store = write_mb_s / pack_mb_s + 1 / ratio
            fetch = read_mb_s / unpack_mb_s + 1 / ratio
            print(f"{codec:8} {arrange.__name__:9} {ratio:6.3f} {pack_mb_s:10.0f} {unpack_mb_s:12.0f} {store:6.2f} "
                  f"{fetch:6.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=os.path.join(HERE, "..", ".cache", "models", "gemma-3-270m-q4_k_m.gguf"))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--types", nargs="*", choices=("f16", "q8_0"), default=["f16", "q8_0"])
    parser.add_argument("--records", type=int, default=128, help="at most")
    parser.add_argument("--directory", default="/var/tmp")
    parser.add_argument("--disk-mb-s", type=float, help="reckon with a disk of this speed, both ways (a memory card: 20 to "
                        "90) instead of the one that is here")
    options = parser.parse_args()
    write_mb_s, read_mb_s = disk_mb_s(options.directory, 576 << 10, 64)
    print(f"disk below {options.directory}: {write_mb_s:.0f} MB/s written, {read_mb_s:.0f} MB/s read, a record at a time")
    if options.disk_mb_s:
        write_mb_s = read_mb_s = options.disk_mb_s
        print(f"reckoned with: {options.disk_mb_s:.0f} MB/s")
    for name, type_, unit in (("f16", F16, 2), ("q8_0", Q8_0, 34)):
        if name not in options.types:
            continue
        state = state_of(options.model, type_, options.tokens)
        report(name, tensors(state, type_), unit, write_mb_s, read_mb_s, options.records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
