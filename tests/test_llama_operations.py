"""Everything that is done with a context of llama.cpp, while blocks of its cache are stored, dropped or back again: against
the same engine without psi_cache, bit for bit. On tiny models with random weights, and on the real one.

    PSI_TEST_OPERATIONS=5000      operations of each random test (default 1000)
    PSI_TEST_MATRIX=full          every combination, and not only every pair
    PSI_TEST_SEED=1               of the random tests; the one that was used is printed
"""

import itertools
import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: run make test")
import operations  # noqa: E402
import tiny_models  # noqa: E402
from operations import F16, Q4_0, Q8_0  # noqa: E402

DRIVER = pathlib.Path(__file__).with_name("contexts_driver.py")
OPERATIONS = int(os.environ.get("PSI_TEST_OPERATIONS", "1000"))
MORE_ROWS = 60
SEED = int(os.environ.get("PSI_TEST_SEED", random.randrange(1 << 31)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models.write_all(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def with_kv(models):
    return {name: models[name] for name in ("llama", "gemma2")}


@pytest.fixture(scope="module")
def pairs():
    made = {}

    def pair(**environment):
        key = tuple(sorted(environment.items()))
        if key not in made:
            made[key] = operations.Pair(**environment)
        return made[key]

    yield pair
    for each in made.values():
        each.close()


# ---- Random sessions ----------------------------------------------------------------------------------


def random_sessions(pair, models, count, most=40):
    print(f"PSI_TEST_SEED={SEED}")
    operations.random_sessions(pair, models, SEED, count, most)
    print(f"{pair.operations} operations, {pair.differences} differences, {pair.hidden_cells} columns hidden on the way")
    assert pair.operations >= count


@pytest.mark.parametrize("store", ["file", "none"])
def test_random_operations(pairs, with_kv, store):
    random_sessions(pairs(PSI_CACHE_STORE=store), with_kv, OPERATIONS)


def test_random_operations_with_blocks_that_share_pages(pairs, with_kv):
    random_sessions(pairs(PSI_CACHE_BLOCK_CELLS="9"), with_kv, OPERATIONS)


def test_random_operations_on_the_real_model(pairs, model):
    random_sessions(pairs(PSI_CACHE_STORE="file", PSI_CACHE_VERBOSE="1"), {"gemma": model}, OPERATIONS // 10, most=8)


# ---- The matrix ---------------------------------------------------------------------------------------

OPERATION = {
    "decode": [["decode", 0, [[0, 40, 3], [1, 2, 3]], True]],
    "remove": [["remove", 0, 0, 3, 9]],
    "remove_tail": [["remove_tail", 0, 0, 9]],
    "remove_all": [["remove_all", 0, 1]],
    "copy": [["copy", 0, 0, 2, 0, 9]],
    "keep": [["keep", 0, 0]],
    "shift": [["shift", 0, 0, 2, 6]],
    "shift of what sleeps": [["shift", 0, 1, 2, 6]],
    "add": [["add", 0, 0, 8, 20]],
    "divide": [["divide", 0, 0, 2]],
    "clear": [["clear", 0, True], ["decode", 0, [[0, 40, 4]], False]],
    "clear but for the bytes": [["clear", 0, False], ["decode", 0, [[0, 40, 4]], False]],
    "state": [["save", 0, 0, False], ["remove_all", 0, 0], ["load", 0, 0]],
    "state in a file": [["save", 0, 0, True], ["clear", 0, True], ["load", 0, 0]],
    "state of another context": [["save", 0, 0, False], ["new", 1, 0], ["load", 1, 0], ["decode", 1, [[0, 3, 1]], True]],
    "state of a sequence": [["save_sequence", 0, 0, 0, 0], ["remove_all", 0, 1], ["load_sequence", 0, 2, 0]],
    "state of a sequence in a file": [["save_sequence", 0, 1, 0, 1], ["load_sequence", 0, 2, 0]],
    "state of a sequence in a second buffer": [
        ["save_sequence", 0, 0, 0, 2],
        ["decode", 0, [[0, 5, 1]], True],
        ["load_sequence", 0, 0, 0],
    ],
    "a second context": [["new", 1, 1], ["decode", 1, [[0, 60, 1]], True], ["free", 1]],
    "the same context again": [["free", 0], ["new", 0, 0], ["decode", 0, [[0, 60, 1]], True]],
}
FACTORS = {
    "operation": list(OPERATION),
    "model": ["llama", "gemma2"],
    "flash": [1, 0, -1],
    "types": [(F16, F16), (Q8_0, Q8_0), (Q4_0, F16)],
    "unified": [True, False],
    "swa_full": [True, False],
    "state": ["stored", "dropped", "restored"],
    "watched": [True, False],
}


def is_possible(row):
    quantised_v_needs_flash = row["types"][1] == F16 or row["flash"] != 0
    only_windows_have_rings = row["model"] == "gemma2" or row["swa_full"]
    # Hidden cells change what is computed: only where the masks are watched can that be compared.
    return quantised_v_needs_flash and only_windows_have_rings and (row["watched"] or row["state"] != "dropped")


def pairs_of(row):
    """And each operation on each state of the blocks with one cache for all and with one a sequence."""
    return {*itertools.combinations(row.items(), 2), (row["operation"], row["state"], row["unified"])}


def rows():
    """Every pair of two factors' values in some row, and some rows more; everything where the environment asks for them."""
    everything = [dict(zip(FACTORS, values)) for values in itertools.product(*FACTORS.values())]
    everything = [row for row in everything if is_possible(row)]
    if os.environ.get("PSI_TEST_MATRIX") == "full":
        return everything
    random.Random(1).shuffle(everything)
    missing, chosen = set().union(*map(pairs_of, everything)), []
    while missing:
        best = max(everything[:400], key=lambda row: len(missing & pairs_of(row)))
        if not missing & pairs_of(best):
            best = max(everything, key=lambda row: len(missing & pairs_of(row)))
        everything.remove(best)
        missing -= pairs_of(best)
        chosen.append(best)
    return chosen + everything[:MORE_ROWS]


def name_of(row):
    types = {F16: "f16", Q8_0: "q8_0", Q4_0: "q4_0"}
    flash = {1: "flash", 0: "no-flash", -1: "auto"}[row["flash"]]
    kind = [row["model"], flash, "-".join(types[t] for t in row["types"]), "unified" if row["unified"] else "streams"]
    kind += [] if row["swa_full"] else ["ring"]
    return "/".join([row["operation"].replace(" ", "-"), row["state"], *kind, *(["watched"] if row["watched"] else [])])


@pytest.mark.parametrize("row", rows(), ids=name_of)
def test_each_operation_on_each_kind_of_cache(pairs, models, row):
    config = {
        "model": models[row["model"]],
        "cells": 512,
        "sequences": 4,
        "unified": row["unified"],
        "flash": row["flash"],
        "swa_full": row["swa_full"],
        "type_k": row["types"][0],
        "type_v": row["types"][1],
    }
    other = {**config, "model": models["gemma2" if row["model"] == "llama" else "llama"]}
    ops = [["new", 0, 0]]
    ops += [["decode", 0, [[s, 70, s + i]], False] for i in range(2) for s in (1, 0)]
    for share, sequence in ((900, 0), (500, 1)):  # unwatched, the trim is a step itself
        ops += [["trim", 0, share, sequence]] + ([["again", 0, sequence, 1]] if row["watched"] else [])
    ops += [["restore", 0], ["again", 0, 0, 2]] if row["state"] == "restored" else []
    before = len(ops) - 1
    ops += OPERATION[row["operation"]]
    ops += [["again", 0, 0, 3], ["decode", 0, [[s, 2, 4] for s in range(4)], True]]
    ops += [["restore", 0], ["decode", 0, [[s, 3, 5] for s in range(4)], True], ["save", 0, 1, False]]
    pair = pairs(PSI_CACHE_STORE="none" if row["state"] == "dropped" else "file")
    ours = pair.compare({"watched": row["watched"], "configs": [config, other], "ops": ops})
    out = {"stored": (True, False), "dropped": (False, True), "restored": (False, False)}[row["state"]]
    assert tuple(size > 0 for size in ours[before]["out"]) == out


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("pooling", [0, 1, 2, 3], ids=["none", "mean", "cls", "last"])
def test_embeddings_of_a_model_with_a_cache(pairs, models, pooling, watched):
    config = {"model": models["llama"], "cells": 512, "sequences": 4, "embeddings": True, "pooling": pooling}
    ops = [["new", 0, 0]]
    ops += [["decode", 0, [[s, 30, s + i], [s + 1, 20, 1]], True] for i in range(4) for s in (0, 2)]
    ops += [["trim", 0, 600, 0], ["again", 0, 0, 1], ["decode", 0, [[s, 4, 4] for s in range(4)], True]]
    ops += [["shift", 0, 0, 2, 6], ["restore", 0], ["decode", 0, [[s, 3, 5] for s in range(4)], True]]
    pairs(PSI_CACHE_STORE="file").compare({"watched": watched, "configs": [config], "ops": ops})


# ---- Processes, threads, other kinds of memory ----------------------------------------------------------


def run(scenario, models, ours, environment=None, **more):
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("PSI_CACHE_") or k == "PSI_CACHE_LIB_DIR"}
    surroundings.update({"PSI_CACHE_CONTROLLER": "off", **(environment or {})})
    told = json.dumps({"ours": ours, "scenario": scenario, "models": models, **more})
    done = subprocess.run(
        [sys.executable, str(DRIVER), told], capture_output=True, text=True, timeout=600, env=surroundings
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def lines_of(stderr):
    return [line for line in stderr.splitlines() if line.startswith("psi-cache: ")]


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_recurrent_and_hybrid_models_run_as_ever_with_one_line(models, kind):
    stock, _ = run("other_memory", models, False, kind=kind)
    ours, stderr = run("other_memory", models, True, kind=kind)
    assert ours["out"] == stock["out"]
    assert len(lines_of(stderr)) == 1 and "left to the engine" in stderr
    assert (ours["stored_bytes"] > 0) == (kind == "lfm2")  # its layers of attention have a cache like any other


def test_more_contexts_than_thirty_two_are_listened_to(models):
    got, _ = run("many_contexts", models, True)
    assert got["recalls"] > 0 and got["pools"] == 0


def test_a_forked_child_decodes_what_its_parent_stored(models):
    stock, _ = run("fork", models, False)
    ours, stderr = run("fork", models, True)
    assert ours["stored_bytes"] > 0 and ours["status"] == 0
    assert (ours["child"], ours["parent"]) == (stock["child"], stock["parent"])
    assert lines_of(stderr) == []


def test_a_context_for_each_of_several_threads(models):
    stock, _ = run("threads", models, False)
    ours, stderr = run("threads", models, True)
    assert ours["stored_bytes"] > 0
    assert ours["out"] == stock["out"]
    assert lines_of(stderr) == []


def test_a_state_with_dropped_blocks_says_so_and_another_s_does_not(models):
    got, stderr = run("dropped_state", models, True, environment={"PSI_CACHE_STORE": "none", "PSI_CACHE_POLICY": "fifo",
                                                                     "PSI_CACHE_RECOMPUTE": "off"})
    assert got["dropped_bytes"] > 0 and got["sizes"] == [True, True]
    before, after = stderr.split("saved 1")
    assert lines_of(before) == []
    assert len(lines_of(after)) == 1 and "a state is saved with" in after
