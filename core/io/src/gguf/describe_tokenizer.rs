//! `tokenizer.json` as metadata.

use super::tokenizer::{CONTROL, USER_DEFINED, split_name};
use super::write::{Field, Fields};
use crate::{Error, Result, files};
use serde_json::Value;
use sparta_model::Decoder;
use std::collections::{HashMap, HashSet};
use std::path::Path;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The metadata of a tokenizer.
///
/// Errors: an unreadable file; a kind of tokenizer that llama.cpp does not support.
pub(super) fn fields(dir: &Path, decoder: &Decoder) -> Result<Fields> {
    let path = dir.join("tokenizer.json");
    let error = |what: String| Error::Tokenizer(format!("{}: {what}", path.display()));
    let bytes = files::read(&path, files::TOKENIZER).map_err(Error::io(&path))?;
    let file: Value = serde_json::from_slice(&bytes).map_err(|e| error(format!("not JSON: {e}")))?;
    let mut fields = of_file(&file, decoder).map_err(error)?;
    let config = dir.join("tokenizer_config.json");
    let config: Value = match files::is_file(&config) {
        true => {
            let text = files::read(&config, files::CONFIGURATION).map_err(Error::io(&config))?;
            serde_json::from_slice(&text).map_err(|e| Error::Tokenizer(format!("{}: {e}", config.display())))?
        }
        false => Value::Null,
    };
    let template = dir.join("chat_template.jinja");
    let template = match files::is_file(&template) {
        true => Some(files::read_text(&template, files::CONFIGURATION).map_err(Error::io(&template))?),
        false => config["chat_template"].as_str().map(str::to_owned),
    };
    fields.extend(template.map(|template| ("tokenizer.chat_template".to_owned(), Field::Text(template))));
    let pad = config["pad_token"].as_str().or(config["pad_token"]["content"].as_str());
    let pad = decoder.pad_token_id.or_else(|| pad.and_then(|pad| id(&file, pad)));
    fields.extend(pad.map(|pad| ("tokenizer.ggml.padding_token_id".to_owned(), Field::U32(pad))));
    Ok(fields)
}

fn id(file: &Value, token: &str) -> Option<u32> {
    let added = file["added_tokens"].as_array().into_iter().flatten().find(|added| added["content"] == token);
    let id = added.map_or(&file["model"]["vocab"][token], |added| &added["id"]);
    id.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn of_file(file: &Value, decoder: &Decoder) -> std::result::Result<Fields, String> {
    let model = &file["model"];
    let (Some("BPE"), Some(vocab)) = (model["type"].as_str(), model["vocab"].as_object()) else {
        return Err("only BPE tokenizers can be written to GGUF".into());
    };
    let merges: Option<Vec<[&str; 2]>> = model["merges"].as_array().into_iter().flatten().map(pair).collect();
    let merges = merges.ok_or("`merges` has entries that are not pairs")?;
    let mut tokens: Vec<String> = (0..decoder.vocab_size).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; tokens.len()];
    let mut set = |id: Option<u64>, token: &str, kind: i32| {
        let id = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < tokens.len());
        if let Some(id) = id {
            token.clone_into(&mut tokens[id]);
            kinds[id] = kind;
        }
    };
    let pieces = model["byte_fallback"] == true;
    for (token, id) in vocab {
        let is_byte = pieces && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        let unknown = model["unk_token"].as_str() == Some(token);
        set(
            id.as_u64(),
            token,
            if is_byte {
                BYTE
            } else if unknown {
                UNKNOWN
            } else {
                NORMAL
            },
        );
    }
    for added in file["added_tokens"].as_array().into_iter().flatten() {
        let Some(token) = added["content"].as_str() else { continue };
        let kind = if added["special"] == true { CONTROL } else { USER_DEFINED } as i32;
        set(added["id"].as_u64(), token, if model["unk_token"] == token { UNKNOWN } else { kind });
    }
    let mut fields: Fields = Vec::new();
    let mut add = |key: &str, field: Field| fields.push((format!("tokenizer.ggml.{key}"), field));
    if pieces {
        add("model", Field::Text("llama".into()));
        add("pre", Field::Text("default".into()));
        add("scores", Field::F32s(scores(&tokens, &kinds, &merges)));
        add("add_space_prefix", Field::Flag(prepends(file)));
    } else {
        let split = split_name(&file["pre_tokenizer"]).ok_or("its way of splitting texts has no name in GGUF")?;
        add("model", Field::Text("gpt2".into()));
        add("pre", Field::Text(split.into()));
        add("merges", Field::Texts(merges.iter().map(|[left, right]| format!("{left} {right}")).collect()));
    }
    let [bos, eos] = [decoder.bos_token_id, decoder.eos_token_ids.first().copied()];
    let around = template(&file["post_processor"]);
    let is = |at: Option<&Value>, id: Option<u32>| {
        let token = at.and_then(|piece| piece["SpecialToken"]["id"].as_str());
        id.is_some() && token.and_then(|token| self::id(file, token)) == id
    };
    add("add_bos_token", Field::Flag(is(around.and_then(|all| all.first()), bos)));
    add("add_eos_token", Field::Flag(is(around.and_then(|all| all.last()), eos)));
    let unknown = model["unk_token"].as_str().and_then(|token| self::id(file, token));
    let more = decoder.eos_token_ids.get(1).copied();
    for (role, id) in [("bos", bos), ("eos", eos), ("eot", more), ("unknown", unknown)] {
        if let Some(id) = id {
            add(&format!("{role}_token_id"), Field::U32(id));
        }
    }
    add("tokens", Field::Texts(tokens));
    add("token_type", Field::I32s(kinds));
    Ok(fields)
}

fn pair(merge: &Value) -> Option<[&str; 2]> {
    match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| [left, right]),
        pair => Some([pair[0].as_str()?, pair[1].as_str()?]),
    }
}

/// Scores of pieces made by merging: 0, -1, -2, ... in the order of the first merge that makes them. Pieces that are
/// not plain text are merged first, as if they had 0.
fn scores(tokens: &[String], kinds: &[i32], merges: &[[&str; 2]]) -> Vec<f32> {
    let plain = tokens.iter().zip(kinds).filter(|(_, kind)| **kind == NORMAL);
    let plain: HashSet<&str> = plain.map(|(token, _)| token.as_str()).collect();
    let mut ranks = HashMap::new();
    for piece in merges.iter().map(|merge| merge.concat()).filter(|piece| plain.contains(piece.as_str())) {
        let next = ranks.len();
        ranks.entry(piece).or_insert(next);
    }
    tokens.iter().map(|token| -(ranks.get(token).copied().unwrap_or_default() as f32)).collect()
}

/// Whether a space is put before a text.
fn prepends(file: &Value) -> bool {
    let steps = |step: &Value, list: &str| match step[list].as_array() {
        Some(steps) => steps.clone(),
        None => vec![step.clone()],
    };
    steps(&file["normalizer"], "normalizers").iter().any(|step| step["type"] == "Prepend")
        || steps(&file["pre_tokenizer"], "pretokenizers").iter().any(|step| {
            step["type"] == "Metaspace" && step["prepend_scheme"].as_str().is_some_and(|scheme| scheme != "never")
        })
}

/// The template of tokens around a text.
fn template(processor: &Value) -> Option<&Vec<Value>> {
    match processor["type"].as_str()? {
        "TemplateProcessing" => processor["single"].as_array(),
        "Sequence" => processor["processors"].as_array()?.iter().find_map(template),
        _ => None,
    }
}
