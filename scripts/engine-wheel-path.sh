#!/bin/sh
# Prints the path of a wheel in the cache that fits this machine: engine-wheel-path.sh PACKAGE==VERSION
# Exit status 1 when there is none.
set -u
. "$(dirname -- "$0")/common.sh"
name=$(printf '%s' "${1%%==*}" | tr - _) version=${1##*==}
for wheel in "$WHEELS/$name-$version-"*any.whl "$WHEELS/$name-$version-"*"_$(uname -m).whl"; do
    [ -f "$wheel" ] || continue
    printf '%s\n' "$wheel"
    exit 0
done
exit 1
