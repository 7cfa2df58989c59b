//! One text file per example, in one folder per class: the layout of the original IMDB archive.

use crate::input::Input;
use crate::lines::MAX_LINE;
use crate::table::{LABEL, Record, TEXT, Table};
use serde_json::{Map, Value};
use sparta_files as files;
use sparta_plugin::Error;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The texts of `path/<class>/*.txt`, class by class, each in the order of file names. The classes are the given ones
/// in their order, or all folders that hold texts; if there are none, the texts are in `path` itself and have no class.
/// Other folders and files are ignored. A file that cannot be read, is longer than 1 MiB or is not UTF-8 is an error of
/// the iterator.
///
/// # Errors
/// The folder of a given class is missing or has no text; there are no texts; a link leads out of its folder.
pub(crate) fn table(path: &Path, classes: Option<&[&str]>) -> Result<Table, Error> {
    let files = text_files(path, classes)?;
    let labelled = files.iter().any(|(class, _)| class.is_some());
    let columns = [Some(TEXT), labelled.then_some(LABEL)].into_iter().flatten().map(str::to_owned).collect();
    let records = files.into_iter().zip(1..).map(|((class, file), number)| {
        let text = Some((TEXT.to_owned(), Value::String(read_text(&file)?)));
        let label = class.map(|class| (LABEL.to_owned(), Value::String(class)));
        Ok(Record { number, values: Map::from_iter(text.into_iter().chain(label)) })
    });
    Ok(Table { columns: Some(columns), records: Box::new(records) })
}

/// The number of texts.
///
/// # Errors
/// As [`table`].
pub(crate) fn count(path: &Path, classes: Option<&[&str]>) -> Result<usize, Error> {
    Ok(text_files(path, classes)?.len())
}

fn text_files(path: &Path, classes: Option<&[&str]>) -> Result<Vec<(Option<String>, PathBuf)>, Error> {
    let of_class =
        |class: &str, files: Vec<PathBuf>| files.into_iter().map(|file| (Some(class.to_owned()), file)).collect();
    let Some(classes) = classes else {
        let mut all: Vec<(Option<String>, PathBuf)> = Vec::new();
        for class in class_folders(path)? {
            all.append(&mut of_class(&class, texts_in(&path.join(&class), "a class")?));
        }
        let own = texts_in(path, "a class")?;
        return match (all.is_empty(), own.is_empty()) {
            (true, true) => {
                Err(Error(format!("{}: expected .txt files, or a folder of them per class, got none", path.display())))
            }
            (false, false) => Err(Error(format!(
                "{}: expected .txt files or folders of them, got both; move `{}` away",
                path.display(),
                own[0].display()
            ))),
            (true, false) => Ok(own.into_iter().map(|file| (None, file)).collect()),
            (false, true) => Ok(all),
        };
    };
    let mut all = Vec::new();
    for class in classes {
        let folder = path.join(class);
        let files = texts_in(&folder, &format!("one of {}", classes.join(" and ")))?;
        if files.is_empty() {
            return Err(Error(format!("{}: expected .txt files, got none", folder.display())));
        }
        all.append(&mut of_class(class, files));
    }
    Ok(all)
}

/// The names of the folders that hold texts, sorted.
pub(crate) fn class_folders(path: &Path) -> Result<Vec<String>, Error> {
    let fail = |e: std::io::Error| Error(format!("{}: cannot be read: {e}", path.display()));
    let mut names = Vec::new();
    for entry in files::list(path).map_err(fail)? {
        let folder = files::is_dir(&entry) && !files::is_link(&entry);
        if folder && !texts_in(&entry, "a class")?.is_empty() {
            names.push(entry.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The `.txt` files of a folder, sorted.
fn texts_in(folder: &Path, what: &str) -> Result<Vec<PathBuf>, Error> {
    let fail =
        |e: std::io::Error| Error(format!("{}: expected a folder of .txt files ({what}), got: {e}", folder.display()));
    let mut texts = Vec::new();
    for file in files::list(folder).map_err(fail)? {
        if file.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        if files::is_link(&file) && leads_outside(folder, &file) {
            let file = file.display();
            return Err(Error(format!("{file}: a link that leads out of its folder; put the file itself here")));
        }
        texts.push(file);
    }
    Ok(texts)
}

/// Whether a link leads out of `folder` or nowhere: a downloaded archive must not pick other files of this
/// machine as texts.
fn leads_outside(folder: &Path, link: &Path) -> bool {
    match (files::canonical(folder), files::canonical(link)) {
        (Ok(folder), Ok(target)) => !target.starts_with(folder),
        _ => true,
    }
}

fn read_text(path: &Path) -> Result<String, Error> {
    let fail = |what: String| Error(format!("{}: {what}", path.display()));
    let mut bytes = Vec::new();
    let mut input = Input::open(path)?.reader.take(MAX_LINE as u64 + 1);
    input.read_to_end(&mut bytes).map_err(|e| fail(format!("cannot be read: {e}")))?;
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
    use std::fs;

    const CLASSES: Option<&[&str]> = Some(&["negative", "positive"]);

    fn texts(path: &Path, classes: Option<&[&str]>) -> Result<Vec<(String, Option<String>)>, Error> {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let values = |record: Record| (text(record.values.get(TEXT)).unwrap(), text(record.values.get(LABEL)));
        table(path, classes)?.records.map(|record| record.map(values)).collect()
    }

    fn owned((text, class): (&str, Option<&str>)) -> (String, Option<String>) {
        (text.to_owned(), class.map(str::to_owned))
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        crate::testing::write(dir.path(), files);
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
        let expected = [("n5", Some("negative")), ("p0", Some("positive")), ("p1\n", Some("positive"))];
        assert_eq!(texts(dir.path(), CLASSES).unwrap(), expected.map(owned));
        assert_eq!(count(dir.path(), CLASSES).unwrap(), 3);
        let all = texts(dir.path(), None).unwrap();
        assert_eq!((&all[..3], &all[3]), (&expected.map(owned)[..], &owned(("u", Some("unsup")))));
    }

    #[test]
    fn texts_without_folders_have_no_class() {
        let dir = folder(&[("2.txt", b"\xff\xfeb\0"), ("1.txt", b"\xef\xbb\xbfa "), ("more/notes.md", b"x")]);
        assert_eq!(texts(dir.path(), None).unwrap(), [("a ", None), ("b", None)].map(owned));
        fs::write(dir.path().join("more/3.txt"), "c").unwrap();
        assert!(texts(dir.path(), None).unwrap_err().0.contains("got both"));
        assert!(texts(folder(&[]).path(), None).unwrap_err().0.contains("got none"));
    }

    /// The original archive names files by id and rating, which are not used.
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
        let texts = || texts(dir.path(), CLASSES);
        let mut got: Vec<String> = texts().unwrap().into_iter().map(|(text, _)| text).collect();
        got.sort();
        assert_eq!(got, ["bytes", "dots", "huge", "long", "n", "negative", "negative"]);

        fs::create_dir(negative.join("1_1.txt")).unwrap();
        let message = texts().unwrap_err().0;
        assert!(message.contains("1_1.txt: cannot be opened: expected a regular file"), "{message}");
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
        let missing = table(half.path(), CLASSES).err().unwrap().0;
        assert!(
            missing.contains("negative: expected a folder of .txt files (one of negative and positive)"),
            "{missing}"
        );

        let empty = folder(&[("positive/1.txt", b"p"), ("negative/1.md", b"n")]);
        let none = table(empty.path(), CLASSES).err().unwrap().0;
        assert!(none.ends_with("negative: expected .txt files, got none"), "{none}");

        let long = vec![b'x'; MAX_LINE + 1];
        let bad = folder(&[("negative/1.txt", b"a\nb\xff"), ("positive/2.txt", &long)]);
        let messages: Vec<String> = table(bad.path(), CLASSES).unwrap().records.map(|row| row.unwrap_err().0).collect();
        assert!(messages[0].contains("1.txt:2: expected UTF-8"), "{}", messages[0]);
        assert!(messages[1].contains("2.txt: expected a text of at most 1 MiB"), "{}", messages[1]);
    }
}
