#!/bin/bash
# janitor.sh DIR: waits until its standard input ends, then ends every process whose command line
# names DIR, and removes DIR.  DIR is a private directory, so that nobody else's processes name it.
set -u
dir=${1:?}
case $dir in /tmp/?*) ;; *) echo "janitor: $dir is no private directory" >&2; exit 1 ;; esac
cat > /dev/null

inhabitants() {
    local file pid
    for file in /proc/[0-9]*/cmdline; do
        pid=${file#/proc/} pid=${pid%/cmdline}
        [ "$pid" != $$ ] && [ "$pid" != "$BASHPID" ] || continue
        # The directory itself or something below it, in any argument.
        tr '\0' '\n' 2>/dev/null < "$file" | grep -qE "(^|[^[:alnum:]])${dir//./\\.}(/|\$|[^[:alnum:]_.-])" && echo "$pid"
    done
}
for _ in 1 2 3 4 5 6 7 8 9 10; do
    found=$(inhabitants)
    [ -n "$found" ] || break
    # shellcheck disable=SC2086
    kill -KILL $found 2>/dev/null
    sleep 0.2
done
# What a test mounted there, and was killed before it unmounted.
while read -r _ mounted _; do
    case $mounted in "$dir"/*) umount -l "$mounted" ;; esac
done < /proc/mounts
rm -rf "$dir"
