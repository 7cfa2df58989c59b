//! Streams the text of tokens as they arrive.

use super::Tokenizer;
use crate::Result;

/// Tokens of the prompt that are decoded together with the first new one.
const BEFORE: usize = 8;

/// Decodes tokens one by one into the same text as all at once. Characters that span several tokens come out whole.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// The last decoded tokens and the pending ones: the text of a token depends on those before it.
    ids: Vec<u32>,
    /// How many of them have been decoded.
    given: usize,
}

impl<'t> TextStream<'t> {
    /// Starts after a prompt.
    pub fn after(tokenizer: &'t Tokenizer, prompt: &[u32]) -> TextStream<'t> {
        let ids = prompt[prompt.len().saturating_sub(BEFORE)..].to_vec();
        TextStream { tokenizer, given: ids.len(), ids }
    }

    /// The text that one more token completes; empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let new = self.waiting()?;
        if new.is_empty() || new.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(new)
    }

    /// The pending text at the end: incomplete characters, each as a replacement character.
    pub fn finish(self) -> Result<String> {
        self.waiting()
    }

    fn waiting(&self) -> Result<String> {
        let given = self.tokenizer.decode(&self.ids[..self.given])?;
        let all = self.tokenizer.decode(&self.ids)?;
        let same = given.chars().zip(all.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        Ok(all[same..].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A tokenizer of single bytes, as byte fallback has them, and words that begin with a space.
    fn tokenizer() -> Tokenizer {
        let mut vocab: serde_json::Map<String, serde_json::Value> =
            (0..256).map(|byte| (format!("<0x{byte:02X}>"), byte.into())).collect();
        vocab.extend([("▁a", 256), ("▁film", 257), ("<s>", 258)].map(|(token, id)| (token.to_owned(), id.into())));
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "added_tokens": [{"id": 258, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "vocab": vocab, "merges": []}
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        Tokenizer::open(dir.path()).unwrap()
    }

    fn pieces(prompt: &[u32], ids: &[u32]) -> (Vec<String>, String) {
        let tokenizer = tokenizer();
        let mut stream = TextStream::after(&tokenizer, prompt);
        let pieces = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        (pieces, stream.finish().unwrap())
    }

    #[test]
    fn words_keep_their_spaces() {
        let (found, rest) = pieces(&[258, 256], &[257, 256, 258, 257]);
        assert_eq!((found.join("|"), rest.as_str()), (" film| a|| film".into(), ""));
        // The first space of a text is not part of it.
        assert_eq!(pieces(&[258], &[256, 257]).0, ["a", " film"]);
    }

    #[test]
    fn characters_come_whole() {
        let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
        let (found, rest) = pieces(&[257], &bytes("é😀x"));
        assert_eq!((found, rest.as_str()), (["", "é", "", "", "", "😀", "x"].map(String::from).to_vec(), ""));
        // Bytes that never become a character are shown at the end, or when a character follows.
        let (found, rest) = pieces(&[257], &[0xf0, 0x9f]);
        assert_eq!((found.concat().as_str(), rest.chars().all(|c| c == '\u{fffd}')), ("", true));
        assert!(!rest.is_empty());
        assert_eq!(pieces(&[257], &[0xf0, 256]).0[1], "\u{fffd} a");
    }
}
