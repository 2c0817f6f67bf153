"""psi-cache record, replay and watch: traces of real runs give the decisions that were looked at once, byte for byte,
and keep the promises that matter; what is recorded here and now can be replayed; nonsense is refused with its line."""

import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from test_tool import tool  # noqa: F401  a fixture

TRACES = Path(__file__).resolve().parent / "traces"
NAMES = ("oom", "thrash", "load", "churn", "neighbour")
HEAD = "psi-cache-trace 1"


def lines_of(answer):
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


def summary_of(answer):
    last = lines_of(answer)[-1]
    assert last["summary"] is True
    return last


# ---- Traces of real runs (tests/traces/record.py) -----------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_expected_decisions(tool, name):
    """After a change of the controller: look at the difference, and tests/traces/record.py --expect if it is right."""
    trace = TRACES / f"{name}.trace"
    assert trace.stat().st_size <= 300_000
    answer = tool("replay", trace)
    assert answer.returncode == 0 and answer.stderr == ""
    assert answer.stdout == (TRACES / f"{name}.expected").read_text()


def test_oom_is_seen_coming(tool):
    """256 MiB that grow by 100 MiB/s into a limit of 512: the kernel kills at the end of the trace."""
    seen = summary_of(tool("replay", TRACES / "oom.trace", "--json"))
    assert seen["trims"] >= 1 and seen["first_trim_before_end_s"] >= 0.3
    # PSI cannot save this one, and the kernel's average even less.
    for mode in ("psi", "avg10"):
        late = summary_of(tool("replay", TRACES / "oom.trace", "--mode", mode, "--json"))
        assert late["trims"] == 0 or late["first_trim_before_end_s"] < 0.1


def test_thrash_is_seen(tool):
    """Not before the neighbour comes (after 4 s), and within two seconds of it."""
    seen = summary_of(tool("replay", TRACES / "thrash.trace", "--json"))
    assert seen["trims"] >= 1 and 3.5 < seen["first_trim_s"] < 6.5
    assert seen["most_thrash"] > 0.7


@pytest.mark.parametrize("name", ["load", "churn", "neighbour"])
@pytest.mark.parametrize("more", [(), ("--no-tuning",), ("--cache-bytes", "8G"), ("--reaction-us", "2000000")])
def test_nothing_is_trimmed_while_memory_is_plenty(tool, name, more):
    seen = summary_of(tool("replay", TRACES / f"{name}.trace", "--json", *more))
    assert seen["trims"] == 0 and seen["resident_bytes"] == seen["capacity_bytes"] and seen["samples"] > 50


def test_the_neighbour_stalls_the_machine(tool):
    """That the trace above is a test at all: stall alone would have trimmed."""
    assert summary_of(tool("replay", TRACES / "neighbour.trace", "--mode", "psi", "--json"))["trims"] > 0


# ---- replay: the same bytes in, the same out ------------------------------------------------------------


def sample(at_s, available_mib, total_mib=1024, **more):
    values = {"memory.total_bytes": total_mib << 20, "memory.available_bytes": available_mib << 20, **more}
    return f"@ {round(at_s * 1e6)} 15\n" + "".join(f"{name} {value}\n" for name, value in values.items())


@pytest.fixture
def falling(tmp_path):
    """The machine's memory is used up at 200 MiB/s: from 1000 MiB to 0 in 5 s."""
    path = tmp_path / "falling.trace"
    path.write_text(f"{HEAD}\n# made by a test\n" + "".join(sample(1 + i / 50, 1000 - 4 * i) for i in range(250)))
    return path


def names_in_traces():
    return {line.split()[0] for name in NAMES for line in (TRACES / f"{name}.trace").read_text().splitlines()
            if line[0] not in "#@" and line != HEAD}


def test_made_traces_use_names_that_there_are():
    assert set(re.findall(r"memory\.\w+", sample(0, 1))) <= names_in_traces()


def test_environment_takes_no_part(tool, falling):
    plain = tool("replay", falling)
    other = tool("replay", falling, PSI_CACHE_HIGH="0.1", PSI_CACHE_MODE="avg10", LC_ALL="de_DE.UTF-8", TZ="Asia/Tokyo")
    assert plain.returncode == 0 and plain.stdout == other.stdout and "trim" in plain.stdout
    with open(falling) as file:
        piped = subprocess.run([tool.executable, "replay", "-"], stdin=file, capture_output=True, text=True)
    assert piped.returncode == 0 and piped.stdout == plain.stdout


def test_options_take_part(tool, falling):
    default = summary_of(tool("replay", falling, "--json"))
    assert default["trims"] > 0 and default["capacity_bytes"] == 256 << 20
    assert default["resident_bytes"] >= (256 << 20) // 32
    early = summary_of(tool("replay", falling, "--json", "--high", "0.3"))
    assert early["first_trim_s"] < default["first_trim_s"]
    kept = summary_of(tool("replay", falling, "--json", "--evictable", "0.5", "--cache-bytes=64M"))
    assert kept["resident_bytes"] >= 32 << 20 and kept["trimmed_bytes"] <= 32 << 20
    assert summary_of(tool("replay", falling, "--json", "--evictable", "0"))["trims"] == 0
    assert summary_of(tool("replay", falling, "--json", "--mode", "avg10"))["trims"] == 0
    slow = lines_of(tool("replay", falling, "--json", "--reaction-us", "1500000"))
    first = next(line for line in slow if line.get("trim_bytes"))
    assert all(line["resident_bytes"] == 256 << 20 for line in slow[:-1]
               if line["seconds"] < first["seconds"] + 1.5)


def test_human_and_json_agree(tool, falling):
    people, programs = tool("replay", falling).stdout.splitlines(), lines_of(tool("replay", falling, "--json"))
    rows = [line.split() for line in people if re.match(r" *\d+\.\d{3} ", line)]
    assert len(rows) == len(programs) - 1
    for row, line in zip(rows, programs):
        assert float(row[0]) == pytest.approx(line["seconds"], abs=0.001)
        assert float(row[1]) == pytest.approx(line["index"], abs=0.001) and row[6] == line["band"]
    assert f"{programs[-1]['samples']} samples" in people[people.index("") + 1]


# ---- replay: what is no trace ---------------------------------------------------------------------------


@pytest.mark.parametrize("content, line", [
    (b"", "holds no sample"), (b"\n", "line 1"), (b"psi-cache-trace 2\n", "line 1"), (b"psi-cache-trace 1", "line 1"),
    (b"\x7fELF\0\0\n", "line 1"), (b"x" * 100000, "line 1"), (b"x" * 100000 + b"\n", "line 1"),
    (b"psi-cache-trace 1\n", "holds no sample"), (b"psi-cache-trace 1\r\n", "line 1"),
    (b"psi-cache-trace 1\n# only a comment\n", "holds no sample"),
    (b"psi-cache-trace 1\n@ 5 1\nmemory.total_bytes\n@ 6 1\n", "line 3"),
    (b"psi-cache-trace 1\n@ 5 1\n@ 4 1\n", "line 3"), (b"psi-cache-trace 1\nmemory.total_bytes 1\n", "line 2"),
    (b"psi-cache-trace 1\n@ 5 1\nmemory.total_bytes -1\n", "line 3"),
    (b"psi-cache-trace 1\n@ 5 1\nmemory.total_bytes 99999999999999999999999\n", "line 3"),
    (b"psi-cache-trace 1\n@ 5 1\nmemory.total_bytes 1\0 2\n", "line 3"), (b"psi-cache-trace 1\n@ 5 1\n\n", "line 3"),
    (b"psi-cache-trace 1\n@ 5 1\n" + b"a" * 5000 + b" 1\n", "line 3"),
])
def test_what_is_no_trace_is_refused(tool, tmp_path, content, line):
    path = tmp_path / "bad.trace"
    path.write_bytes(content)
    answer = tool("replay", path)
    assert answer.returncode == 1 and line in answer.stderr and "cure:" in answer.stderr


def test_odd_things_that_are_traces(tool, tmp_path):
    path = tmp_path / "odd.trace"
    text = (HEAD + "\n# " + "long " * 5000 + "\n" + sample(1, 500) + "# a NUL: \0\n" + "of.a.newer.version 7\n"
            + sample(1, 500) + "# the end\n").encode()
    path.write_bytes(text)
    assert summary_of(tool("replay", path, "--json"))["samples"] == 2


def test_a_cut_off_line_is_left_out(tool, falling, tmp_path):
    """At any byte: a recorder may be killed anywhere."""
    whole, path = falling.read_bytes(), tmp_path / "cut.trace"
    for cut in range(1, 200, 7):
        path.write_bytes(whole[:-cut])
        answer = tool("replay", path, "--json")
        seen = summary_of(answer)
        assert seen["samples"] >= 245
        assert ("cut off" in answer.stderr) == (whole[-cut - 1:-cut] != b"\n")
    path.write_bytes(whole + b"\0" * 512)  # what a file system may leave after a crash
    assert summary_of(tool("replay", path, "--json"))["samples"] == 249


def test_long_traces_take_no_memory(tool, tmp_path):
    path = tmp_path / "long.trace"
    with open(path, "w") as file:
        file.write(HEAD + "\n" + sample(1, 900))
        for i in range(60000):
            file.write(f"@ {2000000 + i * 2000} 15\n" + "memory.free_bytes 1\n" * 50)
    assert path.stat().st_size > 50_000_000

    running = subprocess.Popen([tool.executable, "replay", "-", "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    running.stdin.write(path.read_bytes())
    running.stdin.flush()
    most_kib = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{running.pid}/status").read_text())[1])
    out, _ = running.communicate(timeout=60)
    assert json.loads(out.splitlines()[-1])["samples"] == 60001
    assert most_kib < 40 << 10  # a sanitizer's own included


@pytest.mark.parametrize("arguments", [
    ["watch", "me"], ["watch", "1", "2"], ["watch", "--frob"], ["watch", "--interval", "9"], ["watch", "--interval"],
    ["watch", "--count", "0"], ["watch", "--", "true"], ["record", "me"], ["record", "1", "2"], ["record", "--"],
    ["record", "1", "--", "true"], ["record", "--seconds", "0"], ["record", "--seconds", "1.5"],
    ["record", "--interval", "0"], ["record", "--frob"], ["record", "-o"], ["replay"], ["replay", "a", "b"],
    ["replay", "--frob", "a"], ["replay", "a", "--mode", "best"], ["replay", "a", "--high", "2"],
    ["replay", "a", "--high", "0"], ["replay", "a", "--low", "0.8"], ["replay", "a", "--high", "0.3", "--low", "0.3"],
    ["replay", "a", "--cache-bytes", "0"], ["replay", "a", "--cache-bytes", "2000T"], ["replay", "a", "--evictable", "2"],
    ["replay", "a", "--reaction-us", "0"],
])
def test_wrong_use(tool, arguments):
    answer = tool(*arguments)
    assert answer.returncode == 2 and not answer.stdout
    assert f"psi-cache {arguments[0]}: " in answer.stderr and f"psi-cache help {arguments[0]}" in answer.stderr


def test_no_such_process_or_file(tool, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in ("watch", "record"):
        answer = tool(name, dead.pid)
        assert answer.returncode == 1 and "no process" in answer.stderr and not answer.stdout
    for path in (tmp_path / "none", tmp_path):
        answer = tool("replay", path)
        assert answer.returncode == 1 and str(path) in answer.stderr


# ---- record -------------------------------------------------------------------------------------------


def test_record_writes_what_replay_reads(tool, tmp_path):
    path = tmp_path / "own.trace"
    answer = tool("record", os.getpid(), "-o", path, "--seconds", "1", "--interval", "20")
    assert answer.returncode == 0 and answer.stdout == ""
    text = path.read_text()
    assert text.startswith(HEAD + "\n# psi-cache 0.") and text.splitlines()[-1] == "# end: the time is over"
    for word in ("# kernel Linux", f"# process {os.getpid()} ", "# source meminfo: in use:", "# a sample every 20 ms"):
        assert word in text
    seen = summary_of(tool("replay", path, "--json"))
    assert 25 <= seen["samples"] <= 52 and 0.5 < seen["seconds"] <= 1.05
    assert text.count("\n@ ") == seen["samples"]
    assert text.count("\nmemory.total_bytes ") == 1  # only what changed
    output = tool("record", "--seconds", "1")
    assert output.returncode == 0 and output.stdout.startswith(HEAD + "\n")


def test_record_sees_the_process_and_not_itself(tool, tmp_path):
    path = tmp_path / "grows.trace"
    code = "import mmap,time; m=mmap.mmap(-1,64<<20); time.sleep(.3); f=open('/proc/self/exe','rb'); time.sleep(.3)"
    answer = tool("record", "-o", path, "--interval", "50", "--", "python3", "-c", code)
    assert answer.returncode == 0, answer.stderr
    faults = [int(value) for value in re.findall(r"^self\.major_faults (\d+)$", path.read_text(), re.M)]
    assert "# end: the process has ended" in path.read_text() and f"# process {os.getpid()}" not in path.read_text()
    assert faults == sorted(faults)


def test_record_passes_the_status_on(tool, tmp_path):
    path = tmp_path / "status.trace"
    answer = tool("record", "-o", path, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert answer.returncode == 7 and answer.stdout == "out\n" and "err" in answer.stderr
    assert "# exit status 7" in path.read_text()
    assert tool("record", "-o", path, "--", "sh", "-c", "kill -KILL $$").returncode == 128 + 9
    missing = tool("record", "-o", path, "--", "no-such-command")
    assert missing.returncode == 127 and "not found" in missing.stderr
    assert tool("record", "-o", path, "--", "/etc/passwd").returncode == 126
    late = tool("record", "-o", path, "--seconds", "1", "--", "sh", "-c", "sleep 1.3; exit 5")
    assert late.returncode == 5 and "# end: the time is over" in path.read_text()
    # Beside a trace on standard output, a command's own output would be garbage.
    mixed = tool("record", "--", "echo", "not a trace")
    assert mixed.returncode == 0 and "not a trace" in mixed.stderr and "not a trace" not in mixed.stdout
    piped = subprocess.run([tool.executable, "replay", "-"], input=mixed.stdout, capture_output=True, text=True)
    assert piped.returncode == 0


def test_record_lets_signals_through(tool, tmp_path):
    path = tmp_path / "signals.trace"
    script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    running = subprocess.Popen([tool.executable, "record", "-o", path, "--", "sh", "-c", script],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert running.stdout.readline() == b"ready\n"
    running.terminate()
    assert running.wait(timeout=10) == 9
    path = tmp_path / "stopped.trace"
    running = subprocess.Popen([tool.executable, "record", "-o", path], stderr=subprocess.PIPE)
    while not path.exists() or "\n@ " not in path.read_text():
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=10) == 0 and path.read_text().splitlines()[-1] == "# end: stopped"


def test_a_killed_recorder_leaves_a_trace(tool, tmp_path):
    path = tmp_path / "killed.trace"
    running = subprocess.Popen([tool.executable, "record", "-o", path, "--interval", "1"], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    running.kill()
    running.wait()
    answer = tool("replay", path, "--json")
    assert answer.stderr == "" and summary_of(answer)["samples"] > 20


def test_record_says_why_it_cannot_write(tool, tmp_path):
    for path, word in ((tmp_path / "no" / "where", "No such file"), (tmp_path, "directory")):
        answer = tool("record", "-o", path, "--seconds", "1")
        assert answer.returncode == 1 and word in answer.stderr and "cure:" in answer.stderr
        assert tool("record", "-o", path, "--", "true").returncode == 125
    if os.path.exists("/dev/full"):
        answer = tool("record", "-o", "/dev/full", "--seconds", "1")
        assert answer.returncode == 1 and "No space left" in answer.stderr and "cure:" in answer.stderr
        assert tool("record", "-o", "/dev/full", "--", "true").returncode == 125


def test_what_found_room_can_be_replayed(tool, tmp_path):
    """A limit on the file's size stands for a full disk."""
    path = tmp_path / "limited.trace"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    answer = subprocess.run([tool.executable, "record", "-o", path, "--interval", "5", "--seconds", "20"],
                            capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert answer.returncode == 1 and "File too large" in answer.stderr and "ulimit" in answer.stderr
    assert 15000 < path.stat().st_size <= 20000
    replayed = tool("replay", path, "--json")
    assert replayed.stderr == "" and summary_of(replayed)["samples"] > 10


# ---- watch --------------------------------------------------------------------------------------------


def test_watch_in_lines(tool):
    answer = tool("watch", "--interval", "30", "--count", "25")
    lines = answer.stdout.splitlines()
    assert answer.returncode == 0 and "\033" not in answer.stdout
    assert len(lines) == 27 and [i for i, line in enumerate(lines) if line.startswith("time")] == [0, 21]
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} +\d\.\d\d ", lines[1])
    assert len({len(line) for line in lines}) == 1, "columns that do not line up"


def test_watch_in_json(tool):
    lines = lines_of(tool("watch", os.getpid(), "--json", "--interval", "150", "--count", "3"))
    assert len(lines) == 3
    for line in lines:
        assert line["pid"] == os.getpid() and 0 <= line["index"] <= 1 and line["low"] < line["high"]
        assert line["index"] == max(line["index_" + part] for part in ("headroom", "forecast", "stall", "thrash"))
        assert 0 <= line["reading"]["headroom_bytes"] <= line["reading"]["limit_bytes"]
        assert line["raw"]["memory.total_bytes"] >= line["raw"]["memory.available_bytes"] > 0
        assert all(row["name"] and row["detail"] for row in line["missing"])
    assert lines[0]["at_us"] < lines[1]["at_us"] < lines[2]["at_us"]
    assert lines[0]["reading"]["fill_bytes_per_s"] is not None


def test_watch_shows_stall_since_the_last_line(tool, tmp_path):
    root, line = tmp_path / "root", "{} avg10=1.50 avg60=0.00 avg300=0.00 total={}\n"
    (root / "proc" / "pressure").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text("MemTotal: 1000000 kB\nMemFree: 900000 kB\nMemAvailable: 900000 kB\n")
    pressure = root / "proc" / "pressure" / "memory"
    pressure.write_text(line.format("some", 1000) + line.format("full", 0))
    running = subprocess.Popen([tool.executable, "watch", "--interval", "200", "--count", "4"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env={**os.environ, "PSI_CACHE_ROOT": str(root)})
    column = running.stdout.readline().split().index("system")
    shares = []
    for i in range(4):
        words = re.sub(r" (B|[KMG]iB)\b", r"\1", running.stdout.readline()).split()
        shares.append(words[column].replace("%", ""))
        if i == 0:  # 20 ms of stall: 10 % of the time to the next line
            pressure.write_text(line.format("some", 21000) + line.format("full", 0))
    assert running.wait(timeout=10) == 0
    assert float(shares[0]) == 0 and 5 < float(shares[1]) <= 10.5 and float(shares[2]) == float(shares[3]) == 0, shares
    assert "vmstat is missing" in running.stderr.read()


def test_watch_takes_the_limits_of_the_environment(tool):
    seen = lines_of(tool("watch", "--json", "--count", "1", PSI_CACHE_HIGH="0.5", PSI_CACHE_LOW="0.1"))[0]
    assert (seen["high"], seen["low"]) == (0.5, 0.1)
    assert tool("watch", "--json", "--count", "1", PSI_CACHE_HIGH="0.2", PSI_CACHE_LOW="0.4").returncode == 2


def test_watch_ends_quietly(tool):
    """With its reader, with Ctrl-C, and with the process that it watches."""
    running = subprocess.Popen([tool.executable, "watch", "--json", "--interval", "20"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    running.stdout.readline()
    running.stdout.close()
    assert running.wait(timeout=10) == 0 and running.stderr.read() == b""
    running = subprocess.Popen([tool.executable, "watch", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=10) == 0 and running.stderr.read() == b""
    watched = subprocess.Popen(["sleep", "0.6"])
    answer = subprocess.Popen([tool.executable, "watch", str(watched.pid), "--interval", "50"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    out, err = answer.communicate(timeout=10)
    assert answer.returncode == 0 and out.count(b"\n") > 3 and b"has ended" in err
    watched.wait()
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            answer = subprocess.run([tool.executable, "watch", "--count", "3"], stdout=full, stderr=subprocess.PIPE)
        assert answer.returncode == 1 and b"No space left" in answer.stderr


def test_watch_on_a_terminal(tool):
    """A screen: drawn over the one before, never wider or longer than the terminal, and the terminal left as it was."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 18, 60, 0, 0))
    running = subprocess.Popen([tool.executable, "watch", "--count", "2", "--interval", "100"], stdout=slave, stderr=slave,
                               env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    seen = b""
    while select.select([master], [], [], 10)[0]:
        try:
            seen += os.read(master, 65536)
        except OSError:
            break
    assert running.wait(timeout=10) == 0
    screens = seen.split(b"\033[H")[1:]
    assert len(screens) == 2 and seen.count(b"\033[?7l") == 2 == seen.count(b"\033[?7h")
    for screen in screens:
        assert b"psi-cache watch" in screen and b"forecast" in screen and b"headroom" in screen
        assert screen.count(b"\n") <= 17
