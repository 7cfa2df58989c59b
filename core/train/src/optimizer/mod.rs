//! Optimizers: what they store for each trained value, and how they update it. Each is one file and a line in [`ALL`].

mod adamw;
mod adamw_bf16;
mod group;
mod sgd;

pub use group::{Group, GroupPlan};

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_graph::{DType, Graph, GraphError, Value};
use sparta_model::method::Trained;
use sparta_plugin::method::Rates;
use std::fmt;
use std::sync::Arc;

/// A value that an optimizer stores for each trained value, initially 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name on the device and in checkpoints.
    pub name: &'static str,
    /// Its name in messages.
    pub title: &'static str,
    pub dtype: DType,
}

/// What an update works on: flat tensors of one length that hold the values of many trained tensors.
#[derive(Clone, Debug)]
pub struct Target {
    /// The trained values, f32, updated in place.
    pub values: Value,
    /// Their gradient, f32.
    pub gradient: Value,
    /// One for each of [`Optimizer::slots`], in order.
    pub slots: Vec<Value>,
    /// Norm and clip factor from [`sparta_graph::ops::ClipCoef`].
    pub clip: Value,
    /// The step's numbers ([`sparta_graph::ops::step`]).
    pub step: Value,
    /// The step's random key.
    pub rng: Value,
    pub weight_decay: f32,
    /// The factor on the step's learning rate.
    pub lr_factor: f32,
    /// A number that differs between the targets of a step.
    pub salt: u32,
}

/// An update rule.
pub trait Optimizer: fmt::Debug + Send + Sync {
    /// Its name with parameters, for plans and reports.
    fn title(&self) -> String;

    fn slots(&self) -> Vec<Slot>;

    /// Adds the update of a target's values and slots to the graph.
    fn update(&self, graph: &mut Graph, target: &Target) -> std::result::Result<(), GraphError>;

    /// The numbers that the update reads at [`sparta_graph::ops::step::OPTIMIZER`], for the `t`-th update, counted from
    /// 1.
    fn numbers(&self, t: u64) -> [f32; 2] {
        let _ = t;
        [0.0; 2]
    }

    /// The largest gradient norm with which a tensor may stay unchanged by the first update; `None` if any may.
    fn negligible_norm(&self) -> Option<f64> {
        None
    }
}

/// The parameters of all optimizers; each uses its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hyperparameters {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub momentum: f32,
}

impl Default for Hyperparameters {
    /// The defaults of torch.optim.AdamW, and the usual momentum of SGD.
    fn default() -> Self {
        Hyperparameters { beta1: 0.9, beta2: 0.999, eps: 1e-8, momentum: 0.9 }
    }
}

type New = fn(&Hyperparameters) -> Arc<dyn Optimizer>;

/// All optimizers by their names in options; the first is the default.
pub const ALL: &[(&str, New)] = &[("adamw", adamw::new), ("sgd", sgd::new), ("adamw-bf16", adamw_bf16::new)];

/// An optimizer by its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// One of [`ALL`].
    pub name: String,
    #[serde(flatten)]
    pub parameters: Hyperparameters,
}

impl Default for Choice {
    fn default() -> Self {
        Choice { name: ALL[0].0.into(), parameters: Hyperparameters::default() }
    }
}

impl Choice {
    pub fn is_default(&self) -> bool {
        *self == Choice::default()
    }

    /// Errors: no optimizer of this name; a parameter out of range.
    pub fn optimizer(&self) -> Result<Arc<dyn Optimizer>> {
        let Hyperparameters { beta1, beta2, eps, momentum } = self.parameters;
        for (option, value) in [("--beta1", beta1), ("--beta2", beta2), ("--momentum", momentum)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::Usage(format!("{option} must be at least 0 and below 1, got {value}")));
            }
        }
        if !(eps > 0.0 && eps.is_finite()) {
            return Err(Error::Usage(format!("--eps must be a finite number above 0, got {eps}")));
        }
        let found = ALL.iter().find(|(name, _)| *name == self.name);
        let (_, new) = found.ok_or_else(|| {
            let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
            Error::Usage(format!("--optimizer must be one of {}, got {}", known.join(", "), self.name))
        })?;
        Ok(new(&self.parameters))
    }
}

/// How trained tensors are updated.
#[derive(Clone, Debug)]
pub struct Optimization {
    pub optimizer: Arc<dyn Optimizer>,
    /// Weight decay of tensors whose group sets none.
    pub weight_decay: f32,
    /// The user's groups; a tensor belongs to the first that matches it.
    pub groups: Vec<Group>,
    pub max_grad_norm: Option<f32>,
}

impl Default for Optimization {
    /// AdamW without weight decay or clipping.
    fn default() -> Self {
        let optimizer = adamw::new(&Hyperparameters::default());
        Optimization { optimizer, weight_decay: 0.0, groups: Vec::new(), max_grad_norm: None }
    }
}

/// Where a trained tensor's rates come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RatesOf {
    /// From the user's group at this position.
    Group(usize),
    /// From the method, for a tensor in no group.
    Method(Rates),
}

impl Optimization {
    /// Where a tensor's rates come from: the first of the user's groups that matches it, or else the method.
    pub fn group_of(&self, tensor: &Trained) -> RatesOf {
        let found = self.groups.iter().position(|group| group.contains(&tensor.name));
        found.map_or(RatesOf::Method(tensor.rates), RatesOf::Group)
    }

    /// The learning rate factor and weight decay.
    pub fn rates(&self, of: RatesOf) -> (f32, f32) {
        let (factor, decay) = match of {
            RatesOf::Group(position) => match self.groups.get(position) {
                Some(group) => (group.lr_factor, group.weight_decay),
                None => (1.0, None),
            },
            RatesOf::Method(rates) => (rates.lr_factor as f32, rates.weight_decay.map(|decay| decay as f32)),
        };
        (factor, decay.unwrap_or(self.weight_decay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_choices_are_named() {
        let good = Hyperparameters::default();
        let refused =
            |name: &str, parameters| Choice { name: name.into(), parameters }.optimizer().unwrap_err().to_string();
        assert!(refused("adam", good).contains("one of adamw, sgd, adamw-bf16, got adam"));
        assert!(refused("sgd", Hyperparameters { momentum: 1.0, ..good }).contains("--momentum"));
        assert!(refused("adamw", Hyperparameters { eps: f32::NAN, ..good }).contains("--eps"));
        for (name, _) in ALL {
            Choice { name: (*name).into(), parameters: good }.optimizer().unwrap();
        }
        let text = serde_json::to_string(&Choice::default()).unwrap();
        assert_eq!(serde_json::from_str::<Choice>(&text).unwrap(), Choice::default());
    }
}
