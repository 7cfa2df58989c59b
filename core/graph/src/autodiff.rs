//! Reverse-mode differentiation on the graph, pruned by need: no gradient is computed for a tensor that no requested
//! gradient depends on.

use crate::graph::{Graph, GraphError, Node, TensorType, Value};
use crate::ops::{Add, Body, Cast, Fill, Gather, ScaleBy};
use crate::{DType, Op};
use std::collections::HashMap;
use std::ops::Range;

/// The requested elements of a tensor's gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradRequest {
    Dense,
    /// Only the elements at `index` (u32 `[n]`, flat, ascending). With `row_ptr` (of [`crate::ops::SampledGrad`]), a
    /// linear layer computes only these; otherwise they are gathered from the dense gradient.
    Sampled {
        index: Value,
        row_ptr: Option<Value>,
    },
}

/// The state of one backward pass, on which the ops' gradient rules work.
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

    /// The type of a tensor's gradient: f32 for external tensors and what stands for them, otherwise that of the tensor.
    pub fn grad_type(&self, value: Value) -> Result<DType, GraphError> {
        let info = self.graph.info(value);
        let ty = self.graph.ty(value)?;
        let own = ty.dtype.is_activation() && info.external.is_none() && info.master.is_none();
        Ok(if own { ty.dtype } else { DType::F32 })
    }

    /// Casts a value to this type.
    pub fn cast(&mut self, value: Value, to: DType) -> Result<Value, GraphError> {
        if self.graph.ty(value)?.dtype == to { Ok(value) } else { self.graph.one(Cast { to }, &[value]) }
    }

    /// Takes the gradient accumulated for `value` so far, for a rule that adds to it in its own kernel; the rule must
    /// [`add`](Self::add) the sum. `None` if its type differs from the kernel's, or it is sampled.
    pub fn take(&mut self, value: Value, dtype: DType) -> Option<Value> {
        if self.sampled(value).is_some() || self.grad_type(value) != Ok(dtype) {
            return None;
        }
        self.grads.remove(&self.target(value))
    }

    /// The tensor to whose gradient that of `value` contributes: itself, or its master.
    fn target(&self, value: Value) -> Value {
        self.graph.info(value).master.unwrap_or(value)
    }

    /// The index set, if only chosen elements of this gradient are requested.
    pub fn sampled(&self, value: Value) -> Option<(Value, Option<Value>)> {
        match self.requests.get(&self.target(value)) {
            Some(GradRequest::Sampled { index, row_ptr }) => Some((*index, *row_ptr)),
            _ => None,
        }
    }

    /// Adds a dense gradient, or its chosen elements if only those are requested.
    pub fn add(&mut self, value: Value, grad: Value) -> Result<(), GraphError> {
        match self.sampled(value) {
            Some((index, _)) => {
                let chosen = self.graph.one(Gather {}, &[grad, index])?;
                self.add_sampled(value, chosen)
            }
            None => self.add_sampled(value, grad),
        }
    }

    /// Adds a gradient that already has the requested form, in any type.
    pub fn add_sampled(&mut self, value: Value, grad: Value) -> Result<(), GraphError> {
        let grad = self.cast(grad, self.grad_type(value)?)?;
        let target = self.target(value);
        let sum = match self.grads.remove(&target) {
            Some(so_far) => self.graph.one(Add {}, &[so_far, grad])?,
            None => grad,
        };
        self.grads.insert(target, sum);
        Ok(())
    }

    /// For an op that computes its gradients along with its result: replaces a forward node by `op`. The new node has
    /// the inputs of the old one and the external tensors `more`; its first `kept` outputs replace those of the old
    /// one. Returns the other outputs.
    pub(crate) fn extend(
        &mut self,
        node: &Node,
        op: impl Into<Op>,
        more: &[Value],
        kept: usize,
    ) -> Result<Vec<Value>, GraphError> {
        let at = self.graph.nodes().iter().position(|n| n.outputs == node.outputs && n.inputs == node.inputs);
        let at = at.ok_or_else(|| GraphError::UnknownValue(node.outputs.first().map_or(0, |v| v.0)))?;
        let inputs = [&node.inputs, more].concat();
        self.graph.replace(at, op.into(), inputs, kept)
    }

    /// `grad` times the scalar `factor`; `grad` itself if that is the constant 1.
    pub(crate) fn scaled(&mut self, grad: Value, factor: Value) -> Result<Value, GraphError> {
        let one = |node: &Node| node.outputs == [factor] && matches!(node.op, Op::Fill(Fill { value: 1.0, .. }));
        if self.graph.nodes().iter().any(one) {
            return Ok(grad);
        }
        self.graph.one(ScaleBy {}, &[grad, factor])
    }

    pub fn add_if_needed(&mut self, value: Value, grad: Value) -> Result<(), GraphError> {
        if self.needs(value) { self.add(value, grad) } else { Ok(()) }
    }

    /// Zeros of the type of a tensor that has a gradient.
    pub(crate) fn zeros_like(&mut self, value: Value) -> Result<Value, GraphError> {
        let TensorType { dtype, shape } = self.graph.ty(value)?.clone();
        let zeros = self.graph.one(Fill { value: 0.0, shape }, &[])?;
        self.cast(zeros, dtype)
    }

    /// Marks the outputs of the nodes from `begin` on as needed if they depend on needed tensors.
    fn need_from(&mut self, begin: usize) {
        self.needed.resize(self.graph.values().len(), false);
        for node in &self.graph.nodes()[begin..] {
            if !matches!(node.op, Op::Detach(_)) && node.inputs.iter().any(|v| self.needed[v.0 as usize]) {
                node.outputs.iter().for_each(|v| self.needed[v.0 as usize] = true);
            }
        }
    }

    /// Adds the gradients that the nodes of a range pass on, from the last to the first.
    fn backward(&mut self, nodes: Range<usize>) -> Result<(), GraphError> {
        for i in nodes.rev() {
            let node = self.graph.nodes()[i].clone();
            // They stay in the map, as an intermediate tensor may be requested as well.
            let grads: Vec<Option<Value>> = node.outputs.iter().map(|v| self.grads.get(v).copied()).collect();
            if grads.iter().any(Option::is_some) && node.inputs.iter().any(|&v| self.needs(v)) {
                self.graph.set_label(node.label.clone());
                node.op.grad(self, &node, &grads)?;
            }
        }
        Ok(())
    }

    /// Adds the gradients of a node that computes `body`, by the rules of the body's operations. Values that these rules
    /// read are computed again.
    pub(crate) fn through(&mut self, body: &Body, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let begin = self.graph.nodes().len();
        let outputs = body.inline(self.graph, &node.inputs)?;
        self.need_from(begin);
        let end = self.graph.nodes().len();
        for (&output, grad) in outputs.iter().zip(grads) {
            if let Some(grad) = *grad {
                self.add_if_needed(output, grad)?;
            }
        }
        self.backward(begin..end)
    }
}

/// Appends the backward pass to `graph` and returns the gradient of each requested tensor, in order: of the tensor's
/// shape, or `[n]` for a sampled one; f32 for external tensors, otherwise in the tensor's type. The gradient of a shadow
/// ([`Graph::shadow`]) or of a decoded tensor ([`Op::decodes`]) counts for its master. The backward pass decodes again
/// what it reads.
///
/// `seeds` are outputs with their upstream gradients. Errors: a requested tensor does not influence any seed.
pub fn gradients(
    graph: &mut Graph,
    seeds: &[(Value, Value)],
    requests: &[(Value, GradRequest)],
) -> Result<Vec<Value>, GraphError> {
    let forward = graph.nodes().len();
    let target = |value: Value| graph.values().get(value.0 as usize).and_then(|info| info.master).unwrap_or(value);
    let requests: Vec<_> = requests.iter().map(|&(value, request)| (target(value), request)).collect();
    let mut needed = vec![false; graph.values().len()];
    for &(value, _) in &requests {
        *needed.get_mut(value.0 as usize).ok_or(GraphError::UnknownValue(value.0))? = true;
    }
    let masters = graph.values().iter().enumerate().filter_map(|(i, v)| Some((i, v.master?)));
    for (shadow, master) in masters {
        needed[shadow] |= needed[master.0 as usize];
    }
    let requests_by_value = requests.iter().copied().collect();
    let mut ctx = GradCtx { graph, needed, grads: HashMap::new(), requests: requests_by_value };
    ctx.need_from(0);
    for &(output, upstream) in seeds {
        ctx.add_if_needed(output, upstream)?;
    }
    ctx.backward(0..forward)?;
    let GradCtx { graph, grads, .. } = ctx;
    decode_again(graph, forward);
    requests
        .iter()
        .map(|(value, _)| {
            grads.get(value).copied().ok_or_else(|| {
                let name = graph.info(*value).external.clone();
                GraphError::NoGradient(name.unwrap_or_else(|| format!("value {}", value.0)))
            })
        })
        .collect()
}

/// Makes the nodes from `forward` on read copies of decoded tensors, which are made before the first of these nodes.
fn decode_again(graph: &mut Graph, forward: usize) {
    let decoders = graph.nodes[..forward].iter().filter(|node| node.op.decodes());
    let decoders: HashMap<Value, Node> =
        decoders.flat_map(|node| node.outputs.iter().map(move |&v| (v, node.clone()))).collect();
    let mut again: HashMap<Value, Value> = HashMap::new();
    for mut node in graph.nodes.split_off(forward) {
        for input in &mut node.inputs {
            let Some(decoder) = decoders.get(input) else { continue };
            *input = *again.entry(*input).or_insert_with(|| {
                let value = graph.push(graph.info(*input).ty.clone(), None);
                graph.nodes.push(Node { outputs: vec![value], segment: None, ..decoder.clone() });
                value
            });
        }
        graph.nodes.push(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::TensorType;
    use crate::ops::*;
    use crate::{Blocks, DType};

    /// Two linear layers: `h = x a^T`, `y = h b^T + h`, and a seed for `y`.
    struct Net {
        graph: Graph,
        x: Value,
        a: Value,
        b: Value,
        y: Value,
        seed: Value,
        forward: usize,
    }

    fn net() -> Net {
        let mut graph = Graph::new();
        let x = graph.external("x", DType::F32, [4, 8]);
        let a = graph.external("a", DType::BF16, [8, 8]);
        let b = graph.external("b", DType::BF16, [8, 8]);
        let seed = graph.external("seed", DType::F32, [4, 8]);
        graph.set_label("lower");
        let h = graph.one(Linear::plain(Layout::Nt), &[x, a]).unwrap();
        graph.set_label("upper");
        let upper = Linear { residual: true, ..Linear::plain(Layout::Nt) };
        let y = graph.one(upper, &[h, b, h]).unwrap();
        let forward = graph.nodes().len();
        Net { graph, x, a, b, y, seed, forward }
    }

    impl Net {
        fn gradients(&mut self, requests: &[(Value, GradRequest)]) -> Result<Vec<Value>, GraphError> {
            gradients(&mut self.graph, &[(self.y, self.seed)], requests)
        }

        /// Name, label and inputs of the nodes that the backward pass added.
        fn backward(&self) -> Vec<(&str, &str, Vec<Value>)> {
            let nodes = &self.graph.nodes()[self.forward..];
            nodes.iter().map(|n| (n.op.name(), n.label.as_str(), n.inputs.clone())).collect()
        }
    }

    #[test]
    fn frozen_weights_get_no_gradient_and_nothing_runs_below_the_lowest_trained_one() {
        let mut net = net();
        let grads = net.gradients(&[(net.b, GradRequest::Dense)]).unwrap();
        let h = net.graph.nodes()[0].outputs[0];
        assert_eq!(net.backward(), [("linear", "upper", vec![net.seed, h])]);
        assert_eq!(net.graph.ty(grads[0]).unwrap(), &TensorType::f32([8, 8]), "f32, although the weight is bf16");
    }

    #[test]
    fn a_gradient_through_frozen_weights() {
        let mut net = net();
        net.gradients(&[(net.a, GradRequest::Dense)]).unwrap();
        let ops = net.backward();
        // dh = dy b + dy in one product, then da; neither db nor dx.
        assert_eq!(ops.len(), 2);
        assert_eq!((ops[0].1, &ops[0].2), ("upper", &vec![net.seed, net.b, net.seed]));
        assert_eq!((ops[1].1, ops[1].2[1]), ("lower", net.x));
    }

    #[test]
    fn requests_are_answered_in_their_order() {
        let mut net = net();
        let requests = [net.b, net.x, net.a].map(|v| (v, GradRequest::Dense));
        let grads = net.gradients(&requests).unwrap();
        let shapes: Vec<_> = grads.iter().map(|&g| net.graph.shape(g).unwrap().to_vec()).collect();
        assert_eq!(shapes, [vec![8, 8], vec![4, 8], vec![8, 8]]);
    }

    #[test]
    fn chosen_elements_of_a_linear_weight_are_computed_alone() {
        let mut net = net();
        let index = net.graph.external("index", DType::U32, [5]);
        let row_ptr = net.graph.external("row_ptr", DType::U32, [9]);
        let request = GradRequest::Sampled { index, row_ptr: Some(row_ptr) };
        let grads = net.gradients(&[(net.b, request)]).unwrap();
        let names: Vec<&str> = net.backward().iter().map(|op| op.0).collect();
        assert_eq!(names, ["sampled_grad"], "no dense gradient exists");
        assert_eq!(net.graph.shape(grads[0]).unwrap(), [5]);
    }

    #[test]
    fn chosen_elements_without_rows_are_picked_from_the_dense_gradient() {
        let mut net = net();
        let index = net.graph.external("index", DType::U32, [5]);
        let grads = net.gradients(&[(net.b, GradRequest::Sampled { index, row_ptr: None })]).unwrap();
        let names: Vec<&str> = net.backward().iter().map(|op| op.0).collect();
        assert_eq!(names, ["linear", "gather"]);
        assert_eq!(net.graph.shape(grads[0]).unwrap(), [5]);
    }

    #[test]
    fn every_use_of_a_tensor_counts() {
        let mut graph = Graph::new();
        let x = graph.external("x", DType::F32, [4]);
        let seed = graph.external("seed", DType::F32, [4]);
        let y = graph.one(Add {}, &[x, x]).unwrap();
        let dx = gradients(&mut graph, &[(y, seed)], &[(x, GradRequest::Dense)]).unwrap()[0];
        let sum = graph.nodes().last().unwrap();
        assert_eq!((sum.op.name(), &sum.inputs, sum.outputs[0]), ("add", &vec![seed, seed], dx));
    }

    #[test]
    fn the_gradient_of_an_intermediate_tensor_is_the_sum_over_its_uses() {
        let mut net = net();
        let h = net.graph.nodes()[0].outputs[0];
        let grads = net.gradients(&[(h, GradRequest::Dense), (net.a, GradRequest::Dense)]).unwrap();
        let ops = net.backward();
        assert_eq!(ops.len(), 2);
        assert_eq!(ops[1].2[0], grads[0], "the lower layer continues from the gradient that is returned");
    }

    #[test]
    fn seeds_add_up() {
        let mut net = net();
        let h = net.graph.nodes()[0].outputs[0];
        let other = net.graph.external("other", DType::F32, [4, 8]);
        let seeds = [(net.y, net.seed), (h, other)];
        gradients(&mut net.graph, &seeds, &[(net.a, GradRequest::Dense)]).unwrap();
        let adds = |op: &&(&str, &str, Vec<Value>)| op.2.contains(&other);
        assert_eq!(net.backward().iter().filter(adds).count(), 1);
    }

    #[test]
    fn what_does_not_influence_the_loss_is_an_error_that_names_it() {
        let mut net = net();
        let unused = net.graph.external("layers.0.unused", DType::F32, [4]);
        let error = net.gradients(&[(unused, GradRequest::Dense)]).unwrap_err();
        assert_eq!(error, GraphError::NoGradient("layers.0.unused".into()));
        assert!(error.to_string().contains("`layers.0.unused`"));
    }

    #[test]
    fn an_unknown_handle_is_an_error() {
        let mut net = net();
        let error = net.gradients(&[(Value(99), GradRequest::Dense)]).unwrap_err();
        assert_eq!(error, GraphError::UnknownValue(99));
    }

    #[test]
    fn an_op_without_a_gradient_is_an_error_only_where_one_is_needed() {
        let gather_net = |wanted: &str| {
            let mut graph = Graph::new();
            let x = graph.external("x", DType::F32, [4]);
            let index = graph.external("index", DType::U32, [4]);
            let z = graph.external("z", DType::F32, [4]);
            let seed = graph.external("seed", DType::F32, [4]);
            let chosen = graph.one(Gather {}, &[x, index]).unwrap();
            let y = graph.one(Add {}, &[chosen, z]).unwrap();
            let wanted = if wanted == "x" { x } else { z };
            gradients(&mut graph, &[(y, seed)], &[(wanted, GradRequest::Dense)])
        };
        assert_eq!(gather_net("x").unwrap_err(), GraphError::NotDifferentiable { op: "gather", input: 0 });
        assert!(gather_net("z").is_ok());
    }

    #[test]
    fn a_decoded_weight_is_decoded_again_and_its_gradient_is_that_of_its_blocks() {
        let mut graph = Graph::new();
        let x = graph.external("x", DType::BF16, [4, 32]);
        let [a, b] = ["a", "b"].map(|name| graph.external(name, DType::U32, [32 * 34 / 4]));
        let index = graph.external("index", DType::U32, [5]);
        let row_ptr = graph.external("row_ptr", DType::U32, [33]);
        let seed = graph.external("seed", DType::BF16, [4, 32]);
        let op = Dequantize::whole(Blocks::Q8_0, [32, 32], DType::BF16);
        let mut y = x;
        for words in [a, b] {
            let w = graph.one(op.clone(), &[words]).unwrap();
            y = graph.one(Linear::plain(Layout::Nt), &[y, w]).unwrap();
        }
        let sampled = GradRequest::Sampled { index, row_ptr: Some(row_ptr) };
        let grads = gradients(&mut graph, &[(y, seed)], &[(a, sampled), (b, GradRequest::Dense)]).unwrap();
        let names: Vec<&str> = graph.nodes().iter().map(|node| node.op.name()).collect();
        let forward = ["dequantize", "linear", "dequantize", "linear"];
        assert_eq!(names, [&forward[..], &["linear", "dequantize", "linear", "sampled_grad"]].concat());
        let (first, again) = (&graph.nodes()[2], &graph.nodes()[5]);
        assert_eq!((&again.inputs, &again.op), (&vec![b], &first.op));
        assert_eq!(graph.nodes()[6].inputs[1], again.outputs[0], "the product reads what is decoded for it");
        let types: Vec<_> = grads.iter().map(|&g| graph.ty(g).unwrap().clone()).collect();
        assert_eq!(types, [TensorType::f32([5]), TensorType::f32([32, 32])]);
    }

    /// A block of a residual stream in bf16: `y = x + act(x a^T) b^T`, with the gradients of a, b and x.
    #[test]
    fn products_of_bf16_values_have_bf16_operands_backward_too() {
        let mut graph = Graph::new();
        let stream = graph.external("stream", DType::F32, [4, 8]);
        let x = graph.one(Scale { factor: 2.0 }, &[stream]).unwrap();
        let [a, b] = ["a", "b"].map(|name| graph.external(name, DType::BF16, [8, 8]));
        let seed = graph.external("seed", DType::F32, [4, 8]);
        let low = graph.one(Cast { to: DType::BF16 }, &[x]).unwrap();
        let h = graph.one(Linear::plain(Layout::Nt), &[low, a]).unwrap();
        let h = graph.one(GatedAct { act: Activation::Silu }, &[h, h]).unwrap();
        let down = Linear { residual: true, output: Some(DType::F32), ..Linear::plain(Layout::Nt) };
        let y = graph.one(down, &[h, b, x]).unwrap();
        let forward = graph.nodes().len();
        let requests = [a, b, x].map(|v| (v, GradRequest::Dense));
        let grads = gradients(&mut graph, &[(y, seed)], &requests).unwrap();
        let types: Vec<DType> = grads.iter().map(|&g| graph.ty(g).unwrap().dtype).collect();
        assert_eq!(types, [DType::F32; 3], "of weights, and of a value that is f32");
        let backward = &graph.nodes()[forward..];
        let ty = |v: &Value| graph.ty(*v).unwrap().dtype;
        for product in backward.iter().filter(|node| matches!(node.op, Op::Linear(_))) {
            assert!(product.inputs[..2].iter().all(|v| ty(v) == DType::BF16), "{:?}", product.op);
        }
        let casts = backward.iter().filter(|node| node.op == Cast { to: DType::BF16 }.into());
        assert_eq!(casts.count(), 1, "the gradient of the stream is rounded once for both products");
    }

    #[test]
    fn what_is_read_through_a_shadow_counts_for_its_master() {
        let mut graph = Graph::new();
        let master = graph.external("w", DType::F32, [16, 8]);
        let shadow = graph.shadow("shadow.w", DType::BF16, master).unwrap();
        let tokens = graph.external("tokens", DType::U32, [4]);
        let seed = graph.external("seed", DType::F32, [4, 16]);
        let x = graph.one(Embed { scale: 1.0, padding: None }, &[master, tokens]).unwrap();
        let x = graph.one(Cast { to: DType::BF16 }, &[x]).unwrap();
        let head = Linear { output: Some(DType::F32), ..Linear::plain(Layout::Nt) };
        let logits = graph.one(head, &[x, shadow]).unwrap();
        let grads = gradients(&mut graph, &[(logits, seed)], &[(master, GradRequest::Dense)]).unwrap();
        assert_eq!(graph.ty(grads[0]).unwrap(), &TensorType::f32([16, 8]));
        let sum = graph.nodes().last().unwrap();
        assert_eq!((sum.op.name(), sum.outputs[0]), ("add", grads[0]), "of the head and of the lookup");
    }

    #[test]
    fn a_loss_that_depends_on_a_log_sum_exp_output_is_an_error() {
        let mut graph = Graph::new();
        let logits = graph.external("logits", DType::F32, [4, 3]);
        let labels = graph.external("labels", DType::U32, [4]);
        let step = graph.external("step", DType::F32, [step::LEN]);
        let seed = graph.external("seed", DType::F32, [4]);
        let outputs = graph.apply(CrossEntropy::default().into(), &[logits, labels, step]).unwrap();
        let error = gradients(&mut graph, &[(outputs[1], seed)], &[(logits, GradRequest::Dense)]).unwrap_err();
        assert_eq!(error, GraphError::OutputNotDifferentiable { op: "cross_entropy", output: 1 });

        let q = graph.external("q", DType::F32, [5, 8]);
        let spans = graph.external("spans", DType::U32, [5, 2]);
        let seed = graph.external("seed of lse", DType::F32, [5, 1]);
        let attention = Attention {
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            scale: 1.0,
            window: None,
            soft_cap: None,
            dropout: 0.0,
            salt: 0,
        };
        let outputs = graph.apply(attention.into(), &[q, q, q, spans]).unwrap();
        let error = gradients(&mut graph, &[(outputs[1], seed)], &[(q, GradRequest::Dense)]).unwrap_err();
        assert_eq!(error, GraphError::OutputNotDifferentiable { op: "attention", output: 1 });
    }
}
