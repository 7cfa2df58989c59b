//! Model directories, and batches for them.

use crate::place::{self, place, put, tensor};
use serde_json::json;
use sparta_backend_cpu::Cpu;
use sparta_core::decoder;
use sparta_core::job::PrecisionChoice;
use sparta_core::model::{HeadKind, check_weights};
use sparta_core::run::{InspectRequest, InspectTask, inspect_forward};
use sparta_core::text::{ChatTemplate, Message, Tokenizer};
use sparta_core::weights::{Dtype, TensorFile, Weights};
use std::fs;

pub fn safetensors(bytes: &[u8]) -> bool {
    let dir = place("safetensors", |_| ());
    put(&dir, "x.safetensors", bytes);
    let Ok(file) = TensorFile::open(dir.join("x.safetensors")) else { return false };
    let names: Vec<&str> = file.names().collect();
    names.iter().for_each(|name| drop((file.integers(name), file.floats(name))));
    true
}

pub fn good_safetensors() -> Vec<Vec<u8>> {
    let floats = tensor("model.w", Dtype::BF16, &[2, 3], &[0; 12]);
    let integers = tensor("ids", Dtype::I64, &[1], &7i64.to_le_bytes());
    vec![place::file(&[floats.clone(), integers]), place::file(&[floats]), place::file(&[])]
}

/// A model: configuration, weights and tokenizer.
pub fn gguf(bytes: &[u8]) -> bool {
    let dir = place("gguf", |_| ());
    put(&dir, "x.gguf", bytes);
    let path = dir.join("x.gguf");
    let Ok(weights) = Weights::open(&path) else { return false };
    let views: Vec<_> = weights.names().filter_map(|name| weights.get(name)).collect();
    views.iter().for_each(|view| assert_eq!(view.bytes().len(), view.size()));
    let decoder = decoder::open(&path);
    let _ = (encodes(&path), renders(&path));
    decoder.is_ok_and(|decoder| check_weights(&decoder, &weights, HeadKind::CausalLm).is_ok())
}

pub fn good_gguf() -> Vec<Vec<u8>> {
    vec![place::gguf("llama"), place::gguf("gpt2")]
}

pub fn index(bytes: &[u8]) -> bool {
    let dir = place("index", |dir| {
        place::model(dir);
        fs::rename(dir.join("model.safetensors"), dir.join("a.safetensors")).expect("it was written");
        put(dir, "b.safetensors", place::file(&[tensor("model.b", Dtype::F32, &[1], &[0; 4])]));
    });
    put(&dir, "model.safetensors.index.json", bytes);
    Weights::open(&dir).is_ok()
}

pub fn good_index() -> Vec<Vec<u8>> {
    let map = json!({"model.embed_tokens.weight": "a.safetensors", "model.b": "b.safetensors"});
    vec![json!({"metadata": {"total_size": 4}, "weight_map": map}).to_string().into()]
}

pub fn config(bytes: &[u8]) -> bool {
    let dir = place("config", place::model);
    put(&dir, "config.json", bytes);
    let Ok(decoder) = decoder::open(&dir) else { return false };
    // Also derives the names and shapes of the weights, and a table of angles.
    let weights = Weights::open(&dir).expect("the weights are good");
    let checked = check_weights(&decoder, &weights, HeadKind::Classification { classes: decoder.labels.len() });
    drop((checked, decoder.ropes.iter().map(|rope| rope.table(4)).collect::<Vec<_>>()));
    true
}

pub fn good_config() -> Vec<Vec<u8>> {
    let with = |changes: serde_json::Value| {
        let mut config = place::config();
        for (key, value) in changes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config.to_string().into_bytes()
    };
    let family = |kind: &str, class: &str| json!({"model_type": kind, "architectures": [format!("{class}Model")]});
    let families = [("gemma", "Gemma"), ("gemma2", "Gemma2"), ("mistral", "Mistral"), ("qwen2", "Qwen2")];
    let mut all: Vec<Vec<u8>> = families.iter().map(|(kind, class)| with(family(kind, class))).collect();
    all.push(with(family("qwen3", "Qwen3")));
    all.push(with(json!({"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}})));
    all.push(with(json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "bfloat16"})));
    all
}

pub fn generation_config(bytes: &[u8]) -> bool {
    let dir = place("generation_config", place::model);
    put(&dir, "generation_config.json", bytes);
    let decoder = decoder::open(&dir).expect("the configuration is good");
    decoder::end_tokens(&dir, &decoder).is_ok()
}

pub fn good_generation_config() -> Vec<Vec<u8>> {
    let one = json!({"bos_token_id": 1, "eos_token_id": 2, "do_sample": true, "temperature": 0.6, "_from_model_config": true});
    let several = json!({"eos_token_id": [2, 7, 128009], "transformers_version": "4.57.0"});
    [one, several, json!({"eos_token_id": null}), json!({})].map(|config| config.to_string().into_bytes()).to_vec()
}

pub fn tokenizer(bytes: &[u8]) -> bool {
    let dir = place("tokenizer", place::model);
    put(&dir, "tokenizer.json", bytes);
    encodes(&dir)
}

fn encodes(dir: &std::path::Path) -> bool {
    Tokenizer::open(dir).is_ok_and(|tokenizer| {
        drop(tokenizer.check_vocab(16));
        tokenizer.encode("a b  good 1", Some("c\u{e9}")).is_ok()
    })
}

pub fn good_tokenizer() -> Vec<Vec<u8>> {
    let with = |changes: serde_json::Value| {
        let mut tokenizer = place::tokenizer();
        for (key, value) in changes.as_object().into_iter().flatten() {
            tokenizer[key] = value.clone();
        }
        tokenizer.to_string().into_bytes()
    };
    let bpe = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
        "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4, "ab": 5, "\u{2581}": 6, "<0xC3>": 7},
        "merges": [["a", "b"]]});
    let unigram = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["<s>", 0.0], ["\u{2581}", -2.0], ["a", -3.0], ["ab", -2.5]]});
    let pieces = json!({"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"<unk>": 0, "<s>": 1, "a": 2, "##b": 3}});
    let added = json!([{"id": 1, "content": "<s>", "single_word": false, "lstrip": true, "rstrip": false,
        "normalized": false, "special": true}]);
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}});
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|\\s+"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": false}]});
    let normalizer = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}, {"type": "NFKC"},
        {"type": "Lowercase"}]});
    vec![
        with(json!({"added_tokens": added, "post_processor": template})),
        with(json!({"model": bpe, "normalizer": normalizer, "pre_tokenizer": null})),
        with(json!({"model": unigram, "pre_tokenizer": split})),
        with(json!({"model": pieces, "pre_tokenizer": {"type": "BertPreTokenizer"}})),
    ]
}

pub fn tokenizer_config(bytes: &[u8]) -> bool {
    let dir = place("tokenizer_config", place::model);
    put(&dir, "tokenizer_config.json", bytes);
    encodes(&dir) && renders(&dir)
}

pub fn good_tokenizer_config() -> Vec<Vec<u8>> {
    let mut named = place::tokenizer_config();
    named["chat_template"] = json!([{"name": "default", "template": "{{ bos_token }}x"}]);
    let mut one = place::tokenizer_config();
    one["chat_template"] = json!("{% generation %}{{ messages[0].content }}{% endgeneration %}");
    [place::tokenizer_config(), named, one].map(|config| config.to_string().into_bytes()).to_vec()
}

pub fn special_tokens(bytes: &[u8]) -> bool {
    let dir = place("special_tokens", |dir| {
        place::model(dir);
        put(dir, "tokenizer_config.json", r#"{"tokenizer_class": "GemmaTokenizer", "add_eos_token": true}"#);
        put(dir, "chat_template.jinja", "{{ bos_token }}{{ sep_token }}");
    });
    put(&dir, "special_tokens_map.json", bytes);
    encodes(&dir) && renders(&dir)
}

pub fn good_special_tokens() -> Vec<Vec<u8>> {
    vec![json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "sep_token": "<pad>"}).to_string().into()]
}

pub fn chat_template(bytes: &[u8]) -> bool {
    let dir = place("chat_template", place::model);
    put(&dir, "chat_template.jinja", bytes);
    renders(&dir)
}

fn renders(dir: &std::path::Path) -> bool {
    let turn = |role, content| Message { role, content };
    let messages = [turn("system", "be brief"), turn("user", "hello"), turn("assistant", "good film")];
    ChatTemplate::open(dir, 0).is_ok_and(|template| template.is_none_or(|template| template.render(&messages).is_ok()))
}

pub fn good_chat_template() -> Vec<Vec<u8>> {
    [
        "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{% if loop.last %}!{% endif %}{% endfor %}",
        "{%- macro f(x, y=2) -%}{{ x }}-{{ y }}{%- endmacro -%}{% set n = namespace(a=1) %}{{ f(bos_token, n.a) }}",
        "{{ messages | tojson(indent=2) }}{{ messages[0]['content'].removeprefix('be').rsplit(' ', 1) }}",
        "{{ strftime_now('%d %b %Y') }}{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}",
        "{% generation %}{{ messages[1:] | map(attribute='role') | join(', ') }}{% endgeneration %}",
    ]
    .map(|template| template.as_bytes().to_vec())
    .to_vec()
}

pub fn batch(bytes: &[u8]) -> bool {
    let dir = place("batch", place::model);
    put(&dir, "batch.safetensors", bytes);
    let read = |task, grads| {
        let (model, batch, out) = (dir.clone(), dir.join("batch.safetensors"), dir.join("out.safetensors"));
        let device = Cpu::new(Some(1)).expect("a CPU");
        inspect_forward(
            &InspectRequest { model, batch, task, grads, precision: PrecisionChoice::F32, out },
            Box::new(device),
        )
        .is_ok()
    };
    // Not short-circuited: the tasks read different tensors of the file.
    read(InspectTask::CausalLm, false) | read(InspectTask::Classification, false)
}

pub fn good_batch() -> Vec<Vec<u8>> {
    let integers = |name: &str, shape: &[usize], values: &[i64]| {
        tensor(name, Dtype::I64, shape, bytemuck::cast_slice::<i64, u8>(values))
    };
    let ids = integers("input_ids", &[2, 3], &[1, 4, 5, 1, 6, 0]);
    let mask = integers("attention_mask", &[2, 3], &[1, 1, 1, 1, 1, 0]);
    let labels = integers("labels", &[2], &[0, 1]);
    let lm_labels = integers("lm_labels", &[2, 3], &[1, 4, 5, 1, 6, -100]);
    vec![place::file(&[ids.clone(), mask.clone(), labels]), place::file(&[ids, mask, lm_labels])]
}
