//! The training loop.

use super::evaluate::{Features, predict, score};
use super::prepare::{Prepared, prepare};
use super::result::{RunDirectory, RunResult, Stopped};
use crate::data::batch::split_by_budget;
use crate::data::{Batch, Encoded, splits::permutation};
use crate::plugin::PluginSet;
use crate::train::schedule::learning_rate;
use crate::train::{EvalReport, Metrics, Observer, RunConfig, Session, StepOutput, StepReport};
use crate::{Error, Result};
use sparta_graph::Backend;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Trains, evaluates on dev and test, and writes the run directory.
///
/// Errors: whatever [`prepare`] refuses; a run directory that is in use; a device that fails; a loss or a gradient that
/// is not finite, with what was learned before saved.
pub fn run(
    config: &RunConfig,
    plugins: &PluginSet,
    device: Box<dyn Backend>,
    observer: &mut dyn Observer,
) -> Result<RunResult> {
    let prepared = prepare(config, plugins, &device.info())?;
    observer.plan(&prepared.plan);
    let directory = RunDirectory::create(&prepared)?;
    let session = Session::open(device, &prepared.weights, prepared.setup.clone(), prepared.arena)?;
    Trainer::new(&prepared, session, directory, observer).run()
}

/// The best state on dev so far.
struct Best {
    metric: f64,
    step: usize,
    values: BTreeMap<String, Vec<f32>>,
}

struct Trainer<'a> {
    run: &'a Prepared,
    session: Session,
    directory: RunDirectory,
    observer: &'a mut dyn Observer,
    /// Pooled features of train, dev and test, when only the head is trained.
    features: Option<[Features; 3]>,
    step: usize,
    tokens: u64,
    training_time: Duration,
    best: Option<Best>,
    /// Evaluations on dev since the best one.
    stale: usize,
    last_dev: Option<(usize, Metrics)>,
}

impl<'a> Trainer<'a> {
    fn new(run: &'a Prepared, session: Session, directory: RunDirectory, observer: &'a mut dyn Observer) -> Self {
        let width = run.setup.decoder.hidden_size;
        let splits = [&run.train, &run.dev, &run.test];
        let features = run.setup.limits.head_features.then(|| splits.map(|s| Features::new(s.len(), width)));
        Trainer {
            run,
            session,
            directory,
            observer,
            features,
            step: 0,
            tokens: 0,
            training_time: Duration::ZERO,
            best: None,
            stale: 0,
            last_dev: None,
        }
    }

    fn run(mut self) -> Result<RunResult> {
        let stopped = match self.epochs() {
            Ok(stopped) => stopped,
            Err(error) => {
                let saved = self.restore_best().and_then(|()| self.save());
                let kept = if saved.is_ok() { "the last good state is saved" } else { "nothing could be saved" };
                return Err(Error::Training(format!("step {}: {error} ({kept})", self.step)));
            }
        };
        self.finish(stopped)
    }

    fn epochs(&mut self) -> Result<Stopped> {
        for epoch in 0..self.run.config.epochs {
            let order = permutation(self.run.config.seed, "order", &epoch.to_string(), self.run.train.len());
            for batch in order.chunks(self.run.config.batch_size) {
                if self.step == self.run.total_steps {
                    return Ok(Stopped::Completed);
                }
                self.train_on(batch, epoch)?;
                if self.observer.stop_requested() {
                    return Ok(Stopped::Interrupted);
                }
                let due = self.run.config.eval_interval.is_some_and(|n| self.step.is_multiple_of(n));
                if due && self.evaluate_dev()? {
                    return Ok(Stopped::EarlyStopping);
                }
            }
            if self.run.config.eval_interval.is_none() && self.evaluate_dev()? {
                return Ok(Stopped::EarlyStopping);
            }
        }
        Ok(Stopped::Completed)
    }

    /// One optimizer step on these training examples.
    fn train_on(&mut self, chosen: &[usize], epoch: usize) -> Result<()> {
        let config = &self.run.config;
        let lr = learning_rate(config.schedule, self.run.lr, config.warmup, self.step, self.run.total_steps);
        let tokens: usize = chosen.iter().map(|&i| self.run.train[i].tokens.len()).sum();
        let begin = Instant::now();
        let output = match &mut self.features {
            Some([features, ..]) => {
                let budget = config.micro_batch_tokens;
                let pooled = features.get(&mut self.session, &self.run.train, chosen, budget)?;
                let labels: Vec<u32> = chosen.iter().map(|&i| self.run.train[i].label).collect();
                self.session.head_step(&pooled, &labels, lr)?
            }
            None => {
                let micro = micro_batches(&self.run.train, chosen, config.micro_batch_tokens);
                self.session.step(&micro, lr)?
            }
        };
        self.training_time += begin.elapsed();
        self.check(&output)?;
        self.step += 1;
        self.tokens += tokens as u64;
        let report = StepReport {
            step: self.step,
            total_steps: self.run.total_steps,
            epoch,
            loss: output.loss,
            lr,
            grad_norm: output.grad_norm,
            tokens,
            tokens_per_second: self.tokens_per_second(),
        };
        self.directory.log("step", &report)?;
        self.observer.step(&report);
        Ok(())
    }

    /// A run that cannot learn stops at once and says why.
    fn check(&mut self, output: &StepOutput) -> Result<()> {
        let finite = output.loss.is_finite() && output.grad_norm.is_finite();
        if finite && (self.step > 0 || output.grad_norm > 0.0) {
            return Ok(());
        }
        if !output.loss.is_finite() {
            return Err(Error::Training(format!("the loss is {}; lower --lr", output.loss)));
        }
        if finite {
            return Err(Error::Training("every gradient is zero: this run cannot learn".into()));
        }
        let norms = self.session.grad_norms()?;
        let tensor = norms.iter().find(|(_, norm)| !norm.is_finite()).map_or("all together", |(name, _)| name);
        Err(Error::Training(format!("the gradient of {tensor} is not finite; lower --lr or give --max-grad-norm")))
    }

    /// Evaluates on dev, keeps the best state, and says whether patience has run out.
    fn evaluate_dev(&mut self) -> Result<bool> {
        let Some(metrics) = self.evaluate(1)? else { return Ok(false) };
        let metric = metrics.scores.get(&self.run.task.primary).copied().unwrap_or(-metrics.loss);
        let better = self.best.as_ref().is_none_or(|best| metric > best.metric + self.run.config.min_delta);
        self.stale = if better { 0 } else { self.stale + 1 };
        if better {
            let keep = self.run.config.patience.is_some();
            let values = if keep { self.session.trained_values()? } else { BTreeMap::new() };
            self.best = Some(Best { metric, step: self.step, values });
        }
        self.report("dev", &metrics, better)?;
        self.last_dev = Some((self.step, metrics));
        Ok(self.run.config.patience.is_some_and(|patience| self.stale >= patience))
    }

    /// Metrics of dev (1) or test (2); `None` if interrupted.
    fn evaluate(&mut self, split: usize) -> Result<Option<Metrics>> {
        let (name, examples) = if split == 1 { ("dev", &self.run.dev) } else { ("test", &self.run.test) };
        let features = self.features.as_mut().map(|f| &mut f[split]);
        let budget = self.run.config.micro_batch_tokens;
        let observer = &mut *self.observer;
        let predictions = predict(&mut self.session, examples, budget, features, |done, total| {
            observer.eval_progress(name, done, total);
            !observer.stop_requested()
        })?;
        if predictions.len() < examples.len() {
            return Ok(None);
        }
        score(&self.run.task, examples, &predictions).map(Some)
    }

    fn report(&mut self, split: &str, metrics: &Metrics, best: bool) -> Result<()> {
        let report = EvalReport { step: self.step, split: split.into(), metrics: metrics.clone(), best };
        self.directory.log("eval", &report)?;
        self.observer.eval(&report);
        Ok(())
    }

    /// With patience, the state that was best on dev; otherwise the last one stays.
    fn restore_best(&mut self) -> Result<()> {
        match &self.best {
            Some(best) if !best.values.is_empty() && best.step != self.step => {
                self.session.set_trained_values(&best.values)
            }
            _ => Ok(()),
        }
    }

    fn save(&mut self) -> Result<()> {
        let values = self.session.trained_values()?;
        self.directory.save_adapter(self.run, &values)
    }

    fn finish(mut self, stopped: Stopped) -> Result<RunResult> {
        self.restore_best()?;
        self.save()?;
        let interrupted = stopped == Stopped::Interrupted;
        let best_step = self.best.as_ref().filter(|b| !b.values.is_empty()).map(|b| b.step);
        let current = best_step.unwrap_or(self.step);
        let dev = match self.last_dev.take() {
            Some((step, metrics)) if step == current => Some(metrics),
            _ if interrupted => None,
            _ => self.evaluate(1)?,
        };
        let test = if interrupted { None } else { self.evaluate(2)? };
        if let Some(metrics) = &test {
            self.report("test", metrics, false)?;
        }
        let result = RunResult {
            stopped,
            steps: self.step,
            best_step,
            dev,
            test,
            trainable: self.run.plan.trainable.clone(),
            parameters: self.run.plan.parameters,
            tokens_per_second: self.tokens_per_second(),
            training_seconds: self.training_time.as_secs_f64(),
            device_memory: self.session.tensors().memory().values().sum(),
            planned_memory: self.run.plan.total_memory(),
            peak_resident: super::result::peak_resident(),
            out: self.directory.path().to_owned(),
            adapter: self.directory.adapter(),
        };
        self.directory.finish(&result)?;
        Ok(result)
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.training_time.as_secs_f64().max(1e-9)
    }
}

/// The chosen examples in packed micro-batches of at most `budget` tokens.
fn micro_batches(examples: &[Encoded], chosen: &[usize], budget: usize) -> Vec<Batch> {
    let lengths: Vec<usize> = chosen.iter().map(|&i| examples[i].tokens.len()).collect();
    let mut start = 0;
    let mut batches = Vec::new();
    for end in split_by_budget(&lengths, budget, usize::MAX) {
        batches.push(Batch::pack(chosen[start..end].iter().map(|&i| &examples[i])));
        start = end;
    }
    batches
}
