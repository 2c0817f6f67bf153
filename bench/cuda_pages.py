"""What giving a GPU's memory back would cost: a cache mapped piece by piece with CUDA's virtual memory calls.

Reserves addresses, maps memory to them in pieces of the smallest size that the driver has, and gives scattered pieces
back and takes them again, on an idle device. Says how long a piece takes, whether the driver then has that much more free
memory, and whether the pieces that stayed kept their bits. Not asked: whether the calls wait for running work. Needs
NVIDIA's driver (libcuda.so.1) and nothing else; llm-psi-cache itself uses none of this yet (docs/vllm.md, Limits). Writes
build/bench/cuda_pages.json.
"""
import argparse
import ctypes
import json
import os
import random
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "build", "bench", "cuda_pages.json")
PINNED, ON_DEVICE, READ_WRITE, VIRTUAL_MEMORY_SUPPORTED = 1, 1, 3, 102


class Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class Properties(ctypes.Structure):
    """CUmemAllocationProp; what is not named here stays 0."""
    _fields_ = [("type", ctypes.c_int), ("handles", ctypes.c_int), ("location", Location),
                ("windows", ctypes.c_void_p), ("flags", ctypes.c_ubyte * 8)]


class Access(ctypes.Structure):
    _fields_ = [("location", Location), ("flags", ctypes.c_int)]


class Driver:
    """Calls that raise where CUDA says no."""

    def __init__(self):
        try:
            self.cuda = ctypes.CDLL("libcuda.so.1")
        except OSError:
            sys.exit("no NVIDIA driver here (libcuda.so.1): this bench needs a GPU of NVIDIA's")

    def __call__(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorName(code, ctypes.byref(text))
            raise SystemExit(f"{name}: {(text.value or b'error').decode()} ({code})")

    def free_bytes(self):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value


class Cache:
    """Pieces of device memory at consecutive addresses."""

    def __init__(self, cuda, device, count):
        self.cuda, self.count = cuda, count
        self.properties = Properties(type=PINNED, location=Location(ON_DEVICE, device))
        self.access = Access(Location(ON_DEVICE, device), READ_WRITE)
        size = ctypes.c_size_t()
        cuda("cuMemGetAllocationGranularity", ctypes.byref(size), ctypes.byref(self.properties), 0)
        self.piece_bytes = size.value
        base = ctypes.c_uint64()
        cuda("cuMemAddressReserve", ctypes.byref(base), ctypes.c_size_t(size.value * count), ctypes.c_size_t(0),
             ctypes.c_uint64(0), ctypes.c_uint64(0))
        self.base, self.handles = base.value, {}

    def address(self, piece):
        return ctypes.c_uint64(self.base + piece * self.piece_bytes)

    def take(self, piece):
        handle = ctypes.c_uint64()
        size = ctypes.c_size_t(self.piece_bytes)
        self.cuda("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(self.properties), ctypes.c_uint64(0))
        self.cuda("cuMemMap", self.address(piece), size, ctypes.c_size_t(0), handle, ctypes.c_uint64(0))
        self.cuda("cuMemSetAccess", self.address(piece), size, ctypes.byref(self.access), ctypes.c_size_t(1))
        self.handles[piece] = handle

    def give(self, piece):
        self.cuda("cuMemUnmap", self.address(piece), ctypes.c_size_t(self.piece_bytes))
        self.cuda("cuMemRelease", self.handles.pop(piece))

    def fill(self, piece, word):
        self.cuda("cuMemsetD32_v2", self.address(piece), ctypes.c_uint(word), ctypes.c_size_t(self.piece_bytes // 4))

    def words(self, piece):
        """First and last word."""
        found = []
        for offset in (0, self.piece_bytes - 4):
            word = ctypes.c_uint32()
            self.cuda("cuMemcpyDtoH_v2", ctypes.byref(word), ctypes.c_uint64(self.base + piece * self.piece_bytes + offset),
                      ctypes.c_size_t(4))
            found.append(word.value)
        return found


def each_us(action, pieces):
    times = []
    for piece in pieces:
        begin = time.perf_counter()
        action(piece)
        times.append((time.perf_counter() - begin) * 1e6)
    return times


def summary(times_us):
    ordered = sorted(times_us)
    return {"p50_us": ordered[len(ordered) // 2], "p99_us": ordered[len(ordered) * 99 // 100], "worst_us": ordered[-1]}


def measure(cuda, cache, gone):
    """Give `gone` back and take them again."""
    stay = [piece for piece in range(cache.count) if piece not in set(gone)]
    before = cuda.free_bytes()
    given = each_us(cache.give, gone)
    freed = cuda.free_bytes() - before
    taken = each_us(cache.take, gone)
    wrong = sum(cache.words(piece) != [piece, piece] for piece in stay)
    for piece in gone:
        cache.fill(piece, piece)
    return {"pieces": len(gone), "give": summary(given), "take": summary(taken),
            "promised_bytes": len(gone) * cache.piece_bytes, "freed_bytes": freed, "changed_pieces": wrong,
            "give_us": given, "take_us": taken}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=2000, help="of the cache (default 2000)")
    parser.add_argument("--give", type=float, default=0.15, help="share that goes, scattered (default 0.15)")
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args()


def main():
    options = arguments()
    cuda = Driver()
    cuda("cuInit", 0)
    device, supported, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    cuda("cuDeviceGet", ctypes.byref(device), 0)
    cuda("cuDeviceGetAttribute", ctypes.byref(supported), VIRTUAL_MEMORY_SUPPORTED, device)
    name, version = ctypes.create_string_buffer(128), ctypes.c_int()
    cuda("cuDeviceGetName", name, 128, device)
    cuda("cuDriverGetVersion", ctypes.byref(version))
    if not supported.value:
        sys.exit(f"{name.value.decode()} has no virtual memory calls: its cache can only be given back whole")
    cuda("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    cuda("cuCtxSetCurrent", context)
    cache = Cache(cuda, device.value, options.pieces)
    first = each_us(cache.take, range(cache.count))
    for piece in range(cache.count):
        cache.fill(piece, piece)
    random_, runs = random.Random(1), []
    for _ in range(options.turns):
        runs.append(measure(cuda, cache, sorted(random_.sample(range(cache.count), int(cache.count * options.give)))))
    result = {"gpu": name.value.decode(), "cuda": version.value, "piece_bytes": cache.piece_bytes,
              "pieces": cache.count, "first_take": summary(first), "runs": runs}
    os.makedirs(os.path.dirname(OUT), exist_ok=True)
    with open(OUT, "w") as file:
        json.dump(result, file, indent=1)
    print(f"{result['gpu']}, CUDA {version.value}: pieces of {cache.piece_bytes >> 20} MiB, {cache.count} of them")
    for run in runs:
        print(f"  give {run['give']['p50_us']:8.1f} us (worst {run['give']['worst_us']:8.1f})   take "
              f"{run['take']['p50_us']:8.1f} us (worst {run['take']['worst_us']:8.1f})   freed "
              f"{run['freed_bytes'] / run['promised_bytes']:.3f} of promised   {run['changed_pieces']} changed")


if __name__ == "__main__":
    main()
