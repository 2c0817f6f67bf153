"""What the rig needs before it can measure: paths, the model's copy, small C programs, saved caches; and a few words that
all benches use. Benches import rig, which has all of it.
"""
import argparse
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "demo"))
import demo  # noqa: E402

BUILD = os.path.join(HERE, "..", "build", "bench")
MIB = 1024 * 1024
MB = 1000 * 1000
MODES = ("auto", "psi", "avg10", "off", "stock")
WEIGHTS = ("mapped", "locked", "unreclaimable")
CONTEXT_TOKENS = 32768
STATE_TOKENS = 24576


def say(text=""):
    print(text, flush=True)


def machine_line():
    where = demo.machine()
    return "%s, %d CPUs, Linux %s, %d MiB memory" % (where["cpu"], where["cpus"], where["kernel"],
                                                   where["memory_bytes"] // MIB)


def save(name, value):
    """build/bench/<name>, whole or not at all. Returns the path."""
    path = os.path.join(BUILD, name)
    demo.save(path, value)
    return path


# ---- what must be there first ------------------------------------------------------------------------

def model_file():
    """A copy of the model of the rig's own: pages of a file that another process maps cannot be dropped from the
    page cache, and would then not be charged to the group that reads them next."""
    path = os.path.join(BUILD, "model.gguf")
    if not os.path.exists(path):
        os.makedirs(demo.BUILD, exist_ok=True)
        shutil.copyfile(demo.model_file(argparse.Namespace(model=os.environ.get("PSI_BENCH_MODEL"))), path + ".new")
        os.replace(path + ".new", path)
    return path


def program(name):
    """bench/<name>.c, compiled when it is newer than its program."""
    path, source = os.path.join(BUILD, name), os.path.join(HERE, name + ".c")
    if not os.path.exists(path) or os.path.getmtime(path) < os.path.getmtime(source):
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise SystemExit("no C compiler for bench/%s.c (Debian: apt install gcc libc6-dev)" % name)
        subprocess.run([compiler, "-O2", "-o", path + ".new", source], check=True)
        os.replace(path + ".new", path)
    return path


def state_file(tokens=STATE_TOKENS, cache_type="f16"):
    path = os.path.join(BUILD, "state-%d%s.bin" % (tokens, "" if cache_type == "f16" else "-" + cache_type))
    if not os.path.exists(path):
        say("making a cache of %d tokens, once (about a minute) ..." % tokens)
        command = engine_command("stock", "locked", path + ".new", tokens, CONTEXT_TOKENS) + [
            "--make-state", "--cache-type", cache_type, "--threads", str(len(os.sched_getaffinity(0)))]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        os.replace(path + ".new", path)
    return path


def prepare(tokens=STATE_TOKENS):
    """Makes model copy, state and programs. Called by whatever needs them; calling it first keeps the waiting out
    of a measurement."""
    os.makedirs(BUILD, exist_ok=True)
    model_file()
    state_file(tokens)
    for name in ("spike", "sampler"):
        program(name)


@functools.lru_cache(maxsize=None)
def library_file():
    """The libpsicache-llama.so that an engine with psi_cache loads."""
    from psi_cache import _native
    return str(_native.find("libpsicache-llama.so"))


@functools.lru_cache(maxsize=None)
def library_build():
    """Twelve digits that name the library's bytes."""
    with open(library_file(), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:12]


def build_of(mode):
    """What a mode's runs are runs of: the library's bytes; stock's engine does not depend on them."""
    return "stock" if mode == "stock" else library_build()


def library_knows_modes():
    """Whether PSI_CACHE_MODE does anything in this build."""
    with open(library_file(), "rb") as file:
        return b"MODE\0" in file.read()


def engine_command(mode, weights, state, state_tokens, context_tokens, model=None):
    return [sys.executable, os.path.join(HERE, "engine.py"), "--mode", "stock" if mode == "stock" else "ours",
            "--model", model or model_file(), "--weights", weights, "--context", str(context_tokens)] + (
                ["--state", state, "--state-tokens", str(state_tokens)] if state else [])


def leave_on_signals():
    """Ctrl-C and SIGTERM become a SystemExit, so that with blocks remove their groups; call first in main()."""
    def leave(number, _frame):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, leave)
