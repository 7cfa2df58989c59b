"""Training runs of PEFT's methods on the tiny models of ../llama and ../qwen2, for tests/more.rs.

    python make.py        # with torch, transformers 5.23 and peft 0.21

Ten steps each: mean cross-entropy of four sequences, clip the global norm to 1, AdamW without decay, constant rate. The file has
of each method `init.`, `final.` and `constant.` tensors under our names, and `losses`; `tokens`, `lengths` and `labels` are
the batches.
"""

import pathlib
import re

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
    return name


def train(method, family, wrap):
    torch.manual_seed(3)
    model = wrap(base(family))
    model.eval()
    tokens, lengths, labels = batches(model.config.vocab_size, model.config.num_labels)
    trained = {ours(name, method): p for name, p in model.named_parameters() if p.requires_grad}
    out = {f"{method}.init.{name}": p.detach().reshape(p.shape if p.dim() == 2 and min(p.shape) > 1 else -1).clone()
           for name, p in trained.items()}
    for name, tensor in model.named_buffers():
        if "vera_A" in name or "vera_B" in name:
            out[f"{method}.constant.shared.{'vera_A' if 'vera_A' in name else 'vera_B'}"] = tensor.detach().clone()
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        mask = (torch.arange(LONGEST) < lengths[step][:, None]).long()
        ids = torch.where(mask.bool(), tokens[step], model.config.pad_token_id)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels[step]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        losses.append(loss.item())
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


def main():
    common = dict(task_type=TaskType.SEQ_CLS, modules_to_save=["score"])
    ia3 = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **common)
    dora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_dora=True, **common)
    vera = VeraConfig(r=8, target_modules=["q_proj", "v_proj"], d_initial=0.1, **common)
    out = {}
    for method, family, wrap in [("ia3", "llama", peft(ia3)), ("dora", "llama", peft(dora)), ("vera", "llama", peft(vera)),
                                 ("bitfit", "qwen2", bitfit)]:
        out |= train(method, family, wrap)
        tokens, lengths, labels = batches(300, 3)
    out |= {"tokens": tokens.int(), "lengths": lengths.int(), "labels": labels.int()}
    out = {name: tensor.contiguous() for name, tensor in out.items()}
    save_file(out, HERE / "runs.safetensors")


if __name__ == "__main__":
    main()
