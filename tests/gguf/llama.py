#!/usr/bin/env python3
"""Asks llama.cpp, through the package xllamacpp. Reads a JSON object: `model`, `lora` (a path or null), `prompt` (a text or
tokens), and `top`, for which it prints the most probable next tokens as pairs of id and log probability, or `classes`, for
which it prints that many outputs of a classifier. Keys and values are f32, as weights may be."""

import json
import sys

import xllamacpp as llama


def server(question):
    params = llama.CommonParams()
    params.model.path = question["model"]
    if question["lora"]:
        params.lora_adapters = [llama.CommonAdapterLoraInfo(question["lora"], 1.0)]
    if "classes" in question:
        params.embedding = True
        params.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    params.n_ctx = 256
    params.n_gpu_layers = 0
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = 2
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return llama.Server(params)


def decoded(answer):
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    if "error" in answer:
        sys.exit(json.dumps(answer["error"]))
    return answer


def next_tokens(server, question):
    # The bias makes the answer a token that does not end the text; it comes after the probabilities.
    forced = [[5, 1000.0]]
    request = {"prompt": question["prompt"], "n_predict": 1, "logprobs": question["top"], "logit_bias": forced}
    answer = decoded(server.handle_completions(request))
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [[token["id"], token["logprob"]] for token in found]


def classes(server, question):
    # The list is as long as a hidden state; what follows the classes means nothing.
    answer = decoded(server.handle_embeddings({"input": question["prompt"], "embd_normalize": -1}))
    return answer["data"][0]["embedding"][: question["classes"]]


def main():
    question = json.load(sys.stdin)
    asked = classes if "classes" in question else next_tokens
    print(json.dumps(asked(server(question), question)))


if __name__ == "__main__":
    main()
