//! The method that changes nothing.

use super::adaptation::{Adaptation, TrainMode};
use sparta_plugin::method::{Method, MethodInfo, Options, Parameter, Selection};
use std::sync::Arc;

impl Adaptation {
    /// The unchanged model.
    pub fn none(parameters: Vec<Parameter>) -> Self {
        Self::plain(parameters, || TrainMode::Frozen)
    }

    /// The unchanged model with every parameter trained, to get all gradients.
    pub fn whole(parameters: Vec<Parameter>) -> Self {
        Self::plain(parameters, || TrainMode::Dense)
    }

    fn plain(parameters: Vec<Parameter>, mode: fn() -> TrainMode) -> Self {
        let method = Arc::new(Unadapted);
        let modes = parameters.iter().map(|_| mode()).collect();
        let info = method.describe();
        Adaptation::of_modes(method, info, Options::new(), parameters, modes)
    }
}

struct Unadapted;

impl Method for Unadapted {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "none".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "the unchanged model".into(),
            options: vec![],
            default_lr: 0.0,
        }
    }

    fn select(
        &self,
        parameters: &[Parameter],
        _: &Options,
    ) -> std::result::Result<Vec<Selection>, sparta_plugin::Error> {
        Ok(parameters.iter().map(|_| Selection::Frozen).collect())
    }
}
