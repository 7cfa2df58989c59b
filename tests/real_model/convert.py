#!/usr/bin/env python3
"""Converts the GGUF file of SmolLM2-135M-Instruct to a model directory in the Hugging Face layout, with weights in f16.

    python3 convert.py MODEL.gguf OUT

Needs numpy. Reads the tensor types of this file alone: F32, Q8_0 and Q4_1. What the file does not say of this model is
written as constants. The weights are 4-bit ones as numbers, not the original ones.
"""

import json
import math
import pathlib
import struct
import sys

import numpy as np

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, LIST = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Gguf:
    def __init__(self, path):
        self.file = open(path, "rb")
        assert self.file.read(4) == b"GGUF", "no GGUF file"
        self.number("<I")
        tensors, keys = self.number("<Q"), self.number("<Q")
        self.values = {}
        for _ in range(keys):
            key = self.text()
            self.values[key] = self.value(self.number("<I"))
        self.tensors = {}
        for _ in range(tensors):
            name = self.text()
            shape = [self.number("<Q") for _ in range(self.number("<I"))][::-1]
            self.tensors[name] = (shape, self.number("<I"), self.number("<Q"))
        alignment = self.values.get("general.alignment", 32)
        self.data = np.memmap(path, dtype=np.uint8, mode="r")[-(-self.file.tell() // alignment) * alignment :]

    def number(self, form):
        return struct.unpack(form, self.file.read(struct.calcsize(form)))[0]

    def text(self):
        return self.file.read(self.number("<Q")).decode()

    def value(self, kind):
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            kind, length = self.number("<I"), self.number("<Q")
            return [self.value(kind) for _ in range(length)]
        return self.number(SCALARS[kind])

    def tensor(self, name):
        shape, kind, offset = self.tensors[name]
        n = math.prod(shape)
        data = self.data[offset:]
        if kind == F32:
            numbers = data[: 4 * n].view("<f4")
        elif kind == Q8_0:
            # A scale and 32 numbers a block.
            blocks = data[: n // 32 * 34].reshape(-1, 34)
            numbers = blocks[:, :2].copy().view("<f2").astype("f4") * blocks[:, 2:].copy().view("i1").astype("f4")
        elif kind == Q4_1:
            # A scale, a least number, and 32 numbers of 4 bits: first the low halves, then the high ones.
            blocks = data[: n // 32 * 20].reshape(-1, 20)
            scale = blocks[:, :4].copy().view("<f2").astype("f4")
            halves = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1).astype("f4")
            numbers = scale[:, :1] * halves + scale[:, 1:2]
        else:
            raise SystemExit(f"{name} has the type {kind}, which is not read")
        return numbers.reshape(shape)


def weights(gguf):
    heads = {"attn_q": gguf.values["llama.attention.head_count"], "attn_k": gguf.values["llama.attention.head_count_kv"]}
    found = {}
    for name in gguf.tensors:
        weight = gguf.tensor(name)
        if name == "token_embd.weight":
            found["model.embed_tokens.weight"] = weight
        elif name == "output_norm.weight":
            found["model.norm.weight"] = weight
        else:
            _, layer, module, _ = name.split(".")
            if module in heads:
                # GGUF has the rows of a head in pairs that are rotated together.
                rows, columns = weight.shape
                pairs = weight.reshape(heads[module], rows // heads[module] // 2, 2, columns)
                weight = pairs.swapaxes(1, 2).reshape(rows, columns)
            found[f"model.layers.{layer}.{NAMES[module]}.weight"] = weight
    return {name: np.ascontiguousarray(weight, dtype="<f2") for name, weight in sorted(found.items())}


def save(path, tensors):
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def config(values):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": values["llama.attention.head_count"],
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": values["llama.rope.freq_base"],
        "vocab_size": values["llama.vocab_size"],
        "max_position_embeddings": values["llama.context_length"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "float16",
    }


def tokenizer(values):
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        # 3: a token that controls the model.
        "added_tokens": [{"id": i, "content": t, **flags} for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind == 3],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, {**level, "add_prefix_space": False}],
        },
        "post_processor": None,
        "decoder": {**level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in values["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(values):
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "chat_template": values["tokenizer.chat_template"],
        "model_max_length": 8192,
    }


def main():
    gguf, out = Gguf(sys.argv[1]), pathlib.Path(sys.argv[2])
    out.mkdir(parents=True)
    save(out / "model.safetensors", weights(gguf))
    for name, make in [("config", config), ("tokenizer", tokenizer), ("tokenizer_config", tokenizer_config)]:
        (out / f"{name}.json").write_text(json.dumps(make(gguf.values), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
