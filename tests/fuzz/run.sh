#!/bin/bash
# Runs every fuzz target, or those named, for some seconds each:
#
#     tests/fuzz/run.sh 60 [TARGET…]
#
# The seeds are in fixtures/fuzz; what a run finds worth keeping grows in target/fuzz/corpus, and
# what breaks a target is saved as target/fuzz/found/TARGET-….  The compiler needs no nightly and
# no cargo-fuzz: libFuzzer's instrumentation is LLVM's, which every toolchain has.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
cargo=${CARGO:-cargo}
seconds=${1:-60}
shift || true
[[ $seconds =~ ^[0-9]+$ ]] || { echo "fuzz: '$seconds' is not a number of seconds" >&2; exit 2; }
all=$(sed -n '/^\[\[bin/,/^name/s/^name = "\(.*\)"$/\1/p' tests/fuzz/Cargo.toml)
targets=${*:-$all}

host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
echo "fuzz: building the targets"
RUSTFLAGS="--cfg fuzzing $coverage" "$cargo" build --quiet --locked --package virtsnap-fuzz \
    --features libfuzzer --bins --profile fuzz --target "$host" --target-dir target/fuzz ||
    { echo "fuzz: FAILED to build"; exit 1; }

mkdir -p target/fuzz/found
count=0 executions=0 crashes=0
for target in $targets; do
    corpus=target/fuzz/corpus/$target seeds=fixtures/fuzz/$target
    program=target/fuzz/$host/fuzz/$target
    mkdir -p "$corpus"
    [ -x "$program" ] && [ -d "$seeds" ] || { echo "fuzz: FAILED: no target $target"; exit 1; }
    dictionary=tests/fuzz/$target.dict
    log=target/fuzz/$target.log
    # A target that waits for a minute hangs, however busy the machine is.
    "$program" "$corpus" "$seeds" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 \
        -artifact_prefix="target/fuzz/found/$target-" -print_final_stats=1 \
        ${MAX_LEN:+-max_len="$MAX_LEN"} \
        $([ -e "$dictionary" ] && echo "-dict=$dictionary") > "$log" 2>&1
    status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    echo "fuzz: $target: ${runs:-?} executions, ${covered:-?} edges reached"
    count=$((count + 1)) executions=$((executions + ${runs:-0}))
    if [ $status != 0 ]; then
        crashes=$((crashes + 1))
        grep -m 3 -A 4 "panicked at\|ERROR: libFuzzer" "$log" | sed 's/^/    /'
        grep "Test unit written to" "$log" | sed 's/^/    /'
        echo "    again: $program FILE; then it belongs into $seeds, with a test of its own"
    elif [ "${runs:-0}" = 0 ]; then
        crashes=$((crashes + 1))
        echo "    nothing was executed: $log says why"
    fi
done
echo "fuzz: $count targets, $executions executions, $crashes crashes"
[ $crashes = 0 ]
