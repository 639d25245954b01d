#!/bin/bash
# The demo: a private virtsnapd, a real guest, and unmodified virsh.
#
# Everything lives in one private directory and is gone afterwards, however this ends; nothing is
# written to /etc, /run or /var/lib.  KEEP=1 leaves daemon and guest running, to try things.
# DEMO_DAEMON=libvirtd holds the same session with libvirt's own daemon (root, after make sets).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
started=$SECONDS

dir=$(mktemp -d /tmp/virtsnap-demo.XXXXXX)
chmod 755 "$dir"
console=$dir/demo.console
done_well=

# --- an end that leaves nothing behind ---------------------------------------------------------

# The janitor ends whatever names our directory as soon as this script is gone, killed or not:
# it waits for the end of a pipe that only we hold open.
mkfifo "$dir/alive"
setsid "$root/tests/setup/janitor.sh" "$dir" < "$dir/alive" &
janitor=$!
exec 9> "$dir/alive"

finish() {
    local status=$?
    trap - EXIT INT TERM HUP
    [ -n "$done_well" ] || [ $status = 130 ] || tail -n 15 "$dir/daemon.log" 2>/dev/null | sed 's/^/  daemon| /' || true
    if [ -n "$done_well" ] && [ -n "${KEEP:-}" ] && [ "${KEEP}" != 0 ]; then
        kill "$janitor" 2>/dev/null || true
        keep_hint
    else
        exec 9>&-
        wait "$janitor" 2>/dev/null || true
        [ -z "$done_well" ] || gone_hint
    fi
    if [ -n "$done_well" ]; then
        say "demo: success after $((SECONDS - started)) s"
    elif [ $status = 130 ]; then
        say "demo: interrupted after $((SECONDS - started)) s (nothing was left behind)"
    else
        [ $status != 0 ] || status=1
        say "demo: FAILED after $((SECONDS - started)) s (nothing was left behind)"
    fi
    exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

keep_hint() {
    say "Kept (KEEP=1): daemon and guest go on. Try:"
    say "    $(quoted) list --all"
    say "    $(quoted) snapshot-list demo --tree"
    say "    $(quoted) console demo        # leave it with Ctrl-]"
    say "End all of it with:"
    say "    $root/tests/setup/janitor.sh $dir < /dev/null"
}

gone_hint() {
    say "Daemon, guest and $dir are gone again. To play with them yourself: KEEP=1 make demo,"
    say "then for instance"
    say "    $(quoted | sed "s,${dir#/tmp/},virtsnap-demo.…,") snapshot-list demo --tree"
}

# --- showing -----------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }
title() { printf '\n== %s\n' "$*"; }
ok() { printf '   ok: %s\n' "$*"; }
fail() { printf '   FAILED: %s\n' "$*"; exit 1; }
quoted() { printf "virsh -c '%s'" "$uri"; }

# Shows a command of virsh as one would type it, runs it, shows what it said.
virsh_() {
    printf '$ virsh %s\n' "$*"
    LC_ALL=C virsh -c "$uri" "$@" 2>&1 9>&- | { grep -v '^ *$' || true; } | sed 's/^/  /'
}
# The same without showing it.
quietly() { LC_ALL=C virsh -c "$uri" "$@" 9>&-; }
shown() {
    printf '$ %s\n' "$*"
    "$@" 9>&- | sed 's/^/  /'
}

# --- the guest's console ------------------------------------------------------------------------

mark=0
# From here on, only what the guest says later counts.
look_from_now() { mark=$(stat -c %s "$console" 2>/dev/null || echo 0); }
said() { tail -c "+$((mark + 1))" "$console" 2>/dev/null | tr -d '\r'; }
# Waits until lines with PATTERN came COUNT times; shows what the guest said meanwhile.
guest_says() {
    local pattern=$1 count=${2:-1} tries=0 lines
    until lines=$(said) && [ "$(grep -cE "$pattern" <<< "$lines")" -ge "$count" ]; do
        tries=$((tries + 1))
        [ $tries -lt 1200 ] || fail "the guest does not say '$pattern'; it said: $lines"
        sleep 0.1
    done
    lines=$(grep -E '^(START|MATCH|MISMATCH|LIED)' <<< "$lines" | awk -v p="$pattern" -v c="$count" \
        '{ print } $0 ~ p && ++n == c { exit }')
    sed 's/^/  guest| /' <<< "$lines"
    last=$(tail -n 1 <<< "$lines" | awk '{ print $2 }')
    heard=$lines
}

# The number in the image, read from the host (this dd counts the skipped blocks as well).
number_on_disk() {
    qemu-img dd -U -f qcow2 -O raw bs=4096 skip=256 count=257 "if=$1" "of=$dir/sector" 9>&-
    tr -d '\0' < "$dir/sector" | awk '/^virtsnap counter/ { print $3 }'
}
disk_now() { quietly domblklist demo | awk '$1 == "vda" { print $2 }'; }

# --- daemon and guest -----------------------------------------------------------------------------

start_daemon() {
    mode=system
    [ "$(id -u)" = 0 ] || mode=session
    if [ "${DEMO_DAEMON:-virtsnapd}" = libvirtd ]; then
        . "$root/tests/demo/libvirtd.sh"
        return
    fi
    uri="qemu:///$mode?socket=$dir/run/virtsnap-sock"
    cat > "$dir/virtsnapd.toml" <<CONFIG
run_dir = "$dir/run"
state_dir = "$dir/lib"
log = "info"
CONFIG
    say "\$ virtsnapd --config $dir/virtsnapd.toml &"
    # In session mode the daemon asks where a user's things are; here, they are here.
    XDG_RUNTIME_DIR=$dir XDG_CONFIG_HOME=$dir XDG_DATA_HOME=$dir XDG_STATE_HOME=$dir \
        XDG_CACHE_HOME=$dir "$target/debug/virtsnapd" --config "$dir/virtsnapd.toml" \
        > "$dir/daemon.log" 2>&1 < /dev/null 9>&- &
    daemon=$!
    local tries=0
    until quietly version > /dev/null 2>&1; do
        kill -0 "$daemon" 2>/dev/null || fail "the daemon ended"
        tries=$((tries + 1))
        [ $tries -lt 300 ] || fail "the daemon does not answer"
        sleep 0.1
    done
}

write_xml() {
    cat > "$dir/demo.xml" <<XML
<domain type='qemu'>
  <name>demo</name>
  <memory unit='MiB'>96</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>$target/guest/vmlinuz</kernel>
    <initrd>$target/guest/initrd.gz</initrd>
    <cmdline>console=ttyS0 quiet</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='$dir/demo.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='pty'><log file='$console' append='on'/><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
XML
}

# --- the session ------------------------------------------------------------------------------

say "virtsnap demo: a daemon of its own, a real guest under QEMU, and this machine's virsh."
say "Private directory: $dir"
title "1. A daemon and a guest"
start_daemon
say "   'virsh' below is: $(quoted)"
virsh_ version
qemu-img create -q -f qcow2 "$dir/demo.qcow2" 64M
write_xml
virsh_ define "$dir/demo.xml"
virsh_ start demo
say "   Once a second the guest reads its number back from its disk, past every cache, and compares"
say "   it with what its memory says it wrote: MATCH n. Then it writes the next."
guest_says '^MATCH' 4

title "2. A snapshot of the disk only: an overlay"
virsh_ suspend demo
virsh_ snapshot-create-as demo disk --disk-only --atomic
base=$(number_on_disk "$dir/demo.qcow2")
virsh_ resume demo
virsh_ domblklist demo
overlay=$(disk_now)
[ "$overlay" != "$dir/demo.qcow2" ] || fail "the guest still writes to the old file"
look_from_now
guest_says '^MATCH' 4
[ "$(number_on_disk "$dir/demo.qcow2")" = "$base" ] || fail "the old file still changes"
ok "the old file stays at $base while the guest counts on to $last in the overlay"
printf '$ qemu-img info --backing-chain %s\n' "$overlay"
qemu-img info -U --backing-chain "$overlay" 9>&- | grep -E '^(image|file format|backing file):' | sed 's/^/  /'

title "3. A snapshot of memory and disk, inside the qcow2"
virsh_ snapshot-create-as demo whole
look_from_now
guest_says '^MATCH'
whole=$last
say "   The guest runs on; the snapshot holds it at about $whole."
look_from_now
guest_says '^MATCH' 5
late=$last
shown qemu-img snapshot -U -l "$overlay"
virsh_ snapshot-list demo
virsh_ snapshot-list demo --tree
virsh_ snapshot-current demo --name

title "4. Back to it, from $late"
virsh_ snapshot-revert demo whole
look_from_now
guest_says '^MATCH' 3
! grep -q START <<< "$heard" || fail "the guest booted; it should have gone on"
first=$(awk '/^MATCH/ { print $2; exit }' <<< "$heard")
[ "$first" -le $((whole + 1)) ] || fail "the guest still counts from $first"
! grep -q MISMATCH "$console" || fail "memory and disk are of different moments"
ok "memory went back: it counts from $first again, not from $late, and it did not boot (no START)"
ok "the disk went back with it: MATCH compares the two"
virsh_ suspend demo
before=$(number_on_disk "$(disk_now)")
[ "$before" -lt "$late" ] || fail "the image says $before"
ok "the host reads $before from the image itself, past the guest"
virsh_ resume demo

title "5. Would it notice? The negative control"
terminal=$(quietly ttyconsole demo)
say "   A command on the guest's console writes a wrong number to its disk, not to its memory:"
look_from_now
exec 8<> "$terminal"
printf 'lie\n' >&8
guest_says '^MISMATCH'
exec 8>&-
ok "MISMATCH is really detected when memory and disk disagree"

title "6. Deleting the one with memory; the guest does not stop for it"
look_from_now
virsh_ snapshot-delete demo whole
guest_says '^MATCH' 2
[ -z "$(qemu-img snapshot -U -l "$(disk_now)")" ] || fail "the image still holds it"
ok "no internal snapshot is left in the image"

title "7. Back to the disk of the first snapshot: it has no memory, so the guest boots"
look_from_now
virsh_ snapshot-revert demo disk --running
guest_says '^MATCH' 2
found=$(awk '/^START/ { print $2; exit }' <<< "$heard")
[ "$found" = "$base" ] || fail "it found '$found' on its disk, not $base"
ok "START $found: exactly what the disk held when that snapshot was taken"

title "8. Deleting that one too: its overlays are merged under the running guest"
virsh_ snapshot-delete demo disk
look_from_now
guest_says '^MATCH' 2
[ -z "$(quietly snapshot-list demo --name | tr -d '[:space:]')" ] || fail "a snapshot is still listed"
virsh_ domblklist demo
if [ -n "${KEEP:-}" ] && [ "${KEEP}" != 0 ]; then
    virsh_ snapshot-create-as demo kept
else
    image=$(disk_now)
    virsh_ destroy demo
    shown qemu-img check "$image"
    [ "$(number_on_disk "$image")" -ge "$last" ] || fail "the image lost what the guest wrote"
    ok "the image is consistent and holds the guest's last number ($(number_on_disk "$image"))"
    virsh_ undefine demo
fi
printf '\n'
done_well=yes
