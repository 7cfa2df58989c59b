//! The end of a run: the state to keep, its metrics, and the comparison with a merged model.

use super::Trainer;
use crate::Result;
use crate::adapter::{MergeDtype, check_examples, check_merged, merged_tensor, visible_share};
use crate::job::{Answer, Environment, MergeCheck, Mistake, RunResult, Stopped};
use crate::run::directory::peak_resident;
use crate::run::{answers, mistakes};
use crate::train::{Prediction, Session};

/// A smaller share of visible changes gives a warning.
const VISIBLE: f64 = 0.25;

impl Trainer<'_> {
    /// Selects the final state, saves it, and evaluates it.
    pub(super) fn finish(&mut self, stopped: Stopped) -> Result<RunResult> {
        self.restore_best()?;
        self.save()?;
        let interrupted = stopped == Stopped::Interrupted;
        let best_step = self.best_step();
        let current = best_step.unwrap_or(self.position.step);
        let dev = match self.position.last_dev.take() {
            Some((step, metrics)) if step == current => Some(metrics),
            _ if interrupted || self.run.dev.is_empty() => None,
            _ => self.evaluate(1)?.map(|(metrics, _)| metrics),
        };
        let test = if interrupted || self.run.test.is_empty() { None } else { self.evaluate(2)? };
        let (test, predictions) = test.unzip();
        let mistakes = self.mistakes(&predictions.unwrap_or_default());
        if let Some(metrics) = &test {
            self.report("test", metrics, false)?;
        }
        self.record_tuned()?;
        let answers = if interrupted || !self.team.leads() { Vec::new() } else { self.answers() };
        let device_memory = self.session.tensors().memory().values().sum();
        let visible = self.visible()?;
        let counters = self.counters();
        self.save_counters();
        let result = RunResult {
            stopped,
            steps: self.position.step,
            skipped_steps: self.position.skipped,
            visible,
            best_step,
            dev,
            test,
            answers,
            mistakes,
            trainable: self.run.plan.trainable.clone(),
            parameters: self.run.plan.parameters,
            tokens_per_second: counters.tokens as f64 / counters.training_seconds.max(1e-9),
            training_seconds: counters.training_seconds,
            device_memory,
            planned_memory: self.run.plan.total_memory(),
            peak_resident: peak_resident(),
            exchanged: self.team.spent(),
            environment: Environment::of_this_process(),
            out: self.directory.path().to_owned(),
            adapter: self.directory.adapter(),
            merge_check: self.check_merge(),
        };
        if let Some(warning) = self.directory.finish(&result)? {
            self.observer.message(&format!("warning: the report could not be written: {warning}"));
        }
        Ok(result)
    }

    /// Answers to held-out prompts. The run is complete without them, so a failure is only reported.
    fn answers(&mut self) -> Vec<Answer> {
        let (run, examples) = (self.run, &self.run.dev);
        answers::written(&mut self.session, &run.config, examples).unwrap_or_else(|error| {
            self.observer.message(&format!("warning: the report lacks the model's answers: {error}"));
            Vec::new()
        })
    }

    /// The model's mistakes on test. The run is complete without them, so a failure is only reported.
    fn mistakes(&mut self, predictions: &[Prediction]) -> Vec<Mistake> {
        let run = self.run;
        mistakes::most_probable(&run.config, &run.task.labels, &run.test, predictions).unwrap_or_else(|error| {
            self.observer.message(&format!("warning: the report lacks the model's mistakes: {error}"));
            Vec::new()
        })
    }

    /// The share of the chosen weights that differ from the model's in its stored type; warns if it is small.
    fn visible(&mut self) -> Result<Option<f64>> {
        let values = self.session.trained_values()?;
        let adaptation = &self.session.setup().adaptation;
        let visible = visible_share(adaptation, &self.run.weights, &values)?;
        if let Some(share) = visible.filter(|share| *share < VISIBLE) {
            let consequence = match adaptation.residual {
                true => {
                    "the adapter has the other changes, but a merged model has them only in f32 (adapter merge --dtype f32)"
                }
                false => {
                    "the other changes are too small for it and have no effect: use --residual, raise --lr, train \
                     longer, or use a model in f32"
                }
            };
            let share = 100.0 * share;
            self.observer.message(&format!(
                "warning: only {share:.1} % of the chosen weights have changed in the type that the model stores; \
                 {consequence}"
            ));
        }
        Ok(visible)
    }

    /// Compares the adapter with its merged weights, in the types of the base model. Leaves the session as a plain
    /// model. The run is complete without the check, so a failure is only reported.
    fn check_merge(&mut self) -> Option<MergeCheck> {
        if !self.run.setup.adaptation.method.mergeable() || !self.team.leads() {
            return None;
        }
        let examples = check_examples(&self.run.setup, &self.run.dev);
        let weights = &self.run.weights;
        let check = self.values().and_then(|values| {
            let merged = |session: &mut Session, position: usize| {
                let dtype = MergeDtype::Keep.of(&session.setup().adaptation.parameters, position);
                Ok((dtype, merged_tensor(session, weights, &values, position, dtype)?))
            };
            check_merged(&mut self.session, [&examples; 2], self.run.config.micro_batch_tokens(), weights, merged)
        });
        match &check {
            Ok(check) if check.agrees() => {}
            Ok(check) => self.observer.message(&format!("warning: {check}")),
            Err(error) => self.observer.message(&format!("warning: the merged model could not be checked: {error}")),
        }
        check.ok()
    }

    /// Restores the best state on dev if --patience is given; otherwise keeps the last one.
    pub(super) fn restore_best(&mut self) -> Result<()> {
        if self.best_step().is_some_and(|step| step != self.position.step) {
            self.session.restore(&self.run.weights, &self.best)?;
        }
        Ok(())
    }
}
