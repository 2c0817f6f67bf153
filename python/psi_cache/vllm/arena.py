"""A KV cache on whole pages, committed by touch, where vLLM lets a connector allocate it (get_mem_pool_context, in
0.31 and later). Inside the context torch.zeros of a large tensor in host memory is an anonymous mapping: zero by nature, and not in
memory before it is written. Elsewhere, and for everything else, torch does what it does."""

from __future__ import annotations

import mmap
from typing import Any

LEAST_BYTES = 1 << 20


def _wants_arena(result_bytes: int, device: Any) -> bool:
    import torch

    return result_bytes >= LEAST_BYTES and (device is None or torch.device(device).type == "cpu")


def _bytes_of(args: Any, kwargs: Any) -> int:
    import torch

    size = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list, torch.Size)) else args
    count = 1
    for length in size or kwargs.get("size", ()):
        count *= int(length)
    return count * torch.empty((), dtype=kwargs.get("dtype") or torch.get_default_dtype()).element_size()


def context() -> Any:
    """The context that allocates in an arena. Raises ImportError where torch has no function modes."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Arena(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is not torch.zeros or not set(kwargs) <= {"size", "dtype", "device"}:
                return func(*args, **kwargs)
            needed = _bytes_of(args, kwargs)
            if not _wants_arena(needed, kwargs.get("device")):
                return func(*args, **kwargs)
            memory = mmap.mmap(-1, needed, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            like = func(0, dtype=kwargs.get("dtype"))
            flat = torch.frombuffer(memory, dtype=like.dtype)  # keeps the mapping alive
            return flat.view(*args) if args else flat.view(kwargs["size"])

    return Arena()
