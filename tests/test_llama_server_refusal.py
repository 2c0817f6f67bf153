"""llama-server where nothing more can be given: clients get its normal error or wait, other slots keep what they have,
and all goes on when there is memory again. Memory is a made-up /proc/meminfo."""

import concurrent.futures
import pathlib
import time

import pytest
from server_driver import Refused, serve, status_when

OPTIONS = ["-c", "8192", "-np", "2", "--swa-full", "--cache-ram", "0", "-ub", "128"]
LONG = "".join(f"Robot 7 wrote line {i}: joint {i % 6} at {(i * 29) % 180} degrees. " for i in range(40))
SHORT = "One robot arm"  # fits into a block, so that nothing is left that could go for a new one


class Memory:
    def __init__(self, root):
        self.folder = pathlib.Path(root) / "proc"
        self.folder.mkdir(parents=True)
        self.set_mib(8000)

    def set_mib(self, mib):
        written = self.folder / "meminfo.new"
        written.write_text(f"MemTotal: 8388608 kB\nMemFree: {mib * 1024} kB\nMemAvailable: {mib * 1024} kB\n")
        written.rename(self.folder / "meminfo")


def serve_ours(model, engine_folder, command, tmp_path, options=OPTIONS, wait_us=100000):
    prefix = [command, "run", "-v", "--"]
    # Nothing is refused below the floor, and the default one has room for a block to come: none.
    more = {"PSI_CACHE_ROOT": str(tmp_path), "PSI_CACHE_REFUSE_WAIT_US": str(wait_us), "PSI_CACHE_FLOOR_BYTES": "1"}
    return serve(model, engine_folder, tmp_path, prefix, options, **more)


@pytest.fixture(scope="module")
def expected(model, engine_folder, tmp_path_factory):
    with serve(model, engine_folder, tmp_path_factory.mktemp("stock"), options=OPTIONS) as stock:
        return {"short": stock.bits(1, SHORT), "long": stock.bits(0, LONG), "again": stock.bits(1, SHORT + " moved", 4)}


@pytest.mark.parametrize("unified", ["-no-kvu", "-kvu"], ids=["streams", "unified"])
def test_a_client_gets_the_normal_error_and_all_goes_on(unified, expected, model, engine_folder, psi_cache_command, tmp_path):
    memory = Memory(tmp_path)
    with serve_ours(model, engine_folder, psi_cache_command, tmp_path, [*OPTIONS, unified]) as server:
        assert server.bits(1, SHORT) == expected["short"]
        memory.set_mib(1)
        status_when(psi_cache_command, server.process.pid, lambda status: status["index"] > 0.7)
        for _ in range(2):  # a second one is no worse off
            with pytest.raises(Refused) as refused:
                server.bits(0, LONG)
            assert "Context size has been exceeded" in str(refused.value)
        refusals = status_when(psi_cache_command, server.process.pid, lambda status: status["refusals"] > 0)["refusals"]
        # A batch of 2,048 is halved until one token is left; again, where some tokens found room.
        assert refusals <= 2 * 50, refusals
        assert not [slot for slot in server.request("GET", "/slots") if slot["is_processing"]]
        memory.set_mib(8000)
        status_when(psi_cache_command, server.process.pid, lambda status: status["index"] < 0.3)
        kept = server.ask(1, SHORT + " moved", 4, n_probs=4)
        if unified == "-no-kvu":  # with one cache for all, llama-server itself empties idle slots first
            assert kept["timings"]["cache_n"] > 0
        assert kept["tokens"] == expected["again"][0]
        answer = server.bits(0, LONG)
        assert answer == expected["long"] or (unified == "-kvu" and answer[0] == expected["long"][0])
        assert "aborted" not in server.said().lower()


def test_what_is_begun_is_not_refused(expected, model, engine_folder, psi_cache_command, tmp_path):
    """llama-server ends itself, or goes round for ever, where a part of a batch is in the cache and the rest refused."""
    memory = Memory(tmp_path)
    with serve_ours(model, engine_folder, psi_cache_command, tmp_path, wait_us=500_000) as server:
        empty = status_when(psi_cache_command, server.process.pid, lambda status: status["pools"] > 0)["resident_bytes"]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            job = pool.submit(server.bits, 0, LONG)
            status_when(psi_cache_command, server.process.pid, lambda status: status["resident_bytes"] > empty)
            memory.set_mib(1)
            status_when(psi_cache_command, server.process.pid, lambda status: status["index"] > 0.7)
            assert not job.done()
            assert len(job.result(timeout=120)[0]) > 0
        memory.set_mib(8000)
        status_when(psi_cache_command, server.process.pid, lambda status: status["index"] < 0.3)
        assert server.bits(1, LONG) == expected["long"]


def test_a_client_waits_while_pressure_lasts_no_longer_than_it_may(expected, model, engine_folder, psi_cache_command, tmp_path):
    memory = Memory(tmp_path)
    with serve_ours(model, engine_folder, psi_cache_command, tmp_path, wait_us=100_000_000) as server:
        assert server.bits(1, SHORT) == expected["short"]
        memory.set_mib(1)
        status_when(psi_cache_command, server.process.pid, lambda status: status["index"] > 0.7)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            job = pool.submit(server.bits, 0, LONG)
            time.sleep(1)
            assert not job.done()
            assert server.request("GET", "/health", timeout=10)  # the server itself answers meanwhile
            memory.set_mib(8000)
            assert job.result(timeout=60) == expected["long"]
        assert status_when(psi_cache_command, server.process.pid, lambda status: True)["refusals"] == 0


def test_a_draft_model_follows_the_model_that_was_let_in(model, engine_folder, psi_cache_command, tmp_path):
    """llama-server knows no refusal of its draft's context: after one, each later request to the slot fails."""
    memory = Memory(tmp_path)
    options = [*OPTIONS, "-md", model, "--spec-draft-n-max", "4"]
    with serve_ours(model, engine_folder, psi_cache_command, tmp_path, options) as server:
        server.ask(1, SHORT, 2)
        memory.set_mib(1)
        status_when(psi_cache_command, server.process.pid, lambda status: status["index"] > 0.7)
        for _ in range(2):
            with pytest.raises(Refused) as refused:
                server.bits(0, LONG)
            assert "speculative" not in str(refused.value)
        memory.set_mib(8000)
        status_when(psi_cache_command, server.process.pid, lambda status: status["index"] < 0.3)
        assert len(server.ask(0, LONG, 8)["tokens"]) == 8
        assert len(server.ask(0, LONG + "And", 8)["tokens"]) == 8
