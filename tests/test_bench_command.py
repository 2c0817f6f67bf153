"""psi-cache bench and report: which benches are found, from a clone and from an installation, and what is said without
them. What a board's file says, and what it must not."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("numpy")
SOURCE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SOURCE / "bench"))
import board  # noqa: E402
import command  # noqa: E402
import device  # noqa: E402

_native = pytest.importorskip("psi_cache._native")


@pytest.fixture
def installed(tmp_path):
    """psi-cache as a Python package has it, far from any clone; calls it in an empty directory."""
    try:
        executable = _native.find("psi-cache")
    except OSError as error:
        pytest.skip(str(error))
    package = tmp_path / "site" / "psi_cache"
    (package / "native").mkdir(parents=True)
    shutil.copy(executable, package / "native")
    here = tmp_path / "here"
    here.mkdir()

    def call(*arguments, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PSI_CACHE_", "PSI_BENCH_"))}
        return subprocess.run([str(package / "native" / "psi-cache"), *arguments], cwd=here, capture_output=True, text=True,
                              timeout=60, env={**clean, "PSI_CACHE_PYTHON": sys.executable, **environment})
    call.here, call.benches = here, package / "benches"
    return call


def ship(to):
    for part in command.PARTS:
        shutil.copytree(SOURCE / part, to / part, ignore=shutil.ignore_patterns("results", "__pycache__", "*vllm*",
                                                                               "*differential.py"))


def test_without_benches_it_says_how_to_get_them(installed):
    for subcommand in ("bench", "report"):
        answer = installed(subcommand, "--list")
        assert answer.returncode == 1 and "pip install llm-psi-cache" in answer.stderr


def test_without_python_it_says_so(installed):
    ship(installed.benches)
    answer = installed("bench", "--list", PSI_CACHE_PYTHON="/nowhere/python3")
    assert answer.returncode == 1 and "PSI_CACHE_PYTHON" in answer.stderr


def test_installed_benches_are_listed_copied_and_run(installed):
    ship(installed.benches)
    names = [line.split()[0] for line in installed("bench", "--list").stdout.splitlines()[2:]]
    assert {"all", "device", "oom-table", "scale"} <= set(names)
    assert not {"rig", "engine", "command", "differential", "vllm-reaction"} & set(names)
    assert os.listdir(installed.here) == []  # a list copies nothing
    answer = installed("bench", "oom_table", "--help")
    assert answer.returncode == 0 and "--quick" in answer.stdout
    copied = installed.here / "psi-cache-bench"
    assert (copied / "bench" / "oom_table.py").exists() and (copied / "demo" / "demo.py").exists()
    (installed.benches / "bench" / "oom_table.py").write_text('"""New."""\nprint("new")\nif "__main__":\n    pass\n')
    assert installed("bench", "oom-table").stdout == "new\n"  # a newer version takes the copy's place


def test_a_directory_of_someone_else_is_left_alone(installed):
    ship(installed.benches)
    (installed.here / "psi-cache-bench").mkdir()
    (installed.here / "psi-cache-bench" / "mine").write_text("")
    answer = installed("bench", "scale", "--help")
    assert answer.returncode == 1 and "not of our making" in answer.stderr
    assert os.listdir(installed.here / "psi-cache-bench") == ["mine"]
    elsewhere = installed.here / "other"
    assert installed("bench", "scale", "--help", PSI_BENCH_DIR=str(elsewhere)).returncode == 0
    assert (elsewhere / "bench" / "scale.py").exists()


def test_wrong_use(installed):
    ship(installed.benches)
    assert installed("bench").returncode == 2
    answer = installed("bench", "rig")
    assert answer.returncode == 2 and "--list" in answer.stderr


def test_in_a_clone_its_own_benches_are_run():
    answer = subprocess.run([sys.executable, SOURCE / "bench" / "command.py", "bench", "--list"], capture_output=True, text=True)
    names = [line.split()[0] for line in answer.stdout.splitlines()[2:]]
    assert "differential" in names and command.is_clone()
    every = {path.stem.replace("_", "-") for path in (SOURCE / "bench").glob("*.py") if "__main__" in path.read_text()}
    assert every - set(names) <= {name.replace("_", "-") for name in command.NO_BENCH} | {
        name for name in every if name.startswith("vllm-")}
    assert all(len(line) < 150 for line in answer.stdout.splitlines())


def test_what_is_installed_is_what_command_copies():
    benches = pathlib.Path(_native.find("psi-cache")).parent.parent / "benches"
    if not benches.exists():
        pytest.skip("psi_cache is not installed as a package here")
    names = set(command.shipped(str(benches)))
    assert {"bench/command.py", "bench/spike.c", "bench/machine/machine.py", "demo/memory_group.py"} <= names
    assert not any("results" in name or "vllm" in name for name in names)


# ---- the board ----------------------------------------------------------------------------------------

def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_raspberry_pi(tmp_path):
    """Made up after what its users report, not read on one."""
    write(tmp_path, {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0", "proc/device-tree/compatible": "raspberrypi,5\0brcm,bcm2712\0",
        "proc/meminfo": "MemTotal:        8255104 kB\nMemAvailable:    7000000 kB\nCmaTotal: 65536 kB\n",
        "proc/cmdline": "reboot=w coherent_pool=1M cgroup_disable=memory root=PARTUUID=1234-02 smsc95xx.macaddr=D8:3A:DD:00:00:01\n",
        "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n",
        "proc/swaps": "Filename Type Size Used Priority\n/var/swap file 102384 0 -2\n/dev/zram0 partition 2048 0 100\n",
        "etc/os-release": 'NAME="x"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'})
    facts = board.facts(str(tmp_path))
    assert facts["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert (facts["psi"], facts["cgroup"]["memory"], facts["graphics"]["memory"]) == ("no", None, "shared with the processors")
    assert facts["swaps"] == [{"kind": "file", "bytes": 102384 * 1024}, {"kind": "zram", "bytes": 2048 * 1024}]
    assert facts["kernel_words"] == ["cgroup_disable=memory"]  # and no address, no disk's number
    told = dict(board.told(facts))
    assert "cgroup_enable=memory" in told["cgroup"] and "7.9 GiB" in told["memory"]


def test_a_jetson(tmp_path):
    write(tmp_path, {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0", "proc/device-tree/compatible": "nvidia,tegra234\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0\nmore\n", "proc/pressure/memory": "some avg10=0.00\nfull avg10=0\n",
        "proc/mounts": "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"})
    facts = board.facts(str(tmp_path))
    assert facts["l4t"] == "# R36 (release), REVISION: 4.0"
    assert (facts["psi"], facts["cgroup"]["memory"], facts["graphics"]["chip"]) == ("on", "v1", "NVIDIA Tegra")
    assert "shared" in dict(board.told(facts))["graphics"]


def test_a_machine_that_says_nothing(tmp_path):
    facts = board.facts(str(tmp_path))
    assert facts["board"] is None and facts["memory_bytes"] is None and facts["swaps"] == []
    assert all(words for _, words in board.told(facts))


def test_this_machine():
    facts = board.facts()
    assert facts["memory_bytes"] > facts["available_bytes"] > 0
    assert all(words for _, words in board.told(facts))


def test_paths_and_names_are_taken_out_of_everything():
    value = {"said": "cannot open /home/jane/models/x.gguf: no such file", "host": ["robot-7", "robot-70", "a robot-7."],
             "/home/jane/key": 1, "kept": "/proc/pressure/memory /var/tmp", "group": "/sys/fs/cgroup/a.slice/jane.scope/memory.max",
             "command": "/opt/clone/bench/scale.py --mib 64",
             "number": 3, "none": None}
    clean = device.scrubbed(value, [("/opt/clone", "<benches>")], ["robot-7"])
    assert clean == {"said": "cannot open <path>: no such file", "host": ["<name>", "robot-70", "a <name>."], "<path>": 1,
                     "kept": "/proc/pressure/memory /var/tmp", "group": "/sys/fs/cgroup/<group>/memory.max",
                     "command": "<benches>/bench/scale.py --mib 64", "number": 3,
                     "none": None}


def test_what_there_is_no_room_for_is_left_out():
    class Options:
        without_engine = False

    facts, disk = {"available_bytes": 64 << 30}, 64 << 30
    scale = device.PARTS[0]
    assert device.lacking(scale, Options, facts, disk, None) is None
    assert device.lacking(scale, Options, facts, disk, "no rights") is None  # it wants no group
    assert "memory" in device.lacking(scale, Options, {"available_bytes": 1 << 28}, disk, None)
    assert "disk" in device.lacking(scale, Options, facts, 1 << 28, None)
    Options.without_engine = True
    assert [part.name for part in device.PARTS if not device.lacking(part, Options, facts, disk, None)] == ["scale"]


def test_a_boards_file_is_whole_private_and_shown(tmp_path, monkeypatch):
    """With one part, a bench of one line, that says where it is."""
    top = tmp_path / "robot-home"
    (top / "build" / "bench").mkdir(parents=True)
    (top / "part.py").write_text("import json, os\njson.dump({'says': os.path.abspath('.'), 'machine': None}, open('build/x.json', 'w'))\n"
                                 "open('build/bench/x.jsonl', 'w').write(json.dumps({'setting': 1, 'build': 'stock'}) + '\\n')\n")
    monkeypatch.setattr(device.rig, "BUILD", str(top / "build" / "bench"))
    monkeypatch.setattr(device.suite, "TOP", str(top))
    monkeypatch.setattr(device, "PARTS", (device.Part("scale", "part.py", (), "x.json", 1, limit=False, raw="x.jsonl"),))
    monkeypatch.setattr(device.suite, "may_limit", lambda: "no limit here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["device.py", "--output", "board.json"])
    assert device.main() == 0
    text = (tmp_path / "board.json").read_text()
    value = json.loads(text)
    assert value["parts"][0]["raw"] == [{"setting": 1, "build": "stock"}]
    assert value["parts"][0]["result"]["says"] == "<benches>"
    assert value["board"]["memory_bytes"] and value["machine"]["cpus"]
    assert str(tmp_path) not in text and str(SOURCE) not in text and sys.prefix not in text
