//! What plugins call themselves and what they offer: names become parts of paths, options and lines of a terminal.

/// Bytes of a name.
pub const LONGEST: usize = 64;
/// Bytes of a text for people.
const TEXT: usize = 4096;

/// A name: letters, digits, `-`, `_` and `.`, with a letter or a digit first.
pub fn check(what: &str, name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(good) && !name.contains("..");
    if fits && name.len() <= LONGEST {
        return Ok(());
    }
    let shown: String = name.chars().take(LONGEST).collect();
    Err(format!(
        "the {what} {shown:?} is no name: expected 1 to {LONGEST} letters, digits, -, _ and single dots, a letter or digit \
         first"
    ))
}

/// A version, on one line.
pub fn check_version(version: &str) -> Result<(), String> {
    if version.len() > LONGEST {
        return Err(format!("its version has {} bytes, expected at most {LONGEST}", version.len()));
    }
    check_line("version", version)
}

/// A text of one line.
pub fn check_line(what: &str, text: &str) -> Result<(), String> {
    check_text(what, text)?;
    match text.chars().any(char::is_control) {
        true => Err(format!("its {what} {text:?} has control characters")),
        false => Ok(()),
    }
}

/// A text for people.
pub fn check_text(what: &str, text: &str) -> Result<(), String> {
    match text.len() > TEXT {
        true => Err(format!("its {what} has {} bytes, expected at most {TEXT}", text.len())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parts_of_paths_and_lines() {
        for good in ["lora", "my-method_2", "0.5x", "T"] {
            check("name", good).unwrap();
        }
        for bad in ["", "..", "a/b", "a..b", ".a", "-a", "a b", "a\n", "\u{1b}[2J", "é", &"x".repeat(65)] {
            assert!(check("name", bad).is_err(), "{bad:?}");
        }
        assert!(check_line("label", "good\nbad").is_err() && check_line("label", "very good").is_ok());
        assert!(check_text("summary", &"x".repeat(5000)).is_err());
    }
}
