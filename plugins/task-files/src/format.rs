//! The formats that texts come in.

use sparta_files as files;
use sparta_plugin::Error;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated with a header line; fields with separators, quotes or line breaks are quoted.
    Csv,
    /// Tab-separated with a header line; quotes are ordinary characters.
    Tsv,
    /// One object per line.
    Jsonl,
    /// An array of objects, or one object after the other.
    Json,
    Parquet,
    /// One text per line.
    Lines,
    /// A folder of `.txt` files, or one folder of them per class.
    TextFolders,
}

use Format::*;

impl Format {
    /// The names that `--format` takes.
    pub const NAMES: [(&str, Format); 7] = [
        ("csv", Csv),
        ("tsv", Tsv),
        ("jsonl", Jsonl),
        ("json", Json),
        ("parquet", Parquet),
        ("lines", Lines),
        ("folder", TextFolders),
    ];
    /// File name endings, the usual one of each format first.
    pub const ENDINGS: [(&str, Format); 9] = [
        ("parquet", Parquet),
        ("csv", Csv),
        ("tsv", Tsv),
        ("jsonl", Jsonl),
        ("ndjson", Jsonl),
        ("json", Json),
        ("txt", Lines),
        ("text", Lines),
        ("tab", Tsv),
    ];

    /// # Errors
    /// There is no such format.
    pub fn named(name: &str) -> Result<Format, Error> {
        let known = || Self::NAMES.iter();
        known().find(|(known, _)| *known == name).map(|(_, format)| *format).ok_or_else(|| {
            let known: Vec<&str> = known().map(|(name, _)| *name).collect();
            Error(format!("format: expected one of {}, got `{name}`", known.join(", ")))
        })
    }

    /// The format by the path's ending, or because it is a directory.
    pub fn of(path: &Path) -> Option<Format> {
        if files::is_dir(path) {
            return Some(TextFolders);
        }
        let ending = path.extension()?.to_str()?.to_lowercase();
        Self::ENDINGS.iter().find(|(known, _)| *known == ending).map(|(_, format)| *format)
    }

    /// [`Format::named`], or [`Format::of`] if no name is given.
    ///
    /// # Errors
    /// Neither gives a format.
    pub fn choose(name: Option<&str>, path: &Path) -> Result<Format, Error> {
        match name {
            Some(name) => Self::named(name),
            None => Self::of(path).ok_or_else(|| {
                let known: Vec<&str> = Self::ENDINGS.iter().map(|(ending, _)| *ending).collect();
                let (path, known) = (path.display(), known.join(", ."));
                Error(format!("{path}: its name does not show its format; expected .{known}, or give it with --format"))
            }),
        }
    }

    /// Where a record is, in messages.
    pub fn place(self, name: &str, number: u64) -> String {
        match self {
            Parquet => format!("{name}, row {number}"),
            _ => format!("{name}:{number}"),
        }
    }
}
