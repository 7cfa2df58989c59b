//! A run's progress as events.

use crate::host::{stopped, tell};
use serde_json::json;
use sparta_core::files;
use sparta_core::job::{EvalReport, Observer, RunPlan, StepReport};
use std::path::PathBuf;

#[derive(Default)]
pub struct Events {
    /// The run that this one takes the place of, until its plan fits.
    pub earlier: Option<PathBuf>,
}

impl Observer for Events {
    fn plan(&mut self, plan: &RunPlan) {
        tell(&json!({ "event": "plan", "value": plan, "text": plan.to_string() }));
        if plan.check_fit().is_ok()
            && let Some(earlier) = self.earlier.take()
        {
            // Nothing can fail in memory.
            let _ = files::remove(&earlier);
        }
    }

    fn step(&mut self, report: &StepReport) {
        tell(&json!({ "event": "step", "value": report, "tokensPerSecond": report.tokens_per_second }));
    }

    fn eval(&mut self, report: &EvalReport) {
        tell(&json!({ "event": "eval", "value": report }));
    }

    fn eval_progress(&mut self, split: &str, done: usize, total: usize) {
        tell(&json!({ "event": "progress", "value": { "split": split, "done": done, "total": total } }));
    }

    fn message(&mut self, text: &str) {
        tell(&json!({ "event": "message", "value": text }));
    }

    fn stop_requested(&self) -> bool {
        stopped()
    }
}
