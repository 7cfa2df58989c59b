//! Untrusted text on its way to a terminal: labels, fields of adapters, messages from templates and plugins. Control
//! characters could move the cursor, change the title or the writing direction, and an endless text would fill the
//! screen.

use std::borrow::Cow;

/// The most characters of a text inside a line.
const FIELD: usize = 300;
/// The most characters of a line.
const LINE: usize = 4000;

/// A text for use inside a line: on one line, without characters that a terminal obeys, at most 300 characters.
pub fn shown(text: &str) -> String {
    limited(text, FIELD, false).into_owned()
}

/// A text of several lines, each without characters that a terminal obeys except tabs, and at most 4000 characters
/// long.
pub fn shown_lines(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| obeyed(c) && !is_space(c)) && text.lines().all(|line| line.len() <= LINE) {
        return text.into();
    }
    text.split('\n').map(|line| limited(line, LINE, true)).collect::<Vec<_>>().join("\n").into()
}

fn limited(text: &str, most: usize, tabs: bool) -> Cow<'_, str> {
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == most {
            out.push_str(&format!("... ({} more characters)", text.chars().count() - most));
            break;
        }
        match c {
            '\t' if tabs => out.push(c),
            c if obeyed(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.into()
}

/// Whitespace allowed in a text of several lines.
fn is_space(c: char) -> bool {
    c == '\n' || c == '\t'
}

/// Control characters, line ends and marks that change the writing direction.
fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(shown("a\u{1b}[2Jb\nc\td\u{202e}é"), "a\\u{1b}[2Jb\\nc\\td\\u{202e}é");
        assert_eq!(shown_lines("a\tb\n\u{9b}c\r\n"), "a\tb\n\\u{9b}c\\r\n");
        assert_eq!(shown_lines("plain\nlines"), "plain\nlines");
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(shown(&"é".repeat(301)), format!("{}... (1 more characters)", "é".repeat(300)));
        assert_eq!(shown(&"é".repeat(300)), "é".repeat(300));
        assert_eq!(
            shown_lines(&format!("a\n{}", "b".repeat(4001))),
            format!("a\n{}... (1 more characters)", "b".repeat(4000))
        );
    }
}
