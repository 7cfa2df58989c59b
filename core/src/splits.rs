//! Makes train, dev and test from the parts of a data set, by the task's recipe and the seed.

mod read;
mod share;

use crate::method::philox::Stream;
use crate::{Error, Result};
use read::read;
use serde::{Deserialize, Serialize};
use sparta_plugin::task::{self, Dataset, Example, Recipe, Take, TaskInfo};
use std::collections::{BTreeMap, HashSet};

pub use read::{Open, Source};

/// The three splits, and their origins.
#[derive(Debug)]
pub struct Splits {
    /// The task as determined by the data.
    pub task: TaskInfo,
    pub train: Vec<Example>,
    pub dev: Vec<Example>,
    pub test: Vec<Example>,
    pub origins: Origins,
}

/// Descriptions of the splits' origins, for the plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Origins {
    pub train: String,
    pub dev: String,
    pub test: String,
    /// Substitutes for missing splits, and other remarks.
    pub notes: Vec<String>,
}

/// The names of the splits.
pub const SPLITS: [&str; 3] = ["train", "dev", "test"];

/// A data set with its recipe, before any example is read.
pub struct Opened<'a> {
    source: &'a Source<'a>,
    dataset: Box<dyn Dataset>,
    recipe: Recipe,
    /// The task as determined by the data.
    pub task: TaskInfo,
}

/// Opens a data set of the `described` task.
///
/// Errors: those of the plugin; a recipe with an example in two splits.
pub fn open<'a>(source: &'a Source, described: &TaskInfo) -> Result<Opened<'a>> {
    let dataset = (source.open)().map_err(|e| Error::Data(e.to_string()))?;
    let recipe = dataset.recipe();
    check_recipe(&recipe)?;
    let task = recipe.task.as_ref().unwrap_or(described).clone();
    Ok(Opened { source, dataset, recipe, task })
}

/// Reads each part of the wanted splits once and distributes its examples; the other splits stay empty.
///
/// If a part has fewer than three times the number to draw, a fifth of it is drawn instead, with a note. Errors: a
/// malformed row; an empty split, unless the recipe leaves out dev or test; an example that does not suit the task;
/// examples that take too much memory, see [`Source`].
pub fn load(opened: Opened, wanted: &[&str], seed: u64) -> Result<Splits> {
    let Opened { source, dataset, recipe, task } = opened;
    let sources = [("train", &recipe.train), ("dev", &recipe.dev), ("test", &recipe.test)];
    let mut uses: BTreeMap<String, usize> = BTreeMap::new();
    let mut names: Vec<String> = Vec::new();
    let wanted_sources = sources.iter().filter(|(split, _)| wanted.contains(split));
    for part in wanted_sources.flat_map(|(_, source)| &source.parts) {
        let count = uses.entry(part.clone()).or_default();
        if *count == 0 {
            names.push(part.clone());
        }
        *count += 1;
    }
    let parts = read(source, dataset, &names, &task)?;
    let mut dealer = Dealer { seed, wanted, parts, uses, notes: recipe.notes.clone() };
    let (train, train_origin) = dealer.deal("train", &recipe.train, &recipe)?;
    let (dev, dev_origin) = dealer.deal("dev", &recipe.dev, &recipe)?;
    let (test, test_origin) = dealer.deal("test", &recipe.test, &recipe)?;
    let mut notes = dealer.notes;
    let train_parts = &recipe.train.parts;
    for (split, source, examples) in [("dev", &recipe.dev, &dev), ("test", &recipe.test, &test)] {
        if source.parts.iter().all(|part| !train_parts.contains(part)) {
            notes.extend(shared(split, &source.parts, examples, &train, train_parts));
        }
    }
    let origins = Origins { train: train_origin, dev: dev_origin, test: test_origin, notes };
    Ok(Splits { task, train, dev, test, origins })
}

fn texts(example: &Example) -> Vec<&str> {
    example.texts().collect()
}

/// A note on the texts that another file shares with those of train; `None` if there are none.
fn shared(
    split: &str,
    parts: &[String],
    examples: &[Example],
    train: &[Example],
    train_parts: &[String],
) -> Option<String> {
    let held_out: HashSet<Vec<&str>> = examples.iter().map(texts).collect();
    let seen: HashSet<Vec<&str>> = train.iter().map(texts).filter(|texts| held_out.contains(texts)).collect();
    let count = examples.iter().filter(|example| seen.contains(&texts(example))).count();
    (count > 0).then(|| {
        format!(
            "{count} of the {} examples of {split}, in {}, have texts that are also in {}: they say little about new texts",
            examples.len(),
            parts.join(" + "),
            train_parts.join(" + ")
        )
    })
}

/// A random order of `0..len` (Fisher-Yates), a function of seed and purpose alone.
pub fn permutation(seed: u64, purpose: &str, name: &str, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    let mut words = Stream::new(seed, purpose, name).words();
    for i in (1..len).rev() {
        let word = words.next().unwrap_or_default();
        order.swap(i, ((u64::from(word) * (i as u64 + 1)) >> 32) as usize);
    }
    order
}

/// At most `cap` items, drawn by seed, in their old order.
pub fn draw<T>(items: Vec<T>, cap: Option<usize>, seed: u64, name: &str) -> Vec<T> {
    let Some(cap) = cap.filter(|&cap| cap < items.len()) else { return items };
    let mut chosen = permutation(seed, "cap", name, items.len());
    chosen.truncate(cap);
    pick(items, chosen)
}

struct Dealer<'a> {
    seed: u64,
    wanted: &'a [&'a str],
    parts: BTreeMap<String, Vec<Example>>,
    /// How many splits are still to be made from each part.
    uses: BTreeMap<String, usize>,
    notes: Vec<String>,
}

impl Dealer<'_> {
    fn deal(&mut self, split: &str, source: &task::Source, recipe: &Recipe) -> Result<(Vec<Example>, String)> {
        if !self.wanted.contains(&split) {
            return Ok((Vec::new(), "not read".into()));
        }
        if source.parts.is_empty() && split != "train" {
            return Ok((Vec::new(), "none".into()));
        }
        let examples = self.take(&source.parts);
        let total = examples.len();
        let name = source.parts.join(" + ");
        let drawn = [&recipe.train, &recipe.dev, &recipe.test].into_iter().find_map(|s| match s.take {
            Take::Draw { count } if s.parts == source.parts => Some(count),
            _ => None,
        });
        let count = drawn.map_or(0, |count| self.affordable(count, total, &name));
        let (chosen, origin) = match source.take {
            Take::All => (examples, format!("all of {name}")),
            Take::Draw { .. } => {
                let mut order = permutation(self.seed, "split", &name, total);
                order.truncate(count);
                (pick(examples, order), format!("{count} drawn from {name}"))
            }
            Take::Rest { cap } => {
                let order = permutation(self.seed, "split", &name, total).split_off(count.min(total));
                let rest = draw(pick(examples, order), cap, self.seed, split);
                let capped = cap.filter(|&cap| total - count > cap).map(|cap| format!(", at most {cap}"));
                (rest, format!("the rest of {name}{}", capped.unwrap_or_default()))
            }
            Take::Share { from, to } => {
                let places = share::places(&examples, self.seed, &name);
                let chosen = (0..total).filter(|&i| (from..to).contains(&places[i])).collect();
                (pick(examples, chosen), format!("{:.0} % of {name}, drawn by seed", 100.0 * (to - from)))
            }
        };
        if chosen.is_empty() && split != "train" && matches!(source.take, Take::Share { .. }) {
            return Ok((Vec::new(), format!("none, as {name} has too few different examples")));
        }
        if chosen.is_empty() {
            return Err(Error::Data(format!("the {split} split is empty: {origin} ({total} examples)")));
        }
        Ok((chosen, origin))
    }

    fn affordable(&mut self, count: usize, total: usize, name: &str) -> usize {
        if count.saturating_mul(3) <= total {
            return count;
        }
        let less = (total / 5).max(1);
        let note = format!("{name} has only {total} examples: {less} are drawn from it instead of {count}");
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
        less
    }

    /// The examples of these parts; those that no other split needs are moved out.
    fn take(&mut self, parts: &[String]) -> Vec<Example> {
        let mut examples = Vec::new();
        for part in parts {
            let uses = self.uses.entry(part.clone()).or_default();
            *uses = uses.saturating_sub(1);
            match uses {
                0 => examples.extend(self.parts.remove(part).unwrap_or_default()),
                _ => examples.extend_from_slice(self.parts.get(part).map_or(&[], Vec::as_slice)),
            }
        }
        examples
    }
}

/// Errors: two splits share a part, but are neither a draw and its rest nor disjoint shares.
fn check_recipe(recipe: &Recipe) -> Result<()> {
    let splits = [("train", &recipe.train), ("dev", &recipe.dev), ("test", &recipe.test)];
    for (i, (name, source)) in splits.iter().enumerate() {
        if let Some(part) = source.parts.iter().enumerate().find(|(k, part)| source.parts[..*k].contains(part)) {
            return Err(Error::Data(format!("the {name} split of the task's recipe names {} twice", part.1)));
        }
        for (other, earlier) in &splits[..i] {
            let Some(shared) = source.parts.iter().find(|part| earlier.parts.contains(part)) else { continue };
            use Take::{Draw, Rest, Share};
            let apart = match (earlier.take, source.take) {
                (Draw { .. }, Rest { .. }) | (Rest { .. }, Draw { .. }) => true,
                (Share { from: a, to: b }, Share { from: c, to: d }) => b <= c || d <= a,
                _ => false,
            };
            if !apart || source.parts != earlier.parts {
                return Err(Error::Data(format!(
                    "the {other} and {name} splits of the task's recipe share examples of {shared}: {earlier:?} and \
                     {source:?}; the plugin must draw one of them and leave the rest to the other"
                )));
            }
        }
    }
    Ok(())
}

/// The chosen items in ascending order of their positions.
fn pick<T>(items: Vec<T>, mut chosen: Vec<usize>) -> Vec<T> {
    chosen.sort_unstable();
    let mut next = chosen.into_iter().peekable();
    let numbered = items.into_iter().enumerate();
    numbered.filter_map(|(i, item)| next.next_if_eq(&i).map(|_| item)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_plugin::task::Source as Part;
    use sparta_plugin::task::{Examples, Target};
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Clone)]
    struct Fake {
        recipe: Recipe,
        size: usize,
    }

    impl Dataset for Fake {
        fn recipe(&self) -> Recipe {
            self.recipe.clone()
        }

        fn examples(&self, part: &str) -> std::result::Result<Examples<'_>, sparta_plugin::Error> {
            let part = part.to_owned();
            Ok(Box::new(
                (0..self.size)
                    .map(move |i| Ok(Example { text: format!("{part} {i}"), label: 1, ..Example::default() })),
            ))
        }
    }

    fn source(part: &str, take: Take) -> Part {
        Part { parts: vec![part.into()], take }
    }

    fn read_all(open: Open, wanted: &[&str], task: &TaskInfo, seed: u64) -> Result<Splits> {
        let source = Source::new(open, Path::new("nowhere"));
        load(super::open(&source, task)?, wanted, seed)
    }

    fn deal(fake: &Fake, classes: usize, seed: u64) -> Result<Splits> {
        read_all(&|| Ok(Box::new(fake.clone())), &SPLITS, &task(classes), seed)
    }

    fn task(classes: usize) -> TaskInfo {
        TaskInfo {
            id: "t".into(),
            title: "T".into(),
            labels: (0..classes).map(|i| i.to_string()).collect(),
            target: Some(Target::Class),
            weights: vec![],
            metrics: vec![],
            primary: String::new(),
            pair: false,
            prompt: None,
        }
    }

    fn fake(size: usize) -> Fake {
        let recipe = Recipe {
            train: source("train", Take::Rest { cap: Some(500) }),
            dev: source("train", Take::Draw { count: 100 }),
            test: source("dev", Take::All),
            notes: vec![],
            task: None,
        };
        Fake { recipe, size }
    }

    #[test]
    fn dev_is_drawn_off_train_and_never_overlaps() {
        let splits = deal(&fake(700), 2, 7).unwrap();
        assert_eq!((splits.train.len(), splits.dev.len(), splits.test.len()), (500, 100, 700));
        assert!(splits.dev.iter().all(|e| !splits.train.contains(e)));
        let other = deal(&fake(700), 2, 8).unwrap();
        assert_ne!(splits.dev, other.dev, "another seed draws another dev split");
        assert_eq!(splits.dev, deal(&fake(700), 2, 7).unwrap().dev);
    }

    #[test]
    fn a_small_part_gives_a_fifth_and_a_note() {
        let splits = deal(&fake(50), 2, 7).unwrap();
        assert_eq!((splits.train.len(), splits.dev.len()), (40, 10));
        assert!(splits.origins.notes[0].contains("only 50"), "{:?}", splits.origins.notes);
    }

    #[test]
    fn labels_outside_the_task_are_refused() {
        for labels in [0, 1] {
            let error = deal(&fake(50), labels, 7).unwrap_err().to_string();
            assert!(error.contains(&format!("label 1, expected less than {labels}")), "{error}");
        }
    }

    #[test]
    fn shares_of_one_part_are_apart() {
        let share = |from, to| source("train", Take::Share { from, to });
        let recipe = |dev| Recipe { train: share(0.0, 0.8), dev, test: share(0.9, 1.0), notes: vec![], task: None };
        let splits = deal(&Fake { recipe: recipe(share(0.8, 0.9)), size: 100 }, 2, 7).unwrap();
        assert_eq!((splits.train.len(), splits.dev.len(), splits.test.len()), (80, 10, 10));
        assert_eq!(splits.origins.dev, "10 % of train, drawn by seed");
        let few = deal(&Fake { recipe: recipe(share(0.8, 0.9)), size: 2 }, 2, 7).unwrap();
        assert_eq!((few.train.len(), few.dev.len(), few.test.len()), (2, 0, 0));
        let overlapping = deal(&Fake { recipe: recipe(share(0.7, 0.9)), size: 100 }, 2, 7).unwrap_err().to_string();
        assert!(overlapping.contains("share examples of train"), "{overlapping}");
    }

    /// Texts that are numbered from a different start in each part.
    struct Overlapping(Recipe);

    impl Dataset for Overlapping {
        fn recipe(&self) -> Recipe {
            self.0.clone()
        }

        fn examples(&self, part: &str) -> std::result::Result<Examples<'_>, sparta_plugin::Error> {
            let start = if part == "test" { 98 } else { 0 };
            Ok(Box::new(
                (start..start + 100).map(|i| Ok(Example { text: (i % 150).to_string(), ..Example::default() })),
            ))
        }
    }

    #[test]
    fn texts_of_test_that_are_also_in_train_are_counted() {
        let recipe = |test: &str, train: Take, take: Take| Recipe {
            train: source("train", train),
            dev: Part { parts: vec![], take: Take::All },
            test: source(test, take),
            notes: vec![],
            task: None,
        };
        let notes = |recipe: Recipe| {
            let open = || Ok(Box::new(Overlapping(recipe.clone())) as Box<dyn Dataset>);
            read_all(&open, &SPLITS, &task(2), 7).unwrap().origins.notes
        };
        // 98, 99 and again 0 to 47 of 150.
        let found = notes(recipe("test", Take::All, Take::All));
        assert!(found[0].starts_with("50 of the 100 examples of test, in test, have texts that are also in train"));
        let share = |from, to| Take::Share { from, to };
        assert!(notes(recipe("train", share(0.0, 0.5), share(0.5, 1.0))).is_empty());
    }

    #[test]
    fn only_wanted_splits_are_read() {
        let test = read_all(&|| Ok(Box::new(fake(700))), &["test"], &task(2), 7).unwrap();
        assert_eq!((test.train.len(), test.dev.len(), test.test.len()), (0, 0, 700));
        assert_eq!(test.test, deal(&fake(700), 2, 7).unwrap().test);
        let dev = read_all(&|| Ok(Box::new(fake(700))), &["dev"], &task(2), 7).unwrap();
        assert_eq!(dev.dev, deal(&fake(700), 2, 7).unwrap().dev);
    }

    /// Examples without end.
    struct Flood<'a>(&'a AtomicUsize);

    impl Dataset for Flood<'_> {
        fn recipe(&self) -> Recipe {
            fake(0).recipe
        }

        fn examples(&self, _: &str) -> std::result::Result<Examples<'_>, sparta_plugin::Error> {
            let example = || Example { text: "x".repeat(1 << 20), ..Example::default() };
            Ok(Box::new(std::iter::repeat_with(move || {
                self.0.fetch_add(1, Ordering::Relaxed);
                Ok(example())
            })))
        }
    }

    #[test]
    fn a_data_set_without_end_is_refused() {
        static READ: AtomicUsize = AtomicUsize::new(0);
        let message = read_all(&|| Ok(Box::new(Flood(&READ))), &SPLITS, &task(2), 7).unwrap_err().to_string();
        assert!(message.contains("more than 512.0 MiB"), "{message}");
        assert!(READ.load(Ordering::Relaxed) < 600);
    }

    #[test]
    fn dev_and_test_may_be_missing() {
        let none = || Part { parts: vec![], take: Take::All };
        let recipe = Recipe { train: source("train", Take::All), dev: none(), test: none(), notes: vec![], task: None };
        let splits = deal(&Fake { recipe, size: 3 }, 2, 7).unwrap();
        assert_eq!((splits.train.len(), splits.dev.len(), splits.test.len()), (3, 0, 0));
        assert_eq!(splits.origins.dev, "none");
    }

    #[test]
    fn no_example_is_in_two_splits() {
        let all = source("train", Take::All);
        let (draw, rest) = (source("train", Take::Draw { count: 10 }), source("train", Take::Rest { cap: None }));
        let (dev, both) =
            (source("dev", Take::All), Part { parts: vec!["dev".into(), "train".into()], ..rest.clone() });
        let check = |train: &Part, dev: &Part, test: &Part| {
            let [train, dev, test] = [train, dev, test].map(Part::clone);
            let recipe = Recipe { train, dev, test, notes: vec![], task: None };
            deal(&Fake { recipe, size: 100 }, 2, 7).map(drop).map_err(|e| e.to_string())
        };
        check(&rest, &draw, &dev).unwrap();
        check(&draw, &rest, &dev).unwrap();
        for (train, dev, test, part) in [
            (&all, &draw, &dev, "the train and dev splits"),
            (&rest, &all, &dev, "the train and dev splits"),
            (&all, &dev, &dev, "the dev and test splits"),
            (&draw, &draw, &dev, "the train and dev splits"),
            (&rest, &draw, &rest, "the train and test splits"),
            (&both, &draw, &dev, "the train and dev splits"),
        ] {
            let error = check(train, dev, test).unwrap_err();
            assert!(error.contains(part) && error.contains("share examples of"), "{error}");
        }
        let twice = Part { parts: vec!["train".into(), "train".into()], take: Take::All };
        assert!(check(&twice, &dev, &source("x", Take::All)).unwrap_err().contains("twice"));
    }

    #[test]
    fn pairs_are_for_tasks_of_pairs() {
        let pairs = TaskInfo { pair: true, ..task(2) };
        let error = read_all(&|| Ok(Box::new(fake(50))), &SPLITS, &pairs, 7).unwrap_err().to_string();
        assert!(error.contains("train, example 1: expected a pair of texts for task t"), "{error}");
    }

    #[test]
    fn caps_draw_by_seed() {
        let drawn = draw((0..100).collect(), Some(10), 3, "train");
        assert_eq!(drawn.len(), 10);
        assert!(drawn.is_sorted() && drawn != (0..10).collect::<Vec<_>>());
    }
}
