//! Replaces good files with hostile ones, which the real binary reads under a memory limit: each is an error that names
//! the place, never a panic, a crash or an endless run. Small files are in `bad/`, large ones are made here.

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::ByteArray;
use parquet::file::properties::WriterProperties;
use safetensors::SafeTensors;
use serde::Deserialize;
use sparta_core::adapter::AppliedAdapter;
use sparta_core::hash::{fingerprint, hash_file};
use sparta_core::plugin::PluginSet;
use sparta_core::weights::{Dtype, OutTensor, Weights, save};
use sparta_task_files::testing::{Column, parquet};
use sparta_tests::command::{binary, command};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// KiB of address space for a command.
const MEMORY: &str = "4194304";

#[derive(Deserialize)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    file: String,
    /// The file to replace, below a directory with `model`, `data`, `run` and `plugin`.
    place: String,
    /// The command to run: see [`Place::command`].
    command: String,
    expect: Vec<String>,
}

/// A home with the unpacked embedded model and a finished run.
static GOOD: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let home = tempfile::tempdir().unwrap();
    let args = ["run", "--method", "lora", "--max-steps", "4", "--checkpoint-interval", "2", "--max-dev", "16"];
    let args = [&args[..], &["--max-test", "16", "--device", "cpu", "--out", "run"]].concat();
    assert!(command(home.path(), &args).output().unwrap().status.success());
    home
});

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = entry.map(|e| (e.path(), to.join(e.file_name()))).unwrap();
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Good files, one of which a test replaces.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let cache = fs::read_dir(GOOD.path().join("cache/sparta")).unwrap().next().unwrap().unwrap().path();
        copy(&cache, dir.path());
        copy(&GOOD.path().join("run"), &dir.path().join("run"));
        fs::create_dir(dir.path().join("plugin")).unwrap();
        let plugin = format!("{}sparta_method_lora{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let library = dir.path().join(format!("plugin/library{}", std::env::consts::DLL_SUFFIX));
        fs::copy(binary().with_file_name(plugin), library).unwrap();
        Place(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        if name.ends_with(".index.json") {
            fs::remove_file(self.path("model/model.safetensors")).unwrap();
        }
        if name.starts_with("data/") && !name.ends_with(".jsonl") {
            fs::remove_file(self.path("data/train.jsonl")).unwrap();
            fs::remove_file(self.path("data/dev.jsonl")).unwrap();
            fs::write(self.path("data/dev.tsv"), "sentence\tlabel\nfine\t1\n").unwrap();
            write_parquet(&self.path("data/validation-00000-of-00001.parquet"), "fine");
        }
        fs::write(self.path(name), &bytes).unwrap();
        if name.ends_with("/checkpoint.json") {
            let seal = sparta_core::checkpoint::seal(bytes.as_ref());
            fs::write(self.path(name).with_extension("sha256"), seal).unwrap();
        }
    }

    fn command(&self, name: &str) -> Output {
        let text = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let mut args = match name {
            "inspect" => vec!["inspect", "forward", "--task", "lm", "--device", "cpu"],
            "eval" => vec!["eval", "--split", "dev", "--device", "cpu"],
            "resume" => vec!["run", "--device", "cpu", "--resume"],
            "plugins" => vec!["plugins", "--plugin"],
            _ => vec!["run", "--task", "sst2", "--method", "lora", "--max-steps", "1", "--device", "cpu"],
        }
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
        let mut add = |option: &str, path: &str| args.extend([option.to_owned(), text(path)]);
        match name {
            "inspect" => [("--model", "model"), ("--batch", "batch.safetensors"), ("--out", "out.safetensors")]
                .iter()
                .for_each(|(option, path)| add(option, path)),
            "eval" | "resume" => args.push(text("run")),
            "plugins" => args.push(text("plugin")),
            _ => {
                let model = if name == "gguf" { "model.gguf" } else { "model" };
                [("--model", model), ("--data", "data"), ("--out", "new")].iter().for_each(|(o, p)| add(o, p));
            }
        }
        if name == "instruct" {
            args.push("--instruct".into());
        }
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -v {MEMORY}; exec \"$@\""), "sh"]).arg(binary()).args(&args);
        limited.env("HOME", GOOD.path()).env_remove("SPARTA_PLUGIN_PATH").current_dir(self.0.path());
        limited.output().unwrap()
    }

    /// Runs the command and compares its output. Listing plugins and resuming do not fail.
    fn check(&self, case: &str, name: &str, expect: &[impl AsRef<str>]) -> Result<(), String> {
        let output = self.command(name);
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        let code = output.status.code();
        let survives = name == "plugins" || (name == "resume" && case.starts_with("checkpoint"));
        let expected = if survives { code == Some(0) } else { matches!(code, Some(1 | 2)) };
        let said = expect.iter().all(|part| text.contains(part.as_ref()));
        if expected && said && !text.contains("panicked") {
            return Ok(());
        }
        Err(format!(
            "{case}: {}, expected {:?} in: {text}",
            output.status,
            expect.iter().map(AsRef::as_ref).collect::<Vec<_>>()
        ))
    }
}

fn write_parquet(path: &Path, text: &str) {
    let columns = [("sentence", Column::texts([text])), ("label", Column::integers([1]))];
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let properties = WriterProperties::builder().set_compression(zstd).set_dictionary_enabled(false).build();
    fs::write(path, parquet(&columns, properties)).unwrap();
}

#[test]
fn stored_files() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("bad");
    let cases: Cases = toml::from_str(&fs::read_to_string(dir.join("cases.toml")).unwrap()).unwrap();
    let mut failures = Vec::new();
    for case in &cases.case {
        let place = Place::new();
        place.write(&case.place, fs::read(dir.join(&case.file)).unwrap());
        failures.extend(place.check(&case.file, &case.command, &case.expect).err());
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.case.len(), failures.join("\n"));
}

#[track_caller]
fn check(file: &str, bytes: impl AsRef<[u8]>, command: &str, expect: &[&str]) {
    let place = Place::new();
    place.write(file, bytes);
    place.check(file, command, expect).unwrap();
}

#[test]
fn long_lines() {
    let line = "x".repeat(2 << 20);
    check("data/train.jsonl", format!("{{\"label\":0,\"text\":\"{line}\"}}\n"), "run", &["train.jsonl:1", "1 MiB"]);
    check("data/train.tsv", format!("sentence\tlabel\n{line}\t1\n"), "run", &["train.tsv:2", "1 MiB"]);
    check("data/train.jsonl", vec![b'x'; 64 << 20], "run", &["train.jsonl:1", "1 MiB"]);
}

#[test]
fn deep_json() {
    let deep = "[".repeat(1 << 20);
    for file in ["model/config.json", "model/tokenizer.json", "model/tokenizer_config.json"] {
        check(file, &deep, "run", &[file]);
    }
}

/// A text of 512 MiB, compressed to a page of a few kilobytes.
#[test]
fn a_page_that_unpacks_to_far_too_much() {
    let place = Place::new();
    place.write("data/train-00000-of-00001.parquet", "");
    let file = place.path("data/train-00000-of-00001.parquet");
    write_parquet(&file, &"x".repeat(512 << 20));
    assert!(fs::metadata(&file).unwrap().len() < 1 << 20);
    place.check("bomb.parquet", "run", &["train-00000", "a page unpacks to 53687"]).unwrap();
}

/// A text of 8 MiB that the file stores once, for each of its rows.
#[test]
fn a_dictionary_that_unpacks_to_far_too_much() {
    let place = Place::new();
    place.write("data/train-00000-of-00001.parquet", "");
    let file = place.path("data/train-00000-of-00001.parquet");
    let text = ByteArray::from("x".repeat(8 << 20).into_bytes());
    let columns = [("sentence", Column::Texts(vec![Some(text); 600])), ("label", Column::integers([1; 600]))];
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let properties = WriterProperties::builder().set_compression(zstd).set_dictionary_page_size_limit(64 << 20);
    fs::write(&file, parquet(&columns, properties.build())).unwrap();
    assert!(fs::metadata(&file).unwrap().len() < 1 << 20);
    place.check("dictionary.parquet", "run", &["train-00000", "row 1", "1 MiB"]).unwrap();
}

/// A text of 900 KiB, stored once for 1,500 rows: 1.3 GB.
#[test]
fn a_data_set_that_unpacks_to_far_too_much() {
    let place = Place::new();
    place.write("data/train-00000-of-00001.parquet", "");
    let file = place.path("data/train-00000-of-00001.parquet");
    let text = ByteArray::from("x".repeat(900 << 10).into_bytes());
    let columns = [("sentence", Column::Texts(vec![Some(text); 1500])), ("label", Column::integers(vec![1; 1500]))];
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let properties = WriterProperties::builder().set_compression(zstd).set_dictionary_page_size_limit(64 << 20);
    fs::write(&file, parquet(&columns, properties.build())).unwrap();
    assert!(fs::metadata(&file).unwrap().len() < 1 << 20);
    place.check("flood.parquet", "run", &["train-00000", "512.0 MiB"]).unwrap();
}

/// Very deeply nested templates are rendered like the plain one.
#[test]
fn long_chat_templates_are_rendered() {
    let said = |template: String| {
        let place = Place::new();
        place.write("model/chat_template.jinja", template);
        let output = place.command("instruct");
        let error = String::from_utf8_lossy(&output.stderr).replace(place.0.path().to_str().unwrap(), "");
        (output.status.code(), error)
    };
    let chain = |link: &str| {
        let chain = link.repeat(200_000 / link.len());
        said(format!("{{% set x = {chain}1 %}}{{{{ messages[0].content }}}}"))
    };
    let plain = said("{{ messages[0].content }}".into());
    for link in ["1+", "1~", "1-", "- ", "-", "not ", "1 and ", "1 if 1 else ", "1<"] {
        assert_eq!(chain(link), plain, "{link}");
    }
    // Nested values in memory are dropped without recursion, too.
    let nested = "{% set n = namespace(l=[]) %}{% for i in range(5000) %}{% set n.l = [n.l] %}{% endfor %}";
    let elif = format!("{{% if a %}}{}{{% endif %}}", "{%elif a%}".repeat(20_000));
    for start in [nested, &elif] {
        assert_eq!(said(format!("{start}{{{{ messages[0].content }}}}")), plain);
    }
}

/// Tiny templates that take gigabytes or minutes; on a slow machine the time limit comes first.
#[test]
fn chat_templates_without_bounds_are_refused() {
    let long = |link: &str| format!("{{{{ x{} }}}}", link.repeat(100_000));
    let doubled = "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}";
    for (template, expect) in [
        (long(".y"), "undefined value"),
        (long("|e"), "runs too long"),
        ("{{ 'x'|batch(1000000000, '')|list }}".into(), "does not belong to this model"),
        ("{{ 'x'|slice(1000000000)|list }}".into(), "does not belong to this model"),
        ("{{ 'a\nb'|indent(1000000000) }}".into(), "does not belong to this model"),
        ("{{ '%1000000000d'|format(1) }}".into(), "does not belong to this model"),
        ("{{ (['a']*1000000000)|join }}".into(), "does not belong to this model"),
        (doubled.into(), "does not belong to this model"),
        ("{{ ([1]*1000000000000)|min }}".into(), "longer than 10 s"),
    ] {
        check("model/chat_template.jinja", &template, "instruct", &["chat_template.jinja: the chat template", expect]);
    }
}

/// One value of a weight is NaN: the last of the file, or one in the embedding of a token that occurs in no text.
#[test]
fn weights_that_are_not_numbers_are_named() {
    let place = Place::new();
    let batch = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/llama/batch.safetensors");
    fs::copy(batch, place.path("batch.safetensors")).unwrap();
    let path = place.path("model/model.safetensors");
    let good = fs::read(&path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&good).unwrap();
    let embeddings = metadata.info("model.embed_tokens.weight").unwrap().data_offsets.1;
    for (end, name) in [(good.len(), "model."), (8 + header + embeddings, "model.embed_tokens.weight")] {
        let mut bytes = good.clone();
        bytes[end - 2..end].copy_from_slice(&[0xc0, 0x7f]);
        fs::write(&path, bytes).unwrap();
        for command in ["run", "inspect"] {
            let weight = format!("the weight {name}");
            place.check("NaN", command, &[&*weight, "holds NaN", "model is damaged"]).unwrap();
            assert!(!place.path("new").exists(), "a run that failed before its first step keeps no name");
        }
    }
}

/// A value of an adapter is NaN or infinite, with the right hash in its manifest.
#[test]
fn adapters_that_are_not_numbers_are_named() {
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let place = Place::new();
        let [values, manifest] =
            ["adapter.safetensors", "adapter.json"].map(|name| place.path("run/adapter").join(name));
        let old = hash_file(&values).unwrap();
        let mut bytes = fs::read(&values).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
        fs::write(&values, bytes).unwrap();
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace(&old, &hash_file(&values).unwrap())).unwrap();
        place.check("NaN adapter", "eval", &["run/adapter", "holds NaN or infinity", "damaged"]).unwrap();
    }
}

/// Index sets that point outside a weight, do not ascend, or do not fit their values.
#[test]
fn index_sets_that_do_not_fit_are_named() {
    let place = Place::new();
    let (model, dir) = (place.path("model"), place.path("combined"));
    fs::create_dir(&dir).unwrap();
    let weights = Weights::open(&model).unwrap();
    let name = "model.norm.weight";
    let width = weights.get(name).unwrap().shape[0] as u32;
    let message = |indices: &[u32], deltas: &[f32]| {
        let tensor = |name: String, dtype, len: usize, bytes: &[u8]| OutTensor {
            name,
            dtype,
            shape: vec![len],
            bytes: bytes.to_vec().into(),
        };
        let tensors = [
            tensor(format!("index.{name}"), Dtype::U32, indices.len(), bytemuck::cast_slice(indices)),
            tensor(format!("delta.{name}"), Dtype::F32, deltas.len(), bytemuck::cast_slice(deltas)),
            tensor("score.weight".into(), Dtype::F32, 2 * width as usize, &vec![0; 8 * width as usize]),
        ];
        save(&dir.join("adapter.safetensors"), &tensors, &BTreeMap::new()).unwrap();
        let manifest = serde_json::json!({
            "format": "sparta-combined/1", "strategy": {"name": "sum"}, "model": model, "base": fingerprint(&weights),
            "heads": [{"name": "sst2", "labels": ["no", "yes"], "config": null}], "sources": [], "conflicts": [],
            "values_sha256": hash_file(&dir.join("adapter.safetensors")).unwrap(),
        });
        fs::write(dir.join("adapter.json"), manifest.to_string()).unwrap();
        AppliedAdapter::open(&dir, None, &PluginSet::default()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(message(&[0, width - 1], &[1.0, 2.0]), "");
    for indices in [[0, width], [0, u32::MAX], [5, 4], [5, 5]] {
        let text = message(&indices, &[1.0, 2.0]);
        assert!(text.contains("the index set of model.norm.weight is not ascending, or points beyond"), "{text}");
    }
    let text = message(&[0, 1], &[1.0]);
    assert!(text.contains("delta.model.norm.weight: expected 2 values, got 1"), "{text}");
}

/// Devices and pipes in place of files, which could be read forever.
#[cfg(unix)]
#[test]
fn only_regular_files_are_read() {
    let files = [
        ("model/config.json", "run"),
        ("model/tokenizer.json", "run"),
        ("model/tokenizer_config.json", "run"),
        ("model/model.safetensors", "run"),
        ("model/chat_template.jinja", "instruct"),
        ("data/train.jsonl", "run"),
        ("run/adapter/adapter.json", "eval"),
        ("run/adapter/adapter.safetensors", "eval"),
        ("run/config.json", "resume"),
    ];
    for (file, command) in files {
        let place = Place::new();
        let path = place.path(file);
        let name = path.file_name().unwrap().to_str().unwrap();
        for pipe in [false, true] {
            if path.symlink_metadata().is_ok() {
                fs::remove_file(&path).unwrap();
            }
            if pipe {
                assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
            } else {
                std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
            }
            // A file that may have several names counts as missing.
            let looked_for = ["model/model.safetensors", "run/adapter/adapter.json", "run/config.json"].contains(&file);
            let expect = if looked_for { ["", ""] } else { [name, "a directory or a device"] };
            place.check(file, command, &expect).unwrap();
        }
    }
}
