//! Data sets.

use crate::place::{place, put};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use sparta_plugin::task::{OpenRequest, Task};
use sparta_task_files::testing::{Column, parquet as file};
use sparta_task_files::{Format, Part, Reading, Schema, Table};
use sparta_task_sft::Sft;
use std::fs;
use std::path::Path;

const SCHEMA: Schema = Schema {
    texts: &[("question1", Some("question2")), ("sentence", None), ("text", None)],
    label: &["label"],
    classes: &["neg", "pos"],
    headerless: None,
    wrapped_rows: true,
};

/// Rows to read, enough to exceed a batch.
const ROWS: usize = 1000;

fn examples(path: &Path, format: Format) -> bool {
    let part = Part { name: "x".into(), path: path.to_owned(), format };
    part.examples(&SCHEMA).is_ok_and(|examples| examples.take(ROWS).all(|example| example.is_ok()))
}

fn rows(name: &'static str, format: Format, bytes: &[u8]) -> bool {
    let dir = place(name, |_| ());
    put(&dir, name, bytes);
    examples(&dir.join(name), format)
}

pub fn tsv(bytes: &[u8]) -> bool {
    rows("x.tsv", Format::Tsv, bytes)
}

pub fn good_tsv() -> Vec<Vec<u8>> {
    [
        "sentence\tlabel\nfine\t1\nbad\t0\n",
        "\u{feff}label\tid\ttext\r\nneg\t3\t\"a\r\n",
        "question1\tquestion2\tlabel\na\tb\nc\t1\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub fn jsonl(bytes: &[u8]) -> bool {
    rows("x.jsonl", Format::Jsonl, bytes)
}

pub fn good_jsonl() -> Vec<Vec<u8>> {
    [
        "{\"text\":\"a\\tb\",\"label\":1,\"idx\":7}\r\n{\"label\":\"neg\",\"sentence\":\"c\"}\n\n",
        "{\"question1\":\"a\",\"question2\":\"b\",\"label\":0}\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// All columns, whatever their names.
fn records(name: &'static str, format: Format, bytes: &[u8]) -> bool {
    let dir = place(name, |_| ());
    put(&dir, name, bytes);
    let table = Table::open(&dir.join(name), format, Reading::default());
    table.is_ok_and(|table| table.records.take(ROWS).all(|record| record.is_ok()))
}

pub fn csv(bytes: &[u8]) -> bool {
    records("x.csv", Format::Csv, bytes)
}

pub fn good_csv() -> Vec<Vec<u8>> {
    let utf16 = "\u{feff}text;n\r\n\u{1f600};1\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let texts = ["id,text,label\n1,\"a, \"\"b\"\"\n\",x\n\n2, c ,y\n", "text;label\r\na;0\r\n"];
    texts.map(|text| text.as_bytes().to_vec()).into_iter().chain([utf16]).collect()
}

pub fn json(bytes: &[u8]) -> bool {
    records("x.json", Format::Json, bytes)
}

pub fn good_json() -> Vec<Vec<u8>> {
    [
        "[{\"text\": \"a]}\\\"\", \"label\": [\"x\", \"y\"]},\n {\"text\": \"b\", \"n\": {\"m\": 1.5}}]",
        "{\"text\": \"a\"}\n{\"text\":\n\"b\"}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// Rows of conversations, prompts and answers, or texts.
pub fn turns(bytes: &[u8]) -> bool {
    const FILE: &str = "turns.jsonl";
    let dir = place("turns", |_| ());
    put(&dir, FILE, bytes);
    let dataset = Sft.open(&OpenRequest::new("sft", dir.join(FILE)));
    dataset.is_ok_and(|data| data.examples(FILE).is_ok_and(|rows| rows.take(ROWS).all(|example| example.is_ok())))
}

pub fn good_turns() -> Vec<Vec<u8>> {
    let parts = r#"[{"type": "text", "text": "a"}, "b"]"#;
    [
        format!(
            r#"{{"messages": [{{"role": "system", "content": "s"}}, {{"role": "user", "content": {parts}}}, {{"role": "assistant", "content": "c", "weight": 0}}]}}"#
        ),
        r#"{"system": "s", "tools": "[]", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#.into(),
        r#"{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}"#.into(),
        r#"{"prompt": "a", "response": "b", "tools": null}"#.into(),
        r#"{"instruction": "a", "input": "", "output": "b"}"#.into(),
        "{\"text\": \"a\"}\n{\"text\": \"b\", \"system\": \"s\"}".into(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

pub fn parquet(bytes: &[u8]) -> bool {
    rows("x.parquet", Format::Parquet, bytes) && records("x.parquet", Format::Parquet, bytes)
}

pub fn good_parquet() -> Vec<Vec<u8>> {
    let tags = [Some(vec![Some("a".to_owned()), None]), None, Some(vec![])];
    let columns = [
        ("sentence", Column::texts(["fine", "bad", "fine"])),
        ("label", Column::integers([1, 0, 1])),
        ("tags", Column::Lists(tags.to_vec())),
    ];
    let with = |compression| WriterProperties::builder().set_compression(compression);
    vec![
        file(&columns, with(Compression::UNCOMPRESSED).set_dictionary_enabled(false).build()),
        file(&columns, with(Compression::SNAPPY).build()),
        file(&columns, with(Compression::ZSTD(ZstdLevel::default())).build()),
    ]
}

/// Each line creates an entry in a class folder: its kind, the class and the name.
pub fn acl_imdb(bytes: &[u8]) -> bool {
    let dir = place("acl_imdb", |_| ());
    let root = dir.join("train");
    // It does not exist the first time.
    let _ = fs::remove_dir_all(&root);
    for class in SCHEMA.classes {
        fs::create_dir_all(root.join(class)).expect("a directory for temporary files");
    }
    for line in bytes.split(|&byte| byte == b'\n').take(32) {
        if let [kind, class, name @ ..] = line {
            entry(&root.join(SCHEMA.classes[usize::from(class % 2)]), *kind, name);
        }
    }
    examples(&root, Format::TextFolders)
}

/// Skips names that the system rejects, since no archive can hold them either.
#[cfg(unix)]
fn entry(folder: &Path, kind: u8, name: &[u8]) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let path = folder.join(OsStr::from_bytes(name));
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) || path.symlink_metadata().is_ok() {
        return;
    }
    let made = match kind {
        b'd' => fs::create_dir(path),
        b'l' => std::os::unix::fs::symlink("../pos/0_9.txt", path),
        b'o' => std::os::unix::fs::symlink("/dev/zero", path),
        kind => fs::write(path, [b'x', kind]),
    };
    drop(made);
}

#[cfg(not(unix))]
fn entry(folder: &Path, kind: u8, name: &[u8]) {
    drop(fs::write(folder.join(String::from_utf8_lossy(name).as_ref()), [b'x', kind]));
}

pub fn good_acl_imdb() -> Vec<Vec<u8>> {
    ["f00_1.txt\nf10_9.txt\nf1notes.md\nd1sub", "f012499_4.txt\nf1-1_99999999999.txt\nf1..txt\nf10_9.txt"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}
