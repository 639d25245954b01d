#!/bin/bash
# Unpacks packages that the tests use beside the installed ones; nothing here is installed, and
# no root is needed.
#
#   target/sets/oracle   libvirtd of the installed libvirt's version: scenarios run against it too,
#                        and it writes the memory images that virtsnapd must be able to load
#   target/sets/other    QEMU and libvirt clients of the other supported version: 7.2 and 9.0
#                        (bookworm) where 10.0 and 11.3 are installed, and the other way round
#   target/sets/agent    the agent that tests/agent-guest puts into its guest
#   target/sets/dbus     libvirt-dbus, through which cockpit talks, a bus for it, and a client
#
# Each set has root/ (the packages' files) and bin/ (wrappers that find libraries, modules and
# firmware in root/).  Where a suite cannot be reached, this says so, and fails when CI is set.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
private=$target/apt
triplet=x86_64-linux-gnu

say() { echo "sets: $*"; }
. "$root/tests/setup/apt.sh"

# These must have the set's own version; what else is needed is fetched only where it is missing.
of_the_set='^(qemu|libvirt|seabios|ipxe)'

# unpack NAME SUITE PACKAGE[=VERSION]...
unpack() {
    local name=$1 suite=$2 set=$target/sets/$1 closure wanted=
    shift 2
    if [ "$(cat "$set/stamp" 2>/dev/null)" = "$suite $*" ]; then
        say "$name: up to date"
        return 0
    fi
    say "$name: fetching $* from $suite (unpacked under target/, not installed)"
    prepare_apt "$suite" || return 1
    closure=$(private_apt apt-get -s -t "$suite" install "$@" |
        sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1 \2/p') || return 1
    while read -r package version; do
        installed=$(version_of "$package") || installed=
        if [[ " $* " =~ " $package"[=\ ] || -z $installed ]] ||
            [[ $package =~ $of_the_set && $installed != "$version" ]]; then
            wanted="$wanted $package=$version"
        fi
    done <<< "$closure"
    rm -rf "$set"
    mkdir -p "$set/debs" "$set/root" "$set/bin"
    # shellcheck disable=SC2086
    (cd "$set/debs" && private_apt apt-get -qq download $wanted) || return 1
    for deb in "$set"/debs/*.deb; do dpkg-deb -x "$deb" "$set/root"; done
    rm -rf "$set/debs"
    wrappers "$set"
    echo "$suite $*" > "$set/stamp"
}

# A wrapper execs, so that the process is the real program and no shell stays between.
wrappers() {
    local set=$1 tool extra
    for tool in usr/bin/{qemu-system-x86_64,qemu-img,qemu-io,virsh,dbus-daemon} \
        usr/sbin/{libvirtd,libvirt-dbus}; do
        [ -x "$set/root/$tool" ] || continue
        extra=
        case $tool in
            *qemu-system*) extra=" -L '$set/root/usr/share/seabios' -L '$set/root/usr/share/qemu'" ;;
        esac
        cat > "$set/bin/${tool##*/}" <<WRAPPER
#!/bin/sh
export LD_LIBRARY_PATH='$set/root/usr/lib/$triplet:$set/root/lib/$triplet:$set/root/usr/lib/$triplet/pulseaudio'
export QEMU_MODULE_DIR='$set/root/usr/lib/$triplet/qemu'
exec '$set/root/$tool'$extra "\$@"
WRAPPER
        chmod 755 "$set/bin/${tool##*/}"
    done
}

skip() {
    say "SKIPPED: $*"
    [ -z "${CI:-}" ] || { say "a skip is a failure here, because CI is set"; exit 1; }
}

mkdir -p "$target/sets"
exec 9> "$target/sets/.lock"
flock 9

here=$(suite_of_libvirt)
libvirt=$(version_of libvirt-clients)
unpack oracle "$here" "libvirt-daemon=$libvirt" "libvirt-daemon-driver-qemu=$libvirt" ||
    skip "no libvirtd $libvirt to compare with"

case $(version_of qemu-system-x86) in
    *:7.*) other=bookworm-backports ;;
    *) other=bookworm ;;
esac
unpack other "$other" qemu-system-x86 qemu-utils libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu ||
    skip "QEMU and libvirt clients of $other cannot be fetched"
unpack agent "$here" qemu-guest-agent || skip "no guest agent to put into a guest"
unpack dbus "$here" libvirt-dbus dbus-daemon python3-jeepney ||
    skip "no libvirt-dbus for what cockpit asks"
say "done"
