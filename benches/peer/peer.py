"""One cell of PyTorch + transformers + peft, as one JSON line with the keys of benches/steps.rs.

    python peer.py --shape 15M --batch 16 --tokens 64 --method sparta --density 0.05 --threads 2

sdpa attention, fused AdamW, classification of sequences without padding. With `--precision bf16` weights, activations,
gradients and moments are bf16, except for SpaRTA's deltas and what peft keeps in f32.

SpaRTA in f32 has its published form: before each forward pass the chosen elements are written into the frozen weight by
`index_put_`, and autograd differentiates that, which computes the dense gradient of every weight. In bf16 a hook gathers
the chosen elements of each dense gradient and frees it, which is faster. LoRA is peft's, r 8 on q and v. For `head` the
frozen body builds no autograd graph.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers

SHAPES = {"15M": (288, 6, 6, 6, 768, 32000), "110M": (768, 12, 12, 12, 2048, 32000)}


def memory(key):
    """MiB of a line of /proc/self/status."""
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key + ":"))
    return int(line.split()[1]) / 1024


def cpu_seconds():
    """Of the whole machine and of this process."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    own = os.times()
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def config(shape, tokens, **more):
    hidden, layers, heads, kv_heads, intermediate, vocab = shape
    return transformers.LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=intermediate, vocab_size=vocab, num_labels=2, pad_token_id=0, use_cache=False,
        max_position_embeddings=max(512, tokens), **more)


def classifier(shape, tokens, dtype=torch.float32):
    cls = transformers.LlamaForSequenceClassification
    return cls._from_config(config(shape, tokens), attn_implementation="sdpa", dtype=dtype).train()


def optimizer(tensors, lr=1e-4):
    return torch.optim.AdamW(tensors, lr=lr, weight_decay=0.01, fused=True)


class Full:
    def __init__(self, model, density):
        self.model, self.trained = model, list(model.parameters())

    def before(self):
        pass


class Head(Full):
    def __init__(self, model, density):
        super().__init__(model, density)
        model.requires_grad_(False)
        self.trained = [model.score.weight.requires_grad_(True)]


class Lora(Full):
    def __init__(self, model, density):
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
        self.model = get_peft_model(model, lora)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]


class Sparta(Head):
    """`density` of the scalars of every layer and norm, and the head."""

    def __init__(self, model, density):
        super().__init__(model, density)
        self.parts = []
        for name, p in model.named_parameters():
            if "embed_tokens" in name or p is model.score.weight:
                continue
            chosen = (torch.rand(p.numel()) < density).nonzero().view(-1)
            where = torch.unravel_index(chosen, p.shape)
            base = p.data.view(-1)[chosen].clone()
            self.parts.append((p, where, base, torch.zeros(len(chosen), requires_grad=True)))
        self.trained = self.trained + [delta for *_, delta in self.parts]

    def before(self):
        for p, where, base, delta in self.parts:
            p.detach_()
            p.index_put_(where, base + delta)


class GatheredSparta(Head):
    """SpaRTA whose dense gradients are gathered and freed at once."""

    def __init__(self, model, density):
        super().__init__(model, density)
        self.parts = []
        for name, p in model.named_parameters():
            if "embed_tokens" in name or p is model.score.weight:
                continue
            chosen = (torch.rand(p.numel()) < density).nonzero().view(-1)
            delta = torch.zeros(len(chosen))
            p.requires_grad_(True).register_post_accumulate_grad_hook(self.gather(chosen, delta))
            self.parts.append((p, chosen, p.data.view(-1)[chosen].clone(), delta))
        self.trained = self.trained + [delta for *_, delta in self.parts]

    @staticmethod
    def gather(chosen, delta):
        def hook(p):
            delta.grad = p.grad.view(-1)[chosen].float()
            p.grad = None

        return hook

    def before(self):
        for p, chosen, base, delta in self.parts:
            p.data.view(-1)[chosen] = (base + delta).to(p.dtype)


METHODS = {"full": Full, "head": Head, "lora": Lora, "sparta": Sparta}


def train(trainer, step, batch):
    trainer.before()
    step.zero_grad(set_to_none=True)
    loss = trainer.model(**batch).loss
    loss.backward()
    step.step()
    return loss.item()


def first_use():
    """A toy step, so that what the libraries load late counts as theirs and not as training."""
    model = Lora(classifier((32, 1, 2, 2, 32, 64), 8), 0)
    ids = torch.ones(2, 8, dtype=torch.int64)
    train(model, optimizer(model.trained), dict(input_ids=ids, attention_mask=ids, labels=ids[:, 0]))


def step_cell(a):
    shape = SHAPES.get(a.shape) or tuple(int(x) for x in a.shape.split(","))
    first_use()
    Path("/proc/self/clear_refs").write_text("5")
    at_start = memory("VmRSS")
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[a.precision]
    method = GatheredSparta if a.method == "sparta" and a.precision == "bf16" else METHODS[a.method]
    trainer = method(classifier(shape, a.tokens, dtype), a.density)
    step = optimizer(trainer.trained)
    ids = torch.randint(1, shape[5], (a.batch, a.tokens))
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.randint(0, 2, (a.batch,)))
    train(trainer, step, batch)
    seconds, start, (busy, own) = [], time.perf_counter(), cpu_seconds()
    while len(seconds) < 7 or time.perf_counter() - start < a.seconds:
        t = time.perf_counter()
        loss = train(trainer, step, batch)
        seconds.append(time.perf_counter() - t)
    wall, (busy_now, own_now) = time.perf_counter() - start, cpu_seconds()
    others = (busy_now - busy) - (own_now - own)
    median = statistics.median(seconds)
    return dict(
        steps=len(seconds), step_s=median, step_s_min=min(seconds), cpu_s=(own_now - own) / len(seconds),
        tokens_per_s=a.batch * a.tokens / median, others_cpu_share=max(0, others) / wall / os.cpu_count(), loss=loss,
        trained=sum(p.numel() for p in trainer.trained), peak_above_start_mib=memory("VmHWM") - at_start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="15M")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--method", choices=METHODS, default="sparta")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=10)
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    print(json.dumps(step_cell(a)))


if __name__ == "__main__":
    main()
