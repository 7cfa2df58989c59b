#!/usr/bin/env bash
# Collects what run.sh needs on a machine without a compiler: build.sh [DIR]; by default target/gpu, below 64 MiB.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release
out=${1:-$release/../gpu}

cargo build --release --locked
steps=$(cargo bench -p sparta-benches --bench steps --locked --no-run --message-format json \
    | sed -n 's/.*"name":"steps".*"executable":"\([^"]*\)".*/\1/p')
gpu=$(cargo build --release -p sparta-benches --bin gpu --locked --message-format json \
    | sed -n 's/.*"name":"gpu".*"executable":"\([^"]*\)".*/\1/p')

rm -rf "$out"
mkdir -p "$out"
cp "$release"/sparta-cli "$out"
cp "$steps" "$out/steps"
cp "$gpu" "$out/gpu"
cp benches/gpu/run.sh benches/gpu/peer.py "$out"
strip "$out"/steps "$out"/gpu "$out"/sparta-cli
du -sh "$out"
