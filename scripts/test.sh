#!/bin/sh
# The test stages: test.sh STAGE...
# release, asan, tsan: build the C part that way and run its tests; python: set up .venv, run tests/*.py there;
# vllm: where vLLM is installed (make test-vllm, or PSI_TEST_VLLM=1, installs it: 4 GB), its adapter's tests in .venv-vllm.
# Every stage runs, whatever the others did; the exit status is 1 when any of them failed.
set -u
. "$(dirname -- "$0")/common.sh"
export CTEST_OUTPUT_ON_FAILURE=1
failed='' skipped='' passed=''
emulate='' # setarch, where the thread sanitizer needs it

# sanitizer_runs FLAGS...: does a small program with two threads run under it?
sanitizer_runs() {
    probe=$(mktemp -d) || return 1
    printf '%s\n' '#include <pthread.h>' 'static void *f(void *a) { return a; }' \
        'int main(void) { pthread_t t; return pthread_create(&t, 0, f, 0) || pthread_join(t, 0); }' >"$probe/t.c"
    emulate='' result=1
    # shellcheck disable=SC2086 # emulate and CC are lists of words
    if (cd "$probe" && ${CC:-cc} -g -pthread "$@" t.c -o t) >"$probe/log" 2>&1; then
        reason="a program built with $* does not run here"
        for emulate in '' "setarch $(uname -m) -R"; do
            # Address space layout decides, so once is not enough.
            runs=0
            while [ $runs -lt 5 ] && $emulate "$probe/t" >"$probe/log" 2>&1; do runs=$((runs + 1)); done
            [ $runs -lt 5 ] || { result=0; break; }
        done
    else
        reason="${CC:-cc} cannot build with $* (Debian packages: libasan8 libubsan1 libtsan2, which gcc brings)"
    fi
    rm -rf "$probe"
    return $result
}

# c_stage PRESET "TITLE"
c_stage() {
    sh scripts/step.sh "configure-$1" "$2: configure" "see the log; after a move or a change of compiler: make clean" \
        cmake --preset "$1" || return 1
    sh scripts/step.sh "build-$1" "$2: build" "" cmake --build --preset "$1" || return 1
    if [ ! -f "build/$1/CTestTestfile.cmake" ]; then
        say "    nothing to test yet"
        return 0
    fi
    # shellcheck disable=SC2086
    STEP_SUMMARY='tests passed|tests failed|No tests were found' \
        sh scripts/step.sh "ctest-$1" "$2: C tests${emulate:+ (under $emulate)}" "one test alone: ctest --preset $1 -R NAME" \
        $emulate ctest --preset "$1"
}

python_stage() {
    sh scripts/setup-venv.sh test || return 1
    set -- tests/test_*.py
    if [ ! -f "$1" ]; then
        say "    no Python tests yet"
        return 0
    fi
    # shellcheck disable=SC2086 # PYTEST_ARGS is a list of words
    STEP_LIVE=1 sh scripts/step.sh pytest "Python and engine tests" "one test alone: .venv/bin/python -m pytest tests -k NAME" \
        "$VENV_PYTHON" -m pytest -p no:cacheprovider ${PYTEST_ARGS:-} tests </dev/null
}

vllm_stage() {
    sh scripts/setup-vllm.sh || return 1
    # shellcheck disable=SC2086
    STEP_LIVE=1 sh scripts/step.sh pytest-vllm "tests of the adapter in vLLM" \
        "one test alone: .venv-vllm/bin/python -m pytest tests/test_vllm_engine.py -k NAME" \
        "$ROOT/.venv-vllm/bin/python" -m pytest -p no:cacheprovider ${PYTEST_ARGS:-} tests/test_vllm_*.py </dev/null
}

for stage; do
    emulate=''
    case $stage in
        release) c_stage release "release" ;;
        asan | tsan)
            if [ "$stage" = asan ]; then
                flags=-fsanitize=address,undefined title="address and undefined-behaviour sanitizers"
            else
                flags=-fsanitize=thread title="thread sanitizer"
            fi
            if sanitizer_runs $flags; then
                c_stage "$stage" "$title"
            else
                say "==> SKIPPED $title: $reason"
                skipped="$skipped $stage"
                continue
            fi
            ;;
        python) python_stage ;;
        vllm)
            if [ "${PSI_TEST_VLLM:-0}" != 1 ] && [ ! -f .venv-vllm/stamps/project ]; then
                say "==> SKIPPED vLLM's tests: vLLM is not installed here (make test-vllm installs it, 4 GB)"
                skipped="$skipped vllm"
                continue
            fi
            vllm_stage
            ;;
        *) fail "no stage $stage" ;;
    esac
    # shellcheck disable=SC2181 # of whichever branch ran
    if [ $? -eq 0 ]; then passed="$passed $stage"; else failed="$failed $stage"; fi
done

say "==> passed:${passed:- none}; failed:${failed:- none}; skipped:${skipped:- none}"
[ -z "$failed" ]
