#!/bin/sh
# Prepare a Debian machine for labs: packages, hostapd with IEEE 802.11be, amt.ko. The same recipe builds the image of
# the microVM's guest (image.sh), a Vagrant box and any Debian host.
#
#   provision.sh               run all steps below; exit with status 1 if one of them failed
#   provision.sh packages      install Debian's packages, but keep the services that some of them start disabled
#   provision.sh sources       download the pinned source tarballs into SOURCES
#   provision.sh hostapd       build hostapd with multi-link operation, unless the one in PATH supports it
#   provision.sh amt           build the amt driver, unless the kernel has it
#
# Needs root. Can be run again: it keeps what is already installed. SOURCES is the folder of the pinned tarballs,
# DESTDIR the root to install into, KERNEL the kernel that amt.ko is built for.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
SOURCES=${SOURCES:-/var/cache/testbed/sources}
DESTDIR=${DESTDIR:-}
KERNEL=${KERNEL:-$(uname -r)}
PATH=/usr/local/sbin:$PATH:/usr/sbin:/sbin
export DEBIAN_FRONTEND=noninteractive SOURCES

say() { echo "testbed: $*"; }
fail() { echo "testbed: fault: $*"; exit 1; }

# Print the packages of the given sections of packages.txt, one per line.
section() {
    for which in "$@"; do
        awk -v section="$which" '!/^#/ && $2 == section { print $1 }' "$here/packages.txt"
    done
}

# Install the packages that are missing; needs no network if none is.
install_packages() {
    missing=""
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
    done
    [ -z "$missing" ] && return
    [ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' 2>/dev/null | head -n 1)" ] || apt-get -q update
    # shellcheck disable=SC2086
    apt-get -q install -y --no-install-recommends $missing
}

step_packages() {
    say "packages for labs"
    had=" $(dpkg-query -W -f '${Package} ' 2>/dev/null)"
    # shellcheck disable=SC2046
    install_packages $(section lab)
    # Labs start their own daemons, each in its node. Services of daemons that were installed before stay as they were.
    for service in hostapd smcroute wpa_supplicant:wpasupplicant; do
        case $had in *" ${service#*:} "*) continue ;; esac
        [ ! -d /run/systemd/system ] || systemctl --quiet disable --now "${service%:*}" || true
    done
}

# Download one tarball of a suite's source package from the mirror that mmdebstrap uses for that suite. Only the pinned
# SHA-256 is trusted, so suites whose signing key this host lacks work too.
fetch() {
    export suite="$1" package="$2" file="$3" sum="$4" into="$5" script="$0"
    root=$(mktemp -d "$into/suite.XXXXXX")
    # shellcheck disable=SC2016
    mmdebstrap --quiet --mode=root --variant=custom --components=main --format=directory --skip=check/signed-by \
        --aptopt='Acquire::AllowInsecureRepositories "true"' --aptopt='APT::Get::AllowUnauthenticated "true"' \
        --setup-hook='sh "$script" apt_as_here "$1"; sed -i "s/^deb /deb-src /" "$1/etc/apt/sources.list"' \
        --customize-hook='sh "$script" download' "$suite" "$root/r" >"$root.log" 2>&1 && got=0 || got=$?
    rm -rf "$root"
    return "$got"
}

# Hook of mmdebstrap: give apt in the new root this host's settings for reaching mirrors (proxy, frozen mirrors).
apt_as_here() {
    apt-config dump Acquire | grep -E '^Acquire::(https?|Check-[A-Za-z-]*|Retries)(::| )' >"$1/etc/apt/apt.conf.d/99host" || true
}

# Hook of mmdebstrap: download the one file of the source package that `fetch` names in its variables.
download() {
    export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
    uri=$(apt-get source --print-uris "$package" 2>/dev/null | awk -v file="$file" '$2 == file { gsub("\047", "", $1); print $1 }')
    [ -n "$uri" ] || { echo "E: source package $package has no $file"; exit 1; }
    /usr/lib/apt/apt-helper download-file "$uri" "$into/$file.part" "SHA256:$sum"
}

# Make sure that SOURCES has each tarball with one of its pinned sums: download it from the first suite that has it.
step_sources() {
    say "sources"
    mkdir -p "$SOURCES"
    for name in $(awk '!/^#/ { print $1 }' "$here/sources.txt" | sort -u); do
        tried=""
        for sum in $(awk -v name="$name" '$1 == name { print $2 }' "$here/sources.txt"); do
            echo "$sum  $SOURCES/$name" | sha256sum --check --status 2>/dev/null && continue 2
        done
        # mmdebstrap finds the distribution of a suite, and thereby its mirror, in distro-info-data.
        command -v mmdebstrap >/dev/null && [ -e /usr/share/distro-info/ubuntu.csv ] ||
            install_packages mmdebstrap distro-info-data
        work=$(mktemp -d)
        awk -v name="$name" '$1 == name { print $2, $3, $4 }' "$here/sources.txt" >"$work/pins"
        while read -r sum package suites; do
            for suite in $(echo "$suites" | tr , ' '); do
                if fetch "$suite" "$package" "$name" "$sum" "$work" </dev/null &&
                    echo "$sum  $work/$name.part" | sha256sum --check --status; then
                    mv "$work/$name.part" "$SOURCES/$name"
                    rm -rf "$work"
                    continue 3
                fi
                why=$(cat "$work"/suite.*.log 2>/dev/null | grep '^E: ' | head -n 1)
                rm -f "$work"/suite.*.log
                tried="$tried; $suite: ${why:-mmdebstrap failed}"
            done
        done <"$work/pins"
        rm -rf "$work"
        fail "cannot download source $name$tried. Put a file with one of the sums of sources.txt at $SOURCES/$name"
    done
}

# Print a new folder to build in. Its path goes into a program's build ID: a fixed path makes builds reproducible.
workshop() {
    rm -rf /usr/src/testbed-build
    mkdir -p /usr/src/testbed-build
    echo /usr/src/testbed-build
}

step_hostapd() {
    program=$(command -v hostapd || true)
    if [ -n "$program" ] && grep -qa mld_ap "$program"; then
        say "hostapd: $program supports mld_ap"
        return
    fi
    step_sources
    say "hostapd with IEEE 802.11be"
    # shellcheck disable=SC2046
    install_packages $(section build)
    work=$(workshop)
    tar xf "$SOURCES"/wpa_*.orig.tar.* -C "$work" --strip-components 1
    for change in "$here"/hostapd-*.patch; do
        patch -s -d "$work" -p 1 <"$change" || fail "$change does not apply"
    done
    # The patches have no lines of context, so patch(1) would apply them to another release as well.
    (cd "$work" && sha256sum --check --quiet "$here/hostapd.sha256") || fail "hostapd's patched sources are not the expected ones"
    cp "$here/hostapd.config" "$work/hostapd/.config"
    make -C "$work/hostapd" -j "$(nproc)" hostapd hostapd_cli >"$work/log" 2>&1 || { tail -n 20 "$work/log"; fail "hostapd failed to build"; }
    install -D -s -t "$DESTDIR/usr/local/sbin" "$work/hostapd/hostapd" "$work/hostapd/hostapd_cli"
    grep -qa mld_ap "$DESTDIR/usr/local/sbin/hostapd" || fail "the new hostapd does not support mld_ap"
    rm -rf "$work"
}

# Debian's kernels are built without the amt driver (CONFIG_AMT is not set). It is a single file: build it against the
# kernel's headers, from the source package of exactly that kernel.
step_amt() {
    command -v modinfo >/dev/null || install_packages kmod
    if modinfo -k "$KERNEL" amt >/dev/null 2>&1; then
        say "amt: kernel $KERNEL has it"
        return
    fi
    say "amt.ko for kernel $KERNEL"
    # shellcheck disable=SC2046
    install_packages $(section build) "linux-headers-$KERNEL"
    version=$(echo "$KERNEL" | sed 's/^\([0-9]*\.[0-9]*\).*/\1/')
    work=$(workshop)
    exact=$(dpkg-query -W -f '${Version}' "linux-headers-$KERNEL")
    for package in "linux-source-$version=$exact" "linux-source-$version"; do
        (cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$package") && break
    done
    ls "$work"/linux-source-*.deb >/dev/null 2>&1 || fail "cannot download package linux-source-$version"
    dpkg-deb --fsys-tarfile "$work"/linux-source-*.deb | tar xOf - --wildcards '*.tar.xz' |
        tar xJf - -C "$work" --strip-components 1 "linux-source-$version/drivers/net/amt.c"
    mkdir "$work/amt"
    mv "$work/drivers/net/amt.c" "$work/amt/"
    echo 'obj-m += amt.o' >"$work/amt/Makefile"
    make -C "/lib/modules/$KERNEL/build" M="$work/amt" modules >"$work/log" 2>&1 || { tail -n 20 "$work/log"; fail "amt.ko failed to build"; }
    strip -g "$work/amt/amt.ko"
    install -D -m 644 -t "$DESTDIR/lib/modules/$KERNEL/updates" "$work/amt/amt.ko"
    depmod -b "${DESTDIR:-/}" "$KERNEL"
    rm -rf "$work"
}

case ${1:-} in
    packages | sources | hostapd | amt) "step_$1" ;;
    apt_as_here | download) "$@" ;;
    "")
        failed=""
        for step in packages hostapd amt; do
            sh "$0" "$step" || failed="$failed $step" # its own process: `set -e` has no effect left of ||
        done
        [ -z "$failed" ] || fail "these steps failed:$failed (\`testbed doctor\` lists the features that are missing)"
        ;;
    *) fail "unknown step $1" ;;
esac
