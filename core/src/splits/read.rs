//! Reads the parts of a data set on several threads, within a memory limit.

use crate::files::Kind;
use crate::plugin::check_example;
use crate::{Error, Result, files};
use sparta_graph::memory_size;
use sparta_plugin::task::{Dataset, Example, TaskInfo};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes that the examples of a command may take in total, regardless of the files' size.
const ALWAYS: u64 = 512 << 20;
/// Bytes of examples allowed per byte of the files: text does not compress better.
const PACKED: u64 = 8;

/// A data set, opened by each thread that reads it. Its examples may take 8 times the bytes of its files, and at least
/// 512 MiB: a few bytes of a compressed file can expand to any number of texts.
pub struct Source<'a> {
    pub open: Open<'a>,
    /// A file or directory.
    pub data: &'a Path,
    /// Parts read concurrently.
    pub threads: usize,
}

impl<'a> Source<'a> {
    /// With as many threads as there are processors.
    pub fn new(open: Open<'a>, data: &'a Path) -> Source<'a> {
        Source { open, data, threads: std::thread::available_parallelism().map_or(1, NonZero::get) }
    }
}

/// Opens the data set.
pub type Open<'a> = &'a (dyn Fn() -> std::result::Result<Box<dyn Dataset>, sparta_plugin::Error> + Sync);

type Parts = BTreeMap<String, Vec<Example>>;

/// Reads these parts, using the data set that is already open for the first thread.
///
/// Errors: a malformed row; an example that does not suit the task, see [`check_example`]; examples that take too much
/// memory.
pub fn read(source: &Source, first: Box<dyn Dataset>, parts: &[String], task: &TaskInfo) -> Result<Parts> {
    let reader = Reader {
        task,
        taken: AtomicU64::new(0),
        most: AtomicU64::new(ALWAYS),
        data: source.data,
        waiting: Mutex::new(parts.iter().cloned().collect()),
    };
    let threads = source.threads.min(parts.len());
    std::thread::scope(|scope| {
        let work = || Ok(reader.work((source.open)().map_err(|e| Error::Data(e.to_string()))?));
        // If the system has no more threads, the existing ones do all the work.
        let others: Vec<_> =
            (1..threads).map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut found = reader.work(first);
        let mut failure = None;
        for other in others {
            match other.join().unwrap_or_else(|_| Err(Error::Data("a thread that reads data panicked".into()))) {
                Ok(more) => found.extend(more),
                Err(error) => failure = Some(error),
            }
        }
        // Parts are started in order, so the first error does not depend on the threads.
        let whole = parts.iter().map(|part| {
            let missing = || Err(failure.take().unwrap_or_else(|| Error::Data(format!("{part} was not read"))));
            Ok((part.clone(), found.remove(part).unwrap_or_else(missing)?))
        });
        whole.collect()
    })
}

struct Reader<'a> {
    task: &'a TaskInfo,
    data: &'a Path,
    /// Bytes of the examples so far.
    taken: AtomicU64,
    /// Bytes that they may take; computed when first needed.
    most: AtomicU64,
    waiting: Mutex<VecDeque<String>>,
}

impl Reader<'_> {
    /// Reads parts until none is left or one fails.
    fn work(&self, dataset: Box<dyn Dataset>) -> BTreeMap<String, Result<Vec<Example>>> {
        let mut found = BTreeMap::new();
        let next = || self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        while let Some(part) = next() {
            let examples = self.part(&*dataset, &part);
            let failed = examples.is_err();
            found.insert(part, examples);
            if failed {
                break;
            }
        }
        found
    }

    fn part(&self, dataset: &dyn Dataset, part: &str) -> Result<Vec<Example>> {
        let mut examples = Vec::new();
        for (i, example) in dataset.examples(part).map_err(|e| Error::Data(e.to_string()))?.enumerate() {
            let example = example.map_err(|e| Error::Data(e.to_string()))?;
            let wrong = |what: String| Error::Data(format!("{part}, example {}: {what}", i + 1));
            check_example(self.task, &example).map_err(wrong)?;
            let bytes = size_of::<Example>() + example.texts().map(str::len).sum::<usize>();
            let taken = self.taken.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
            if taken > self.most.load(Ordering::Relaxed) && taken > self.allowed() {
                return Err(wrong(format!(
                    "with it the examples take more than {}, more than such files plausibly hold; leave some of them out",
                    memory_size(self.most.load(Ordering::Relaxed))
                )));
            }
            examples.push(example);
        }
        Ok(examples)
    }

    /// The limit, with the size of the files taken into account.
    fn allowed(&self) -> u64 {
        let most = file_bytes(self.data, DEPTH).saturating_mul(PACKED).max(ALWAYS);
        self.most.store(most, Ordering::Relaxed);
        most
    }
}

/// The depth to which folders of a data set are searched.
const DEPTH: usize = 8;

/// Bytes of the files at a path.
fn file_bytes(path: &Path, depth: usize) -> u64 {
    match files::kind(path) {
        Ok(Kind::File(bytes)) => bytes,
        Ok(Kind::Directory) if depth > 0 => {
            let entries = files::list(path).unwrap_or_default();
            entries.iter().map(|entry| file_bytes(entry, depth - 1)).fold(0, u64::saturating_add)
        }
        _ => 0,
    }
}
