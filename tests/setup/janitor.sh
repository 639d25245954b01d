#!/bin/bash
# janitor.sh DIR: waits until its standard input ends, then ends every process whose command line
# names DIR, and removes DIR.  DIR is a private directory, so that nobody else's processes name it.
set -u
dir=${1:?}
case $dir in /tmp/?*) ;; *) echo "janitor: $dir is no private directory" >&2; exit 1 ;; esac
cat > /dev/null

# The directory itself or something below it, in any argument. One grep for all of them: a test run
# comes here hundreds of times.
names="(^|[^[:alnum:]])${dir//./\\.}(/|\$|[^[:alnum:]_.-])"
for ((round = 0; round < 40; round++)); do
    found=()
    for file in $(grep -lzsE -f - /proc/[0-9]*/cmdline <<< "$names"); do
        pid=${file#/proc/} pid=${pid%/cmdline}
        # The shell that ran grep is gone by now.
        [ "$pid" != $$ ] && [ -e "$file" ] && found+=("$pid")
    done
    [ ${#found[@]} != 0 ] || break
    kill -KILL "${found[@]}" 2>/dev/null
    sleep 0.05
done
# What a test mounted there, and was killed before it unmounted.
while read -r _ mounted _; do
    case $mounted in "$dir"/*) umount -l "$mounted" ;; esac
done < /proc/mounts
rm -rf "$dir"
