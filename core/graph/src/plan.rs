//! From a graph to calls on memory: dead nodes dropped, every intermediate tensor placed in an arena by liveness.

pub use crate::graph::ALIGNMENT;
use crate::graph::{Graph, TensorType, Value};
use crate::ops::{Attention, Op};
use crate::placement::{Placement, Spot};
use serde::{Deserialize, Serialize};

/// Kernel calls in order, on byte ranges of an arena and on external tensors. A backend receives it once per shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Bytes of the arena.
    pub arena: usize,
    /// Sizes in bytes of the arena's consecutive segments, if there are several, for devices whose buffers are smaller
    /// than the arena. Every tensor lies within one segment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<usize>,
    pub externals: Vec<External>,
    pub calls: Vec<Call>,
    /// Whether matrix products may round f32 factors to TF32, to 10 bits after the leading one. Plans are built without
    /// it; a device gets such a plan only if [`crate::DeviceInfo::tf32`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tf32: bool,
}

/// A tensor that lives outside the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct External {
    pub name: String,
    /// The element of its buffer at which it starts, a multiple of [`ALIGNMENT`] in bytes. Plans are built with 0; it
    /// is set when a plan is bound, if several tensors share a buffer.
    #[serde(default)]
    pub offset: usize,
    #[serde(flatten)]
    pub ty: TensorType,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub op: Op,
    pub inputs: Vec<Operand>,
    pub outputs: Vec<Operand>,
    pub label: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operand {
    pub place: Place,
    #[serde(flatten)]
    pub ty: TensorType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Byte offset in the arena, a multiple of [`ALIGNMENT`].
    Arena(usize),
    /// Index into [`Plan::externals`].
    External(usize),
}

impl Plan {
    /// Plans a graph. Nodes on which no op with [`Op::writes`] depends are dropped. With `in_place` an output may take
    /// over the memory of an input that is last used there ([`Op::reuses`]). Inputs of an op that joins them are made
    /// inside its output ([`Op::joins`]).
    pub fn build(graph: &Graph, in_place: bool) -> Plan {
        Plan::in_segments(graph, in_place, usize::MAX)
    }

    /// As [`Plan::build`], with an arena in segments of at most `limit` bytes; a larger tensor has its own segment,
    /// which a device with that buffer limit refuses.
    pub fn in_segments(graph: &Graph, in_place: bool, limit: usize) -> Plan {
        Plan::within(graph, in_place, &[], limit)
    }

    /// As [`Plan::in_segments`], in an existing arena with segments of `reserved` bytes: others are added only if these
    /// are not enough.
    pub fn within(graph: &Graph, in_place: bool, reserved: &[usize], limit: usize) -> Plan {
        let placement = Placement::of(graph, in_place, reserved, limit);
        let segments = placement.segments;
        let place = |spot: Spot| match spot {
            Spot::Arena { segment, offset } => Place::Arena(segments[..segment].iter().sum::<usize>() + offset),
            Spot::External(i) => Place::External(i),
        };
        let operand = |v: &Value| Operand { place: place(placement.spots[v]), ty: graph.info(*v).ty.clone() };
        let external = |&v: &Value| {
            let info = graph.info(v);
            Some(External { name: info.external.clone()?, offset: 0, ty: info.ty.clone() })
        };
        let nodes = graph.nodes().iter().zip(&placement.live).filter(|(_, live)| **live);
        let calls = nodes.map(|(node, _)| Call {
            op: node.op.clone(),
            inputs: node.inputs.iter().map(operand).collect(),
            outputs: node.outputs.iter().map(operand).collect(),
            label: node.label.clone(),
        });
        let (calls, externals) = (calls.collect(), placement.externals.iter().filter_map(external).collect());
        let arena = segments.iter().sum();
        let segments = if segments.len() > 1 { segments } else { Vec::new() };
        Plan { arena, segments, externals, calls, tf32: false }
    }

    /// Size in bytes of each buffer of the arena, one per segment.
    pub fn arena_buffers(&self) -> &[usize] {
        if self.segments.is_empty() { std::slice::from_ref(&self.arena) } else { &self.segments }
    }

    /// The segment of an offset in the arena, and the offset within it. An offset beyond the end lies beyond the end of
    /// the last segment.
    pub fn locate(&self, offset: usize) -> (usize, usize) {
        let mut begin = 0;
        for (i, bytes) in self.segments.iter().enumerate() {
            if offset - begin < *bytes || i + 1 == self.segments.len() {
                return (i, offset - begin);
            }
            begin += bytes;
        }
        (0, offset)
    }

    /// Floating point operations of one run.
    pub fn flops(&self) -> u64 {
        self.calls.iter().map(Call::flops).sum()
    }
}

impl Call {
    pub fn flops(&self) -> u64 {
        let inputs: Vec<&TensorType> = self.inputs.iter().map(|o| &o.ty).collect();
        let outputs: Vec<&TensorType> = self.outputs.iter().map(|o| &o.ty).collect();
        self.op.flops(&inputs, &outputs)
    }

    /// As [`Call::flops`], on a packed batch of segments of these lengths, between which there is no attention.
    pub fn packed_flops(&self, lengths: &[usize]) -> u64 {
        let pairs = |attention: &Attention| lengths.iter().map(|&rows| attention.pair_flops(rows)).sum::<u64>();
        match &self.op {
            Op::Attention(attention) => 4 * pairs(attention),
            Op::AttentionGrad(grad) => 10 * pairs(&grad.0),
            _ => self.flops(),
        }
    }

    /// Bytes of all operands, each counted once.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().chain(&self.outputs).map(|o| o.ty.bytes() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::*;
    use std::collections::{HashMap, HashSet};

    const WIDTH: usize = 24;

    struct Rng {
        seed: u32,
        drawn: u32,
    }

    impl Rng {
        fn below(&mut self, n: usize) -> usize {
            self.drawn += 1;
            crate::philox4x32_10([self.drawn, 0, 0, 0], [self.seed, 0])[0] as usize % n
        }
    }

    fn f32s(graph: &mut Graph, name: &str, shape: &[usize]) -> Value {
        graph.external(name, DType::F32, shape)
    }

    /// A graph of elementwise ops, products with residuals, ops with two outputs and repeated inputs, whose values are
    /// read once, often or never, or joined.
    fn random_graph(seed: u32) -> Graph {
        let mut rng = Rng { seed, drawn: 0 };
        let mut graph = Graph::new();
        let square = f32s(&mut graph, "square", &[WIDTH, WIDTH]);
        let norm = f32s(&mut graph, "norm", &[WIDTH]);
        let heights = [1, 3, 3, 17];
        // Values of equal height can be operands of one op.
        let mut pools: Vec<Vec<Value>> = heights
            .iter()
            .enumerate()
            .map(|(i, &rows)| vec![f32s(&mut graph, &format!("x{i}"), &[rows, WIDTH])])
            .collect();
        for step in 0..60 {
            let p = rng.below(pools.len());
            let newest = pools[p].len() - 1;
            // Half of the time the newest value, which gives long chains in which memory can be reused.
            let mut pick = || if rng.below(2) == 0 { pools[p][newest] } else { pools[p][rng.below(newest + 1)] };
            let (a, b, c, d) = (pick(), pick(), pick(), pick());
            let others: Vec<Value> = pools.iter().filter_map(|pool| pool.last().copied()).collect();
            let (op, inputs): (Op, Vec<Value>) = match rng.below(10) {
                0 => (Add {}.into(), vec![a, b]),
                1 => (Scale { factor: 2.0 }.into(), vec![a]),
                2 => (GatedAct { act: Activation::Silu }.into(), vec![a, b]),
                3 => (GatedActGrad { act: Activation::Silu }.into(), vec![a, b, c]),
                4 => (RmsNorm { eps: 1e-6, plus_one: false, output: None, rate: false }.into(), vec![a, norm]),
                5 => (RmsNormGrad { eps: 1e-6, plus_one: false }.into(), vec![a, norm, b, c]),
                6 => (Linear { residual: true, ..Linear::plain(Layout::Nt) }.into(), vec![a, square, b]),
                7 => (Linear::plain(Layout::Nn).into(), vec![a, square]),
                8 => {
                    let mut parts = [a, b, c, others[rng.below(others.len())]].to_vec();
                    parts.truncate(1 + rng.below(4));
                    join(&mut graph, &parts, rng.below(2) == 0, step);
                    continue;
                }
                _ => {
                    let rows = graph.shape(a).unwrap()[0];
                    let kept = f32s(&mut graph, &format!("kept{step}"), &[rows, WIDTH]);
                    (Accumulate {}.into(), vec![kept, d])
                }
            };
            pools[p].extend(graph.apply(op, &inputs).unwrap());
        }
        graph
    }

    /// Joins tensors, the result also with itself scaled, and adds it to an external tensor.
    fn join(graph: &mut Graph, parts: &[Value], twice: bool, step: usize) {
        let mut whole = graph.one(Concat {}, parts).unwrap();
        if twice {
            let scaled = graph.one(Scale { factor: 2.0 }, &[whole]).unwrap();
            whole = graph.one(Concat {}, &[scaled, whole]).unwrap();
        }
        let length = graph.shape(whole).unwrap()[0];
        let kept = f32s(graph, &format!("joined{step}"), &[length]);
        graph.apply(Accumulate {}.into(), &[kept, whole]).unwrap();
    }

    /// The nodes on which a node with effects depends, found by walking back from each such node.
    fn needed_nodes(graph: &Graph) -> Vec<usize> {
        let maker: HashMap<Value, usize> =
            graph.nodes().iter().enumerate().flat_map(|(i, n)| n.outputs.iter().map(move |&v| (v, i))).collect();
        let effects = (0..graph.nodes().len()).filter(|&i| !graph.nodes()[i].op.writes().is_empty());
        let mut open: Vec<usize> = effects.collect();
        let mut seen: HashSet<usize> = open.iter().copied().collect();
        while let Some(i) = open.pop() {
            let makers = graph.nodes()[i].inputs.iter().filter_map(|v| maker.get(v));
            open.extend(makers.filter(|&&j| seen.insert(j)));
        }
        let mut nodes: Vec<usize> = seen.into_iter().collect();
        nodes.sort();
        nodes
    }

    fn overlap(a: (usize, usize), b: (usize, usize)) -> bool {
        a.0 < b.1 && b.0 < a.1
    }

    fn range(operand: &Operand) -> Option<(usize, usize)> {
        match operand.place {
            Place::Arena(offset) => Some((offset, offset + operand.ty.bytes())),
            Place::External(_) => None,
        }
    }

    /// Executes a plan on memory that records which value each byte holds, and checks that every operand is still there
    /// when it is read, and that outputs share memory with inputs only if the op allows it.
    fn check(graph: &Graph, plan: &Plan, in_place: bool) {
        let nodes = needed_nodes(graph);
        assert_eq!(plan.calls.len(), nodes.len(), "dead nodes are dropped, others kept");
        assert_eq!(plan.arena_buffers().iter().sum::<usize>(), plan.arena);
        let mut memory: Vec<Option<Value>> = vec![None; plan.arena];
        for (call, node) in plan.calls.iter().zip(nodes.iter().map(|&i| &graph.nodes()[i])) {
            assert_eq!(call.op, node.op);
            for (operand, value) in call.inputs.iter().zip(&node.inputs) {
                match range(operand) {
                    Some((start, end)) => {
                        assert!(memory[start..end].iter().all(|v| *v == Some(*value)), "{value:?} was overwritten")
                    }
                    None => assert!(graph.info(*value).external.is_some()),
                }
            }
            for (o, output) in call.outputs.iter().enumerate() {
                let (start, end) = range(output).expect("outputs live in the arena");
                assert!(start % ALIGNMENT == 0 && end <= plan.arena);
                let (segment, offset) = plan.locate(start);
                assert!(offset + (end - start) <= plan.arena_buffers()[segment], "a tensor lies in two segments");
                for other in call.outputs[..o].iter().filter_map(range) {
                    assert!(!overlap((start, end), other), "two outputs share memory");
                }
                let types: Vec<&TensorType> = call.inputs.iter().map(|input| &input.ty).collect();
                let joins = call.op.joins(&types);
                for (i, input) in call.inputs.iter().enumerate() {
                    if range(input).is_some_and(|other| overlap((start, end), other)) {
                        if let Some(offset) = joins.get(i) {
                            assert_eq!(input.place, Place::Arena(start + offset), "input {i} of a joining op");
                            continue;
                        }
                        assert!(in_place, "memory is shared although it must not be");
                        assert!(node.op.reuses().contains(&(o, i)), "{} input {i}, output {o}", node.op.name());
                        assert_eq!(range(input), Some((start, end)));
                    }
                }
                memory[start..end].fill(Some(node.outputs[o]));
            }
        }
    }

    #[test]
    fn live_tensors_never_overlap() {
        for seed in 1..=150 {
            let graph = random_graph(seed);
            for in_place in [false, true] {
                check(&graph, &Plan::build(&graph, in_place), in_place);
            }
        }
    }

    #[test]
    fn no_segment_exceeds_the_limit_unless_a_tensor_does() {
        let mut several = 0;
        for seed in 1..=150 {
            let graph = random_graph(seed);
            for (in_place, limit) in [(false, 2000), (true, 2000), (true, 300), (false, 1)] {
                let plan = Plan::in_segments(&graph, in_place, limit);
                check(&graph, &plan, in_place);
                let outputs = plan.calls.iter().flat_map(|call| &call.outputs);
                let tensors: HashSet<usize> = outputs.map(|o| o.ty.bytes().next_multiple_of(ALIGNMENT)).collect();
                for &bytes in plan.arena_buffers() {
                    assert!(bytes <= limit || tensors.contains(&bytes), "{bytes} bytes, limit {limit}");
                }
                several += plan.segments.len();
            }
            assert_eq!(Plan::in_segments(&graph, true, 1 << 20), Plan::build(&graph, true), "one segment is enough");
        }
        assert!(several > 1000);
    }

    /// A chain of elementwise ops takes one tensor where each gives its memory to the next, two otherwise.
    #[test]
    fn sharing_saves_memory() {
        let mut graph = Graph::new();
        let mut x = f32s(&mut graph, "x", &[16, WIDTH]);
        let bytes = graph.info(x).ty.bytes().next_multiple_of(ALIGNMENT);
        for _ in 0..4 {
            x = graph.one(Scale { factor: 2.0 }, &[x]).unwrap();
        }
        let kept = f32s(&mut graph, "kept", &[16, WIDTH]);
        graph.apply(Accumulate {}.into(), &[kept, x]).unwrap();
        assert_eq!([true, false].map(|in_place| Plan::build(&graph, in_place).arena), [bytes, 2 * bytes]);
    }

    /// `x W + x`: the product still reads the rows whose memory the residual would give up.
    #[test]
    fn an_input_read_twice_is_not_overwritten() {
        let mut graph = Graph::new();
        let x = f32s(&mut graph, "x", &[4, 8]);
        let w = f32s(&mut graph, "w", &[8, 8]);
        let out = f32s(&mut graph, "out", &[4, 8]);
        let h = graph.one(Scale { factor: 2.0 }, &[x]).unwrap();
        let linear = Linear { residual: true, ..Linear::plain(Layout::Nn) };
        let y = graph.one(linear, &[h, w, h]).unwrap();
        graph.apply(Store {}.into(), &[out, y]).unwrap();
        check(&graph, &Plan::build(&graph, true), true);
    }

    /// Products are made inside the joined tensor, even one that is added to another in place; external tensors, and
    /// products that are read later, are copied.
    #[test]
    fn joined_tensors_are_made_where_they_belong() {
        let mut graph = Graph::new();
        let x = f32s(&mut graph, "x", &[4, 8]);
        let w = f32s(&mut graph, "w", &[4, 8]);
        let tn = Linear::plain(Layout::Tn);
        let first = graph.one(tn.clone(), &[x, w]).unwrap();
        let sum = graph.one(Linear { residual: true, ..tn.clone() }, &[x, w, first]).unwrap();
        let kept = graph.one(Scale { factor: 3.0 }, &[x]).unwrap();
        let other = graph.one(tn, &[w, x]).unwrap();
        let whole = graph.one(Concat {}, &[sum, x, kept, other]).unwrap();
        let length = graph.shape(whole).unwrap()[0];
        for (name, value) in [("out", whole), ("again", kept)] {
            let shape = graph.shape(value).unwrap().to_vec();
            let out = f32s(&mut graph, name, &shape);
            graph.apply(Store {}.into(), &[out, value]).unwrap();
        }
        assert_eq!(length, 64 + 64 + 64 + 64);
        let plan = Plan::build(&graph, true);
        check(&graph, &plan, true);
        let concat = plan.calls.iter().find(|call| matches!(call.op, Op::Concat(_))).unwrap();
        let Place::Arena(begin) = concat.outputs[0].place else { panic!("outputs live in the arena") };
        let at = |i: usize| concat.inputs[i].place;
        assert_eq!((at(0), at(3)), (Place::Arena(begin), Place::Arena(begin + 768)));
        assert_eq!(at(1), Place::External(0));
        assert!(matches!(at(2), Place::Arena(offset) if offset < begin || offset >= begin + 1024));
        assert_eq!(plan.calls[0].outputs[0].place, Place::Arena(begin), "the first addend, too");
        assert_eq!(plan.arena, 1024 + 256);
    }

    fn chain(length: usize) -> Graph {
        let mut graph = Graph::new();
        let x = f32s(&mut graph, "x", &[64]);
        let out = f32s(&mut graph, "out", &[64]);
        let mut h = x;
        for _ in 0..length {
            h = graph.one(Scale { factor: 0.5 }, &[h]).unwrap();
        }
        graph.apply(Store {}.into(), &[out, h]).unwrap();
        graph
    }

    #[test]
    fn a_chain_needs_two_tensors_and_in_place_one() {
        let bytes = 64 * 4;
        assert_eq!(Plan::build(&chain(100), false).arena, 2 * bytes);
        assert_eq!(Plan::build(&chain(100), true).arena, bytes);
    }

    #[test]
    fn what_nothing_reads_is_dropped() {
        let mut graph = chain(1);
        let x = Value(0);
        let dead = graph.one(Scale { factor: 3.0 }, &[x]).unwrap();
        graph.one(Scale { factor: 3.0 }, &[dead]).unwrap();
        let unread = f32s(&mut graph, "unread", &[64]);
        graph.one(Add {}, &[unread, x]).unwrap();
        let plan = Plan::build(&graph, false);
        let names: Vec<&str> = plan.calls.iter().map(|c| c.op.name()).collect();
        assert_eq!(names, ["scale", "store"]);
        let externals: Vec<&str> = plan.externals.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(externals, ["x", "out"]);
    }

    #[test]
    fn empty_tensors_have_a_place() {
        let mut graph = Graph::new();
        let x = f32s(&mut graph, "x", &[8]);
        let index = graph.external("index", DType::U32, [0]);
        let out = f32s(&mut graph, "out", &[0]);
        let chosen = graph.one(Gather {}, &[x, index]).unwrap();
        graph.apply(Store {}.into(), &[out, chosen]).unwrap();
        let plan = Plan::build(&graph, true);
        assert_eq!(plan.calls.len(), 2);
        assert_eq!(plan.arena, ALIGNMENT);

        let scaled = graph.one(Scale { factor: 2.0 }, &[x]).unwrap();
        let other = graph.one(Scale { factor: 3.0 }, &[x]).unwrap();
        let also = f32s(&mut graph, "also", &[8]);
        graph.apply(Store {}.into(), &[also, other]).unwrap();
        let whole = graph.one(Concat {}, &[chosen, scaled]).unwrap();
        let joined = f32s(&mut graph, "joined", &[64]);
        graph.apply(Accumulate {}.into(), &[joined, whole]).unwrap();
        check(&graph, &Plan::build(&graph, true), true);
    }

    #[test]
    fn a_plan_survives_serialisation() {
        let plan = Plan::build(&random_graph(7), true);
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn flops_of_a_product() {
        let mut graph = Graph::new();
        let a = f32s(&mut graph, "a", &[3, 5]);
        let b = f32s(&mut graph, "b", &[7, 5]);
        let out = f32s(&mut graph, "out", &[3, 7]);
        let y = graph.one(Linear::plain(Layout::Nt), &[a, b]).unwrap();
        graph.apply(Store {}.into(), &[out, y]).unwrap();
        assert_eq!(Plan::build(&graph, false).flops(), 2 * 3 * 5 * 7);
    }
}
