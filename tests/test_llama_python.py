"""The real llama-cpp-python with the real model, with and without psi_cache: what must be the same is compared bit for bit."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: run make test")
DRIVER = pathlib.Path(__file__).with_name("llama_driver.py")
BOTH = pytest.mark.parametrize("flash_attention", [True, False], ids=["flash", "no-flash"])


def drive(model, scenario, ours=True, environment=None, **options):
    """Runs a scenario in a process of its own; its result, and what it wrote to stderr."""
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("PSI_CACHE_") or k == "PSI_CACHE_LIB_DIR"}
    surroundings.update({"PSI_CACHE_CONTROLLER": "off"} if environment is None else environment)
    done = subprocess.run(
        [sys.executable, str(DRIVER), scenario, json.dumps({"ours": ours, "model": model, **options})],
        capture_output=True,
        text=True,
        timeout=600,
        env=surroundings,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def said(stderr):
    return [line for line in stderr.splitlines() if line.startswith("psi-cache: ")]


@BOTH
def test_without_pressure_500_tokens_and_their_logits_are_stock_s(model, flash_attention):
    options = {"flash_attention": flash_attention, "prompt": 200, "count": 500}
    stock, _ = drive(model, "greedy", ours=False, **options)
    ours, stderr = drive(model, "greedy", **options)
    assert ours["tokens"] == stock["tokens"]
    assert ours["logits"] == stock["logits"]
    assert said(stderr) == []
    share = ours["rss_after_context_bytes"] / stock["rss_after_context_bytes"]
    print(f"RssAnon after context creation, 32K, full-size SWA: {share:.3f} of stock's")
    assert share <= 0.2


def test_half_of_4000_tokens_goes_and_comes_back_bit_for_bit(model):
    got, _ = drive(model, "round_trip", flash_attention=True, prompt=4000)
    assert got["identical"] == [True]
    assert got["changed_while_trimmed"] and got["finite_while_trimmed"]
    stored = got["trimmed"]["stored_bytes"]
    assert stored >= 0.49 * (got["trimmed"]["resident_bytes"] + stored)
    fell, rose = got["rss_bytes"][0] - got["rss_bytes"][1], got["rss_bytes"][2] - got["rss_bytes"][1]
    print(f"{stored >> 20} MiB trimmed, RssAnon fell by {fell / stored:.3f} of it")
    assert fell >= 0.9 * stored
    assert rose >= 0.9 * stored
    assert got["restored"]["stored_bytes"] == 0


def test_without_flash_attention_bits_come_back_too(model):
    """V is transposed: only ranges of 2,048 cells free its pages (4 KiB pages), so less memory comes back."""
    got, _ = drive(model, "round_trip", flash_attention=False, prompt=4000)
    assert got["identical"] == [True]
    fell, stored = got["rss_bytes"][0] - got["rss_bytes"][1], got["trimmed"]["stored_bytes"]
    print(f"no flash attention: RssAnon fell by {fell / stored:.3f} of {stored >> 20} MiB trimmed")
    assert fell >= 0.4 * stored  # K's half


@BOTH
@pytest.mark.parametrize(
    "streams", [{}, {"sequences": 2, "unified": True}, {"sequences": 2}], ids=["one", "two-unified", "two-streams"]
)
def test_a_fact_that_is_out_of_memory_is_recalled_when_it_is_asked_for(model, flash_attention, streams):
    """And the cache is no larger for it; afterwards every bit is back."""
    got, stderr = drive(model, "recall", flash_attention=flash_attention, **streams)
    print(got["off"], got["on"], got["on_stats"]["recalled_bytes"], got["on_stats"]["recall_us"])
    assert "47316" not in got["off"] and got["off_stats"]["recalls"] == 0
    assert "47316" in got["on"] and got["on_stats"]["recalls"] > 0
    assert got["on_stats"]["resident_bytes"] <= got["off_stats"]["resident_bytes"]
    assert got["identical"] and got["restored"]["stored_bytes"] == 0
    assert said(stderr) == []


@BOTH
def test_an_evaluation_callback_of_the_user_sees_what_it_sees_without_us(model, flash_attention):
    stock, _ = drive(model, "callback", ours=False, flash_attention=flash_attention)
    ours, _ = drive(model, "callback", flash_attention=flash_attention)
    assert stock["seen"] and ours == stock


@BOTH
def test_a_hidden_block_is_to_the_model_as_one_that_was_removed(model, flash_attention):
    """fifo keeps block 0 and takes the next ones: stock with those cells removed must compute the same bits."""
    fifo = {"PSI_CACHE_CONTROLLER": "off", "PSI_CACHE_POLICY": "fifo", "PSI_CACHE_RECALL": "off"}
    ours, _ = drive(model, "hidden_is_removed", environment=fifo, flash_attention=flash_attention)
    blocks = ours["stats"]["stored_bytes"] // (32 * 18 * 1024)  # 18 layers of K and V, 512 bytes a cell
    assert blocks >= 60
    stock, _ = drive(model, "hidden_is_removed", ours=False, flash_attention=flash_attention, blocks=blocks)
    assert ours["logits"] == stock["logits"]


@BOTH
@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
def test_two_sequences_go_and_come_back_bit_for_bit(model, flash_attention, unified):
    got, _ = drive(
        model, "round_trip", flash_attention=flash_attention, sequences=2, unified=unified, prompt=2000, cells=8192
    )
    assert got["identical"] == [True, True]
    assert got["trimmed"]["stored_bytes"] > 0


@pytest.mark.parametrize(
    "kind",
    [
        {"swa_full": False, "flash_attention": True},
        {"swa_full": False, "flash_attention": False},
        {"cache_type": 8, "flash_attention": True},
    ],
    ids=["ring", "ring-no-flash", "q8_0"],
)
def test_other_kinds_of_cache_come_back_bit_for_bit(model, kind):
    """A sliding-window ring, whose cells are written again and again; quantised rows that are no part of a page."""
    stock, _ = drive(model, "asleep", ours=False, unified=True, **kind)
    ours, _ = drive(model, "asleep", unified=True, **kind)
    assert ours["logits"] == stock["logits"]
    got, _ = drive(model, "round_trip", prompt=3000, cells=8192, **kind)
    assert got["identical"] == [True]
    assert got["trimmed"]["stored_bytes"] > 0


@BOTH
@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
def test_what_no_step_sees_goes_without_changing_a_bit(model, flash_attention, unified):
    options = {"flash_attention": flash_attention, "unified": unified}
    stock, _ = drive(model, "asleep", ours=False, **options)
    ours, _ = drive(model, "asleep", **options)
    assert ours["stored_bytes"] > 0
    assert ours["logits"] == stock["logits"]


@BOTH
def test_a_context_saved_while_blocks_are_out_is_saved_whole(model, flash_attention):
    """Loading lays the cells out anew, so stock's own logits may change by it: ours must be what stock's are."""
    stock, _ = drive(model, "save_state", ours=False, flash_attention=flash_attention)
    got, _ = drive(model, "save_state", flash_attention=flash_attention)
    assert got["stored_bytes"] > 0
    assert (got["before"], got["after"]) == (stock["before"], stock["after"])
    assert got["resident_when_cleared_bytes"] == 0


@BOTH
def test_a_context_shift_turns_stored_keys_too(model, flash_attention):
    stock, _ = drive(model, "shift", ours=False, flash_attention=flash_attention)
    ours, _ = drive(model, "shift", flash_attention=flash_attention)
    assert ours["stored_bytes"] > 0
    assert ours["logits"] == stock["logits"]


@pytest.mark.parametrize("cache_type", [1, 8], ids=["f16", "q8_0"])
def test_a_context_shift_turns_keys_where_they_are(model, cache_type):
    """What is stored stays so but for a portion at a time, and cells that were never used get no memory."""
    small_blocks = {"PSI_CACHE_CONTROLLER": "off", "PSI_CACHE_BLOCK_CELLS": "48"}  # of q8_0, whole pages would be 256 cells
    got, _ = drive(
        model, "shift_memory", environment=small_blocks, flash_attention=True, cells=8192, cache_type=cache_type
    )
    assert got["before"]["stored_bytes"] > 0
    assert got["after"]["stored_bytes"] >= 0.9 * got["before"]["stored_bytes"]
    print(f"a shift of 1,000 of 8,192 tokens, half of them stored: RssAnon grew by {got['grew_bytes'] >> 20} MiB")
    assert got["grew_bytes"] < 16 << 20  # of 16 bits, the keys of the whole cache are 72 MiB


def test_a_copy_to_another_stream_costs_what_the_sequence_has_in_memory(model):
    """Not a stream's whole context: what is empty stays empty, and what is stored is copied in the store."""
    got, _ = drive(model, "copy_memory", flash_attention=True)
    resident, stored = got["before"]["resident_bytes"], got["before"]["stored_bytes"]
    assert stored > 0
    print(f"copying {resident >> 20} MiB in memory and {stored >> 20} MiB stored: RssAnon grew by {got['grew_bytes'] >> 20} MiB")
    assert got["after"]["stored_bytes"] >= 1.9 * stored
    assert got["grew_bytes"] < resident + (8 << 20)  # the stream is 144 MiB


@pytest.mark.parametrize("around_the_wrapper", [False, True], ids=["decode", "step"])
def test_a_refusal_is_a_clean_error_and_the_cache_is_as_before(model, tmp_path, around_the_wrapper):
    got, _ = drive(
        model,
        "refusal",
        environment={"PSI_CACHE_FLOOR_BYTES": "1"},  # below its floor a cache grows
        flash_attention=True,
        root=str(tmp_path),
        around_the_wrapper=around_the_wrapper,
    )
    assert got["refused"] == (2 if around_the_wrapper else 1)  # 1: "no KV slot"; 2: the step itself was not begun
    assert got["unchanged"]
    assert got["afterwards"]


@BOTH
def test_exact_means_that_no_step_runs_without_what_it_reads(model, tmp_path, flash_attention):
    environment = {"PSI_CACHE_EXACT": "on", "PSI_CACHE_REFUSE_WAIT_US": "300000"}
    got, _ = drive(model, "exact", environment=environment, flash_attention=flash_attention, root=str(tmp_path))
    assert got["identical"]
    assert got["trims"] >= 20
    assert got["refused"] == 2  # the step itself: nothing of the call was asked before
    assert got["steps_refused"] >= 1
    assert got["resident_share"] < 0.5  # while it waited, memory went as it always does
    assert got["afterwards"]


@pytest.mark.parametrize("cells, most", [(4096, 3 / 32), (1024, 8 / 32)])  # of the smaller a 32nd is one block
@BOTH
def test_at_the_floor_new_tokens_take_the_place_of_old_ones(model, tmp_path, flash_attention, cells, most):
    got, _ = drive(model, "exchange", environment={}, flash_attention=flash_attention, cells=cells, root=str(tmp_path))
    assert got["finite"]
    assert got["stats"]["stored_bytes"] > 0
    assert max(got["resident_bytes"][8:]) <= most * got["stats"]["capacity_bytes"]  # unpressed it would be 24/32
    assert got["resident_bytes"][-1] <= got["resident_bytes"][len(got["resident_bytes"]) // 2] * 1.1


def test_contexts_that_are_freed_leave_nothing(model):
    got, _ = drive(model, "contexts")
    for stats in got["stats"]:
        assert stats["pools"] == 0 and stats["capacity_bytes"] == 0


def run_with(model, **environment):
    stock, _ = drive(model, "run", ours=False, flash_attention=True)
    ours, stderr = drive(model, "run", environment=environment, flash_attention=True)
    assert ours["logits"] == stock["logits"]
    return ours, said(stderr)


def test_a_full_store_says_so_once_and_loses_nothing(model):
    ours, lines = run_with(model, PSI_CACHE_CONTROLLER="off", PSI_CACHE_STORE_MAX_BYTES="600K")
    assert ours["identical"]
    assert 0 < ours["trimmed"]["stored_bytes"] <= 600 << 10
    assert 1 <= len(lines) <= 2 and all("is full" in line for line in lines)  # a line a pool


def test_no_store_directory_is_one_line_a_pool(model):
    ours, lines = run_with(model, PSI_CACHE_CONTROLLER="off", PSI_CACHE_STORE_DIR="/nowhere/at/all")
    assert ours["trimmed"]["dropped_bytes"] > 0
    assert len(lines) == 2 and all("PSI_CACHE_STORE_DIR" in line for line in lines)


def test_without_psi_and_cgroups_it_runs_on_and_says_so(model, tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 8000000 kB\n")
    ours, lines = run_with(model, PSI_CACHE_ROOT=str(tmp_path))
    assert ours["identical"]
    assert len(lines) == 1 and "source psi.system.memory is missing" in lines[0]


def test_disabled_means_untouched(model):
    stock, _ = drive(model, "greedy", ours=False, flash_attention=True, prompt=20, count=5)
    ours, _ = drive(model, "greedy", environment={"PSI_CACHE_DISABLE": "1"}, flash_attention=True, prompt=20, count=5)
    assert ours["logits"] == stock["logits"]
    assert ours["rss_after_context_bytes"] > 0.8 * stock["rss_after_context_bytes"]
