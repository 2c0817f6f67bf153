"""The Python bindings, without an engine: the mirror of psi_stats, errors and their words, which copy of the
library is called, and how llama_cpp is found wrapped. Each import runs in a process of its own."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

try:
    import psi_cache
except ImportError:  # not installed: the tree, with PSI_CACHE_LIB_DIR for what is built
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
    import psi_cache
from psi_cache import _native

PACKAGE = str(Path(psi_cache.__file__).resolve().parent.parent)


@pytest.fixture
def needs_library():
    try:
        return _native.find("libpsicache.so")
    except OSError as error:
        pytest.skip(str(error))


def python(code, path=(), **environment):
    """Runs code in a fresh interpreter. Returns (status, stdout, stderr)."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PSI_CACHE_DISABLE", "LD_PRELOAD")}
    clean["PYTHONPATH"] = os.pathsep.join([*map(str, path), PACKAGE])
    clean.update({name: str(value) for name, value in environment.items()})
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=clean, capture_output=True, text=True,
                          timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_the_mirror_of_psi_stats():
    header = Path(__file__).resolve().parent.parent / "include" / "psicache.h"
    text = header.read_text()
    body = text[text.index("typedef struct psi_stats {"):text.index("} psi_stats;")]
    declared = []
    for line in body.splitlines()[1:]:
        line = line.split("/*")[0].strip().rstrip(";")
        if line:
            kind, names = line.split(" ", 1)
            for name in (name.strip() for name in names.split(",")):
                array = re.fullmatch(r"(\w+)\[(\d+)\]", name)
                declared.append((array[1], f"{kind}[{array[2]}]") if array else (name, kind))
    kinds = {"char[96]": ctypes.c_char * 96, "size_t": ctypes.c_size_t, "double": ctypes.c_double, "uint64_t": ctypes.c_uint64, "int64_t": ctypes.c_int64}
    assert [(name, kinds[kind]) for name, kind in declared] == _native.Stats._fields_


def test_stats_keys_and_unknown_values():
    numbers = _native.Stats(size=1, headroom_bytes=2**64 - 1, limit_bytes=5, trims=3).to_dict()
    assert numbers["headroom_bytes"] is None and numbers["limit_bytes"] == 5 and numbers["trims"] == 3
    assert "size" not in numbers
    assert {"index", "index_stall", "index_headroom", "index_forecast", "index_thrash", "capacity_bytes", "resident_bytes",
            "stored_bytes", "dropped_bytes", "trims", "restores", "refusals"} <= set(numbers)


def test_errors_are_os_errors():
    assert issubclass(psi_cache.PsiCacheError, OSError)
    assert issubclass(psi_cache.PsiCacheValueError, (psi_cache.PsiCacheError, ValueError))
    with pytest.raises(psi_cache.PsiCacheValueError, match="choose") as caught:
        _native.check(-22, "limits", EINVAL="choose well")
    assert caught.value.errno == 22
    assert _native.check(3, "x") == 3


def test_a_missing_library_is_named_with_its_cure(tmp_path):
    status, out, err = python("""
        import psi_cache, psi_cache._native as n
        n.directories = lambda: [n.Path(%r)]
        try:
            psi_cache.version()
        except psi_cache.PsiCacheError as error:
            print(error.errno, error)
    """ % str(tmp_path))
    assert status == 0, err
    assert out.startswith("2 ") and "libpsicache.so" in out and "pip install" in out and "PSI_CACHE_LIB_DIR" in out


# ---- With the library ---------------------------------------------------------------------------------


def test_version(needs_library):
    assert psi_cache.version() == psi_cache.__version__


@pytest.mark.parametrize("limits", [(0,), (1.5,), (-1,), (float("nan"),), (0.5, 0.5), (0.5, 0.6), (0.5, -0.1)])
def test_bad_limits(needs_library, limits):
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        psi_cache.set_cache_limit(*limits)


def test_good_limits(needs_library):
    psi_cache.set_cache_limit(0.6)
    psi_cache.set_cache_limit(0.8, 0.0)
    psi_cache.set_cache_limit(0.7)


@pytest.mark.parametrize("share", [-0.1, 0, 1.1, float("nan")])
def test_bad_trim(needs_library, share):
    with pytest.raises(psi_cache.PsiCacheValueError, match="share above 0, up to 1"):
        psi_cache.trim(share)


def test_wrong_types(needs_library):
    for call in (lambda: psi_cache.set_cache_limit(None), lambda: psi_cache.trim("all"), lambda: psi_cache.trim([])):
        with pytest.raises((TypeError, ValueError)):
            call()


def test_stats_without_a_cache(needs_library):
    status, out, err = python("""
        import psi_cache
        try:
            psi_cache.stats()
        except psi_cache.PsiCacheError as error:
            print(error.errno, error)
    """)
    assert status == 0, err
    assert out.startswith("19 ") and "import psi_cache.llama before llama_cpp" in out


def test_stats_of_the_default_pool(needs_library):
    status, out, err = python("""
        import ctypes, psi_cache, psi_cache._native as n
        library = n.library()
        library.psi_kv_malloc.restype, library.psi_kv_malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        assert library.psi_kv_malloc(1 << 20)
        numbers = psi_cache.stats()
        psi_cache.trim(0.5)
        psi_cache.restore()
        assert numbers["high"] == 0.7 and abs(numbers["low"] - 0.3) < 1e-9 and numbers["pools"] == 1, numbers
        assert 0 <= numbers["index"] <= 1
        print("done")
    """, PSI_CACHE_KV_BYTES=1 << 26)
    assert status == 0 and "done" in out, err


# ---- psi_cache.llama, over a stub of the engine's side --------------------------------------------------

STUB = """
#include <string.h>
static int refuse_above = 1 << 30;
static double the_high;
int psi_llama_refuses(const void *context, int tokens) { (void)context; return tokens > refuse_above; }
void psi_llama_note_context(const void *context, void *model, const void *params, size_t bytes) {
    (void)context; (void)model; (void)params; (void)bytes;
}
unsigned long long psi_llama_recompute(const void *context) { (void)context; return 0; }
void stub_refuse_above(int tokens) { refuse_above = tokens; }
struct batch { int n_tokens; void *a, *b, *c, *d, *e; signed char *logits; };
int stub_decode(void *context, struct batch batch) { return context ? 100 + batch.n_tokens + batch.logits[0] : -1; }
const char *psi_version(void) { return "%s"; }
int psi_set_cache_limit(double high) { the_high = high; return 0; }
int psi_set_cache_limits(double high, double low) { the_high = high; return low < 0 ? -22 : 0; }
double stub_high(void) { return the_high; }
int psi_stats_read(void *cache, void *stats) { memset((char *)stats + 8, 0, 176); return cache ? -22 : 0; }
int psi_cache_trim(void *cache, double share) { return cache && share > 2 ? -22 : 0; }
int psi_cache_restore(void *cache) { return cache ? -22 : 0; }
"""

ENGINE = """
import ctypes, functools, os
class llama_batch(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int32)] + [(n, ctypes.c_void_p) for n in "abcde"] + [("logits", ctypes.POINTER(ctypes.c_int8))]
_lib = ctypes.CDLL(os.path.join(os.environ["STUB"], "libpsicache-llama.so"))
llama_decode = _lib.stub_decode
llama_decode.argtypes, llama_decode.restype = [ctypes.c_void_p, llama_batch], ctypes.c_int32
"""


@pytest.fixture
def stub(tmp_path):
    """A directory with a libpsicache-llama.so of our own, and one with a package llama_cpp that calls it."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler for the stub")
    library, package = tmp_path / "lib", tmp_path / "site" / "llama_cpp"
    library.mkdir()
    package.mkdir(parents=True)
    (library / "stub.c").write_text(STUB % psi_cache.__version__)
    for name in ("libpsicache-llama.so", "libpsicache.so"):
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library / name, library / "stub.c"], check=True)
    (package / "__init__.py").write_text("from .llama_cpp import *\nfrom .llama import *\n")
    (package / "llama_cpp.py").write_text(ENGINE)
    (package / "_internals.py").write_text("import llama_cpp.llama_cpp as llama_cpp\n"
                                           "def decode(c, b):\n    return llama_cpp.llama_decode(c, b)\n")
    (package / "llama.py").write_text("import llama_cpp._internals as internals\n")

    def call(code, **environment):
        return python(code, [package.parent], **{"PSI_CACHE_LIB_DIR": library, "STUB": library, **environment})

    call.library = library
    return call


DECODES = """
import ctypes
from llama_cpp import _internals
B = llama_cpp.llama_batch(n_tokens=4, logits=(ctypes.c_int8 * 1)(7))
def decodes():
    return [llama_cpp.llama_decode(1, B), llama_cpp.llama_cpp.llama_decode(1, B), _internals.decode(1, B)]
"""


def test_llama_decode_is_asked_first(stub):
    status, out, err = stub("""
        import psi_cache.llama, llama_cpp
        exec(%r)
        assert decodes() == [111] * 3, decodes()
        psi_cache.llama._library.stub_refuse_above(3)
        assert decodes() == [1] * 3, decodes()
        psi_cache.llama._library.stub_refuse_above(4)
        assert decodes() == [111] * 3, decodes()
        wrapped = llama_cpp.llama_decode
        assert wrapped.argtypes[1] is llama_cpp.llama_batch and wrapped.restype is ctypes.c_int32
        for bad in ((1,), (1, "x"), ([], B)):
            try:
                wrapped(*bad)
            except (TypeError, ctypes.ArgumentError):
                continue
            raise SystemExit(f"accepted {bad}")
        assert type(llama_cpp.llama_cpp.__spec__.loader).__name__ == "SourceFileLoader"
        print("done")
    """ % DECODES)
    assert status == 0 and "done" in out, err


def test_the_question_costs_little(stub):
    status, out, err = stub("""
        import psi_cache.llama, llama_cpp, timeit
        exec(%r)
        wrapped, plain = llama_cpp.llama_decode, llama_cpp.llama_decode.__wrapped__
        best = lambda f: min(timeit.repeat(lambda: f(1, B), number=5000, repeat=15)) / 5000 * 1e6
        print(best(wrapped) - best(plain))
    """ % DECODES)
    assert status == 0, err
    print(f"added to a decode: {float(out):.2f} us")
    assert float(out) < 5  # about 1 us on an idle machine


def test_llama_cpp_imported_before(stub):
    status, _, err = stub("import llama_cpp, psi_cache.llama")
    assert status == 1 and "ImportError" in err and "comes too late" in err and "psi-cache run" in err
    status, _, err = stub("""
        import sys, types
        sys.modules["llama_cpp"] = types.ModuleType("fake")
        import psi_cache.llama
    """)
    assert status == 1 and "comes too late" in err


def test_preloaded_is_never_too_late(stub):
    status, out, err = stub("""
        import llama_cpp, psi_cache.llama
        exec(%r)
        psi_cache.llama._library.stub_refuse_above(0)
        print(decodes())
    """ % DECODES, LD_PRELOAD=stub.library / "libpsicache-llama.so")
    assert status == 0 and out.strip() == "[1, 1, 1]", err


def test_disabled(stub):
    status, out, err = stub("""
        import llama_cpp, psi_cache.llama
        exec(%r)
        print(decodes(), hasattr(llama_cpp.llama_decode, "__psi_cache__"))
    """ % DECODES, PSI_CACHE_DISABLE=1)
    assert status == 0 and out.strip() == "[111, 111, 111] False", err


def test_calls_go_to_the_engines_copy(stub):
    status, out, err = stub("""
        import psi_cache
        psi_cache.set_cache_limit(0.6)          # libpsicache.so: there is no other copy yet
        first = psi_cache._native.library()
        import psi_cache.llama
        assert psi_cache._native.library() is not first
        import ctypes
        psi_cache.llama._library.stub_high.restype = ctypes.c_double
        assert psi_cache.llama._library.stub_high() == 0.6   # told again
        psi_cache.set_cache_limit(0.5)
        assert psi_cache.llama._library.stub_high() == 0.5
        first.stub_high.restype = ctypes.c_double
        assert first.stub_high() == 0.6
        assert psi_cache.stats()["trims"] == 0
        psi_cache.llama.trim(0.5), psi_cache.llama.restore()
        print("done")
    """)
    assert status == 0 and "done" in out, err


def test_a_library_of_another_version(stub):
    (stub.library / "stub.c").write_text(STUB % "9.0.0")
    subprocess.run([shutil.which("cc") or "gcc", "-shared", "-fPIC", "-o", stub.library / "libpsicache.so",
                    stub.library / "stub.c"], check=True)
    status, _, err = stub("import psi_cache; psi_cache.stats()")
    assert status == 1 and "version 9.0.0" in err and "one release" in err


def test_command_without_the_executable(stub):
    status, _, err = stub("import sys, psi_cache.command as c; sys.exit(c.main())",
                          PSI_CACHE_LIB_DIR="/nowhere") if not (Path(PACKAGE) / "psi_cache/native/psi-cache").exists() \
        else (125, "", "psi-cache is not in")
    assert status == 125 and "psi-cache is not in" in err
