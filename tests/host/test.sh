#!/bin/bash
# test.sh FLAVOUR: the ignored tests of tests/tests/FLAVOUR.rs, in the host of that flavour; TEST=name
# runs those of that name.  The last line says how it went.
set -euo pipefail
flavour=${1:?which flavour}
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
started=$SECONDS
report() { echo "test-$flavour: $1 after $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"; }

tests/host/build.sh "$flavour"
echo "test-$flavour: building virtsnapd and the tests"
"$cargo" build --quiet --locked --package virtsnapd
program=$("$cargo" test --locked --package virtsnap-tests --test "$flavour" --no-run 2>&1 |
    sed -n 's/.*Executable .*(\(.*\))$/\1/p')
[ -x "$program" ] || { report "FAILED: the tests do not build"; exit 1; }
echo "test-$flavour: booting Debian's own kernel under emulation, and the tests in it"
# There is no cargo in there, and nothing to build: what the tests have built is there already.
if tests/host/run.sh "$flavour" env CARGO=true CI=1 CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}" \
    "$program" --ignored --test-threads=1 ${TEST:+"$TEST"}; then
    report "all passed"
else
    report "FAILED"
    exit 1
fi
