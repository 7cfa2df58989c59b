//! Bounds how much a `tokenizer.json` can lengthen a text: a few steps that each replace a letter by ten turn a word
//! into gigabytes. The bound follows from the file alone, before any text is encoded.

use serde_json::Value;

/// Size limit of a text on its way to the tokenizer's model; each byte takes 16 more for its origin.
pub const LARGEST: f64 = (64 << 20) as f64;

/// The most tokens added around a text.
const AROUND: f64 = 4096.0;

/// For an input of `bytes`, the output has at most `factor * bytes + added`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    factor: f64,
    added: f64,
}

impl Growth {
    const NONE: Growth = Growth { factor: 1.0, added: 0.0 };

    fn times(factor: f64) -> Growth {
        Growth { factor: factor.max(1.0), added: 0.0 }
    }

    fn then(self, next: Growth) -> Growth {
        Growth { factor: self.factor * next.factor, added: self.added * next.factor + next.added }
    }

    /// Whether a text of this many bytes stays below [`LARGEST`]. Written so that infinity and NaN do not.
    pub fn allows(self, bytes: usize) -> bool {
        self.factor * bytes as f64 + self.added <= LARGEST
    }

    /// The longest text that stays below [`LARGEST`].
    pub fn longest(self) -> f64 {
        ((LARGEST - self.added) / self.factor).max(0.0)
    }

    /// The growth in a whole file, through normalizer and pre-tokenizer.
    ///
    /// Errors: a post-processor that repeats the text, or adds thousands of tokens around it.
    pub fn of(file: &Value) -> Result<Growth, String> {
        let (repeats, around) = post_processor(&file["post_processor"]);
        if repeats > 1.0 || around > AROUND {
            return Err("its post_processor repeats the text, or adds thousands of tokens to it".into());
        }
        Ok(part(&file["normalizer"]).then(part(&file["pre_tokenizer"])))
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn length(value: &Value) -> f64 {
    value.as_str().map_or(0, str::len) as f64
}

/// A normalizer or a pre-tokenizer.
fn part(value: &Value) -> Growth {
    let children = || list(value, "normalizers").iter().chain(list(value, "pretokenizers"));
    match value["type"].as_str().unwrap_or_default() {
        "Sequence" => children().fold(Growth::NONE, |all, next| all.then(part(next))),
        "Replace" => replace(value),
        "Prepend" => Growth { factor: 1.0, added: length(&value["prepend"]) },
        "Precompiled" => precompiled(value),
        // Adds a space, and turns each byte into a letter of up to two bytes.
        "ByteLevel" => Growth { factor: 2.0, added: 2.0 },
        // Replaces a space by one letter.
        "Metaspace" => Growth { factor: 4.0, added: 4.0 },
        // These split without changing the text.
        "Split" | "Whitespace" | "WhitespaceSplit" | "Punctuation" | "Digits" | "CharDelimiterSplit"
        | "BertPreTokenizer" | "UnicodeScripts" | "FixedLength" | "Strip" | "StripAccents" => Growth::NONE,
        "" if value.is_null() => Growth::NONE,
        // The longest decomposition in Unicode, U+FDFA, has 33 bytes for 3; the others are no worse.
        _ => Growth::times(12.0),
    }
}

fn replace(value: &Value) -> Growth {
    let content = length(&value["content"]);
    match value["pattern"]["String"].as_str() {
        Some(pattern) if !pattern.is_empty() => Growth::times(content / pattern.len() as f64),
        // An expression may match between any two bytes.
        _ => Growth { factor: 1.0 + content, added: content },
    }
}

/// A SentencePiece map: the replacement texts follow its index, each ended by a zero.
fn precompiled(value: &Value) -> Growth {
    let bytes = base64(value["precompiled_charsmap"].as_str().unwrap_or_default());
    let index = bytes.first_chunk().map_or(0, |size: &[u8; 4]| u32::from_le_bytes(*size) as usize);
    let texts = bytes.get(4usize.saturating_add(index)..).unwrap_or(&bytes);
    let longest = texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    Growth::times(longest as f64)
}

/// Decodes base64, skipping other characters.
fn base64(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(text.len() / 4 * 3), 0u32, 0);
    for c in text.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

/// How often a post-processor repeats each text, and how many tokens it adds.
fn post_processor(value: &Value) -> (f64, f64) {
    if value["type"] == "Sequence" {
        let all = list(value, "processors").iter().map(post_processor);
        return all.fold((1.0, 0.0), |(repeats, around), (more, added)| (repeats * more, around * more + added));
    }
    let tokens = |id: &Value| {
        let known = id.as_str().map_or(&Value::Null, |id| &value["special_tokens"][id]);
        list(known, "ids").len().max(1) as f64
    };
    let template = |key: &str| {
        let (mut texts, mut added) = ([0.0f64; 2], 0.0);
        for piece in list(value, key) {
            match piece["Sequence"]["id"].as_str() {
                Some("B") => texts[1] += 1.0,
                Some(_) => texts[0] += 1.0,
                None => added += tokens(&piece["SpecialToken"]["id"]),
            }
        }
        (texts[0].max(texts[1]), added)
    };
    let (single, pair) = (template("single"), template("pair"));
    (single.0.max(pair.0).max(1.0), single.1.max(pair.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bounds_multiply_through_a_sequence() {
        let ten = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
        let file = |n: usize| json!({"normalizer": {"type": "Sequence", "normalizers": vec![ten.clone(); n]}});
        let growth = |n| Growth::of(&file(n)).unwrap();
        assert_eq!(growth(3), Growth { factor: 1000.0, added: 0.0 });
        assert!(growth(3).allows(60_000) && !growth(3).allows(70_000) && !growth(400).allows(1));
        let levels =
            json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": vec![json!({"type": "ByteLevel"}); 30]}});
        assert!(!Growth::of(&levels).unwrap().allows(1));
        let regex = json!({"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "xyz"}});
        assert_eq!(Growth::of(&regex).unwrap(), Growth { factor: 4.0, added: 3.0 });
    }

    #[test]
    fn a_sentencepiece_map_grows_a_text_by_its_longest_replacement() {
        // An index of 0 bytes, then "ab" and "cdefg".
        let map = json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAGFiAGNkZWZnAA=="}});
        assert_eq!(base64("AAAAAGFiAGNkZWZnAA=="), b"\0\0\0\0ab\0cdefg\0");
        assert_eq!(Growth::of(&map).unwrap(), Growth::times(5.0));
    }

    #[test]
    fn post_processors_give_a_text_once() {
        let template = |single: Value, ids: usize| {
            json!({"post_processor": {"type": "TemplateProcessing", "single": single, "pair": [],
                   "special_tokens": {"<s>": {"id": "<s>", "ids": vec![1; ids]}}}})
        };
        let (text, token) = (json!({"Sequence": {"id": "A"}}), json!({"SpecialToken": {"id": "<s>"}}));
        Growth::of(&template(json!([token, text]), 1)).unwrap();
        assert!(Growth::of(&template(json!([text, text]), 1)).is_err());
        assert!(Growth::of(&template(json!([token, text]), 5000)).is_err());
    }
}
