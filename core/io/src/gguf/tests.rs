use super::*;
use crate::text::Tokenizer;
use crate::weights::Weights;
use sparta_graph::{Blocks, DType};
use sparta_model::{Decoder, HeadKind, Storage, check_weights, from_f32};
use std::fs::{self, File};
use tempfile::TempDir;

/// A tiny Llama with a SentencePiece tokenizer; `change` may damage it.
fn fields(change: impl FnOnce(&mut Fields)) -> Fields {
    let text = |text: &str| Field::Text(text.into());
    let tokens = ["<unk>", "<s>", "</s>", "\u{2581}", "a", "b", "ab", "\u{2581}ab", "<0x0A>"];
    let keys = [
        ("general.architecture", text("llama")),
        ("llama.context_length", Field::U32(64)),
        ("llama.embedding_length", Field::U32(64)),
        ("llama.block_count", Field::U32(1)),
        ("llama.feed_forward_length", Field::U32(32)),
        ("llama.attention.head_count", Field::U32(4)),
        ("llama.attention.head_count_kv", Field::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Field::F32(1e-5)),
        ("llama.rope.freq_base", Field::F32(500_000.0)),
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.tokens", Field::Texts(tokens.map(str::to_owned).to_vec())),
        ("tokenizer.ggml.scores", Field::F32s(vec![0.0, 0.0, 0.0, -3.0, -4.0, -5.0, -1.0, -2.0, 0.0])),
        ("tokenizer.ggml.token_type", Field::I32s(vec![2, 3, 3, 1, 1, 1, 1, 1, 6])),
        ("tokenizer.ggml.bos_token_id", Field::U32(1)),
        ("tokenizer.ggml.eos_token_id", Field::U32(2)),
    ];
    let mut fields: Fields = keys.map(|(key, field)| (key.to_owned(), field)).to_vec();
    change(&mut fields);
    fields
}

fn tensors() -> Vec<TensorOut> {
    let f32 = Storage::Plain(DType::F32);
    let tensor = |name: &str, stored, shape: &[usize]| TensorOut { name: name.into(), stored, shape: shape.to_vec() };
    let layer = |name: &str, stored, shape: &[usize]| tensor(&format!("blk.0.{name}.weight"), stored, shape);
    vec![
        tensor("token_embd.weight", Storage::Blocks(Blocks::Q8_0), &[9, 64]),
        tensor("output_norm.weight", f32, &[64]),
        layer("attn_norm", f32, &[64]),
        layer("attn_q", f32, &[64, 64]),
        layer("attn_k", Storage::Plain(DType::F16), &[32, 64]),
        layer("attn_v", Storage::Plain(DType::BF16), &[32, 64]),
        layer("attn_output", Storage::Blocks(Blocks::Q5_0), &[64, 64]),
        layer("ffn_norm", f32, &[64]),
        layer("ffn_gate", Storage::Blocks(Blocks::Q4_1), &[32, 64]),
        layer("ffn_up", Storage::Blocks(Blocks::Q4_0), &[32, 64]),
        layer("ffn_down", Storage::Blocks(Blocks::Q5_1), &[64, 32]),
    ]
}

/// The row number of each element; in blocks, every byte is 1.
fn values(tensor: &TensorOut) -> Vec<u8> {
    let n: usize = tensor.shape.iter().product();
    match tensor.stored {
        Storage::Plain(dtype) => {
            let columns = *tensor.shape.last().unwrap();
            from_f32(dtype, &(0..n).map(|i| (i / columns) as f32).collect::<Vec<_>>()).unwrap()
        }
        Storage::Blocks(blocks) => vec![1; n / blocks.elements() * blocks.bytes()],
    }
}

fn write(path: &Path, fields: &Fields, tensors: &[TensorOut]) {
    save(&mut File::create(path).unwrap(), path, fields, tensors, |tensor| Ok(values(tensor))).unwrap();
}

fn model(fields: &Fields, tensors: &[TensorOut]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    write(&path, fields, tensors);
    (dir, path)
}

#[track_caller]
fn refused(fields: &Fields, tensors: &[TensorOut], said: &str) {
    let (_dir, path) = model(fields, tensors);
    let open = || {
        let decoder = crate::decoder::open(&path)?;
        check_weights(&decoder, &Weights::open(&path)?, HeadKind::CausalLm)?;
        Tokenizer::open(&path).map(drop)
    };
    let text = open().unwrap_err().to_string();
    assert!(text.contains("tiny.gguf") && text.contains(said), "{said:?} is not in: {text}");
}

#[test]
fn a_file_is_a_model() {
    let (dir, path) = model(&fields(|_| ()), &tensors());
    for place in [&path, dir.path()] {
        let decoder = crate::decoder::open(place).unwrap();
        assert_eq!((decoder.layers, decoder.head_dim, decoder.kv_heads, decoder.vocab_size), (1, 16, 2, 9));
        assert_eq!((decoder.rms_norm_eps, decoder.ropes[0].theta), (1e-5, 500_000.0));
        assert!(decoder.tied_embeddings && decoder.pad_token_id.is_none());
        assert_eq!(crate::decoder::end_tokens(place, &decoder).unwrap(), [2]);
        let weights = Weights::open(place).unwrap();
        let parameters = check_weights(&decoder, &weights, HeadKind::CausalLm).unwrap();
        let dtype = |name: &str| parameters.iter().find(|p| p.name.contains(name)).unwrap().dtype;
        assert_eq!([dtype("k_proj"), dtype("v_proj"), dtype("up_proj")], [DType::F16, DType::BF16, DType::F32]);
        // Rows of a head of 16: 0, 2, 4, ... and then 1, 3, 5, ...
        let rows =
            |name: &str| -> Vec<f32> { weights.get(name).unwrap().to_f32().unwrap().into_iter().step_by(64).collect() };
        let keys = rows("model.layers.0.self_attn.k_proj.weight");
        assert_eq!((&keys[..3], &keys[8..10], keys[16]), (&[0.0, 2.0, 4.0][..], &[1.0, 3.0][..], 16.0));
        assert_eq!(rows("model.layers.0.self_attn.v_proj.weight")[..3], [0.0, 1.0, 2.0]);
        assert_eq!(weights.stored_name("model.norm.weight"), Some("output_norm.weight"));
        let tokenizer = Tokenizer::open(place).unwrap();
        assert_eq!(tokenizer.encode("ab a\n", None).unwrap(), [1, 7, 3, 4, 8]);
        assert_eq!(tokenizer.decode(&[1, 7, 3, 4, 8]).unwrap(), "ab a\n");
        assert_eq!(tokenizer.eos_id(), Some(2));
    }
}

#[test]
fn parts_are_one_model() {
    let (fields, all) = (fields(|_| ()), tensors());
    let dir = tempfile::tempdir().unwrap();
    let part = |i: u32| dir.path().join(format!("tiny-{i:05}-of-00002.gguf"));
    for (i, tensors) in [(1, &all[..4]), (2, &all[4..])] {
        let mut fields = if i == 1 { fields.clone() } else { vec![] };
        fields.push(("split.count".into(), Field::U32(2)));
        write(&part(i), &fields, tensors);
    }
    assert_eq!(Gguf::open(dir.path()).unwrap().names().count(), all.len());
    let gguf = Gguf::open(&part(2)).unwrap();
    assert!(gguf.place("model.layers.0.mlp.up_proj.weight").unwrap().1.ends_with("tiny-00002-of-00002.gguf"));
    fs::rename(part(2), dir.path().join("elsewhere")).unwrap();
    let text = Gguf::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("has 2 parts, and tiny-00002-of-00002.gguf is missing"), "{text}");
}

#[test]
fn what_is_not_supported_is_named() {
    let with = |key: &str, field: Field| fields(|fields| set(fields, key, field));
    let text = |text: &str| Field::Text(text.into());
    for (key, field, said) in [
        ("general.architecture", text("mamba"), "expected one of llama"),
        ("general.architecture", text("qwen3moe"), "mixtures of experts"),
        ("general.architecture", text("clip"), "image encoder"),
        ("llama.expert_count", Field::U32(8), "mixtures of experts"),
        ("general.type", text("adapter"), "expected a model"),
        ("general.alignment", Field::U32(3), "a power of two"),
        ("llama.rope.scaling.type", text("yarn"), "rope_type"),
        ("llama.block_count", Field::Texts(vec![]), "a number of at least 0"),
        ("llama.attention.head_count", Field::U32(0), "num_attention_heads"),
        ("tokenizer.ggml.model", text("bert"), "gpt2 and llama are supported"),
        ("tokenizer.ggml.scores", Field::F32s(vec![f32::NAN; 9]), "NaN"),
        ("tokenizer.ggml.scores", Field::F32s(vec![0.0; 8]), "expected one for each of 9"),
        ("tokenizer.ggml.token_type", Field::I32s(vec![]), "expected one for each of 9"),
        ("tokenizer.ggml.bos_token_id", Field::U32(9), "there are 9 tokens"),
        ("tokenizer.ggml.tokens", Field::Texts(vec!["a".into(); 9]), "a token twice"),
    ] {
        refused(&with(key, field), &tensors(), said);
    }
    let mut gpt2 = with("tokenizer.ggml.model", text("gpt2"));
    refused(&gpt2, &tensors(), "`tokenizer.ggml.pre` is missing; known ways");
    set(&mut gpt2, "tokenizer.ggml.pre", text("smollm"));
    set(&mut gpt2, "tokenizer.ggml.merges", Field::Texts(vec!["ab".into()]));
    refused(&gpt2, &tensors(), "a merge that is not a pair");
    for key in ["general.architecture", "llama.embedding_length", "tokenizer.ggml.tokens"] {
        refused(&fields(|fields| fields.retain(|(own, _)| own != key)), &tensors(), key);
    }
    let mut more = tensors();
    more.push(TensorOut { name: "blk.0.ssm_a".into(), stored: Storage::Plain(DType::F32), shape: vec![4] });
    refused(&fields(|_| ()), &more, "not part of this architecture: blk.0.ssm_a");
    refused(&fields(|_| ()), &tensors()[..10], "missing: model.layers.0.mlp.down_proj.weight");
}

fn set(fields: &mut Fields, key: &str, field: Field) {
    fields.retain(|(own, _)| own != key);
    fields.push((key.to_owned(), field));
}

#[test]
fn what_is_written_is_read() {
    let (_dir, path) = model(&fields(|_| ()), &tensors());
    let gguf = Gguf::open(&path).unwrap();
    let copied: Fields =
        gguf.metadata().keys().map(|key| (key.into(), Field::Encoded(gguf.metadata().encoded(key).unwrap()))).collect();
    let (_dir, copy) = model(&copied, &tensors());
    let again = Gguf::open(&copy).unwrap();
    assert_eq!(again.config().unwrap(), gguf.config().unwrap());
    assert_eq!(again.tokenizer().unwrap(), gguf.tokenizer().unwrap());
    let short = save(&mut Vec::new(), &copy, &copied, &tensors()[..1], |_| Ok(vec![0; 3])).unwrap_err().to_string();
    assert!(short.contains("`token_embd.weight` of shape [9, 64] got 3 bytes"), "{short}");
}

/// Every single-byte change of the header is an error or a readable file, never a panic.
#[test]
fn no_changed_byte_causes_a_panic() {
    let (_dir, path) = model(&fields(|_| ()), &tensors());
    let good = fs::read(&path).unwrap();
    for i in (0..good.len().min(2200)).step_by(3) {
        for change in [1, 128] {
            let mut bytes = good.clone();
            bytes[i] ^= change;
            fs::write(&path, &bytes).unwrap();
            let Ok(gguf) = Gguf::open(&path) else { continue };
            for name in gguf.names() {
                let view = gguf.get(name).unwrap();
                assert_eq!(view.bytes().len(), view.size(), "{name}");
            }
            if let Ok(config) = gguf.config() {
                let _ = Decoder::parse(&path, &config);
            }
            let _ = gguf.tokenizer();
        }
    }
}

#[test]
fn damage_is_described() {
    let (_dir, path) = model(&fields(|_| ()), &tensors());
    let good = fs::read(&path).unwrap();
    let message = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        GgufFile::open(&path).unwrap_err().to_string()
    };
    let with = |at: usize, new: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        message(&bytes)
    };
    assert!(message(b"").contains("does not begin with GGUF"));
    assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
    assert!(message(&good[..good.len() - 64]).contains("is truncated or damaged: tensor"));
    assert!(message(&good[..100]).contains("is truncated or damaged: its header"));
    assert!(with(4, &1u32.to_le_bytes()).contains("version 1"));
    assert!(with(4, &3u32.to_be_bytes()).contains("big-endian"));
    assert!(with(8, &u64::MAX.to_le_bytes()).contains("18446744073709551615 tensors"));
    assert!(with(16, &65u64.to_le_bytes()).contains("header"));
    // The first key's length.
    assert!(with(24, &u64::MAX.to_le_bytes()).contains("needs 18446744073709551615 bytes"));
    let at = |name: &str| good.windows(name.len()).position(|window| window == name.as_bytes()).unwrap() + name.len();
    let (embedding, norm) = (at("token_embd.weight"), at("output_norm.weight"));
    assert!(with(embedding, &9u32.to_le_bytes()).contains("9 axes"));
    assert!(with(embedding + 4, &65u64.to_le_bytes()).contains("expected a multiple of 32"));
    assert!(with(embedding + 4, &(1u64 << 62).to_le_bytes()).contains("larger than any file"));
    assert!(with(embedding + 20, &10u32.to_le_bytes()).contains("Q2_K, which is not supported"));
    assert!(with(embedding + 20, &77u32.to_le_bytes()).contains("type number 77"));
    assert!(with(norm + 16, &1u64.to_le_bytes()).contains("expected a multiple of 32"));
    assert!(with(norm + 16, &32u64.to_le_bytes()).contains("begins inside another one"));
    assert!(with(norm + 16, &(1u64 << 63).to_le_bytes()).contains("is truncated or damaged: tensor"));
}

/// Tokenizers of published models, as llama.cpp's converter stores them: the merges made from scores equal those of
/// `tokenizer.json`, and so do the ids of texts.
#[test]
fn pieces_become_the_models_own_merges() {
    let Some(data) = sparta_test_data::find("data/tokenizers") else { return };
    for (name, prefix) in [("gemma-2", false), ("tinyllama-1.1b-chat", true)] {
        let file = fs::read(data.join(name).join("tokenizer.json")).unwrap();
        let own: Value = serde_json::from_slice(&file).unwrap();
        let (_dir, path) = model(&of_tokenizer(&own, prefix), &tensors());
        let made = Gguf::open(&path).unwrap().tokenizer().unwrap();
        let pairs = |file: &Value| -> Vec<String> {
            let merges = file["model"]["merges"].as_array().unwrap().iter();
            let text = |merge: &Value| match merge {
                Value::String(text) => text.clone(),
                pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            };
            merges.map(text).collect()
        };
        let (mut made, mut own) = (pairs(&made), pairs(&own));
        // Pairs that make one piece have one score: versions of transformers order them differently.
        for all in [&mut made, &mut own] {
            all.chunk_by_mut(|a, b| a.replace(' ', "") == b.replace(' ', "")).for_each(|same| same.sort());
        }
        assert_eq!(made.len(), own.len(), "{name}");
        if let Some(at) = made.iter().zip(&own).position(|(made, own)| made != own) {
            panic!("{name}: merge {at} is {:?}, expected {:?}", made[at], own[at]);
        }
        let (made, own) = (Tokenizer::open(&path).unwrap(), Tokenizer::open(&data.join(name)).unwrap());
        for text in [
            "A fine film.",
            " two  spaces\n\n\nand\ttabs\t\t             x   ",
            "1234 \u{e9}\u{4f60}\u{597d} \u{1f600}",
            "don't</s><eos>x",
        ] {
            assert_eq!(made.encode(text, None).unwrap(), own.encode(text, None).unwrap(), "{name}: {text:?}");
        }
    }
}

/// Metadata with the vocabulary of a `tokenizer.json`. The scores of pieces are 0, -1, -2, ... in the order of the
/// first merges that make them, as SentencePiece has them.
fn of_tokenizer(file: &Value, prefix: bool) -> Fields {
    let vocab = file["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    vocab.iter().for_each(|(token, id)| tokens[id.as_u64().unwrap() as usize] = token.clone());
    let added: BTreeMap<&str, bool> = file["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| (token["content"].as_str().unwrap(), token["special"] == true))
        .collect();
    let mut ranks = BTreeMap::new();
    for merge in file["model"]["merges"].as_array().unwrap() {
        let piece = match merge {
            Value::String(text) => text.replacen(' ', "", 1),
            pair => format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        let rank = ranks.len();
        if !added.contains_key(piece.as_str()) {
            ranks.entry(piece).or_insert(rank);
        }
    }
    let score = |token: &String| -(ranks.get(token).copied().unwrap_or(0) as f32);
    let kind = |token: &String| added.get(token.as_str()).map_or(1, |&special| if special { 3 } else { 4 });
    let kinds = tokens.iter().map(kind).collect();
    fields(|fields| {
        let id = |names: &[&str]| names.iter().find_map(|name| vocab.get(*name)).unwrap().as_u64().unwrap() as u32;
        set(fields, "tokenizer.ggml.scores", Field::F32s(tokens.iter().map(score).collect()));
        set(fields, "tokenizer.ggml.token_type", Field::I32s(kinds));
        set(fields, "tokenizer.ggml.bos_token_id", Field::U32(id(&["<bos>", "<s>"])));
        set(fields, "tokenizer.ggml.eos_token_id", Field::U32(id(&["<eos>", "</s>"])));
        set(fields, "tokenizer.ggml.unknown_token_id", Field::U32(id(&["<unk>"])));
        set(fields, "tokenizer.ggml.add_space_prefix", Field::Flag(prefix));
        set(fields, "tokenizer.ggml.tokens", Field::Texts(tokens));
    })
}

#[test]
fn pieces_of_a_file_are_known_by_their_names() {
    for (name, whole) in [
        ("x.gguf.part00", Some("x.gguf")),
        ("x.GGUF-split-b", Some("x.GGUF")),
        ("x.gguf.aa", Some("x.gguf")),
        ("x.gguf.001", Some("x.gguf")),
        ("x.gguf", None),
        ("x-00001-of-00002.gguf", None),
        ("x.gguf.metadata", None),
        ("x.gguf.md", None),
        ("x.gguf.", None),
    ] {
        assert_eq!(cut_from(name), whole, "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.gguf.part00");
    fs::write(&file, "GGUF").unwrap();
    for path in [dir.path(), &file] {
        let error = crate::decoder::open(path).unwrap_err().to_string();
        assert!(error.contains("a piece of x.gguf; join all pieces in order"), "{error}");
    }
}
