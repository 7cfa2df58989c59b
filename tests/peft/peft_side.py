"""PEFT's side of tests/peft: the probabilities of each line of stdin, as JSON.

    peft_side.py load BASE ADAPTER            # with an adapter that is there
    peft_side.py merged BASE ADAPTER          # the same after merge_and_unload
    peft_side.py lora BASE ADAPTER            # with a new one of random values, which is saved; or supertuning, or shira
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, ShiraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification


def new(kind):
    layers = ["k_proj", "o_proj"]
    if kind == "lora":
        return LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=12, use_rslora=True, target_modules=layers)
    if kind == "shira":
        return ShiraConfig(task_type="SEQ_CLS", r=4, random_seed=3, target_modules=layers)
    from peft import SupertuningConfig

    saved = ["score", "model.layers.1.input_layernorm"]
    return SupertuningConfig(task_type="SEQ_CLS", sparsity=0.9, target_modules=layers, modules_to_save=saved)


def main():
    what, base, adapter = sys.argv[1:]
    torch.manual_seed(1)
    tokenizer = Tokenizer.from_file(str(Path(base) / "tokenizer.json"))
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)
    model.config.pad_token_id = 0
    if what in ("load", "merged"):
        model = PeftModel.from_pretrained(model, adapter)
        if what == "merged":
            model = model.merge_and_unload()
    else:
        model = get_peft_model(model, new(what))
        for p in model.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, std=0.1)
        model.save_pretrained(adapter)
    model.eval()
    with torch.no_grad():
        for text in sys.stdin.read().splitlines():
            ids = torch.tensor([tokenizer.encode(text).ids])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            print(json.dumps(torch.softmax(logits, -1).tolist()))


if __name__ == "__main__":
    main()
