#!/bin/sh
# Compilers and tools from the system: setup-system.sh demo|test
# Looks for what each package is needed for, not for the package, so that any Python, CMake or compiler in PATH
# will do. What is missing is installed with apt-get where we may; else it is named, and we stop.
set -u
. "$(dirname -- "$0")/common.sh"
purpose=${1:-test}
CC=${CC:-cc}
CXX=${CXX:-c++}
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

# compiles COMPILER SUFFIX SOURCE FLAGS...
compiles() {
    compiler=$1 suffix=$2
    printf '%s\n' "$3" >"$scratch/probe.$suffix"
    shift 3
    # $compiler unquoted: CC="ccache gcc" is two words
    (cd "$scratch" && $compiler "probe.$suffix" -o probe "$@") >/dev/null 2>&1
}

# at_least MAJOR.MINOR VERSION
at_least() {
    [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

python_can() { "$PYTHON" -c "$1" >/dev/null 2>&1; }

# Sets packages (to be installed) and reasons (one line each).
look() {
    packages='' reasons=''
    need() { # PACKAGES REASON
        packages="$packages $1"
        reasons="$reasons  $2 (Debian: $1)
"
    }
    compiles "$CC" c '#include <stdio.h>
int main(void) { return puts("") == 0; }' || need "gcc libc6-dev" "a C compiler: $CC builds no program"
    compiles "$CXX" cc '#include <string>
int main() { return (int)std::string().size(); }' || need "g++" "a C++ compiler: $CXX builds no program"
    cmake_version=$(cmake --version 2>/dev/null | sed -n 's/^cmake version //p')
    at_least 3.25 "${cmake_version:-0}" || need cmake "cmake 3.25 or later: found ${cmake_version:-none}"
    ninja --version >/dev/null 2>&1 || need ninja-build "ninja"
    if [ "$purpose" = test ]; then
        compiles "$CC" c '#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
int main(void) { fail(); return 0; }
' -lcmocka || need libcmocka-dev "the cmocka test library"
    fi
    if ! python_can ''; then
        need "python3 python3-venv" "Python: $PYTHON does not run"
    elif ! python_can 'import sys; sys.exit(sys.version_info < (3, 9))'; then
        need python3 "Python 3.9 or later: $PYTHON is older"
    elif ! "$PYTHON" -m venv --help >/dev/null 2>&1 || ! python_can 'import ensurepip'; then
        # The module belongs to the interpreter: Debian's package cures only Debian's Python.
        need python3-venv "Python's venv and ensurepip: $PYTHON ($(command -v "$PYTHON")) has none"
    fi
}

look
[ -n "$packages" ] || exit 0

say "==> missing on this system:"
printf '%s' "$reasons"

as_root=''
if [ "$(id -u)" -ne 0 ]; then
    if sudo -n true >/dev/null 2>&1; then as_root='sudo -n'; else as_root=no; fi
fi
if [ "$as_root" = no ] || ! command -v apt-get >/dev/null 2>&1; then
    fail "install what is missing, then try again. On Debian: sudo apt-get install$packages"
fi

cure="install by hand, then try again: apt-get install$packages"
# A list that cannot be refreshed may still be good enough.
sh scripts/step.sh apt-update "refreshing the package lists (apt-get update)" "is the network there? going on without" \
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
# shellcheck disable=SC2086 # both are lists of words
sh scripts/step.sh apt-install "installing$packages" "$cure" \
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages || exit 1

look
if [ -n "$packages" ]; then
    printf '%s' "$reasons"
    fail "still missing after the installation. Another interpreter or compiler may be first in PATH: set PYTHON, CC or CXX"
fi
