#!/usr/bin/env bash
# Makes everything in this directory but default.toml: the sentences and the tokenizer from the generator in
# cli/examples/default_data, the model by pre-training on the generator's text. Takes a few minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The binary embeds this directory, so it must be complete before a build: to start from nothing, put any model of the
# right shape here first.
cargo build --release
cargo run --release -p sparta-cli --example default_data -- "$work"
target/release/sparta-cli pretrain --model "$work/model" --data "$work/corpus.txt" --out "$work/trained" \
    --epochs 2 --batch-tokens 1024 --lr 3e-3 --warmup 0.02 --weight-decay 0 --seed 0 --dtype bf16 --device cpu

rm -rf cli/assets/data cli/assets/model
cp -r "$work/data" cli/assets/data
cp -r "$work/trained/model" cli/assets/model
