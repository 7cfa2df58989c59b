//! The tokenizer of a model directory.

use super::growth::{Growth, LARGEST};
use super::special::{Add, SpecialTokens};
use crate::gguf::{self, Gguf};
use crate::{Error, Result, files};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Once, OnceLock};
use tokenizers::models::ModelWrapper;
use tokenizers::processors::template::TemplateProcessing;

/// The longest run of characters in a text that are all white space, or all not. Without a C library, regular
/// expressions need memory for each of them, and beyond a million they would silently stop splitting the text.
const LONGEST_RUN: Option<usize> =
    if cfg!(all(target_family = "wasm", target_os = "unknown")) { Some(500_000) } else { None };

/// The parts of `tokenizer.json` that can lengthen a text.
#[derive(Serialize, Deserialize)]
struct Pipeline {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
}

/// `tokenizer.json` as used by transformers' fast tokenizers, without truncation and padding.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    growth: Growth,
    pad_id: Option<u32>,
    eos_id: Option<u32>,
    /// Rows of the model's embedding, once known.
    rows: OnceLock<usize>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, if they exist, `tokenizer_config.json`, `special_tokens_map.json` and
    /// `added_tokens.json`; or the tokenizer of a GGUF file.
    ///
    /// Errors: a missing or damaged file, random merges (BPE dropout), a special token that is not in the vocabulary.
    pub fn open(dir: &Path) -> Result<Tokenizer> {
        let (path, bytes) = file(dir)?;
        let error = |what: String| Error::Tokenizer(format!("{}: {what}", path.display()));
        let file: Pipeline = serde_json::from_slice(&bytes).map_err(|e| error(format!("not JSON: {e}")))?;
        let growth = Growth::of(&serde_json::json!(file)).map_err(error)?;
        let mut inner = caught(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|e| error(format!("not a tokenizer this version can read: {e}")))?;
        // A file saved after batch encoding keeps that batch's settings, but lengths are up to the caller here.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| error(e.to_string()))?;
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some_and(|p| p > 0.0)
        {
            return Err(error("`model.dropout` makes tokens random; set it to null".into()));
        }

        let special = SpecialTokens::open(dir)?;
        special.declare(&mut inner).map_err(error)?;
        if let Some(add) = &special.add {
            let template = template(&inner, &special, add).map_err(error)?;
            inner.with_post_processor(Some(template));
        }
        let named = |key: &str| special.named.get(key).and_then(|token| inner.token_to_id(token));
        let (pad_id, eos_id) = (named("pad_token"), named("eos_token"));
        let tokenizer = Tokenizer { path, inner, growth, pad_id, eos_id, rows: OnceLock::new() };
        // Inconsistent parts of the file only show in use.
        tokenizer.encode("", Some(""))?;
        tokenizer.encode("", None)?;
        Ok(tokenizer)
    }

    /// Whether a model has a tokenizer file.
    pub fn is_in(dir: &Path) -> bool {
        files::is_file(&dir.join("tokenizer.json")) || gguf::locate(dir).is_ok_and(|found| found.is_some())
    }

    /// Ids of a text or a pair of texts with special tokens, as from `AutoTokenizer(text)` and `(text, pair)`.
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<Vec<u32>> {
        let longest = pair.filter(|pair| pair.len() > text.len()).unwrap_or(text);
        self.ids(longest, || match pair {
            None => self.inner.encode_fast(text, true),
            Some(pair) => self.inner.encode_fast((text, pair), true),
        })
    }

    /// Ids of a text that contains its special tokens, as from `AutoTokenizer(text, add_special_tokens=False)`.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, || self.inner.encode_fast(text, false))
    }

    /// Runs `encode`, whose longest text is `text`.
    fn ids(&self, text: &str, encode: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>) -> Result<Vec<u32>> {
        if !self.growth.allows(text.len()) {
            return Err(Error::Tokenizer(format!(
                "{}: its normalizer and pre_tokenizer can turn a text of {} bytes into more than {} MiB; use the \
                 model's own tokenizer, or texts of at most {:.0} bytes",
                self.path.display(),
                text.len(),
                LARGEST as u64 >> 20,
                self.growth.longest()
            )));
        }
        if let Some(most) = LONGEST_RUN
            && longest_run(text) > most
        {
            let run = longest_run(text);
            return Err(Error::Tokenizer(format!(
                "{}: a text has a run of {run} characters that are all white space, or all not; a browser can split at \
                 most {most}: divide the text, or use sparta-cli",
                self.path.display()
            )));
        }
        let encoding = caught(encode).map_err(|e| {
            let start: String = text.chars().take(40).collect();
            Error::Tokenizer(format!("{}: cannot encode {start:?}: {e}", self.path.display()))
        })?;
        let (ids, rows) = (encoding.get_ids(), self.rows.get().copied().unwrap_or(usize::MAX));
        match ids.iter().find(|&&id| id as usize >= rows) {
            Some(&id) => Err(Error::Tokenizer(format!(
                "{}: a text has the token {:?} with the id {id}, for which the model has no row among its {rows} \
                 embeddings; remove it from the text",
                self.path.display(),
                self.token(id).unwrap_or_default()
            ))),
            None => Ok(ids.to_vec()),
        }
    }

    /// The text of ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        caught(|| self.inner.decode(ids, true))
            .map_err(|e| Error::Tokenizer(format!("{}: cannot write the tokens {ids:?}: {e}", self.path.display())))
    }

    /// Whether this is the id of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// The token of an id, as written in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether this is the id of the unknown token.
    pub fn is_unknown(&self, id: u32) -> bool {
        let unknown = match self.inner.get_model() {
            ModelWrapper::BPE(model) => model.unk_token.clone(),
            ModelWrapper::WordPiece(model) => Some(model.unk_token.clone()),
            ModelWrapper::WordLevel(model) => Some(model.unk_token.clone()),
            ModelWrapper::Unigram(_) => Some("<unk>".into()),
        };
        unknown.and_then(|token| self.inner.token_to_id(&token)) == Some(id)
    }

    /// As [`Tokenizer::encode`], for many texts in parallel; keeps their order.
    pub fn encode_batch(&self, inputs: &[(&str, Option<&str>)]) -> Result<Vec<Vec<u32>>> {
        inputs.par_iter().map(|(text, pair)| self.encode(text, *pair)).collect()
    }

    /// Checks that every id of the vocabulary has a row in the model's embedding. Added tokens may lie beyond, like the
    /// image token in the text-only Gemma 3 1B: encoding a text with such a token is an error from then on.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<()> {
        // A tokenizer serves only one model.
        self.rows.get_or_init(|| vocab_size);
        let added = self.inner.get_added_vocabulary().get_vocab();
        let own = self.inner.get_vocab(true).into_iter().filter(|(token, _)| !added.contains_key(token));
        let last = own.max_by_key(|(_, id)| *id);
        match last {
            Some((token, id)) if id as usize >= vocab_size => Err(Error::Tokenizer(format!(
                "{}: token {token:?} has id {id}, but the model has {vocab_size} embeddings (`vocab_size` in \
                 config.json); use the model's own tokenizer, or remove the token",
                self.path.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Number of tokens, added ones included.
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id of the padding token named in the tokenizer's files.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// The id of the end-of-text token named in the tokenizer's files.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }
}

/// The longest run of characters that are all white space, or all not.
fn longest_run(text: &str) -> usize {
    let (mut longest, mut run, mut white) = (0, 0, false);
    for c in text.chars() {
        run = if c.is_whitespace() == white { run + 1 } else { 1 };
        white = c.is_whitespace();
        longest = longest.max(run);
    }
    longest
}

thread_local! {
    /// Whether a panic of this thread will be caught, and should not be printed.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// The tokenizers crate panics on some inconsistent files; users should get an ordinary error.
fn caught<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !CAUGHT.get() {
                hook(panic)
            }
        }));
    });
    CAUGHT.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    CAUGHT.set(false);
    match outcome {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("its parts contradict each other".into()),
    }
}

/// `bos A eos` and `bos A eos bos B eos`, each special token only if `add` asks for it.
fn template(
    tokenizer: &tokenizers::Tokenizer,
    special: &SpecialTokens,
    add: &Add,
) -> std::result::Result<TemplateProcessing, String> {
    let find = |wanted: bool, key: &str| match special.named.get(key) {
        _ if !wanted => Ok(None),
        None => Err(format!("add_{key} is true in tokenizer_config.json, but there is no `{key}`")),
        Some(text) => match tokenizer.token_to_id(text) {
            Some(id) => Ok(Some((text.clone(), id))),
            None => Err(format!("`{key}` of tokenizer_config.json is {text:?}, which is not in the vocabulary")),
        },
    };
    let (bos, eos) = (find(add.bos, "bos_token")?, find(add.eos, "eos_token")?);
    let pieces = |sequence: &str, type_id: usize| {
        let piece = |token: &Option<(String, u32)>| token.as_ref().map(|(text, _)| format!("{text}:{type_id}"));
        let parts = [piece(&bos), Some(format!("{sequence}:{type_id}")), piece(&eos)];
        parts.into_iter().flatten().collect::<Vec<_>>()
    };
    let (single, second) = (pieces("$A", 0), pieces("$B", 1));
    let pair = [single.clone(), second].concat();
    TemplateProcessing::builder()
        .try_single(single)?
        .try_pair(pair)?
        .special_tokens([bos, eos].into_iter().flatten().collect::<Vec<_>>())
        .build()
        .map_err(|e| e.to_string())
}

/// The contents of a model's `tokenizer.json`, and the file's path.
fn file(dir: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let path = dir.join("tokenizer.json");
    if let Some(file) = gguf::locate(dir)? {
        let made = serde_json::to_vec(&Gguf::open(&file)?.tokenizer()?);
        let bytes = made.map_err(|e| Error::Tokenizer(format!("{}: {e}", file.display())))?;
        return Ok((file, bytes));
    }
    match files::read(&path, files::TOKENIZER) {
        Ok(bytes) => Ok((path, bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::Tokenizer(format!("{}: {}", path.display(), not_found(dir))))
        }
        Err(e) => Err(Error::io(&path)(e)),
    }
}

/// What to do about a missing `tokenizer.json`.
fn not_found(dir: &Path) -> String {
    match ["tokenizer.model", "tekken.json", "vocab.json"].iter().find(|name| files::is_file(&dir.join(name))) {
        Some(other) => format!(
            "no such file; there is {other}, which is not supported. Convert it: in Python, \
             `AutoTokenizer.from_pretrained(dir).save_pretrained(dir)`"
        ),
        None => "no such file; download it with the model".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;
    use tempfile::TempDir;

    #[test]
    fn runs_are_white_space_or_anything_else() {
        assert_eq!(
            ["", "a", " ", "ab \u{3000}\n c", "   ab", "\u{4f60}\u{597d} a"].map(longest_run),
            [0, 1, 1, 4, 3, 2]
        );
    }

    fn tiny() -> Value {
        json!({
            "version": "1.0",
            "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0,
                        "pad_token": "<pad>", "pad_to_multiple_of": null},
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                         {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
            },
            "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "<unk>",
                      "vocab": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "good": 4, "bad": 5, "film": 6}}
        })
    }

    fn directory(tokenizer: Value, config: Value) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        dir
    }

    fn open(tokenizer: Value, config: Value) -> Result<Tokenizer> {
        Tokenizer::open(directory(tokenizer, config).path())
    }

    #[test]
    fn neither_truncates_nor_pads() {
        let tokenizer = open(tiny(), json!({"pad_token": "<pad>"})).unwrap();
        assert_eq!(tokenizer.encode("good bad what film", None).unwrap(), [1, 4, 5, 3, 6]);
        assert_eq!(tokenizer.encode("good", Some("film")).unwrap(), [1, 4, 6]);
        assert_eq!(tokenizer.encode("", None).unwrap(), [1]);
        assert_eq!((tokenizer.pad_id(), tokenizer.len()), (Some(0), 7));
        let many: Vec<_> = (0..100).map(|i| (["good", "bad"][i % 2], None)).collect();
        let ids = tokenizer.encode_batch(&many).unwrap();
        assert!(ids.iter().enumerate().all(|(i, ids)| ids[..] == [1, 4 + i as u32 % 2]));
    }

    #[test]
    fn llama_and_gemma_classes_follow_their_config() {
        let config = |class: &str, bos: bool, eos: bool| {
            json!({"tokenizer_class": class, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": bos,
                   "add_eos_token": eos})
        };
        let both = open(tiny(), config("LlamaTokenizer", true, true)).unwrap();
        assert_eq!(both.encode("good", None).unwrap(), [1, 4, 2]);
        assert_eq!(both.encode("good", Some("bad")).unwrap(), [1, 4, 2, 1, 5, 2]);
        let none = open(tiny(), config("GemmaTokenizerFast", false, false)).unwrap();
        assert_eq!(none.encode("good", Some("bad")).unwrap(), [4, 5]);
        let other = open(tiny(), config("PreTrainedTokenizerFast", true, true)).unwrap();
        assert_eq!(other.encode("good", None).unwrap(), [1, 4]);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let check = |result: Result<Tokenizer>, parts: &[&str]| {
            let text = result.unwrap_err().to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        };
        let llama = |bos: &str| json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "bos_token": bos});
        assert_eq!(open(tiny(), llama("<bos>")).unwrap().encode("good", None).unwrap(), [7, 4], "it is added");
        check(
            open(tiny(), json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true})),
            &["add_bos_token is true", "no `bos_token`"],
        );
        check(open(json!({"model": {"type": "Magic"}}), json!({})), &["tokenizer.json", "not a tokenizer"]);
        let mut random = tiny();
        random["model"] = json!({"type": "BPE", "dropout": 0.1, "vocab": {"a": 0}, "merges": []});
        random["post_processor"] = Value::Null;
        check(open(random, json!({})), &["model.dropout"]);

        let dir = tempfile::tempdir().unwrap();
        check(Tokenizer::open(dir.path()), &["tokenizer.json", "no such file"]);
        std::fs::write(dir.path().join("tokenizer.model"), "").unwrap();
        check(Tokenizer::open(dir.path()), &["tokenizer.model", "save_pretrained"]);
    }

    #[test]
    fn a_normalizer_that_amplifies_is_refused() {
        let ten = json!({"type": "Replace", "pattern": {"String": "o"}, "content": "oooooooooo"});
        let mut bomb = tiny();
        bomb["normalizer"] = json!({"type": "Sequence", "normalizers": vec![ten; 12]});
        // Nothing is encoded yet but the empty text.
        let text = open(bomb, json!({})).unwrap().encode("good", None).unwrap_err().to_string();
        assert!(text.contains("tokenizer.json") && text.contains("more than 64 MiB"), "{text}");
    }

    /// Every single-byte change of the file is an error or a working tokenizer.
    #[test]
    fn no_changed_byte_causes_a_panic() {
        let dir = directory(tiny(), json!({}));
        let good = tiny().to_string().into_bytes();
        for i in 0..good.len() {
            for change in [1, 2, 16] {
                let mut bytes = good.clone();
                bytes[i] ^= change;
                std::fs::write(dir.path().join("tokenizer.json"), &bytes).unwrap();
                if let Ok(tokenizer) = Tokenizer::open(dir.path()) {
                    // An error if the unknown token is gone.
                    let _ = tokenizer.encode("good bad what", Some("film"));
                }
            }
        }
    }

    /// A directory, and transformers' ids for it: see testdata/make_tokenizer_cases.py.
    #[derive(serde::Deserialize)]
    struct Case {
        #[serde(flatten)]
        files: BTreeMap<String, Value>,
        texts: Vec<String>,
        /// The version of transformers whose ids are right: `4` or `5` where they differ.
        counts: String,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Ids {
        ids: Vec<Vec<u32>>,
        pad: Option<u32>,
    }

    #[test]
    fn what_other_files_declare_counts_as_in_transformers() {
        let cases: BTreeMap<String, Case> =
            serde_json::from_str(include_str!("testdata/tokenizer_cases.json")).unwrap();
        assert_eq!(cases.len(), 42);
        for (name, Case { files, texts, counts }) in cases {
            let dir = tempfile::tempdir().unwrap();
            for (file, content) in files.iter().filter(|(file, _)| file.ends_with(".json")) {
                std::fs::write(dir.path().join(file), content.to_string()).unwrap();
            }
            let tokenizer = Tokenizer::open(dir.path()).unwrap();
            let ids = texts.iter().map(|text| tokenizer.encode(text, None).unwrap()).collect();
            let version = if counts == "both" { "5" } else { &counts };
            let expected: Ids = serde_json::from_value(files[version].clone()).unwrap();
            assert_eq!(Ids { ids, pad: tokenizer.pad_id() }, expected, "{name}");
        }
    }

    #[test]
    fn a_prefix_that_the_files_contradict_is_refused() {
        let llama = |wanted: bool| json!({"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": wanted});
        let with = |part: &str, value: Value| {
            let mut tokenizer = tiny();
            tokenizer[part] = value;
            tokenizer
        };
        let never = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false});
        let prepend = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]});
        for (tokenizer, wanted) in [(with("pre_tokenizer", never), true), (with("normalizer", prepend), false)] {
            let text = open(tokenizer.clone(), llama(wanted)).unwrap_err().to_string();
            assert!(
                text.contains(&format!("add_prefix_space is {wanted}")) && text.contains("save_pretrained"),
                "{text}"
            );
            open(tokenizer, llama(!wanted)).unwrap();
        }
    }

    #[test]
    fn ids_beyond_the_embedding_are_refused() {
        let tokenizer = open(tiny(), json!({})).unwrap();
        tokenizer.check_vocab(7).unwrap();
        let text = tokenizer.check_vocab(6).unwrap_err().to_string();
        assert!(text.contains("\"film\"") && text.contains("id 6") && text.contains("6 embeddings"), "{text}");
    }

    /// The image token of Gemma 3 1B lies beyond the rows of its embedding.
    #[test]
    fn an_added_token_beyond_the_embedding_is_refused_in_texts() {
        let mut file = tiny();
        let image = json!({"id": 7, "content": "<image>", "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false});
        file["added_tokens"].as_array_mut().unwrap().push(image);
        let tokenizer = open(file, json!({})).unwrap();
        tokenizer.check_vocab(7).unwrap();
        tokenizer.encode("a film", None).unwrap();
        let text = tokenizer.encode("a <image> film", None).unwrap_err().to_string();
        assert!(text.contains("\"<image>\" with the id 7") && text.contains("7 embeddings"), "{text}");
    }

    /// Ids of `tokenizers` 0.23 in Python.
    #[test]
    fn real_tokenizers_give_the_ids_of_the_python_package() {
        let Some(data) = sparta_test_data::find("data") else { return };
        type Case = (&'static str, Option<&'static str>, &'static [u32]);
        let text = " Héllo  wörld\n\t日本 🎉";
        let pair = Some("not so.");
        let models: [(&str, usize, &[Case]); 5] = [
            (
                "tokenizers/gemma-2",
                256_000,
                &[
                    (text, None, &[2, 53300, 3979, 139, 235271, 2864, 706, 108, 226, 8009, 160588]),
                    (
                        "it's 2024!",
                        pair,
                        &[2, 500, 235303, 235256, 235248, 235284, 235276, 235284, 235310, 235341, 2, 1665, 712, 235265],
                    ),
                    ("<bos>x", None, &[2, 2, 235297]),
                ],
            ),
            (
                "tokenizers/mistral-7b-instruct-v0.3",
                32_768,
                &[
                    (
                        text,
                        None,
                        &[1, 1150, 29565, 1352, 29477, 29473, 1043, 2792, 1185, 781, 780, 29910, 29887, 29473, 32630],
                    ),
                    (
                        "it's 2024!",
                        pair,
                        &[1, 1146, 29510, 29481, 29473, 29518, 29502, 29518, 29549, 29576, 1, 1227, 1347, 29491],
                    ),
                    ("a <s> b", None, &[1, 1032, 29473, 1, 1055]),
                ],
            ),
            (
                "tokenizers/tinyllama-1.1b-chat",
                32_000,
                &[
                    (
                        text,
                        None,
                        &[
                            1, 29871, 379, 3610, 417, 29871, 281, 1340, 430, 13, 12, 30325, 30346, 29871, 243, 162,
                            145, 140,
                        ],
                    ),
                    (
                        "it's 2024!",
                        pair,
                        &[1, 372, 29915, 29879, 29871, 29906, 29900, 29906, 29946, 29991, 1, 451, 577, 29889],
                    ),
                ],
            ),
            (
                "models/reviews-4m",
                4096,
                &[
                    ("A fine film.", None, &[2, 36, 1780, 348, 17]),
                    ("it's 2024!", pair, &[2, 275, 327, 2323, 21, 23, 4, 1361, 418, 17]),
                ],
            ),
            ("models/stories260K", 512, &[("A fine film.", None, &[1, 410, 447, 272, 271, 411, 272, 290, 423, 426])]),
        ];
        for (dir, vocab_size, cases) in models {
            let tokenizer = Tokenizer::open(&data.join(dir)).unwrap();
            tokenizer.check_vocab(vocab_size).unwrap();
            for (text, pair, expected) in cases {
                assert_eq!(tokenizer.encode(text, *pair).unwrap(), *expected, "{dir}: {text:?}");
            }
        }
    }
}
