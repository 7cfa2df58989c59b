//! What a method that acts between optimizer steps gets to know, and what it may read and change.

use crate::Error;
use crate::method::{Options, Parameter};
use serde::{Deserialize, Serialize};

/// When the host calls [`Method::on_step`](crate::method::Method::on_step), and what it reads besides values. Since ABI
/// minor version 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// The number of optimizer steps from one call to the next, at least 1.
    pub every: u64,
    /// Whether it reads gradients of trained tensors, which the device must then keep after a step.
    #[serde(default)]
    pub gradients: bool,
    /// Whether it reads gradients of whole weights, for which the device must then have memory.
    #[serde(default)]
    pub whole_gradients: bool,
}

/// The optimizer step after which [`Method::on_step`](crate::method::Method::on_step) is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepInfo {
    /// The step, counted from 1.
    pub step: u64,
    /// The number of steps in the whole run.
    pub total_steps: u64,
    /// The method's options.
    pub options: Options,
    /// What the previous call returned; null before the first.
    pub state: serde_json::Value,
    /// What the method may read and change.
    pub tensors: Vec<OwnTensor>,
}

/// A tensor that a method trains or added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnTensor {
    /// The parameter's name, or for an added tensor the one that
    /// [`ExtraTensor::name`](crate::method::ExtraTensor::name) gives.
    pub name: String,
    /// How it relates to the parameter.
    pub form: OwnForm,
    /// The dimensions of its values: `[n]` if n elements of a parameter are trained.
    pub shape: Vec<usize>,
    /// The parameter it belongs to; for a shared tensor, the first of them.
    pub parameter: Parameter,
}

/// How a tensor of a method relates to its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnForm {
    /// The parameter itself, all of it trained.
    Dense,
    /// Chosen elements of the parameter; the values are what is added to them.
    Sparse,
    /// An added tensor.
    Extra,
    /// An added tensor that is not trained.
    Frozen,
}

/// The tensors of a method after a step. Reads see the state before the call; changes are made when
/// [`Method::on_step`](crate::method::Method::on_step) has returned: all of them, or none if one is rejected.
pub trait StepTensors {
    /// Reads `values`, `gradient`, `whole_gradient`, `weight` or a slot of the optimizer (`m` and `v` of AdamW) of a
    /// tensor.
    fn read(&mut self, what: &str, name: &str) -> Result<Vec<f32>, Error>;

    /// The trained elements of a parameter: flat, row-major, ascending.
    fn indices(&mut self, name: &str) -> Result<Vec<u32>, Error>;

    /// Sets the values of a tensor, trained or not: as many finite numbers as it has. Its optimizer state stays.
    fn set(&mut self, name: &str, values: &[f32]) -> Result<(), Error>;

    /// Trains other elements of a parameter, as many as before. Elements that stay keep their value and optimizer
    /// state; those dropped return to the model's values, and new ones start with a change and a state of 0. Values set
    /// in the same call belong to the new elements.
    fn replace(&mut self, name: &str, indices: &[u32]) -> Result<(), Error>;
}

impl dyn StepTensors + '_ {
    /// The values of a tensor.
    pub fn values(&mut self, name: &str) -> Result<Vec<f32>, Error> {
        self.read("values", name)
    }

    /// The gradient that updated a trained tensor, clipped as the optimizer used it.
    pub fn gradient(&mut self, name: &str) -> Result<Vec<f32>, Error> {
        self.read("gradient", name)
    }

    /// The gradient of every element of a weight that is reparametrized or has trained elements: that of the mean loss
    /// over the step's batch, without dropout, at the model's current values. Weights read in the order of the model
    /// share backward passes.
    pub fn whole_gradient(&mut self, parameter: &str) -> Result<Vec<f32>, Error> {
        self.read("whole_gradient", parameter)
    }

    /// The values of a parameter that the method changes; of a reparametrized one, those without the method.
    pub fn weight(&mut self, parameter: &str) -> Result<Vec<f32>, Error> {
        self.read("weight", parameter)
    }
}
