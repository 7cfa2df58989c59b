//! `config.json` of a model directory.

use crate::files;
use crate::gguf::{self, Gguf};
use serde_json::{Map, Value};
use sparta_model::{Decoder, Error, Result, text_config};
use std::path::Path;

/// Reads the `config.json` of a model directory, or the metadata of a model in a GGUF file.
///
/// Errors: something other than a model, by name; an unreadable file; those of [`Decoder::parse`].
pub fn open(dir: &Path) -> Result<Decoder> {
    if let Some(file) = gguf::locate(dir)? {
        return Decoder::parse(&file, &Gguf::open(&file)?.config()?);
    }
    match other_kind(dir) {
        Some(what) => Err(Error::Config(format!("{}: {what}", dir.display()))),
        None => read(&dir.join("config.json")),
    }
}

/// Whether there is a model at a path: a directory with a `config.json`, or a GGUF file or a directory with one.
pub fn is_model(path: &Path) -> bool {
    files::is_file(&path.join("config.json")) || gguf::locate(path).is_ok_and(|found| found.is_some())
}

/// As [`open`], for a `config.json` under any name.
pub fn read(path: &Path) -> Result<Decoder> {
    if let Some(what) = piece(path) {
        return Err(Error::Config(format!("{}: {what}", path.display())));
    }
    let map = object(path)?;
    Decoder::parse(path, &map)
}

/// The tokens that end a text, from `generation_config.json` if it names any, else from `config.json`. A GGUF file
/// names them itself.
///
/// Errors: a file that cannot be read; values that are not ids.
pub fn end_tokens(dir: &Path, decoder: &Decoder) -> Result<Vec<u32>> {
    if let Some(file) = gguf::locate(dir)? {
        return Gguf::open(&file)?.end_tokens();
    }
    let path = dir.join("generation_config.json");
    if !files::is_file(&path) {
        return Ok(decoder.eos_token_ids.clone());
    }
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ends = match object(&path)?.get("eos_token_id") {
        None | Some(Value::Null) => Some(decoder.eos_token_ids.clone()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    ends.ok_or_else(|| Error::Config(format!("{}: `eos_token_id`: expected an id or a list of ids", path.display())))
}

/// The contents of a model directory's `config.json`; for a multimodal model, its text part alone; for a GGUF file, its
/// metadata in these terms.
pub fn config(dir: &Path) -> Result<Map<String, Value>> {
    if let Some(file) = gguf::locate(dir)? {
        return Gguf::open(&file)?.config();
    }
    let path = dir.join("config.json");
    let map = object(&path)?;
    Ok(text_config(&path, &map)?.unwrap_or(map))
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    let text = files::read_text(path, files::CONFIGURATION).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::Config(format!("{}: not a JSON object: {e}", path.display())))
}

/// What to do with a piece of a GGUF file that was cut up.
fn piece(path: &Path) -> Option<String> {
    let whole = gguf::cut_from(&path.file_name()?.to_string_lossy())?.to_owned();
    Some(format!("a piece of {whole}; join all pieces in order into one file (cat {whole}?* > {whole}), and give that"))
}

/// Describes a path that is not a model directory, and what to do about it; `None` if it may be one.
fn other_kind(path: &Path) -> Option<String> {
    const LAYOUT: &str = "the directory in the Hugging Face layout (config.json, model.safetensors, tokenizer.json)";
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if files::is_file(path) {
        return piece(path).or_else(|| Some(format!("{} is a file; give a GGUF file, or {LAYOUT}", name(path))));
    }
    let config = path.join("config.json");
    let config = files::is_file(&config).then(|| object(&config).unwrap_or_default());
    if config.as_ref().is_some_and(|config| config.contains_key("model_type") || !config.contains_key("method")) {
        return None;
    }
    let merge = format!("merge it into a model first: sparta-cli adapter merge {} --out MODEL", path.display());
    if config.is_some() {
        return Some(format!("a run directory, not a model; {merge}"));
    }
    if files::is_file(&path.join("adapter.json")) {
        return Some(format!("an adapter, not a model; {merge}"));
    }
    if files::is_file(&path.join("adapter_config.json")) {
        return Some(format!("a PEFT adapter, not a model; {merge}"));
    }
    let inside: Vec<String> = files::list(path).ok()?.iter().map(|path| name(path)).collect();
    if let Some(what) = inside.iter().find_map(|name| piece(&path.join(name))) {
        return Some(what);
    }
    let has = |wanted: fn(&str) -> bool| inside.iter().any(|name| wanted(name));
    if has(|name| name.starts_with("models--")) {
        return Some("a hub cache with several models; give a name, ORG/NAME, instead".into());
    }
    if has(|name| name == "snapshots") && has(|name| name == "blobs") {
        return Some("the hub's cache of a model; give a directory below its snapshots, or the model's name".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_generation_config_names_the_ends() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "eos_token_id": 2}"#;
        fs::write(dir.path().join("config.json"), config).unwrap();
        let decoder = open(dir.path()).unwrap();
        let ends = |file: &str| {
            fs::write(dir.path().join("generation_config.json"), file).unwrap();
            end_tokens(dir.path(), &decoder)
        };
        assert_eq!(end_tokens(dir.path(), &decoder).unwrap(), [2]);
        assert_eq!(ends("{}").unwrap(), [2]);
        assert_eq!(ends(r#"{"eos_token_id": 5}"#).unwrap(), [5]);
        assert_eq!(ends(r#"{"eos_token_id": [5, 7]}"#).unwrap(), [5, 7]);
        assert!(
            ends(r#"{"eos_token_id": ["x"]}"#).unwrap_err().to_string().contains("expected an id or a list of ids")
        );
    }

    #[test]
    fn directories_that_are_not_models_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str, files: &[(&str, &str)]| {
            let place = dir.path().join(name);
            for (file, content) in files {
                let path = place.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            open(&place).unwrap_err().to_string()
        };
        for (name, files, said) in [
            ("run", &[("config.json", "{\"method\": \"lora\"}")][..], "a run directory"),
            ("own", &[("adapter.json", "{}")], "an adapter, not a model"),
            ("peft", &[("adapter_config.json", "{}")], "a PEFT adapter"),
            ("root", &[("models--a--b/refs/main", "")], "several models"),
            ("cache", &[("snapshots/x/config.json", "{}"), ("blobs/y", "")], "below its snapshots"),
            ("gguf", &[("a.Q4.gguf", "GGUF")], "a.Q4.gguf: is truncated"),
            (
                "two",
                &[("a.gguf", "GGUF"), ("b.gguf", "GGUF"), ("mmproj-b.gguf", "GGUF")],
                "has 2 models (a.gguf, b.gguf)",
            ),
            ("parts", &[("a-00002-of-00002.gguf", "")], "does not begin with GGUF"),
        ] {
            let text = place(name, files);
            assert!(text.contains(said), "{text}");
        }
        let file = open(&dir.path().join("own/adapter.json")).unwrap_err().to_string();
        assert!(file.contains("adapter.json is a file; give a GGUF file"), "{file}");
        let model = place("model", &[("config.json", "{\"model_type\": \"new\"}")]);
        assert!(model.contains("config.json"), "{model}");
    }
}
