//! The training loop.

mod checks;
mod finish;
mod resume;
mod scoring;

use super::directory::{Counters, RunDirectory};
use super::identity::identity;
use super::prepare::{Prepared, prepare_for};
use super::{together, tune};
use crate::checkpoint::{Checkpoint, Checkpoints, Position};
use crate::job::{EvalReport, Observer, RunConfig, RunResult, StepReport, Stopped};
use crate::method::TrainMode;
use crate::plugin::PluginSet;
use crate::team::Team;
use crate::train::evaluate::{EVAL_EXAMPLES, Features, evaluate, evaluate_shared};
use crate::train::schedule::learning_rate;
use crate::train::{Encoded, Metrics, Prediction, Session, Snapshot, StepPoint, Submitted};
use crate::{Error, Result};
use resume::{Continuation, Newest, look};
use serde_json::Value as Json;
use sparta_graph::{Backend, BackendError};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;
use web_time::Instant;

/// Whether a run starts, or resumes from its newest checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    New,
    Resume,
}

/// Opens the device of a run: at the start, and once more if the device is lost.
pub type OpenDevice<'a> = &'a dyn Fn() -> Result<Box<dyn Backend>>;

/// Trains, evaluates on dev and test, and writes the run directory `config.out`.
///
/// Errors: those of [`super::prepare`]; a run directory that is in use, or cannot be resumed; a device that fails, or is lost
/// a second time; a loss, gradient or updated tensor that is not finite, after saving the last good state.
pub fn run(
    config: &RunConfig,
    plugins: &PluginSet,
    open: OpenDevice,
    start: Start,
    observer: &mut dyn Observer,
) -> Result<RunResult> {
    run_together(config, plugins, open, start, observer, &mut Team::alone())
}

/// [`run`] as one of the processes of a team, whose leading process writes the run directory: they compute what a
/// single process would, and the same bytes are written.
///
/// Errors: those of [`run`]; another process that has failed, with its message, or that is about to do something
/// different.
pub fn run_together(
    config: &RunConfig,
    plugins: &PluginSet,
    open: OpenDevice,
    start: Start,
    observer: &mut dyn Observer,
    team: &mut Team,
) -> Result<RunResult> {
    let result = run_in(config, plugins, open, start, observer, team);
    result.and_then(|result| team.end().map(|()| result)).map_err(|error| team.fail(error))
}

fn run_in(
    config: &RunConfig,
    plugins: &PluginSet,
    open: OpenDevice,
    start: Start,
    observer: &mut dyn Observer,
    team: &mut Team,
) -> Result<RunResult> {
    if start == Start::New && team.leads() {
        RunDirectory::check_free(&config.out)?;
    }
    let mut device = open()?;
    if let Some(warning) = tune::start(&mut *device, config, team.size())? {
        observer.message(&format!("warning: {warning}"));
    }
    let processes = team.size();
    let open = || {
        let mut device = open()?;
        tune::start(&mut *device, config, processes).map(|_| device)
    };
    let info = device.info();
    team.introduce(&format!("{} ({})", info.name, info.id))?;
    let mut prepared = prepare_for(config, plugins, &info, team.size())?;
    if team.size() > 1 {
        // These words must be the same in every version, or processes of two versions would fail before naming them.
        team.agree("what is to be done", &together::agreement(&prepared)?)?;
        team.set_exact(prepared.config.exchange.is_exact());
        prepared.plan.together = together::plan(&prepared, team);
    }
    observer.plan(&prepared.plan);
    prepared.plan.check_fit()?;
    prepared.weights.check_present()?;
    checks::own_kernels(&prepared, &mut *device, observer)?;
    let directory = match start {
        _ if !team.leads() => RunDirectory::elsewhere(&config.out),
        Start::New => RunDirectory::create(&prepared)?,
        Start::Resume => RunDirectory::reopen(&prepared)?,
    };
    let device = scoring::choose(&mut prepared, &directory, device, &open, observer, team).inspect_err(|_| {
        if start == Start::New {
            directory.abandon();
        }
    })?;
    let checkpoints = Checkpoints::new(&config.out, config.control.keep_checkpoints, identity(&prepared)?);
    let newest = match start {
        Start::New => None,
        Start::Resume => match look(&mut prepared, &directory, &checkpoints, team, observer)? {
            Continuation::Finished(result) => return Ok(*result),
            Continuation::From(newest) => Some(newest),
        },
    };
    let session = Session::open(device, &prepared.weights, prepared.setup.clone(), &prepared.arena);
    if session.is_err() && start == Start::New {
        directory.abandon();
    }
    let session = session?;
    let mut trainer = Trainer::new(&prepared, session, directory, checkpoints, observer, team);
    if let Some(newest) = newest {
        if trainer.team.leads() {
            trainer.before = trainer.directory.counters()?;
        }
        trainer.resume(newest)?;
    }
    trainer.run(&open)
}

struct Trainer<'a> {
    run: &'a Prepared,
    session: Session,
    directory: RunDirectory,
    checkpoints: Checkpoints,
    observer: &'a mut dyn Observer,
    team: &'a mut Team,
    /// Pooled features of train, dev and test, if only the head is trained.
    features: Option<[Features; 3]>,
    position: Position,
    /// The best state on dev, if it is kept.
    best: Snapshot,
    /// The method's state between steps.
    method_state: Json,
    /// Step of the newest checkpoint.
    saved_at: Option<usize>,
    /// The submitted step whose results have not been read: this happens one step late if nothing depends on them.
    pending: Option<Pending>,
    /// Whether the session may be ahead of the position, because an unfinished step has updated tensors.
    torn: bool,
    /// The epoch of `order`, and the range of each of its steps.
    epoch: usize,
    order: Vec<usize>,
    steps: Vec<Range<usize>>,
    training_time: Duration,
    /// Tokens trained on in this process.
    tokens: u64,
    /// Time and tokens of earlier processes.
    before: Counters,
}

impl<'a> Trainer<'a> {
    fn new(
        run: &'a Prepared,
        session: Session,
        directory: RunDirectory,
        checkpoints: Checkpoints,
        observer: &'a mut dyn Observer,
        team: &'a mut Team,
    ) -> Self {
        let order = run.epochs.order(0);
        let features = run.setup.limits.head_features.then(|| {
            let width = run.setup.decoder.hidden_size;
            let in_order = |examples: &[Encoded]| Features::new((0..examples.len()).collect(), width, EVAL_EXAMPLES);
            let train = Features::new(order.clone(), width, run.config.batch_size);
            [train, in_order(&run.dev), in_order(&run.test)]
        });
        Trainer {
            run,
            session,
            directory,
            checkpoints,
            observer,
            team,
            features,
            position: Position::default(),
            best: Snapshot::default(),
            method_state: Json::Null,
            saved_at: None,
            pending: None,
            torn: false,
            epoch: 0,
            steps: run.epochs.steps(&order),
            order,
            training_time: Duration::ZERO,
            tokens: 0,
            before: Counters::default(),
        }
    }

    /// Trains to the end. A single process opens a lost device once more.
    fn run(mut self, open: OpenDevice) -> Result<RunResult> {
        match self.attempt() {
            Err(Error::Device(lost @ BackendError::DeviceLost { .. })) if self.team.size() == 1 => {
                self.observer.message(&format!("{lost}; reopening the device"));
                let setup = self.run.setup.clone();
                self.session = Session::open(open()?, &self.run.weights, setup, &self.run.arena)?;
                let newest = self.checkpoints.load_newest(|_| Ok(()))?;
                self.resume(Newest::new(newest))?;
                self.attempt().map_err(|error| self.lost_again(error))
            }
            result => result,
        }
    }

    fn lost_again(&self, error: Error) -> Error {
        let Error::Device(lost @ BackendError::DeviceLost { .. }) = error else { return error };
        let out = self.directory.path().display();
        Error::Training(format!("{lost}, for the second time; continue from the last checkpoint with --resume {out}"))
    }

    fn attempt(&mut self) -> Result<RunResult> {
        match self.steps() {
            Ok(stopped) => self.finish(stopped),
            Err(lost @ Error::Device(BackendError::DeviceLost { .. })) => Err(lost),
            Err(error) => Err(self.keep(error)),
        }
    }

    /// Saves the last good state before an error.
    fn keep(&mut self, error: Error) -> Error {
        if !self.team.leads() {
            return error;
        }
        // The step before the failing one may have succeeded; if not, the first error is the one to report.
        let _ = self.settle();
        let step = self.position.step;
        let kept = match self.keep_last_good() {
            Ok(Some(step)) => format!("the last good state, after step {step}, is saved"),
            Ok(None) => "no state before it was good, so none is saved".into(),
            Err(error) => format!("and the last good state could not be saved: {error}"),
        };
        Error::Training(format!("after step {step}: {error} ({kept})"))
    }

    /// Saves the session's state, or that of the newest checkpoint if the former is torn or gives NaN. Returns its
    /// step.
    fn keep_last_good(&mut self) -> Result<Option<usize>> {
        if self.torn || self.defect()?.is_some() {
            let Some((loaded, _)) = self.checkpoints.load_newest(|_| Ok(()))? else { return Ok(None) };
            self.adopt(Some(loaded), false)?;
        } else {
            self.save_checkpoint()?;
        }
        let step = self.position.step;
        self.restore_best()?;
        self.save()?;
        Ok(Some(step))
    }

    /// Evaluates, saves and trains until there is a reason to stop. The actions due at a step depend only on the
    /// position, so a resumed run does exactly what is left.
    fn steps(&mut self) -> Result<Stopped> {
        loop {
            if self.results_due() {
                self.settle()?;
            }
            if self.pending.is_none()
                && let Some(stopped) = self.between_steps()?
            {
                return Ok(stopped);
            }
            self.train_step()?;
            if self.team.stops(self.observer.stop_requested()) {
                self.settle()?;
                return self.interrupted();
            }
        }
    }

    /// Does whatever is due before the next step: evaluation, checkpoint, the end.
    fn between_steps(&mut self) -> Result<Option<Stopped>> {
        let step = self.position.step;
        if self.evaluation_due() && !self.evaluate_dev()? {
            return self.interrupted().map(Some);
        }
        if self.run.config.patience.is_some_and(|patience| self.position.stale >= patience) {
            self.check_others()?;
            self.save_checkpoint()?;
            return Ok(Some(Stopped::EarlyStopping));
        }
        let evaluated = self.position.last_dev.as_ref().is_some_and(|(at, _)| *at == step);
        let end = step == self.run.total_steps;
        if end || (step > 0 && (evaluated || step.is_multiple_of(self.run.config.control.checkpoint_interval))) {
            self.check_others()?;
            self.save_checkpoint()?;
        }
        Ok(end.then_some(Stopped::Completed))
    }

    fn interrupted(&mut self) -> Result<Stopped> {
        self.check_others()?;
        self.save_checkpoint()?;
        Ok(Stopped::Interrupted)
    }

    fn evaluation_due(&self) -> bool {
        let step = self.position.step;
        let done = self.position.last_dev.as_ref().is_some_and(|(at, _)| *at == step);
        self.evaluates_after(step) && !done && !self.run.dev.is_empty()
    }

    /// Whether dev is evaluated after this many steps.
    fn evaluates_after(&self, step: usize) -> bool {
        match self.run.config.eval_interval {
            Some(every) => step > 0 && step.is_multiple_of(every),
            None => self.run.epochs.ends_at(step),
        }
    }

    /// Steps submitted to the device.
    fn submitted(&self) -> usize {
        self.position.step + usize::from(self.pending.is_some())
    }

    /// Whether the results of all steps so far are needed before the next one.
    fn results_due(&self) -> bool {
        let (step, config) = (self.submitted(), &self.run.config);
        config.control.skip_nonfinite
            || self.nothing_updated()
            || step == self.run.total_steps
            || self.evaluates_after(step)
            || self.acts_after(step)
            || step.is_multiple_of(config.control.checkpoint_interval)
    }

    /// Reads the results of the last submitted step, unless already done.
    fn settle(&mut self) -> Result<()> {
        self.pending.take().map_or(Ok(()), |step| self.finish_step(step))
    }

    /// Submits an optimizer step on the next batch, then reads the results of the previous one.
    fn train_step(&mut self) -> Result<()> {
        let (step, config) = (self.submitted(), &self.run.config);
        let (epoch, number) = self.run.epochs.position(step);
        if epoch != self.epoch {
            (self.epoch, self.order) = (epoch, self.run.epochs.order(epoch));
            self.steps = self.run.epochs.steps(&self.order);
        }
        let chosen = self.order[self.steps[number].clone()].to_vec();
        let lr = learning_rate(config.schedule, self.run.lr, config.warmup, step, self.run.length_at(step));
        let before = if self.nothing_updated() { Some(self.session.trained_hashes()?) } else { None };
        let time = Instant::now();
        let submitted = self.submit(&chosen, lr);
        self.training_time += time.elapsed();
        self.torn = submitted.as_ref().err().is_some_and(may_have_updated);
        let next = Pending { submitted: submitted?, epoch, chosen, lr, before };
        self.pending.replace(next).map_or(Ok(()), |last| self.finish_step(last))
    }

    fn submit(&mut self, chosen: &[usize], lr: f64) -> Result<Submitted> {
        let (budget, turn) = (self.run.config.micro_batch_tokens(), self.team.turn());
        self.team.ask_to_stop(self.observer.stop_requested());
        let submitted = match &mut self.features {
            Some([features, ..]) => {
                features.share(&mut self.session, &self.run.train, chosen, budget, self.team)?;
                let pooled = features.get(&mut self.session, &self.run.train, chosen, budget)?;
                let batch = self.run.setup.objective.pack(chosen.iter().map(|&i| &self.run.train[i]))?;
                self.session.submit_head_step(&pooled, &batch, lr)?
            }
            None => self.session.submit_shared(&self.run.micro_batches(chosen, budget)?, lr, self.team)?,
        };
        if self.team.turn() == turn {
            self.team.assemble("a step")?;
        }
        Ok(submitted)
    }

    /// Reads the results of a step, checks and reports them.
    fn finish_step(&mut self, step: Pending) -> Result<()> {
        let Pending { submitted, epoch, chosen, lr, before } = step;
        let tokens: usize = chosen.iter().map(|&i| self.run.train[i].tokens.len()).sum();
        let time = Instant::now();
        let output = self.session.settle(submitted);
        self.training_time += time.elapsed();
        self.torn = match &output {
            Ok(output) => output.clip_coef >= 0.0,
            Err(error) => may_have_updated(error),
        };
        let output = output?;
        self.tokens += tokens as u64;
        self.check(&output, &chosen)?;
        if let Some(before) = before.filter(|_| lr > 0.0 && output.clip_coef >= 0.0) {
            self.check_first_update(&before)?;
        }
        // The method acts before the step counts, so that a failure leaves no state between the two.
        if output.clip_coef >= 0.0 && self.acts_after(self.position.step + 1) {
            self.act(&chosen, output.clip_coef)?;
        }
        self.position.step += 1;
        self.position.tokens += tokens as u64;
        self.torn = false;
        let report = StepReport {
            step: self.position.step,
            total_steps: self.run.length_at(self.position.step - 1),
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

    /// Whether the method acts after this many steps.
    fn acts_after(&self, step: usize) -> bool {
        let steps = self.run.setup.adaptation.steps;
        steps.is_some_and(|steps| step > 0 && (step as u64).is_multiple_of(steps.every))
    }

    /// Lets the method act after a step on these examples.
    fn act(&mut self, chosen: &[usize], clip_coef: f64) -> Result<()> {
        let (step, time) = (self.position.step, Instant::now());
        let point = StepPoint {
            step: step as u64 + 1,
            total_steps: self.run.length_at(step) as u64,
            clip_coef,
            micro_batches: &self.run.micro_batches(chosen, self.run.config.micro_batch_tokens())?,
            state: &self.method_state,
            weights: &self.run.weights,
        };
        self.method_state = self.session.on_step(&point)?;
        self.training_time += time.elapsed();
        Ok(())
    }

    /// Evaluates on dev and keeps the best state; false if interrupted.
    fn evaluate_dev(&mut self) -> Result<bool> {
        let Some((metrics, _)) = self.evaluate(1)? else { return Ok(false) };
        let step = self.position.step;
        let metric = metrics.scores.get(&self.run.task.primary).copied().unwrap_or(-metrics.loss);
        let better = self.position.best.is_none_or(|(best, _)| metric > best + self.run.config.min_delta);
        self.position.stale = if better { 0 } else { self.position.stale + 1 };
        if better {
            self.position.best = Some((metric, step));
            if self.run.config.patience.is_some() {
                self.best = self.session.snapshot()?;
            }
        }
        self.position.last_dev = Some((step, metrics.clone()));
        self.report("dev", &metrics, better)?;
        Ok(true)
    }

    /// Metrics and predictions of dev (1) or test (2); `None` if interrupted.
    fn evaluate(&mut self, split: usize) -> Result<Option<(Metrics, Vec<Prediction>)>> {
        let (name, examples) = if split == 1 { ("dev", &self.run.dev) } else { ("test", &self.run.test) };
        let features = self.features.as_mut().map(|f| &mut f[split]);
        let budget = self.run.config.micro_batch_tokens();
        let observer = &mut *self.observer;
        let found = evaluate_shared(&mut self.session, examples, budget, features, self.team, |team, done, total| {
            observer.eval_progress(name, done, total);
            let asks = observer.stop_requested();
            team.ask_to_stop(asks);
            !team.stops(asks)
        })?;
        if found.predictions.len() < examples.len() {
            return Ok(None);
        }
        let metrics = self.run.setup.objective.score(&self.run.task.metrics, examples, &found)?;
        Ok(Some((metrics.name_labels(&self.run.task.labels), found.predictions)))
    }

    fn report(&mut self, split: &str, metrics: &Metrics, best: bool) -> Result<()> {
        let report = EvalReport { step: self.position.step, split: split.into(), metrics: metrics.clone(), best };
        self.directory.log("eval", &report)?;
        self.observer.eval(&report);
        Ok(())
    }

    fn save_checkpoint(&mut self) -> Result<()> {
        if self.saved_at == Some(self.position.step) && !self.evaluated_since_saved() {
            return Ok(());
        }
        if let Some(defect) = self.defect()? {
            return Err(Error::Training(format!("the update made {defect}; lower --lr")));
        }
        self.position.metrics_bytes = self.directory.sync_log()?;
        let checkpoint = Checkpoint {
            position: self.position.clone(),
            updates: self.session.optimizer_steps(),
            best: self.best.clone(),
            indices: self.session.setup().adaptation.changed_indices(),
            method_state: self.method_state.clone(),
        };
        self.record_tuned()?;
        if self.team.leads() {
            let (state, session) = (self.session.state(), &mut self.session);
            self.checkpoints.save(&checkpoint, &state, |tensor| session.read_state(tensor))?;
        }
        self.saved_at = Some(self.position.step);
        self.save_counters();
        Ok(())
    }

    fn record_tuned(&mut self) -> Result<()> {
        self.session.tensors().tuned().map_or(Ok(()), |tuned| self.directory.record(&tuned))
    }

    /// A failure to write time and tokens does not end a run.
    fn save_counters(&mut self) {
        if let Err(error) = self.directory.save_counters(&self.counters()) {
            self.observer.message(&format!("warning: the time and tokens so far could not be saved: {error}"));
        }
    }

    /// Time and tokens of the run so far.
    fn counters(&self) -> Counters {
        Counters {
            training_seconds: self.before.training_seconds + self.training_time.as_secs_f64(),
            tokens: self.before.tokens + self.tokens,
        }
    }

    /// Describes a defect in the session's state: a value that is not finite, or that makes the logits of a few dev
    /// examples so. Such a state is never saved.
    fn defect(&mut self) -> Result<Option<String>> {
        for tensor in self.session.state() {
            if let Some(at) = self.session.read_state(&tensor)?.iter().position(|x| !x.is_finite()) {
                return Ok(Some(format!("{} not finite at {at}", tensor.title)));
            }
        }
        let examples = &self.run.dev[..self.run.dev.len().min(FEW_EXAMPLES)];
        let budget = self.run.config.micro_batch_tokens();
        let found = evaluate(&mut self.session, examples, budget, None, |_, _| true)?;
        let bad = found.predictions.iter().find(|p| p.logits.iter().any(|z| !z.is_finite()));
        let loss = (!found.loss.is_finite()).then(|| format!("the loss of dev examples {}", found.loss));
        Ok(bad.map(|p| format!("the logits of a dev example {:?}", p.logits)).or(loss))
    }

    fn evaluated_since_saved(&self) -> bool {
        self.position.metrics_bytes != self.directory.log_bytes()
    }

    fn best_step(&self) -> Option<usize> {
        self.position.best.filter(|_| !self.best.values.is_empty()).map(|(_, step)| step)
    }

    fn save(&mut self) -> Result<()> {
        let values = self.values()?;
        self.directory.save(self.run, &self.session.setup().adaptation, &values)
    }

    /// What the run adds to the model: trained values, and a new head even if the method does not train it.
    fn values(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut values = self.session.trained_values()?;
        let adaptation = &self.run.setup.adaptation;
        for (parameter, part) in adaptation.parameters.iter().zip(&adaptation.modes) {
            if matches!(part, TrainMode::Frozen) && self.run.weights.get(&parameter.name).is_none() {
                let drawn = self.session.tensors().read_f32(&parameter.name, parameter.numel() as usize)?;
                values.insert(parameter.name.clone(), drawn);
            }
        }
        Ok(values)
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.training_time.as_secs_f64().max(1e-9)
    }
}

/// A step whose results have not been read.
struct Pending {
    submitted: Submitted,
    epoch: usize,
    chosen: Vec<usize>,
    lr: f64,
    /// Hashes of the trained tensors, before the first step.
    before: Option<BTreeMap<String, u64>>,
}

/// Whether a step that failed with this error may have changed trained tensors.
fn may_have_updated(error: &Error) -> bool {
    !matches!(error, Error::Device(BackendError::OutOfMemory { .. }))
}

/// The number of dev examples on which a state is tested before it is saved.
const FEW_EXAMPLES: usize = 8;
