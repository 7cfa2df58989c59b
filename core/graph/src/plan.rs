//! From a graph to calls on memory: dead nodes dropped, every intermediate tensor placed in one arena by liveness.

use crate::graph::{Graph, TensorType, Value};
use crate::ops::Op;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Alignment of tensors in the arena, bytes: the largest that WebGPU asks of a binding.
pub const ALIGNMENT: usize = 256;

/// Kernel calls in order, on byte ranges of an arena and on external tensors. It crosses to a backend once per shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Bytes of the arena.
    pub arena: usize,
    pub externals: Vec<External>,
    pub calls: Vec<Call>,
}

/// A tensor that lives outside the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct External {
    pub name: String,
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
    /// Plans a graph. What no op with [`Op::writes`] depends on is dropped. With `in_place` an output may take the
    /// memory of an input that ends there ([`Op::reuses`]).
    pub fn build(graph: &Graph, in_place: bool) -> Plan {
        let live = live_nodes(graph);
        let last_use = last_uses(graph, &live);
        let mut arena = Arena::default();
        let mut places: HashMap<Value, Place> = HashMap::new();
        let mut externals = Vec::new();
        let mut calls = Vec::new();
        for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
            for &v in &node.inputs {
                let info = graph.info(v);
                if let (Some(name), false) = (&info.external, places.contains_key(&v)) {
                    places.insert(v, Place::External(externals.len()));
                    externals.push(External { name: name.clone(), ty: info.ty.clone() });
                }
            }
            let ends_here = |v: &Value| last_use.get(v) == Some(&i) && graph.info(*v).external.is_none();
            let mut taken = Vec::new();
            for (o, &out) in node.outputs.iter().enumerate() {
                let bytes = graph.info(out).ty.bytes();
                let donor =
                    node.op.reuses().iter().filter(|(output, _)| in_place && *output == o).find_map(|(_, input)| {
                        let v = *node.inputs.get(*input)?;
                        let free = ends_here(&v) && !taken.contains(&v);
                        (free && graph.info(v).ty.bytes() == bytes).then_some(v)
                    });
                let place = match donor.and_then(|v| places.get(&v).copied().map(|p| (v, p))) {
                    Some((v, place)) => {
                        taken.push(v);
                        place
                    }
                    None => Place::Arena(arena.alloc(bytes)),
                };
                places.insert(out, place);
            }
            let operand = |v: &Value| Operand { place: places[v], ty: graph.info(*v).ty.clone() };
            calls.push(Call {
                op: node.op.clone(),
                inputs: node.inputs.iter().map(operand).collect(),
                outputs: node.outputs.iter().map(operand).collect(),
                label: node.label.clone(),
            });
            let mut ended: Vec<Value> =
                node.inputs.iter().copied().filter(|v| ends_here(v) && !taken.contains(v)).collect();
            ended.extend(node.outputs.iter().copied().filter(|v| !last_use.contains_key(v)));
            ended.sort();
            ended.dedup();
            for v in ended {
                if let Place::Arena(offset) = places[&v] {
                    arena.free(offset, graph.info(v).ty.bytes());
                }
            }
        }
        Plan { arena: arena.size, externals, calls }
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

    /// Bytes of all operands, each counted once.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().chain(&self.outputs).map(|o| o.ty.bytes() as u64).sum()
    }
}

fn live_nodes(graph: &Graph) -> Vec<bool> {
    let mut wanted = vec![false; graph.values().len()];
    let mut live = vec![false; graph.nodes().len()];
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        if !node.op.writes().is_empty() || node.outputs.iter().any(|v| wanted[v.0 as usize]) {
            live[i] = true;
            node.inputs.iter().for_each(|v| wanted[v.0 as usize] = true);
        }
    }
    live
}

/// The last live node that reads each value; values that nobody reads are absent.
fn last_uses(graph: &Graph, live: &[bool]) -> HashMap<Value, usize> {
    let nodes = graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]);
    nodes.flat_map(|(i, node)| node.inputs.iter().map(move |&v| (v, i))).collect()
}

/// Best-fit allocation of byte ranges; the arena grows at its end.
#[derive(Default)]
struct Arena {
    size: usize,
    /// (offset, bytes) of the holes, by offset, never adjacent.
    holes: Vec<(usize, usize)>,
}

impl Arena {
    fn alloc(&mut self, bytes: usize) -> usize {
        let bytes = round_up(bytes);
        let fitting = self.holes.iter().enumerate().filter(|(_, hole)| hole.1 >= bytes);
        if let Some((i, &(offset, size))) = fitting.min_by_key(|(_, hole)| hole.1) {
            if size == bytes {
                self.holes.remove(i);
            } else {
                self.holes[i] = (offset + bytes, size - bytes);
            }
            return offset;
        }
        let offset = match self.holes.last() {
            Some(&(offset, size)) if offset + size == self.size => {
                self.holes.pop();
                offset
            }
            _ => self.size,
        };
        self.size = offset + bytes;
        offset
    }

    fn free(&mut self, offset: usize, bytes: usize) {
        let bytes = round_up(bytes);
        let i = self.holes.partition_point(|hole| hole.0 < offset);
        self.holes.insert(i, (offset, bytes));
        if i + 1 < self.holes.len() && offset + bytes == self.holes[i + 1].0 {
            self.holes[i].1 += self.holes[i + 1].1;
            self.holes.remove(i + 1);
        }
        if i > 0 && self.holes[i - 1].0 + self.holes[i - 1].1 == offset {
            self.holes[i - 1].1 += self.holes[i].1;
            self.holes.remove(i);
        }
    }
}

fn round_up(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}
