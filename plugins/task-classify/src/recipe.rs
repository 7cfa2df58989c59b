//! Which file is which split, and what stands in for missing ones.

use sparta_plugin::Error;
use sparta_plugin::task::{OpenRequest, Recipe, Source, Take};
use sparta_task_files::{Part, Tables, names};

/// The files of each split.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    pub train: Vec<Part>,
    pub dev: Vec<Part>,
    pub test: Vec<Part>,
    /// Whether all three are shares of `train`.
    pub cut: bool,
}

/// # Errors
/// The table of a requested split is missing.
pub(crate) fn files(tables: Tables, request: &OpenRequest) -> Result<Files, Error> {
    match tables {
        one @ Tables::One(_) if request.other_data && request.splits.len() == 1 => {
            let [train, dev, test] = one.splits(request);
            Ok(Files { train, dev, test, cut: false })
        }
        Tables::One(part) => Ok(Files { train: vec![part], cut: true, ..Files::default() }),
        Tables::Splits { train, dev, test } => {
            if train.is_empty() && request.wants("train") {
                let there = [names(&dev), names(&test)].concat().join(", ");
                let data = request.data.display();
                return Err(Error(format!("{data}: expected a table called train, got only {there}")));
            }
            let cut = dev.is_empty() && test.is_empty();
            Ok(Files { train, dev, test, cut })
        }
    }
}

impl Files {
    pub fn all(&self) -> impl Iterator<Item = &Part> {
        [&self.train, &self.dev, &self.test].into_iter().flatten()
    }

    /// Leaves out a file.
    pub fn remove(&mut self, part: &Part) {
        for split in [&mut self.train, &mut self.dev, &mut self.test] {
            split.retain(|other| other != part);
        }
        self.cut |= self.dev.is_empty() && self.test.is_empty();
    }

    /// A single file is split by the seed into train, dev and test; if only dev is missing, it is drawn from train.
    pub fn recipe(&self, mut notes: Vec<String>) -> Recipe {
        let all = |parts: &[Part]| Source { parts: names(parts), take: Take::All };
        let share = |from, to| Source { parts: names(&self.train), take: Take::Share { from, to } };
        let train = names(&self.train).join(", ");
        let (train, dev, test) = if self.cut && !self.train.is_empty() {
            notes.push(format!(
                "{train} is split by the seed into 80 % train, 10 % dev and 10 % test: each label gets its share, and equal texts \
                 stay together."
            ));
            (share(0.0, 0.8), share(0.8, 0.9), share(0.9, 1.0))
        } else if self.dev.is_empty() && !self.train.is_empty() && !self.test.is_empty() {
            notes.push(format!("There is no dev table: 10 % of {train} are drawn for it by the seed."));
            (share(0.0, 0.9), share(0.9, 1.0), all(&self.test))
        } else {
            (all(&self.train), all(&self.dev), all(&self.test))
        };
        Recipe { train, dev, test, notes, task: None }
    }
}
