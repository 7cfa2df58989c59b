//! Progress reports of a run.

use super::RunPlan;
use crate::train::Metrics;
use serde::{Deserialize, Serialize};

/// One optimizer step, as written to `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepReport {
    pub step: usize,
    pub total_steps: usize,
    pub epoch: usize,
    /// `null` in the file if it is not finite: the step was skipped.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    pub lr: f64,
    /// As `loss`.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Tokens of the step's examples, padding excluded.
    pub tokens: usize,
    /// Speed since training began, without evaluations; not stored, so that equal runs give equal files.
    #[serde(skip)]
    pub tokens_per_second: f64,
}

/// JSON has no NaN, which is written as `null`.
fn number_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// One evaluation, as written to `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalReport {
    /// Optimizer steps done so far.
    pub step: usize,
    /// `dev` or `test`.
    pub split: String,
    pub metrics: Metrics,
    /// Whether this is the best on dev so far.
    pub best: bool,
}

/// Receives the progress of a run. Every method may be a no-op.
pub trait Observer {
    /// The plan, before anything is allocated on the device.
    fn plan(&mut self, plan: &RunPlan);
    fn step(&mut self, report: &StepReport);
    fn eval(&mut self, report: &EvalReport);
    /// Progress of an evaluation: examples done, and in total.
    fn eval_progress(&mut self, split: &str, done: usize, total: usize);
    fn message(&mut self, text: &str);
    /// If true, the run stops cleanly after the current step.
    fn stop_requested(&self) -> bool;
}

/// Ignores all progress, and never stops a run.
pub struct Silent;

impl Observer for Silent {
    fn plan(&mut self, _: &RunPlan) {}
    fn step(&mut self, _: &StepReport) {}
    fn eval(&mut self, _: &EvalReport) {}
    fn eval_progress(&mut self, _: &str, _: usize, _: usize) {}
    fn message(&mut self, _: &str) {}
    fn stop_requested(&self) -> bool {
        false
    }
}
