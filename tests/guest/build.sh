#!/bin/bash
# Builds the test guest from Debian's own packages: target/guest/{vmlinuz,initrd.gz}.
# The cloud kernel is fetched with apt-get download and unpacked, never installed.  Built again
# only when one of the inputs changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${CARGO_TARGET_DIR:-$root/target}/guest
# In this order: each needs the ones before it.  The last three are for the power button and for
# the variables of UEFI firmware.
drivers="virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk button evdev efivarfs"
# And on Xen, of which the kernel has the rest built in.
drivers_xen="xen-blkfront"

say() { echo "guest: $*"; }
fail() { echo "guest: $*" >&2; exit 1; }

mkdir -p "$out"
exec 9> "$out/.lock"
flock 9

stamp=$(cat "$0" "$here/init" "$here/worker.c" /bin/busybox | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && [ -s "$out/vmlinuz" ] && [ -s "$out/initrd.gz" ]; then
    say "up to date ($(cat "$out/version"))"
    exit 0
fi

work=$out/work
rm -rf "$work"
mkdir -p "$work/kernel" "$work/tree"/{bin,sbin,dev,proc,sys,modules}

if ! ls "$out"/linux-image-*.deb > /dev/null 2>&1; then
    # Without package lists (a fresh container) apt must fetch them first; ours are private, so
    # that this needs no root.
    options=()
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    if [ -z "$package" ]; then
        mkdir -p "$out/lists/partial"
        options=(-o "Dir::State::Lists=$out/lists")
        apt-get -qq "${options[@]}" update || fail "cannot read the package lists: check the machine's apt configuration"
        package=$(apt-cache "${options[@]}" depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
        [ -n "$package" ] || fail "linux-image-cloud-amd64 is in none of the configured suites"
    fi
    say "fetching $package (unpacked here, not installed)"
    (cd "$work" && apt-get -qq "${options[@]}" download "$package" 2> download.log) ||
        fail "cannot fetch $package: $(cat "$work/download.log")"
    mv "$work"/linux-image-*.deb "$out/"
fi
dpkg-deb -x "$(ls "$out"/linux-image-*.deb | head -n 1)" "$work/kernel"
kernel=$(ls "$work/kernel/boot"/vmlinuz-*)
version=${kernel##*/vmlinuz-}

# take ORDER DRIVER...: those of these that are modules, listed in that file.
take() {
    local order=$work/tree/modules/$1 driver file
    shift
    : > "$order"
    for driver in "$@"; do
        file=$(find "$work/kernel" -name "$driver.ko*" | head -n 1)
        case $file in
            '') continue ;; # built into this kernel
            *.ko) cp "$file" "$work/tree/modules/" ;;
            *.ko.xz) busybox unxz -c "$file" > "$work/tree/modules/$driver.ko" ;;
            *.ko.gz) gzip -dc "$file" > "$work/tree/modules/$driver.ko" ;;
            *) fail "cannot unpack $file" ;;
        esac
        echo "$driver.ko" >> "$order"
    done
}
# shellcheck disable=SC2086
take order $drivers
take order.xen $drivers_xen

gcc -O2 -static -Wall -Wextra -Werror -o "$work/tree/bin/worker" "$here/worker.c"
cp /bin/busybox "$work/tree/bin/busybox"
install -m 755 "$here/init" "$work/tree/init"
# What the kernel calls when Xen's tools ask the guest to shut down.
printf '#!/bin/busybox sh\necho POWEROFF > /dev/hvc0\n/bin/busybox poweroff -f\n' > "$work/tree/sbin/poweroff"
chmod 755 "$work/tree/sbin/poweroff"
(cd "$work/tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 | gzip -1) > "$work/initrd.gz"
cp "$kernel" "$out/vmlinuz"
chmod 644 "$out/vmlinuz"
mv "$work/initrd.gz" "$out/initrd.gz"
echo "$version" > "$out/version"
echo "$stamp" > "$out/stamp"
rm -rf "$work"
say "built with Linux $version"
