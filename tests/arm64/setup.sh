#!/bin/sh
# What the emulated Arm machine needs, on Debian for x86-64: setup.sh 16k|4k
#   compiler, qemu   installed with apt-get where we may
#   the rest         Debian's packages for arm64: the kernel with pages of this size, cmocka, busybox, and mke2fs, which
#                    a test wants. Downloaded and taken apart into .cache/machine-arm64/, never installed; apt looks
#                    for them with lists and settings of its own there, so the machine's sources stay as they are
# Says what it does; does nothing that is done already.
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
CACHE=$ROOT/.cache/machine-arm64
PATH=$PATH:/usr/sbin:/sbin
. "$ROOT/bench/machine/apt.sh"
pages=${1:-16k}
case $pages in
    16k) kernel=linux-image-arm64-16k ;;
    4k) kernel=linux-image-arm64 ;;
    *) fail "pages of $pages: there are 16k and 4k" ;;
esac

install_tools() {
    packages=''
    command -v aarch64-linux-gnu-gcc >/dev/null || packages="$packages gcc-aarch64-linux-gnu"
    [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || packages="$packages libc6-dev-arm64-cross"
    command -v qemu-system-aarch64 >/dev/null || packages="$packages qemu-system-arm"
    command -v mke2fs >/dev/null || packages="$packages e2fsprogs"
    command -v setpriv >/dev/null || packages="$packages util-linux"
    command -v cmake >/dev/null || packages="$packages cmake"
    command -v ninja >/dev/null || packages="$packages ninja-build"
    command -v python3 >/dev/null || packages="$packages python3"
    # shellcheck disable=SC2086 # a list of words
    install_packages $packages
}

# Debian 12 and its backports for arm64, whatever this machine is: from the mirror that it uses, if it says one.
own_apt() {
    mkdir -p "$CACHE/apt/lists/partial" "$CACHE/apt/cache/archives/partial"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 2>/dev/null | grep -v security | head -n 1)
    signed='[arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    for suite in bookworm bookworm-backports; do
        printf 'deb %s %s %s main\n' "$signed" "${mirror:-http://deb.debian.org/debian/}" "$suite"
    done >"$CACHE/apt/sources.list"
    cat >"$CACHE/apt/apt.conf" <<END
Dir::Etc::sourcelist "$CACHE/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$CACHE/apt";
Dir::State::status "/dev/null";
Dir::Cache "$CACHE/apt/cache";
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Default-Release "bookworm-backports";
APT::Sandbox::User "root";
Acquire::Languages "none";
END
    export APT_CONFIG="$CACHE/apt/apt.conf"
    say "==> reading Debian's package lists for arm64 into .cache/machine-arm64/ (9 MB)"
    apt-get update -q >/dev/null || fail "no package lists: is the network there?"
}

# unpack PACKAGE PATTERN...: those files of a package, into $partial
unpack() {
    package=$1
    shift
    (cd "$partial" && apt-get download -q "$package" >/dev/null) || fail "could not download $package"
    dpkg-deb --fsys-tarfile "$partial/$package"_*.deb | tar -x -C "$partial" --wildcards "$@"
}

get_system() {
    [ ! -d "$CACHE/system" ] || return 0
    say "==> downloading cmocka, busybox and mke2fs for arm64 (2 MB)"
    mkdir -p "$partial/system/lib"
    unpack libcmocka-dev './usr/include/*'
    unpack busybox-static './bin/busybox'
    unpack e2fsprogs './sbin/mke2fs'
    for package in libcmocka0 libext2fs2 libcom-err2 libblkid1 libuuid1; do
        unpack "$package" '*/aarch64-linux-gnu/*.so.*'
    done
    cp "$partial"/usr/include/cmocka*.h "$partial/bin/busybox" "$partial/sbin/mke2fs" "$partial/system"
    # By the names that programs look for.
    find "$partial/lib" "$partial/usr/lib" -name '*.so.[0-9]' -exec cp {} "$partial/system/lib" \;
    rm -rf "$partial/lib"
    mv "$partial/system" "$CACHE/system"
}

get_kernel() {
    [ ! -d "$CACHE/$pages" ] || return 0
    # The package behind the name that always means the newest.
    newest=$(apt-cache depends "$kernel" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$newest" ] || fail "Debian's lists know no $kernel"
    say "==> downloading $newest (90 MB); its kernel and modules go to .cache/machine-arm64/, nothing is installed"
    mkdir "$partial/$pages"
    unpack "$newest" './boot/vmlinuz-*' './boot/config-*' '*/virtio_blk.ko*' '*/loop.ko*' '*/ext4.ko*' '*/jbd2.ko*' \
        '*/mbcache.ko*' '*/crc16.ko*' '*/crc32c_generic.ko*'
    find "$partial/lib" -name '*.ko*' -exec cp {} "$partial/$pages" \;
    cp "$partial"/boot/vmlinuz-* "$partial/$pages/vmlinuz"
    cp "$partial"/boot/config-* "$partial/$pages/config"
    printf '%s\n' "$newest" >"$partial/$pages/package"
    mv "$partial/$pages" "$CACHE/$pages"
}

install_tools
if [ ! -d "$CACHE/system" ] || [ ! -d "$CACHE/$pages" ]; then
    mkdir -p "$CACHE"
    make_partial "$CACHE"
    own_apt
    get_system
    get_kernel
fi
say "machine: $(qemu-system-aarch64 --version | head -n 1), $(cat "$CACHE/$pages/package")"
