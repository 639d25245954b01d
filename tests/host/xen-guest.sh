# shellcheck shell=bash
# To be sourced in the Xen host (run.sh xen): our own guest (tests/guest) as a domain of xl's.
#
#   guest_start NAME [TYPE [LINE...]]   xl create: disks xvda (qcow2) and xvdb (raw) in $guests/NAME,
#                                       made where they are not there; TYPE is pv, pvh or hvm; LINEs
#                                       are added to its configuration, $guests/NAME/cfg
#   guest_mark NAME                     where its console has got to, for the next ones
#   guest_said NAME MARK PATTERN [S]    waits for such a line after that mark, prints it
#   guest_counts NAME [S]               waits until it has counted on, memory and disks agreeing
#   guest_type NAME LINE                types on its console
#   guest_qmp NAME COMMAND...           QMP commands to its device model, one answer a line
: "${guests:=/root/guests}"
guest_tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
guest_kernel=${CARGO_TARGET_DIR:-$guest_tree/target}/guest

guest_console() { echo "/var/log/xen/console/guest-$1.log"; }

guest_start() {
    local name=$1 type=${2:-pv} dir=$guests/$1
    shift
    [ $# = 0 ] || shift
    # Under TCG such a guest ends at once with nested paging; and its RDTSCP ends as a RDTSC, which Xen
    # cannot skip.
    [ "$type" = pv ] || set -- "hap = 0" "tsc_mode = 'native'" "$@"
    mkdir -p "$dir"
    [ -e "$dir/a.qcow2" ] || qemu-img create -q -f qcow2 "$dir/a.qcow2" 16M
    [ -e "$dir/b.raw" ] || qemu-img create -q -f raw "$dir/b.raw" 16M
    {
        printf '%s\n' "name = '$name'" "type = '$type'" "kernel = '$guest_kernel/vmlinuz'" \
            "ramdisk = '$guest_kernel/initrd.gz'" "extra = 'console=hvc0 quiet'" "memory = 96" \
            "vcpus = 1" "disk = [ 'format=qcow2,vdev=xvda,access=rw,backendtype=qdisk,target=$dir/a.qcow2'," \
            "    'format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target=$dir/b.raw' ]" "$@"
    } > "$dir/cfg"
    xl create -q "$dir/cfg"
}

guest_mark() { cat "$(guest_console "$1")" 2> /dev/null | wc -c; }

guest_said() {
    local end=$((SECONDS + ${4:-120}))
    until tail -c "+$(($2 + 1))" "$(guest_console "$1")" 2> /dev/null | grep -aEm1 "$3"; do
        [ $SECONDS -lt $end ] || { echo "$1 did not say $3; the end of its console:" >&2
            tail -n 5 "$(guest_console "$1")" >&2; return 1; }
        busybox sleep 0.2
    done
}

guest_counts() {
    local mark
    mark=$(guest_mark "$1")
    guest_said "$1" "$mark" '^MATCH [0-9]+' "${2:-120}"
}

guest_type() { echo "$2" > "$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty")"; }

guest_qmp() {
    local domain
    domain=$(xl domid "$1") || return
    shift
    python3 - "/var/run/xen/qmp-libxenstat-$domain" "$@" <<'QMP'
import json, socket, sys
line = socket.socket(socket.AF_UNIX)
line.settimeout(60)
line.connect(sys.argv[1])
stream = line.makefile("rw")
stream.readline()
for command in ['{"execute":"qmp_capabilities"}'] + sys.argv[2:]:
    stream.write(command + "\n")
    stream.flush()
    while True:
        answer = json.loads(stream.readline())
        if "event" not in answer:
            break
        print(json.dumps(answer))
    if command != '{"execute":"qmp_capabilities"}':
        print(json.dumps(answer))
QMP
}
