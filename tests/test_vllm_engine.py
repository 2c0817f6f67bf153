"""The vLLM adapter in the real vLLM with a real model. Runs where vLLM and the converted model are: make test-vllm."""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading

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
    """Idle reaction, pages by RSS; greedy f32 texts under trims and restores, by hand: so prefixes are stored and come back."""
    got, _ = drive("returned", "identical", tmp_path=tmp_path)
    check_returned(got["returned"])
    check_identical(got["identical"])
    assert got["identical"]["loaded"] > 0


def test_prefixes_come_back_from_the_store_or_are_computed_again(tmp_path):
    """Sound; a reset as after new weights; what may come while a load is under way; then changed by one byte a record, cut
    short, full (the last: after a write that failed the store rests for seconds)."""
    got, _ = drive("prefixes", "reset", "meanwhile", "lost", tmp_path=tmp_path, PSI_CACHE_STORE_DIR=tmp_path)
    sound, reset, lost, meanwhile = got["prefixes"], got["reset"], got["lost"], got["meanwhile"]
    assert sound["gone"] and sound["same"] and sound["loaded"] > 0 and sound["errors"] == 0
    assert reset["gone"] and reset["stored"] > 0 and reset["answered"] and reset["same"] and reset["loaded"] == 0
    for fault in ("changed", "short", "full"):
        assert lost[fault]["gone"] and lost[fault]["same"] and lost[fault]["loaded"] == 0, fault
    assert lost["works"] and lost["errors"] > 0
    assert meanwhile["was_under_way"] and meanwhile["under_way"] and not meanwhile["reset_answers"]
    assert meanwhile["same"] and meanwhile["loaded"] > 0 and meanwhile["works"]
    assert meanwhile["landed"] and meanwhile["held"] == 0 and meanwhile["all_free"]


def test_without_a_store_prefixes_are_computed_again(tmp_path):
    got, _ = drive("untouched", tmp_path=tmp_path, PSI_CACHE_STORE="none")
    assert got["untouched"]["works"] and got["untouched"]["keeper"] and not got["untouched"]["stores"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server as everyone starts it, three processes; trims come from the command. And what asks psi-cache about it."""
    sys.path.insert(0, str(HERE.parent / "demo"))
    from vllm_server import Server

    folder, command = tmp_path_factory.mktemp("server"), str(pathlib.Path(sys.executable).parent / "psi-cache")
    environment = {"PSI_CACHE_RUN_DIR": str(folder), "PSI_CACHE_STORE_DIR": str(folder), "PSI_CACHE_CONTROLLER": "off"}
    server = Server(str(MODEL), True, 96 << 20, 512, environment=environment, options=("--dtype", "float32"))

    def tell(*words):
        """A command of psi-cache; PID is the engine's. A busy engine may take what is asked later than it waits for."""
        return subprocess.run([command, *(str(server.pids()["core"]) if word == "PID" else word for word in words)],
                              env={**os.environ, **environment}, capture_output=True, text=True).stdout

    try:
        assert server.wait_ready(3000), server.said()[-4000:]
        yield server, tell
    finally:
        server.stop()


def given_bytes(tell):
    return json.loads(tell("status", "--json", "PID"))["processes"][0]["trimmed_bytes"]


def test_an_idle_server_answers_without_a_request(served):
    """Nothing wakes the engine but us."""
    from vllm_driver import anon_bytes, wait
    from vllm_server import prompt

    server, tell = served
    for number in range(4):
        assert server.ask(prompt(number, 150), 8)[1] == 8
    worker = server.pids()["worker"]
    assert wait(lambda: server.metric("vllm:num_requests_running") == 0)
    before = anon_bytes(worker)
    tell("trim", "PID", "1.0")
    assert wait(lambda: given_bytes(tell) > 0), server.said()[-4000:]
    wait(lambda: before - anon_bytes(worker) >= 0.98 * given_bytes(tell), 5)
    assert before - anon_bytes(worker) >= 0.98 * given_bytes(tell) > 0
    assert server.metric("psi_cache:kv_blocks") > 0
    assert server.ask(prompt(1, 150), 8)[1] == 8  # and it still serves
    assert server.metric("psi_cache:kv_loaded_blocks") > 0  # from the store


def test_openai_clients_notice_nothing(served):
    """16 of the OpenAI client library's, streaming, while the cache is trimmed and restored: the same words as before."""
    openai = pytest.importorskip("openai")
    from concurrent.futures import ThreadPoolExecutor

    from vllm_server import NAME, prompt

    server, tell = served
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", timeout=1800, max_retries=0)

    def ask(number):
        parts = client.completions.create(model=NAME, prompt=prompt(number, 120, 60), max_tokens=16, temperature=0,
                                          stream=True)
        return "".join(part.choices[0].text for part in parts if part.choices)

    def ask_all():
        with ThreadPoolExecutor(16) as clients:
            return list(clients.map(ask, range(32)))

    wanted, over, trims = ask_all(), threading.Event(), [0]

    def press():
        while not over.wait(0.3):
            tell("trim", "PID", "0.6") if trims[0] % 2 == 0 else tell("restore", "PID")
            trims[0] += 1

    before, presser = given_bytes(tell), threading.Thread(target=press)
    presser.start()
    got = ask_all()
    over.set()
    presser.join()
    assert all(wanted) and got == wanted and trims[0] > 1 and given_bytes(tell) > before, server.said()[-3000:]


def test_what_is_withheld_is_never_read(tmp_path):
    """Withheld blocks are filled with what is no number: one read of it, and the texts differ. Within steps, too, with
    requests that are preempted for memory, and with prefixes from the store."""
    got, _ = drive("identical", tmp_path=tmp_path, PSI_CACHE_VLLM_PAGES="poison", DRIVER_TOKENS=32,
                   options={"scheduler_cls": "psi_cache.vllm.preempt.PreemptingScheduler"})
    assert got["identical"]["preemptions"] > 0 and got["identical"]["loaded"] > 0
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
