#!/bin/bash
# In the Xen host (run.sh xen), what makes it one that is driven from outside: until /share/done is
# there.  With SHARE=DIR and a network for run.sh:
#
#   DIR/console/guest-NAME.log   what guests say, as they say it
#   port 16509                   virtsnapd's socket, once there is one
#   port 16510                   a script that ends with a NUL is run, and answered with what it wrote,
#                                a NUL and its exit status
set -u
if [ "${1:-}" = shell ]; then
    read -r -d '' script
    bash -c "$script" 2>&1 < /dev/null
    printf '\0%d' $?
    exit
fi
# Without it Xen's scripts for disks that the kernel serves wait for their lock for ever.
[ -e /dev/stdin ] || ln -s /proc/self/fd/0 /dev/stdin
mkdir -p /share/console
mount --bind /share/console /var/log/xen/console
socat TCP-LISTEN:16509,fork,reuseaddr UNIX-CONNECT:/run/virtsnap/xen/virtsnap-sock 2> /dev/null &
socat TCP-LISTEN:16510,fork,reuseaddr EXEC:"$0 shell" &
# 16509 and 16510 in the kernel's table of sockets that listen.
for port in 407D 407E; do
    until grep -q ":$port .* 0A " /proc/net/tcp; do busybox sleep 0.1; done
done
touch /share/ready
until [ -e /share/done ]; do busybox sleep 0.5; done
