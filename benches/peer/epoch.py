"""SST-2 end to end in PyTorch: tokenisation, training with dynamic padding per batch, evaluation; one JSON line.

Batches of 32 in random order padded to their longest, AdamW without decay, norm clipped to 1, linear warm-up over 6 % of
the steps and then linear to 0, f32, sdpa. `seconds` counts from after the imports.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import transformers

import peer

START = time.perf_counter()


class Sparta(peer.Head):
    """`density` of all scalars, chosen in the layers and norms; what a user would write by hand: the dense gradient of
    each weight is gathered and freed as soon as it is complete."""

    def __init__(self, model, density):
        super().__init__(model, density)
        body = {n: p for n, p in model.named_parameters() if "score" not in n}
        targets = [p for n, p in body.items() if "embed_tokens" not in n]
        share = density * sum(p.numel() for p in body.values()) / sum(p.numel() for p in targets)
        self.parts = []
        for p in targets:
            chosen = (torch.rand(p.numel()) < share).nonzero().view(-1)
            base, delta = p.data.view(-1)[chosen].clone(), torch.zeros(len(chosen), requires_grad=True)
            p.requires_grad_(True).register_post_accumulate_grad_hook(self.gather(chosen, delta))
            self.parts.append((p, chosen, base, delta))
        self.trained = self.trained + [delta for *_, delta in self.parts]

    @staticmethod
    def gather(chosen, delta):
        def hook(p):
            delta.grad, p.grad = p.grad.view(-1)[chosen], None
        return hook

    def before(self):
        with torch.no_grad():
            for p, chosen, base, delta in self.parts:
                p.view(-1)[chosen] = base + delta


def examples(path, tokenizer):
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    pairs = [line.rstrip("\r").split("\t") for line in lines if line]
    tokens = tokenizer([text for text, _ in pairs])["input_ids"]
    return [(ids, int(label)) for ids, (_, label) in zip(tokens, pairs)]


def padded(rows, pad):
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for i, (tokens, _) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = 1
    return dict(input_ids=ids, attention_mask=mask, labels=torch.tensor([label for _, label in rows]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--method", choices=peer.METHODS, required=True)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(a.model)
    train = [x for x in examples(a.data / "train.tsv", tokenizer) if len(x[0]) <= a.max_length]
    test = sorted(examples(a.data / "dev.tsv", tokenizer), key=lambda x: len(x[0]))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        a.model, num_labels=2, dtype=torch.float32, attn_implementation="sdpa")
    model.config.pad_token_id = pad = tokenizer.pad_token_id
    torch.nn.init.normal_(model.score.weight, std=0.02)
    trainer = dict(peer.METHODS, sparta=Sparta)[a.method](model, a.density)
    step = torch.optim.AdamW(trainer.trained, lr=a.lr, weight_decay=0.0, fused=True)
    steps = a.epochs * -(-len(train) // a.batch_size)
    warm = max(1, int(0.06 * steps))
    rate = lambda s: (s + 1) / warm if s < warm else max(0.0, (steps - s) / (steps - warm))
    schedule = torch.optim.lr_scheduler.LambdaLR(step, rate)

    trainer.model.train()
    for _ in range(a.epochs):
        order = torch.randperm(len(train)).tolist()
        for i in range(0, len(order), a.batch_size):
            trainer.before()
            trainer.model(**padded([train[j] for j in order[i : i + a.batch_size]], pad)).loss.backward()
            torch.nn.utils.clip_grad_norm_(trainer.trained, 1.0)
            step.step()
            schedule.step()
            step.zero_grad(set_to_none=True)
    trainer.before()
    trainer.model.eval()
    right = 0
    with torch.no_grad():
        for i in range(0, len(test), 64):
            batch = padded(test[i : i + 64], pad)
            right += (trainer.model(**batch).logits.argmax(-1) == batch["labels"]).sum().item()
    print(json.dumps(dict(seconds=time.perf_counter() - START, accuracy=right / len(test), steps=steps)))


if __name__ == "__main__":
    main()
