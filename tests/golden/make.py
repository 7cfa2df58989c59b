#!/usr/bin/env python3
"""Makes the folders of the families: tiny models, and what transformers, PyTorch and PEFT compute with them.

    python3 make.py FAMILY...        # with torch, transformers 5.23, peft 0.21 and safetensors

A new family is a line in FAMILIES, and the file FAMILY/config.json in the layout of transformers 5: 2 layers, 3 labels, and
sizes like those of the others. All random numbers come from seeds. Results differ in their last bits between processors, so
make only the families that change; the distance of each new file from the one it replaces is printed. What is written:

<family>/config.v4.json       config.json in the layout of transformers 4, if it is missing and the rotations are plain ones
<family>/model.safetensors    the classifier's weights in bf16, in which they are exact
<family>/lm_head.safetensors  the output weights of the language model, where they are not tied; the rest is the same
<family>/batch.safetensors    three sequences, padded on the right; two of them are longer than a sliding window of 8
<family>/cls.safetensors      logits, loss, last_hidden_state, and the gradient of the loss for each parameter
<family>/lm.safetensors       the same for the language model, without hidden states
<family>/train.safetensors    20 steps of each method: batches, start, chosen positions, gradients of step 1, result
<family>/train.json           loss, gradient norm and clip factor of each step, logits of batch.safetensors after training
<family>/peft_adapter/        the result of LoRA, as PEFT saves it

A long tensor X is kept as "everyN.X", its elements 0, N, 2N ... flat; N is odd, so that every column occurs. Of such a
tensor "norm.X" is the L2 norm of all elements.
"""

import hashlib
import json
import math
import pathlib
import sys

import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = pathlib.Path(__file__).resolve().parent
# `embedding` and `query` scale weights so that softmax and soft caps matter; `norm` is the neutral value of norm weights;
# `values` counts the rows of a fused projection that make V; `batch` is the seed of a batch whose loss in bf16 is typical.
FAMILIES = {
    "gemma": dict(seed=101, embedding=0.2, norm=0.0),
    "gemma2": dict(seed=202, embedding=0.4, norm=0.0, query=3.0),
    "gemma3": dict(seed=707, embedding=0.2, norm=0.0, batch=5010),
    "mistral": dict(seed=303),
    "llama": dict(seed=404),
    "smollm3": dict(seed=808),
    "phi3": dict(seed=929, values=32),
    "qwen2": dict(seed=505),
    "qwen3": dict(seed=606),
}
TRAINED = ["gemma", "gemma3", "mistral", "phi3"]
# Families whose runs are repeated; of the others, only the adapter, the losses and the logits after training are kept.
REPEATED = ["gemma", "mistral", "phi3"]
METHODS = {
    "full": dict(lr=1e-3, weight_decay=0.1),
    "lora": dict(lr=5e-3, weight_decay=0.1),
    "head": dict(lr=5e-3, weight_decay=0.1),
    "sparta_adam": dict(lr=5e-3, weight_decay=0.0),
    "sparta_adamw": dict(lr=5e-3, weight_decay=0.1),
}
STEPS, ROWS, LENGTH, LABELS, MAX_NORM = 20, 4, 12, 3, 1.0
DENSITY, RANK, ALPHA, LORA_TARGETS = 0.05, 8, 16, ("q_proj", "v_proj", "qkv_proj")
# Tensors with more elements than this are thinned.
SHORT = 2048


def generator(seed):
    return torch.Generator().manual_seed(seed)


def report(path, old, new):
    """Prints the largest difference of two sets of tensors."""
    if not old or {n: t.shape for n, t in old.items()} != {n: t.shape for n, t in new.items()}:
        return print(f"{path.relative_to(HERE)}: new")
    off = max(float((old[n].double() - new[n].double()).abs().max()) for n in new)
    print(f"{path.relative_to(HERE)}: differs by {off:.1e}")


def read(path):
    return load_file(path) if path.exists() else {}


def save(path, tensors, metadata=None):
    tensors = {n: t.detach().clone().contiguous() for n, t in tensors.items()}
    report(path, read(path), tensors)
    save_file(tensors, path, metadata)


def thin(prefix, tensors, every):
    """Every n-th element of long tensors, with the norm of all of them."""
    out = {prefix + n: t for n, t in tensors.items() if t.numel() <= SHORT}
    for name, tensor in tensors.items():
        if tensor.numel() > SHORT:
            out[f"every{every}.{prefix}{name}"] = tensor.flatten()[::every]
            out[f"norm.{prefix}{name}"] = tensor.detach().double().norm().float().reshape(1)
    return out


def draw(family, name, shape):
    """A weight, rounded to bf16. Its random numbers depend on its name, so language model and classifier have the same."""
    settings = FAMILIES[family]
    digest = hashlib.sha256(f"{settings['seed']}:{name}".encode()).digest()
    z = torch.randn(shape, generator=generator(int.from_bytes(digest[:7], "little")), dtype=torch.float64)
    scale, add, query = 1.0 / math.sqrt(shape[-1]), 0.0, settings.get("query", 1.6)
    if name.endswith("embed_tokens.weight"):
        scale = settings.get("embedding", 0.6)
    elif name.endswith("norm.weight"):
        scale, add = 0.3, settings.get("norm", 1.0)
    elif name.endswith("bias"):
        scale = 0.5
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        scale *= query
    elif name.endswith("qkv_proj.weight"):
        rows = [query] * (shape[0] - settings["values"]) + [1.0] * settings["values"]
        scale *= torch.tensor(rows, dtype=torch.float64)[:, None]
    elif name.endswith(("score.weight", "lm_head.weight")):
        scale *= 1.5
    return (z * scale + add).to(torch.bfloat16).float()


def build(family, kind=AutoModelForSequenceClassification):
    config = AutoConfig.from_pretrained(HERE / family)
    model = kind.from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw(family, name, tuple(parameter.shape)))
    return model.eval()


def batch_of(family, config):
    """Rows of 13, 7 and 10 tokens, some of them repeated, so that gradients of embeddings accumulate."""
    draws = generator(FAMILIES[family].get("batch", FAMILIES[family]["seed"] * 7 + 1))
    lengths = torch.tensor([13, 7, 10])
    ids = torch.full((3, 13), config.pad_token_id)
    for row, length in zip(ids, lengths.tolist()):
        row[0] = config.bos_token_id
        row[1:length] = torch.randint(10, 290, (length - 1,), generator=draws)
    ids[0, 5] = ids[1, 4] = ids[0, 3]
    mask = (torch.arange(13) < lengths[:, None]).long()
    lm_labels = torch.where(mask == 1, ids, -100)
    # A prompt, which has no loss.
    lm_labels[1, :3] = -100
    batch = dict(input_ids=ids, attention_mask=mask, lengths=lengths, lm_labels=lm_labels)
    return batch | dict(labels=torch.tensor([2, 0, 1]))


def passes(family):
    """One forward and backward pass of the classifier and of the language model."""
    target, model = HERE / family, build(family)
    batch = batch_of(family, model.config)
    save(target / "model.safetensors", {n: p.bfloat16() for n, p in model.named_parameters()})
    save(target / "batch.safetensors", batch, {"format": "pt"})
    inputs = {n: batch[n] for n in ["input_ids", "attention_mask"]}
    out = model(**inputs, labels=batch["labels"])
    out.loss.backward()
    hidden = model.model(**inputs).last_hidden_state
    found = dict(logits=out.logits, loss=out.loss.reshape(1), last_hidden_state=hidden)
    save(target / "cls.safetensors", found | thin("grad.", {n: p.grad for n, p in model.named_parameters()}, 3))
    model = build(family, AutoModelForCausalLM)
    if not model.config.tie_word_embeddings:
        save(target / "lm_head.safetensors", {"lm_head.weight": model.lm_head.weight.bfloat16()})
    out = model(**inputs, labels=batch["lm_labels"])
    out.loss.backward()
    found = thin("", dict(logits=out.logits, loss=out.loss.reshape(1)), 7)
    save(target / "lm.safetensors", found | thin("grad.", {n: p.grad for n, p in model.named_parameters()}, 17))


def stream_of(family, config):
    """Batches of rows of 4 to 12 tokens. One of the last three tokens of a row tells its label, so that the loss falls."""
    draws = generator(FAMILIES[family]["seed"] * 13 + 5)
    ids = torch.full((STEPS, ROWS, LENGTH), config.pad_token_id)
    labels = torch.randint(0, LABELS, (STEPS, ROWS), generator=draws)
    lengths = torch.randint(4, LENGTH + 1, (STEPS, ROWS), generator=draws)
    lengths[:, 0] = LENGTH
    for row, label, length in zip(ids.view(-1, LENGTH), labels.flatten(), lengths.flatten().tolist()):
        row[0] = config.bos_token_id
        row[1:length] = torch.randint(30, 290, (length - 1,), generator=draws)
        row[length - int(torch.randint(1, 4, (1,), generator=draws))] = 20 + label
    mask = (torch.arange(LENGTH) < lengths[..., None]).long()
    return dict(input_ids=ids, attention_mask=mask, lengths=lengths, labels=labels)


def starts_of(family, model):
    """SpaRTA's positions, flat and ascending, and LoRA's factors: A uniform and B zero, as in PEFT."""
    seed, indices, factors = FAMILIES[family]["seed"], {}, {}
    for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
        module = name.removesuffix(".weight")
        if name != "score.weight" and "embed_tokens" not in name:
            order = torch.randperm(parameter.numel(), generator=generator(seed * 1000 + i))
            indices[name] = order[: max(1, round(DENSITY * parameter.numel()))].sort().values
        if module.endswith(LORA_TARGETS):
            uniform = torch.rand((RANK, parameter.shape[1]), generator=generator(seed * 2000 + i))
            factors[f"{module}.lora_A"] = (uniform * 2 - 1) / math.sqrt(parameter.shape[1])
            factors[f"{module}.lora_B"] = torch.zeros(parameter.shape[0], RANK)
    return indices, factors


def with_lora(family, model, factors):
    """The model with PEFT's adapter, and what it trains, under our names."""
    model.name_or_path = model.config._name_or_path = f"golden/{family}"
    targets = sorted({name.split(".")[-2] for name in factors})
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets)
    model = get_peft_model(model, config).eval()
    ours = lambda name: name.removeprefix("base_model.model.").replace(".default.weight", "")
    trained = {ours(n).replace(".modules_to_save", ".weight"): p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, values in factors.items():
            trained[name].copy_(values)
    return model, trained


def train(family, method, stream, indices, factors):
    """The model, its trained tensors, their gradients in step 1, and the log."""
    model, weights = build(family), dict
    trained = dict(model.named_parameters()) if method == "full" else {"score.weight": model.score.weight}
    if method == "lora":
        model, trained = with_lora(family, model, factors)
    elif method.startswith("sparta"):
        base = {n: p.detach() for n, p in model.named_parameters()}
        trained |= {f"delta.{n}": torch.zeros(len(i), requires_grad=True) for n, i in indices.items()}
        changed = lambda n, i: base[n].flatten().index_add(0, i, trained[f"delta.{n}"]).view_as(base[n])
        weights = lambda: {n: changed(n, i) for n, i in indices.items()}
    compute = lambda **batch: torch.func.functional_call(model, weights(), (), batch)
    optimizer = torch.optim.AdamW(trained.values(), **METHODS[method], foreach=False)
    log, first = METHODS[method] | dict(max_grad_norm=MAX_NORM, loss=[], grad_norm=[], clip_coef=[]), {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = compute(**{n: stream[n][step] for n in ["input_ids", "attention_mask", "labels"]}).loss
        loss.backward()
        first = first or {n: p.grad.clone() for n, p in trained.items()}
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), MAX_NORM, foreach=False).item()
        log["loss"].append(loss.item())
        log["grad_norm"].append(norm)
        log["clip_coef"].append(min(1.0, MAX_NORM / (norm + 1e-6)))
        optimizer.step()
    batch = {n: t for n, t in batch_of(family, model.config).items() if n in ["input_ids", "attention_mask"]}
    with torch.no_grad():
        logits = compute(**batch).logits
    return model, trained, first, log | dict(eval_logits_after=logits.tolist())


def save_adapter(model, target):
    file = target / "adapter_model.safetensors"
    old = read(file)
    model.save_pretrained(target, save_embedding_layers=False)
    (target / "README.md").unlink()
    report(file, old, read(file))
    # PEFT holds sets, whose order changes.
    config = json.loads((target / "adapter_config.json").read_text())
    config |= {key: sorted(config[key]) for key in ["target_modules", "modules_to_save"]}
    (target / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def runs(family):
    """The training runs of each method."""
    target, model = HERE / family, build(family)
    stream, (indices, factors) = stream_of(family, model.config), starts_of(family, model)
    tensors = {f"stream.{n}": t for n, t in stream.items()} | {f"lora.init.{n}": t for n, t in factors.items()}
    tensors |= {f"indices.{n}": i.to(torch.uint32) for n, i in indices.items()}
    logs = {}
    for method in METHODS:
        model, trained, first, logs[method] = train(family, method, stream, indices, factors)
        tensors |= thin(f"{method}.final.", trained, 17)
        if method not in ["full", "head"]:
            tensors |= thin(f"{method}.grad.", first, 17)
        if method == "lora":
            save_adapter(model, target / "peft_adapter")
    if family in REPEATED:
        save(target / "train.safetensors", tensors)
    path = target / "train.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    numbers = lambda logs: {f"{m}.{n}": torch.tensor(x) for m, log in logs.items() for n, x in log.items()}
    report(path, numbers(old), numbers(logs))
    path.write_text(json.dumps(logs, indent=1) + "\n")


def write_version_4(target):
    config = json.loads((target / "config.json").read_text())
    rope = config.pop("rope_parameters")
    if set(rope) != {"rope_theta", "rope_type"} or rope["rope_type"] != "default":
        sys.exit(f"{target}: its rotations are scaled or several; write config.v4.json with transformers 4")
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    config.pop("dtype", None)
    (target / "config.v4.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if len(sys.argv) == 1 or not set(sys.argv[1:]) <= set(FAMILIES):
        sys.exit(f"make.py FAMILY...: expected one or more of {', '.join(FAMILIES)}")
    for family in sys.argv[1:]:
        if not (HERE / family / "config.v4.json").exists():
            write_version_4(HERE / family)
        passes(family)
        if family in TRAINED:
            runs(family)


if __name__ == "__main__":
    main()
