"""GPU baseline of the PyTorch peer: seconds per training step, tokens/s, share of the ceiling and peak memory.

    python3 peer.py                                     # gemma-2b 16x256: sparta, lora, full, head
    python3 peer.py --cells gemma-2b:16x256,smollm2-135m:8x512 --methods lora,sparta-0.05,sparta-0.005
    python3 peer.py --device cpu --dtype float32 --cells tiny:2x16 --seconds 1      # a check without a GPU

One JSON line per cell, each measured in a process of its own, forked after the imports, which take longer than a cell;
first the card's ceilings (copy, bf16 and f32 products), unless --no-ceilings is given.
Random weights made on the device, sequence classification with 2 classes (last token), no padding, sdpa attention, fused
AdamW. bf16 weights, activations and gradients by default, which is what a user of transformers gets on such a card.

Methods
  full           every parameter (bf16 parameters and moments, the leanest that PyTorch offers out of the box)
  lora           peft, r 8, alpha 16, q_proj and v_proj, and the head; lora-all: all seven projections
  head           the head alone
  sparta-D       density D of all parameters outside embeddings, f32 deltas, values written into the frozen weights before each
                 forward pass; each dense weight gradient is gathered by a hook and freed at once (the best that PyTorch
                 does without a kernel of its own)
  published-D    the same selection in the published form: autograd differentiates an in-place index_put
`--task lm` trains on next tokens over the whole vocabulary instead; `--compile` wraps the model in torch.compile.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHAPES = {  # hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary, family
    "tiny": (64, 2, 4, 2, 16, 128, 512, "llama"),
    "15m": (288, 6, 6, 6, 48, 768, 32000, "llama"),
    "110m": (768, 12, 12, 12, 64, 2048, 32000, "llama"),
    "smollm2-135m": (576, 30, 9, 3, 64, 1536, 49152, "llama"),
    "tinyllama-1.1b": (2048, 22, 32, 4, 64, 5632, 32000, "llama"),
    "gemma-2b": (2048, 18, 8, 1, 256, 16384, 256000, "gemma"),
    "mistral-7b": (4096, 32, 32, 8, 128, 14336, 32000, "mistral"),
}


def sync(torch, device):
    if device == "cuda":
        torch.cuda.synchronize()


def ceilings(device):
    """Copy bandwidth in GB/s (read + write) and products in TFLOP/s of this device, through PyTorch."""
    import torch

    def best(run, repeat=10):
        run()
        times = []
        for _ in range(repeat):
            sync(torch, device)
            start = time.perf_counter()
            run()
            sync(torch, device)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    big = device == "cuda"
    source = torch.randn((1 << 29) if big else (1 << 22), device=device)
    target = torch.empty_like(source)
    figures = {"copy_gb_s": 2 * source.numel() * 4 / best(lambda: target.copy_(source)) / 1e9}
    del source, target
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, dtype, n in (("bf16", torch.bfloat16, 8192 if big else 512), ("f32", torch.float32, 4096 if big else 512)):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        figures[f"{name}_tflop_s"] = 2 * n**3 / best(lambda: a @ b) / 1e12
    figures["device"] = torch.cuda.get_device_name() if big else "cpu"
    figures["torch"] = torch.__version__
    return figures


def product(device, n=4096):
    """TFLOP/s of a product of n x n x n in bf16: the fastest round, of which the first ones warm the device up."""
    import torch

    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    count, rounds = (50, 26) if device == "cuda" else (1, 3)
    best = float("inf")
    for _ in range(rounds):
        sync(torch, device)
        start = time.perf_counter()
        for _ in range(count):
            a @ b.T
        sync(torch, device)
        best = min(best, (time.perf_counter() - start) / count)
    return dict(product=n, dtype="bfloat16", tflop_s=2 * n**3 / best / 1e12, torch=torch.__version__)


def step_flops(shape, batch, tokens, method, task):
    """Operations of the matrix products of a step as PyTorch computes it, with the causal half of attention."""
    d, layers, heads, kv, hd, f, vocab, _ = shape
    t = batch * tokens
    body = layers * (d * (2 * heads + 2 * kv) * hd + 3 * d * f)
    forward = 2 * t * body + layers * batch * 2 * tokens**2 * heads * hd + (2 * t * d * vocab if task == "lm" else 0)
    if method == "head":
        return forward
    dgrad = 2 * t * body + layers * batch * 4 * tokens**2 * heads * hd + (2 * t * d * vocab if task == "lm" else 0)
    wgrad = 0 if method.startswith("lora") else 2 * t * body
    return forward + dgrad + wgrad


def cell(a):
    import torch
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    dtype = getattr(torch, a.dtype)
    shape_name, size = a.cells.split(":")
    batch, tokens = (int(x) for x in size.split("x"))
    shape = SHAPES[shape_name]
    d, layers, heads, kv, hd, f, vocab, family = shape
    config = {"llama": transformers.LlamaConfig, "gemma": transformers.GemmaConfig, "mistral": transformers.MistralConfig}[family](
        hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv, head_dim=hd, intermediate_size=f,
        vocab_size=vocab, num_labels=2, pad_token_id=0, use_cache=False, max_position_embeddings=max(2048, tokens))
    names = {"llama": "Llama", "gemma": "Gemma", "mistral": "Mistral"}
    cls = getattr(transformers, names[family] + ("ForSequenceClassification" if a.task == "cls" else "ForCausalLM"))
    with torch.device(a.device):
        model = cls._from_config(config, attn_implementation="sdpa", dtype=dtype)
    model.train()
    head_name = "score.weight" if a.task == "cls" else "lm_head.weight"
    named = dict(model.named_parameters())
    before = lambda: None
    method, _, density = a.methods.partition("-")
    density = float(density) if method in ("sparta", "published") else 0.0
    if method == "full":
        trained = list(named.values())
    elif method == "lora":
        from peft import LoraConfig, TaskType, get_peft_model
        targets = "all-linear" if a.methods == "lora-all" else ["q_proj", "v_proj"]
        model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS if a.task == "cls" else TaskType.CAUSAL_LM, r=8,
                                                 lora_alpha=16, lora_dropout=0.0, target_modules=targets))
        trained = [p for p in model.parameters() if p.requires_grad]
    else:
        model.requires_grad_(False)
        trained = []
        if head_name in named and (a.task == "cls" or method == "head"):
            trained.append(named[head_name].requires_grad_(True))
        if method in ("sparta", "published"):
            total = sum(p.numel() for n, p in named.items() if n != "score.weight")
            targets = {n: p for n, p in named.items() if "embed_tokens" not in n and n != head_name}
            rate = density * total / sum(p.numel() for p in targets.values())
            parts = []
            for p in targets.values():
                where = torch.empty(p.numel(), device=a.device, dtype=torch.bool).bernoulli_(rate).nonzero().view(-1)
                delta = torch.zeros(len(where), device=a.device)
                parts.append((p, where, p.data.view(-1)[where].clone(), delta))
                if method == "published":
                    delta.requires_grad_(True)
                else:
                    p.requires_grad_(True)

                    def gather(p, where=where, delta=delta):
                        delta.grad = p.grad.view(-1)[where].float()
                        p.grad = None

                    p.register_post_accumulate_grad_hook(gather)
                trained.append(delta)

            def before():
                for p, where, base, delta in parts:
                    if method == "published":
                        p.detach_()
                        p.index_put_(torch.unravel_index(where, p.shape), (base + delta).to(dtype))
                    else:
                        p.data.view(-1)[where] = (base + delta).to(dtype)

    step_model = torch.compile(model) if a.compile else model
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01, fused=True)
    ids = torch.randint(1, vocab, (batch, tokens), device=a.device)
    labels = ids if a.task == "lm" else torch.randint(0, 2, (batch,), device=a.device)
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)

    def step():
        before()
        optimizer.zero_grad(set_to_none=True)
        loss = step_model(**inputs).loss
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(3):
        loss = step()
    loss.item()
    sync(torch, a.device)
    seconds, start = [], time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - start < a.seconds:
        t = time.perf_counter()
        loss = step().item()
        seconds.append(time.perf_counter() - t)
    median = statistics.median(seconds)
    result = dict(cell=a.cells, method=a.methods, task=a.task, dtype=a.dtype, compile=a.compile, steps=len(seconds), step_s=median,
                  step_s_min=min(seconds), tokens_per_s=batch * tokens / median, trained=sum(p.numel() for p in trained),
                  parameters=sum(p.numel() for p in named.values()), loss=loss,
                  tflop_s=step_flops(shape, batch, tokens, a.methods, a.task) / median / 1e12)
    if a.device == "cuda":
        result["peak_allocated_mib"] = torch.cuda.max_memory_allocated() / 2**20
        result["peak_reserved_mib"] = torch.cuda.max_memory_reserved() / 2**20
    print(json.dumps(result), flush=True)


def forked(named, work):
    """Runs `work` in a child of this process, which must not have touched the device. If it fails, prints a line of
    `named` with the reason. Returns whether it succeeded."""

    def failed(why):
        print(json.dumps({**named, "failed": why[:300]}), flush=True)

    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            failed(f"ended by signal {-status}")
        return status == 0
    try:
        work()
        os._exit(0)
    except BaseException as error:
        failed(f"{type(error).__name__}: {error}")
        os._exit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default="gemma-2b:16x256")
    parser.add_argument("--methods", default="sparta-0.05,sparta-0.005,lora,full")
    parser.add_argument("--task", choices=("cls", "lm"), default="cls")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=3, help="measured in each cell, after three warm-up steps")
    parser.add_argument("--product", action="store_true", help="a product of 4096 x 4096 x 4096 in bf16 alone")
    parser.add_argument("--no-ceilings", action="store_true", help="cells alone")
    a = parser.parse_args()
    if a.product:
        return print(json.dumps(product(a.device)), flush=True)

    # Nothing here may touch the device: children forked after that cannot.
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers
    for family in ("Llama", "Gemma", "Mistral"):
        getattr(transformers, family + "ForSequenceClassification")

    failed = False
    if not a.no_ceilings:
        failed |= not forked({}, lambda: print(json.dumps(ceilings(a.device)), flush=True))
    for shape in a.cells.split(","):
        for method in a.methods.split(","):
            one = argparse.Namespace(**{**vars(a), "cells": shape, "methods": method})
            failed |= not forked(dict(cell=shape, method=method), lambda: cell(one))
    sys.exit(failed)


if __name__ == "__main__":
    main()
