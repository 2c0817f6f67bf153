"""Random operations on llama.cpp's contexts, with random trims, against the same engine without us: bit for bit.

    make bench-differential ARGS="--operations 10000"
    make bench-differential ARGS="--operations 300 --most 12 --model gemma"     # the real model
    make bench-differential ARGS="--store none"                       # what is trimmed is lost, and stays hidden

Prints the seed, and what a failing session was shrunk to. tests/operations_driver.py says how the two are compared.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import time

SOURCE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SOURCE / "tests"))

import operations  # noqa: E402
import tiny_models  # noqa: E402


def model_paths(name: str) -> dict:
    if name == "gemma":
        answer = subprocess.run([sys.executable, SOURCE / "scripts" / "model.py"], capture_output=True, text=True, check=True)
        return {"gemma": answer.stdout.strip().splitlines()[-1]}
    paths = tiny_models.write_all(SOURCE / "build" / "models")
    return {kind: paths[kind] for kind in ("llama", "gemma2")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--model", choices=["tiny", "gemma"], default="tiny")
    parser.add_argument("--store", choices=["file", "none"], default="file")
    parser.add_argument("--block-cells", default="32")
    parser.add_argument("--most", type=int, default=40, help="operations a session")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    pair = operations.Pair(PSI_CACHE_STORE=options.store, PSI_CACHE_BLOCK_CELLS=options.block_cells)
    began, failure = time.monotonic(), None
    try:
        operations.random_sessions(pair, model_paths(options.model), options.seed, options.operations, options.most)
    except AssertionError as error:
        failure = error
    finally:
        pair.close()
    print(
        f"{pair.operations} operations in {pair.sessions} sessions, {pair.differences} differences; "
        f"{pair.hidden_cells} columns were hidden in the steps that were watched; "
        f"{pair.engine_s_own} sessions that end stock llama.cpp itself; {time.monotonic() - began:.0f} s"
    )
    if failure is not None:
        print(failure)
    return failure is not None


if __name__ == "__main__":
    sys.exit(main())
