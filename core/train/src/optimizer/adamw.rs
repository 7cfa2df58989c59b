use super::{Hyperparameters, Optimizer, Slot, Target};
use sparta_graph::ops::Adam;
use sparta_graph::{DType, Graph, GraphError};
use std::sync::Arc;

/// AdamW (Loshchilov and Hutter 2019), with the arithmetic of torch.optim.AdamW.
#[derive(Debug)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
}

pub fn new(parameters: &Hyperparameters) -> Arc<dyn Optimizer> {
    Arc::new(AdamW::of(parameters))
}

impl AdamW {
    pub fn of(parameters: &Hyperparameters) -> Self {
        let Hyperparameters { beta1, beta2, eps, .. } = *parameters;
        AdamW { beta1, beta2, eps }
    }

    /// The two moments, stored in this type.
    pub fn moments(dtype: DType) -> Vec<Slot> {
        let [m, v] = [("m", "first moment"), ("v", "second moment")].map(|(name, title)| Slot { name, title, dtype });
        vec![m, v]
    }

    pub fn op(&self, target: &Target) -> Adam {
        let Target { weight_decay, lr_factor, .. } = *target;
        Adam { beta1: self.beta1, beta2: self.beta2, eps: self.eps, weight_decay, lr_factor }
    }
}

impl Optimizer for AdamW {
    fn title(&self) -> String {
        "AdamW".into()
    }

    fn slots(&self) -> Vec<Slot> {
        AdamW::moments(DType::F32)
    }

    fn update(&self, graph: &mut Graph, target: &Target) -> Result<(), GraphError> {
        let Target { values, gradient, clip, step, .. } = *target;
        let inputs = [&[values], &target.slots[..], &[gradient, clip, step]].concat();
        graph.apply(self.op(target).into(), &inputs).map(drop)
    }

    /// The bias corrections, `1 - beta^t`.
    fn numbers(&self, t: u64) -> [f32; 2] {
        [self.beta1, self.beta2].map(|beta| (1.0 - f64::from(beta).powf(t as f64)) as f32)
    }

    /// If the norm is below `eps`, the update is smaller than the learning rate.
    fn negligible_norm(&self) -> Option<f64> {
        Some(self.eps.into())
    }
}
