//! How a run reports its progress.

use super::RunPlan;
use crate::train::Metrics;
use serde::{Deserialize, Serialize};

/// One optimizer step, as written to `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepReport {
    pub step: usize,
    pub total_steps: usize,
    pub epoch: usize,
    /// `null` in the file where it is not finite: the step was skipped.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    pub lr: f64,
    /// As `loss`.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Real tokens of the step's examples.
    pub tokens: usize,
    /// Since training began, evaluation excluded; not stored, so that equal runs give equal files.
    #[serde(skip)]
    pub tokens_per_second: f64,
}

/// JSON knows no NaN; it is written as `null`.
fn number_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// One evaluation, as written to `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalReport {
    /// Optimizer steps done before.
    pub step: usize,
    /// `dev` or `test`.
    pub split: String,
    pub metrics: Metrics,
    /// Whether this is the best on dev so far.
    pub best: bool,
}

/// What a run tells while it goes on. All methods may do nothing.
pub trait Observer {
    /// The plan, before anything is allocated on the device.
    fn plan(&mut self, plan: &RunPlan);
    fn step(&mut self, report: &StepReport);
    fn eval(&mut self, report: &EvalReport);
    /// Done and all parts of an evaluation, in examples.
    fn eval_progress(&mut self, split: &str, done: usize, total: usize);
    fn message(&mut self, text: &str);
    /// True ends the run cleanly after the current step.
    fn stop_requested(&self) -> bool;
}
