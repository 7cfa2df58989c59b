//! Which files make up the splits of a task: what the plugin looks for, and what it finds.

use crate::find::{Folder, folders};
use crate::format::Format;
use crate::part::{Part, State};
use crate::schema::Schema;
use sparta_plugin::Error;
use sparta_plugin::task::{OpenRequest, Take};

/// The file names of a task's splits in one format. `stem-*-of-*.parquet` stands for a set of shards.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub format: Format,
    /// Alternatives; the first that exists is the training split.
    pub train: &'static [&'static str],
    /// The development split is one file from each of these lists.
    pub dev: &'static [&'static [&'static str]],
    /// Alternatives for the labelled test split.
    pub test: &'static [&'static str],
}

/// Where the files of a task may be.
pub struct Search<'a> {
    pub request: &'a OpenRequest,
    pub schema: &'a Schema,
    /// Folder names below the user's directory, in order of preference; empty for the directory itself.
    pub places: &'a [&'a [&'a str]],
    /// In order of preference.
    pub layouts: &'a [Layout],
}

/// The files of one layout in one folder: a training split, if requested, and a development or a test split or both.
#[derive(Debug)]
pub struct Found {
    pub layout: Layout,
    pub train: Vec<Part>,
    pub dev: Vec<Part>,
    pub test: Vec<Part>,
    /// Names of development files that are missing although others exist.
    pub missing_dev: Vec<&'static str>,
    /// Sentences about files that exist but have no labels.
    pub notes: Vec<String>,
}

impl Found {
    /// Whether a development or test split was found and, if requested, the training split.
    fn is_complete(&self, train: bool) -> bool {
        (!train || !self.train.is_empty()) && (!self.dev.is_empty() || !self.test.is_empty())
    }

    /// All files.
    pub fn parts(&self) -> Vec<Part> {
        [self.train.as_slice(), &self.dev, &self.test].concat()
    }
}

/// The names of the files, for a recipe.
pub fn names(parts: &[Part]) -> Vec<String> {
    parts.iter().map(|part| part.name.clone()).collect()
}

/// The first layout of the search, in the first of its folders, that has a labelled training split, if requested, and a
/// labelled development or test split.
///
/// # Errors
/// Nothing was found: the message lists what was looked for and what exists. A file whose first row is malformed.
pub fn find(search: &Search) -> Result<Found, Error> {
    let folders = folders(&search.request.data, search.places)?;
    let needs_train = search.request.wants("train");
    let (mut notes, mut any_train) = (Vec::new(), false);
    // Files with a training split come first, so that every command takes the same ones.
    for train in if needs_train { &[true][..] } else { &[true, false] } {
        for layout in search.layouts {
            for folder in &folders {
                let mut found = collect(folder, layout)?;
                any_train |= !found.train.is_empty();
                if found.is_complete(*train) {
                    drop_unlabelled(&mut found, search)?;
                    if found.is_complete(*train) {
                        return Ok(found);
                    }
                    notes.append(&mut found.notes);
                }
            }
        }
    }
    let lacking = match any_train {
        _ if !needs_train => "labelled development or test split",
        false => "training split",
        true => "labelled development or test split beside a training split",
    };
    Err(missing(search, lacking, &folders, &notes))
}

fn collect(folder: &Folder, layout: &Layout) -> Result<Found, Error> {
    let first = |names: &[&str]| -> Result<Vec<Part>, Error> {
        for name in names {
            let parts = folder.parts(name, layout.format)?;
            if !parts.is_empty() {
                return Ok(parts);
            }
        }
        Ok(Vec::new())
    };
    let mut found = Found {
        layout: *layout,
        train: first(layout.train)?,
        dev: Vec::new(),
        test: first(layout.test)?,
        missing_dev: Vec::new(),
        notes: Vec::new(),
    };
    for names in layout.dev {
        let mut parts = first(names)?;
        if parts.is_empty() {
            found.missing_dev.extend(names.first());
        }
        found.dev.append(&mut parts);
    }
    Ok(found)
}

/// Checks the files of the splits that will be read; dev and test may stand in for each other, and dev may be drawn
/// from train.
fn drop_unlabelled(found: &mut Found, search: &Search) -> Result<(), Error> {
    let (schema, reads_train) = (search.schema, search.request.wants("train") || search.request.wants("dev"));
    for (split, read) in [(&mut found.train, reads_train), (&mut found.dev, true), (&mut found.test, true)] {
        for part in std::mem::take(split) {
            match if read { part.state(schema)? } else { State::Labelled } {
                State::Labelled => split.push(part),
                State::Unlabelled => {
                    let keys = schema.label.join("` or `");
                    found.notes.push(format!("{} has no labels in `{keys}` and is not used.", part.name));
                }
                State::Empty => return Err(Error(format!("{}: expected rows, got none", part.path.display()))),
            }
        }
    }
    Ok(())
}

fn missing(search: &Search, lacking: &str, folders: &[Folder], notes: &[String]) -> Error {
    let (task, data) = (&search.request.task, search.request.data.display());
    let places: Vec<String> =
        search.places.iter().filter(|place| !place.is_empty()).map(|place| place.join("/")).collect();
    let mut message =
        format!("task {task}: no {lacking} directly in {data} or in a folder {} there. Looked for:", places.join(", "));
    for layout in search.layouts {
        let dev: Vec<&str> = layout.dev.iter().flat_map(|names| names.iter().copied()).collect();
        let splits = [("train", layout.train), ("dev", dev.as_slice()), ("test", layout.test)];
        let splits = splits.iter().filter(|(_, names)| !names.is_empty());
        let splits: Vec<String> = splits.map(|(split, names)| format!("{split}: {}", names.join(" or "))).collect();
        message += &format!("\n  {}", splits.join("; "));
    }
    message += "\nFound:";
    for folder in folders {
        message += &format!("\n  in {}: {}", folder.path.display(), folder.contents());
    }
    for note in notes {
        message += &format!("\n  {note}");
    }
    Error(message)
}

/// How many examples of `parts` to draw for another split: `count`, or a fifth of them with a note if they are fewer
/// than twice as many.
///
/// # Errors
/// A file cannot be read, or there are fewer than two examples.
pub fn draw(parts: &[Part], count: usize, schema: &Schema, notes: &mut Vec<String>) -> Result<Take, Error> {
    let mut rows = 0;
    for part in parts {
        if rows < 2 * count {
            rows += part.count(schema, 2 * count - rows)?;
        }
    }
    if rows >= 2 * count {
        return Ok(Take::Draw { count });
    }
    let files = names(parts).join(", ");
    if rows < 2 {
        return Err(Error(format!("{files}: expected at least two examples to make two splits, got {rows}")));
    }
    let fifth = (rows / 5).max(1);
    notes.push(format!("{files}: {rows} examples are too few to draw {count}; {fifth} are drawn instead."));
    Ok(Take::Draw { count: fifth })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::SINGLE;
    use std::fs;

    const LAYOUTS: &[Layout] = &[
        Layout { format: Format::Tsv, train: &["train.tsv"], dev: &[&["a.tsv"], &["b.tsv"]], test: &[] },
        Layout {
            format: Format::Jsonl,
            train: &["train.jsonl"],
            dev: &[&["dev.jsonl", "valid.jsonl"]],
            test: &["test.jsonl"],
        },
    ];
    const ROWS: &str = "sentence\tlabel\nx\t1\ny\t0\n";
    const LINE: &str = "{\"text\":\"x\",\"label\":1}\n";

    fn found(files: &[(&str, &str)]) -> Result<Found, Error> {
        found_for(&[], files)
    }

    fn found_for(splits: &[&str], files: &[(&str, &str)]) -> Result<Found, Error> {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let places: &[&[&str]] = &[&[], &["sst2"]];
        let request = OpenRequest {
            splits: splits.iter().map(|s| s.to_string()).collect(),
            ..OpenRequest::new("sst2", dir.path())
        };
        find(&Search { request: &request, schema: &SINGLE, places, layouts: LAYOUTS })
    }

    #[test]
    fn the_preferred_complete_layout_wins() {
        let jsonl = [("train.jsonl", LINE), ("valid.jsonl", LINE)];
        let both = found(&[jsonl[0], jsonl[1], ("SST-2/train.tsv", ROWS), ("SST-2/b.tsv", ROWS)]).unwrap();
        assert_eq!(names(&both.parts()), ["SST-2/train.tsv", "SST-2/b.tsv"]);
        assert_eq!(both.missing_dev, ["a.tsv"]);
        let incomplete = found(&[jsonl[0], jsonl[1], ("SST-2/train.tsv", ROWS)]).unwrap();
        assert_eq!(names(&incomplete.parts()), ["train.jsonl", "valid.jsonl"]);
    }

    #[test]
    fn a_held_out_split_is_enough_if_only_it_is_read() {
        let alone = [("test.jsonl", LINE)];
        assert_eq!(names(&found_for(&["test"], &alone).unwrap().parts()), ["test.jsonl"]);
        assert!(found_for(&["train", "test"], &alone).is_err());
        // The training split is not looked into, but a folder that has one comes first.
        let broken = [("test.jsonl", LINE), ("SST-2/train.tsv", "no header\n"), ("SST-2/b.tsv", ROWS)];
        assert_eq!(names(&found_for(&["test"], &broken).unwrap().parts()), ["SST-2/train.tsv", "SST-2/b.tsv"]);
    }

    #[test]
    fn unlabelled_files_are_not_used() {
        let bare = "{\"text\":\"x\",\"label\":-1}\n";
        let with_dev = found(&[("train.jsonl", LINE), ("dev.jsonl", LINE), ("test.jsonl", bare)]).unwrap();
        assert!(with_dev.test.is_empty());
        assert_eq!(with_dev.notes, ["test.jsonl has no labels in `label` and is not used."]);
        let message = found(&[("train.jsonl", LINE), ("test.jsonl", bare)]).unwrap_err().0;
        assert!(message.ends_with("\n  test.jsonl has no labels in `label` and is not used."), "{message}");
        let no_train = found(&[("dev.jsonl", LINE)]).unwrap_err().0;
        assert!(no_train.starts_with("task sst2: no training split directly in "), "{no_train}");
    }

    #[test]
    fn a_missing_split_says_what_was_looked_for_and_found() {
        let message = found(&[("SST-2/train.tsv", ROWS), ("readme", "")]).unwrap_err().0;
        let head = "task sst2: no labelled development or test split beside a training split directly in ";
        assert!(message.starts_with(head), "{message}");
        for piece in [
            " or in a folder sst2 there. Looked for:\n  train: train.tsv; dev: a.tsv or b.tsv\n  train: train.jsonl; dev: \
             dev.jsonl or valid.jsonl; test: test.jsonl\nFound:\n",
            ": SST-2, readme\n",
            "SST-2: train.tsv",
        ] {
            assert!(message.contains(piece), "{message}");
        }
    }

    #[test]
    fn empty_and_malformed_files_are_errors() {
        let empty = found(&[("train.jsonl", ""), ("dev.jsonl", LINE)]).unwrap_err().0;
        assert!(empty.ends_with("train.jsonl: expected rows, got none"), "{empty}");
        let malformed = found(&[("train.jsonl", "{}\n"), ("dev.jsonl", LINE)]).unwrap_err().0;
        assert!(malformed.contains("train.jsonl:1: expected an object with the keys"), "{malformed}");
    }

    #[test]
    fn few_examples_give_a_fifth() {
        let dir = tempfile::tempdir().unwrap();
        let part = |name: &str, rows: usize| {
            let path = dir.path().join(name);
            fs::write(&path, LINE.repeat(rows)).unwrap();
            Part { name: name.to_owned(), path, format: Format::Jsonl }
        };
        let mut notes = Vec::new();
        let two = [part("a", 12), part("b", 8)];
        assert_eq!(draw(&two, 10, &SINGLE, &mut notes), Ok(Take::Draw { count: 10 }));
        assert!(notes.is_empty());
        assert_eq!(draw(&two, 11, &SINGLE, &mut notes), Ok(Take::Draw { count: 4 }));
        assert_eq!(notes, ["a, b: 20 examples are too few to draw 11; 4 are drawn instead."]);
        let message = draw(&[part("c", 1)], 10, &SINGLE, &mut notes).unwrap_err().0;
        assert_eq!(message, "c: expected at least two examples to make two splits, got 1");
    }
}
