//! A task on data that its author gives.

use super::{Ending, Outcome, check_message, check_no_panic, defaults, failed, passed, settings};
use sparta_core::plugin::LoadedTask;
use sparta_core::splits::{self, SPLITS, Source};
use sparta_plugin::options::Options;
use sparta_plugin::task::{Dataset, Example, OpenRequest, Task, TaskInfo};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A task and the data that it is to read.
pub struct Subject {
    pub plugin: Arc<LoadedTask>,
    pub info: TaskInfo,
    pub data: Option<PathBuf>,
}

type Check = fn(&Subject) -> Outcome;

pub const TESTS: &[(&str, Check)] = &[
    ("options", options),
    ("recipe", recipe),
    ("examples", examples),
    ("the same each time", deterministic),
    ("open and close", close),
    ("wrong requests", wrong_requests),
];

/// Data sets that are opened and closed again, at least one of which would be missed if handles were leaked or mixed up.
const OPENINGS: usize = 20;

impl Subject {
    fn request(&self, data: &Path, options: Options) -> OpenRequest {
        OpenRequest { options, ..OpenRequest::new(self.info.id.as_str(), data) }
    }

    fn open(&self, data: &Path) -> Result<Box<dyn Dataset>, String> {
        let request = self.request(data, defaults(&self.plugin.info().options));
        self.plugin.open(&request).map_err(|e| e.to_string())
    }

    /// The data, or why the test does not apply.
    fn data(&self) -> Result<&Path, Ending> {
        self.data.as_deref().ok_or_else(|| Ending::Skipped("there is no data; give --data DIR".into()))
    }
}

/// The parts of a recipe, each once.
fn parts(dataset: &dyn Dataset) -> BTreeSet<String> {
    let recipe = dataset.recipe();
    [recipe.train, recipe.dev, recipe.test].into_iter().flat_map(|source| source.parts).collect()
}

/// Every example of every part.
fn all(dataset: &dyn Dataset) -> Result<Vec<(String, Vec<Example>)>, String> {
    let read = |part: String| {
        let examples = dataset.examples(&part).and_then(|examples| examples.collect::<Result<Vec<_>, _>>());
        examples.map(|examples| (part, examples)).map_err(|e| e.to_string())
    };
    parts(dataset).into_iter().map(read).collect()
}

/// Each option at the ends of its range is accepted or refused with a message.
fn options(subject: &Subject) -> Outcome {
    let declared = &subject.plugin.info().options;
    if declared.is_empty() {
        return Err(Ending::Skipped("it has no options".into()));
    }
    let data = subject.data()?;
    let mut refused = Vec::new();
    for options in settings(declared) {
        if let Err(error) = subject.plugin.open(&subject.request(data, options.clone())) {
            check_no_panic(&format!("`open` with {options:?}"), &error)?;
            refused.push(error.0);
        }
    }
    match refused.len() {
        0 => passed(),
        n => Ok(format!("{n} settings at the ends of ranges are refused: {}", refused[0])),
    }
}

/// The host makes splits from it: no example in two of them, and some to train on.
fn recipe(subject: &Subject) -> Outcome {
    let data = subject.data()?;
    let request = subject.request(data, defaults(&subject.plugin.info().options));
    let open = || subject.plugin.open(&request);
    let source = Source::new(&open, data);
    let opened = splits::open(&source, &subject.info).map_err(|e| e.to_string())?;
    let (named, recipe) = (opened.task.clone(), subject.open(data)?.recipe());
    let sources = [&recipe.train, &recipe.dev, &recipe.test];
    let wanted: Vec<&str> = SPLITS
        .into_iter()
        .zip(sources)
        .filter(|(_, source)| !source.parts.is_empty())
        .map(|(split, _)| split)
        .collect();
    let splits = splits::load(opened, &wanted, 1).map_err(|e| e.to_string())?;
    let [train, dev, test] = [&splits.train, &splits.dev, &splits.test].map(Vec::len);
    let labels = if named.labels.is_empty() { String::new() } else { format!("; labels {}", named.labels.join(", ")) };
    match train {
        0 => failed("there is nothing to train on"),
        _ => Ok(format!("{train} to train, {dev} dev, {test} test{labels}")),
    }
}

/// The host checks each of them as it is read.
fn examples(subject: &Subject) -> Outcome {
    let data = subject.data()?;
    let dataset = subject.open(data)?;
    let all = all(&*dataset)?;
    if let Some((part, _)) = all.iter().find(|(_, examples)| examples.is_empty()) {
        return failed(format!("the recipe names the part `{part}`, which has no examples"));
    }
    let empty = |example: &Example| example.texts().all(|text| text.trim().is_empty());
    let empties = all.iter().flat_map(|(_, examples)| examples).filter(|example| empty(example)).count();
    let count: usize = all.iter().map(|(_, examples)| examples.len()).sum();
    let said = if empties == 0 { String::new() } else { format!(", {empties} of them without a text") };
    Ok(format!("{count} examples in {} parts{said}", all.len()))
}

fn deterministic(subject: &Subject) -> Outcome {
    let data = subject.data()?;
    let (first, second) = (subject.open(data)?, subject.open(data)?);
    if first.recipe() != second.recipe() {
        return failed("opened twice, the same data give different recipes");
    }
    let (before, other) = (all(&*first)?, all(&*second)?);
    match before == other && before == all(&*first)? {
        true => passed(),
        false => failed("read twice, the same data give different examples, or a different order"),
    }
}

/// Data sets that are used side by side, and iterators that are dropped halfway.
fn close(subject: &Subject) -> Outcome {
    let data = subject.data()?;
    let mut kept = vec![subject.open(data)?];
    let expected = all(&*kept[0])?;
    for opening in 0..OPENINGS {
        println!("opening {opening}");
        let dataset = subject.open(data)?;
        for part in parts(&*dataset) {
            let mut half = dataset.examples(&part).map_err(|e| e.to_string())?;
            let mut whole = dataset.examples(&part).map_err(|e| e.to_string())?;
            let first = half.next().transpose().map_err(|e| e.to_string())?;
            drop(half);
            if whole.next().transpose().map_err(|e| e.to_string())? != first {
                return failed(format!("two iterators of `{part}` start differently"));
            }
        }
        if opening % 5 == 0 {
            kept.push(dataset);
        }
    }
    for dataset in &kept {
        if all(&**dataset)? != expected {
            return failed("a data set gives different examples after another one was closed");
        }
    }
    passed()
}

/// Missing data is an error with a message, or is not needed.
fn wrong_requests(subject: &Subject) -> Outcome {
    let empty = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut generated = false;
    for (what, data) in [("an empty directory", empty.path().to_owned()), ("no directory", empty.path().join("none"))] {
        println!("`open` of {what}");
        match subject.plugin.open(&subject.request(&data, defaults(&subject.plugin.info().options))) {
            Ok(_) => generated = true,
            Err(error) => check_no_panic(&format!("`open` of {what}"), &error)?,
        }
    }
    if let Some(data) = &subject.data {
        println!("a part that the recipe does not name");
        let dataset = subject.open(data)?;
        match dataset.examples("no such part").and_then(|examples| examples.collect::<Result<Vec<_>, _>>()) {
            Ok(_) => return failed("the part `no such part`, which the recipe does not name, has examples"),
            Err(error) => check_message("`examples` of an unknown part", &error)?,
        };
    }
    Ok(if generated { "it needs no files: an empty directory will do".into() } else { String::new() })
}
