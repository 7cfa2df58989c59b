//! Activation checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): only the values of a
//! segment that later segments read are kept; the rest is recomputed when the backward pass reaches the segment.

use crate::graph::{Graph, Node, Value};
use std::collections::{HashMap, HashSet};

/// The same computation with the segments of the first `forward` nodes ([`Graph::set_segment`]) recomputed in the
/// backward pass that follows them. Results are bit-identical.
pub fn recompute(graph: &Graph, forward: usize) -> Graph {
    let segments = Segments::find(graph, forward);
    let mut out = graph.clone();
    out.nodes.clear();
    let mut again: HashMap<Value, Value> = HashMap::new();
    let mut done: HashSet<u32> = HashSet::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        let mut node = node.clone();
        if i >= forward {
            for input in &mut node.inputs {
                let Some(segment) = segments.inner(*input) else { continue };
                if done.insert(segment) {
                    segments.emit(segment, &mut out, &mut again);
                }
                *input = again.get(input).copied().unwrap_or(*input);
            }
        }
        out.nodes.push(node);
    }
    out
}

/// The same computation in which the backward pass recomputes cheap values ([`crate::Op::cheap`]) of the first
/// `forward` nodes instead of keeping them, if their inputs are kept for the backward pass anyway. Results are
/// bit-identical.
pub fn recompute_cheap(graph: &Graph, forward: usize) -> Graph {
    let (before, after) = graph.nodes().split_at(forward);
    let cheap: HashMap<Value, &Node> =
        before.iter().filter(|node| node.op.cheap()).flat_map(|n| n.outputs.iter().map(move |&v| (v, n))).collect();
    let last_use: HashMap<Value, usize> =
        after.iter().enumerate().flat_map(|(i, node)| node.inputs.iter().map(move |&v| (v, i))).collect();
    let mut out = graph.clone();
    out.nodes.truncate(forward);
    let mut again: HashMap<Value, Value> = HashMap::new();
    for (i, node) in after.iter().enumerate() {
        let mut node = node.clone();
        for input in &mut node.inputs {
            let Some(source) = cheap.get(input) else { continue };
            let kept = |v: &Value| graph.info(*v).external.is_some() || last_use.get(v).is_some_and(|&last| last >= i);
            if !again.contains_key(input) && source.inputs.iter().all(kept) {
                let outputs: Vec<Value> =
                    source.outputs.iter().map(|&v| out.push(graph.info(v).ty.clone(), None)).collect();
                again.extend(source.outputs.iter().copied().zip(outputs.iter().copied()));
                out.nodes.push(Node { outputs, ..(*source).clone() });
            }
            *input = again.get(input).copied().unwrap_or(*input);
        }
        out.nodes.push(node);
    }
    out
}

struct Segments<'g> {
    graph: &'g Graph,
    /// The segment of each value that is read only within its segment.
    inner: HashMap<Value, u32>,
    nodes: HashMap<u32, Vec<&'g Node>>,
}

impl<'g> Segments<'g> {
    fn find(graph: &'g Graph, forward: usize) -> Self {
        let mut inner = HashMap::new();
        let mut nodes: HashMap<u32, Vec<&Node>> = HashMap::new();
        for node in &graph.nodes()[..forward] {
            // A value read by a later segment is a checkpoint.
            for input in &node.inputs {
                if inner.get(input).is_some_and(|segment| Some(*segment) != node.segment) {
                    inner.remove(input);
                }
            }
            if let Some(segment) = node.segment {
                nodes.entry(segment).or_default().push(node);
                inner.extend(node.outputs.iter().map(|&value| (value, segment)));
            }
        }
        Segments { graph, inner, nodes }
    }

    fn inner(&self, value: Value) -> Option<u32> {
        self.inner.get(&value).copied()
    }

    /// Appends the nodes of a segment again; `again` maps old values to new ones. Unused ones are dropped by the plan.
    fn emit(&self, segment: u32, out: &mut Graph, again: &mut HashMap<Value, Value>) {
        for node in self.nodes.get(&segment).into_iter().flatten() {
            let inputs = node.inputs.iter().map(|v| again.get(v).copied().unwrap_or(*v)).collect();
            let outputs =
                node.outputs.iter().map(|&v| (v, out.push(self.graph.info(v).ty.clone(), None))).collect::<Vec<_>>();
            again.extend(outputs.iter().copied().filter(|(old, _)| self.inner.contains_key(old)));
            let outputs = outputs.into_iter().map(|(_, new)| new).collect();
            out.nodes.push(Node { inputs, outputs, ..(*node).clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Add, Fill, GatedAct, Layout, Linear, Store};
    use crate::{DType, GradRequest, Plan, gradients};

    /// Layers of `x + act(x w, x w)`, with the gradient of every w.
    fn network(layers: u32, rows: usize) -> (Graph, usize) {
        let mut g = Graph::new();
        let mut x = g.external("x", DType::F32, [rows, 16]);
        let mut requests = Vec::new();
        for layer in 0..layers {
            g.set_segment(Some(layer));
            let w = g.external(format!("w{layer}"), DType::F32, [16, 16]);
            requests.push((w, GradRequest::Dense));
            let y = g.one(Linear::plain(Layout::Nt), &[x, w]).unwrap();
            let z = g.one(GatedAct { act: crate::ops::Activation::Silu }, &[y, y]).unwrap();
            x = g.one(Add {}, &[x, z]).unwrap();
        }
        g.set_segment(None);
        let forward = g.nodes().len();
        let seed = g.one(Fill { value: 1.0, shape: vec![rows, 16] }, &[]).unwrap();
        for (i, grad) in gradients(&mut g, &[(x, seed)], &requests).unwrap().into_iter().enumerate() {
            let out = g.external(format!("out{i}"), DType::F32, [16, 16]);
            g.apply(Store {}.into(), &[out, grad]).unwrap();
        }
        (g, forward)
    }

    #[test]
    fn memory_falls_and_work_grows_by_at_most_the_forward_pass() {
        let (graph, forward) = network(12, 256);
        let again = recompute(&graph, forward);
        let (before, after) = (Plan::build(&graph, false), Plan::build(&again, false));
        assert!(after.arena * 3 < before.arena * 2, "{} of {}", after.arena, before.arena);
        let forward_flops: u64 = before.calls[..forward].iter().map(|c| c.flops()).sum();
        assert!(after.flops() > before.flops() && after.flops() <= before.flops() + forward_flops);
    }

    #[test]
    fn backward_nodes_read_recomputed_values_and_checkpoints_only() {
        let (graph, forward) = network(3, 4);
        let again = recompute(&graph, forward);
        let segments = Segments::find(&graph, forward);
        let backward = &again.nodes()[forward..];
        assert!(backward.iter().flat_map(|n| &n.inputs).all(|&v| segments.inner(v).is_none()));
    }

    #[test]
    fn cheap_values_are_computed_again_where_their_sources_are_kept() {
        let (graph, forward) = network(12, 256);
        let again = recompute_cheap(&graph, forward);
        let (before, after) = (Plan::build(&graph, false), Plan::build(&again, false));
        let activations = |plan: &Plan| plan.calls.iter().filter(|c| matches!(c.op, crate::Op::GatedAct(_))).count();
        // The gradient of `Add` needs no values, so nothing reads the activations again.
        assert_eq!(activations(&before), activations(&after));

        let mut g = Graph::new();
        let x = g.external("x", DType::F32, [64, 16]);
        let mut requests = Vec::new();
        let mut y = x;
        for layer in 0..8 {
            let [a, b] = ["a", "b"].map(|name| g.external(format!("{name}{layer}"), DType::F32, [16, 16]));
            requests.extend([(a, GradRequest::Dense), (b, GradRequest::Dense)]);
            let z = g.one(Linear::plain(Layout::Nt), &[y, a]).unwrap();
            let z = g.one(GatedAct { act: crate::ops::Activation::Silu }, &[z, z]).unwrap();
            y = g.one(Linear::plain(Layout::Nt), &[z, b]).unwrap();
        }
        let forward = g.nodes().len();
        let seed = g.one(Fill { value: 1.0, shape: vec![64, 16] }, &[]).unwrap();
        for (i, grad) in gradients(&mut g, &[(y, seed)], &requests).unwrap().into_iter().enumerate() {
            let out = g.external(format!("out{i}"), DType::F32, [16, 16]);
            g.apply(Store {}.into(), &[out, grad]).unwrap();
        }
        let (before, after) = (Plan::build(&g, false), Plan::build(&recompute_cheap(&g, forward), false));
        // Only the backward pass computes it for the last layer: nothing reads y.
        assert_eq!((activations(&before), activations(&after)), (8, 15));
        assert!(after.arena * 10 < before.arena * 9, "{} of {}", after.arena, before.arena);
    }

    #[test]
    fn without_segments_nothing_changes() {
        let (mut graph, forward) = network(2, 4);
        graph.nodes.iter_mut().for_each(|n| n.segment = None);
        let again = recompute(&graph, forward);
        assert_eq!(Plan::build(&graph, true), Plan::build(&again, true));
    }
}
