//! Reverse-mode differentiation on the graph, pruned by need: no gradient is computed for a tensor that leads to no
//! requested one.

use crate::graph::{Graph, GraphError, Value};
use crate::ops::{Add, Gather};
use std::collections::HashMap;

/// Which elements of a tensor's gradient are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradRequest {
    Dense,
    /// Only the elements at `index` (u32 `[n]`, flat, ascending). With `row_ptr` (of [`crate::ops::SampledGrad`]) those
    /// of a linear layer's weight are computed alone; otherwise they are picked from the dense gradient.
    Sampled {
        index: Value,
        row_ptr: Option<Value>,
    },
}

/// The state of one backward pass; gradient rules of ops work on it.
pub struct GradCtx<'g> {
    pub graph: &'g mut Graph,
    needed: Vec<bool>,
    grads: HashMap<Value, Value>,
    requests: HashMap<Value, GradRequest>,
}

impl GradCtx<'_> {
    /// Whether the gradient of `value` is wanted.
    pub fn needs(&self, value: Value) -> bool {
        self.needed.get(value.0 as usize).copied().unwrap_or(false)
    }

    /// Takes what has been accumulated for `value` so far, for a rule that adds to it in its own kernel; the rule
    /// must [`add`](Self::add) the sum.
    pub fn take(&mut self, value: Value) -> Option<Value> {
        if self.sampled(value).is_some() { None } else { self.grads.remove(&value) }
    }

    /// The index set, when only chosen elements of this gradient are wanted.
    pub fn sampled(&self, value: Value) -> Option<(Value, Option<Value>)> {
        match self.requests.get(&value) {
            Some(GradRequest::Sampled { index, row_ptr }) => Some((*index, *row_ptr)),
            _ => None,
        }
    }

    /// Adds a dense gradient; the chosen elements of it are taken where only those are wanted.
    pub fn add(&mut self, value: Value, grad: Value) -> Result<(), GraphError> {
        match self.sampled(value) {
            Some((index, _)) => {
                let chosen = self.graph.one(Gather {}, &[grad, index])?;
                self.add_sampled(value, chosen)
            }
            None => self.add_sampled(value, grad),
        }
    }

    /// Adds a gradient that already has the requested form.
    pub fn add_sampled(&mut self, value: Value, grad: Value) -> Result<(), GraphError> {
        let sum = match self.grads.remove(&value) {
            Some(so_far) => self.graph.one(Add {}, &[so_far, grad])?,
            None => grad,
        };
        self.grads.insert(value, sum);
        Ok(())
    }

    pub fn add_if_needed(&mut self, value: Value, grad: Value) -> Result<(), GraphError> {
        if self.needs(value) { self.add(value, grad) } else { Ok(()) }
    }
}

/// Appends the backward pass to `graph` and returns the gradient of each requested tensor, in order: f32, of the
/// tensor's shape, or `[n]` for a sampled one.
///
/// `seeds` are outputs with their upstream gradients. Errors: a requested tensor does not influence any seed.
pub fn gradients(
    graph: &mut Graph,
    seeds: &[(Value, Value)],
    requests: &[(Value, GradRequest)],
) -> Result<Vec<Value>, GraphError> {
    let forward = graph.nodes().len();
    let mut needed = vec![false; graph.values().len()];
    for &(value, _) in requests {
        *needed.get_mut(value.0 as usize).ok_or(GraphError::UnknownValue(value.0))? = true;
    }
    for node in graph.nodes() {
        if node.inputs.iter().any(|v| needed[v.0 as usize]) {
            node.outputs.iter().for_each(|v| needed[v.0 as usize] = true);
        }
    }
    let requests_by_value = requests.iter().copied().collect();
    let mut ctx = GradCtx { graph, needed, grads: HashMap::new(), requests: requests_by_value };
    for &(output, upstream) in seeds {
        ctx.add_if_needed(output, upstream)?;
    }
    for i in (0..forward).rev() {
        let node = ctx.graph.nodes()[i].clone();
        let grads: Vec<Option<Value>> = node.outputs.iter().map(|v| ctx.grads.remove(v)).collect();
        if grads.iter().any(Option::is_some) && node.inputs.iter().any(|&v| ctx.needs(v)) {
            ctx.graph.set_label(node.label.clone());
            node.op.grad(&mut ctx, &node, &grads)?;
        }
    }
    requests
        .iter()
        .map(|(value, _)| {
            ctx.grads.get(value).copied().ok_or_else(|| {
                let name = ctx.graph.info(*value).external.clone();
                GraphError::NoGradient(name.unwrap_or_else(|| format!("value {}", value.0)))
            })
        })
        .collect()
}
