#!/bin/sh
# Feeds mutated files to every reader, for SECONDS each (60 unless given), and prints the figures of README.md.
set -eu
cd "$(dirname "$0")/.."
cargo build --release
SPARTA_FUZZ_SECONDS="${1:-60}" cargo test --release -p sparta-tests --test fuzz -- --nocapture --test-threads=1 |
    grep -E '^\||panicked|kept in|test result'
