#!/usr/bin/env python3
"""Writes golden.json: what transformers computes with the model of convert.py, in f64. Needs PyTorch and transformers.

    python3 golden.py MODEL
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PARAGRAPH = (
    "The sun rises in the east and sets in the west. Plants use its light to make sugar from water and carbon dioxide, "
    "and they give off oxygen, which animals need to breathe. At night, when there is no light, plants use some of the "
    "sugar that they have stored during the day."
)
CAPITAL = "The capital of France is"
QUESTION = [
    {"role": "system", "content": "You answer in one word."},
    {"role": "user", "content": "What is the capital of Italy?"},
    {"role": "assistant", "content": "Rome"},
    {"role": "user", "content": "And of Spain?"},
]
TOKENS = 24


def main():
    directory = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    models = {t: AutoModelForCausalLM.from_pretrained(directory, dtype=t).eval() for t in (torch.float32, torch.float64)}
    logits = {}
    ids = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.no_grad():
        for dtype, model in models.items():
            logits[dtype] = model(ids).logits[0].double()
        exact = logits[torch.float64]
        loss = torch.nn.functional.cross_entropy(exact[:-1], ids[0, 1:]).item()
        prompt = tokenizer(CAPITAL, return_tensors="pt")
        model = models[torch.float32]

        def go_on(prompt):
            return model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)[0, prompt.input_ids.shape[1] :]

        text = go_on(prompt)
        rendered = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
        answer = go_on(tokenizer(rendered, return_tensors="pt", add_special_tokens=False))
    golden = {
        "paragraph": PARAGRAPH,
        "ids": ids[0].tolist(),
        "loss": loss,
        # Every 997th logit of the last row.
        "logits": exact[-1, ::997].tolist(),
        "distance_of_f32": (logits[torch.float32] - exact).abs().max().item(),
        "prompt": CAPITAL,
        "greedy": tokenizer.decode(text),
        "messages": QUESTION,
        "rendered": rendered,
        "answer": tokenizer.decode(answer, skip_special_tokens=True),
    }
    path = pathlib.Path(__file__).parent / "golden.json"
    path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
