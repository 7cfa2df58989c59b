"""Writes tokenizer_cases.json: small tokenizer directories, and the ids that transformers gives for texts.

    PYTHON_4 make_tokenizer_cases.py 4    # transformers 4.57
    PYTHON_5 make_tokenizer_cases.py 5    # transformers 5.23

Each call adds the ids of its version. "counts" says which of them count where the versions differ.
"""

import json
import os
import sys
import tempfile

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "good", "bad", "film", "<", ">", "extra", "x", "s"]
POST = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}
BPE = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
    "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    "vocab": {c: i for i, c in enumerate(["Ġ", "g", "o", "d", "▁", "<unk>", "Ġg", "▁g", "b"])},
    "merges": [["Ġ", "g"], ["▁", "g"]],
}
TEXTS = ["good <extra> film", "<s>good</s>", "bad<x> film <y>", "a <pad>good", "<img>good"]
CLASS = "PreTrainedTokenizerFast"
OF_5 = {"backend": "tokenizers"}


def tokenizer(added=(), pre={"type": "Whitespace"}, model=None, post=POST):
    model = model or {"type": "WordLevel", "unk_token": "<unk>", "vocab": {w: i for i, w in enumerate(WORDS)}}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added), "normalizer": None,
            "pre_tokenizer": pre, "post_processor": post, "decoder": None, "model": model}


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
            "special": True, **flags}


def case(config, added=(), counts="both", **files):
    return {"tokenizer.json": tokenizer(added), "tokenizer_config.json": {"tokenizer_class": CLASS, **config},
            "counts": counts, "texts": TEXTS, **{name + ".json": file for name, file in files.items()}}


def prefix(pre, config, counts="both"):
    return {"tokenizer.json": tokenizer(pre=pre, model=BPE, post=None), "texts": ["god good", "god"],
            "tokenizer_config.json": {"tokenizer_class": CLASS, **config}, "counts": counts}


def byte_level(space):
    return {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": True, "use_regex": True}


def metaspace(scheme):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def cases():
    lists = {"additional_special_tokens": ["<extra>"], "extra_special_tokens": {"image_token": "<img>"}}
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<x>"}
    mapped = {"eos_token": "</s>", "additional_special_tokens": ["<extra>"]}
    objects = [{"__type": "AddedToken", **token("<extra>", lstrip=True)}, "<y>"]
    llama = {"tokenizer_class": "LlamaTokenizer"}
    numbered = {"12": token("<extra>"), "13": token("<x>", special=False), "1": token("<s>")}
    found = {
        "nothing": case({}),
        "decoder": case({"added_tokens_decoder": numbered}),
        "decoder with flags": case({"added_tokens_decoder": {"12": token("<extra>", lstrip=True, rstrip=True)}}),
        "decoder with another id": case({"added_tokens_decoder": {"40": token("<extra>")}}),
        "decoder of a known token": case({"added_tokens_decoder": {"9": token("extra", lstrip=True)}},
                                         added=[{"id": 9, **token("extra")}]),
        "additional": case({"additional_special_tokens": ["<extra>", "<x>"]}),
        "additional objects": case({"additional_special_tokens": objects}),
        "extra by name": case({"extra_special_tokens": {"image_token": "<img>"}}),
        "extra list": case({"extra_special_tokens": ["<extra>", "<x>"]}, counts="5"),
        "own name": case({"image_token": "<img>"}, counts="4"),
        "own name of 5": case({"image_token": "<img>", **OF_5}, counts="5"),
        "both lists": case(lists, counts="4"),
        "both lists of 5": case({**lists, **OF_5}, counts="5"),
        "named": case(named),
        "map": case({"eos_token": "film"}, special_tokens_map=mapped),
        "map and decoder": case({"added_tokens_decoder": {"12": token("<x>")}},
                                special_tokens_map={"eos_token": "</s>"}),
        "file of added tokens": case({}, added_tokens={"<extra>": 12, "<x>": 13}),
        "file of added tokens and decoder": case({"added_tokens_decoder": {"12": token("<x>")}},
                                                 added_tokens={"<extra>": 13}),
        "split": case({"bos_token": "<s>", "split_special_tokens": True}, added=[{"id": 1, **token("<s>")}]),
    }
    for space in [True, False]:
        stated = {"add_prefix_space": space}
        for has in [True, False]:
            counts = "both" if space == has else "4"
            found[f"byte level {has}, stated {space}"] = prefix(byte_level(has), stated, counts)
            found[f"byte level {has}, stated {space} by 5"] = prefix(byte_level(has), {**stated, **OF_5}, "5")
            sequence = {"type": "Sequence", "pretokenizers": [byte_level(has)]}
            found[f"sequence {has}, stated {space}"] = prefix(sequence, stated)
        for scheme in ["first", "never", "always"]:
            found[f"metaspace {scheme}, stated {space}"] = prefix(metaspace(scheme), stated)
            if (scheme, space) != ("never", True):
                found[f"llama {scheme}, stated {space}"] = prefix(metaspace(scheme), {**stated, **llama}, "5")
    return found


def ids(files):
    with tempfile.TemporaryDirectory() as directory:
        for name, content in files.items():
            if name.endswith(".json"):
                with open(os.path.join(directory, name), "w") as file:
                    json.dump(content, file)
        with open(os.path.join(directory, "config.json"), "w") as file:
            json.dump({"model_type": "llama"}, file)
        try:
            made = AutoTokenizer.from_pretrained(directory)
        except Exception:
            return None
        return {"ids": [made(text)["input_ids"] for text in files["texts"]], "pad": made.pad_token_id}


if __name__ == "__main__":
    from transformers import AutoTokenizer

    version = sys.argv[1]
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer_cases.json")
    old = json.load(open(path)) if os.path.exists(path) else {}
    made = {name: {**old.get(name, {}), **files, version: ids(files)} for name, files in cases().items()}
    with open(path, "w") as file:
        json.dump(made, file, ensure_ascii=False)
        file.write("\n")
