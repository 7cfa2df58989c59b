"""Training runs of PEFT's methods, and of independent implementations, on the tiny models of ../llama and ../qwen2, for
tests/more.rs.

    python make.py        # with torch, transformers 5.23 and peft 0.21

Ten steps each: mean cross-entropy of four sequences, clip the global norm to 1, AdamW without decay, constant rate. The file has
of each method `init.`, `final.` and `constant.` tensors under our names, and `losses`; `tokens`, `lengths` and `labels` are
the batches. Of methods that choose elements it has `share` and `index.` tensors.
"""

import hashlib
import pathlib
import re

import numpy
import torch
from peft import IA3Config, LoraConfig, TaskType, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

HERE = pathlib.Path(__file__).resolve().parent
STEPS, BATCH, LONGEST, LR = 10, 4, 16, 5e-3


def base(family):
    directory = HERE.parent / family
    config = AutoConfig.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_config(config).float()
    weights = {name: tensor.float() for name, tensor in load_file(directory / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return model


def batches(vocabulary, classes):
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, LONGEST + 1, (STEPS, BATCH), generator=generator)
    tokens = torch.randint(3, vocabulary - 1, (STEPS, BATCH, LONGEST), generator=generator)
    labels = torch.randint(0, classes, (STEPS, BATCH), generator=generator)
    tokens[torch.arange(LONGEST) >= lengths[..., None]] = 0
    return tokens, lengths, labels


def ours(name, method):
    name = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "").replace(".default", "")
    if name == "score.weight":
        return name
    name = re.sub(r"\.ia3_l$", ".ia3", name)
    name = re.sub(r"\.vera_lambda_(\w)$", r".vera_\1", name)
    if method == "dora":
        name = re.sub(r"\.lora_magnitude_vector\.weight$", ".dora_magnitude", name)
        name = re.sub(r"\.lora_([AB])\.weight$", r".dora_\1", name)
    return re.sub(r"\.lora_([AB])\.weight$", r".lora_\1", name)


def loss_of(model, step):
    tokens, lengths, labels = batches(model.config.vocab_size, model.config.num_labels)
    mask = (torch.arange(LONGEST) < lengths[step][:, None]).long()
    ids = torch.where(mask.bool(), tokens[step], model.config.pad_token_id)
    return model(input_ids=ids, attention_mask=mask, labels=labels[step]).loss


def adamw(trained, rate=lambda name: LR):
    return torch.optim.AdamW([{"params": [p], "lr": rate(name)} for name, p in trained.items()], weight_decay=0.0)


def update(model, step, optimizer, trained, masks=None):
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    for name, mask in (masks or {}).items():
        trained[name].grad *= mask
    torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
    optimizer.step()
    return loss.item()


def train(method, family, wrap, rate=lambda name: LR, before=lambda model, step: None, after=lambda trained: None):
    """`rate` is the learning rate of a tensor; `before` and `after` are called around the forward pass and the update."""
    torch.manual_seed(3)
    model = wrap(base(family))
    model.eval()
    trained = {ours(name, method): p for name, p in model.named_parameters() if p.requires_grad}
    out = {f"{method}.init.{name}": p.detach().reshape(p.shape if p.dim() == 2 and min(p.shape) > 1 else -1).clone()
           for name, p in trained.items()}
    for name, tensor in model.named_buffers():
        if "vera_A" in name or "vera_B" in name:
            out[f"{method}.constant.shared.{'vera_A' if 'vera_A' in name else 'vera_B'}"] = tensor.detach().clone()
    optimizer = adamw(trained, rate)
    losses = []
    for step in range(STEPS):
        before(model, step)
        losses.append(update(model, step, optimizer, trained))
        after(trained)
    for name, p in trained.items():
        start = out[f"{method}.init.{name}"]
        out[f"{method}.final.{name}"] = p.detach().reshape(start.shape).clone()
    out[f"{method}.losses"] = torch.tensor(losses)
    print(method, [round(x, 4) for x in losses], sum(p.numel() for p in trained.values()))
    return out


def bitfit(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith(".bias") or name == "score.weight"
    return model


def peft(config):
    return lambda model: get_peft_model(model, config)


class Added(torch.nn.Module):
    """A linear layer q or v with low-rank factors; subclasses say what it computes."""

    def __init__(self, linear, prefix, r, alpha):
        super().__init__()
        self.base, self.prefix, self.scale = linear, prefix, alpha / r
        out, inputs = linear.weight.shape
        a = torch.empty(r, inputs).uniform_(-(inputs ** -0.5), inputs ** -0.5)
        self.register_parameter(f"{prefix}_A", torch.nn.Parameter(a))
        self.register_parameter(f"{prefix}_B", torch.nn.Parameter(torch.zeros(out, r)))

    def factors(self):
        return getattr(self, f"{self.prefix}_A"), getattr(self, f"{self.prefix}_B")


class Sora(Added):
    def __init__(self, linear):
        super().__init__(linear, "sora", r=8, alpha=16)
        self.sora_gate = torch.nn.Parameter(torch.randn(8))

    def forward(self, x):
        a, b = self.factors()
        return self.base(x) + self.scale * ((x @ a.T) * self.sora_gate) @ b.T

    LAMBDA = 10.0

    @staticmethod
    def threshold(trained):
        for name, p in trained.items():
            if name.endswith("gate"):
                p.data = torch.nn.functional.softshrink(p.data, LR * Sora.LAMBDA)


class DeltaDropout(Added):
    P = 0.5

    def __init__(self, linear):
        super().__init__(linear, "delta", r=4, alpha=8)
        self.keep = None

    def forward(self, x):
        a, b = self.factors()
        delta = self.scale * (b @ a) * self.keep / (1 - self.P)
        return torch.nn.functional.linear(x, self.base.weight + delta)

    @staticmethod
    def draw(model, step):
        name = int.from_bytes(hashlib.sha256(b"dropout:").digest()[:8], "little")
        counter = (step + 1) << 20
        halves = [counter & 0xFFFFFFFF, counter >> 32, name & 0xFFFFFFFF, name >> 32]
        key = philox([numpy.array([x], dtype=numpy.uint64) for x in halves], [7, 0])[0]
        for layer, block in enumerate(model.model.layers):
            for salt, module in enumerate([block.self_attn.q_proj, block.self_attn.v_proj]):
                n = module.base.weight.numel()
                index = numpy.arange((n + 3) // 4, dtype=numpy.uint64)
                zeros = numpy.zeros_like(index)
                words = philox([index, zeros + (1 << 31 | layer << 1 | salt), zeros, zeros], [int(key[0]), int(key[1])])
                kept = words.reshape(-1)[:n] / 2.0**32 >= DeltaDropout.P
                module.keep = torch.tensor(kept, dtype=torch.float32).reshape(module.base.weight.shape)


def philox(counter, key):
    """Philox 4x32-10: four words for each counter."""
    c, k = list(counter), list(key)
    low = numpy.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c[0] * numpy.uint64(0xD2511F53), c[2] * numpy.uint64(0xCD9E8D57)
        shift = numpy.uint64(32)
        c = [(p1 >> shift) ^ c[1] ^ numpy.uint64(k[0]), p1 & low, (p0 >> shift) ^ c[3] ^ numpy.uint64(k[1]), p0 & low]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return numpy.stack(c, axis=1)


def replaced(layer):
    def wrap(model):
        model.requires_grad_(False)
        model.score.weight.requires_grad = True
        for block in model.model.layers:
            block.self_attn.q_proj = layer(block.self_attn.q_proj)
            block.self_attn.v_proj = layer(block.self_attn.v_proj)
        return model
    return wrap


def chosen(method, scores):
    """Scores the linear layers, trains the highest ones among about 1 %, and the head. Where the number ends is where the
    scores have the widest gap, so that no rounding changes the choice."""
    model = base("llama").eval()
    trained = {name: p for name, p in model.named_parameters() if "_proj" in name or name == "score.weight"}
    for name, p in model.named_parameters():
        p.requires_grad = name in trained
    start = {name: p.detach().clone() for name, p in trained.items()}
    scores = scores(model, trained, start)
    layers = [name for name in trained if name != "score.weight"]
    flat = torch.cat([scores[name].reshape(-1) for name in layers]).sort(descending=True).values
    few = len(flat) // 100
    gaps = flat[few - 200:few + 199] / flat[few - 199:few + 200]
    count = few - 199 + int(gaps.argmax())
    print(method, "gap", float(gaps.max()), "at", count, "of", len(flat))
    assert gaps.max() > 1.0002
    masks = {name: (scores[name] >= flat[count - 1]).float() for name in layers}
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(start[name])
    optimizer = adamw(trained)
    losses = [update(model, step, optimizer, trained, masks) for step in range(STEPS)]
    out = {f"{method}.losses": torch.tensor(losses), f"{method}.share": torch.tensor([count / len(flat)]),
           f"{method}.init.score.weight": start["score.weight"],
           f"{method}.final.score.weight": trained["score.weight"].detach().clone()}
    for name in layers:
        index = masks[name].reshape(-1).nonzero().reshape(-1)
        change = (trained[name].detach() - start[name]).reshape(-1)[index]
        out[f"{method}.index.{name}"] = index.int()
        if len(index) > 0:
            out[f"{method}.init.delta.{name}"] = torch.zeros_like(change)
            out[f"{method}.final.delta.{name}"] = change
    print(method, [round(x, 4) for x in losses])
    return out


def changes(model, trained, start):
    optimizer = adamw(trained)
    for step in range(5):
        update(model, step, optimizer, trained)
    return {name: (p.detach() - start[name]).abs() for name, p in trained.items()}


def gradients(of):
    def scores(model, trained, start):
        sums = {name: torch.zeros_like(p) for name, p in trained.items()}
        for step in range(3):
            model.zero_grad()
            loss_of(model, step).backward()
            for name, p in trained.items():
                sums[name] += of(p.grad, start[name])
        return sums
    return scores


def main():
    common = dict(task_type=TaskType.SEQ_CLS, modules_to_save=["score"])
    ia3 = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **common)
    dora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_dora=True, **common)
    vera = VeraConfig(r=8, target_modules=["q_proj", "v_proj"], d_initial=0.1, **common)
    out = {}
    for method, family, wrap in [("ia3", "llama", peft(ia3)), ("dora", "llama", peft(dora)), ("vera", "llama", peft(vera)),
                                 ("bitfit", "qwen2", bitfit), ("ia3-bias", "qwen2", peft(ia3))]:
        out |= train(method, family, wrap)
    plus = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True, **common)
    out |= train("lora", "llama", peft(plus), rate=lambda name: LR * (16 if name.endswith("lora_B") else 1))
    out |= train("sora", "llama", replaced(Sora), after=Sora.threshold)
    out |= train("delta-dropout", "llama", replaced(DeltaDropout), before=DeltaDropout.draw)
    out |= chosen("lt-sft", changes)
    out |= chosen("fisher", gradients(lambda g, w: g * g))
    out |= chosen("snip", gradients(lambda g, w: (g * w).abs()))
    tokens, lengths, labels = batches(300, 3)
    out |= {"tokens": tokens.int(), "lengths": lengths.int(), "labels": labels.int()}
    out = {name: tensor.contiguous() for name, tensor in out.items()}
    save_file(out, HERE / "runs.safetensors")


if __name__ == "__main__":
    main()
