"""The vLLM adapter in the real vLLM with a real model. Runs where vLLM and the converted model are: make test-vllm."""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
MODEL = pathlib.Path(os.environ.get("PSI_TEST_VLLM_MODEL", HERE.parent / ".cache" / "models" / "gemma-3-270m-vllm"))

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here: run make test-vllm", allow_module_level=True)
if not MODEL.is_dir():
    pytest.skip(f"no model in {MODEL}: run make test-vllm", allow_module_level=True)


def drive(*scenarios, tmp_path, options=None, **environment):
    """One engine in a process of its own; an hour is no bar, but the end of a hang."""
    settings = {**os.environ, "PSI_CACHE_RUN_DIR": str(tmp_path), "DRIVER_OPTIONS": json.dumps(options or {}),
                **{name: str(value) for name, value in environment.items()}}
    done = subprocess.run([sys.executable, str(HERE / "vllm_driver.py"), str(MODEL), *scenarios], env=settings,
                          capture_output=True, text=True, timeout=3600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    print(lines[-1])
    return json.loads(lines[-1][len("RESULT "):]), done.stderr


def check_returned(got):
    assert got["reacted"], "an idle engine did not answer a trim"
    assert got["promised_bytes"] > 0 and got["withheld_bytes"] > 0
    assert got["went_bytes"] >= 0.98 * got["promised_bytes"]
    assert got["usable_at_floor"] >= got["floor_blocks"]
    assert got["all_back"]


def check_identical(got):
    assert got["works"] and got["trims"] > 0 and got["given_bytes"] > 20 * got["block_bytes"]
    assert got["different"] == 0


def test_pages_go_and_texts_stay(tmp_path):
    """Idle reaction, pages by RSS; greedy f32 texts under trims and restores; prefixes computed again."""
    got, _ = drive("returned", "prefixes", "identical", tmp_path=tmp_path)
    check_returned(got["returned"])
    assert got["prefixes"]["same"]
    check_identical(got["identical"])


def test_an_idle_server_answers_without_a_request(tmp_path, monkeypatch):
    """Three processes, as served; the trim comes from the command, and nothing wakes the engine but us."""
    sys.path.insert(0, str(HERE.parent / "demo"))
    from vllm_driver import anon_bytes, wait
    from vllm_server import Server, prompt

    monkeypatch.setenv("PSI_CACHE_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("PSI_CACHE_CONTROLLER", "off")
    command = str(pathlib.Path(sys.executable).parent / "psi-cache")
    server = Server(str(MODEL), True, 96 << 20, 512)
    try:
        assert server.wait_ready(3000), server.said()[-4000:]
        for number in range(4):
            assert server.ask(prompt(number, 150), 8)[1] == 8
        pids = server.pids()
        assert wait(lambda: server.metric("vllm:num_requests_running") == 0)
        before = anon_bytes(pids["worker"])
        subprocess.run([command, "trim", str(pids["core"]), "1.0"], check=True)

        def given():
            said = subprocess.run([command, "status", "--json", str(pids["core"])], capture_output=True, text=True)
            if said.returncode != 0:
                return 0
            return json.loads(said.stdout)["processes"][0]["trimmed_bytes"]

        assert wait(lambda: given() > 0), server.said()[-4000:]
        wait(lambda: before - anon_bytes(pids["worker"]) >= 0.98 * given(), 5)
        assert before - anon_bytes(pids["worker"]) >= 0.98 * given() > 0
        assert server.metric("psi_cache:kv_blocks") > 0
        assert server.ask(prompt(1, 150), 8)[1] == 8  # and it still serves
    finally:
        server.stop()


def test_what_is_withheld_is_never_read(tmp_path):
    """Withheld blocks are filled with what is no number: one read of it, and the texts differ. Within steps, too, and with
    requests that are preempted for memory."""
    got, _ = drive("identical", tmp_path=tmp_path, PSI_CACHE_VLLM_PAGES="poison", DRIVER_TOKENS=32,
                   options={"scheduler_cls": "psi_cache.vllm.preempt.PreemptingScheduler"})
    assert got["identical"]["preemptions"] > 0
    check_identical(got["identical"])


def test_a_buffer_of_torchs_own(tmp_path):
    """As before 0.31: whole pages inside torch's buffer. And a MultiConnector with another one."""
    multi = {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"connectors": [
        {"kv_connector": "PsiCacheConnector", "kv_role": "kv_both"},
        {"kv_connector": "ExampleConnector", "kv_role": "kv_both",
         "kv_connector_extra_config": {"shared_storage_path": str(tmp_path / "kv")}}]}}
    got, _ = drive("returned", "identical", tmp_path=tmp_path, PSI_CACHE_VLLM_ARENA="off",
                   options={"kv_transfer_config": multi, "disable_hybrid_kv_cache_manager": True})
    check_returned(got["returned"])
    check_identical(got["identical"])


def test_switched_off_the_engine_runs_untouched(tmp_path):
    got, said = drive("untouched", tmp_path=tmp_path, PSI_CACHE_DISABLE=1)
    assert not got["untouched"]["works"] and not got["untouched"]["keeper"]
    assert all(len(tokens) == 24 for tokens in got["untouched"]["texts"]) and "failed" not in said
