#!/bin/sh
# What the emulated machine needs, on Debian 12 for x86-64: setup.sh
#   qemu        installed with apt-get where we may
#   the kernel  Debian's for clouds, downloaded and taken apart into .cache/machine/, never installed
# Says what it does; does nothing that is done already.
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
CACHE=$ROOT/.cache/machine
PATH=$PATH:/usr/sbin:/sbin
. "$ROOT/bench/machine/apt.sh"

install_tools() {
    packages=''
    command -v qemu-system-x86_64 >/dev/null || packages="$packages qemu-system-x86"
    command -v mke2fs >/dev/null || packages="$packages e2fsprogs"
    command -v setpriv >/dev/null || packages="$packages util-linux"
    # shellcheck disable=SC2086 # a list of words
    install_packages $packages
}

kernel_package() { # the package behind the name that always means the newest
    apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

get_kernel() {
    [ ! -s "$CACHE/vmlinuz" ] || return 0
    command -v apt-get >/dev/null || fail "no apt-get: put a kernel with NVMe and ext4 built in at $CACHE/vmlinuz"
    [ -n "$(kernel_package)" ] || refresh
    package=$(kernel_package)
    [ -n "$package" ] || fail "apt-get knows no linux-image-cloud-amd64: is this Debian for x86-64?"
    say "==> downloading $package (27 MB); its kernel goes to .cache/machine/, nothing is installed"
    mkdir -p "$CACHE"
    make_partial "$CACHE"
    # A list of last month names a file that is gone: refresh, once.
    (cd "$partial" && apt-get download -q "$package" >/dev/null 2>&1) || {
        refresh
        package=$(kernel_package)
        (cd "$partial" && apt-get download -q "$package" >/dev/null) || fail "could not download $package"
    }
    dpkg-deb --fsys-tarfile "$partial"/*.deb | tar -x -C "$partial" --wildcards './boot/vmlinuz-*' './boot/config-*'
    cp "$partial"/boot/config-* "$CACHE/config"
    printf '%s\n' "$package" >"$CACHE/package"
    mv "$partial"/boot/vmlinuz-* "$CACHE/vmlinuz" # last: it says that all is there
}

install_tools
get_kernel
kernel=$(cat "$CACHE/package" 2>/dev/null || echo "a kernel of your own")
say "machine: $(qemu-system-x86_64 --version | head -n 1), $kernel"
