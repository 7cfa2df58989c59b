use super::{Hyperparameters, Optimizer, Slot, Target};
use sparta_graph::ops::Sgd as Op;
use sparta_graph::{DType, Graph, GraphError};
use std::sync::Arc;

/// Stochastic gradient descent with momentum, which may be 0.
#[derive(Debug)]
struct Sgd {
    momentum: f32,
}

pub fn new(parameters: &Hyperparameters) -> Arc<dyn Optimizer> {
    Arc::new(Sgd { momentum: parameters.momentum })
}

impl Optimizer for Sgd {
    fn title(&self) -> String {
        format!("SGD with momentum {}", self.momentum)
    }

    fn slots(&self) -> Vec<Slot> {
        let momentum = Slot { name: "momentum", title: "momentum", dtype: DType::F32 };
        (self.momentum != 0.0).then_some(momentum).into_iter().collect()
    }

    fn update(&self, graph: &mut Graph, target: &Target) -> Result<(), GraphError> {
        let Target { values, gradient, clip, step, weight_decay, lr_factor, .. } = *target;
        let op = Op { momentum: self.momentum, weight_decay, lr_factor };
        let inputs = [&[values, gradient, clip, step], &target.slots[..]].concat();
        graph.apply(op.into(), &inputs).map(drop)
    }
}
