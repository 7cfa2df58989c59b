//! What a method that acts between optimizer steps is told, and what it may read and change.

use crate::Error;
use crate::method::{Options, Parameter};
use serde::{Deserialize, Serialize};

/// When the host calls [`Method::on_step`](crate::method::Method::on_step), and what that reads besides values. Since ABI
/// minor version 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// The number of optimizer steps from one call to the next, at least 1.
    pub every: u64,
    /// Whether it reads gradients of trained tensors: the device then keeps them after a step.
    #[serde(default)]
    pub gradients: bool,
    /// Whether it reads gradients of whole weights: the device then has memory for them.
    #[serde(default)]
    pub whole_gradients: bool,
}

/// The optimizer step after which [`Method::on_step`](crate::method::Method::on_step) is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepInfo {
    /// From 1 on.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Checked values of the method's options.
    pub options: Options,
    /// What the previous call returned; null before the first.
    pub state: serde_json::Value,
    /// What the method may read and change.
    pub tensors: Vec<OwnTensor>,
}

/// A tensor of the method's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnTensor {
    /// That of the parameter, of an added tensor as [`ExtraTensor::name`](crate::method::ExtraTensor::name) says.
    pub name: String,
    /// What it is of the parameter.
    pub form: OwnForm,
    /// Of its values: `[n]` where n elements of a parameter are trained.
    pub shape: Vec<usize>,
    /// What it belongs to; of a shared tensor the first of its parameters.
    pub parameter: Parameter,
}

/// How a tensor of the method's own stands for its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnForm {
    /// A parameter that is trained whole.
    Dense,
    /// Chosen elements of a parameter; its values are what is added to them.
    Sparse,
    /// An added tensor.
    Extra,
    /// An added tensor that is not trained.
    Frozen,
}

/// The tensors of a method after a step. What is read is as it was before the call; changes are made when
/// [`Method::on_step`](crate::method::Method::on_step) has returned, all of them or, where one is refused, none.
pub trait StepTensors {
    /// Reads `values`, `gradient`, `whole_gradient`, `weight` or a slot of the optimizer (`m` and `v` of AdamW) of a tensor.
    fn read(&mut self, what: &str, name: &str) -> Result<Vec<f32>, Error>;

    /// The trained elements of a parameter: flat, row-major, ascending.
    fn indices(&mut self, name: &str) -> Result<Vec<u32>, Error>;

    /// Sets the values of a tensor, trained or not: as many finite numbers as it has. The optimizer's state stays.
    fn set(&mut self, name: &str, values: &[f32]) -> Result<(), Error>;

    /// Trains other elements of a parameter, as many as before. Those that stay keep value and optimizer state, those that
    /// are gone are again what the model has, new ones begin at a change of 0 with a state of 0. Values that are set in the
    /// same call are those of the new elements.
    fn replace(&mut self, name: &str, indices: &[u32]) -> Result<(), Error>;
}

impl dyn StepTensors + '_ {
    /// The values of a tensor.
    pub fn values(&mut self, name: &str) -> Result<Vec<f32>, Error> {
        self.read("values", name)
    }

    /// The gradient with which a trained tensor was updated, clipped as the optimizer took it.
    pub fn gradient(&mut self, name: &str) -> Result<Vec<f32>, Error> {
        self.read("gradient", name)
    }

    /// The gradient of every element of a weight of which elements are trained or that is reparametrised: of the mean loss
    /// over the step's batch, without dropout, where the model is now. Weights that are read in the order of the model share
    /// passes.
    pub fn whole_gradient(&mut self, parameter: &str) -> Result<Vec<f32>, Error> {
        self.read("whole_gradient", parameter)
    }

    /// The values of a parameter that the method does not leave as it is; those of a reparametrised one as they are without it.
    pub fn weight(&mut self, parameter: &str) -> Result<Vec<f32>, Error> {
        self.read("weight", parameter)
    }
}
