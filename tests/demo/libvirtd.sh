# Sourced by demo.sh: libvirt's own daemon instead of virtsnapd, in a mount namespace of its own.
set=$target/sets/oracle
[ -x "$set/bin/libvirtd" ] || fail "make sets unpacks libvirtd"
uri="qemu:///system?socket=$dir/run/libvirt-sock"
mkdir "$dir"/{etc,run,lib,log,cache,drivers}
ln -s "$set/root/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so" "$dir/drivers/"
echo 'auth_unix_rw = "none"' > "$dir/etc/libvirtd.conf"
cat > "$dir/etc/qemu.conf" <<CONF
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
CONF
# Its package makes a user, without whom it does not start; here only it sees that user.
{ cat /etc/passwd; echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin'; } > "$dir/passwd"
{ cat /etc/group; echo 'libvirt-qemu:x:64055:'; echo 'kvm:x:64056:'; } > "$dir/group"
LIBVIRT_DRIVER_DIR=$dir/drivers unshare --mount sh -e -c '
    mount --bind "$1/passwd" /etc/passwd
    mount --bind "$1/group" /etc/group
    for pair in etc:/etc run:/run lib:/var/lib log:/var/log cache:/var/cache; do
        mkdir -p "${pair#*:}/libvirt"
        mount --bind "$1/${pair%%:*}" "${pair#*:}/libvirt"
    done
    exec "$2" --config "$1/etc/libvirtd.conf" --pid-file "$1/libvirtd.pid"
' sh "$dir" "$set/bin/libvirtd" > "$dir/daemon.log" 2>&1 < /dev/null 9>&- &
until quietly version > /dev/null 2>&1; do sleep 0.2; done
