use super::adamw::AdamW;
use super::{Hyperparameters, Optimizer, Slot, Target};
use sparta_graph::ops::AdamBf16;
use sparta_graph::{DType, Graph, GraphError};
use std::sync::Arc;

/// AdamW with moments in bf16, rounded stochastically, which halves its state.
#[derive(Debug)]
struct AdamWBf16(AdamW);

pub fn new(parameters: &Hyperparameters) -> Arc<dyn Optimizer> {
    Arc::new(AdamWBf16(AdamW::of(parameters)))
}

impl Optimizer for AdamWBf16 {
    fn title(&self) -> String {
        "AdamW with bf16 moments".into()
    }

    fn slots(&self) -> Vec<Slot> {
        AdamW::moments(DType::BF16)
    }

    fn update(&self, graph: &mut Graph, target: &Target) -> Result<(), GraphError> {
        let Target { values, gradient, clip, step, rng, .. } = *target;
        let inputs = [&[values], &target.slots[..], &[gradient, clip, step, rng]].concat();
        graph.apply(AdamBf16 { adam: self.0.op(target), salt: target.salt }.into(), &inputs).map(drop)
    }

    fn numbers(&self, t: u64) -> [f32; 2] {
        self.0.numbers(t)
    }

    fn negligible_norm(&self) -> Option<f64> {
        self.0.negligible_norm()
    }
}
