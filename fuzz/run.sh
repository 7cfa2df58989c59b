#!/bin/bash
# Feeds every reader, or those that are named, for SECONDS each (60 unless given) and prints the figures of README.md:
#     fuzz/run.sh [SECONDS [READER...]]
# Needs a nightly toolchain and `cargo install cargo-fuzz`. Inputs that reached new code stay in corpus/, findings in
# artifacts/. With findings it ends with status 1.
set -uo pipefail
cd "$(dirname "$0")"

seconds="${1:-60}"
shift || true
toolchain="${FUZZ_TOOLCHAIN:-nightly}"
readers=("$@")
if [ ${#readers[@]} = 0 ]; then
    readers=($(cd fuzz_targets && ls | sed 's/\.rs$//'))
fi

# The readers' inputs are kept in memory, if possible.
scratch="$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo /tmp)")"
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/tmp"
export TMPDIR="$scratch/tmp"

(cd .. && cargo run --release --quiet -p sparta-readers --example seeds -- tests/bad "$scratch/seeds") || exit 2
cargo "+$toolchain" fuzz build --fuzz-dir . || exit 2

status=0
echo "| reader | runs | runs/s | edges | features | corpus | findings | time |"
echo "|---|---|---|---|---|---|---|---|"
for reader in "${readers[@]}"; do
    mkdir -p "corpus/$reader" "artifacts/$reader" || exit 2
    before=$(ls "artifacts/$reader" | wc -l)
    log="$scratch/$reader.log"
    SECONDS=0
    dictionary=()
    [ -f "dictionaries/$reader" ] && dictionary=("-dict=dictionaries/$reader")
    # 2 GiB, half of which one input may request at once; 10 s for an input.
    cargo "+$toolchain" fuzz run --fuzz-dir . "$reader" "corpus/$reader" "$scratch/seeds/$reader" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -malloc_limit_mb=1024 -timeout=10 -max_len=65536 \
        -print_final_stats=1 "${dictionary[@]}" >"$log" 2>&1 || status=1
    findings=$(($(ls "artifacts/$reader" | wc -l) - before))
    if [ "$findings" != 0 ]; then
        grep -E '^(panicked|ERROR|==[0-9]+==.*ERROR|SUMMARY)' "$log" | head -5 >&2
    fi
    awk -v reader="$reader" -v findings="$findings" -v time="$SECONDS" -v corpus="$(ls "corpus/$reader" | wc -l)" '
        match($0, /cov: [0-9]+/) { edges = substr($0, RSTART + 5, RLENGTH - 5) }
        match($0, /ft: [0-9]+/) { features = substr($0, RSTART + 4, RLENGTH - 4) }
        /stat::number_of_executed_units/ { runs = $2 }
        /stat::average_exec_per_sec/ { rate = $2 }
        END { print "| " reader " | " runs " | " rate " | " edges " | " features " | " corpus " | " findings " | " time " s |" }
    ' "$log"
done
exit $status
