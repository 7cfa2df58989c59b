//! Checks of plugins' names and texts, which become parts of paths, options and lines on a terminal.

/// The most bytes of a name.
pub const LONGEST: usize = 64;
/// The most bytes of a text.
const TEXT: usize = 4096;

/// Checks a name: letters, digits, `-`, `_` and `.`, starting with a letter or a digit.
pub fn check(what: &str, name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(good) && !name.contains("..");
    if fits && name.len() <= LONGEST {
        return Ok(());
    }
    let shown: String = name.chars().take(LONGEST).collect();
    Err(format!(
        "the {what} {shown:?} is not a valid name: expected 1 to {LONGEST} letters, digits, -, _ and single dots, a letter or digit \
         first"
    ))
}

/// Checks a version: one short line.
pub fn check_version(version: &str) -> Result<(), String> {
    if version.len() > LONGEST {
        return Err(format!("its version has {} bytes, expected at most {LONGEST}", version.len()));
    }
    check_line("version", version)
}

/// Checks a text of one line.
pub fn check_line(what: &str, text: &str) -> Result<(), String> {
    check_text(what, text)?;
    match text.chars().any(char::is_control) {
        true => Err(format!("its {what} {text:?} has control characters")),
        false => Ok(()),
    }
}

/// Checks a text of any number of lines.
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
