#!/bin/bash
# Builds the guest with an agent: target/agent-guest/{initrd.gz,data.qcow2}.
#
# The kernel is the test guest's (tests/guest); the agent is Debian's own package, unpacked by
# tests/setup/sets.sh, with the libraries it needs.  data.qcow2 is a small ext4 for its disk, which
# tests copy.  Built again only when one of the inputs changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
out=$target/agent-guest
set=$target/sets/agent/root
PATH=$PATH:/usr/sbin:/sbin
# In this order: each needs the ones before it.
drivers="virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk
    crc16 mbcache jbd2 libcrc32c crc32c_generic ext4 virtio_console"

say() { echo "agent-guest: $*"; }
fail() { echo "agent-guest: $*" >&2; exit 1; }

agent=$(find "$set" -name qemu-ga -type f -perm -u+x 2>/dev/null | head -n 1)
if [ -z "$agent" ]; then
    # sets.sh has said why, and has failed where a skip is a failure.
    say "SKIPPED: no agent was unpacked"
    exit 0
fi
deb=$(ls "$target"/guest/linux-image-*.deb | head -n 1)
[ -n "$deb" ] || fail "run make guest first"

mkdir -p "$out"
exec 9> "$out/.lock"
flock 9
stamp=$(cat "$0" "$here/init" "$here/hook" /bin/busybox "$agent" "$target/guest/stamp" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && [ -s "$out/initrd.gz" ] && [ -s "$out/data.qcow2" ]; then
    say "up to date"
    exit 0
fi

work=$out/work
rm -rf "$work"
mkdir -p "$work/kernel" "$work/tree"/{bin,dev,proc,sys,modules,lib64}
dpkg-deb -x "$deb" "$work/kernel"
: > "$work/tree/modules/order"
for driver in $drivers; do
    file=$(find "$work/kernel" -name "$driver.ko*" | head -n 1)
    case $file in
        '') continue ;; # built into this kernel
        *.ko) cp "$file" "$work/tree/modules/$driver.ko" ;;
        *.ko.xz) busybox unxz -c "$file" > "$work/tree/modules/$driver.ko" ;;
        *.ko.gz) gzip -dc "$file" > "$work/tree/modules/$driver.ko" ;;
        *) fail "cannot unpack $file" ;;
    esac
    echo "$driver.ko" >> "$work/tree/modules/order"
done

install -m 755 "$agent" "$work/tree/bin/qemu-ga"
# Every library where the loader of the guest looks for it, whichever directory it came from.
LD_LIBRARY_PATH=$set/usr/lib/x86_64-linux-gnu:$set/lib/x86_64-linux-gnu ldd "$agent" |
    awk '$2 == "=>" && $3 != "not" { print $3 } $1 ~ "^/" { print $1 } $3 == "not" { exit 1 }' > "$work/libraries" ||
    fail "a library of the agent is missing: $(ldd "$agent" | grep 'not found')"
while read -r library; do cp -L "$library" "$work/tree/lib64/"; done < "$work/libraries"
ln -s lib64 "$work/tree/lib"
cp /bin/busybox "$work/tree/bin/busybox"
install -m 755 "$here/init" "$work/tree/init"
install -m 755 "$here/hook" "$work/tree/bin/hook"
(cd "$work/tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 | gzip -1) > "$work/initrd.gz"

truncate -s 16M "$work/data.raw"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$work/data.raw"
qemu-img convert -f raw -O qcow2 "$work/data.raw" "$work/data.qcow2"
mv "$work/initrd.gz" "$work/data.qcow2" "$out/"
echo "$stamp" > "$out/stamp"
rm -rf "$work"
say "built"
