#!/bin/bash
# Installs what building, the demo and the tests need, on Debian 12 and 13.
#
#   SETUP=yes   (default) say what and why, then install it, as root or through sudo
#   SETUP=ask   say it, then ask
#   SETUP=no    only say it; exit status 1 when something is missing
#
# Never waits for an answer where there is no terminal.  Nothing is installed when nothing is
# missing, and then nothing is said but one line.
set -euo pipefail

# One a line: package, then what for.  qemu-* and libvirt-* have to come from one suite.
needed() {
    cat <<LIST
qemu-system-x86 runs the guests
qemu-utils qemu-img: makes, reads and checks disk images
libvirt-clients virsh, the client that the demo and the tests drive
libvirt-dev what the Rust client of the tests links with
gcc linker, and compiler of the test guest's worker
libc6-dev its static C library
g++ builds libFuzzer, which drives the fuzz targets
pkg-config finds libvirt-dev
libxml2-dev libxml2: the daemon validates snapshot XML with it
cpio packs the test guest's initramfs
busybox-static is the test guest's user space
python3-libvirt the second client of the tests
ovmf UEFI firmware
swtpm TPM emulator
strace the tests watch what is synced, and when
LIST
    # Split off from qemu-system-x86 in newer suites only.
    if candidate qemu-system-modules-spice; then
        echo "qemu-system-modules-spice SPICE displays"
    fi
}

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# A package that a configured suite offers, or that is there already.
candidate() {
    installed "$1" && return
    local found
    found=$(LC_ALL=C apt-cache policy "$1" 2>/dev/null | awk '/Candidate:/ { print $2 }')
    [ -n "$found" ] && [ "$found" != "(none)" ]
}

cargo_good_enough() {
    local root want have
    root=$(cd "$(dirname "$0")/../.." && pwd)
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    have=$(cargo --version 2>/dev/null | awk '{ print $2 }') || true
    [ -n "$have" ] && [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] && return
    fail "this needs cargo $want or newer (found: ${have:-none}); install it with rustup: https://rustup.rs"
}

# The backports suite, only where the installed qemu-utils came from it: there the plain suite's
# QEMU cannot be installed beside it.
backports_suite() {
    local version
    version=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null) || return 0
    case $version in
        *~bpo*) (. /etc/os-release && echo "${VERSION_CODENAME:?}-backports") ;;
    esac
}

# Every mirror that apt is configured with, with its suite: deb822 and one-line files alike.
configured() {
    apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
        sort -u
}

[ -f /etc/debian_version ] || fail "this is not Debian; install by hand: $(suite='' needed | cut -d' ' -f1 | tr '\n' ' ')"
cargo_good_enough

suite=$(backports_suite)
find_missing() {
    missing=()
    while read -r package why; do
        installed "$package" || missing+=("$package"$'\t'"$why")
    done < <(needed)
    names=$(printf '%s\n' "${missing[@]}" | cut -f 1)
    same_suite=$(grep -E '^(qemu|libvirt)-' <<< "$names" | tr '\n' ' ' || true)
    others=$(grep -vE '^(qemu|libvirt)-' <<< "$names" | tr '\n' ' ' || true)
}
find_missing
if [ ${#missing[@]} = 0 ]; then
    say "everything is installed"
    exit 0
fi

source_file=
if [ -n "$suite" ] && ! configured | grep -q " $suite\$"; then
    codename=${suite%-backports}
    mirror=$(configured | awk -v suite="$codename" '$2 == suite { print $1; exit }')
    [ -n "$mirror" ] || fail "no mirror of $codename is configured; add the suite $suite by hand"
    source_file=/etc/apt/sources.list.d/virtsnap-backports.sources
fi

say "missing:"
printf '%s\n' "${missing[@]}" | awk -F '\t' '{ printf "    %-28s %s\n", $1, $2 }'
if [ -n "$suite" ]; then
    say "QEMU and libvirt from $suite, because the installed qemu-utils came from there"
fi
if [ -n "$source_file" ]; then
    say "this machine's apt does not have that suite: $source_file will add it ($mirror)"
fi

by_hand() {
    [ -z "$source_file" ] || echo "    echo 'deb $mirror $suite main' > ${source_file%.sources}.list"
    echo "    apt-get update"
    [ -z "$same_suite" ] || echo "    apt-get install --no-install-recommends ${suite:+-t $suite }$same_suite"
    [ -z "$others" ] || echo "    apt-get install --no-install-recommends $others"
}

case ${SETUP:-yes} in
    no)
        say "SETUP=no: nothing was done; as root:"
        by_hand
        exit 1
        ;;
    ask)
        if [ ! -t 0 ]; then
            by_hand
            fail "SETUP=ask, but there is no terminal to ask on; the above, as root, does it"
        fi
        read -r -p "setup: install these now? [y/N] " answer
        case $answer in [yY]*) ;; *) fail "nothing was done" ;; esac
        ;;
    yes) ;;
    *) fail "SETUP is yes, ask or no, not '$SETUP'" ;;
esac

as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo > /dev/null; then
        by_hand
        fail "not root, and there is no sudo: run the above as root, then again what you ran"
    fi
    as_root=(sudo)
    # sudo may ask for a password only where somebody can type it.
    [ -t 0 ] || as_root=(sudo -n)
    if ! "${as_root[@]}" true; then
        by_hand
        fail "sudo refuses: run the above as root, then again what you ran"
    fi
fi

if [ -n "$source_file" ]; then
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    {
        echo "# Added by virtsnap's make setup: qemu-utils on this machine came from here."
        echo "Types: deb"
        echo "URIs: $mirror"
        echo "Suites: $suite"
        echo "Components: main"
        [ ! -e $key ] || echo "Signed-By: $key"
    } | "${as_root[@]}" tee "$source_file" > /dev/null
fi

apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends "$@"; }
say "apt-get update"
apt update
# The fresh lists know which of the packages exist here.
find_missing
if [ -n "$same_suite" ]; then
    say "apt-get install${suite:+ -t $suite} $same_suite"
    # shellcheck disable=SC2086
    apt install ${suite:+-t "$suite"} $same_suite
fi
if [ -n "$others" ]; then
    say "apt-get install $others"
    # shellcheck disable=SC2086
    apt install $others
fi
say "done: everything is installed"
