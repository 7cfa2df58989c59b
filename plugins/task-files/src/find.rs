//! Finds files by name in the folders where a task's data may be.

use crate::format::Format;
use crate::part::Part;
use sparta_files as files;
use sparta_plugin::Error;
use std::path::{Path, PathBuf};

/// How a file name pattern marks a set of shards: `train-*-of-*.parquet` stands for
/// `train-00000-of-00002.parquet` and `train-00001-of-00002.parquet`.
const SHARDS: &str = "-*-of-*";

pub(crate) struct Folder {
    pub path: PathBuf,
    /// The path below the user's directory, with a final `/`; empty for that directory itself.
    prefix: String,
    /// Sorted.
    names: Vec<String>,
}

/// Those of the given places that exist below `data`. A place is a list of folder names from `data`
/// down, empty for `data` itself; names are compared by letters and digits only, so that `sst2` finds `SST-2`.
///
/// # Errors
/// `data` is not a directory that can be read.
pub(crate) fn folders(data: &Path, places: &[&[&str]]) -> Result<Vec<Folder>, Error> {
    let root = || Folder::read(data.to_owned(), String::new());
    let mut found = vec![root()?];
    for place in places.iter().filter(|place| !place.is_empty()) {
        let mut level = vec![root()?];
        for name in *place {
            level = level.iter().flat_map(|folder| folder.children(name)).collect();
        }
        found.append(&mut level);
    }
    Ok(found)
}

impl Folder {
    pub fn read(path: PathBuf, prefix: String) -> Result<Self, Error> {
        let fail = |e: std::io::Error| {
            let path = path.display();
            Error(format!("{path}: expected a directory with data files, got: {e}; check --data"))
        };
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut names: Vec<String> = files::list(&path).map_err(fail)?.iter().map(name).collect();
        names.sort();
        Ok(Folder { path, prefix, names })
    }

    /// The readable folders in this one whose name is like `name`.
    fn children(&self, name: &str) -> Vec<Folder> {
        let plain = |name: &str| name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
        let alike = self.names.iter().filter(|child| plain(child) == plain(name));
        let read = |child: &String| Folder::read(self.path.join(child), format!("{}{child}/", self.prefix)).ok();
        alike.filter_map(read).collect()
    }

    /// The file or folder of this name or, for `stem-*-of-*.parquet`, the shards in order; empty if there is none.
    ///
    /// # Errors
    /// Some shards of a set are missing, or there are two sets.
    pub fn parts(&self, name: &str, format: Format) -> Result<Vec<Part>, Error> {
        let part = |name: &String| Part { name: format!("{}{name}", self.prefix), path: self.path.join(name), format };
        if !name.contains(SHARDS) {
            return Ok(self.names.iter().filter(|known| *known == name).map(part).collect());
        }
        let shards: Vec<(usize, usize, &String)> =
            self.names.iter().filter_map(|known| shard(known, name).map(|(i, of)| (i, of, known))).collect();
        // The names are sorted and the numbers have leading zeros, so that a whole set reads 0, 1, 2, ...
        let whole = shards.iter().enumerate().all(|(i, shard)| shard.0 == i && shard.1 == shards.len());
        if !whole {
            let (path, got) = (self.path.join(name), shards.iter().map(|shard| shard.2.as_str()).collect::<Vec<_>>());
            let (path, got) = (path.display(), got.join(", "));
            return Err(Error(format!("{path}: expected all shards of one set, numbered from 0, got {got}")));
        }
        Ok(shards.iter().map(|shard| part(shard.2)).collect())
    }

    /// The files that are tables by their names, or all files if a format is given.
    pub fn tables(&self, format: Option<Format>) -> Vec<Part> {
        let part = |name: &String| {
            let path = self.path.join(name);
            let said = Format::of(&path).filter(|format| *format != Format::TextFolders);
            let format = format.filter(|_| files::is_file(&path)).or(said)?;
            (format != Format::TextFolders).then(|| Part { name: format!("{}{name}", self.prefix), path, format })
        };
        self.names.iter().filter_map(part).collect()
    }

    /// The folder's contents for messages: at most twelve names.
    pub fn contents(&self) -> String {
        let shown: Vec<&str> = self.names.iter().take(12).map(String::as_str).collect();
        match self.names.len() {
            0 => "nothing".to_owned(),
            n if n > shown.len() => format!("{} and {} more", shown.join(", "), n - shown.len()),
            _ => shown.join(", "),
        }
    }
}

/// The number and total in a file name that matches `pattern`; the hub may put a hash after the total.
fn shard(name: &str, pattern: &str) -> Option<(usize, usize)> {
    let (stem, extension) = pattern.split_once(SHARDS)?;
    let middle = name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(extension)?;
    let (number, total) = middle.split_once("-of-")?;
    let total = total.split_once('-').map_or(total, |(total, _hash)| total);
    Some((number.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;

    /// A directory with these files, each one letter long.
    pub fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        dir
    }

    fn names(folder: &Folder, name: &str) -> Result<Vec<String>, Error> {
        Ok(folder.parts(name, Format::Parquet)?.into_iter().map(|part| part.name).collect())
    }

    #[test]
    fn folders_are_found_by_letters_and_digits() {
        let dir = tree(&["SST-2/train.tsv", "glue/sst2/a", "sst", "other/SST-2/b"]);
        let found = folders(dir.path(), &[&[], &["sst2"], &["glue", "sst2"]]).unwrap();
        let prefixes: Vec<&str> = found.iter().map(|folder| folder.prefix.as_str()).collect();
        assert_eq!(prefixes, ["", "SST-2/", "glue/sst2/"]);
        assert_eq!(names(&found[1], "train.tsv").unwrap(), ["SST-2/train.tsv"]);
        assert_eq!(names(&found[0], "train.tsv").unwrap(), [""; 0]);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let dir = tree(&["file"]);
        for wrong in ["absent", "file"] {
            let message = folders(&dir.path().join(wrong), &[&[]]).err().unwrap().0;
            assert!(message.contains(&format!("{wrong}: expected a directory with data files, got: ")), "{message}");
        }
    }

    #[test]
    fn shards_come_in_order_and_whole() {
        let whole = tree(&[
            "train-00001-of-00002.parquet",
            "train-00000-of-00002.parquet",
            "validation-00000-of-00001-0123abc.parquet",
            "validation_matched-00000-of-00001.parquet",
        ]);
        let folder = &folders(whole.path(), &[&[]]).unwrap()[0];
        let expected = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"];
        assert_eq!(names(folder, "train-*-of-*.parquet").unwrap(), expected);
        let expected = ["validation-00000-of-00001-0123abc.parquet"];
        assert_eq!(names(folder, "validation-*-of-*.parquet").unwrap(), expected);
        assert_eq!(names(folder, "test-*-of-*.parquet").unwrap(), [""; 0]);

        let broken = tree(&["train-00001-of-00002.parquet"]);
        let message = names(&folders(broken.path(), &[&[]]).unwrap()[0], "train-*-of-*.parquet").unwrap_err().0;
        assert!(message.ends_with("expected all shards of one set, numbered from 0, got train-00001-of-00002.parquet"));
    }
}
