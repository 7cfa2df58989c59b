//! All output. Text goes to stdout, or to stderr when stdout is reserved for one JSON object; control characters in it
//! are escaped.

use serde::Serialize;
use sparta_core::model::{shown, shown_lines};
use sparta_core::{Error, Result};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The standard output that the program was started with.
static STDOUT: OnceLock<File> = OnceLock::new();

/// Reserves standard output for this program: whatever a plugin or a driver prints there goes to standard error, so
/// that it is never taken for a result. Not for the dashboard of --tui, nor for the suites of `plugin check`, which
/// print.
#[cfg(unix)]
pub fn keep_stdout() {
    use std::os::fd::AsFd;
    unsafe extern "C" {
        fn dup2(from: std::ffi::c_int, to: std::ffi::c_int) -> std::ffi::c_int;
    }
    if std::env::args_os().any(|argument| argument == "--tui" || argument == "--child") {
        return;
    }
    // Without a free descriptor nothing is changed.
    let Ok(own) = io::stdout().as_fd().try_clone_to_owned() else { return };
    // SAFETY: the descriptors of standard error and output, which stay open as long as the process.
    if unsafe { dup2(2, 1) } == 1 {
        let _ = STDOUT.set(own.into());
    }
}

#[cfg(not(unix))]
pub fn keep_stdout() {}

/// Standard output.
fn stdout() -> Box<dyn Write> {
    match STDOUT.get() {
        Some(file) => Box::new(file),
        None => Box::new(io::stdout()),
    }
}

fn stdout_is_terminal() -> bool {
    STDOUT.get().map_or(io::stdout().is_terminal(), File::is_terminal)
}

/// Whether this process prints nothing.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Silences this process: of several that train together, only one prints.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Whether nothing is printed.
pub fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

#[derive(Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// Prints a line of text.
    pub fn say(&self, text: impl Display) -> Result<()> {
        if self.json { line(io::stderr(), text) } else { line(stdout(), text) }
    }

    /// Prints a piece of generated text: escaped on a terminal, unchanged elsewhere.
    pub fn piece(&self, text: &str) -> Result<()> {
        let (terminal, mut out): (bool, Box<dyn Write>) = match self.json {
            true => (io::stderr().is_terminal(), Box::new(io::stderr())),
            false => (stdout_is_terminal(), stdout()),
        };
        let text = if terminal { shown_lines(text) } else { text.into() };
        written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
    }

    /// Prints the result as one line of JSON, if requested.
    pub fn result(&self, value: &impl Serialize) -> Result<()> {
        if self.json { json_line(value) } else { Ok(()) }
    }
}

/// Prints a warning on stderr, out of the way of programs that read the output.
pub fn warn(text: impl Display) {
    // If stderr is gone, there is nobody to tell.
    let _ = line(io::stderr(), format!("warning: {text}"));
}

/// Prints a line on stdout.
pub fn print(text: impl Display) -> Result<()> {
    line(stdout(), text)
}

/// Prints a line of words on stdout; marked ones are green on a terminal, else between « and ».
pub fn marked<'a>(words: impl Iterator<Item = (&'a str, bool)>) -> Result<()> {
    let (begin, end) = if stdout_is_terminal() && wants_colour() { ("\x1b[1;32m", "\x1b[0m") } else { ("«", "»") };
    let word = |(word, marked): (&str, bool)| match marked {
        true => format!("{begin}{}{end}", shown(word)),
        false => shown(word),
    };
    let words: Vec<String> = words.map(word).collect();
    written(writeln!(stdout(), "  {}", words.join(" ")))
}

fn wants_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none()
}

/// Prints clap's message: help on stdout, wrong usage on stderr.
pub fn explain(error: &clap::Error) {
    let text = error.render();
    let (terminal, mut out): (bool, Box<dyn Write>) = match error.use_stderr() {
        true => (io::stderr().is_terminal(), Box::new(io::stderr())),
        false => (stdout_is_terminal(), stdout()),
    };
    // A reader that has gone away is ignored.
    let _ = match terminal && wants_colour() {
        true => write!(out, "{}", text.ansi()),
        false => write!(out, "{text}"),
    };
}

/// Prints a remark on stderr; a reader that has gone away is ignored.
pub fn aside(text: impl Display) {
    let _ = line(io::stderr(), text);
}

/// Prints a line of JSON on stdout.
pub fn json_line(value: &impl Serialize) -> Result<()> {
    if is_silent() {
        return Ok(());
    }
    let text =
        serde_json::to_string(value).map_err(|e| Error::Usage(format!("the result cannot be written as JSON: {e}")))?;
    written(writeln!(stdout(), "{text}").and_then(|()| stdout().flush()))
}

/// Writes a line of escaped text.
fn line(mut out: impl Write, text: impl Display) -> Result<()> {
    if is_silent() {
        return Ok(());
    }
    let text = text.to_string();
    written(writeln!(out, "{}", shown_lines(&text)).and_then(|()| out.flush()))
}

/// A reader that stops early, as `head` does, is not an error.
fn written(outcome: io::Result<()>) -> Result<()> {
    match outcome {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Io { path: PathBuf::from("standard output"), source })
        }
        _ => Ok(()),
    }
}

/// A table with a header, columns as wide as their widest cell; cells are shown as [`shown`] does.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column)).map(|cell| cell.chars().count());
    let widths: Vec<usize> =
        header.iter().enumerate().map(|(i, title)| cells(i).chain([title.len()]).max().unwrap_or(0)).collect();
    let row = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count()))))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let body = rows.iter().map(|cells| row(cells.iter().map(String::as_str).collect()));
    [row(header.to_vec())].into_iter().chain(body).collect::<Vec<_>>().join("\n")
}

/// Bytes in the unit that leaves one to four digits: `3.2 GiB`.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["a".into(), "déjà".into(), "x".into()], vec!["abc".into(), "b".into(), String::new()]];
        assert_eq!(table(&["id", "b", "c"], &rows), "id   b     c\na    déjà  x\nabc  b");
    }

    #[test]
    fn untrusted_cells_are_cut_and_escaped() {
        let rows = vec![vec!["x".repeat(100_000), "\u{1b}[31m".into()], vec![String::new(), "y".into()]];
        let text = table(&["a", "b"], &rows);
        assert!(text.contains("(99700 more characters)") && text.contains("\\u{1b}[31m"), "{text}");
    }

    #[test]
    fn bytes_have_a_fitting_unit() {
        assert_eq!([0, 1023, 1024, 3 << 29, 5 << 40].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "5.0 TiB"]);
    }
}
