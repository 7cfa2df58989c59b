#!/usr/bin/env python3
"""Ours against PyTorch + transformers + peft, on the same shapes, batches and threads.

    benches/peer/run.py                                    # the table of training steps, time and memory
    benches/peer/run.py --cells 110M:4x128 --methods lora,sparta --rounds 5
    benches/peer/run.py --precision bf16                   # bf16 on both sides
    benches/peer/run.py --epoch --model DIR --data DIR     # an epoch of SST-2 end to end, and head-only training

Needs only Python's standard library: PyTorch and the rest are installed from PyPI into a virtual environment below the
target directory (or take one that has them, --python), ours is built with cargo. Both sides run in turn, each in a
process of its own, after the machine has become quiet. Ratios are ours / theirs; `*` marks those above the target, `?`
a cell in which other processes used more than 5 % of the machine. In bf16 weights, activations and products are bf16 on
both sides (and PyTorch's moments, too), and PyTorch's SpaRTA gathers and frees each dense gradient as soon as it is there,
the best it can do without a kernel of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGES = ["torch==2.15.0", "transformers==5.23.0", "peft==0.21.2", "numpy"]

# What to reach, ours / theirs: time of a step by cell and method, and peak memory on 110M.
METHODS = {"full": ["full"], "lora": ["lora"], "head": ["head"], "sparta": ["sparta", "--density", "0.05"],
           "sparta-0.5": ["sparta", "--density", "0.005"]}
TARGETS = {
    "f32": {
        "15M:16x64": dict(zip(METHODS, (0.80, 0.75, 0.80, 0.60, 0.55))),
        "15M:8x256": dict(zip(METHODS, (0.80, 0.75, 0.75, 0.60, 0.55))),
        "110M:4x128": dict(zip(METHODS, (0.88, 0.85, 0.85, 0.68, 0.60))),
    },
    "bf16": {
        "15M:16x64": {"full": 0.65, "lora": 0.50, "sparta": 0.55},
        "110M:4x128": {"full": 0.80, "lora": 0.75, "sparta": 0.60, "sparta-0.5": 0.55},
    },
}
MEMORY_TARGETS = {"full": 0.95, "lora": 0.72, "sparta": 0.60}
EPOCH_TARGETS = {"sparta": 0.35, "full": 0.45, "head": 0.20}
EPOCHS = {"sparta": 1, "full": 1, "head": 4}


def target_directory():
    meta = subprocess.run(["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=ROOT, check=True,
                          capture_output=True, text=True).stdout
    return Path(json.loads(meta)["target_directory"])


def peer_python(given):
    """The interpreter with the peer's packages, installed at first use."""
    if given:
        return given
    venv = target_directory() / "peer-venv"
    python = venv / "bin" / "python"
    if not (venv / "complete").exists():
        print("installing", *PACKAGES, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (venv / "complete").touch()
    return python


def build(*what):
    """Builds and returns the paths of the executables."""
    command = ["cargo", "build", "--release", "--message-format", "json-render-diagnostics", *what]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    artifacts = [json.loads(line) for line in lines if line.startswith('{"reason":"compiler-artifact"')]
    return {a["target"]["name"]: a["executable"] for a in artifacts if a["executable"]}


def processor():
    """What the machine says about itself: a virtual one often hides the product's name but not the family and model."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    of = dict(line.split("\t", 1) for line in lines if "\t" in line)
    get = lambda key: of.get(key, "").lstrip("\t: ")
    bf16 = "with" if "avx512_bf16" in get("flags") else "without"
    return f"{get('model name')}, family {get('cpu family')} model {get('model')}, {os.cpu_count()} processors, {bf16} AVX512-BF16"


def busy_seconds():
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(limit):
    """Until other processes use less than 4 % of the machine for 3 s, but no longer than `limit` seconds."""
    start = time.time()
    while time.time() - start < limit:
        before = busy_seconds()
        time.sleep(3)
        if (busy_seconds() - before) / 3 / os.cpu_count() < 0.04:
            return


def measure(command, a):
    """The JSON line of a run, with the wall time of the process."""
    wait_until_quiet(a.wait)
    start = time.time()
    environment = dict(os.environ, RAYON_NUM_THREADS=str(a.threads), OMP_NUM_THREADS=str(a.threads))
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]), process_s=time.time() - start)


def in_turn(ours, theirs, a):
    """Medians of both sides over the rounds."""
    runs = [(measure(ours, a), measure(theirs, a)) for _ in range(a.rounds)]
    return [{key: statistics.median(run[side][key] for run in runs) for key, value in runs[0][side].items()
             if isinstance(value, (int, float))} for side in (0, 1)]


def ratio(ours, theirs, key, target):
    r = ours[key] / theirs[key]
    mark = "*" if target and r > target else ""
    return f"{r:.2f}{mark}" + (f" ({target:.2f})" if target else "")


def steps(a):
    program = build("-p", "sparta-benches", "--bench", "steps")["steps"]
    python = peer_python(a.python)
    print(f"{processor()}; {a.threads} threads, {a.precision} on both sides\n")
    print("| shape, batch x tokens | method | ours s | theirs s | ratio (target) | ours GFLOP/s | ours MiB | theirs MiB | "
          "ratio (target) | start to first step s | others |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for cell in a.cells.split(",") if a.cells else TARGETS[a.precision]:
        shape, size = cell.split(":")
        batch, tokens = size.split("x")
        for name in a.methods.split(","):
            options = ["--shape", shape.replace("/", ","), "--batch", batch, "--tokens", tokens, "--threads", a.threads,
                       "--seconds", a.seconds, "--precision", a.precision, "--method", *METHODS[name]]
            ours, theirs = [program, *options, "--weights", a.precision], [python, HERE / "peer.py", *options]
            ours, theirs = in_turn(ours, theirs, a)
            memory_target = MEMORY_TARGETS.get(name) if shape == "110M" and a.precision == "f32" else None
            others = max(side["others_cpu_share"] for side in (ours, theirs))
            print(f"| {shape}, {batch} x {tokens} | {name} | {ours['step_s']:.3f} | {theirs['step_s']:.3f} | "
                  f"{ratio(ours, theirs, 'step_s', TARGETS[a.precision].get(cell, {}).get(name))} | {ours['gflops']:.0f} | "
                  f"{ours['peak_above_start_mib']:.0f} | {theirs['peak_above_start_mib']:.0f} | "
                  f"{ratio(ours, theirs, 'peak_above_start_mib', memory_target)} | "
                  f"{ours['start_to_first_step_s']:.2f} | {100 * others:.0f} %{'?' if others > 0.05 else ''} |", flush=True)


def epoch(a):
    if not (a.model and a.data):
        raise SystemExit("--epoch needs --model DIR and --data DIR with SST-2's train.tsv and dev.tsv")
    program = build()["sparta-cli"]
    python = peer_python(a.python)
    print("| method | epochs | ours s | theirs s | ratio (target) | accuracy | theirs |")
    print("|---|---|---|---|---|---|---|")
    for name in a.methods.split(","):
        if name not in EPOCHS:
            continue
        recipe = ["--model", a.model, "--data", a.data, "--method", *METHODS[name], "--epochs", EPOCHS[name],
                  "--batch-size", 32, "--max-length", 64, "--lr", {"full": 3e-4, "head": 1e-2}.get(name, 3e-3)]
        with tempfile.TemporaryDirectory() as scratch:
            runs = iter(range(a.rounds))
            ours = lambda: [program, "run", "--task", "sst2", *recipe, "--device", "cpu", "--json", "--out",
                            f"{scratch}/{next(runs)}"]
            theirs = [python, HERE / "epoch.py", *recipe, "--threads", a.threads]
            pairs = [(measure(ours(), a), measure(theirs, a)) for _ in range(a.rounds)]
        ours_s = statistics.median(run[0]["process_s"] for run in pairs)
        theirs_s = statistics.median(run[1]["seconds"] for run in pairs)
        accuracy = pairs[0][0]["test"]["accuracy"], pairs[0][1]["accuracy"]
        times = ratio({"s": ours_s}, {"s": theirs_s}, "s", EPOCH_TARGETS[name])
        print(f"| {name} | {EPOCHS[name]} | {ours_s:.1f} | {theirs_s:.1f} | {times} | {accuracy[0]:.3f} | "
              f"{accuracy[1]:.3f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", help="SHAPE:BATCHxTOKENS,... where SHAPE is 15M, 110M or "
                        "hidden/layers/heads/kv_heads/intermediate/vocab")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--precision", choices=TARGETS, default="f32", help="of both sides, for single steps")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--seconds", type=float, default=8, help="measured in each run of a step")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for a quiet machine, at most")
    parser.add_argument("--python", help="an interpreter that has the peer's packages")
    parser.add_argument("--epoch", action="store_true", help="an epoch of SST-2 instead of single steps")
    parser.add_argument("--model", help="for --epoch: the model's directory")
    parser.add_argument("--data", help="for --epoch: the directory with SST-2's TSV files")
    a = parser.parse_args()
    epoch(a) if a.epoch else steps(a)


if __name__ == "__main__":
    main()
