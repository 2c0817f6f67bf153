"""llama-cpp-python on an elastic cache: import this module before llama_cpp.

>>> import psi_cache.llama
>>> import llama_cpp

Puts libpsicache-llama.so in front of llama.cpp's own calls (nothing to do where ``psi-cache run`` preloaded
it), and lets ``llama_cpp.llama_decode`` return 1, llama.cpp's own "no room in the cache", where memory is so
short that a new token must be refused: the cache is as it was, and the caller gets the error it knows.

PSI_CACHE_DISABLE=1 in the environment makes this import do nothing.
"""

from __future__ import annotations

import contextlib
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

__all__ = ["recompute", "restore", "set_cache_limit", "stats", "trim"]

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

    return _dress(llama_decode, decode)


def _wrap_init(init: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    """``init`` makes a context; how it was made is told, so that dropped blocks of it can be computed again."""

    def llama_init_from_model(model: Any, params: Any, /) -> Any:
        context = init(model, params)
        if context:
            with contextlib.suppress(TypeError, ctypes.ArgumentError):  # not told: nothing is computed again
                note(context, model, ctypes.byref(params), ctypes.sizeof(params))
        return context

    return _dress(llama_init_from_model, init)


def _dress(wrapper: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """What callers read off the ctypes function stays readable."""
    wrapper.__doc__, wrapper.__name__ = function.__doc__, getattr(function, "__name__", wrapper.__name__)
    for name in ("argtypes", "restype", "errcheck"):
        if hasattr(function, name):
            setattr(wrapper, name, getattr(function, name))
    wrapper.__wrapped__, wrapper.__psi_cache__ = function, True
    return wrapper  # type: ignore[no-any-return]


def _replace(module: ModuleType, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> bool:
    """Sets a wrapped function on llama_cpp.llama_cpp, and where it was already copied to."""
    function = getattr(module, name, None)
    if function is None or getattr(function, "__psi_cache__", False):
        return function is not None
    wrapped = wrap(function)
    for other_name, other in list(sys.modules.items()):
        if (other_name == "llama_cpp" or other_name.startswith("llama_cpp.")) and vars(other).get(name) is function:
            setattr(other, name, wrapped)
    setattr(module, name, wrapped)
    return True


def _patch(module: ModuleType) -> None:
    if not _replace(module, "llama_decode", lambda decode: _wrap(decode, _refuses)):
        _log.warning("psi_cache: this llama_cpp has no llama_decode: nothing is refused under pressure")
    for name in ("llama_init_from_model", "llama_new_context_with_model"):
        _replace(module, name, lambda init: _wrap_init(init, _note_context))


def recompute(context: Any = None) -> int:
    """Computes dropped blocks of a ``llama_context`` again from their tokens, now; None: of all contexts.

    Call it on the thread that decodes, while no decode runs: an idle engine is whole again before its next token is asked
    for. Blocks come back as far as their tokens are known and there is room. Returns the bytes that came back.
    """
    if _library is None:
        return 0
    return int(_library.psi_llama_recompute(context))


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


_library: Optional[ctypes.CDLL] = None

if os.environ.get("PSI_CACHE_DISABLE") != "1":
    _library = _load()
    _native.follow()
    _refuses = _library.psi_llama_refuses
    _refuses.argtypes, _refuses.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_int
    _note_context = _library.psi_llama_note_context
    _note_context.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    _note_context.restype = None
    _library.psi_llama_recompute.argtypes = [ctypes.c_void_p]
    _library.psi_llama_recompute.restype = ctypes.c_uint64
    _loaded = sys.modules.get(_MODULE)
    if _loaded is not None:  # preloaded, and llama_cpp came first: the calls are in place all the same
        _patch(_loaded)
    else:
        sys.meta_path.insert(0, _Finder())
