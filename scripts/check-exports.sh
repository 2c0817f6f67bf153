#!/bin/sh
# Do the libraries export the functions of the public header, all of them, at their version, and nothing else?
# The adapter also exports, without a version, the engine functions that it stands in for and its own psi_llama_
# calls for the bindings. Run by ctest:
# check-exports.sh NM HEADER LIBPSICACHE LIBPSICACHE_LLAMA
set -eu
nm=$1 header=$2 core=$3 llama=$4
failed=0

wanted=$(sed -n '/^PSI_API/s/.*[ *]\(psi_[a-z0-9_]*\)(.*/\1@@PSICACHE_0.1/p' "$header" | sort)
exported() { "$nm" -D --defined-only "$1" | awk '$2 != "A" { print $3 }' | sort; }

compare() { # LIBRARY EXPORTED
    [ "$2" = "$wanted" ] && return 0
    failed=1
    printf '%s does not export what %s declares:\n' "$1" "$header"
    printf '%s\n' "$wanted" "$2" | sort | uniq -u | sed 's/^/  differs: /'
    printf 'a new function needs its line in src/psicache.map\n'
}

compare "$core" "$(exported "$core")"
compare "$llama" "$(exported "$llama" | grep '@@' || true)"
others=$(exported "$llama" | grep -v '@@' || true)
odd=$(printf '%s\n' "$others" | grep -vE '^(ggml|llama|psi_llama)_[a-z0-9_]+$' || true)
if [ -z "$others" ] || [ -n "$odd" ]; then
    failed=1
    printf '%s should export only ggml_, llama_ and psi_llama_ functions without a version; odd: %s\n' "$llama" "${odd:-none}"
fi
exit $failed
