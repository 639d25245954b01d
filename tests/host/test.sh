#!/bin/bash
# test.sh FLAVOUR: the ignored tests of tests/tests/FLAVOUR.rs, in the host of that flavour; TEST=name
# runs those of that name.  Where there is FLAVOUR-serve.sh the host runs that instead, and the tests run
# outside and drive it; EXCEPT="module module" leaves some out there.  The last line says how it went.
set -euo pipefail
flavour=${1:?which flavour}
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-$PWD/target}
started=$SECONDS
report() { echo "test-$flavour: $1 after $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"; }

tests/host/build.sh "$flavour"
echo "test-$flavour: building virtsnapd and the tests"
"$cargo" build --quiet --locked --package virtsnapd
program=$("$cargo" test --locked --package virtsnap-tests --test "$flavour" --no-run 2>&1 |
    sed -n 's/.*Executable .*(\(.*\))$/\1/p')
[ -x "$program" ] || { report "FAILED: the tests do not build"; exit 1; }
arguments=(--ignored --test-threads=1 ${VIRTSNAP_TORTURE:+--nocapture})

inside() {
    # There is no cargo in there, and nothing to build: what the tests have built is there already.
    tests/host/run.sh "$flavour" env CARGO=true CI=1 CARGO_TARGET_DIR="$target" \
        "$program" "${arguments[@]}" ${TEST:+"$TEST"}
}

# A host emulates one processor: two of them, and each has every other test.
outside() {
    local names n running=() passed=0
    names=$("$program" --ignored --list --format terse ${TEST:+"$TEST"} | sed -n 's/: test$//p' |
        grep -vE "^(${EXCEPT:+${EXCEPT// /|}})::" || true)
    [ -n "$names" ] || { echo "there is no such test"; return 1; }
    for n in 1 2; do
        # shellcheck disable=SC2046
        set -- $(awk "NR % 2 == $n % 2" <<< "$names")
        [ $# = 0 ] || { told "$n" "$@" & running+=($!); }
    done
    for n in "${running[@]}"; do wait "$n" || passed=1; done
    return "$passed"
}

told() { half "$@" 2>&1 | sed -u "s/^/$1: /"; }

# half N TEST...: those, with a host of their own.
half() {
    local share=$target/host/$flavour/share/$1 port=$((20000 + RANDOM % 3000 * 4 + 2 * $1)) host passed=0
    shift
    while (: < "/dev/tcp/127.0.0.1/$port" || : < "/dev/tcp/127.0.0.1/$((port + 1))") 2> /dev/null; do
        port=$((port + 4))
    done
    rm -rf "$share"
    SHARE=$share LIMIT=${LIMIT:-3600} HOST_OPTIONS="-netdev user,id=n,hostfwd=tcp:127.0.0.1:$port-:16509,hostfwd=tcp:127.0.0.1:$((port + 1))-:16510 -device virtio-net-pci,netdev=n" \
        tests/host/run.sh "$flavour" "$PWD/tests/host/$flavour-serve.sh" &
    host=$!
    # It ends by itself then, whatever becomes of us.
    # shellcheck disable=SC2064  # now: it is not known at the end
    trap "touch '$share/done'" EXIT
    until [ -e "$share/ready" ]; do
        kill -0 "$host" 2> /dev/null || return 1
        sleep 0.5
    done
    echo "the host is up after $((SECONDS - started)) s"
    VIRTSNAP_XEN_HOST=$share:$((port + 1)):$port CI=1 "$program" "${arguments[@]}" --exact "$@" ||
        passed=$?
    touch "$share/done"
    wait "$host" || passed=1
    return "$passed"
}

echo "test-$flavour: booting Debian's own kernel under emulation, and the tests in it"
where=inside
[ ! -e "tests/host/$flavour-serve.sh" ] || where=outside
if $where; then
    report "all passed"
else
    report "FAILED"
    exit 1
fi
