#!/usr/bin/env python3
"""Makes sft/ of this folder: fine-tuning on prompts and answers as TRL's SFTTrainer does it.

    python3 make_sft.py        # with torch, transformers, tokenizers and trl

The model is llama/ as a language model, in f32. What is written:

sft/tokenizer.json, tokenizer_config.json   a byte-level tokenizer of 300 tokens with a chat template
sft/train.jsonl                             40 conversations as `prompt` and `completion`
sft/trl.json                                versions and settings; of each conversation its tokens and where the completion
                                            begins; of each mode, `answers` and `all`, the loss of each of 20 steps

A step takes the next four conversations.
"""

import json
import pathlib
import random
import shutil
import tempfile

import safetensors.torch
import tokenizers
import torch
import transformers
import trl
from datasets import Dataset

HERE = pathlib.Path(__file__).parent
VOCABULARY = 300
BATCH, STEPS, LENGTH = 4, 20, 64
SETTINGS = {"lr": 1e-3, "weight_decay": 0.0, "max_grad_norm": 1.0}
SPECIAL = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = """{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>
{{ message.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""


def conversations():
    """Sums, opposites and colours, some with a system turn or an earlier answer."""
    draw = random.Random(7)
    turn = lambda role, content: {"role": role, "content": content}
    opposites = [("hot", "cold"), ("up", "down"), ("big", "small"), ("old", "new")]
    colours = [("grass", "green"), ("snow", "white"), ("coal", "black"), ("the sky", "blue")]
    found = []
    for number in range(BATCH * STEPS // 2):
        a, b = draw.randrange(10), draw.randrange(10)
        word, opposite = draw.choice(opposites)
        thing, colour = draw.choice(colours)
        prompt, answer = [
            ([turn("user", f"{a}+{b}?")], f"{a + b}."),
            ([turn("system", "Be short."), turn("user", f"Not {word}?")], opposite),
            ([turn("user", f"{thing}?")], f"It is {colour}."),
            ([turn("user", f"Not {word}?"), turn("assistant", opposite), turn("user", "Sure?")], "Yes, é 日."),
        ][number % 4]
        found.append({"prompt": prompt, "completion": [turn("assistant", answer)]})
    return found


def make_tokenizer(directory, data):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    texts = [turn["content"] for row in data for turn in row["prompt"] + row["completion"]]
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


class InOrder(trl.SFTTrainer):
    """Takes the data as they come, and keeps the loss of each step with all its digits."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *arguments, **options):
        loss = super().training_step(*arguments, **options)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        return loss


def train(model, data, completion_only):
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as out:
        arguments = trl.SFTConfig(
            output_dir=out,
            completion_only_loss=completion_only,
            max_length=LENGTH,
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            learning_rate=SETTINGS["lr"],
            weight_decay=SETTINGS["weight_decay"],
            max_grad_norm=SETTINGS["max_grad_norm"],
            lr_scheduler_type="constant",
            optim="adamw_torch",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        network = transformers.LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
        trainer = InOrder(network, arguments, train_dataset=Dataset.from_list(data), processing_class=tokenizer)
        rows = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
        trainer.train()
    assert len(trainer.losses) == STEPS
    return rows, trainer.losses


def main():
    target = HERE / "sft"
    target.mkdir(exist_ok=True)
    data = conversations()
    make_tokenizer(target, data)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in data)
    (target / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        model = pathlib.Path(directory)
        weights = {}
        for file in ["model", "lm_head"]:
            weights |= safetensors.torch.load_file(HERE / f"llama/{file}.safetensors")
        weights = {name: tensor.float() for name, tensor in weights.items() if name != "score.weight"}
        safetensors.torch.save_file(weights, model / "model.safetensors", {"format": "pt"})
        config = (HERE / "llama/config.json").read_text().replace("ForSequenceClassification", "ForCausalLM")
        (model / "config.json").write_text(config)
        for file in ["tokenizer.json", "tokenizer_config.json"]:
            shutil.copyfile(target / file, model / file)
        rows, answers = train(model, data, True)
        whole, everything = train(model, data, False)
    assert [ids for ids, _ in rows] == [ids for ids, _ in whole] and all(ids == labels for ids, labels in whole)
    begins = [labels.count(-100) for _, labels in rows]
    assert all(labels == [-100] * begin + ids[begin:] for begin, (ids, labels) in zip(begins, rows))
    assert all(len(ids) <= LENGTH for ids, _ in rows)
    found = {
        "versions": {module.__name__: module.__version__ for module in [trl, transformers, torch]},
        "settings": SETTINGS,
        "ids": [ids for ids, _ in rows],
        "begins": begins,
        "loss": {"answers": answers, "all": everything},
    }
    parts = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
    (target / "trl.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
