//! The state of a run, read from its directory, so that a sweep can be resumed.

use serde::{Deserialize, Serialize};
use sparta_core::job::{EvalReport, RunResult, Stopped};
use sparta_core::weights::atomic_write;
use sparta_core::{Error, Result, files};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A run of a sweep, and its directory.
pub struct Job {
    /// `sst2-sparta-0123456789ab`.
    pub name: String,
    pub directory: PathBuf,
    /// Row in the comparison.
    pub row: String,
    pub task: String,
    /// The primary metric of its task, as the task declares it.
    pub primary: String,
    pub setting: String,
    pub options: BTreeMap<String, String>,
}

#[allow(clippy::large_enum_variant)]
pub enum State {
    New,
    /// Started and not ended, with or without a checkpoint to resume from.
    Begun {
        checkpoint: bool,
    },
    Finished(RunResult),
    Failed(String),
    StoppedEarly(String),
}

/// Why a run ended without a result; stored in its directory.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    Failed(String),
    StoppedEarly(String),
}

#[derive(Serialize, Deserialize)]
struct Record {
    options: BTreeMap<String, String>,
    ended: Option<Ended>,
}

impl Job {
    /// Where the run's output goes.
    pub fn log(&self) -> PathBuf {
        self.directory.join("log.txt")
    }

    /// The primary metric: a task that finds its labels in the data may have a different one from what it declares.
    pub fn metric(&self) -> String {
        #[derive(Deserialize)]
        struct Plan {
            primary: String,
        }
        let text = files::read_text(&self.directory.join("plan.json"), files::CONFIGURATION).unwrap_or_default();
        let plan = serde_json::from_str::<Plan>(&text).ok().filter(|plan| !plan.primary.is_empty());
        plan.map_or_else(|| self.primary.clone(), |plan| plan.primary)
    }

    fn record_path(&self) -> PathBuf {
        self.directory.join("sweep.json")
    }

    /// A damaged record is ignored in favour of the run's own files.
    ///
    /// Errors: a file that cannot be read; a damaged result.
    pub fn state(&self) -> Result<State> {
        let record: Option<Record> = match read_text(&self.record_path())? {
            Some(text) => serde_json::from_str(&text).ok(),
            None => None,
        };
        match record.and_then(|record| record.ended) {
            Some(Ended::Failed(message)) => return Ok(State::Failed(message)),
            Some(Ended::StoppedEarly(message)) => return Ok(State::StoppedEarly(message)),
            None => {}
        }
        let path = self.directory.join("result.json");
        let damaged = |e| Error::Usage(format!("{}: {e}; remove the directory to run this again", path.display()));
        let result: Option<RunResult> =
            read_text(&path)?.map(|text| serde_json::from_str(&text).map_err(damaged)).transpose()?;
        Ok(match result {
            Some(result) if result.stopped != Stopped::Interrupted => State::Finished(result),
            _ if !self.directory.join("metrics.jsonl").exists() => State::New,
            _ => State::Begun { checkpoint: self.has_checkpoint() },
        })
    }

    fn has_checkpoint(&self) -> bool {
        let entries = fs::read_dir(self.directory.join("checkpoints")).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
    }

    /// Records that the run is under way, or why it ended.
    pub fn record(&self, ended: Option<Ended>) -> Result<()> {
        let record = Record { options: self.options.clone(), ended };
        let text = serde_json::to_string_pretty(&record).map_err(|e| Error::Usage(e.to_string()))?;
        let path = self.record_path();
        atomic_write(&path, |file| writeln!(file, "{text}").map_err(Error::io(&path)))
    }

    /// Step and metric of each evaluation on dev so far.
    pub fn evaluations(&self) -> Vec<(usize, f64)> {
        let text = files::read_text(&self.directory.join("metrics.jsonl"), files::LOG).unwrap_or_default();
        let reports = text.lines().filter(|line| line.starts_with("{\"kind\":\"eval\""));
        let reports = reports.filter_map(|line| serde_json::from_str::<EvalReport>(line).ok());
        let dev = reports.filter(|report| report.split == "dev");
        let metric = self.metric();
        dev.filter_map(|report| Some((report.step, *report.metrics.scores.get(&metric)?))).collect()
    }
}

fn read_text(path: &Path) -> Result<Option<String>> {
    match path.is_file() {
        true => files::read_text(path, files::CONFIGURATION).map(Some).map_err(Error::io(path)),
        false => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let [name, row, task, primary, setting] = ["n", "r", "t", "accuracy", ""].map(str::to_owned);
        let job = Job { name, directory: dir.path().to_owned(), row, task, primary, setting, options: BTreeMap::new() };
        job.record(Some(Ended::Failed("no luck".into()))).unwrap();
        assert!(matches!(job.state().unwrap(), State::Failed(why) if why == "no luck"));
        fs::write(dir.path().join("metrics.jsonl"), "").unwrap();
        for half in ["", "{\"options\": {"] {
            fs::write(job.record_path(), half).unwrap();
            assert!(matches!(job.state().unwrap(), State::Begun { checkpoint: false }));
        }
        fs::write(dir.path().join("result.json"), "{").unwrap();
        assert!(job.state().is_err());
    }
}
