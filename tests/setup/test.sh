#!/bin/bash
# Every test of the workspace; the last line says how it went.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
cargo=${CARGO:-cargo}
started=$SECONDS
report() { echo "test: $1 after $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"; }

# Most tests wait for a guest most of the time: more of them at once than there are cores.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) + 4))}
echo "test: cargo test --workspace, $RUST_TEST_THREADS tests at a time"
if ! "$cargo" test --locked --workspace --no-fail-fast; then
    report "FAILED"
    exit 1
fi
# Three seconds for each fuzz target: less than a minute for all of them.
if tests/fuzz/run.sh 3; then
    report "all passed"
else
    report "FAILED: fuzzing"
    exit 1
fi
