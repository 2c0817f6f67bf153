"""Benches that are run one after the other, each in a short form: what all.py and device.py share.

A part that was done with this library on this machine is not done again; benches that can go on where they stopped do
so. A part that fails, or misses its bar, stops no other.
"""
import dataclasses
import json
import os
import subprocess
import sys
import time

import records
import rig

TOP = os.path.join(rig.HERE, "..")


@dataclasses.dataclass(frozen=True)
class Part:
    """minutes: on the 2-core machine that the README names, for the plan only. result: what the bench writes, below
    build/; limit: it makes a memory group; raw: its lines, one a run, below build/bench/, if it keeps such."""
    name: str
    script: str
    arguments: tuple
    result: str
    minutes: float
    limit: bool = True
    raw: str = ""

    def command(self):
        return " ".join((".venv/bin/python", self.script) + self.arguments)


def may_limit():
    """None, or why no memory group can be made here."""
    try:
        with rig.MemoryGroup(64 * rig.MIB):
            return None
    except rig.NoRights as problem:
        return str(problem)


class Suite:
    """name: of the directory below build/bench/ where results are kept, and of the file that says what is done."""

    def __init__(self, name):
        self.directory = os.path.join(rig.BUILD, name)
        self._done = os.path.join(rig.BUILD, name + ".jsonl")

    def kept(self, part):
        return os.path.join(self.directory, part.name + ".json")

    @staticmethod
    def _key(part):
        where = rig.demo.machine()
        return {"part": part.name, "command": part.command(), "build": rig.library_build(), "cpu": where["cpu"],
                "kernel": where["kernel"]}

    def done(self, part):
        """What is known of it when it was done like this: its status and how long it took; else None."""
        found = [record for record in records.load(self._done) if record["key"] == self._key(part)]
        return found[-1] if found and os.path.exists(self.kept(part)) else None

    def _keep(self, part, begin_s):
        """Its result, with the command, among all. RuntimeError when it wrote none: an older one is not taken for it."""
        path = os.path.join(rig.BUILD, "..", part.result)
        if not os.path.exists(path) or os.path.getmtime(path) < begin_s:
            raise RuntimeError("it wrote no result")
        with open(path) as file:
            value = json.load(file)
        os.makedirs(self.directory, exist_ok=True)
        rig.demo.save(self.kept(part), {**value, "command": part.command()})

    def run(self, part, start=subprocess.Popen):
        """None, or what went wrong. start: as subprocess.Popen, for a group that the whole part runs in."""
        begin_s = time.time()
        child = start([sys.executable, os.path.join(TOP, part.script), *part.arguments], cwd=TOP, stdin=subprocess.DEVNULL)
        try:
            status = child.wait()
        finally:
            if child.poll() is None:  # we were told to stop; so is it, and it removes its groups
                child.terminate()
                child.wait()
        try:
            self._keep(part, begin_s)
        except (RuntimeError, ValueError) as problem:
            return "%s (status %d)" % (problem, status)
        records.append(self._done, {"key": self._key(part), "status": status, "took_s": round(time.time() - begin_s)})
        return "missed its bar (status %d)" % status if status else None
