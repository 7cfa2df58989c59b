"""Training runs of methods that act between steps, for tests/acting.rs: AdaLoRA of PEFT, and SpIEL written down here.

    python acting.py        # as make.py, whose models and batches these are

The file has of each method what make.py's has; of SpIEL also `first.` and `last.` index sets by parameter.
"""

import torch
from peft import AdaLoraConfig, TaskType, get_peft_model
from safetensors.torch import save_file

from make import HERE, LONGEST, LR, STEPS, base, batches, ours

EVERY, RATE, DENSITY = 3, 0.3, 0.05


def loss_of(model, step, data):
    tokens, lengths, labels = data
    mask = (torch.arange(LONGEST) < lengths[step][:, None]).long()
    ids = torch.where(mask.bool(), tokens[step], model.config.pad_token_id)
    return model(input_ids=ids, attention_mask=mask, labels=labels[step]).loss


def adalora():
    torch.manual_seed(3)
    config = AdaLoraConfig(init_r=6, target_r=3, tinit=2, tfinal=2, deltaT=2, beta1=0.85, beta2=0.8, total_step=STEPS,
                           orth_reg_weight=0.5, lora_alpha=8, target_modules=["q_proj", "v_proj"],
                           task_type=TaskType.SEQ_CLS, modules_to_save=["score"])
    model = get_peft_model(base("llama"), config).eval()
    data = batches(model.config.vocab_size, model.config.num_labels)
    trained = {ours(name, "adalora"): p for name, p in model.named_parameters() if p.requires_grad}
    out = {f"adalora.init.{name}": p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=0.0)
    losses, ranks = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step, data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        model.base_model.update_and_allocate(step + 1)
        losses.append(loss.item())
        ranks.append(sum((p != 0).sum().item() for name, p in trained.items() if name.endswith("lora_E")))
    print("adalora", [round(x, 4) for x in losses], ranks)
    out |= {f"adalora.final.{name}": p.detach().clone() for name, p in trained.items()}
    return out | {"adalora.losses": torch.tensor(losses)}


def boundary(order, sizes, count):
    """That rounding cannot exchange what is chosen for what is not."""
    a, b = sizes[order[count - 1]].item(), sizes[order[count]].item()
    assert abs(a - b) > 2e-4 * max(abs(a), abs(b)), (a, b)


def exchange(index, delta, slots, gradient, count):
    order = torch.argsort(delta.abs(), stable=True)
    boundary(order, delta.abs(), count)
    kept = order[count:].sort().values
    sizes = gradient.abs().clone()
    sizes[index] = -1
    grown = torch.argsort(sizes, descending=True, stable=True)
    boundary(grown, sizes, count)
    new, places = torch.cat([index[kept], grown[:count]]).sort()
    zeros = torch.zeros(count)
    return new, *[torch.cat([t[kept], zeros])[places] for t in (delta, *slots)]


def spiel():
    model = base("llama").eval()
    data = batches(model.config.vocab_size, model.config.num_labels)
    generator = torch.Generator().manual_seed(12)
    weights = {name: p for name, p in model.named_parameters() if "_proj" in name}
    head = model.score.weight
    for p in model.parameters():
        p.requires_grad = p is head or any(p is w for w in weights.values())
    start = {name: p.detach().flatten().clone() for name, p in weights.items()}
    size = {name: round(p.numel() * DENSITY) for name, p in weights.items()}
    index = {name: torch.randperm(p.numel(), generator=generator)[:size[name]].sort().values for name, p in weights.items()}
    delta = {name: torch.zeros(size[name]) for name in weights}
    out = {f"spiel.first.{name}": i.int() for name, i in index.items()}
    out |= {f"spiel.init.delta.{name}": d.clone() for name, d in delta.items()}
    out["spiel.init.score.weight"] = head.detach().clone()
    optimizer = torch.optim.AdamW([head, *delta.values()], lr=LR, weight_decay=0.0)

    def backward(step):
        for name, p in weights.items():
            flat = start[name].clone()
            flat[index[name]] += delta[name]
            p.data.copy_(flat.view(p.shape))
        model.zero_grad()
        loss = loss_of(model, step, data)
        loss.backward()
        return loss

    losses = []
    for step in range(STEPS):
        losses.append(backward(step).item())
        for name, p in weights.items():
            delta[name].grad = p.grad.flatten()[index[name]].clone()
        torch.nn.utils.clip_grad_norm_([head, *delta.values()], 1.0)
        optimizer.step()
        done = step + 1
        if done % EVERY == 0:
            backward(step)
            for name, p in weights.items():
                state = optimizer.state[delta[name]]
                count = int(size[name] * RATE * (1 - done / STEPS))
                if count:
                    index[name], *moved = exchange(index[name], delta[name], (state["exp_avg"], state["exp_avg_sq"]),
                                                   p.grad.flatten(), count)
                    for t, values in zip((delta[name], state["exp_avg"], state["exp_avg_sq"]), moved):
                        t.copy_(values)
    same = [len(set(out[f"spiel.first.{n}"].tolist()) & set(i.tolist())) / size[n] for n, i in index.items()]
    print("spiel", [round(x, 4) for x in losses], "kept", round(min(same), 2), round(max(same), 2))
    out |= {f"spiel.last.{name}": i.int() for name, i in index.items()}
    out |= {f"spiel.final.delta.{name}": d.clone() for name, d in delta.items()}
    out["spiel.final.score.weight"] = head.detach().clone()
    return out | {"spiel.losses": torch.tensor(losses)}


def main():
    out = adalora() | spiel()
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, HERE / "acting.safetensors")


if __name__ == "__main__":
    main()
