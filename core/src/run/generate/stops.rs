//! Texts at which generation stops.

/// Holds back text that may be the start of a stop text.
pub struct Stops<'s> {
    /// None of them is empty.
    texts: &'s [String],
    held: String,
}

impl<'s> Stops<'s> {
    pub fn new(texts: &'s [String]) -> Stops<'s> {
        Stops { texts, held: String::new() }
    }

    /// The text that can be released so far, without the stop text, and whether a stop text has occurred.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.texts.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        // The stop text completed first wins, however the text is split into pieces.
        if let Some((_, at)) = found.min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: usize| self.texts.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(|&at| begins(at)).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text still held back, at the end.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let texts: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut stops = Stops::new(&texts);
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stopped) = stops.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(stops.finish());
        (out, false)
    }

    #[test]
    fn a_stop_is_found_across_pieces() {
        assert_eq!(written(&["\nUser:"], &["yes\n", "Us", "er: no"]), (vec!["yes".into(), "".into(), "".into()], true));
        assert_eq!(written(&["ab", "é!"], &["xé", "!b"]), (vec!["x".into(), "".into()], true));
        // The first of several that is complete.
        assert_eq!(written(&["bc", "abcd"], &["xabcd"]), (vec!["xa".into()], true));
    }

    #[test]
    fn a_text_that_only_begins_like_a_stop_is_printed_late() {
        let (out, stopped) = written(&["aab"], &["xa", "a", "a", "c", "aa"]);
        assert_eq!((out.concat().as_str(), stopped), ("xaaacaa", false));
        assert_eq!(out[..4], ["x", "", "a", "aac"]);
        assert_eq!(written(&[], &["a", ""]), (vec!["a".into(), "".into(), "".into()], false));
    }
}
