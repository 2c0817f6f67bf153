"""llama-server, stock and under psi-cache run: random requests to random slots, and for ours random trims and restores by
hand between them; the answers must be the same, token by token, log-probability by log-probability.

Requests are sent one after the other: with several at once, batches differ from run to run, and with them the last digits,
in stock too. After each trim and restore a step of a slot of its own makes the safe point, so that what goes is asleep,
and is whole again when its slot is asked: there every difference is a defect. The same seed makes the same requests.

    make bench-server-differential ARGS="--operations 10000 --model tiny"     # many of them
    make bench-server-differential                                             # 300 on the real model
"""
import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "tests")]
import llama_server  # noqa: E402
import rig  # noqa: E402
import tiny_models  # noqa: E402
from rig import say  # noqa: E402

SLOTS, SPARE, FILES = 4, 3, 3
CONFIGURATIONS = {
    "streams": ["-no-kvu", "--cache-ram", "0", "--slots"],
    "unified": ["-kvu", "--cache-ram", "0"],
    "windows": ["-no-kvu", "--cache-ram", "0"],  # the cache of sliding-window layers is as small as the window
    "no-flash": ["-no-kvu", "--cache-ram", "0", "-fa", "off"],
    "quantised": ["-no-kvu", "--cache-ram", "0", "-ctk", "q8_0", "-ctv", "q8_0"],
    "cache-ram": ["-no-kvu", "--cache-ram", "64"],
    "cache-reuse": ["-kvu", "--cache-ram", "0", "--cache-reuse", "32"],
}
WEIGHTS = {"complete": 50, "again": 15, "longer": 15, "uncached": 5, "save": 4, "restore": 6, "erase": 3, "leave": 2,
           "trim": 20, "untrim": 5}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=300, help="in all (default 300)")
    parser.add_argument("--configurations", nargs="+", default=list(CONFIGURATIONS), choices=CONFIGURATIONS, metavar="NAME")
    parser.add_argument("--model", choices=("gemma", "tiny"), default="gemma", help="tiny: two layers of random weights, one "
                        "token a character; a hundredth of the time")
    parser.add_argument("--context", type=int, help="tokens of all slots together (default 4096; tiny: 16384)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="1 on a busy machine: two wait for each other")
    parser.add_argument("--out", help="result file (default build/bench/server_differential.json)")
    options = parser.parse_args()
    options.context = options.context or (16384 if options.model == "tiny" else 4096)
    return options


# ---- operations ----------------------------------------------------------------------------------------

def make_operations(count, seed):
    """[(kind, slot, ...)]: a function of the seed alone."""
    draw = random.Random("operations-%s" % seed)
    prompts = [llama_server.hay("%s-%d" % (seed, i), draw.randrange(60, 1600)) for i in range(12)]
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    made = []
    for _ in range(count):
        kind = draw.choices(kinds, weights)[0]
        slot, number = draw.randrange(SPARE), draw.randrange(len(prompts))
        cut = draw.randrange(20, len(prompts[number]) + 1) if draw.random() < 0.3 else len(prompts[number])
        made.append({"kind": kind, "slot": slot, "prompt": prompts[number][:cut], "tokens": draw.randrange(1, 9),
                     "file": draw.randrange(FILES), "share": draw.choice(("0.1", "0.3", "0.5", "0.9", "1")),
                     "pieces": draw.randrange(1, 4)})
    return made


class Side:
    """One server, what its slots were asked last, and what it answered."""

    def __init__(self, ours, options, extra, folder):
        self.ours, self.last, self.saved = ours, [""] * SLOTS, set()
        self.server = llama_server.Server(("-v", "--controller", "off") if ours else None, SLOTS, options.context,
                                          [*extra, "--slot-save-path", folder], threads=options.threads, full=extra is not CONFIGURATIONS["windows"],
                                          model=options.model_path)

    def do(self, operation):
        try:
            return getattr(self, "_" + operation["kind"])(operation, operation["slot"])
        except llama_server.Refused as problem:
            return ["refused", problem.args[0], str(problem.args[1])]

    def _ask(self, slot, prompt, tokens, **more):
        answer = self.server.complete(prompt, slot, tokens, n_probs=3, **more)
        self.last[slot] = prompt + answer["content"]
        return [answer["tokens"], answer["completion_probabilities"], answer["tokens_evaluated"], answer["timings"]["cache_n"]]

    def _complete(self, operation, slot):
        return self._ask(slot, operation["prompt"], operation["tokens"])

    def _again(self, operation, slot):
        return self._ask(slot, self.last[slot] or operation["prompt"], operation["tokens"])

    def _longer(self, operation, slot):
        text = (self.last[slot][-2000:] if len(self.last[slot]) > 2600 else self.last[slot]) + " " + operation["prompt"][:200]
        return self._ask(slot, text, operation["tokens"])

    def _uncached(self, operation, slot):
        return self._ask(slot, operation["prompt"], operation["tokens"], cache_prompt=False)

    def _slot(self, slot, action, **body):
        answer = self.server.request("POST", "/slots/%d?action=%s" % (slot, action), body)
        return {key: value for key, value in answer.items() if key != "timings"}

    def _save(self, operation, slot):
        answer = self._slot(slot, "save", filename="f%d" % operation["file"])
        self.saved.add(operation["file"])
        return answer

    def _restore(self, operation, slot):
        return self._slot(slot, "restore", filename="f%d" % operation["file"]) if operation["file"] in self.saved else None

    def _erase(self, operation, slot):
        self.last[slot] = ""
        return self._slot(slot, "erase")

    def _leave(self, operation, slot):
        """How far the answer was is a matter of time: nothing of it is kept."""
        self.server.begin_and_leave(operation["prompt"], slot, 16, operation["pieces"])
        self.server.wait_idle()
        self._slot(slot, "erase")
        self.last[slot] = ""

    def _by_hand(self, *arguments):
        if self.ours:
            self.server.tool(arguments[0], str(self.server.pid), *arguments[1:])
        self.server.complete("Hello", SPARE, 1, cache_prompt=False)

    def _trim(self, operation, slot):
        self._by_hand("trim", operation["share"])

    def _untrim(self, operation, slot):
        self._by_hand("restore")


# ---- the run -------------------------------------------------------------------------------------------

def run(name, operations, options):
    """Both servers at once, each operation to one and then to the other. Differences, and what ours did."""
    folders = [tempfile.mkdtemp(prefix="psi-differential-") for _ in range(2)]
    sides, differences, counts, stored = [], [], collections.Counter(), 0
    try:
        for ours, folder in zip((False, True), folders):
            sides.append(Side(ours, options, CONFIGURATIONS[name], folder))
        for side in sides:
            side.server.wait_healthy()
        for number, operation in enumerate(operations):
            answers = [side.do(operation) for side in sides]
            counts[operation["kind"]] += 1
            if operation["kind"] == "trim":
                stored += (sides[1].server.status().get("stored_bytes") or 0) > 0
            if answers[0] != answers[1]:
                differences.append({"configuration": name, "number": number, "operation": operation, "stock": answers[0],
                                    "ours": answers[1]})
                say("  DIFFERENT: %s operation %d, %s in slot %d" % (name, number, operation["kind"], operation["slot"]))
                if len(differences) == 5:
                    break
        status = sides[1].server.status()
        lines = [line for line in sides[1].server.said().splitlines() if line.startswith("psi-cache: ")]
    finally:
        for side in sides:
            side.server.stop()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    return differences, counts, stored, status, lines


def main():
    options = arguments()
    rig.leave_on_signals()
    os.makedirs(rig.BUILD, exist_ok=True)
    if options.model == "tiny":
        options.model_path = tiny_models.write_all(pathlib.Path(rig.BUILD, "models"))["with_words"]
    else:
        options.model_path = rig.model_file()
    say(rig.machine_line())
    share = -(-options.operations // len(options.configurations))
    result, different, done = [], 0, 0
    for name in options.configurations:
        begin_s = time.monotonic()
        operations = make_operations(share, "%s-%d" % (name, options.seed))
        differences, counts, stored, status, lines = run(name, operations, options)
        different, done = different + len(differences), done + sum(counts.values())
        say("%-12s %5d operations in %4.0f s: %d different; %d trims by hand left blocks in the store, %s bytes trimmed, "
            "%s restored" % (name, sum(counts.values()), time.monotonic() - begin_s, len(differences), stored,
                             status.get("trimmed_bytes"), status.get("restored_bytes")))
        result.append({"configuration": name, "counts": counts, "differences": differences, "trims_that_stored": stored,
                       "status": status, "lines": lines})
        rig.demo.save(options.out or os.path.join(rig.BUILD, "server_differential.json"),
                      {"operations": done, "different": different, "seed": options.seed, "machine": rig.demo.machine(),
                       "configurations": result})
    say("%d operations on llama-server, stock against ours: %d different" % (done, different))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
