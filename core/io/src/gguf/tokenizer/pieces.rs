//! SentencePiece's BPE. The pair that forms the piece with the highest score is merged first. `tokenizer.json` lists
//! the pairs in this order.

use super::{CONTROL, UNKNOWN, USER_DEFINED, Vocabulary};
use crate::gguf::metadata::Metadata;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::HashMap;

type Result<T> = std::result::Result<T, String>;

/// The representation of a space in a piece.
const SPACE: &str = "\u{2581}";
/// The most characters of a piece that can be merged; SentencePiece's have at most about 30.
const LONGEST: usize = 256;
/// The most pairs of pieces; the largest published vocabulary has about 600,000.
const MOST_MERGES: usize = 1 << 23;

/// The file without its post-processor.
pub(super) fn tokenizer(metadata: &Metadata, mut vocabulary: Vocabulary) -> Result<Value> {
    let scores = metadata.numbers("tokenizer.ggml.scores")?.ok_or("has no `tokenizer.ggml.scores`")?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(format!(
            "`tokenizer.ggml.scores` has {} elements, expected one for each of {} tokens",
            scores.len(),
            vocabulary.tokens.len()
        ));
    }
    for (token, kind) in vocabulary.tokens.iter_mut().zip(&vocabulary.kinds) {
        // llama.cpp's converter stores these with spaces; texts have none left when pieces are looked up.
        if *kind == USER_DEFINED {
            *token = token.replace(' ', SPACE);
        }
    }
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let merges = merges(&vocabulary, &scores)?;
    let tokens = vocabulary.tokens.iter().enumerate();
    let vocab: Map<String, Value> = tokens.clone().map(|(id, token)| (token.clone(), id.into())).collect();
    let unknown = vocabulary.kinds.iter().position(|&kind| kind == UNKNOWN);
    let unknown = match metadata.count("tokenizer.ggml.unknown_token_id")? {
        Some(id) => vocabulary.tokens.get(usize::try_from(id).unwrap_or(usize::MAX)),
        None => unknown.and_then(|id| vocabulary.tokens.get(id)),
    };
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}),
        false => spaces,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    }))
}

/// All pairs of pieces that form a piece, ordered by its score, then by the length of the left and the right part.
fn merges<'a>(vocabulary: &'a Vocabulary, scores: &[f64]) -> Result<Vec<[&'a str; 2]>> {
    let ids: HashMap<&str, usize> =
        vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    if ids.len() != vocabulary.tokens.len() {
        return Err("`tokenizer.ggml.tokens` has a token twice".into());
    }
    let mut found = Vec::new();
    for (id, piece) in vocabulary.tokens.iter().enumerate() {
        // SentencePiece gives special tokens a score of 0; llama.cpp's converter writes something else.
        let plain = ![UNKNOWN, CONTROL, USER_DEFINED].contains(&vocabulary.kinds[id]);
        // The first piece has -0.
        let score = if plain { scores[id] + 0.0 } else { 0.0 };
        if !score.is_finite() {
            return Err(format!("`tokenizer.ggml.scores` has {score} for token {id}"));
        }
        let length = piece.chars().count();
        if length > LONGEST {
            continue;
        }
        for (left_length, (at, _)) in piece.char_indices().enumerate().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                found.push((score, [left_length, length - left_length], [id, l, r], [left, right]));
            }
        }
        if found.len() > MOST_MERGES {
            return Err(format!("`tokenizer.ggml.tokens` has more than {MOST_MERGES} pairs that make a token"));
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (Reverse(a.1), a.2).cmp(&(Reverse(b.1), b.2))));
    Ok(found.into_iter().map(|(_, _, _, pair)| pair).collect())
}
