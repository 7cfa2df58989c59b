//! The report of a benchmark, as JSON. `docs/bench.md` documents the format.

use super::case::Measured;
use super::kernels::Kernel;
use serde::{Deserialize, Serialize};
use sparta_graph::{DType, DeviceInfo, Tuned};
use sparta_model::{Error, Result};
use sparta_train::Ceiling;
use std::path::Path;

/// The version of the format. Readers accept only this version.
pub const VERSION: u32 = 1;
/// The size limit of a report, in bytes.
const LARGEST: u64 = 16 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`]
    pub sparta_bench: u32,
    /// Version of the program.
    pub program: String,
    /// `linux x86_64`
    pub system: String,
    /// The day, as 2026-11-26.
    pub date: String,
    pub devices: Vec<DeviceReport>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    pub device: Device,
    /// The highest rates that it reached in this report.
    pub ceiling: Ceiling,
    pub kernels: Vec<Kernel>,
    pub steps: Vec<Step>,
    /// The kernels that were chosen by measuring, if the device measures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Tuned>,
    /// What was not measured, and why; failures.
    pub notes: Vec<String>,
}

/// The part of [`DeviceInfo`] that is of interest elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    pub id: String,
    pub name: String,
    pub driver: String,
    /// Bytes, if the driver reports them.
    pub memory: Option<u64>,
}

impl From<&DeviceInfo> for Device {
    fn from(info: &DeviceInfo) -> Device {
        let DeviceInfo { id, name, driver, memory, .. } = info.clone();
        Device { id, name, driver, memory }
    }
}

/// A whole training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub shape: String,
    /// Sequences, and tokens of each.
    pub batch: usize,
    pub tokens: usize,
    pub method: String,
    pub precision: DType,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Measured(Figures),
    /// Why there are no figures: it does not fit, takes too long, fails, or computes wrong results.
    NotMeasured(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    #[serde(flatten)]
    pub measured: Measured,
    pub trained: u64,
    /// Share of the rate of products in this precision.
    pub share_of_ceiling: f64,
    /// Peak bytes on the device if the backend counts them, else planned bytes.
    pub memory: u64,
    /// Joules per step, if the system reports energy.
    pub joules: Option<f64>,
    /// Whether losses and gradient norms were compared with stored ones.
    pub checked: bool,
}

impl Step {
    /// `110M 4x128 lora`
    pub fn cell(&self) -> String {
        format!("{} {}x{} {}", self.shape, self.batch, self.tokens, self.method)
    }

    pub fn figures(&self) -> Option<&Figures> {
        match &self.outcome {
            Outcome::Measured(figures) => Some(figures),
            Outcome::NotMeasured(_) => None,
        }
    }
}

impl DeviceReport {
    /// Adds the choices that a measurement depended on.
    pub(super) fn add_tuned(&mut self, tuned: Option<Tuned>) {
        let Some(tuned) = tuned.filter(|tuned| !tuned.choices.is_empty()) else { return };
        let Tuned { device, choices } = tuned;
        self.tuned.get_or_insert(Tuned { device, ..Tuned::default() }).choices.extend(choices);
    }
}

impl Report {
    /// Reads a report. Errors: a file that is not a report, is of another version, or has no device.
    pub fn read(path: &Path) -> Result<Report> {
        let text = sparta_io::files::read_text(path, LARGEST).map_err(Error::io(path))?;
        let wrong = |what: String| Error::Usage(format!("{}: {what}", path.display()));
        let foreign = |got: String| wrong(format!("expected a report of `sparta-cli bench` (bench.json), got {got}"));
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| {
            let (line, column) = (e.line(), e.column());
            foreign(match e.is_eof() {
                true => format!("a file that ends too early, at line {line}, column {column}"),
                false => format!("a file that is not JSON, at line {line}, column {column}"),
            })
        })?;
        let version = json.get("sparta_bench").and_then(serde_json::Value::as_u64);
        let version = version.ok_or_else(|| foreign("JSON without a number `sparta_bench`".into()))?;
        if version != u64::from(VERSION) {
            let advice = "measure again, or use the sparta-cli that wrote it";
            return Err(wrong(format!("expected a report of version {VERSION}, got version {version}: {advice}")));
        }
        // The reader's own words name types of this program.
        let damaged = |e: serde_json::Error| {
            let (line, column) = (e.line(), e.column());
            wrong(format!("a damaged report: a key is missing or wrong in line {line}, column {column}; measure again"))
        };
        let report: Report = serde_json::from_str(&text).map_err(damaged)?;
        if report.devices.is_empty() {
            return Err(wrong("a report without devices: there is nothing to compare; measure again".into()));
        }
        Ok(report)
    }
}
