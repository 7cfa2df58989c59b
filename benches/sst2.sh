#!/usr/bin/env bash
# The recipe of the reference (one epoch over 20,000 SST-2 sentences of at most 64 tokens) with each method and three
# seeds: accuracy and loss on the 872 sentences of SST-2's dev set. Prints the table of RESULTS.md.
#
#   benches/sst2.sh MODEL DATA [OUT]
set -euo pipefail
model=$1 data=$2 out=${3:-runs/sst2-table}
cli=${SPARTA_CLI:-target/release/sparta-cli}

row() { # name, learning rate, options of the method
    local name=$1 lr=$2 results=()
    shift 2
    for seed in 1 2 3; do
        local dir="$out/$name-$seed"
        [ -f "$dir/result.json" ] || "$cli" run --model "$model" --task sst2 --data "$data" "$@" --lr "$lr" \
            --epochs 1 --batch-size 32 --max-length 64 --max-train 20000 --schedule linear --warmup 0.06 \
            --max-grad-norm 1 --head-init-std 0.02 --seed "$seed" --max-dev 1 --device cpu --json --out "$dir" >"$dir.log"
        results+=("$dir/result.json")
    done
    python3 - "$name" "$lr" "${results[@]}" <<'PY'
import json, sys
name, lr, *paths = sys.argv[1:]
runs = [json.load(open(path)) for path in paths]
mean = lambda values: sum(values) / len(values)
accuracies = [100 * run["test"]["accuracy"] for run in runs]
trained = mean([run["trainable"]["body"] + run["trainable"]["head"] for run in runs])
print(f"| {name} | {lr} | {trained:,.0f} | {', '.join(f'{a:.1f}' for a in accuracies)} | {mean(accuracies):.1f} |"
      f" {mean([run['test']['loss'] for run in runs]):.3f} | {mean([run['training_seconds'] for run in runs]):.0f} |")
PY
}

mkdir -p "$out"
echo "| method | learning rate | trained | accuracy, seeds 1 to 3 | mean | test loss | training seconds |"
echo "|---|---|---|---|---|---|---|"
row full 3e-4 --method full
row sparta-0.05 3e-3 --method sparta --density 0.05
row lora-r8 3e-3 --method lora
row sparta-0.005 3e-3 --method sparta --density 0.005
row head 1e-2 --method head
