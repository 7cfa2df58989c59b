//! Metadata as `tokenizer.json`: byte-level BPE ("gpt2") with the splitting that `tokenizer.ggml.pre` names, and
//! SentencePiece's BPE ("llama") with merges made from the scores, as transformers makes them.

mod bytes;
mod pieces;

pub(super) use bytes::split_name;

use super::metadata::Metadata;
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, String>;

/// Types of tokens that are not plain text.
const UNKNOWN: f64 = 2.0;
pub(super) const CONTROL: f64 = 3.0;
pub(super) const USER_DEFINED: f64 = 4.0;

/// Tokens that end an answer in the supported families, for files that name only the end of a text.
const ENDS: [&str; 7] =
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>", "<|endoftext|>"];

/// The vocabulary in the order of ids, with the kind of each token.
pub(super) struct Vocabulary {
    pub tokens: Vec<String>,
    pub kinds: Vec<f64>,
}

impl Vocabulary {
    fn read(metadata: &Metadata) -> Result<Vocabulary> {
        let tokens =
            metadata.texts("tokenizer.ggml.tokens")?.ok_or("has no `tokenizer.ggml.tokens`: it has no tokenizer")?;
        let kinds = match metadata.numbers("tokenizer.ggml.token_type")? {
            Some(kinds) if kinds.len() != tokens.len() => {
                return Err(format!(
                    "`tokenizer.ggml.token_type` has {} elements, expected one for each of {} tokens",
                    kinds.len(),
                    tokens.len()
                ));
            }
            Some(kinds) => kinds,
            None => vec![1.0; tokens.len()],
        };
        Ok(Vocabulary { tokens, kinds })
    }

    /// `added_tokens`: tokens that are recognised in a text before it is split.
    fn added(&self) -> Vec<Value> {
        let tokens = self.tokens.iter().zip(&self.kinds).enumerate();
        let added = tokens.filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        added
            .map(|(id, (token, kind))| {
                json!({"id": id, "content": token, "special": *kind != USER_DEFINED, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false})
            })
            .collect()
    }
}

/// The contents of `tokenizer.json`.
pub(super) fn tokenizer(metadata: &Metadata) -> Result<Value> {
    let vocabulary = Vocabulary::read(metadata)?;
    let (mut file, adds_bos) = match metadata.text("tokenizer.ggml.model")? {
        Some("gpt2") => bytes::tokenizer(metadata, &vocabulary)?,
        Some("llama") => (pieces::tokenizer(metadata, vocabulary)?, true),
        Some(other) => return Err(format!("`tokenizer.ggml.model` is {other:?}; gpt2 and llama are supported")),
        None => return Err("has no `tokenizer.ggml.model`: it has no tokenizer".into()),
    };
    let named = Named::read(metadata)?;
    let wanted = |key: &str, default: bool, token: &Option<(u32, String)>| -> Result<Option<(u32, String)>> {
        let add = metadata.flag(&format!("tokenizer.ggml.add_{key}_token"))?.unwrap_or(default);
        match token {
            _ if !add => Ok(None),
            Some(token) => Ok(Some(token.clone())),
            None => Err(format!("`tokenizer.ggml.add_{key}_token` is true, but no `{key}_token_id` is given")),
        }
    };
    let bos = wanted("bos", adds_bos && named.bos.is_some(), &named.bos)?;
    let eos = wanted("eos", false, &named.eos)?;
    file["post_processor"] = post_processor(bos, eos);
    Ok(file)
}

/// `bos A eos` and `bos A eos bos B eos`.
fn post_processor(bos: Option<(u32, String)>, eos: Option<(u32, String)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let token = |(_, token): &(u32, String), kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
    let around = |name: &str, kind: u8| -> Vec<Value> {
        let sequence = json!({"Sequence": {"id": name, "type_id": kind}});
        let parts =
            [bos.as_ref().map(|bos| token(bos, kind)), Some(sequence), eos.as_ref().map(|eos| token(eos, kind))];
        parts.into_iter().flatten().collect()
    };
    let special = bos.iter().chain(&eos);
    let special = special.map(|(id, token)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})));
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": special.collect::<Map<_, _>>(),
    })
}

/// The tokens with roles: ids and texts.
struct Named {
    bos: Option<(u32, String)>,
    eos: Option<(u32, String)>,
    unknown: Option<(u32, String)>,
    pad: Option<(u32, String)>,
}

impl Named {
    fn read(metadata: &Metadata) -> Result<Named> {
        let tokens = Vocabulary::read(metadata)?.tokens;
        let of = |role: &str| -> Result<Option<(u32, String)>> {
            let Some(id) = id(metadata, role)? else { return Ok(None) };
            let token = tokens.get(id as usize).ok_or_else(|| {
                format!("`tokenizer.ggml.{role}_token_id` is {id}, but there are {} tokens", tokens.len())
            })?;
            Ok(Some((id, token.clone())))
        };
        Ok(Named { bos: of("bos")?, eos: of("eos")?, unknown: of("unknown")?, pad: of("padding")? })
    }
}

fn id(metadata: &Metadata, role: &str) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{role}_token_id");
    let Some(id) = metadata.count(&key)? else { return Ok(None) };
    // Some files have 2^32 - 1 for none.
    Ok(u32::try_from(id).ok().filter(|&id| id != u32::MAX))
}

/// The ids for `config.json`; those that the file does not name are unset, whatever the family's default.
pub(super) fn special_ids(metadata: &Metadata) -> Result<Map<String, Value>> {
    let of = |key: &str, role: &str| Ok((format!("{key}_token_id"), json!(id(metadata, role)?)));
    [("bos", "bos"), ("eos", "eos"), ("pad", "padding")].into_iter().map(|(key, role)| of(key, role)).collect()
}

/// The contents of `tokenizer_config.json`.
pub(super) fn config(metadata: &Metadata) -> Result<Map<String, Value>> {
    let named = Named::read(metadata)?;
    let tokens =
        [("bos_token", named.bos), ("eos_token", named.eos), ("unk_token", named.unknown), ("pad_token", named.pad)];
    let mut config: Map<String, Value> =
        tokens.into_iter().filter_map(|(key, token)| Some((key.to_owned(), token?.1.into()))).collect();
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), template.into());
    }
    Ok(config)
}

pub(super) fn ends(metadata: &Metadata) -> Result<Vec<u32>> {
    let vocabulary = Vocabulary::read(metadata)?;
    let mut ends = Vec::new();
    for role in ["eos", "eot", "eom"] {
        ends.extend(id(metadata, role)?);
    }
    let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate();
    let known = tokens.filter(|(_, (token, kind))| **kind == CONTROL && ENDS.contains(&token.as_str()));
    ends.extend(known.map(|(id, _)| id as u32));
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}
