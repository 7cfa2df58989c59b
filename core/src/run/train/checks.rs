//! Checks before the first step and after each: a run that cannot learn stops with the reason.

use super::Trainer;
use crate::job::Observer;
use crate::method::Form;
use crate::run::prepare::Prepared;
use crate::train::graphs::Purpose;
use crate::train::{NonFinite, StepOutput};
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use sparta_graph::Backend;
use sparta_plugin::testing::own_operations;
use std::collections::BTreeMap;

/// Compares the kernels of the method's own operations with their subgraphs, on the run's device in a
/// small model. If the method refuses that model, a message says that nothing was compared.
///
/// Errors: results that differ; a device that fails.
pub(super) fn own_kernels(run: &Prepared, device: &mut dyn Backend, observer: &mut dyn Observer) -> Result<()> {
    if !run.own_operations || device.info().own_kernels.is_empty() {
        return Ok(());
    }
    let adaptation = &run.setup.adaptation;
    let name = &adaptation.info.name;
    let cases = own_operations(&*adaptation.method, &adaptation.options, device);
    let Ok(cases) = cases.inspect_err(|e| {
        observer.message(&format!("the kernels of method `{name}` are not compared with their subgraphs: {e}"));
    }) else {
        return Ok(());
    };
    let other = |e: sparta_plugin::Error| {
        Error::Method(format!("method `{name}`: {e}; run it on another device, and report this to its author"))
    };
    cases.iter().try_for_each(|case| case.check_kernels(device).map(drop).map_err(other))
}

impl Trainer<'_> {
    /// Errors: numbers that are not finite, unless such steps are skipped; gradients that are all zero. A jump of the
    /// loss is reported.
    pub(super) fn check(&mut self, output: &StepOutput, chosen: &[usize]) -> Result<()> {
        if !output.loss.is_finite() || !output.grad_norm.is_finite() {
            return self.not_finite(output, chosen);
        }
        if self.nothing_updated() {
            self.check_first_gradients(output)?;
        }
        let mean = self.position.mean_loss.unwrap_or(output.loss);
        if output.loss > 3.0 * mean + 1.0 {
            let step = self.position.step + 1;
            self.observer.message(&format!("step {step}: the loss jumped to {:.4} from about {mean:.4}", output.loss));
        }
        self.position.mean_loss = Some(mean + 0.05 * (output.loss - mean));
        Ok(())
    }

    /// Errors: a process whose values differ from the others, because its device computes something else.
    pub(super) fn check_others(&mut self) -> Result<()> {
        if self.team.size() == 1 {
            return Ok(());
        }
        let mut hash = Sha256::new();
        for tensor in self.session.state() {
            hash.update(bytemuck::cast_slice::<f32, u8>(&self.session.read_state(&tensor)?));
        }
        let all = self.team.exchange("the state", &hash.finalize())?;
        let Some(other) = all.iter().position(|hash| *hash != all[0]) else { return Ok(()) };
        let name = |rank: usize| {
            let member = self.team.members().get(rank);
            member.map_or(String::new(), |member| format!("{} on {}", member.device, member.host))
        };
        Err(Error::Training(format!(
            "after step {} process {other} ({}) has different values from process 0 ({}), so they compute differently: \
             give all processes the same kind of device, with the same driver",
            self.position.step,
            name(other),
            name(0)
        )))
    }

    /// Whether no step before this one has updated anything.
    pub(super) fn nothing_updated(&self) -> bool {
        self.position.step == self.position.skipped
    }

    fn not_finite(&mut self, output: &StepOutput, chosen: &[usize]) -> Result<()> {
        let step = self.position.step + 1;
        if let Some(next) = self.pending.take() {
            // Like this step, it has changed nothing.
            self.session.settle(next.submitted)?;
        }
        self.check_trained()?;
        let norms = self.session.grad_norms()?;
        let tensor = norms.iter().find(|(_, norm)| !norm.is_finite()).map_or("all tensors together", |(name, _)| name);
        let what = match output.loss.is_finite() {
            true => format!("the gradient of {tensor} is not finite"),
            false => format!("the loss is {}", output.loss),
        };
        // The step's error is reported even if its cause cannot be found.
        let cause = self.find_non_finite(chosen).ok().flatten().map_or(String::new(), |found| format!(": {found}"));
        // A step that has updated the tensors can no longer be skipped.
        if !self.run.config.control.skip_nonfinite || output.clip_coef >= 0.0 {
            return Err(Error::Training(format!(
                "step {step}: {what}{cause}; lower --lr, or skip such steps with --skip-nonfinite"
            )));
        }
        self.position.skipped += 1;
        let skipped = self.position.skipped;
        self.observer.message(&format!("step {step}: {what}{cause}; skipped ({skipped} so far)"));
        Ok(())
    }

    /// The first op of a step on these examples whose results are not finite.
    fn find_non_finite(&mut self, chosen: &[usize]) -> Result<Option<NonFinite>> {
        let batches = self.run.micro_batches(chosen, self.run.config.micro_batch_tokens())?;
        if self.features.is_none() {
            return self.session.find_non_finite(&batches, Purpose::Step);
        }
        let head = self.session.find_non_finite_in(Purpose::HeadStep(chosen.len()))?;
        Ok(self.session.find_non_finite(&batches, Purpose::Pool)?.or(head))
    }

    /// Checks the trained tensors for values that are not finite, in which case no batch is to blame. The model's
    /// weights were checked when they were loaded.
    fn check_trained(&mut self) -> Result<()> {
        let step = self.position.step + 1;
        for (name, values) in self.session.trained_values()? {
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                return Err(Error::Training(format!(
                    "step {step}: the trained tensor {name} is not finite at {at}; lower --lr"
                )));
            }
        }
        Ok(())
    }

    /// After the first step every tensor with a gradient must have changed, unless the gradient is negligible for the
    /// optimizer.
    pub(super) fn check_first_update(&mut self, before: &BTreeMap<String, u64>) -> Result<()> {
        let Some(negligible) = self.run.setup.optimization.optimizer.negligible_norm() else { return Ok(()) };
        let after = self.session.trained_hashes()?;
        for (name, norm) in self.session.grad_norms()? {
            if norm > negligible && before.get(&name) == after.get(&name) {
                return Err(Error::Training(format!(
                    "step 1: {name} has a gradient of norm {norm:.3e}, but the update changed nothing; raise --lr, which \
                     is {} here",
                    self.run.lr
                )));
            }
        }
        Ok(())
    }

    /// At the first step every trained tensor must have a gradient, except added tensors of a reparametrization, such
    /// as LoRA's A while B is zero.
    fn check_first_gradients(&mut self, output: &StepOutput) -> Result<()> {
        if output.grad_norm == 0.0 {
            return Err(Error::Training("every gradient is zero: this run cannot learn".into()));
        }
        let forms: BTreeMap<String, Form> =
            self.run.setup.adaptation.trained().into_iter().map(|t| (t.name, t.form)).collect();
        for (name, norm) in self.session.grad_norms()? {
            if norm == 0.0 && forms.get(&name).is_some_and(|form| !matches!(form, Form::Extra(_))) {
                self.observer.message(&format!("step 1: the gradient of {name} is zero"));
            }
        }
        Ok(())
    }
}
