//! The run directory: configuration, plan, metrics, adapter, result.

use super::prepare::Prepared;
use super::score::CHOSEN;
use super::tune;
use crate::adapter::{self, Head};
use crate::files::File;
use crate::job::{RunConfig, RunResult, Stopped};
use crate::method::Adaptation;
use crate::report::{self};
use crate::weights::atomic_write;
use crate::{Error, Result, files};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sparta_graph::Tuned;
use std::collections::BTreeMap;
use std::fs::{self, TryLockError};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const PLAN: &str = "plan.json";
const RESULT: &str = "result.json";
const COUNTERS: &str = "counters.json";

/// The directory that a run writes. A lock, released when the process ends, keeps a second run out.
///
/// Of several processes that train together, only one writes; the others have the same value without files.
pub struct RunDirectory {
    path: PathBuf,
    /// Absent in a process that does not write.
    metrics: Option<File>,
    /// Bytes of complete lines in the file.
    metrics_bytes: u64,
    /// Lines still to be written.
    pending: Vec<u8>,
    _lock: Option<File>,
}

/// Time and tokens of a run, over all its processes. Stored in a separate file, as they differ between equal runs.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Time spent in training steps, including those repeated after a crash.
    pub training_seconds: f64,
    /// Tokens of these steps, padding excluded.
    pub tokens: u64,
}

#[derive(Serialize)]
struct Line<'a, T> {
    kind: &'a str,
    #[serde(flatten)]
    report: &'a T,
}

impl RunDirectory {
    /// Creates the directory and writes configuration and plan.
    ///
    /// Errors: the directory already holds a run, is in use, or cannot be written.
    pub fn create(run: &Prepared) -> Result<RunDirectory> {
        let path = &run.config.out;
        files::create_dirs(path).map_err(Error::io(path))?;
        let lock = lock(path)?;
        Self::check_free(path)?;
        let mut directory = Self::open(path, lock)?;
        directory.cut_log(0)?;
        directory.describe(run)?;
        Ok(directory)
    }

    /// Errors: the directory already holds a run.
    pub fn check_free(path: &Path) -> Result<()> {
        match files::exists(&path.join(CONFIG)) {
            false => Ok(()),
            true => Err(Error::Usage(format!(
                "{} already holds a run; continue it with --resume, or give another --out",
                path.display()
            ))),
        }
    }

    /// Removes the files of a run that failed before its first step, so that its name is free again.
    pub fn abandon(&self) {
        if self.metrics.is_none() {
            return;
        }
        // The run's own error is the one to report.
        for name in [PLAN, CONFIG, CHOSEN, "metrics.jsonl", ".lock"] {
            let _ = files::remove(&self.path.join(name));
        }
        let _ = files::remove_empty(&self.path);
    }

    /// Reopens the directory of an earlier run, and removes temporary files.
    ///
    /// Errors: no such run; it is in use.
    pub fn reopen(run: &Prepared) -> Result<RunDirectory> {
        let path = &run.config.out;
        if !files::is_file(&path.join(CONFIG)) {
            return Err(Error::Usage(format!("{}: there is no run to resume", path.display())));
        }
        let lock = lock(path)?;
        for dir in [path.clone(), path.join("adapter"), path.join("checkpoints")] {
            remove_temporaries(&dir)?;
        }
        Self::open(path, lock)
    }

    fn open(path: &Path, lock: File) -> Result<RunDirectory> {
        let metrics_path = path.join("metrics.jsonl");
        let metrics = File::append(&metrics_path).map_err(Error::io(&metrics_path))?;
        let metrics_bytes = metrics.size().map_err(Error::io(&metrics_path))?;
        let (metrics, lock) = (Some(metrics), Some(lock));
        Ok(RunDirectory { path: path.to_owned(), metrics, metrics_bytes, pending: Vec::new(), _lock: lock })
    }

    /// For a process that does not write.
    pub fn elsewhere(path: &Path) -> RunDirectory {
        RunDirectory { path: path.to_owned(), metrics: None, metrics_bytes: 0, pending: Vec::new(), _lock: None }
    }

    /// Writes plan and configuration.
    pub fn describe(&self, run: &Prepared) -> Result<()> {
        self.write_json(PLAN, &run.plan)?;
        // Written last: it marks the directory as a run that can be resumed.
        self.write_json(CONFIG, &run.config)
    }

    /// Compares the run's length with the stored one: a resumed run may be extended, never shortened. Returns the old
    /// length if it is.
    ///
    /// Errors: the run would become shorter, or would not become longer although that was requested.
    pub fn check_length(&self, run: &Prepared) -> Result<Option<usize>> {
        let path = &self.path;
        #[derive(Deserialize)]
        struct Length {
            total_steps: usize,
        }
        let (before, now) = (RunConfig::of_run(path)?.control, &run.config.control);
        let plan = path.join(PLAN);
        let text = files::read_text(&plan, files::CONFIGURATION).map_err(Error::io(&plan))?;
        let length: Length = serde_json::from_str(&text)
            .map_err(|e| Error::Usage(format!("{}: not the plan of a run: {e}", plan.display())))?;
        let (steps, total) = (length.total_steps, run.total_steps);
        let path = path.display();
        if total < steps {
            return Err(Error::Usage(format!(
                "{path}: the run has {steps} steps, and --max-steps and --epochs would shorten it to {total}; it can only be \
                 extended. To end it earlier, interrupt it"
            )));
        }
        let longer = now.epochs > before.epochs || now.max_steps.is_some_and(|n| n > before.max_steps.unwrap_or(steps));
        if longer && total == steps {
            let per_epoch = run.plan.steps_per_epoch;
            let limit = now.max_steps.map_or(String::new(), |n| format!(" and --max-steps is {n}"));
            return Err(Error::Usage(format!(
                "{path}: the run would not become longer than its {steps} steps: --epochs is {}, of {per_epoch} steps each{limit}; \
                 raise both",
                now.epochs
            )));
        }
        Ok((total > steps).then_some(steps))
    }

    /// Checks that the first `bytes` of the log, as recorded in a checkpoint, are complete lines: a power cut can leave
    /// zeros.
    ///
    /// Errors: they are not, or the log is shorter.
    pub fn check_log(&self, bytes: u64) -> Result<()> {
        let path = self.path.join("metrics.jsonl");
        let damaged =
            |what: String| Error::Training(format!("{}: {what}; it was changed after the run", path.display()));
        if self.metrics_bytes < bytes {
            let got = self.metrics_bytes;
            return Err(damaged(format!("expected {bytes} bytes, as recorded in the checkpoint, got {got}")));
        }
        let mut log = BufReader::new(files::open(&path).map_err(Error::io(&path))?).take(bytes);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if log.read_until(b'\n', &mut line).map_err(Error::io(&path))? == 0 {
                break;
            }
            if !line.ends_with(b"\n") || serde_json::from_slice::<IgnoredAny>(&line).is_err() {
                return Err(damaged(format!("line {number} was not written by a run")));
            }
        }
        Ok(())
    }

    /// Drops what was logged after a checkpoint.
    pub fn cut_log(&mut self, bytes: u64) -> Result<()> {
        let path = self.path.join("metrics.jsonl");
        self.metrics.as_ref().map_or(Ok(()), |file| file.set_size(bytes)).map_err(Error::io(path))?;
        self.metrics_bytes = bytes;
        self.pending.clear();
        Ok(())
    }

    /// Syncs the log to disk and returns its size.
    pub fn sync_log(&mut self) -> Result<u64> {
        self.write_pending()?;
        let synced = self.metrics.as_ref().map_or(Ok(()), File::sync);
        synced.map_err(Error::io(self.path.join("metrics.jsonl")))?;
        Ok(self.metrics_bytes)
    }

    /// Bytes logged so far.
    pub fn log_bytes(&self) -> u64 {
        self.metrics_bytes + self.pending.len() as u64
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line to `metrics.jsonl`. If that fails, the line is kept for the next attempt.
    pub fn log<T: Serialize>(&mut self, kind: &str, report: &T) -> Result<()> {
        let mut line = serde_json::to_string(&Line { kind, report }).map_err(|e| Error::Training(e.to_string()))?;
        line.push('\n');
        self.pending.extend(line.as_bytes());
        self.write_pending()
    }

    fn write_pending(&mut self) -> Result<()> {
        if let Some(file) = &mut self.metrics
            && let Err(error) = file.write_all(&self.pending)
        {
            // Part of a line may have been written; if it cannot be cut off now, a resumed run does it.
            let _ = file.set_size(self.metrics_bytes);
            return Err(Error::io(self.path.join("metrics.jsonl"))(error));
        }
        self.metrics_bytes += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// Saves these values as the adapter, with the current index sets of the adaptation.
    pub fn save(&self, run: &Prepared, adaptation: &Adaptation, values: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        let objective = run.setup.objective.name();
        let head = Head {
            name: run.config.task.clone(),
            labels: run.task.labels.clone(),
            objective: objective.into(),
            config: Some(run.config.clone()),
        };
        adapter::save(&self.adapter(), &run.config, adaptation, &run.weights, &head, values)
    }

    /// Time and tokens of the processes before this one; zero if there is no file.
    ///
    /// Errors: a file that cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        let path = self.path.join(COUNTERS);
        if !files::exists(&path) {
            return Ok(Counters::default());
        }
        let text = files::read_text(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map_err(|e| Error::Training(format!("{}: {e}", path.display())))
    }

    pub fn save_counters(&self, counters: &Counters) -> Result<()> {
        self.write_json(COUNTERS, counters)
    }

    /// The result of a run that ended after `step` steps with all its files intact.
    pub fn finished(&self, step: usize) -> Option<RunResult> {
        let text = files::read_text(&self.path.join(RESULT), files::CONFIGURATION).ok()?;
        let result: RunResult = serde_json::from_str(&text).ok()?;
        let adapter = self.adapter();
        let whole = adapter::load(&adapter, None).is_ok();
        let over = result.stopped != Stopped::Interrupted && result.steps == step;
        (over && whole).then(|| RunResult { out: self.path.clone(), adapter, ..result })
    }

    /// Removes the result and report of a run that continues, as they are outdated.
    pub fn forget_result(&self) -> Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        for path in [RESULT, report::FILE].map(|name| self.path.join(name)).iter().filter(|path| files::exists(path)) {
            files::remove(path).map_err(Error::io(path))?;
        }
        Ok(())
    }

    /// Writes the result and the report. A report that fails is returned as an error: the run is complete without it.
    pub fn finish(&self, result: &RunResult) -> Result<Option<Error>> {
        self.write_json(RESULT, result)?;
        if self.metrics.is_none() {
            return Ok(None);
        }
        Ok(report::write(std::slice::from_ref(&self.path), &self.path.join(report::FILE)).err())
    }

    /// Records the choices of kernels on which the run's numbers depend.
    pub fn record(&self, tuned: &Tuned) -> Result<()> {
        let same = tuned.choices.is_empty() || tune::recorded(&self.path)?.as_ref() == Some(tuned);
        if same { Ok(()) } else { self.write_json(tune::TUNED, tuned) }
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(value).map_err(|e| Error::Training(e.to_string()))?;
        let path = self.path.join(name);
        atomic_write(&path, |file| writeln!(file, "{text}").map_err(Error::io(&path)))
    }
}

/// Removes the temporary files `.NAME.tmp` of a killed process.
fn remove_temporaries(dir: &Path) -> Result<()> {
    if !files::is_dir(dir) {
        return Ok(());
    }
    for path in files::list(dir).map_err(Error::io(dir))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') && name.ends_with(".tmp") {
            files::remove(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// Takes the lock of a run directory; the system releases it however the process ends.
fn lock(path: &Path) -> Result<File> {
    let file_path = path.join(".lock");
    match File::try_lock(&file_path) {
        Ok(file) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::Usage(format!("{}: another run is writing here; give another --out", path.display())))
        }
        Err(TryLockError::Error(error)) => Err(Error::io(&file_path)(error)),
    }
}

/// `VmHWM` of this process.
pub fn peak_resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
