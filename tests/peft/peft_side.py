"""PEFT's side of tests/peft.rs: the probabilities of each line of stdin, as JSON.

    peft_side.py load BASE ADAPTER     # with an adapter that is there
    peft_side.py make BASE ADAPTER     # with a new one of random values, which is saved
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification


def main():
    what, base, adapter = sys.argv[1:]
    torch.manual_seed(1)
    tokenizer = Tokenizer.from_file(str(Path(base) / "tokenizer.json"))
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)
    model.config.pad_token_id = 0
    if what == "load":
        model = PeftModel.from_pretrained(model, adapter)
    else:
        lora = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=12, use_rslora=True, target_modules=["k_proj", "o_proj"])
        model = get_peft_model(model, lora)
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
