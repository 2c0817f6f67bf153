# apt.sh - what the set-ups of the emulated machines share; sourced by each of them.

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        fail "no right to install packages here; run as root: $*"
    fi
}

refreshed=''
refresh() {
    [ -z "$refreshed" ] || return 0
    refreshed=yes
    say "==> refreshing the package lists (apt-get update)"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >/dev/null || say "    going on without"
}

install_packages() {
    [ $# -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "install what is missing, then try again (Debian: $*)"
    refresh
    say "==> installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null
}

# A directory that ends with the script, for what is not whole yet.
make_partial() {
    partial=$(mktemp -d "$1/partial-XXXXXX")
    trap 'rm -rf "$partial"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}
