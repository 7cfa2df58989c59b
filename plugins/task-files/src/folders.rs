//! One text file an example, in one folder a class: the layout of the original IMDB archive.

use crate::lines::MAX_LINE;
use crate::part::{Row, Rows};
use crate::schema::Schema;
use sparta_plugin::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The texts of `path/<class>/*.txt`, class by class in the order of the labels, each in the order of the file names.
/// Other folders and files are ignored.
///
/// # Errors
/// The folder of a class is missing or has no text. A file that cannot be read, is longer than 1 MiB or is not UTF-8 is an error of
/// the iterator.
pub(crate) fn rows(path: &Path, schema: &Schema) -> Result<Rows, Error> {
    let files = text_files(path, schema)?;
    Ok(Box::new(files.into_iter().zip(1..).map(|((class, file), number)| {
        Ok(Row { number, text: read_text(&file)?, pair: None, label: Some(class.to_owned()) })
    })))
}

/// The number of texts.
///
/// # Errors
/// As [`rows`].
pub(crate) fn count(path: &Path, schema: &Schema) -> Result<usize, Error> {
    Ok(text_files(path, schema)?.len())
}

fn text_files(path: &Path, schema: &Schema) -> Result<Vec<(&'static str, PathBuf)>, Error> {
    let mut all = Vec::new();
    for class in schema.classes {
        let folder = path.join(class);
        let fail = |e: std::io::Error| {
            let (folder, classes) = (folder.display(), schema.classes.join(" and "));
            Error(format!("{folder}: expected a folder of .txt files (one of {classes}), got: {e}"))
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(fail)? {
            let file = entry.map_err(fail)?.path();
            if file.extension().is_some_and(|extension| extension == "txt") {
                files.push(file);
            }
        }
        if files.is_empty() {
            return Err(Error(format!("{}: expected .txt files, got none", folder.display())));
        }
        files.sort();
        all.extend(files.into_iter().map(|file| (*class, file)));
    }
    Ok(all)
}

fn read_text(path: &Path) -> Result<String, Error> {
    let fail = |what: String| Error(format!("{}: {what}", path.display()));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
    file.take(MAX_LINE as u64 + 1).read_to_end(&mut bytes).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if bytes.len() > MAX_LINE {
        return Err(fail("expected a text of at most 1 MiB, got a longer one".to_owned()));
    }
    String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Error(format!("{}:{line}: expected UTF-8, got an invalid byte; convert the file to UTF-8", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::SINGLE;
    use std::fs;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    #[test]
    fn texts_come_by_class_and_name() {
        let dir = folder(&[
            ("positive/1_9.txt", b"p1\n"),
            ("positive/0_8.txt", b"p0"),
            ("negative/5_1.txt", b"n5"),
            ("unsup/0_0.txt", b"u"),
            ("negative/notes.md", b"x"),
        ]);
        let rows: Vec<Row> = rows(dir.path(), &SINGLE).unwrap().map(Result::unwrap).collect();
        let got: Vec<_> = rows.iter().map(|row| (row.text.as_str(), row.label.as_deref().unwrap())).collect();
        assert_eq!(got, [("n5", "negative"), ("p0", "positive"), ("p1\n", "positive")]);
        assert_eq!(count(dir.path(), &SINGLE).unwrap(), 3);
    }

    #[test]
    fn errors_name_the_folder_or_file() {
        let half = folder(&[("positive/1.txt", b"p")]);
        let missing = rows(half.path(), &SINGLE).err().unwrap().0;
        assert!(
            missing.contains("negative: expected a folder of .txt files (one of negative and positive)"),
            "{missing}"
        );

        let empty = folder(&[("positive/1.txt", b"p"), ("negative/1.md", b"n")]);
        let none = rows(empty.path(), &SINGLE).err().unwrap().0;
        assert!(none.ends_with("negative: expected .txt files, got none"), "{none}");

        let long = vec![b'x'; MAX_LINE + 1];
        let bad = folder(&[("negative/1.txt", b"a\nb\xff"), ("positive/2.txt", &long)]);
        let messages: Vec<String> = rows(bad.path(), &SINGLE).unwrap().map(|row| row.unwrap_err().0).collect();
        assert!(messages[0].contains("1.txt:2: expected UTF-8"), "{}", messages[0]);
        assert!(messages[1].contains("2.txt: expected a text of at most 1 MiB"), "{}", messages[1]);
    }
}
