#!/usr/bin/env python3
"""Makes the folders of the families from the complete golden data of the reference oracle. Needs nothing but Python.

    python3 make.py ORACLE/golden

The oracle, which is not part of the repository, runs PyTorch and transformers on tiny checkpoints of nine decoder families.
What is kept here:

<family>/config.json, config.v4.json   as they are (layouts of transformers 5 and 4)
<family>/model.safetensors             the classifier's weights in bf16, in which they are exact
<family>/lm_head.safetensors           the output weights of the language model, where they are not tied; the rest is the same
<family>/batch.safetensors             as it is
<family>/cls.safetensors               logits, loss, last_hidden_state, and the gradient of the loss for each parameter
<family>/lm.safetensors                the same for the language model, without hidden states
<family>/train.safetensors             20 steps of each method: batches, start, chosen positions, gradients of step 1, result
<family>/train.json                    loss, gradient norm and clip factor of each step, logits of batch.safetensors after training

A long tensor X is kept as "everyN.X", its elements 0, N, 2N ... flat; N is odd, so that every column occurs. Of such a
gradient "norm.X" is the L2 norm of all elements.
"""

import array
import json
import math
import pathlib
import shutil
import struct
import sys

FAMILIES = ["gemma", "gemma2", "gemma3", "mistral", "llama", "smollm3", "phi3", "qwen2", "qwen3"]
# Families whose runs are repeated; of another only the losses and the logits after training are kept, for its adapter.
TRAINED = ["gemma", "mistral", "phi3"]
METHODS = ["full", "lora", "head", "sparta_adam", "sparta_adamw"]
# Tensors with more elements than this are thinned.
SHORT = 2048


def load(path):
    """{name: (dtype, shape, bytes)}"""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    header.pop("__metadata__", None)
    return {n: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for n, t in header.items()}


def save(path, tensors):
    header, end = {}, 0
    for name, (dtype, shape, data) in sorted(tensors.items()):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors[n][2] for n in sorted(tensors)))


def bf16(tensor):
    dtype, shape, data = tensor
    words = array.array("I", data)
    assert dtype == "F32" and all(w & 0xFFFF == 0 for w in words), "not exact in bf16"
    return "BF16", shape, array.array("H", [w >> 16 for w in words]).tobytes()


def u32(tensor):
    dtype, shape, data = tensor
    assert dtype == "I64"
    return "U32", shape, array.array("I", array.array("q", data)).tobytes()


def thin(prefix, tensors, every):
    """Every n-th element of long tensors, with the norm of all of them."""
    out = {}
    for name, (dtype, shape, data) in tensors.items():
        name = prefix + name
        values = array.array("f", data)
        assert dtype == "F32"
        if len(values) <= SHORT:
            out[name] = dtype, shape, data
            continue
        kept = values[::every]
        norm = array.array("f", [math.sqrt(math.fsum(v * v for v in values))])
        out[f"every{every}.{name}"] = dtype, [len(kept)], kept.tobytes()
        out[f"norm.{name}"] = dtype, [1], norm.tobytes()
    return out


def family(source, target):
    target.mkdir(exist_ok=True)
    for name in ["config.json", "config.v4.json", "batch.safetensors"]:
        shutil.copyfile(source / name, target / name)
    model, lm = load(source / "model.safetensors"), load(source / "causal_lm/model.safetensors")
    save(target / "model.safetensors", {n: bf16(t) for n, t in model.items()})
    assert all(model[n] == t for n, t in lm.items() if n != "lm_head.weight")
    if "lm_head.weight" in lm:
        save(target / "lm_head.safetensors", {"lm_head.weight": bf16(lm["lm_head.weight"])})
    expected = load(source / "expected.safetensors")
    kept = {n: expected[n] for n in ["logits", "loss", "last_hidden_state"]}
    save(target / "cls.safetensors", kept | thin("grad.", load(source / "grads.safetensors"), 3))
    expected = thin("", load(source / "causal_lm/expected.safetensors"), 7)
    save(target / "lm.safetensors", expected | thin("grad.", load(source / "causal_lm/grads.safetensors"), 17))


def trajectories(source, target):
    tensors = {f"stream.{n}": t for n, t in load(source / "stream.safetensors").items()}
    tensors |= {f"indices.{n}": u32(t) for n, t in load(source / "sparta_indices.safetensors").items()}
    tensors |= {f"lora.init.{n}": t for n, t in load(source / "lora/init.safetensors").items()}
    logs = {}
    for method in METHODS:
        for file, part in [("final", "final"), ("step1_grads", "grad")]:
            path = source / method / f"{file}.safetensors"
            if path.exists():
                tensors |= thin(f"{method}.{part}.", load(path), 17)
        log = json.loads((source / method / "log.json").read_text())
        logs[method] = {
            "lr": log["optimizer"]["lr"],
            "weight_decay": log["optimizer"]["weight_decay"],
            "max_grad_norm": log["optimizer"]["max_grad_norm"],
            **{key: [step[key] for step in log["steps"]] for key in ["loss", "grad_norm", "clip_coef"]},
            "eval_logits_after": log["eval_logits_after"],
        }
    if target.name in TRAINED:
        save(target / "train.safetensors", tensors)
    (target / "train.json").write_text(json.dumps(logs, indent=1) + "\n")


def main():
    source, target = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
    for name in FAMILIES:
        family(source / name, target / name)
        if (source / name / "train").exists():
            trajectories(source / name / "train", target / name)


if __name__ == "__main__":
    main()
