#!/bin/sh
# Build the image of a guest in a folder: vmlinuz, initrd.gz, root.squashfs, and lists of the packages in them.
#
#   image.sh FOLDER      run as root of new mount and PID namespaces (and a user namespace): they clean up when it ends
#
# SUITE is Debian's suite, MIRROR a mirror to use instead of mmdebstrap's, LOCK a file of `name version architecture`,
# PYTHON a Python with pip, SOURCES as in provision.sh. Output lines that begin with `testbed:` are for people.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$1
root=$work/root build=$work/build out=$work/out
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 SOURCES here

say() { echo "testbed: $*"; }
fail() { echo "testbed: fault: $*"; exit 1; }
section() { awk -v section="$1" '!/^#/ && $2 == section { print $1 }' "$here/packages.txt"; }
# shellcheck disable=SC2016
versions() { dpkg-query --admindir="$1/var/lib/dpkg" -W -f '${Package} ${Version} ${Architecture}\n' | sort; }

umask 022
mkdir -p "$out"

# Download the Python packages in parallel with Debian's. Only wheels with known sums: none of their code runs here.
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-input --root-user-action ignore --no-deps --no-compile \
    --target "$work/python" --python-version 3.14 --only-binary=:all: --require-hashes -r "$here/python.txt" \
    --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 >"$work/pip.log" 2>&1 &
pip=$!

sh "$here/provision.sh" sources

if [ -n "${LOCK:-}" ]; then
    say "the lock: checking that its versions are available"
    # shellcheck disable=SC2016
    mmdebstrap --quiet --mode=root --variant=custom --format=directory --setup-hook='sh "$here/provision.sh" apt_as_here "$1"' \
        --customize-hook='export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
            awk "!/^#/ { print \$1 }" "$LOCK" | sort -u | xargs apt-cache madison >"$1/had"' \
        "$SUITE" "$work/look" ${MIRROR:+"$MIRROR"}
    gone=$(awk 'NR == FNR { had[$1 " " $3]; next } !/^#/ && !(($1 " " $2) in had) { print $1 " " $2 }' "$work/look/had" "$LOCK")
    rm -rf "$work/look"
    [ -z "$gone" ] || { echo "$gone" | sed 's/^/testbed: gone: /'; exit 9; }
    awk '!/^#/ && NF { print "Package: " $1 "\nPin: version " $2 "\nPin-Priority: 1001\n" }' "$LOCK" >"$work/pins"
fi

say "packages from Debian $SUITE"
# shellcheck disable=SC2016
pins=$work/pins mmdebstrap --verbose --mode=root --variant=apt --format=directory \
    --include="$( (section lab; section guest) | paste -sd ,)" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt=force-unsafe-io \
    --setup-hook='sh "$here/provision.sh" apt_as_here "$1"' \
    --setup-hook='[ ! -e "$pins" ] || cp "$pins" "$1/etc/apt/preferences.d/lock"' \
    --skip=cleanup/apt/lists "$SUITE" "$root" ${MIRROR:+"$MIRROR"}
kernel=$(basename "$root"/usr/lib/modules/*)
SOURCE_DATE_EPOCH=$(stat -c %Y "$root/boot/vmlinuz-$kernel")
export SOURCE_DATE_EPOCH
versions "$root" >"$out/packages"
echo "$kernel" >"$out/kernel"

# The toolchain goes into a copy that is thrown away, so that the image has no part of it.
say "packages for building"
cp -a "$root" "$build"
cp /etc/resolv.conf "$build/etc/"
mkdir -p "$build/mnt/root" "$build/mnt/out" "$build/mnt/recipe" "$build/mnt/sources"
mount --bind "$root" "$build/mnt/root"
mount --bind "$out" "$build/mnt/out"
mount --bind "$here" "$build/mnt/recipe"
mount --bind "$SOURCES" "$build/mnt/sources"
mount --rbind /dev "$build/dev"
mount -t proc proc "$build/proc"
inside() { chroot "$build" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" SOURCES=/mnt/sources DESTDIR=/mnt/root KERNEL="$kernel" "$@"; }
# shellcheck disable=SC2046
inside apt-get -q install -y --no-install-recommends $(section build) $(section image) "linux-headers-$kernel"
versions "$build" | comm -13 "$out/packages" - >"$out/build-packages"
inside sh /mnt/recipe/provision.sh hostapd
inside sh /mnt/recipe/provision.sh amt

say "kernel modules"
modules=$root/usr/lib/modules/$kernel
grep -v '^#' "$here/modules.txt" | sed 's,^,^kernel/,' >"$work/patterns"
# A line of modules.dep is a module and its dependencies.
sed 's/:.*//' "$modules/modules.dep" | grep -E -f "$work/patterns" |
    awk 'NR == FNR { keep[$1]; next } { name = $1; sub(":$", "", name) } name in keep { sub(":", ""); for (i = 1; i <= NF; i++) print $i }' \
        - "$modules/modules.dep" | sort -u >"$work/kept"
find "$modules/kernel" -name '*.ko*' -printf 'kernel/%P\n' | sort | comm -23 - "$work/kept" | sed "s,^,$modules/," | xargs rm -f
# squashfs compresses the modules anyway, and uncompressed ones load faster. Not every host has unxz.
# shellcheck disable=SC2016
inside sh -c 'find "/mnt/root/usr/lib/modules/$KERNEL" -name "*.ko.xz" -print0 | xargs -0 -r -P "$(nproc)" -n 64 unxz'
# Debian's kernels do not require signatures, and an emulated processor takes some 50 ms to check one. strip(1) removes
# what follows an ELF file, and thereby the signature.
# shellcheck disable=SC2016
inside sh -c 'find "/mnt/root/usr/lib/modules/$KERNEL" -name "*.ko" -print0 | xargs -0 -r -P "$(nproc)" -n 64 strip --strip-debug'
find "$modules/kernel" -depth -type d -empty -delete
inside depmod -b /mnt/root "$kernel"

say "Python packages"
wait "$pip" || { tail -n 5 "$work/pip.log"; fail "pip could not install python.txt"; }
site=$root/usr/local/lib/python3.14/dist-packages
mkdir -p "$site"
rm -rf "$work/python/bin" "$work"/python/*.dist-info/RECORD # they name the interpreter of this build
cp -a "$work/python/." "$site/"
find "$site" -name tests -type d -prune -exec rm -rf {} +
mkdir -p "$root/dev/shm"
mount -t tmpfs shm "$root/dev/shm" # compileall's semaphores
# The image never changes, so imports need not compare time stamps.
inside chroot /mnt/root /usr/bin/python3 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /usr/lib/python3.14 \
    /usr/local/lib/python3.14
inside chroot /mnt/root /usr/bin/python3 -I -c 'import pydantic, yaml, typer, rich, pyroute2' ||
    fail "the guest's Python cannot import the packages of python.txt"

umount "$root/dev/shm"

say "removing what a guest does not need"
rm -rf "${root:?}"/boot/* "$root"/vmlinuz* "$root"/initrd* "$root"/var/cache/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
    "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/usr/share/info/* \
    "$root"/usr/lib/x86_64-linux-gnu/gconv "$root"/usr/lib/firmware/[!r]* "$root"/etc/ssh/ssh_host_* \
    "$root"/etc/apt/preferences.d/lock "$root"/etc/apt/apt.conf.d/99host "$root"/var/lib/dpkg/*-old "$root"/run/* "$root"/tmp/* "${root:?}"/dev/*
cp "$build/boot/vmlinuz-$kernel" "$out/vmlinuz"
: >"$root/etc/machine-id"
sed -i '/^root:/s,:[^:]*$,:/bin/sh,' "$root/etc/passwd" # the ssh server's shell: starts in half of bash's time
echo testbed >"$root/etc/hostname"
echo "127.0.0.1 localhost" >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
ram=$build/tmp/ram
mkdir -p "$ram/m" "$ram/proc" "$ram/sys" "$ram/dev" "$ram/lower" "$ram/rw" "$ram/root"
# Static: an emulated processor takes longer to link these programs than to run them.
compiled() { inside gcc -static -O2 -s -Wall -Wextra -Werror -Wl,--build-id=none -o "$2" "/mnt/recipe/$1"; }
compiled testbed-guest.c /tmp/ram/init
compiled testbed-call.c /mnt/root/usr/sbin/testbed-call
install -m 755 "$here/testbed-modules" "$root/usr/sbin/testbed-modules"
insertions() { inside modprobe -d /mnt/root -S "$kernel" --show-depends -a "$@" | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'; }
mkdir -p "$root/usr/lib/testbed"
cp "$here/testbed-warm" "$root/tmp/warm.py"
inside chroot /mnt/root /usr/bin/python3 -I -c 'import py_compile as c; c.compile("/tmp/warm.py", "/usr/lib/testbed/warm.pyc",
    "testbed-warm", True, invalidation_mode=c.PycInvalidationMode.UNCHECKED_HASH)'
rm "$root/tmp/warm.py"
insertions virtio_net 9p 9pnet_virtio | sed 's,^/mnt/root,,' >"$root/usr/lib/testbed/ready-modules"

say "initramfs"
insertions virtio_blk squashfs overlay |
    while read -r module; do
        cp "$root${module#/mnt/root}" "$ram/m/"
        echo "/m/$(basename "$module")"
    done >"$ram/m/order"
find "$ram" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
# shellcheck disable=SC2016
inside sh -c 'cd /tmp/ram && find . | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc | gzip -9n >/mnt/out/initrd.gz'

say "root file system"
# lz4 makes the image half as large again as zstd, but an emulated processor reaches the first command a second sooner.
inside env -u SOURCE_DATE_EPOCH mksquashfs /mnt/root /mnt/out/root.squashfs -noappend -comp lz4 -b 128K -no-xattrs -quiet -no-progress \
    -all-time "$SOURCE_DATE_EPOCH" -mkfs-time "$SOURCE_DATE_EPOCH"
say "done"
