#!/usr/bin/env bash
# Collects what run.sh needs on a machine without a compiler: build.sh [DIR]; by default target/gpu, below 64 MiB.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release
out=${1:-$release/../gpu}

# The whole workspace, so that no dependency is rebuilt with different features.
cargo build --release --locked --workspace --bin sparta-cli --bin gpu
steps=$(cargo bench --locked --workspace --bench steps --no-run --message-format json \
    | sed -n 's/.*"name":"steps".*"executable":"\([^"]*\)".*/\1/p')

rm -rf "$out"
mkdir -p "$out"
cp "$release/sparta-cli" "$release/gpu" benches/gpu/run.sh benches/gpu/peer.py "$out"
cp "$steps" "$out/steps"
strip "$out/steps" "$out/gpu" "$out/sparta-cli"
du -sh "$out"
