//! The files of a task without fixed ones: one table, or one for each split, found by name.

use crate::find::Folder;
use crate::folders::class_folders;
use crate::format::Format;
use crate::part::Part;
use sparta_files as files;
use sparta_plugin::Error;
use sparta_plugin::task::OpenRequest;
use std::path::Path;

/// The file names of the splits, without endings.
const NAMES: [(&str, &[&str]); 3] =
    [("train", &["train"]), ("dev", &["dev", "validation", "valid", "val"]), ("test", &["test"])];

/// Folders that the hub puts files in.
const INNER: [&str; 3] = ["data", "default", "plain_text"];

/// The files of a data set.
#[derive(Debug, PartialEq)]
pub enum Tables {
    /// Everything is in one file or folder of texts.
    One(Part),
    /// At least one of them has files.
    Splits { train: Vec<Part>, dev: Vec<Part>, test: Vec<Part> },
}

impl Tables {
    /// The files of train, dev and test. A single file is train or, in data that the model was not trained on, the
    /// split that is requested.
    pub fn splits(self, request: &OpenRequest) -> [Vec<Part>; 3] {
        match self {
            Tables::One(part) => match &request.splits[..] {
                [split] if request.other_data => {
                    NAMES.map(|(name, _)| Vec::from_iter((name == split).then(|| part.clone())))
                }
                _ => [vec![part], vec![], vec![]],
            },
            Tables::Splits { train, dev, test } => [train, dev, test],
        }
    }
}

/// The table at `data`, or the tables in that directory or in [`INNER`] there: files or folders of texts named after
/// the splits, or else the only table, or one folder of texts per class. A `format` overrides the files' endings.
///
/// # Errors
/// No table, or several for one split; a file whose name does not tell its format.
pub fn find_tables(data: &Path, format: Option<Format>) -> Result<Tables, Error> {
    if !files::is_dir(data) {
        let name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let format = format.map_or_else(|| Format::choose(None, data), Ok)?;
        return Ok(Tables::One(Part { name, path: data.to_owned(), format }));
    }
    let inner = INNER.map(|name| (data.join(name), format!("{name}/")));
    let folders =
        [(data.to_owned(), String::new())].into_iter().chain(inner.into_iter().filter(|(path, _)| files::is_dir(path)));
    let mut single = Vec::new();
    for (path, prefix) in folders {
        let folder = Folder::read(path, prefix)?;
        let splits = NAMES.map(|(split, names)| files(&folder, split, names, format));
        let [train, dev, test] = splits;
        let (train, dev, test) = (train?, dev?, test?);
        if [&train, &dev, &test].iter().any(|files| !files.is_empty()) {
            return Ok(Tables::Splits { train, dev, test });
        }
        single.append(&mut folder.tables(format));
    }
    match (&single[..], format) {
        ([only], _) => Ok(Tables::One(only.clone())),
        ([], None | Some(Format::TextFolders)) if !class_folders(data)?.is_empty() => {
            Ok(Tables::One(Part { name: ".".into(), path: data.to_owned(), format: Format::TextFolders }))
        }
        (several, _) => {
            let found: Vec<&str> = several.iter().map(|part| part.name.as_str()).collect();
            let got = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            Err(Error(format!(
                "{}: expected one table (.{}), or files called train, dev and test, or a folder of .txt files for each \
                 label, got {got}; name one file",
                data.display(),
                Format::ENDINGS.map(|(ending, _)| ending).join(", .")
            )))
        }
    }
}

/// The files of a split in a folder: one table, a folder of texts, or shards.
fn files(folder: &Folder, split: &str, names: &[&str], format: Option<Format>) -> Result<Vec<Part>, Error> {
    let is_one = |part: &Part| {
        let stem = Path::new(&part.name).file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        names.contains(&stem.as_str())
    };
    let mut found: Vec<Part> = folder.tables(format).into_iter().filter(is_one).collect();
    for name in names {
        let texts = folder.parts(name, Format::TextFolders)?;
        found.extend(texts.into_iter().filter(|part| class_folders(&part.path).is_ok_and(|found| !found.is_empty())));
    }
    if let [first, second, ..] = &found[..] {
        return Err(Error(format!(
            "{}: expected one file for {split}, got {} and {}; move one away, or choose with --format",
            folder.path.display(),
            first.name,
            second.name
        )));
    }
    if found.is_empty() && format.is_none_or(|format| format == Format::Parquet) {
        for name in names {
            found = folder.parts(&format!("{name}-*-of-*.parquet"), Format::Parquet)?;
            if !found.is_empty() {
                break;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find::tests::tree;

    /// The file names of train, dev and test, or of the only table.
    fn found(files: &[&str], format: Option<Format>) -> Result<String, String> {
        let names = |parts: &[Part]| parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(" ");
        match find_tables(tree(files).path(), format).map_err(|e| e.0)? {
            Tables::One(part) => Ok(format!("{} {:?}", part.name, part.format)),
            Tables::Splits { train, dev, test } => Ok([train, dev, test].map(|parts| names(&parts)).join("|")),
        }
    }

    #[test]
    fn splits_are_found_by_name() {
        assert_eq!(
            found(&["train.csv", "Validation.tsv", "test.json", "readme.md"], None).unwrap(),
            "train.csv|Validation.tsv|test.json"
        );
        let shards = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "README.md"];
        assert_eq!(found(&shards, None).unwrap(), format!("{} {}||", shards[0], shards[1]));
        assert_eq!(found(&["train/a/1.txt", "train/b/2.txt", "test/a/3.txt"], None).unwrap(), "train||test");
        assert_eq!(found(&["train.dat", "train.csv"], Some(Format::Tsv)).unwrap_err().matches("train").count(), 3);
    }

    #[test]
    fn one_table_or_folders_of_classes() {
        assert_eq!(found(&["my reviews.csv", "notes.md"], None).unwrap(), "my reviews.csv Csv");
        assert_eq!(found(&["good/1.txt", "bad/2.txt"], None).unwrap(), ". TextFolders");
        let several = found(&["a.csv", "b.csv"], None).unwrap_err();
        assert!(several.contains("got a.csv, b.csv; name one file"), "{several}");
        assert!(found(&["a.xlsx"], None).unwrap_err().contains("got none"));
        let dir = tree(&["a.dat"]);
        assert!(find_tables(&dir.path().join("a.dat"), None).unwrap_err().0.contains("--format"));
        assert!(find_tables(&dir.path().join("a.dat"), Some(Format::Csv)).is_ok());
    }
}
