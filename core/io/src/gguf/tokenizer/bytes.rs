//! Byte-level BPE. A file names the way its texts are split before merging; the patterns come from the models' own
//! files.

use super::Vocabulary;
use crate::gguf::metadata::Metadata;
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, String>;

/// A way of splitting texts.
struct Split {
    names: &'static [&'static str],
    /// `None`: GPT-2's, which is built into the byte-level step.
    pattern: Option<&'static str>,
    /// Whether digits are first split off one by one.
    digits: bool,
    nfc: bool,
    /// Whether a piece that is a token is not merged up from its bytes.
    ignore_merges: bool,
    /// Whether a text begins with `bos` by default.
    adds_bos: bool,
}

const GPT2: Split =
    Split { names: &["gpt-2"], pattern: None, digits: false, nfc: false, ignore_merges: false, adds_bos: false };

const SPLITS: [Split; 6] = [
    GPT2,
    Split { names: &["smollm", "starcoder", "refact", "command-r", "codeshell"], digits: true, ..GPT2 },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: true,
        adds_bos: true,
        ..GPT2
    },
    Split {
        names: &["qwen2", "deepseek-r1-qwen"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: true,
        ..GPT2
    },
    Split {
        names: &["tekken"],
        pattern: Some(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: true,
        adds_bos: true,
        ..GPT2
    },
    Split {
        names: &["gpt-4o"],
        pattern: Some(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ..GPT2
    },
];

/// GGUF's name for the way in which a `pre_tokenizer` splits texts.
pub(in crate::gguf) fn split_name(pre_tokenizer: &Value) -> Option<&'static str> {
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(pre_tokenizer),
    };
    let of = |kind: &str| steps.iter().find(|step| step["type"] == kind);
    let level = of("ByteLevel").filter(|level| level["add_prefix_space"] == false)?;
    let pattern = of("Split").map(|split| split["pattern"]["Regex"].as_str().unwrap_or_default());
    let digits = of("Digits").is_some_and(|digits| digits["individual_digits"] == true);
    let built_in = level["use_regex"] != false;
    let same = |split: &&Split| (split.pattern, split.digits, split.pattern.is_none()) == (pattern, digits, built_in);
    SPLITS.iter().find(same).map(|split| split.names[0])
}

/// The file without its post-processor, and whether a text begins with `bos` by default.
pub(super) fn tokenizer(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<(Value, bool)> {
    let split = split(metadata)?;
    let merges = metadata.texts("tokenizer.ggml.merges")?.ok_or("has no `tokenizer.ggml.merges`")?;
    let merges: Option<Vec<_>> = merges.iter().map(|merge| merge.split_once(' ').map(|(l, r)| [l, r])).collect();
    let merges = merges.ok_or("`tokenizer.ggml.merges` has a merge that is not a pair")?;
    let vocab: Map<String, Value> =
        vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    if vocab.len() != vocabulary.tokens.len() {
        return Err("`tokenizer.ggml.tokens` has a token twice".into());
    }
    let level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let digits = split.digits.then(|| json!({"type": "Digits", "individual_digits": true}));
    let pattern = split.pattern.map(
        |pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
    );
    let steps: Vec<Value> = [digits, pattern, Some(level(split.pattern.is_none()))].into_iter().flatten().collect();
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": split.nfc.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": null,
        "decoder": level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": split.ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    });
    Ok((file, split.adds_bos))
}

fn split(metadata: &Metadata) -> Result<&'static Split> {
    let name = metadata.text("tokenizer.ggml.pre")?;
    SPLITS.iter().find(|split| name.is_some_and(|name| split.names.contains(&name))).ok_or_else(|| {
        let known: Vec<&str> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
        format!(
            "`tokenizer.ggml.pre` is {}; known ways to split a text are {}. Use the model's directory in the Hugging Face \
             layout",
            name.map_or("missing".into(), |name| format!("{name:?}")),
            known.join(", ")
        )
    })
}
