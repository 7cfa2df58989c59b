//! Mutated files for every reader: whatever the bytes are, the answer is a value or an error, never a panic. On the
//! stable toolchain; `fuzz/run.sh` runs it for longer. `SPARTA_FUZZ_SECONDS` is the time for each reader.

use sparta_core::adapter;
use sparta_core::model::Decoder;
use sparta_core::plugin::Manifest;
use sparta_core::run::{InspectRequest, InspectTask, inspect_forward};
use sparta_core::text::{ChatTemplate, Message, Tokenizer};
use sparta_core::train::RunConfig;
use sparta_core::train::checkpoint::Checkpoints;
use sparta_core::weights::{TensorFile, Weights};
use sparta_task_files::{Format, Part, Schema};
use sparta_tests::command::command;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

const SCHEMA: Schema = Schema {
    texts: &[("sentence", None), ("text", None)],
    label: &["label"],
    classes: &["negative", "positive"],
    headerless: None,
    wrapped_rows: false,
};

/// A home with the unpacked embedded model and a finished run.
static GOOD: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let home = tempfile::tempdir().unwrap();
    let args =
        ["run", "--method", "lora", "--max-steps", "2", "--max-dev", "16", "--max-test", "16", "--device", "cpu"];
    assert!(command(home.path(), &[&args[..], &["--out", "run"]].concat()).output().unwrap().status.success());
    home
});

fn model() -> PathBuf {
    fs::read_dir(GOOD.path().join("cache/sparta")).unwrap().next().unwrap().unwrap().path().join("model")
}

/// xorshift64*: the same mutations in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Words that matter to one format or another.
const WORDS: [&str; 16] = [
    "[",
    "]",
    "{",
    "}",
    "\"",
    "-1",
    "1e999",
    "18446744073709551615",
    "null",
    "..",
    "\0",
    "\t",
    "\n",
    "{%",
    "%}",
    "F32",
];

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(6) {
        // Mostly near the beginning, where headers are.
        let end = if random.below(3) > 0 { bytes.len().min(400) } else { bytes.len() };
        let at = random.below(end);
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].bytes())),
            4 => drop(bytes.drain(at..(at + 1 + random.below(16)).min(bytes.len()))),
            5 => {
                let piece = bytes[at..(at + 1 + random.below(64)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

/// Reads mutated files until the time is over. `place` is where they go; `read` says whether the file was accepted.
fn fuzz(name: &str, place: &Path, seeds: &[Vec<u8>], read: impl Fn() -> bool) {
    let seconds = std::env::var("SPARTA_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let (begin, limit) = (Instant::now(), Duration::from_secs(seconds));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut files, mut accepted) = (0u64, 0u64);
    while begin.elapsed() < limit {
        let bytes = mutate(&mut random, seeds);
        fs::write(place, &bytes).unwrap();
        files += 1;
        match catch_unwind(AssertUnwindSafe(&read)) {
            Ok(ok) => accepted += u64::from(ok),
            Err(_) => {
                let kept = std::env::temp_dir().join(format!("sparta-fuzz-{name}"));
                fs::write(&kept, &bytes).unwrap();
                panic!("{name}: a file makes the reader panic; it is kept in {}", kept.display());
            }
        }
    }
    println!("| {name} | {seconds} s | {files} | {accepted} |");
}

/// The good file and all hostile ones whose name has this end.
fn seeds(good: &[PathBuf], end: &str) -> Vec<Vec<u8>> {
    let bad = Path::new(env!("CARGO_MANIFEST_DIR")).join("bad");
    let mut names: Vec<PathBuf> = fs::read_dir(bad).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.to_string_lossy().ends_with(end));
    names.sort();
    good.iter().chain(&names).map(|path| fs::read(path).unwrap()).collect()
}

/// A copy of the model's files and the place of one of them.
fn beside(file: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let place = dir.path().join(file);
    (dir, place)
}

#[test]
fn safetensors() {
    let (dir, place) = beside("x.safetensors");
    let good = GOOD.path().join("run/adapter/adapter.safetensors");
    fuzz("safetensors", &place, &seeds(&[good], ".safetensors"), || {
        let Ok(file) = TensorFile::open(dir.path().join("x.safetensors")) else { return false };
        let names: Vec<&str> = file.names().collect();
        names.iter().for_each(|name| drop((file.integers(name), file.floats(name))));
        true
    });
}

#[test]
fn safetensors_index() {
    let (dir, place) = beside("model.safetensors.index.json");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    fuzz("safetensors-index", &place, &seeds(&[], ".index.json"), || Weights::open(dir.path()).is_ok());
}

#[test]
fn config() {
    let (dir, place) = beside("config.json");
    fuzz("config", &place, &seeds(&[model().join("config.json")], ".json"), || Decoder::open(dir.path()).is_ok());
}

#[test]
fn tokenizer() {
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let (dir, place) = beside(file);
        let seeds = seeds(&[model().join(file)], ".json");
        fuzz(file, &place, &seeds, || Tokenizer::open(dir.path()).and_then(|t| t.encode("a b", Some("c"))).is_ok());
    }
}

/// Templates that build large values are left out of the seeds: see SECURITY.md.
#[test]
fn chat_template() {
    let (dir, place) = beside("chat_template.jinja");
    let template =
        "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{% if loop.last %}!{% endif %}{% endfor %}";
    let macros =
        "{%- macro f(x, y=2) -%}{{ x ~ y }}{%- endmacro -%}{% set n = namespace(a=1) %}{{ f(bos_token, n.a) }}";
    fuzz("chat-template", &place, &[template.into(), macros.into()], || {
        let messages = [Message { role: "user", content: "hello" }];
        ChatTemplate::open(dir.path(), 0).is_ok_and(|t| t.is_some_and(|t| t.render(&messages).is_ok()))
    });
}

fn rows(name: &str, format: Format, seeds: &[Vec<u8>]) {
    let dir = tempfile::tempdir().unwrap();
    let part = Part { name: name.into(), path: dir.path().join(name), format };
    fuzz(name, &part.path, seeds, || {
        part.examples(&SCHEMA).is_ok_and(|examples| examples.take(1000).all(|example| example.is_ok()))
    });
}

#[test]
fn tsv() {
    rows("tsv", Format::Tsv, &[&[b"sentence\tlabel\nfine\t1\nbad\t0\n".to_vec()], &seeds(&[], ".tsv")[..]].concat());
}

#[test]
fn jsonl() {
    rows("jsonl", Format::Jsonl, &seeds(&[model().join("../data/dev.jsonl")], ".jsonl"));
}

#[test]
fn parquet() {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    let text: ArrayRef = std::sync::Arc::new(StringArray::from(vec!["fine", "bad", "fine"]));
    let label: ArrayRef = std::sync::Arc::new(Int64Array::from(vec![1, 0, 1]));
    let batch = RecordBatch::try_from_iter([("sentence", text), ("label", label)]).unwrap();
    let mut good = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut good, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    rows("parquet", Format::Parquet, &[&[good], &seeds(&[], ".parquet")[..]].concat());
}

#[test]
fn adapters() {
    for file in ["adapter.json", "adapter.safetensors"] {
        let dir = tempfile::tempdir().unwrap();
        for name in ["adapter.json", "adapter.safetensors"] {
            fs::copy(GOOD.path().join("run/adapter").join(name), dir.path().join(name)).unwrap();
        }
        let place = dir.path().join(file);
        fuzz(file, &place, &seeds(std::slice::from_ref(&place), file), || adapter::load(dir.path(), None).is_ok());
    }
}

#[test]
fn checkpoint_and_run() {
    let dir = tempfile::tempdir().unwrap();
    let good = GOOD.path().join("run/checkpoints/step-00000002");
    let copy = dir.path().join("checkpoints/step-00000002");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(&good).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let checkpoints = Checkpoints::new(dir.path(), 1, BTreeMap::new());
    let bad = seeds(&[good.join("checkpoint.json")], "checkpoint.json");
    fuzz("checkpoint", &copy.join("checkpoint.json"), &bad, || checkpoints.load_newest().is_ok());
    let config = seeds(&[GOOD.path().join("run/config.json")], "run-config.json");
    fuzz("run-config", &dir.path().join("config.json"), &config, || RunConfig::of_run(dir.path()).is_ok());
}

#[test]
fn plugin_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("library.so");
    let read = || Manifest::read(&library).is_ok_and(|m| m.is_some_and(|m| m.check(b"library").is_ok()));
    fuzz("plugin-manifest", &dir.path().join("library.plugin.json"), &seeds(&[], ".plugin.json"), read);
}

#[test]
fn inspect_batch() {
    let dir = tempfile::tempdir().unwrap();
    let bad = Path::new(env!("CARGO_MANIFEST_DIR")).join("bad");
    let names = ["batch-negative-id", "batch-mask-holes", "batch-lm-label", "batch-empty", "batch-u64"];
    let seeds: Vec<Vec<u8>> =
        names.iter().map(|name| fs::read(bad.join(format!("{name}.safetensors"))).unwrap()).collect();
    let batch = dir.path().join("batch.safetensors");
    fuzz("inspect-batch", &batch, &seeds, || {
        let device = Box::new(sparta_backend_cpu::Cpu::new(Some(1)).unwrap());
        let out = dir.path().join("out.safetensors");
        let request =
            InspectRequest { model: model(), batch: batch.clone(), task: InspectTask::CausalLm, grads: false, out };
        inspect_forward(&request, device).is_ok()
    });
}
