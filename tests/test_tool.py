"""psi-cache, the command: options to environment, errors and their exit status, doctor on this machine, and
status, trim and restore against boards that a test writes."""

import ctypes
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

try:
    from psi_cache import _native
except ImportError:  # not installed: the tree, with PSI_CACHE_LIB_DIR for what is built
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
    from psi_cache import _native

LIBRARY = "libpsicache-llama.so"


def native(name):
    try:
        return _native.find(name)
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture
def tool(tmp_path):
    """Calls psi-cache with a clean environment and an own directory of boards."""
    executable = native("psi-cache")
    boards = tmp_path / "run"
    boards.mkdir(mode=0o700)

    def call(*arguments, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PSI_CACHE_") and k != "LD_PRELOAD"}
        clean.update({"PSI_CACHE_RUN_DIR": str(boards), "PSI_CACHE_LIB_DIR": str(executable.parent), **environment})
        return subprocess.run(
            [str(executable), *map(str, arguments)], env=clean, capture_output=True, text=True, timeout=60
        )

    call.boards = boards
    call.executable = executable
    return call


def environment_of(answer):
    assert answer.returncode == 0, answer.stderr
    return dict(line.split("=", 1) for line in answer.stdout.splitlines() if "=" in line)


# ---- help -------------------------------------------------------------------------------------------


def test_help_and_version(tool):
    overview = tool("--help")
    assert overview.returncode == 0 and "usage: psi-cache run" in overview.stdout
    assert len(overview.stdout.splitlines()) <= 24
    for name in ("run", "doctor", "status", "trim", "restore", "watch", "record", "replay"):
        text = tool("help", name).stdout
        assert text.startswith(f"usage: psi-cache {name}")
        assert tool(name, "--help").stdout == text
    assert tool("--version").stdout.startswith("psi-cache 0.")


@pytest.mark.parametrize("arguments", [[], ["frob"], ["--frob"], ["help", "frob"], ["status", "x"], ["status", "1", "2"],
                                       ["trim"], ["trim", "1", "2"], ["trim", "all", "0"], ["trim", "me"],
                                       ["restore"], ["restore", "1", "0.5"], ["doctor", "--frob"]])
def test_wrong_use(tool, arguments):
    answer = tool(*arguments)
    assert answer.returncode == 2 and answer.stderr and not answer.stdout


# ---- run --------------------------------------------------------------------------------------------


def preloaded_as():
    """How `run` names the library: LD_PRELOAD cannot hold a blank, so then by its name alone, with LD_LIBRARY_PATH."""
    library = str(native(LIBRARY))
    return LIBRARY if " " in library else library


def test_run_sets_the_environment(tool, tmp_path):
    library = preloaded_as()
    answer = tool("run", "--high", "0.6", "--low", "0.2", "--policy", "keys", "--recall", "off",
                  "--score-share", "0.02", "--recall-share", "0.05", "--recall-us", "20000",
                  "--store", "file", "--store-dir", tmp_path, "--store-max", "64M", "--floor", "4k", "--reserve", "1G",
                  "--block-cells", "64", "--long-step-us", "7000", "--controller", "off",
                  "-vv", "--", "env")
    seen = environment_of(answer)
    assert {name[10:]: value for name, value in seen.items() if name.startswith("PSI_CACHE_")
            and name not in ("PSI_CACHE_RUN_DIR", "PSI_CACHE_LIB_DIR")} == {
        "HIGH": "0.6", "LOW": "0.2", "POLICY": "keys", "RECALL": "off", "SCORE_SHARE": "0.02", "RECALL_SHARE": "0.05",
        "RECALL_US": "20000", "STORE": "file", "STORE_DIR": str(tmp_path.resolve()),
        "STORE_MAX_BYTES": str(64 << 20), "FLOOR_BYTES": "4096", "RESERVE_BYTES": str(1 << 30), "BLOCK_CELLS": "64",
        "LONG_STEP_US": "7000",
        "CONTROLLER": "off", "VERBOSE": "3", "COMMAND": "env"}
    assert seen["LD_PRELOAD"] == library


def test_run_leaves_what_is_not_named(tool):
    native(LIBRARY)
    seen = environment_of(tool("run", "env", PSI_CACHE_LOW="0.1"))
    assert seen["PSI_CACHE_LOW"] == "0.1"
    assert "PSI_CACHE_HIGH" not in seen and "PSI_CACHE_VERBOSE" not in seen
    assert environment_of(tool("run", "-q", "env"))["PSI_CACHE_VERBOSE"] == "0"


def test_run_is_first_and_once_in_ld_preload(tool):
    library = preloaded_as()
    other = next((p for p in ("/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6")
                  if os.path.exists(p)), None)
    if other is None:
        pytest.skip("no library to preload besides")
    assert environment_of(tool("run", "env", LD_PRELOAD=other))["LD_PRELOAD"] == f"{library}:{other}"
    assert environment_of(tool("run", tool.executable, "run", "env"))["LD_PRELOAD"] == library


def test_run_from_a_path_with_a_blank(tool, tmp_path):
    there = tmp_path / "my engines"
    there.mkdir()
    shutil.copy(native(LIBRARY), there)
    seen = environment_of(tool("run", "env", PSI_CACHE_LIB_DIR=str(there)))
    assert seen["LD_PRELOAD"] == LIBRARY and seen["LD_LIBRARY_PATH"] == str(there)


@pytest.mark.parametrize("options, word", [
    (["--high", "2"], "--high 2"), (["--high", "0"], "above 0"), (["--high", "nan"], "nan"),
    (["--high", "0.3", "--low", "0.3"], "not below"), (["--low", "0.8"], "not below"),
    (["--policy", "best"], "auto|attention|keys|fifo|lru"),
    (["--policy", "fifo|lru"], "fifo|lru"), (["--recall", "maybe"], "on|off"),
    (["--score-share", "1.5"], "--score-share 1.5"), (["--recall-us", "0"], "from 1"),
    (["--policy", ""], "fifo|lru"), (["--store", "disk"], "file|none"),
    (["--store-dir", "/nowhere/at/all"], "No such file"), (["--store-dir", "/etc/passwd"], "not a directory"),
    (["--store-max", "-1"], "--store-max"), (["--store-max", "99999999999G"], "--store-max"), (["--floor", "1X"], "1X"),
    (["--block-cells", "0"], "from 1"), (["--controller", "maybe"], "on|off"), (["--frob"], "--frob"),
])
def test_run_refuses_bad_options(tool, options, word):
    answer = tool("run", *options, "--", "true")
    assert answer.returncode == 2 and word in answer.stderr and "psi-cache help run" in answer.stderr


def test_run_exit_status_is_the_commands(tool, tmp_path):
    native(LIBRARY)
    assert tool("run", "--", "sh", "-c", "exit 7").returncode == 7
    missing = tool("run", "--", "no-such-command")
    assert missing.returncode == 127 and "not found" in missing.stderr
    plain = tmp_path / "plain"
    plain.write_text("text")
    assert tool("run", "--", plain).returncode == 126
    assert tool("run").returncode == 2


def test_run_says_that_a_static_program_runs_untouched(tool, tmp_path):
    native(LIBRARY)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    source, program = tmp_path / "s.c", tmp_path / "s"
    source.write_text("int main(void) { return 3; }\n")
    if not compiler or subprocess.run([compiler, "-static", source, "-o", program], capture_output=True).returncode:
        pytest.skip("cannot link a static program here")
    answer = tool("run", "--", program)
    assert answer.returncode == 3 and "runs untouched" in answer.stderr and len(answer.stderr.splitlines()) == 1
    assert tool("run", "--quiet", "--", program).stderr == ""


def test_run_without_the_library(tool, tmp_path):
    alone = tmp_path / "bin"
    alone.mkdir()
    shutil.copy(tool.executable, alone)
    answer = subprocess.run([str(alone / "psi-cache"), "run", "--", "true"], capture_output=True, text=True, timeout=60,
                            env={"PATH": os.environ["PATH"]})
    assert answer.returncode == 125 and LIBRARY in answer.stderr and "cure:" in answer.stderr


# ---- doctor -----------------------------------------------------------------------------------------


def test_doctor_on_this_machine(tool):
    answer = tool("doctor", "--json")
    report = json.loads(answer.stdout)
    assert answer.returncode == report["exit"]
    assert report["verdict"] == ["usable", "usable with limits", "not usable"][report["exit"]]
    assert report["page_bytes"] == mmap.PAGESIZE
    assert 0 <= report["headroom_bytes"] <= report["limit_bytes"]
    names = [check["name"] for check in report["checks"]]
    for name in ("kernel", "psi.system.memory", "trigger.system", "vmstat", "meminfo", "headroom", "swap", "store",
                 "memlock", "library", "llama.cpp"):
        assert name in names
    for check in report["checks"]:
        assert check["state"] in ("ok", "note", "limit", "missing")
        assert (check["state"] == "ok") <= (check["cure"] == "")
        assert check["state"] == "ok" or check["cure"], check
    people = tool("doctor")
    assert people.returncode == answer.returncode and people.stdout.splitlines()[-1] == report["verdict"]
    assert "\033" not in people.stdout  # piped: plain


def check_named(answer, name):
    return [check for check in json.loads(answer.stdout)["checks"] if check["name"] == name]


def test_doctor_on_stores(tool, tmp_path):
    missing = tool("doctor", "--json", PSI_CACHE_STORE_DIR=str(tmp_path / "none"))
    assert check_named(missing, "store")[0]["state"] == "limit" and missing.returncode >= 1
    if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK):
        memory = check_named(tool("doctor", "--json", PSI_CACHE_STORE_DIR="/dev/shm"), "store")[0]
        assert memory["state"] == "limit" and "memory itself" in memory["detail"]
    assert list(tmp_path.glob("psi-cache-*")) == []


def test_doctor_on_files(tool, tmp_path):
    script, junk = tmp_path / "engine.sh", tmp_path / "junk"
    script.write_text("#!/bin/sh\n")
    junk.write_bytes(b"\x7fELF" + os.urandom(200))
    answer = tool("doctor", "--json", script, junk, tmp_path / "none", "/bin/ls")
    assert answer.returncode == 2
    assert [check["state"] for check in check_named(answer, "llama.cpp")] == ["note", "missing", "missing", "limit"]


def test_doctor_survives_any_elf_file(tool, tmp_path):
    """Each offset in a file may be nonsense."""
    good = bytearray(Path("/bin/ls").read_bytes()[:20000])
    for seed in range(40):
        bad = bytearray(good)
        for i in range(30):
            bad[(seed * 7919 + i * 104729) % (64 if seed % 2 else len(bad))] = (seed * 31 + i * 17) % 256
        bad[:4] = b"\x7fELF"
        (tmp_path / f"libbad{seed}.so").write_bytes(bad)
    answer = tool("doctor", "--json", *sorted(tmp_path.glob("libbad*.so")))
    assert answer.returncode in (1, 2), answer.stderr


def test_doctor_on_llama_cpp(tool):
    spec = __import__("importlib.util").util.find_spec("llama_cpp")
    if spec is None:
        pytest.skip("llama-cpp-python is not installed")
    answer = tool("doctor", "--json", Path(spec.origin).parent / "lib" / "libllama.so")
    assert check_named(answer, "llama.cpp")[0]["state"] == "ok"


# ---- status, trim, restore --------------------------------------------------------------------------

HEAD = struct.Struct("=QqQ64s128sIII")  # psi_board up to its stats
MAGIC = 0x0036424953500A0D
STATS_AT = HEAD.size
STATS_BYTES = ctypes.sizeof(_native.Stats)
BOARD_BYTES = (STATS_AT + STATS_BYTES + 7) // 8 * 8


def write_board(directory, pid=None, magic=MAGIC, command=b"llama-server -m x", engine=b"llama.cpp, of a test", **numbers):
    stats = _native.Stats(size=STATS_BYTES if numbers else 0, high=0.7, low=0.3, **numbers)
    pid = os.getpid() if pid is None else pid
    content = HEAD.pack(magic, pid, 0, command, engine, 0, 0, 2) + bytes(stats)
    path = directory / str(pid)
    path.write_bytes(content.ljust(BOARD_BYTES, b"\0"))
    path.chmod(0o600)
    return path


NUMBERS = dict(index=0.42, index_headroom=0.42, headroom_bytes=2**64 - 1, limit_bytes=2**64 - 1, capacity_bytes=576 << 20,
               resident_bytes=100 << 20, stored_bytes=50 << 20, trims=3, trimmed_bytes=70 << 20, steps=12, pools=1)


def test_status_shows_a_board(tool):
    write_board(tool.boards, **NUMBERS)
    answer = tool("status")
    assert answer.returncode == 0
    for text in (str(os.getpid()), "llama-server -m x", "llama.cpp, of a test", "0.42", "100.0 MiB", "576.0 MiB", "unknown"):
        assert text in answer.stdout
    assert "\033" not in answer.stdout
    seen = json.loads(tool("status", os.getpid(), "--json").stdout)["processes"]
    assert len(seen) == 1 and seen[0]["pid"] == os.getpid() and seen[0]["managed"] is True
    assert seen[0]["resident_bytes"] == 100 << 20 and seen[0]["headroom_bytes"] is None and seen[0]["index"] == 0.42
    assert set(_native.Stats(size=STATS_BYTES).to_dict()) <= set(seen[0])


def test_status_without_numbers(tool):
    write_board(tool.boards, command=b'x \x1b[31m"', engine=b"not llama.cpp: runs untouched")
    answer = tool("status")
    assert answer.returncode == 0 and "runs untouched" in answer.stdout and "\033" not in answer.stdout
    seen = json.loads(tool("status", "--json").stdout)["processes"][0]
    assert seen["managed"] is False and "resident_bytes" not in seen and seen["command"] == 'x \x1b[31m"'
    assert "no cache here is managed" in tool("trim", "all").stdout


def test_status_of_nobody(tool):
    answer = tool("status")
    assert answer.returncode == 1 and "psi-cache run --" in answer.stderr
    assert tool("status", os.getpid()).returncode == 1
    assert json.loads(tool("status", "--json").stdout) == {"processes": []}
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_board(tool.boards, pid=dead.pid, **NUMBERS)
    assert tool("status").returncode == 1
    write_board(tool.boards, magic=MAGIC + 1, **NUMBERS)
    assert "another version" in tool("status").stderr
    assert "another version" in tool("trim", os.getpid()).stdout


def test_status_does_not_trust_an_open_directory(tool):
    write_board(tool.boards, **NUMBERS)
    tool.boards.chmod(0o777)
    assert tool("status").returncode == 1


class Engine(threading.Thread):
    """Takes requests as a watcher would, and does them at once, later, or never."""

    def __init__(self, path, does):
        super().__init__(daemon=True)
        self.file = open(path, "r+b")
        self.board = mmap.mmap(self.file.fileno(), BOARD_BYTES)
        self.does, self.stop, self.asked = does, False, None

    def run(self):
        trim_at = HEAD.size - 12
        while not self.stop:
            trim, restore = struct.unpack_from("=II", self.board, trim_at)
            if trim or restore:
                self.asked = (trim, restore)
                struct.pack_into("=II", self.board, trim_at, 0, 0)
                stats = _native.Stats.from_buffer_copy(self.board, STATS_AT)
                self.does(stats, trim / 1000)
                self.board[STATS_AT:STATS_AT + STATS_BYTES] = bytes(stats)
            time.sleep(0.002)


@pytest.fixture
def engine(tool):
    started = []

    def start(does, **numbers):
        path = write_board(tool.boards, **{**NUMBERS, **numbers})
        started.append(Engine(path, does))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop = True
        one.join()


def give_back(stats, share):
    moved = int(stats.resident_bytes * share)
    stats.resident_bytes -= moved
    stats.trimmed_bytes += moved
    stats.trims += 1
    stats.steps += 1


def bring_back(stats, share):
    stats.resident_bytes += stats.stored_bytes
    stats.restored_bytes += stats.stored_bytes
    stats.stored_bytes = 0


def test_trim_says_what_came_of_it(tool, engine):
    running = engine(give_back)
    answer = tool("trim", os.getpid())
    assert answer.returncode == 0 and "100.0 MiB -> 85.0 MiB" in answer.stdout and "15.0 MiB given back" in answer.stdout
    assert running.asked == (150, 0)
    assert "85.0 MiB -> 42.5 MiB" in tool("trim", "all", "0.5").stdout
    assert running.asked == (500, 0)


def test_restore_says_what_came_of_it(tool, engine):
    running = engine(bring_back)
    answer = tool("restore", "all")
    assert answer.returncode == 0 and "100.0 MiB -> 150.0 MiB (50.0 MiB restored)" in answer.stdout
    assert running.asked == (0, 1)
    assert "nothing to restore" in tool("restore", "all").stdout


def test_trim_of_an_idle_engine(tool, engine):
    engine(lambda stats, share: None)
    answer = tool("trim", "all")
    assert answer.returncode == 0 and "next safe point" in answer.stdout and "idle" in answer.stdout


def test_trim_of_a_stopped_process(tool):
    write_board(tool.boards, **NUMBERS)
    begin = time.monotonic()
    answer = tool("trim", "all")
    assert answer.returncode == 1 and "not taken within 2 s" in answer.stdout
    assert 1.5 < time.monotonic() - begin < 10
