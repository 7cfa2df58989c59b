//! Special tokens from `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, beside
//! `tokenizer.json`.
//!
//! transformers 4.57 and 5 agree on the tokens that these files declare. Where they disagree, `tokenizer_config.json`
//! decides, as in 4.57; in files written by 5, which have the key `backend`, `tokenizer.json` does, as in 5.

use crate::gguf::{self, Gguf};
use crate::{Error, Result, files};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use tokenizers::AddedToken;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

/// Keys of the special tokens that have a name, in the order in which transformers adds them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

#[derive(Debug, Default, PartialEq)]
pub(super) struct SpecialTokens {
    /// The tokens of [`NAMED`] that exist, by key.
    pub named: BTreeMap<String, String>,
    /// Tokens with explicit ids, which replace those of `tokenizer.json`.
    pub numbered: Vec<AddedToken>,
    /// Special tokens that `tokenizer.json` may lack.
    pub special: Vec<AddedToken>,
    /// Whether bos and eos are added, if the files override `tokenizer.json`.
    pub add: Option<Add>,
    /// Whether special tokens in a text are treated as text.
    pub split: bool,
    /// Whether a space is put before a text, if the files say so.
    pub prefix_space: Option<PrefixSpace>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Add {
    pub bos: bool,
    pub eos: bool,
}

/// What `add_prefix_space` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrefixSpace {
    /// Of the pre-tokenizer `ByteLevel`.
    ByteLevel(bool),
    /// Of `Metaspace`: in the class `LlamaTokenizer`.
    Metaspace(bool),
}

impl SpecialTokens {
    /// Reads the files of a model directory; each may be missing.
    ///
    /// Errors: a file that is not a JSON object; a token that is neither a string nor an object with `content`.
    pub fn open(dir: &Path) -> Result<SpecialTokens> {
        let (path, config) = stated(dir)?;
        let beside = |name: &str| match gguf::locate(dir)? {
            Some(_) => Ok(Map::new()),
            None => object(&dir.join(name)),
        };
        let bad = |what: String| Error::Tokenizer(format!("{}: {what}", path.display()));
        let decoder = config.get("added_tokens_decoder").cloned();
        let config = match &decoder {
            Some(_) => config,
            None => with_map(config, beside("special_tokens_map.json")?),
        };
        let special = special_tokens(&config).map_err(bad)?;
        let numbered = match &decoder {
            Some(decoder) => decoder_tokens(decoder).map_err(bad)?,
            None => {
                let path = dir.join("added_tokens.json");
                let tokens = file_tokens(beside("added_tokens.json")?, &special);
                tokens.map_err(|what| Error::Tokenizer(format!("{}: {what}", path.display())))?
            }
        };
        let named = NAMED.iter().filter_map(|key| Some(((*key).to_owned(), content(config.get(*key)?)?)));
        Ok(SpecialTokens {
            named: named.collect(),
            special,
            numbered,
            add: add(&config),
            split: config.get("split_special_tokens").and_then(Value::as_bool) == Some(true),
            prefix_space: prefix_space(&config),
        })
    }

    /// Adds the tokens declared in the files beside `tokenizer.json`, as transformers does.
    pub fn declare(&self, inner: &mut tokenizers::Tokenizer) -> std::result::Result<(), String> {
        inner.add_tokens(self.numbered.clone()).map_err(|e| e.to_string())?;
        let known: HashSet<String> = inner.get_added_vocabulary().get_vocab().keys().cloned().collect();
        let missing = self.special.iter().filter(|token| !known.contains(&token.content));
        inner.add_tokens(missing.cloned().collect::<Vec<_>>()).map_err(|e| e.to_string())?;
        inner.set_encode_special_tokens(self.split);
        self.prefix_space.map_or(Ok(()), |space| set_prefix_space(inner, space))
    }
}

/// Sets whether a space precedes a text.
///
/// Errors: `add_prefix_space` contradicts `tokenizer.json` in a way that versions of transformers resolve differently.
fn set_prefix_space(inner: &mut tokenizers::Tokenizer, space: PrefixSpace) -> std::result::Result<(), String> {
    let mut pre_tokenizer = inner.get_pre_tokenizer().cloned();
    let prepended = matches!(inner.get_normalizer(), Some(normalizer) if prepends(normalizer));
    let contradiction = |wanted: bool| {
        Err(format!(
            "add_prefix_space is {wanted} in tokenizer_config.json, but this file disagrees; versions of transformers \
             differ here. Rewrite the files: in Python, `AutoTokenizer.from_pretrained(dir).save_pretrained(dir)`"
        ))
    };
    match (&mut pre_tokenizer, space) {
        (Some(PreTokenizerWrapper::ByteLevel(level)), PrefixSpace::ByteLevel(wanted)) => {
            level.add_prefix_space = wanted
        }
        (_, PrefixSpace::Metaspace(false)) if prepended => return contradiction(false),
        (Some(PreTokenizerWrapper::Metaspace(meta)), PrefixSpace::Metaspace(false)) => {
            meta.prepend_scheme = PrependScheme::Never;
        }
        (Some(PreTokenizerWrapper::Metaspace(meta)), PrefixSpace::Metaspace(true))
            if meta.prepend_scheme == PrependScheme::Never && !prepended =>
        {
            return contradiction(true);
        }
        _ => return Ok(()),
    }
    inner.with_pre_tokenizer(pre_tokenizer);
    Ok(())
}

/// Whether a normalizer prepends something to the text.
fn prepends(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::Prepend(_) => true,
        NormalizerWrapper::Sequence(all) => all.as_ref().iter().any(prepends),
        _ => false,
    }
}

/// Whether transformers 5 wrote the files.
fn written_by_5(config: &Map<String, Value>) -> bool {
    config.contains_key("backend")
}

/// `added_tokens_decoder`, by id.
fn decoder_tokens(decoder: &Value) -> std::result::Result<Vec<AddedToken>, String> {
    let invalid = || format!("added_tokens_decoder: expected tokens by id, got {decoder}");
    let mut tokens = BTreeMap::new();
    for (id, token) in decoder.as_object().ok_or_else(invalid)? {
        let id: u32 = id.parse().map_err(|_| format!("added_tokens_decoder: {id:?} is not an id"))?;
        tokens.insert(id, added(token, false)?);
    }
    Ok(tokens.into_values().collect())
}

/// `added_tokens.json`, which old versions wrote, by id.
fn file_tokens(file: Map<String, Value>, special: &[AddedToken]) -> std::result::Result<Vec<AddedToken>, String> {
    let mut tokens = BTreeMap::new();
    for (token, id) in file {
        let id = id.as_u64().ok_or_else(|| format!("{token:?}: expected an id, got {id}"))?;
        let special = special.iter().any(|known| known.content == token);
        tokens.insert(id, AddedToken::from(token, special));
    }
    Ok(tokens.into_values().collect())
}

/// The configuration with the entries of `special_tokens_map.json`, which take precedence; its list of tokens is added.
fn with_map(mut config: Map<String, Value>, map: Map<String, Value>) -> Map<String, Value> {
    for (key, value) in map {
        match (config.get_mut(&key), value) {
            (Some(Value::Array(known)), Value::Array(more)) => {
                let new: Vec<Value> = more.into_iter().filter(|token| !known.contains(token)).collect();
                known.extend(new);
            }
            (_, value) => drop(config.insert(key, value)),
        }
    }
    config
}

/// The tokens with names, and those in lists.
fn special_tokens(config: &Map<String, Value>) -> std::result::Result<Vec<AddedToken>, String> {
    let stated = |key: &&str| config.get(*key).filter(|value| !value.is_null());
    let named = NAMED.iter().filter_map(stated);
    let list = |key: &str| config.get(key).and_then(Value::as_array).into_iter().flatten();
    let lists = || list("additional_special_tokens").chain(list("extra_special_tokens"));
    let by_name = config.get("extra_special_tokens").and_then(Value::as_object).into_iter().flat_map(Map::values);
    let tokens: Vec<&Value> = match written_by_5(config) {
        true => named.chain(names_of_5(config)).chain(by_name).chain(lists()).collect(),
        false => named.chain(lists()).chain(by_name).collect(),
    };
    tokens.into_iter().map(|token| added(token, true)).collect()
}

/// Tokens under a model's own keys, such as `image_token`, which transformers 5 accepts under any key.
fn names_of_5(config: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let own = |(key, value): &(&String, &Value)| {
        key.ends_with("_token") && !NAMED.contains(&key.as_str()) && (value.is_string() || value.is_object())
    };
    config.iter().filter(own).map(|(_, value)| value)
}

/// Reads a token: a string, or an object with its text in `content`.
fn added(value: &Value, special: bool) -> std::result::Result<AddedToken, String> {
    let content =
        content(value).ok_or_else(|| format!("{value}: expected a token, a text or an object with `content`"))?;
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = special || flag("special") == Some(true);
    let token = AddedToken::from(content, special);
    let normalized = flag("normalized").unwrap_or(token.normalized);
    let [single, left, right] = ["single_word", "lstrip", "rstrip"].map(|key| flag(key).unwrap_or(false));
    Ok(token.normalized(normalized).single_word(single).lstrip(left).rstrip(right))
}

fn content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
}

/// `LlamaTokenizerFast` and `GemmaTokenizerFast` of transformers 4 replace the post-processor by one made from these
/// keys; other classes, and transformers 5, leave that of the file.
fn add(config: &Map<String, Value>) -> Option<Add> {
    if !matches!(class(config), "LlamaTokenizer" | "GemmaTokenizer") || written_by_5(config) {
        return None;
    }
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let (bos, eos) = (flag("add_bos_token"), flag("add_eos_token"));
    if bos.is_none() && eos.is_none() {
        return None;
    }
    Some(Add { bos: bos.unwrap_or(true), eos: eos.unwrap_or(false) })
}

/// transformers 4.57 changes a `ByteLevel`, 5 does not. The class `LlamaTokenizer` makes its own `Metaspace` in 5,
/// and is not read from `tokenizer.json` by 4.57 when this key is given.
fn prefix_space(config: &Map<String, Value>) -> Option<PrefixSpace> {
    let space = config.get("add_prefix_space").and_then(Value::as_bool)?;
    match class(config) {
        "LlamaTokenizer" => Some(PrefixSpace::Metaspace(space)),
        _ if written_by_5(config) => None,
        _ => Some(PrefixSpace::ByteLevel(space)),
    }
}

fn class(config: &Map<String, Value>) -> &str {
    config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default().trim_end_matches("Fast")
}

/// The contents of a model's `tokenizer_config.json`, or of a GGUF file in these terms, and the file's path.
pub(super) fn stated(dir: &Path) -> Result<(PathBuf, Map<String, Value>)> {
    if let Some(file) = gguf::locate(dir)? {
        let config = Gguf::open(&file)?.tokenizer_config()?;
        return Ok((file, config));
    }
    let path = dir.join("tokenizer_config.json");
    let config = object(&path)?;
    Ok((path, config))
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
    fn tokens_are_strings_or_objects_and_the_map_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SpecialTokens::open(dir.path()).unwrap(), SpecialTokens::default());
        let write = |name: &str, value: Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        let named = |key: &str| SpecialTokens::open(dir.path()).unwrap().named.get(key).cloned();
        write("tokenizer_config.json", json!({"bos_token": {"content": "<s>", "lstrip": false}, "pad_token": null}));
        assert_eq!(named("bos_token").as_deref(), Some("<s>"));
        write("special_tokens_map.json", json!({"bos_token": "<b>", "pad_token": "<pad>"}));
        assert_eq!((named("bos_token").as_deref(), named("pad_token").as_deref()), (Some("<b>"), Some("<pad>")));
        assert_eq!(named("eos_token"), None);
        // Beside `added_tokens_decoder` transformers reads neither this file nor `added_tokens.json`.
        let decoder = json!({"1": {"content": "<s>", "special": true}});
        write("tokenizer_config.json", json!({"bos_token": "<s>", "added_tokens_decoder": decoder}));
        assert_eq!((named("bos_token").as_deref(), named("pad_token")), (Some("<s>"), None));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            let message = SpecialTokens::open(dir.path()).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
            message
        };
        error("tokenizer_config.json", "[1");
        assert!(error("tokenizer_config.json", r#"{"bos_token": 7}"#).contains("7: expected a token"));
        assert!(error("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": "a"}}"#).contains("not an id"));
        assert!(error("tokenizer_config.json", r#"{"added_tokens_decoder": 3}"#).contains("tokens by id"));
        std::fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
        assert!(error("added_tokens.json", r#"{"<x>": "y"}"#).contains("expected an id"));
    }

    #[test]
    fn only_two_classes_of_transformers_4_override_the_post_processor() {
        let config = |value: Value| add(value.as_object().unwrap());
        let llama = json!({"tokenizer_class": "LlamaTokenizerFast", "add_eos_token": true});
        assert_eq!(config(llama), Some(Add { bos: true, eos: true }));
        let gemma = json!({"tokenizer_class": "GemmaTokenizer", "add_bos_token": false});
        assert_eq!(config(gemma), Some(Add { bos: false, eos: false }));
        assert_eq!(config(json!({"tokenizer_class": "LlamaTokenizer"})), None);
        assert_eq!(config(json!({"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": true})), None);
        let of_5 = json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "backend": "tokenizers"});
        assert_eq!(config(of_5), None);
    }
}
