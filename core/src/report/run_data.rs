//! Reads the files of a run directory.

use crate::job::{EvalReport, RunPlan, RunResult, StepReport};
use crate::{Error, Result, files};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// The contents of a run directory.
pub struct RunData {
    /// The directory's name.
    pub name: String,
    pub config: serde_json::Map<String, serde_json::Value>,
    pub plan: RunPlan,
    /// Absent if the run has not ended, or was killed.
    pub result: Option<RunResult>,
    pub steps: Vec<StepReport>,
    pub evals: Vec<EvalReport>,
}

/// A line of `metrics.jsonl`.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LogLine {
    Step(StepReport),
    Eval(EvalReport),
    /// Anything that later versions may log.
    #[serde(other)]
    Other,
}

impl RunData {
    /// Reads a run directory. An incomplete last line, as left by a killed run, is ignored.
    ///
    /// Errors: a missing or malformed file, by name and line.
    pub fn read(directory: &Path) -> Result<RunData> {
        let metrics = directory.join("metrics.jsonl");
        if !files::is_file(&metrics) {
            return Err(Error::Usage(format!("{}: not a run directory: it has no metrics.jsonl", directory.display())));
        }
        let text = files::read_text(&metrics, files::LOG).map_err(Error::io(&metrics))?;
        let (mut steps, mut evals) = (Vec::new(), Vec::new());
        for (index, line) in text.split_inclusive('\n').enumerate().filter(|(_, line)| line.ends_with('\n')) {
            let line = serde_json::from_str(line)
                .map_err(|e| Error::Usage(format!("{}:{}: {e}", metrics.display(), index + 1)))?;
            match line {
                LogLine::Step(report) => steps.push(report),
                LogLine::Eval(report) => evals.push(report),
                LogLine::Other => {}
            }
        }
        let result = directory.join("result.json");
        let name = files::canonical(directory).unwrap_or_else(|_| PathBuf::from(directory));
        Ok(RunData {
            name: name.file_name().unwrap_or(name.as_os_str()).to_string_lossy().into_owned(),
            config: read_json(&directory.join("config.json"))?,
            plan: read_json(&directory.join("plan.json"))?,
            result: if files::is_file(&result) { Some(read_json(&result)?) } else { None },
            steps,
            evals,
        })
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = files::read_text(path, files::CONFIGURATION).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| {
        Error::Usage(format!("{}: {e}; it is damaged, or from another version of this program", path.display()))
    })
}
