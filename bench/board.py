"""What a board is, as its own files say it: for a result that others are to understand. Reads, and runs nothing but the
driver's own question program; every look takes `root`, so that a test can give it a made-up board.

Nothing here names a person, a host or a network: no serial number, no address, no kernel command line but the words of it
that matter.
"""
import glob
import os
import platform
import re
import subprocess

WORDS = re.compile(r"(psi|cgroup_enable|cgroup_disable|cgroup_memory|swapaccount|systemd\.unified_cgroup_hierarchy|cma"
                   r"|transparent_hugepage|mem)=\S*$")
SHARED = (("nvidia,tegra", "NVIDIA Tegra"), ("brcm,", "Broadcom VideoCore"), ("rockchip,", "Rockchip"),
          ("qcom,", "Qualcomm"), ("amlogic,", "Amlogic"), ("allwinner,", "Allwinner"), ("ti,", "TI"))


def text(root, path):
    """A file's text, without the zero that ends a device tree's; None where there is none."""
    try:
        with open(os.path.join(root, path), errors="replace") as file:
            return file.read().replace("\0", "\n").strip()
    except OSError:
        return None


def amounts(root):
    """/proc/meminfo in bytes."""
    found = {}
    for line in (text(root, "proc/meminfo") or "").splitlines():
        fields = line.replace(":", " ").split()
        if len(fields) == 3 and fields[2] == "kB":
            found[fields[0]] = int(fields[1]) * 1024
    return found


def psi(root):
    """"on", "off" (built in, but not switched on), "no" (not in this kernel) or "not readable"."""
    try:
        with open(os.path.join(root, "proc/pressure/memory")) as file:
            return "on" if file.read().startswith("some") else "not readable"
    except FileNotFoundError:
        return "no"
    except OSError as error:
        return "off" if error.errno == 95 else "not readable"  # EOPNOTSUPP


def groups(root):
    """Which hierarchy has the memory controller: {"v1": bool, "v2": bool, "memory": "v1" | "v2" | None}."""
    v1 = v2 = memory = None
    for line in (text(root, "proc/mounts") or "").splitlines():
        where, kind, options = (line.split() + [""] * 4)[1:4]
        if kind == "cgroup":
            v1 = True
            memory = memory or ("v1" if "memory" in options.split(",") else None)
        elif kind == "cgroup2":
            v2 = True
            controllers = text(root, where.lstrip("/") + "/cgroup.controllers") or ""
            memory = memory or ("v2" if "memory" in controllers.split() else None)
    return {"v1": bool(v1), "v2": bool(v2), "memory": memory}


def swaps(root):
    """[{"kind": "zram" | "file" | "partition", "bytes"}]"""
    found = []
    for line in (text(root, "proc/swaps") or "").splitlines()[1:]:
        name, kind, kib = line.split()[:3]
        found.append({"kind": "zram" if "zram" in name else kind, "bytes": int(kib) * 1024})
    return found


def disk(root, directory):
    """What kind of disk a directory is on: "mmcblk0 (SD)", "nvme0n1", "sda, turning". None where that is not known."""
    where, name = -1, None
    for line in (text(root, "proc/self/mountinfo") or "").splitlines():
        fields = line.split()
        at, number = fields[4], fields[2]
        if (directory + "/").startswith(at.rstrip("/") + "/") and len(at) > where:
            where, name = len(at), number
    link = os.path.join(root, "sys/dev/block", name or "")
    if not name or not os.path.exists(link):
        return None
    path = os.path.realpath(link)
    if os.path.exists(os.path.join(path, "partition")):
        path = os.path.dirname(path)
    name_ = os.path.basename(path)
    turning = text("/", os.path.join(path, "queue/rotational")) == "1"
    kind = text("/", os.path.join(path, "device/type"))  # of a card: SD or MMC
    return name_ + (" (%s)" % kind if kind in ("SD", "MMC") else ", turning" if turning and name_.startswith(("sd", "hd")) else "")


def graphics(root):
    """Names of what draws or computes beside the processors, and whether it has memory of its own."""
    drivers = sorted({os.path.basename(os.path.realpath(link)) for link in
                      glob.glob(os.path.join(root, "sys/class/drm/card*/device/driver"))})
    compatible = text(root, "proc/device-tree/compatible") or ""
    system_on_chip = next((name for part, name in SHARED if part in compatible), None)
    own = None if root != "/" else nvidia_memory()
    if system_on_chip:
        shared = "shared with the processors"
    elif own:
        shared = "its own"
    else:
        shared = "not known" if drivers else "none seen"
    return {"chip": system_on_chip, "drivers": drivers, "cards": own or [], "memory": shared}


def nvidia_memory():
    """Name and memory of NVIDIA cards, as their driver says; [] without."""
    try:
        answer = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.decode().splitlines() if line.strip()] if answer.returncode == 0 else []


def warmth(root):
    """The highest temperature that the board reports, in degrees; None without."""
    found = [text(root, os.path.relpath(path, root)) for path in
             glob.glob(os.path.join(root, "sys/class/thermal/thermal_zone*/temp"))]
    values = [int(value) / 1000 for value in found if value and value.lstrip("-").isdigit()]
    return max(values, default=None)


def clock(root):
    """How processors choose their frequency, and the highest they may: {"governor", "most_khz"}."""
    base = "sys/devices/system/cpu/cpu0/cpufreq/"
    most = text(root, base + "cpuinfo_max_freq")
    return {"governor": text(root, base + "scaling_governor"), "most_khz": int(most) if most else None}


def system_name(root):
    for line in (text(root, "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip('"')
    return None


def facts(root="/", directory="/var/tmp"):
    memory = amounts(root)
    release = (text(root, "etc/nv_tegra_release") or "").splitlines()
    return {"board": text(root, "proc/device-tree/model"), "system": system_name(root), "l4t": release[0] if release else None,
            "architecture": platform.machine(), "page_bytes": os.sysconf("SC_PAGE_SIZE"),
            "memory_bytes": memory.get("MemTotal"), "available_bytes": memory.get("MemAvailable"),
            "cma_bytes": memory.get("CmaTotal"), "swaps": swaps(root), "psi": psi(root), "cgroup": groups(root),
            "graphics": graphics(root), "disk": disk(root, os.path.realpath(directory)), "clock": clock(root),
            "warmth_c": warmth(root),
            "kernel_words": [word for word in (text(root, "proc/cmdline") or "").split() if WORDS.match(word)]}


def told(facts_):
    """[(what, in words)] for people."""
    def size(value):
        return "-" if value is None else "%.1f GiB" % (value / 2**30)
    group = facts_["cgroup"]
    cure = {"off": "off; add psi=1 to the kernel command line", "no": "not in this kernel"}
    words = facts_["kernel_words"]
    seen = [facts_["graphics"]["chip"], *facts_["graphics"]["drivers"], *facts_["graphics"]["cards"]]
    clock_ = facts_["clock"]
    return [
        ("board", facts_["board"] or "no device tree (a PC or a virtual machine)"),
        ("system", "%s%s" % (facts_["system"] or "-", ", " + facts_["l4t"] if facts_["l4t"] else "")),
        ("memory", "%s, %s available, pages of %d KiB" % (size(facts_["memory_bytes"]), size(facts_["available_bytes"]),
                                                        facts_["page_bytes"] // 1024)),
        ("swap", ", ".join("%s of %s" % (swap["kind"], size(swap["bytes"])) for swap in facts_["swaps"]) or "none"),
        ("PSI", cure.get(facts_["psi"], facts_["psi"])),
        ("cgroup", "memory controller on %s" % group["memory"] if group["memory"] else
         "no memory controller%s" % (" (cgroup_disable=memory on the kernel command line; add cgroup_enable=memory)"
                                     if "cgroup_disable=memory" in words else "")),
        ("graphics", "none seen" if not any(seen) else "%s; memory: %s" % (", ".join(filter(None, seen)),
                                                                           facts_["graphics"]["memory"])),
        ("store's disk", facts_["disk"] or "not known"),
        ("clock", "%s%s" % (clock_["governor"] or "governor not known", ", up to %d MHz" % (
            clock_["most_khz"] // 1000) if clock_["most_khz"] else ""))]
