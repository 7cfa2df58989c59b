//! The examples of the parts of a data set, read by several threads within a bound of memory.

use super::check_pair;
use crate::{Error, Result};
use sparta_plugin::task::{Dataset, Example, TaskInfo};
use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes that the examples of a command may take, all its parts together.
const LARGEST: usize = 512 << 20;

/// Opens the data set; each thread that reads has one of its own.
pub type Open<'a> = &'a (dyn Fn() -> std::result::Result<Box<dyn Dataset>, sparta_plugin::Error> + Sync);

type Parts = BTreeMap<String, Vec<Example>>;

/// Reads these parts, the first by the data set that is open already.
///
/// Errors: a malformed row; a label outside the task's; a pair for a task of single texts, or the reverse; examples that take more than 512 MiB.
pub fn read(open: Open, first: Box<dyn Dataset>, parts: &[String], task: &TaskInfo) -> Result<Parts> {
    let reader = Reader { task, left: AtomicUsize::new(LARGEST), waiting: Mutex::new(parts.to_vec()) };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(parts.len());
    std::thread::scope(|scope| {
        let work = || reader.work(open().map_err(|e| Error::Data(e.to_string()))?);
        // Where the system has no more threads, those that there are do it all.
        let others: Vec<_> =
            (1..threads).map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut all = reader.work(first);
        for other in others {
            let found = other.join().unwrap_or_else(|_| Err(Error::Data("a thread that reads data panicked".into())));
            all = all.and_then(|mut all| {
                all.extend(found?);
                Ok(all)
            });
        }
        all
    })
}

struct Reader<'a> {
    task: &'a TaskInfo,
    /// Bytes that further examples may take.
    left: AtomicUsize,
    waiting: Mutex<Vec<String>>,
}

impl Reader<'_> {
    /// Reads parts until none is left.
    fn work(&self, dataset: Box<dyn Dataset>) -> Result<Parts> {
        let mut parts = Parts::new();
        let next = || self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(part) = next() {
            let examples = self.part(&*dataset, &part)?;
            parts.insert(part, examples);
        }
        Ok(parts)
    }

    fn part(&self, dataset: &dyn Dataset, part: &str) -> Result<Vec<Example>> {
        let mut examples = Vec::new();
        for (i, example) in dataset.examples(part).map_err(|e| Error::Data(e.to_string()))?.enumerate() {
            let example = example.map_err(|e| Error::Data(e.to_string()))?;
            let wrong = |what: String| Error::Data(format!("{part}, example {}: {what}", i + 1));
            let (label, classes) = (example.label, self.task.labels.len());
            if label as usize >= classes {
                return Err(wrong(format!("label {label}, expected less than {classes}")));
            }
            check_pair(self.task, example.pair.is_some()).map_err(wrong)?;
            let bytes = size_of::<Example>() + example.text.len() + example.pair.as_ref().map_or(0, String::len);
            let take = |left: usize| left.checked_sub(bytes);
            if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                return Err(Error::Data(format!(
                    "{part}: with it the examples take more than {} MiB, which is the most that a data set may have; \
                     leave some of them out",
                    LARGEST >> 20
                )));
            }
            examples.push(example);
        }
        Ok(examples)
    }
}
