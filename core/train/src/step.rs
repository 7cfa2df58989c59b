//! Optimizer steps: all inputs of a step go to the device in one upload, and all results come back in one tensor.

use crate::batch::Batch;
use crate::ceiling::Ceiling;
use crate::graphs::{Purpose, StepNumbers, names, results};
use crate::profile::Profile;
use crate::session::Session;
use crate::tensors::Requested;
use crate::{Error, Result};
use sparta_graph::PlanId;
use sparta_graph::ops::step as step_input;

/// The numbers of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutput {
    /// The mean loss over the step's targets.
    pub loss: f64,
    /// The global norm of all trained gradients before clipping.
    pub grad_norm: f64,
    /// The factor that clipped the gradients. Negative if this step's loss or norm, or that of an earlier step not yet
    /// settled, is not finite: nothing was updated then.
    pub clip_coef: f64,
}

/// A step that was submitted to the device and whose results have not been read yet.
#[must_use = "a step counts once Session::settle has read its results"]
pub struct Submitted {
    results: Requested,
    /// The step's numbers, which the device must have copied.
    canary: StepNumbers,
}

impl Session {
    /// One optimizer step on micro-batches that together make up the batch. Its loss is the mean over all their
    /// targets, weighted by micro-batch.
    pub fn step(&mut self, micro_batches: &[Batch], lr: f64) -> Result<StepOutput> {
        let submitted = self.submit_step(micro_batches, lr)?;
        self.settle(submitted)
    }

    /// Like [`Session::step`], without waiting for the results. More steps may be submitted before they are read; if
    /// this one turns out not to be finite, later ones change nothing either.
    pub fn submit_step(&mut self, micro_batches: &[Batch], lr: f64) -> Result<Submitted> {
        let targets = micro_batches.iter().map(Batch::targets).sum();
        let [batch] = micro_batches else { return self.submit_sums(micro_batches, targets, lr) };
        if self.setup().adaptation.keeps_gradients() {
            return self.submit_sums(micro_batches, targets, lr);
        }
        check_targets(targets)?;
        let plan = self.prepared(Purpose::Step(self.size_of(batch)?))?;
        let mut numbers = self.step_numbers(lr, targets);
        numbers[step_input::LOSS_WEIGHT] *= batch.weight;
        self.queue_rng(0)?;
        self.queue_batch(batch)?;
        self.submit_update(plan, numbers)
    }

    fn submit_sums(&mut self, micro_batches: &[Batch], targets: usize, lr: f64) -> Result<Submitted> {
        self.accumulate(micro_batches, targets)?;
        self.apply(lr)
    }

    /// Adds the gradients of micro-batches to the sums of a step with this many targets in total. They are computed
    /// with the next [`Session::apply`] or when something is read. Needs [`crate::SessionLimits::micro_batches`].
    pub fn accumulate(&mut self, micro_batches: &[Batch], targets: usize) -> Result<()> {
        check_targets(targets)?;
        let numbers = self.step_numbers(0.0, targets);
        // All plans are prepared first: one that needs a larger arena would invalidate those already queued.
        for (i, batch) in micro_batches.iter().enumerate() {
            self.prepared(self.gradient_purpose(batch, self.accumulated + i)?)?;
        }
        self.prepared(Purpose::Update)?;
        for batch in micro_batches {
            let purpose = self.gradient_purpose(batch, self.accumulated)?;
            let mut numbers = numbers;
            numbers[step_input::LOSS_WEIGHT] *= batch.weight;
            self.tensors().queue_write(names::STEP, &numbers)?;
            self.queue_rng(self.accumulated)?;
            self.queue_batch(batch)?;
            let plan = self.prepared(purpose)?;
            self.tensors().queue_run(plan);
            self.accumulated += 1;
        }
        self.targets = targets;
        Ok(())
    }

    /// Updates the trained tensors from the gradient sums, without waiting for the results.
    ///
    /// Errors: nothing was accumulated.
    pub fn apply(&mut self, lr: f64) -> Result<Submitted> {
        if std::mem::take(&mut self.accumulated) == 0 {
            return Err(Error::Training("there are no gradients to apply".into()));
        }
        let numbers = self.step_numbers(lr, self.targets);
        let plan = self.prepared(Purpose::Update)?;
        self.submit_update(plan, numbers)
    }

    /// One optimizer step of only the head on pooled hidden states, f32 `[N, hidden]`, without waiting for the results.
    pub fn submit_head_step(&mut self, features: &[f32], batch: &Batch, lr: f64) -> Result<Submitted> {
        check_targets(batch.targets())?;
        let plan = self.prepared(Purpose::HeadStep(batch.rows.len()))?;
        let numbers = self.step_numbers(lr, batch.targets());
        self.tensors().queue_write(names::FEATURES, features)?;
        self.queue_labels(batch)?;
        self.queue_rng(0)?;
        self.submit_update(plan, numbers)
    }

    /// Waits for the results of the oldest step submitted but not settled.
    ///
    /// Errors: a device that fails or did not run what it was given.
    pub fn settle(&mut self, step: Submitted) -> Result<StepOutput> {
        let values = self.tensors().fetch_f32(step.results)?;
        self.in_flight -= 1;
        let ([loss, clip, canary], _) = results::of_step();
        self.check_canary(&step.canary, &values[canary..canary + step_input::LEN])?;
        let clip_coef = values[clip + 1].into();
        if clip_coef < 0.0 {
            // A step without an update does not count.
            self.steps -= 1;
        }
        Ok(StepOutput { loss: values[loss].into(), grad_norm: values[clip].into(), clip_coef })
    }

    /// Like [`Session::step`] on one micro-batch, with the time of each call.
    ///
    /// Errors: those of a step; a device that cannot time single calls.
    pub fn step_profiled(&mut self, batch: &Batch, lr: f64, ceiling: &Ceiling) -> Result<(StepOutput, Profile)> {
        check_targets(batch.targets())?;
        let purpose = Purpose::Step(self.size_of(batch)?);
        let id = self.prepared(purpose)?;
        let numbers = self.step_numbers(lr, batch.targets());
        self.queue_rng(0)?;
        self.queue_batch(batch)?;
        self.queue_update_inputs(&numbers)?;
        let times = self.tensors().run_profiled(id)?;
        let plan = self.device.plan(&self.setup().graphs().build(purpose)?);
        let profile = Profile::new(&plan, &batch.lengths(), &times, ceiling.clone())?;
        let submitted = self.request_results(numbers)?;
        Ok((self.settle(submitted)?, profile))
    }

    /// The purpose that computes the gradients of a micro-batch after this many others of its step.
    fn gradient_purpose(&self, batch: &Batch, others: usize) -> Result<Purpose> {
        let size = self.size_of(batch)?;
        Ok(if others == 0 { Purpose::FirstMicroBatch(size) } else { Purpose::MicroBatch(size) })
    }

    /// Submits a step that ends with this plan; its batches must be queued.
    fn submit_update(&mut self, plan: PlanId, numbers: StepNumbers) -> Result<Submitted> {
        self.queue_update_inputs(&numbers)?;
        self.tensors().queue_run(plan);
        self.request_results(numbers)
    }

    fn queue_update_inputs(&mut self, numbers: &StepNumbers) -> Result<()> {
        if self.in_flight == 0 {
            // The caller knows about the step that was not finite, and chose to continue.
            self.tensors().queue_write(names::LATCH, &[0f32])?;
        }
        self.queue_numbers(numbers)
    }

    fn request_results(&mut self, canary: StepNumbers) -> Result<Submitted> {
        let results = self.tensors().request_f32(names::RESULTS, results::of_step().1)?;
        self.in_flight += 1;
        self.steps += 1;
        Ok(Submitted { results, canary })
    }
}

pub(crate) fn check_targets(targets: usize) -> Result<()> {
    if targets == 0 {
        return Err(Error::Training("a batch without any target cannot be trained on".into()));
    }
    Ok(())
}
