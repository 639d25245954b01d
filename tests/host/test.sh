#!/bin/bash
# test.sh FLAVOUR: the ignored tests of tests/tests/FLAVOUR.rs, in the host of that flavour; TEST=name
# runs those of that name.  Where there is FLAVOUR-serve.sh the host runs that instead, and the tests
# run outside and drive it.  The last line says how it went.
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
arguments=(--ignored --test-threads=1 ${VIRTSNAP_TORTURE:+--nocapture} ${TEST:+"$TEST"})

inside() {
    # There is no cargo in there, and nothing to build: what the tests have built is there already.
    tests/host/run.sh "$flavour" env CARGO=true CI=1 CARGO_TARGET_DIR="$target" \
        "$program" "${arguments[@]}"
}

# Two that nobody listens on, one after the other.
free_ports() {
    local port=$((20000 + RANDOM % 12000))
    while (: < "/dev/tcp/127.0.0.1/$port" || : < "/dev/tcp/127.0.0.1/$((port + 1))") 2> /dev/null; do
        port=$((20000 + RANDOM % 12000))
    done
    echo "$port"
}

outside() {
    local share=$target/host/$flavour/share daemon shell host passed=0
    daemon=$(free_ports)
    shell=$((daemon + 1))
    rm -rf "$share"
    SHARE=$share LIMIT=${LIMIT:-3600} HOST_OPTIONS="-netdev user,id=n,hostfwd=tcp:127.0.0.1:$daemon-:16509,hostfwd=tcp:127.0.0.1:$shell-:16510 -device virtio-net-pci,netdev=n" \
        tests/host/run.sh "$flavour" "$PWD/tests/host/$flavour-serve.sh" &
    host=$!
    # It ends by itself then, whatever becomes of us.
    # shellcheck disable=SC2064  # now: it is not known at the end
    trap "touch '$share/done'" EXIT
    until [ -e "$share/ready" ]; do
        kill -0 "$host" 2> /dev/null || return 1
        sleep 0.5
    done
    echo "test-$flavour: the host is up after $((SECONDS - started)) s"
    VIRTSNAP_XEN_HOST=$share:$shell:$daemon CI=1 "$program" "${arguments[@]}" || passed=$?
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
