"""The arithmetic of the context bench: boards, straight lines, and which context counts as survived."""

import pathlib
import struct
import sys

import pytest

pytest.importorskip("numpy")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "bench"))
import boards  # noqa: E402
import context  # noqa: E402
import random_model  # noqa: E402
import report  # noqa: E402
import report_sections  # noqa: E402

GIB, MIB = boards.GIB, boards.MIB
NANO = boards.BOARDS[0]


def test_shapes_are_those_of_the_models_that_are_named():
    weights = {board.name: board.weights_bytes(board.layers) / GIB for board in boards.BOARDS}
    # 4.5 bits a weight: 6.74, 13.02 and 3.21 + 0.39 (the output of its own) thousand million weights.
    assert weights["orin-nano-8gb"] == pytest.approx(6.738e9 * 4.5 / 8 / GIB, rel=0.01)
    assert weights["orin-nx-16gb"] == pytest.approx(13.016e9 * 4.5 / 8 / GIB, rel=0.01)
    assert weights["pi-5-8gb"] == pytest.approx(3.607e9 * 4.5 / 8 / GIB, rel=0.01)
    assert NANO.token_bytes * NANO.layers == 512 * 1024
    assert all(board.ours_tokens == 4 * board.stock_tokens for board in boards.BOARDS)


def test_the_whole_is_on_the_line_through_what_was_measured():
    needs = {layers: 400 * MIB + 200 * MIB * layers for layers in (2, 3, 4)}
    assert boards.line(NANO, needs) == pytest.approx((400 * MIB, 200 * MIB, 0))
    assert boards.line(NANO, {**needs, 3: 1250 * MIB, 1: 0})[2] == pytest.approx(0.2)
    whole = boards.whole(NANO, {layers: 400 * MIB + 150 * MIB * layers for layers in (2, 3, 4)})
    assert whole["stock_bytes"] == 400 * MIB + 150 * MIB * 32
    assert whole["stock_bytes"] + whole["spike_bytes"] == pytest.approx(whole["memory_bytes"], abs=2)
    # While the spike is there ours has what stock's cache took: a quarter of what four times the context needs.
    assert whole["left_in_spike_bytes"] == pytest.approx(GIB, abs=2)
    assert whole["kept_bytes"] == pytest.approx(GIB - 256 * MIB, abs=2)
    pi = boards.BOARDS[-1]  # whose cache is smaller than what is kept free: its floor stays
    assert boards.whole(pi, {layers: 500 * MIB + 60 * MIB * layers for layers in (2, 4, 6)})["kept_share"] == 1 / 32
    scaled = boards.scaled(NANO, needs, whole, 8 * MIB)
    assert scaled["stock_bytes"] == needs[2]
    assert scaled["spike_bytes"] == pytest.approx(whole["spike_bytes"] * 2 / 32, abs=MIB)
    with pytest.raises(ValueError, match="does not fit"):
        boards.whole(NANO, {2: 2 * GIB, 3: 3 * GIB, 4: 4 * GIB})


def test_a_random_model_is_a_gguf_file_of_the_size_that_was_said(tmp_path):
    options = random_model.arguments([str(tmp_path / "tiny.gguf"), "--layers", "2", "--embedding", "64", "--ffn", "96",
                                      "--heads", "2", "--kv-heads", "1", "--vocabulary", "128"])
    random_model.make(options)
    raw = (tmp_path / "tiny.gguf").read_bytes()
    assert struct.unpack("<4sIQQ", raw[:24]) == (b"GGUF", 3, 3 + 2 * 9, 12)
    assert 0 <= len(raw) - random_model.weights_bytes(options) - len(random_model.header(options)) < 32 * 22


def test_a_random_model_runs_in_the_engine(tmp_path):
    api = pytest.importorskip("llama_cpp")
    options = random_model.arguments([str(tmp_path / "tiny.gguf"), "--layers", "1", "--embedding", "128", "--ffn", "96",
                                      "--heads", "2", "--kv-heads", "1", "--vocabulary", "128"])
    random_model.make(options)
    model = api.llama_load_model_from_file(str(tmp_path / "tiny.gguf").encode(), api.llama_model_default_params())
    assert model and api.llama_model_n_layer(model) == 1
    assert api.llama_model_size(model) == random_model.weights_bytes(options)
    api.llama_free_model(model)


class Options:
    base, trials, times, stock_times = 1024, 2, [1, 4, 8], [1, 2]


def run(side, times, seed, killed=False, found=True):
    return {"side": side, "times": times, "seed": seed, "killed": killed, "failed": False,
            "found": {"in_spike": found and not killed, "after": not killed}, "resident_bytes": {"spike": 10}}


def test_the_longest_context_is_one_that_is_never_killed_and_always_found():
    runs = [run(side, times, seed, killed=side == "stock" and times == 2, found=not (times == 8 and seed == 1))
            for side, many in (("stock", [1, 2]), ("ours", [1, 4, 8])) for times in many for seed in (0, 1)]
    found = context.key_summary(runs, Options, 1, 1, 1)
    assert found["longest_tokens"] == {"stock": 1024, "ours": 4096} and found["ratio"] == 4 and found["missing_runs"] == 0
    assert context.conclude({"key": found, "boards": []})[1]
    assert not context.conclude({"key": context.key_summary(runs[:-1], Options, 1, 1, 1), "boards": []})[1]
    assert context.key_summary([], Options, 1, 1, 1)["ratio"] is None
    assert not context.conclude({"key": None, "boards": []})[1]  # nothing was run


def test_the_report_shows_keys_and_boards():
    needs = {layers: 400 * MIB + 150 * MIB * layers for layers in (2, 3, 4)}
    whole = boards.whole(NANO, needs)
    scaled = boards.scaled(NANO, needs, whole, 8 * MIB)
    board = {"board": NANO.name, "device": NANO.device, "model": NANO.model, "layers": 32, "layers_run": 2, "stock_tokens": 2048,
             "ours_tokens": 8192, "arithmetic": boards.arithmetic(NANO, needs, whole, scaled), "runs": [
                 {**run("ours", 4, 0), "context_tokens": 8192, "limit_bytes": 1, "spike_bytes": 1}]}
    key = context.key_summary([run("stock", 1, 0), run("ours", 4, 0), run("ours", 8, 0, killed=True)], Options, 1, 1, 1)
    for value in ({"key": key, "boards": [board]}, {"key": None, "boards": [board]}, {"key": key, "boards": []}):
        _, section = report_sections.section_of("context", {**value, "machine": None})
        if value["key"]:
            assert report.picture(section).startswith(b"\x89PNG")
        assert len(section.more) == (2 if value["boards"] else 0)
