//! One text file an example, in one folder a class: the layout of the original IMDB archive.

use crate::lines::{self, MAX_LINE};
use crate::part::{Row, Rows};
use crate::schema::Schema;
use sparta_plugin::Error;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The texts of `path/<class>/*.txt`, class by class in the order of the labels, each in the order of the file names.
/// Other folders and files are ignored.
///
/// # Errors
/// The folder of a class is missing or has no text, or a link that leads out of it. A file that cannot be read, is longer
/// than 1 MiB or is not UTF-8 is an error of the iterator.
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
            let entry = entry.map_err(fail)?;
            let file = entry.path();
            if file.extension().is_none_or(|extension| extension != "txt") {
                continue;
            }
            if entry.file_type().map_err(fail)?.is_symlink() && leads_outside(&folder, &file) {
                let file = file.display();
                return Err(Error(format!("{file}: a link that leads out of its folder; put the file itself here")));
            }
            files.push(file);
        }
        if files.is_empty() {
            return Err(Error(format!("{}: expected .txt files, got none", folder.display())));
        }
        files.sort();
        all.extend(files.into_iter().map(|file| (*class, file)));
    }
    Ok(all)
}

/// Whether a link ends elsewhere than in `folder`, or nowhere: a downloaded archive must not choose other files of this
/// machine as texts.
fn leads_outside(folder: &Path, link: &Path) -> bool {
    match (folder.canonicalize(), link.canonicalize()) {
        (Ok(folder), Ok(target)) => !target.starts_with(folder),
        _ => true,
    }
}

fn read_text(path: &Path) -> Result<String, Error> {
    let fail = |what: String| Error(format!("{}: {what}", path.display()));
    let mut bytes = Vec::new();
    lines::open(path)?
        .take(MAX_LINE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| fail(format!("cannot be read: {e}")))?;
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

    /// The original archive names files by id and rating; nothing is read out of the names.
    #[cfg(unix)]
    #[test]
    fn names_are_not_trusted() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::fs::symlink;
        let dir = folder(&[
            ("positive/99999999999999999999_300.txt", b"huge"),
            ("positive/..txt", b"dots"),
            ("positive/-1_-1.txt", b"negative"),
            ("negative/0_1.txt", b"n"),
            ("secret", b"s"),
        ]);
        let [positive, negative] = ["positive", "negative"].map(|class| dir.path().join(class));
        fs::write(positive.join(format!("{}.txt", "9".repeat(200))), "long").unwrap();
        fs::write(positive.join(OsStr::from_bytes(b"\xff\xfe_10.txt")), "bytes").unwrap();
        symlink("-1_-1.txt", positive.join("link.txt")).unwrap();
        let texts = || -> Result<Vec<Row>, Error> { rows(dir.path(), &SINGLE)?.collect() };
        let mut got: Vec<String> = texts().unwrap().into_iter().map(|row| row.text).collect();
        got.sort();
        assert_eq!(got, ["bytes", "dots", "huge", "long", "n", "negative", "negative"]);

        fs::create_dir(negative.join("1_1.txt")).unwrap();
        let message = texts().unwrap_err().0;
        assert!(message.contains("1_1.txt: cannot be opened: expected a file"), "{message}");
        fs::remove_dir(negative.join("1_1.txt")).unwrap();
        for target in ["../secret", "/dev/zero", "nowhere"] {
            let link = negative.join("2_1.txt");
            symlink(target, &link).unwrap();
            let message = texts().unwrap_err().0;
            assert!(message.contains("2_1.txt: a link that leads out of its folder"), "{message}");
            fs::remove_file(link).unwrap();
        }
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
