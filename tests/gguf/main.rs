//! Writes GGUF files: models with a classifier, which are read back and give the golden logits, and LoRA layers. llama.cpp reads
//! them, too, where it is installed.

mod llama;

use serde_json::{Value, json};
use sparta_backend_cpu::Cpu;
use sparta_core::adapter::{AppliedAdapter, ExportFormat, MergeDtype, MergeRequest, export, merge};
use sparta_core::decoder;
use sparta_core::gguf::GgufFile;
use sparta_core::model::{Arrangement, Storage, TensorView};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::text::Tokenizer;
use sparta_core::train::Encoded;
use sparta_core::weights::{OutTensor, TensorFile, Weights, save};
use sparta_graph::{Backend, DType};
use sparta_tests::command::binary;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

static PLUGINS: LazyLock<PluginSet> = LazyLock::new(|| {
    let beside = binary().parent().map(Path::to_owned).into_iter().collect();
    PluginSet::discover(&DiscoverOptions { beside, ..DiscoverOptions::default() })
});

fn cpu() -> Box<dyn Backend> {
    Box::new(Cpu::new(None).unwrap())
}

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(family)
}

/// A golden model with a SentencePiece tokenizer.
fn base(family: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden(family).join(name), dir.path().join(name)).unwrap();
    }
    let pieces = ["<unk>", "<s>", "</s>", "\u{2581}", "a", "b", "i", "s", "is", "\u{2581}i", "\u{2581}is", "<0x0A>"];
    let vocab: BTreeMap<&str, usize> = pieces.into_iter().zip(0..).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [{"id": 1, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [["i", "s"], ["\u{2581}", "i"], ["\u{2581}i", "s"], ["\u{2581}", "is"]]},
    });
    fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    dir
}

/// Like [`base`], without sliding windows.
fn without_windows(family: &str) -> TempDir {
    let dir = base(family);
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["sliding_window"] = Value::Null;
    config.as_object_mut().unwrap().remove("layer_types");
    fs::write(path, config.to_string()).unwrap();
    dir
}

fn open(path: &Path, base: Option<&Path>) -> AppliedAdapter {
    AppliedAdapter::open(path, base, &PLUGINS).unwrap_or_else(|e| panic!("{e}"))
}

fn peft(family: &str, base: &Path) -> AppliedAdapter {
    open(&golden(family).join("peft_adapter"), Some(base))
}

/// Logits of the golden batch, row by row.
fn logits(applied: &AppliedAdapter, family: &str) -> Vec<f32> {
    let file = TensorFile::open(golden(family).join("batch.safetensors")).unwrap();
    let (shape, ids) = file.integers("input_ids").unwrap();
    let lengths = file.integers("lengths").unwrap().1;
    let tokens = |row: &[i64], n: i64| row[..n as usize].iter().map(|&t| t as u32).collect();
    let rows = ids.chunks(shape[1]).zip(lengths);
    let examples: Vec<Encoded> = rows.map(|(row, n)| Encoded::class(tokens(row, n), 0)).collect();
    let mut session = applied.session(cpu(), 64, shape[1]).unwrap();
    let batch = session.setup().objective.pack(&examples).unwrap();
    session.evaluate(&batch).unwrap().0
}

/// The logits of PEFT's model for that batch.
fn golden_logits(family: &str) -> Vec<f32> {
    let train: Value = serde_json::from_slice(&fs::read(golden(family).join("train.json")).unwrap()).unwrap();
    let rows = train["lora"]["eval_logits_after"].as_array().unwrap();
    rows.iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap() as f32).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_merged_adapter_in_a_file_computes_what_peft_does() {
    let base = base("gemma");
    let out = base.path().join("merged.gguf");
    let request = MergeRequest { out: out.clone(), dtype: MergeDtype::To(DType::F32), shard_bytes: 1 << 30 };
    merge(&peft("gemma", base.path()), &request, cpu()).unwrap_or_else(|e| panic!("{e}"));
    let difference = largest_difference(&logits(&open(&out, None), "gemma"), &golden_logits("gemma"));
    assert!(difference <= 5e-5, "{difference}");
}

#[test]
fn a_model_in_a_file_computes_the_same_logits() {
    for family in ["llama", "gemma", "mistral", "qwen2", "qwen3"] {
        let base = without_windows(family);
        let applied = open(base.path(), None);
        let before = logits(&applied, family);
        let write = |name: &str, dtype| {
            let out = base.path().join(name);
            let merged = merge(&applied, &MergeRequest { out: out.clone(), dtype, shard_bytes: 1 << 30 }, cpu());
            let merged = merged.unwrap_or_else(|e| panic!("{family}: {e}"));
            assert!(merged.check.agrees() && merged.files == 1, "{family}: {}", merged.check);
            (largest_difference(&logits(&open(&out, None), family), &before), out)
        };
        let (exact, out) = write("exact.gguf", MergeDtype::To(DType::F32));
        // Gemma's norms are stored as 1 + w, which rounds w.
        assert!(exact <= if family == "gemma" { 5e-6 } else { 0.0 }, "{family}: {exact}");
        let decoder = decoder::open(&out).unwrap();
        assert_eq!(decoder.labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
        let file = GgufFile::open(&out).unwrap();
        assert_eq!(file.get("cls.output.weight").unwrap().0.shape, [3, decoder.hidden_size]);
        // llama.cpp's name of the norm before the MLP.
        assert!(file.get("blk.0.ffn_norm.weight").is_some() && file.get("blk.0.post_attention_norm.weight").is_none());
        let [ours, theirs] = [&out, &base.path().to_owned()].map(|path| Tokenizer::open(path).unwrap());
        assert_eq!(ours.encode("is a\n<s>b", None).unwrap(), theirs.encode("is a\n<s>b", None).unwrap());
        // A second copy, made from the file.
        let again = base.path().join("again.gguf");
        let request = MergeRequest { out: again.clone(), dtype: MergeDtype::Keep, shard_bytes: 1 << 30 };
        merge(&open(&out, None), &request, cpu()).unwrap_or_else(|e| panic!("{family}: {e}"));
        let again = Weights::open(&again).unwrap();
        let first = Weights::open(&out).unwrap();
        assert!(again.names().eq(first.names()));
        assert!(first.names().all(|name| first.get(name).unwrap().raw() == again.get(name).unwrap().raw()), "{family}");
        // Quantized, which merging compares weight by weight: the file is smaller, and the logits differ.
        let (rounded, small) = write("q8.gguf", MergeDtype::Q8_0);
        assert!(rounded > exact && rounded.is_finite(), "{family}: {rounded}");
        assert!(fs::metadata(small).unwrap().len() * 2 < fs::metadata(out).unwrap().len());
    }
}

/// What is not changed keeps its bytes; what is changed is read back as the nearest that the blocks can hold, which merging has
/// compared weight by weight.
#[test]
fn a_quantized_base_goes_back_to_its_own_types() {
    let base = base("gemma");
    let write = |applied: &AppliedAdapter, name: &str, dtype| {
        let out = base.path().join(name);
        let merged = merge(applied, &MergeRequest { out: out.clone(), dtype, shard_bytes: 1 << 30 }, cpu());
        (merged.unwrap_or_else(|e| panic!("{e}")).check, out)
    };
    let q8 = write(&open(base.path(), None), "q8.gguf", MergeDtype::Q8_0).1;
    let quantized = open(&q8, None);
    let (check, same) = write(&quantized, "same.gguf", MergeDtype::Own);
    assert_eq!((check.largest_difference, check.quantized), (0.0, true));
    let (first, same) = (Weights::open(&q8).unwrap(), Weights::open(&same).unwrap());
    assert!(first.names().all(|name| first.get(name).unwrap().raw() == same.get(name).unwrap().raw()));
    let adapter = peft("gemma", &q8);
    let (check, own) = write(&adapter, "own.gguf", MergeDtype::Own);
    assert!(check.quantized && check.largest_difference > 0.0 && check.agrees(), "{check}");
    let own = Weights::open(&own).unwrap();
    let blocks = |weights: &Weights, name: &str| weights.get(name).unwrap().blocks();
    assert!(
        first.names().filter(|name| *name != "score.weight").all(|name| blocks(&first, name) == blocks(&own, name))
    );
    let changed = |name: &&str| first.get(name).unwrap().raw() != own.get(name).unwrap().raw();
    let changed: Vec<&str> = first.names().filter(changed).collect();
    assert!(changed.iter().all(|name| name.contains("_proj") || *name == "score.weight"), "{changed:?}");
    assert!(changed.len() > 1 && blocks(&first, "model.layers.0.self_attn.q_proj.weight").is_some());
    let text = merge(
        &quantized,
        &MergeRequest { out: base.path().join("x"), dtype: MergeDtype::Own, shard_bytes: 1 << 30 },
        cpu(),
    );
    assert!(text.unwrap_err().to_string().contains("types of GGUF files"));
}

#[test]
fn what_a_file_cannot_say_is_refused() {
    for (family, dtype, name, said) in [
        // A query scale that no Gemma has, and windows in a Llama.
        ("gemma3", MergeDtype::Keep, "x.gguf", "GGUF has no place for a setting"),
        ("mistral", MergeDtype::Keep, "x.gguf", "GGUF has no place for a setting"),
        ("gemma", MergeDtype::Q8_0, "x", "use an --out that ends with .gguf"),
    ] {
        let base = base(family);
        let out = base.path().join(name);
        let request = MergeRequest { out: out.clone(), dtype, shard_bytes: 1 << 30 };
        let text = merge(&peft(family, base.path()), &request, cpu()).unwrap_err().to_string();
        assert!(text.contains(said) && !out.exists(), "{family}: {text}");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 3, "{family}: something is left");
    }
}

/// A LoRA adapter without a head, whose layers have two alphas.
fn language_model(family: &str, dir: &Path) -> PathBuf {
    let mut model: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    model["tie_word_embeddings"] = json!(true);
    fs::write(dir.join("config.json"), model.to_string()).unwrap();
    let (from, to) = (golden(family).join("peft_adapter"), dir.join("lora"));
    fs::create_dir(&to).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    config["task_type"] = json!("CAUSAL_LM");
    config["modules_to_save"] = Value::Null;
    config["alpha_pattern"] = json!({"layers.1.self_attn.q_proj": 4});
    fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    let file = TensorFile::open(from.join("adapter_model.safetensors")).unwrap();
    let layers = file.names().filter(|name| name.contains("lora_"));
    let tensors: Vec<OutTensor> = layers
        .map(|name| {
            let view = file.get(name).unwrap();
            OutTensor { name: name.into(), dtype: view.dtype, shape: view.shape.to_vec(), bytes: view.bytes.into() }
        })
        .collect();
    save(&to.join("adapter_model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    to
}

#[test]
fn lora_layers_are_written_for_llama_cpp() {
    for (family, architecture, pairs) in [("mistral", "llama", true), ("gemma", "gemma", false)] {
        let dir = base(family);
        let adapter = language_model(family, dir.path());
        let applied = open(&adapter, Some(dir.path()));
        let out = dir.path().join("lora.gguf");
        export(&applied, ExportFormat::Gguf, &out).unwrap();
        let file = GgufFile::open(&out).unwrap();
        let text = |key: &str| file.metadata().text(key).unwrap().unwrap().to_owned();
        assert_eq!(
            [text("general.architecture"), text("general.type"), text("adapter.type")],
            [architecture, "adapter", "lora"]
        );
        let alpha = file.metadata().number("adapter.lora.alpha").unwrap().unwrap() as f32;
        assert_eq!(file.tensors().count(), applied.adapter.values.len());
        for (layer, own) in [(0, 16.0), (1, 4.0)] {
            let values = |name: &str| &applied.adapter.values[&format!("model.layers.{layer}.self_attn.q_proj.{name}")];
            let (a, bytes) = file.get(&format!("blk.{layer}.attn_q.weight.lora_a")).unwrap();
            let view = TensorView::stored(a.stored, &a.shape, bytes, Arrangement::None);
            assert_eq!(&view.to_f32().unwrap(), values("lora_A"));
            let (b, bytes) = file.get(&format!("blk.{layer}.attn_q.weight.lora_b")).unwrap();
            let head_rows = b.shape[0] / applied.decoder.heads;
            let arrangement = if pairs { Arrangement::RotatedPairs { head_rows } } else { Arrangement::None };
            let view = TensorView::stored(b.stored, &b.shape, bytes, arrangement);
            assert_eq!(b.stored, Storage::Plain(DType::F32));
            let expected = values("lora_B").iter().map(|x| x * (own / alpha));
            assert!(view.to_f32().unwrap().into_iter().eq(expected), "{family} {layer}");
        }
        let refused = export(&peft(family, dir.path()), ExportFormat::Gguf, &dir.path().join("x.gguf")).unwrap_err();
        assert!(refused.to_string().contains("no place for a head"), "{refused}");
    }
}
