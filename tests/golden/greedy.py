#!/usr/bin/env python3
"""Writes greedy.json: how transformers continues the first tokens of each family's batch, always with the most probable
token.

    python3 greedy.py        # with the packages that make.py needs
"""

import json
import pathlib

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from make import FAMILIES

HERE = pathlib.Path(__file__).parent
# Together within the original context of Phi-3's longrope, so that its short factors apply.
PROMPT, TOKENS = 5, 24
# The logits of the two most probable tokens differ by more than implementations in f32 do.
MARGIN = 1e-3


def continued(directory):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory)).float().eval()
    weights = load_file(directory / "model.safetensors")
    if (directory / "lm_head.safetensors").exists():
        weights |= load_file(directory / "lm_head.safetensors")
    weights.pop("score.weight")
    weights = {name: weight.float() for name, weight in weights.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"} and (not missing or model.config.tie_word_embeddings)
    model.tie_weights()
    batch = load_file(directory / "batch.safetensors")
    row = batch["input_ids"][0][batch["attention_mask"][0] == 1]
    prompt, tokens = row[:PROMPT].tolist(), []
    with torch.no_grad():
        while len(tokens) < TOKENS:
            logits = model(torch.tensor([prompt + tokens])).logits[0, -1]
            best = logits.topk(2)
            assert best.values[0] - best.values[1] > MARGIN, f"{directory}: two tokens are equally probable"
            tokens.append(best.indices[0].item())
    return {"prompt": prompt, "tokens": tokens}


def main():
    found = {family: continued(HERE / family) for family in FAMILIES}
    lines = ",\n".join(f" {json.dumps(family)}: {json.dumps(value)}" for family, value in found.items())
    (HERE / "greedy.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
