//! How train, dev and test are made from the files that were found.

use crate::tasks::GlueTask;
use sparta_plugin::Error;
use sparta_plugin::task::{OpenRequest, Recipe, Source, Take};
use sparta_task_files::{Found, draw, names};

/// GLUE's dev is the test split, and dev is drawn from the training split. If there is a labelled test split as
/// well (MRPC; a user's JSONL files), all three are used as they are.
///
/// # Errors
/// A file cannot be read or has too few examples to draw from.
pub(crate) fn recipe(task: &GlueTask, found: &Found, request: &OpenRequest) -> Result<Recipe, Error> {
    let all = |parts: &[_]| Source { parts: names(parts), take: Take::All };
    let mut notes = found.notes.clone();
    if !found.dev.is_empty() && !found.test.is_empty() {
        return Ok(Recipe {
            train: all(&found.train),
            dev: all(&found.dev),
            test: all(&found.test),
            notes,
            task: None,
        });
    }
    let test = if found.test.is_empty() { all(&found.dev) } else { all(&found.test) };
    if found.train.is_empty() || !(request.wants("train") || request.wants("dev")) {
        // If both are read, dev is drawn: one file must not stand in for two splits.
        let none = || all(&[]);
        let (dev, test) = match request.wants("dev") {
            true => (all(&found.dev), if found.test.is_empty() { none() } else { test }),
            false => (none(), test),
        };
        return Ok(Recipe { train: none(), dev, test, notes, task: None });
    }
    let take = draw(&found.train, task.dev, &task.schema, &mut notes)?;
    let train = names(&found.train);
    note_substitutes(found, &train.join(", "), &test.parts.join(", "), &mut notes);
    Ok(Recipe {
        train: Source { parts: train.clone(), take: Take::Rest { cap: task.cap } },
        dev: Source { parts: train, take },
        test,
        notes,
        task: None,
    })
}

fn note_substitutes(found: &Found, train: &str, test: &str, notes: &mut Vec<String>) {
    if found.dev.is_empty() {
        notes.push(format!("There is no development file: dev is drawn from {train}."));
    } else if let Some(name) = found.layout.test.first() {
        notes.push(format!("There is no labelled {name}: {test} stands in as test, and dev is drawn from {train}."));
    }
    if !found.dev.is_empty() && !found.missing_dev.is_empty() {
        let missing = found.missing_dev.join(", ");
        notes.push(format!("There is no {missing}: {test} alone is the test split."));
    }
}
