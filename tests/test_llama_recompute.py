"""Dropped blocks (no store) come back by computing their tokens again, in the real llama-cpp-python with the real model: the
same bits where the batches are those that computed them first, within the rounding of another batch otherwise."""

import pytest
from test_llama_python import BOTH, drive, said
from test_llama_server import serve, status_when, story, tool

NO_STORE = {"PSI_CACHE_CONTROLLER": "off", "PSI_CACHE_STORE": "none"}
# Another batch sums in another order. Measured: a distance of 0.026 and 7e-5 nats at most; of another text: 0.5 and more.
MOST_APART, MOST_NATS = 0.1, 0.002


def check_back(got, sequences=1):
    assert got["trimmed"]["dropped_bytes"] > 0 and all(got["changed"])
    assert got["saved"]["dropped_bytes"] == 0
    assert got["saved"]["recomputed_bytes"] == got["trimmed"]["dropped_bytes"]
    assert len(got["states"]) == len(got["logits"]) == sequences


@BOTH
@pytest.mark.parametrize("how", ["call", "save"])
def test_what_was_dropped_comes_back_bit_for_bit(model, flash_attention, how):
    """By a call, and when the state is saved: the prompt was read in the batches that compute it again."""
    got, stderr = drive(
        model, "recompute", environment=NO_STORE, flash_attention=flash_attention, prompt=600, batch=256, how=how
    )
    check_back(got)
    assert [state["bytes_differ"] for state in got["states"]] == [0]
    assert [logits["kl"] for logits in got["logits"]] == [0]
    assert said(stderr) == []


@pytest.mark.parametrize("streams", [{"unified": True}, {}], ids=["unified", "streams"])
def test_two_sequences_come_back(model, streams):
    got, _ = drive(model, "recompute", environment=NO_STORE, flash_attention=True, prompt=300, sequences=2, **streams)
    check_back(got, 2)
    assert all(state["apart"] < MOST_APART for state in got["states"])
    assert all(logits["same"] and logits["kl"] < MOST_NATS for logits in got["logits"])


@BOTH
def test_a_restore_by_hand_computes_a_piece_at_each_safe_point(model, flash_attention):
    got, _ = drive(
        model, "recompute", environment={**NO_STORE, "PSI_CACHE_RECOMPUTE_US": "1"}, flash_attention=flash_attention,
        prompt=300, how="restore"
    )
    check_back(got)
    assert got["steps"] > 1
    assert all(state["apart"] < MOST_APART for state in got["states"])
    assert all(logits["same"] and logits["kl"] < MOST_NATS for logits in got["logits"])


def test_a_sliding_window_s_ring_that_forgot_the_beginning(model):
    """What the window's cache no longer has is computed too, for those that come after it."""
    got, _ = drive(
        model, "recompute", environment=NO_STORE, flash_attention=True, prompt=1100, batch=256, swa_full=False
    )
    check_back(got)
    assert [state["bytes_differ"] for state in got["states"]] == [0]
    assert [logits["kl"] for logits in got["logits"]] == [0]


def test_after_a_rewrite_the_new_text_is_computed(model):
    got, _ = drive(model, "recompute_after_rewrite", environment=NO_STORE, flash_attention=True)
    assert got["dropped"] == got["returned"] > 0
    assert got["state"]["apart"] < MOST_APART
    assert got["logits"]["same"] and got["logits"]["kl"] < MOST_NATS


@pytest.mark.parametrize("by", ["shift", "load", "embeddings"])
def test_what_is_not_known_stays_hidden_and_that_is_said_once(model, by):
    got, stderr = drive(model, "not_recomputable", environment=NO_STORE, flash_attention=True, by=by)
    assert got["dropped"] > 0 and got["returned"] == 0 and got["same"]
    assert got["stats"]["dropped_bytes"] == got["dropped"]
    assert len([line for line in said(stderr) if "are not computed again" in line]) == 1


def test_a_wrong_log_is_found_out(model):
    """The tokens in the context's books are falsified: what is computed of them is not what is there, and is not used."""
    got, stderr = drive(model, "falsified", environment=NO_STORE, flash_attention=True)
    assert got["dropped"] > 0 and got["returned"] == 0 and got["same"]
    assert any("is not what was there" in line for line in said(stderr))


def test_off_means_off(model):
    off = {**NO_STORE, "PSI_CACHE_RECOMPUTE": "off"}
    got, _ = drive(model, "recompute", environment=off, flash_attention=True, prompt=200)
    assert got["returned_bytes"] == 0 and got["restored"]["dropped_bytes"] > 0


def test_llama_server_computes_what_it_dropped_again(model, engine_folder, psi_cache_command, tmp_path):
    """No Python in between: the stand-ins alone know how its context was made. A piece in each step, until all is back."""
    prefix = [psi_cache_command, "run", "--controller", "off", "--store", "none", "--floor", "1", "--"]
    with serve(model, engine_folder, tmp_path, prefix) as ours:
        first, pid = ours.ask(0, story(0)[:1500], 4)["tokens"], ours.process.pid
        tool(psi_cache_command, "trim", str(pid), "0.5")
        ours.ask(0, story(0)[:1500], 1)
        status_when(psi_cache_command, pid, lambda status: status["dropped_bytes"] > 0)
        tool(psi_cache_command, "restore", str(pid))
        for _ in range(40):
            ours.ask(0, story(0)[:1500], 1)
            status = status_when(psi_cache_command, pid, lambda status: status["recomputed_bytes"] > 0)
            if status["dropped_bytes"] == 0:
                break
        assert status["dropped_bytes"] == 0
        assert ours.ask(0, story(0)[:1500], 4)["tokens"] == first
