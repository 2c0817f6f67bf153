"""Safe points inside a step, in the real llama-cpp-python with the real model: what goes in the middle of a prompt's piece, and
that the bits are those of stock with the same blocks hidden from the same layers."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from test_llama_python import drive

DRIVER = pathlib.Path(__file__).with_name("llama_layers_driver.py")
BOTH = pytest.mark.parametrize("flash_attention", [True, False], ids=["flash", "no-flash"])
FIFO = {"PSI_CACHE_POLICY": "fifo", "PSI_CACHE_RECALL": "off"}
EACH_STEP = {"PSI_CACHE_LONG_STEP_US": "0"}  # also of a step that is short here
BY_HAND = {"PSI_CACHE_CONTROLLER": "off", **FIFO, **EACH_STEP}


def drive_layers(model, scenario, ours=True, environment=None, **options):
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("PSI_CACHE_") or k == "PSI_CACHE_LIB_DIR"}
    surroundings.update(environment or {})
    done = subprocess.run(
        [sys.executable, str(DRIVER), scenario, json.dumps({"ours": ours, "model": model, **options})],
        capture_output=True,
        text=True,
        timeout=600,
        env=surroundings,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def compare(model, **options):
    """Ours with a trim that another thread asks for after layer 5; stock with what went hidden from layer 6 on."""
    ours = drive_layers(model, "by_hand", environment=BY_HAND, **options)
    assert ours["blocks"] > 0
    stock = drive_layers(model, "by_hand", ours=False, blocks=ours["blocks"], **options)
    whole = drive_layers(model, "by_hand", ours=False, blocks=0, **options)
    assert ours["step"] == stock["step"] != whole["step"]
    assert ours["out"] == stock["out"]
    assert ours["back"] == stock["back"]
    assert ours["stored_at_last"] == 0
    return ours


@BOTH
def test_a_trim_in_the_middle_of_a_piece_is_done_before_the_next_layer(model, flash_attention):
    """Flash attention off: V is transposed."""
    got = compare(model, one_cache=True, flash_attention=flash_attention, prompt=512, share=0.25)
    assert got["stored"][:6] == [0] * 6  # asked for when the fifth layer's output was there
    assert got["stored"][6] == got["stored"][-1] > 0


def test_two_caches_and_their_masks_are_trimmed_inside_a_step(model):
    """Full and sliding-window layers: in the second cache what the window hides goes first."""
    compare(model, flash_attention=True, prompt=768, piece=256, share=0.2)


def test_the_next_piece_of_the_same_batch_does_not_see_it_either(model):
    compare(model, one_cache=True, flash_attention=True, prompt=256, piece=640, batch=640, share=0.2)


@BOTH
def test_two_streams_are_trimmed_inside_a_step(model, flash_attention):
    compare(model, one_cache=True, flash_attention=flash_attention, sequences=2, prompt=320, piece=256, share=0.25)


@BOTH
def test_the_watcher_waits_for_no_layer(model, tmp_path, flash_attention):
    """Memory ends while the engine stands before layer 6's attention, its safe point passed: the watcher gives blocks back all
    the same. Layer 6 still sees them, the later ones do not."""
    options = {"one_cache": True, "flash_attention": flash_attention}
    ours = drive_layers(model, "by_watcher", environment={**FIFO, **EACH_STEP}, root=str(tmp_path), **options)
    assert ours["given"][0] == 0 and ours["given"][1] > 0 and ours["blocks"] > 0
    stock = drive_layers(model, "by_watcher", ours=False, blocks=ours["blocks"], **options)
    whole = drive_layers(model, "by_watcher", ours=False, blocks=0, **options)
    assert ours["step"] == stock["step"] != whole["step"]


@BOTH
def test_safe_points_in_each_step_change_no_bit(model, flash_attention):
    options = {"flash_attention": flash_attention, "prompt": 700, "count": 20}
    stock, _ = drive(model, "greedy", ours=False, **options)
    ours, _ = drive(model, "greedy", environment={"PSI_CACHE_CONTROLLER": "off", **EACH_STEP}, **options)
    assert ours["tokens"] == stock["tokens"]
    assert ours["logits"] == stock["logits"]


@BOTH
def test_the_user_s_evaluation_callback_sees_what_it_sees_without_us(model, flash_attention):
    stock, _ = drive(model, "callback", ours=False, flash_attention=flash_attention)
    ours, _ = drive(model, "callback", environment={"PSI_CACHE_CONTROLLER": "off", **EACH_STEP}, flash_attention=flash_attention)
    assert stock["seen"] and ours == stock


@BOTH
def test_recall_works_inside_a_step_that_has_safe_points(model, flash_attention):
    environment = {"PSI_CACHE_CONTROLLER": "off", **EACH_STEP}
    got, _ = drive(model, "recall", environment=environment, flash_attention=flash_attention)
    assert "47316" not in got["off"] and "47316" in got["on"]
    assert got["identical"] and got["restored"]["stored_bytes"] == 0
