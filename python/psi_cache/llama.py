"""llama-cpp-python on an elastic cache: import this module before llama_cpp.

>>> import psi_cache.llama
>>> import llama_cpp

Puts libpsicache-llama.so in front of llama.cpp's own calls (nothing to do where ``psi-cache run`` preloaded
it), and lets ``llama_cpp.llama_decode`` return 1, llama.cpp's own "no room in the cache", where memory is so
short that a new token must be refused: the cache is as it was, and the caller gets the error it knows.

PSI_CACHE_DISABLE=1 in the environment makes this import do nothing.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import logging
import os
import sys
from types import ModuleType
from typing import Any, Callable, Optional, Sequence

from . import _native
from . import restore, set_cache_limit, stats, trim

__all__ = ["restore", "set_cache_limit", "stats", "trim"]

_MODULE = "llama_cpp.llama_cpp"  # where llama_decode is defined, and looked up at each call
_log = logging.getLogger("psi_cache")

_CURE = (
    "move 'import psi_cache.llama' above the first import of llama_cpp (of any package that imports it, too), "
    "or start the program with: psi-cache run -- python ..."
)


def _check_not_too_late() -> None:
    """A library can stand in only for calls that are bound after it was loaded."""
    if "llama_cpp" in sys.modules:
        raise ImportError(f"llama_cpp is already imported, so psi_cache.llama comes too late; {_CURE}", name=__name__)
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            loaded = any("/libggml-base." in line for line in maps)
    except OSError:
        return
    if loaded:
        raise ImportError(f"llama.cpp's libggml-base is already loaded; {_CURE}", name=__name__)


def _load() -> ctypes.CDLL:
    """The library, preloaded or loaded now, global in both cases."""
    preloaded = _native.global_library("psi_llama_refuses")
    if preloaded is not None:
        return preloaded
    _check_not_too_late()
    return _native.load(_native.find("libpsicache-llama.so"), ctypes.RTLD_GLOBAL | os.RTLD_NOW)


def _wrap(decode: Callable[..., int], refuses: Callable[[Any, int], int]) -> Callable[..., int]:
    """``decode`` with the question before it. The batch passes through as it is, so what ctypes accepted
    before is accepted, and what it refused is refused by it, with its words."""

    def llama_decode(ctx: Any, batch: Any, /) -> int:
        try:
            refused = refuses(ctx, batch.n_tokens)
        except (AttributeError, ctypes.ArgumentError):
            return decode(ctx, batch)
        return 1 if refused else decode(ctx, batch)

    llama_decode.__doc__ = decode.__doc__
    # What callers read off the ctypes function stays readable.
    for name in ("argtypes", "restype", "errcheck"):
        if hasattr(decode, name):
            setattr(llama_decode, name, getattr(decode, name))
    llama_decode.__wrapped__ = decode  # type: ignore[attr-defined]
    llama_decode.__psi_cache__ = True  # type: ignore[attr-defined]
    return llama_decode


def _patch(module: ModuleType) -> None:
    """Sets the wrapped llama_decode on llama_cpp.llama_cpp, and where it was already copied to."""
    decode = getattr(module, "llama_decode", None)
    if decode is None:
        _log.warning("psi_cache: this llama_cpp has no llama_decode: nothing is refused under pressure")
        return
    if getattr(decode, "__psi_cache__", False):
        return
    wrapped = _wrap(decode, _refuses)
    for name, other in list(sys.modules.items()):
        if (name == "llama_cpp" or name.startswith("llama_cpp.")) and vars(other).get("llama_decode") is decode:
            setattr(other, "llama_decode", wrapped)
    setattr(module, "llama_decode", wrapped)


class _Loader(importlib.abc.Loader):
    """The module's own loader, and then the patch: before llama_cpp/__init__ copies the names."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:  # get_source, get_data, is_package ...
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[ModuleType]:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        _patch(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Answers for one module, with what the other finders say."""

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname != _MODULE:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


if os.environ.get("PSI_CACHE_DISABLE") != "1":
    _library = _load()
    _native.follow()
    _refuses = _library.psi_llama_refuses
    _refuses.argtypes, _refuses.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_int
    _loaded = sys.modules.get(_MODULE)
    if _loaded is not None:  # preloaded, and llama_cpp came first: the calls are in place all the same
        _patch(_loaded)
    else:
        sys.meta_path.insert(0, _Finder())
