#!/bin/bash
# build.sh FLAVOUR: a Debian host of our own, to be booted by run.sh where this machine's kernel lacks
# what a test needs.  Of this machine's release, from Debian's packages, which are unpacked and never
# installed; no root, no loop device:
#
#   target/host/FLAVOUR/{vmlinuz,initrd.gz}   Debian's kernel, and what mounts the root file system
#   target/host/FLAVOUR/root.img              ext4: the packages, the kernel's modules, busybox as init
#
# A flavour is a directory beside this file:
#
#   packages   one a line, without what they depend on
#   modules    kernel modules, likewise
#   rc         a part of the boot, sourced by ./init
#   boot       how QEMU is started, sourced by ./run.sh
#   prepare    (not in each) sourced here with the root unpacked in $tree, its boot files in $out
#
# Built again only when one of the inputs changed.
set -euo pipefail
flavour=${1:?which flavour}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
out=$target/host/$flavour
private=$target/host/apt
PATH=$PATH:/usr/sbin:/sbin

say() { echo "host: $flavour: $*"; }
fail() { say "$*" >&2; exit 1; }
# shellcheck source=../setup/apt.sh
. "$root/tests/setup/apt.sh"

# What every flavour has beside its own: what our tests and scripts run.
common="base-files base-passwd bash coreutils findutils grep libc-bin sed util-linux"
# Until the root file system is mounted; in this order, each needs the ones before it.
early="virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk
    crc16 mbcache jbd2 crc32c_generic ext4"

[ -d "$here/$flavour" ] || fail "there is no such flavour"
lines() { sed 's/#.*//' "$here/$flavour/$1" | xargs; }
suite=$(suite_of_libvirt)
mkdir -p "$out"
# One lock for all flavours: they share the lists.
exec 9> "$target/host/.lock"
flock 9
stamp=$({ cat "$0" "$here/init" "$root/tests/setup/apt.sh" "$here/$flavour"/*; readlink -f /bin/busybox |
    xargs sha256sum; echo "$suite"; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && [ -s "$out/root.img" ]; then
    say "up to date ($(cat "$out/version"))"
    exit 0
fi

work=$out/work
tree=$work/root
debs=$target/host/debs # kept: flavours have most of them in common
rm -rf "$work" "$out"/{stamp,root.img}
mkdir -p "$work/kernel" "$debs" "$tree"/usr/{bin,sbin,lib,lib64}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$tree/$dir"; done

# closure SUITE PACKAGE...: names of the files that hold them and all that they need.
closure() {
    local from=$1
    shift
    private_apt apt-get install -y -t "$from" --print-uris "$@" |
        sed -n "s/^'[^']*' \([^ ]*\) .*/\1/p"
}

# fetch SUITE PACKAGE=VERSION...: into $debs, where they are not there yet.
fetch() {
    local from=$1
    shift
    private_apt apt-get install -y -qq -t "$from" --download-only -o "Dir::Cache::Archives=$debs" "$@" \
        2> "$work/download.log" || fail "cannot fetch $*: $(cat "$work/download.log")"
}

say "fetching packages of $suite (unpacked under target/, not installed)"
prepare_apt "$suite" || fail "no package lists"
kernel=$(private_apt apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
[ -n "$kernel" ] || fail "$(release) has no linux-image-amd64"
mkdir -p "$debs/partial"
(cd "$debs" && { ls "${kernel}"_*.deb > /dev/null 2>&1 || private_apt apt-get -qq download "$kernel"; })
# shellcheck disable=SC2086,SC2046
fetch "$suite" $common $(lines packages)
# shellcheck disable=SC2086,SC2046
wanted=$(closure "$suite" $common $(lines packages))

say "unpacking $(wc -w <<< "$wanted") packages"
for deb in $wanted; do
    # apt writes the epoch's colon as %3a, here and there.
    dpkg-deb --fsys-tarfile "$debs/$deb" | tar -x -C "$tree" --keep-directory-symlink --no-same-owner \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
        --exclude='./usr/share/info/*' --exclude='./dev/*'
done
dpkg-deb -x "$(ls "$debs/${kernel}"_*.deb | head -n 1)" "$work/kernel"
version=${kernel#linux-image-}
cp "$work/kernel/boot/vmlinuz-$version" "$out/vmlinuz"
chmod 644 "$out/vmlinuz"

# The modules that are asked for and what they need, found as modprobe would: depmod's list.
# modules_of NAME...
busybox depmod -b "$work/kernel" "$version" 2> /dev/null
modules_of() {
    local name
    for name in "$@"; do
        awk -v name="/${name//-/_}.ko" -F: '
            { file = $1; gsub("-", "_", file); sub(/\.(xz|gz|zst)$/, "", file) }
            substr(file, length(file) - length(name) + 1) == name {
                n = split($2, needed, " "); for (i = n; i > 0; i--) print needed[i]; print $1 }
        ' "$work/kernel/lib/modules/$version/modules.dep"
    done | awk '!seen[$0]++'
}
modules=$tree/lib/modules/$version
# shellcheck disable=SC2046
for file in $(modules_of $early $(lines modules)); do
    install -D -m 644 "$work/kernel/lib/modules/$version/$file" "$modules/$file"
done
cp "$work/kernel/lib/modules/$version"/modules.{order,builtin} "$modules/"
busybox depmod -b "$tree" "$version"

# What packages would have done as they were installed.
cp "$tree/usr/share/base-passwd/passwd.master" "$tree/etc/passwd"
cp "$tree/usr/share/base-passwd/group.master" "$tree/etc/group"
echo "passwd: files
group: files
hosts: files" > "$tree/etc/nsswitch.conf"
echo "$flavour" > "$tree/etc/hostname"
echo "127.0.0.1 localhost $flavour" > "$tree/etc/hosts"
mkdir -p "$tree"/{dev,proc,sys,run,tmp,root,share,etc/host,usr/lib/busybox}
chmod 1777 "$tree/tmp"
[ -e "$tree/var/run" ] || ln -s /run "$tree/var/run"
[ -e "$tree/etc/mtab" ] || ln -s /proc/self/mounts "$tree/etc/mtab"
# Debian's own programs first; busybox has the rest.
cp /bin/busybox "$tree/bin/busybox"
for applet in $(busybox --list); do ln -sf /bin/busybox "$tree/usr/lib/busybox/$applet"; done
[ -e "$tree/bin/sh" ] || ln -s bash "$tree/bin/sh"
ln -sf ../bin/busybox "$tree/sbin/init"
install -m 755 "$here/init" "$tree/etc/host/init"
install -m 644 "$here/$flavour/rc" "$tree/etc/host/rc"
echo "::sysinit:/etc/host/init" > "$tree/etc/inittab"
if [ -e "$here/$flavour/prepare" ]; then
    # shellcheck source=/dev/null
    . "$here/$flavour/prepare"
fi

early_tree=$work/early
mkdir -p "$early_tree"/{bin,dev,proc,sys,root,modules}
cp /bin/busybox "$early_tree/bin/busybox"
# shellcheck disable=SC2086
for file in $(modules_of $early); do
    cp "$modules/$file" "$early_tree/modules/"
    echo "${file##*/}" >> "$early_tree/modules/order"
done
cat > "$early_tree/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
# Those of Debian 13 are compressed.
while read -r file; do
    case $file in *.xz) unxz /modules/$file ;; *.gz) gunzip /modules/$file ;; esac
    insmod /modules/${file%.[xg]z}
done < /modules/order
while [ ! -b /dev/vda ]; do sleep 0.1; done
mount -t ext4 -o noatime /dev/vda /root && mount --move /dev /root/dev
exec switch_root /root /sbin/init
INIT
chmod 755 "$early_tree/init"
(cd "$early_tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 | gzip -1) > "$out/initrd.gz"

# Everything belongs to root in it, whoever builds.
owned=()
[ "$(id -u)" = 0 ] || owned=(unshare --map-root-user)
truncate -s 3G "$work/root.img"
"${owned[@]}" mke2fs -q -F -t ext4 -L host -U 5e7a1b1e-0000-4000-8000-000000000000 \
    -E hash_seed=5e7a1b1e-0000-4000-8000-000000000000,lazy_itable_init=1,lazy_journal_init=1 \
    -d "$tree" "$work/root.img"
mv "$work/root.img" "$out/root.img"
echo "$version, $suite" > "$out/version"
echo "$stamp" > "$out/stamp"
rm -rf "$work"
say "built with Linux $version: $(du -sh "$out" | cut -f1)"
