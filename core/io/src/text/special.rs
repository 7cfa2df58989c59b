//! What `tokenizer_config.json` and `special_tokens_map.json` say of special tokens.

use crate::{Error, Result, files};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, Default, PartialEq)]
pub(super) struct SpecialTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    /// Whether bos and eos are added, where the files override what `tokenizer.json` does.
    pub add: Option<Add>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Add {
    pub bos: bool,
    pub eos: bool,
}

impl SpecialTokens {
    /// Reads the two files of a model directory; either may be missing.
    pub fn open(dir: &Path) -> Result<SpecialTokens> {
        let (config, map) = files(dir)?;
        let token = |key: &str| content(config.get(key)).or_else(|| content(map.get(key)));
        Ok(SpecialTokens {
            bos: token("bos_token"),
            eos: token("eos_token"),
            pad: token("pad_token"),
            add: add(&config),
        })
    }
}

/// `tokenizer_config.json` and `special_tokens_map.json` of a directory, empty where there is none.
pub(super) fn files(dir: &Path) -> Result<(Map<String, Value>, Map<String, Value>)> {
    Ok((object(&dir.join("tokenizer_config.json"))?, object(&dir.join("special_tokens_map.json"))?))
}

/// The tokens that chat templates know by name, `bos_token` and the like.
pub(super) fn named(config: &Map<String, Value>, map: &Map<String, Value>) -> BTreeMap<String, String> {
    let keys = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"].map(|name| format!("{name}_token"));
    let token = |key: String| Some((key.clone(), content(config.get(&key)).or_else(|| content(map.get(&key)))?));
    keys.into_iter().filter_map(token).collect()
}

/// `LlamaTokenizerFast` and `GemmaTokenizerFast` of transformers 4 replace the post-processor by one made from these
/// keys; other classes leave that of the file.
fn add(config: &Map<String, Value>) -> Option<Add> {
    let class = config.get("tokenizer_class").and_then(Value::as_str)?;
    if !matches!(class.trim_end_matches("Fast"), "LlamaTokenizer" | "GemmaTokenizer") {
        return None;
    }
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let (bos, eos) = (flag("add_bos_token"), flag("add_eos_token"));
    if bos.is_none() && eos.is_none() {
        return None;
    }
    Some(Add { bos: bos.unwrap_or(true), eos: eos.unwrap_or(false) })
}

/// A token is written as a string or as an object with its text in `content`.
fn content(value: Option<&Value>) -> Option<String> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    let text = match files::read(path, files::CONFIGURATION) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(Error::io(path)(e)),
    };
    serde_json::from_slice(&text).map_err(|e| Error::Tokenizer(format!("{}: not a JSON object: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_are_strings_or_objects_and_the_config_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SpecialTokens::open(dir.path()).unwrap(), SpecialTokens::default());
        let write = |name: &str, value: Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        write("tokenizer_config.json", json!({"bos_token": {"content": "<s>", "lstrip": false}, "pad_token": null}));
        write("special_tokens_map.json", json!({"bos_token": "<b>", "pad_token": "<pad>"}));
        let special = SpecialTokens::open(dir.path()).unwrap();
        assert_eq!(special.bos.as_deref(), Some("<s>"));
        assert_eq!(special.pad.as_deref(), Some("<pad>"));
        assert_eq!(special.eos, None);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), "[1").unwrap();
        let text = SpecialTokens::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("tokenizer_config.json"), "{text}");
    }

    #[test]
    fn only_two_classes_override_the_post_processor() {
        let config = |value: Value| add(value.as_object().unwrap());
        let llama = json!({"tokenizer_class": "LlamaTokenizerFast", "add_eos_token": true});
        assert_eq!(config(llama), Some(Add { bos: true, eos: true }));
        let gemma = json!({"tokenizer_class": "GemmaTokenizer", "add_bos_token": false});
        assert_eq!(config(gemma), Some(Add { bos: false, eos: false }));
        assert_eq!(config(json!({"tokenizer_class": "LlamaTokenizer"})), None);
        assert_eq!(config(json!({"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": true})), None);
    }
}
