#!/bin/sh
# One step of a set-up or a test run: step.sh NAME "TEXT" "CURE" COMMAND...
# Prints TEXT, a sign of life every 20 s (STEP_TICK), and how long it took. All output goes to
# build/logs/NAME.log; when COMMAND fails, the log's last 30 lines and CURE are shown, and COMMAND's exit status
# is ours. STEP_LIVE=1 shows the output while it comes instead; STEP_SUMMARY=REGEX shows the matching lines of a
# successful step's log.
set -u
name=$1 text=$2 cure=$3
shift 3
log=build/logs/$name.log
tick=${STEP_TICK:-20}
mkdir -p build/logs || exit 1
printf '==> %s\n' "$text"
start=$(date +%s)

# Runs beside the command; a lost parent ends it. The descriptor 9 is a lock of the caller.
life() {
    next=$tick
    while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        elapsed=$(($(date +%s) - start))
        [ "$elapsed" -ge "$next" ] || continue
        next=$((elapsed + tick))
        # Ninja counts [n/m], make [ n%].
        at=$(tail -c 20000 "$log" | grep -oE '\[ *[0-9]+(/[0-9]+|%)\]' | tail -n 1)
        printf '    %d s: %s\n' "$elapsed" "${at:-still at work}"
    done
}

ticker=
trap '[ -z "$ticker" ] || kill "$ticker" 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ "${STEP_LIVE:-0}" = 1 ]; then
    # sh has no pipefail: the status travels beside the pipe.
    { "$@" 2>&1 9>&-; echo $? >"$log.status"; } | tee "$log"
    status=$(cat "$log.status")
    rm -f "$log.status"
else
    : >"$log"
    life 9>&- &
    ticker=$!
    "$@" >"$log" 2>&1 </dev/null 9>&-
    status=$?
    kill "$ticker" 2>/dev/null
    wait "$ticker" 2>/dev/null
    ticker=
fi

took=$(($(date +%s) - start))
if [ "$status" -eq 0 ]; then
    if [ -n "${STEP_SUMMARY:-}" ]; then
        grep -E "$STEP_SUMMARY" "$log" | sed 's/^ */    /'
    fi
    printf '    done in %d s\n' "$took"
    exit 0
fi
if [ "${STEP_LIVE:-0}" != 1 ]; then
    printf '    --- the last lines of %s\n' "$log"
    tail -n 30 "$log" | sed 's/^/    | /'
fi
printf '    FAILED after %d s (exit status %d). Log: %s\n' "$took" "$status" "$log"
[ -z "$cure" ] || printf '    Cure: %s\n' "$cure"
exit "$status"
