//! Lets a method act between steps: it reads tensors, and its changes are applied once it has returned.

use crate::batch::Batch;
use crate::graphs::{Purpose, names};
use crate::layout::slot_name;
use crate::session::Session;
use crate::{Error, Result};
use serde_json::Value as Json;
use sparta_graph::ops::step as step_input;
use sparta_model::WeightSource;
use sparta_model::method::{Form, TrainMode, Trained};
use sparta_plugin::method::{OwnForm, OwnTensor, StepInfo, StepTensors};
use std::collections::BTreeMap;

/// The state of a run when its method acts.
pub struct StepPoint<'a> {
    /// Steps done, the last of which changed something.
    pub step: u64,
    pub total_steps: u64,
    /// The factor that clipped the step's gradients.
    pub clip_coef: f64,
    /// The step's batch.
    pub micro_batches: &'a [Batch],
    /// What the method last returned; null at first.
    pub state: &'a Json,
    /// The weights that the session was opened with.
    pub weights: &'a dyn WeightSource,
}

impl Session {
    /// Lets the method act, applies its changes and returns its new state.
    ///
    /// Errors: those of the method, or a change that is not allowed; nothing is changed then. A device that fails.
    pub fn on_step(&mut self, point: &StepPoint) -> Result<Json> {
        let adaptation = &self.setup().adaptation;
        let (method, name) = (adaptation.method.clone(), adaptation.info.name.clone());
        let own = self.own_tensors();
        let info = StepInfo {
            step: point.step,
            total_steps: point.total_steps,
            options: adaptation.options.clone(),
            state: point.state.clone(),
            tensors: own.iter().map(|own| own.info.clone()).collect(),
        };
        let mut access = Access {
            session: self,
            point,
            own,
            values: BTreeMap::new(),
            indices: BTreeMap::new(),
            group: None,
            failed: None,
        };
        let answer = method.on_step(&info, &mut access);
        let Access { values, indices, failed, .. } = access;
        if let Some(error) = failed {
            return Err(error);
        }
        let state = answer.map_err(|e| Error::Method(format!("method `{name}`, after step {}: {e}", point.step)))?;
        self.change(point.weights, values, indices)?;
        Ok(state)
    }

    fn own_tensors(&self) -> Vec<Own> {
        let adaptation = &self.setup().adaptation;
        let trained = adaptation.trained().len();
        let own = |(i, stored): (usize, Trained)| {
            let parameter = adaptation.parameters[stored.parameter].clone();
            let (name, form) = match stored.form {
                Form::Dense => (parameter.name.clone(), OwnForm::Dense),
                Form::Sparse => (parameter.name.clone(), OwnForm::Sparse),
                Form::Extra(_) if i < trained => (stored.name.clone(), OwnForm::Extra),
                Form::Extra(_) => (stored.name.clone(), OwnForm::Frozen),
            };
            let shape = stored.shape.clone();
            Own { stored, info: OwnTensor { name, form, shape, parameter } }
        };
        adaptation.stored().into_iter().enumerate().map(own).collect()
    }

    fn change(
        &mut self,
        weights: &dyn WeightSource,
        values: BTreeMap<String, Vec<f32>>,
        indices: BTreeMap<usize, Vec<u32>>,
    ) -> Result<()> {
        if values.is_empty() && indices.is_empty() {
            return Ok(());
        }
        for (position, indices) in indices {
            self.exchange(weights, position, indices)?;
        }
        for (name, values) in values {
            self.tensors().write_floats(&name, &values)?;
        }
        self.follow_trained()
    }

    /// Trains different elements of a parameter: those that stay keep their value and optimizer state, new ones start
    /// at zero.
    fn exchange(&mut self, weights: &dyn WeightSource, position: usize, indices: Vec<u32>) -> Result<()> {
        let adaptation = &self.setup().adaptation;
        let TrainMode::Sparse(set) = &adaptation.modes[position] else { return Ok(()) };
        let before: Vec<Option<usize>> = indices.iter().map(|i| set.indices.binary_search(i).ok()).collect();
        let trained = adaptation.trained().into_iter().find(|t| t.parameter == position && t.form == Form::Sparse);
        let Some(Trained { name, .. }) = trained else { return Ok(()) };
        let slots = self.setup().optimization.optimizer.slots();
        let names = slots.iter().map(|slot| slot_name(slot.name, &name)).collect::<Vec<_>>();
        for name in std::iter::once(name).chain(names) {
            let old = self.tensors().read_floats(&name)?;
            let new: Vec<f32> = before.iter().map(|at| at.map_or(0.0, |at| old[at])).collect();
            self.tensors().write_floats(&name, &new)?;
        }
        self.put_indices(weights, position, indices)
    }
}

/// A tensor of the method: how the method sees it, and its name in the session.
struct Own {
    stored: Trained,
    info: OwnTensor,
}

/// A session's tensors during one call of a method.
struct Access<'a, 'p> {
    session: &'a mut Session,
    point: &'a StepPoint<'p>,
    own: Vec<Own>,
    /// New values by the tensor's name on the device, and new indices by the parameter's position.
    values: BTreeMap<String, Vec<f32>>,
    indices: BTreeMap<usize, Vec<u32>>,
    /// The group whose whole gradients are on the device now.
    group: Option<usize>,
    /// A failure of the device, which must not be reported as one of the method.
    failed: Option<Error>,
}

type Answer<T> = std::result::Result<T, sparta_plugin::Error>;

impl Access<'_, '_> {
    fn device<T>(&mut self, work: impl FnOnce(&mut Session) -> Result<T>) -> Answer<T> {
        work(self.session).map_err(|error| {
            let message = error.to_string();
            self.failed.get_or_insert(error);
            message.into()
        })
    }

    fn own(&self, name: &str) -> Answer<&Own> {
        self.own.iter().find(|own| own.info.name == name).ok_or_else(|| {
            format!("it has no tensor `{name}`; the request lists those it has, the first is {}", self.first()).into()
        })
    }

    fn first(&self) -> String {
        self.own.first().map_or("none".into(), |own| format!("`{}`", own.info.name))
    }

    fn trained(&self, what: &str, name: &str) -> Answer<&Own> {
        let own = self.own(name)?;
        match own.info.form {
            OwnForm::Frozen => Err(format!("`{name}` is not trained, so it has no `{what}`").into()),
            _ => Ok(own),
        }
    }

    /// The position of a parameter that the method changes.
    fn parameter(&self, name: &str) -> Answer<usize> {
        let adaptation = &self.session.setup().adaptation;
        let changed = |&position: &usize| !matches!(adaptation.modes[position], TrainMode::Frozen);
        let position = adaptation.position(name).filter(changed);
        position.ok_or_else(|| {
            format!("`{name}` is not a parameter that it trains, in whole or in part, or reparametrizes").into()
        })
    }

    fn gradient(&mut self, name: &str) -> Answer<Vec<f32>> {
        if !self.session.setup().adaptation.keeps_gradients() {
            return Err("it reads gradients without declaring it: set `gradients` in `steps`".into());
        }
        let (name, clip) = (names::grad_sum(&self.trained("gradient", name)?.stored.name), self.point.clip_coef as f32);
        let mut gradient = self.device(|session| session.tensors().read_floats(&name))?;
        gradient.iter_mut().for_each(|x| *x *= clip);
        Ok(gradient)
    }

    fn whole_gradient(&mut self, name: &str) -> Answer<Vec<f32>> {
        let position = self.parameter(name)?;
        let groups = self.session.setup().whole_groups();
        if groups.is_empty() {
            return Err(
                "it reads gradients of whole weights without declaring it: set `whole_gradients` in `steps`".into()
            );
        }
        let group = groups.iter().position(|group| group.parts.iter().any(|&(of, _)| of == position));
        let group = group.ok_or_else(|| {
            sparta_plugin::Error(format!("all of `{name}` is trained: read its `gradient` instead of `whole_gradient`"))
        })?;
        let batches = self.point.micro_batches;
        if self.group != Some(group) {
            self.device(|session| session.compute_whole_gradients(group, batches))?;
            self.group = Some(group);
        }
        self.device(|session| session.tensors().read_floats(&names::whole_gradient(name)))
    }
}

impl Session {
    fn compute_whole_gradients(&mut self, group: usize, batches: &[Batch]) -> Result<()> {
        let purpose = |session: &Session, i: usize| {
            Ok::<_, Error>(Purpose::WholeGradients { size: session.size_of(&batches[i])?, group, first: i == 0 })
        };
        // All plans are prepared first: one that needs a larger arena would invalidate those already queued.
        for i in 0..batches.len() {
            self.prepared(purpose(self, i)?)?;
        }
        let numbers = self.step_numbers(0.0, batches.iter().map(Batch::targets).sum());
        for (i, batch) in batches.iter().enumerate() {
            let mut numbers = numbers;
            numbers[step_input::LOSS_WEIGHT] *= batch.weight;
            self.tensors().queue_write(names::STEP, &numbers)?;
            self.queue_batch(batch)?;
            let plan = self.prepared(purpose(self, i)?)?;
            self.tensors().queue_run(plan);
        }
        Ok(())
    }
}

impl StepTensors for Access<'_, '_> {
    fn read(&mut self, what: &str, name: &str) -> Answer<Vec<f32>> {
        let device_name = match what {
            "gradient" => return self.gradient(name),
            "whole_gradient" => return self.whole_gradient(name),
            "values" => self.own(name)?.stored.name.clone(),
            "weight" => {
                let position = self.parameter(name)?;
                return self.device(|session| session.read_weight(position));
            }
            slot => {
                let slots = self.session.setup().optimization.optimizer.slots();
                let slot = slots.iter().find(|known| known.name == slot).ok_or_else(|| {
                    let slots: Vec<&str> = slots.iter().map(|slot| slot.name).collect();
                    sparta_plugin::Error(format!(
                        "there is no `{slot}` to read; there are values, gradient, whole_gradient, weight, indices \
                         and, from this run's optimizer, {}",
                        slots.join(", ")
                    ))
                })?;
                slot_name(slot.name, &self.trained(slot.name, name)?.stored.name)
            }
        };
        self.device(|session| session.tensors().read_floats(&device_name))
    }

    fn indices(&mut self, name: &str) -> Answer<Vec<u32>> {
        match &self.session.setup().adaptation.modes[self.parameter(name)?] {
            TrainMode::Sparse(set) => Ok(set.indices.clone()),
            _ => Err(format!("`{name}` is not trained by elements, so it has no `indices`").into()),
        }
    }

    fn set(&mut self, name: &str, values: &[f32]) -> Answer<()> {
        let stored = &self.own(name)?.stored;
        let (expected, got, device_name) = (stored.numel(), values.len(), stored.name.clone());
        if expected != got {
            return Err(format!("`{name}`: expected {expected} values, got {got}").into());
        }
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            return Err(format!("`{name}`: expected finite values, got {} at {at}", values[at]).into());
        }
        self.values.insert(device_name, values.to_vec());
        Ok(())
    }

    fn replace(&mut self, name: &str, indices: &[u32]) -> Answer<()> {
        self.indices(name)?;
        let position = self.parameter(name)?;
        self.session.setup().adaptation.check_indices(position, indices)?;
        self.indices.insert(position, indices.to_vec());
        Ok(())
    }
}
