"""What people do with llama-server, on a cache whose blocks come and go: the same requests to stock and to ours, one
after the other, compared token by token and by the log-probabilities' last digit."""

import contextlib
import pathlib

import pytest
from server_driver import serve, status_when, tool

SPARE = 3  # the slot whose steps are the safe points in which the others' blocks go


def story(name, lines=15):
    return "".join(f"Robot {name} wrote line {i}: joint {i % 6} at {(i * 29 + len(name)) % 180} degrees. " for i in range(lines))


class Pair:
    """One server with the hand on its cache; for stock the hand does nothing."""

    def __init__(self, server, command=None):
        self.server, self.command, self.bits = server, command, []

    def by_hand(self, *arguments):
        if self.command:
            tool(self.command, *arguments)

    def trim(self, share="1", spare=SPARE):
        """Everything of the other slots goes; what the spare slot says meanwhile is not looked at."""
        self.by_hand("trim", str(self.server.process.pid), share)
        self.server.ask(spare, "Hello", 1, cache_prompt=False)

    def note(self, slot, text, tokens=8, **more):
        self.bits.append(self.server.bits(slot, text, tokens, **more))


def slots_in_turn(pair, folder):
    """Each slot sleeps, wakes, and its conversation goes on."""
    for slot in range(3):
        pair.note(slot, story(f"s{slot}"))
    pair.trim()
    for slot in (2, 0, 1):
        pair.note(slot, story(f"s{slot}") + "And then")
    pair.trim("0.5")
    pair.by_hand("restore", str(pair.server.process.pid))
    for slot in (1, 0, 2):
        pair.note(slot, story(f"s{slot}") + "And then it said")


def slot_files(pair, folder):
    """A slot is saved while it is out of memory, erased, and comes back in another slot."""
    pair.note(0, story("saved"))
    pair.trim()
    saved = pair.server.slot_action(0, "save", filename="slot0")
    pair.bits.append((saved["n_saved"], (folder / "slot0").stat().st_size, (folder / "slot0").read_bytes()))
    pair.server.slot_action(0, "erase")
    pair.note(1, story("other"))
    pair.trim()
    restored = pair.server.slot_action(2, "restore", filename="slot0")
    pair.bits.append(restored["n_restored"])
    pair.trim()
    pair.note(2, story("saved") + "So", 16)
    pair.note(1, story("other") + "So")
    pair.note(0, story("new in the erased slot"))


def cache_ram(pair, folder):
    """The server keeps what a slot had in memory of its own, and takes it back: also from a slot that is out."""
    for name in ("first", "second", "third"):
        pair.note(0, story(name, 20))
        pair.trim()
    for name in ("second", "first", "third"):
        pair.note(0, story(name, 20) + "After that", 4)
        pair.trim("0.5")


def cache_reuse(pair, folder):
    """Pieces of an old prompt are moved to their new places: keys turn where they lie."""
    a, b, c = (story(name, 8) for name in ("alpha", "bravo", "charlie"))
    pair.note(0, a + b + c)
    pair.trim()
    pair.note(0, a + c + "Then", 8)
    pair.note(1, b + a)
    pair.trim()
    pair.note(0, c + "Then", 8)
    pair.note(1, b + a + "Then", 8)


def context_shift(pair, folder):
    """A slot that is full forgets its middle and turns the rest in place, while other slots are out of memory."""
    pair.note(1, story("bystander", 7))
    pair.note(0, story("long", 9), 2)
    pair.trim()
    pair.note(0, story("long", 9), 120, ignore_eos=True)
    pair.trim()
    pair.note(1, story("bystander", 7) + "And", 8)
    pair.note(0, "Short.", 8)


def speculation(pair, folder):
    """Two contexts, one drafts for the other; both lose blocks and get them again."""
    pair.note(0, story("drafted"), 24)
    pair.note(1, story("also drafted"), 24)
    pair.trim()
    pair.note(0, story("drafted") + "And then", 24)
    pair.trim()
    pair.note(1, story("also drafted") + "And then", 24)


def embeddings(pair, folder):
    """A context that only pools: nothing of it is wanted later."""
    for name in ("one", "two", "one"):
        pair.bits.append(pair.server.request("POST", "/embeddings", {"content": story(name, 10)}))
        pair.by_hand("trim", str(pair.server.process.pid), "1")


def several_answers(pair, folder):
    """One prompt, three answers: the prompt's cells are copied to other slots, out of memory or not."""
    pair.note(0, story("base"))
    pair.trim()
    for _ in range(2):
        body = {"prompt": story("base") + "Next", "n": 3, "n_predict": 6, "temperature": 0, "cache_prompt": True, "id_slot": 0}
        answers = pair.server.request("POST", "/completion", body)
        pair.bits.append([(a["content"], a["tokens_evaluated"]) for a in answers] if isinstance(answers, list) else answers["content"])
        pair.trim()


def sleepers_first(pair, folder):
    """As much as the others hold is asked for while one works: it loses nothing, and its answer is what it was."""
    for slot in range(4):
        pair.note(slot, story(f"s{slot}"))
    for slot in (0, 2):
        for other in range(4):
            pair.note(other, story(f"s{other}") + "And", 1)
        pair.by_hand("trim", str(pair.server.process.pid), "0.6")
        pair.note(slot, story(f"s{slot}") + "And then", 12)
        if pair.command:
            status = status_when(pair.command, pair.server.process.pid, lambda status: status["stored_bytes"] > 0)
            assert status["stored_bytes"] >= 0.5 * (status["stored_bytes"] + status["resident_bytes"]), status
    for slot in (3, 1):
        pair.note(slot, story(f"s{slot}") + "And then")


PLAIN = ["-c", "8192", "-np", "4", "--swa-full"]
SCENARIOS = {
    "streams": (slots_in_turn, [*PLAIN, "--cache-ram", "0", "-no-kvu"]),
    "unified": (slots_in_turn, [*PLAIN, "--cache-ram", "0", "-kvu"]),
    "windows": (slots_in_turn, ["-c", "8192", "-np", "4", "--cache-ram", "0"]),
    "no-flash": (slots_in_turn, [*PLAIN, "--cache-ram", "0", "-fa", "off"]),
    "quantised": (slots_in_turn, [*PLAIN, "--cache-ram", "0", "-ctk", "q8_0", "-ctv", "q8_0"]),
    "slot-files": (slot_files, [*PLAIN, "--cache-ram", "0"]),
    "slot-files-no-flash": (slot_files, [*PLAIN, "--cache-ram", "0", "-fa", "off"]),
    "cache-ram": (cache_ram, [*PLAIN, "--cache-ram", "256"]),
    "cache-ram-unified": (cache_ram, [*PLAIN, "--cache-ram", "256", "-kvu"]),
    "cache-ram-windows": (cache_ram, ["-c", "8192", "-np", "4", "--cache-ram", "256"]),
    "cache-reuse": (cache_reuse, [*PLAIN, "--cache-ram", "0", "--cache-reuse", "32"]),
    "context-shift": (context_shift, ["-c", "1024", "-np", "4", "--swa-full", "--cache-ram", "0", "--context-shift"]),
    "speculation": (speculation, [*PLAIN, "--cache-ram", "0", "--spec-draft-n-max", "4", "-md", "MODEL"]),
    "embeddings": (embeddings, ["-c", "4096", "-np", "2", "-ub", "1024", "--embeddings", "--pooling", "mean"]),
    "sleepers-first": (sleepers_first, [*PLAIN, "--cache-ram", "0"]),
    "several-answers": (several_answers, [*PLAIN, "--cache-ram", "0"]),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_requests_have_the_same_answers(name, model, engine_folder, psi_cache_command, tmp_path):
    scenario, options = SCENARIOS[name]
    options = [model if option == "MODEL" else option for option in options]
    both = []
    for prefix in ((), (psi_cache_command, "run", "-v", "--controller", "off", "--")):
        folder = tmp_path / ("ours" if prefix else "stock")
        folder.mkdir()
        more = ["--slot-save-path", str(folder)] if "files" in name else []
        with serve(model, engine_folder, folder, prefix, [*options, *more]) as server:
            pair = Pair(server, psi_cache_command if prefix else None)
            scenario(pair, pathlib.Path(folder))
            both.append(pair.bits)
            lines = [line for line in server.said().splitlines() if line.startswith("psi-cache: ")]
    assert any("managing a KV cache" in line for line in lines)
    assert not [line for line in lines if "defect" in line or "never trimmed" in line or "dropped" in line], lines
    assert len(both[0]) == len(both[1]) > 1
    for number, (stock, ours) in enumerate(zip(*both)):
        assert stock == ours, f"answer {number} of {name}"


def settled_bytes(command, pid):
    """Resident bytes, once a second went by without a change: an unpressed process publishes twice a second."""
    seen = []

    def is_settled(status):
        seen.append(status["resident_bytes"])
        return len(seen) > 9 and len(set(seen[-10:])) == 1 and seen[-1] > 0

    return status_when(command, pid, is_settled)["resident_bytes"]


def test_a_prompt_s_copy_takes_what_the_prompt_takes(model, engine_folder, psi_cache_command, tmp_path):
    """llama.cpp copies a stream whole, the cells that were never written too."""
    prefix = [psi_cache_command, "run", "--controller", "off", "--"]
    with serve(model, engine_folder, tmp_path, prefix, [*PLAIN, "--cache-ram", "0"]) as server:
        server.ask(0, story("base"), 1)
        one = settled_bytes(psi_cache_command, server.process.pid)
        server.request("POST", "/completion", {"prompt": story("base"), "n": 3, "n_predict": 4, "id_slot": 0})
        three = settled_bytes(psi_cache_command, server.process.pid)
        assert 2 * one < three <= 3.3 * one, (one, three)
