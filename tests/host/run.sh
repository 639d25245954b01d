#!/bin/bash
# run.sh FLAVOUR COMMAND [ARGUMENT...]: boots the host that build.sh made, runs the command in it as
# root, in this directory and with this tree and its target/ at the same paths (read-only; /share is
# a directory for results, kept as target/host/FLAVOUR/share), and ends with its exit status.  The
# machine's disk is thrown away.  Variables for the command: run.sh FLAVOUR env NAME=VALUE COMMAND.
#
#   LIMIT=1800     seconds until it is ended by force
#   SHARE=DIR      what /share is instead, for whoever works with the host while it runs
#   HOST_OPTIONS   more options for the machine's QEMU
set -euo pipefail
flavour=${1:?which flavour}
shift
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
built=$target/host/$flavour
[ -s "$built/stamp" ] || { echo "host: $flavour: run tests/host/build.sh $flavour first" >&2; exit 1; }

run=$(mktemp -d "$built/run.XXXXXX")
qemu=
finish() {
    [ -z "$qemu" ] || kill -KILL "$qemu" 2>/dev/null || true
    rm -rf "$run"
}
trap finish EXIT
trap 'exit 130' INT TERM
share=${SHARE:-$run/share}
mkdir -p "$share"
rm -f "$share/status"
{
    printf 'cd %q\n' "$PWD"
    printf '%q ' "$@"
    echo
} > "$share/command"
echo "tree $root" > "$share/places"
shares=(-virtfs "local,path=$root,mount_tag=tree,security_model=none,readonly=on,multidevs=remap")
case $target in
    "$root"/*) ;;
    *)
        echo "built $target" >> "$share/places"
        shares+=(-virtfs "local,path=$target,mount_tag=built,security_model=none,readonly=on,multidevs=remap")
        ;;
esac

# What a flavour changes.
memory=2048
machine=(-accel tcg,thread=multi -machine q35 -cpu max -smp 2)
append=
kernel=(-kernel "$built/vmlinuz" -initrd "$built/initrd.gz")
# shellcheck source=/dev/null
. "$here/$flavour/boot"
[ "${#append}" = 0 ] || kernel+=(-append "console=ttyS0 ${VERBOSE:-quiet} panic=-1 $append")

: > "$run/output"
qemu-img create -q -f qcow2 -F raw -b "$built/root.img" "$run/disk.qcow2"
# shellcheck disable=SC2086
qemu-system-x86_64 "${machine[@]}" -m "$memory" -no-reboot -nodefaults -display none "${kernel[@]}" \
    -drive "file=$run/disk.qcow2,if=virtio,format=qcow2,cache=unsafe" -device virtio-rng-pci \
    -chardev "file,id=console,path=$run/console" -serial chardev:console \
    -device virtio-serial-pci -chardev "file,id=output,path=$run/output" \
    -device virtserialport,chardev=output,name=output,nr=1 \
    -virtfs "local,path=$share,mount_tag=run,security_model=none" "${shares[@]}" \
    ${HOST_OPTIONS:-} < /dev/null &
qemu=$!
# The output as it comes, until QEMU has ended.
timeout "${LIMIT:-1800}" tail -f -s 0.2 -n +1 --pid="$qemu" "$run/output" || {
    echo "host: $flavour: not done after ${LIMIT:-1800} s" >&2
    kill -KILL "$qemu"
}
wait "$qemu" || true
qemu=
status=$(cat "$share/status" 2>/dev/null) || true
if [ -z "${SHARE:-}" ]; then
    rm -rf "$built/share"
    mv "$share" "$built/share"
fi
mv -f "$run/console" "$built/console"
if [ -z "$status" ]; then
    echo "host: $flavour: ended before the command did; its console ($built/console):" >&2
    tail -n 40 "$built/console" >&2
    exit 125
fi
exit "$status"
