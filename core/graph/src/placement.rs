//! Where the tensors of a graph lie: every intermediate one in an arena, by liveness.

use crate::arena::Arena;
use crate::graph::{Graph, Node, TensorType, Value};
use std::collections::{HashMap, HashSet};

/// Where the tensors of a graph's live nodes lie.
pub struct Placement {
    /// For each node, whether an op with [`crate::Op::writes`] depends on it.
    pub live: Vec<bool>,
    /// Bytes of each segment of the arena.
    pub segments: Vec<usize>,
    pub spots: HashMap<Value, Spot>,
    /// External tensors in the order of their first use.
    pub externals: Vec<Value>,
}

impl Placement {
    /// `in_place` and `limit` are those of [`crate::Plan::in_segments`].
    pub fn of(graph: &Graph, in_place: bool, limit: usize) -> Placement {
        let live = live_nodes(graph);
        let last_use = last_uses(graph, &live);
        let joined = joined(graph, &live, &last_use, in_place);
        let (arena, places) = (Arena::new(limit), HashMap::new());
        let mut planner = Planner { graph, in_place, last_use, joined, arena, places, externals: Vec::new() };
        for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
            planner.find_externals(node);
            let taken = planner.place_outputs(i, node);
            planner.free_ended(i, node, &taken);
        }
        let segments = planner.arena.sizes();
        Placement { live, segments, spots: planner.places, externals: planner.externals }
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

/// Where a value lies.
#[derive(Clone, Copy)]
pub enum Spot {
    Arena {
        segment: usize,
        offset: usize,
    },
    /// Position in [`Placement::externals`].
    External(usize),
}

/// Places tensors, node by node.
struct Planner<'g> {
    graph: &'g Graph,
    in_place: bool,
    last_use: HashMap<Value, usize>,
    joined: HashMap<Value, Joined>,
    arena: Arena,
    places: HashMap<Value, Spot>,
    externals: Vec<Value>,
}

impl Planner<'_> {
    fn bytes(&self, value: Value) -> usize {
        self.graph.info(value).ty.bytes()
    }

    fn ends(&self, value: Value, at: usize) -> bool {
        self.last_use.get(&value) == Some(&at) && self.graph.info(value).external.is_none()
    }

    fn find_externals(&mut self, node: &Node) {
        for &v in &node.inputs {
            if self.graph.info(v).external.is_some() && !self.places.contains_key(&v) {
                self.places.insert(v, Spot::External(self.externals.len()));
                self.externals.push(v);
            }
        }
    }

    /// Places the outputs of node `i`. Returns the inputs whose memory they have taken over.
    fn place_outputs(&mut self, i: usize, node: &Node) -> Vec<Value> {
        let mut taken = Vec::new();
        for (o, &out) in node.outputs.iter().enumerate() {
            if let Some(&Joined { whole, offset }) = self.joined.get(&out) {
                let (segment, begin) = self.place_whole(whole);
                self.places.insert(out, Spot::Arena { segment, offset: begin + offset });
                continue;
            }
            let free = |v| self.ends(v, i) && !taken.contains(&v) && !self.joined.contains_key(&v);
            let donor = if self.in_place { donor(self.graph, node, o, free) } else { None };
            match donor.and_then(|v| self.places.get(&v).copied().map(|place| (v, place))) {
                Some((v, place)) => {
                    taken.push(v);
                    self.places.insert(out, place);
                }
                None => drop(self.place_whole(out)),
            }
        }
        taken
    }

    /// Segment and offset of a tensor with memory of its own, which it gets here if it has none yet.
    fn place_whole(&mut self, value: Value) -> (usize, usize) {
        if let Some(&Spot::Arena { segment, offset }) = self.places.get(&value) {
            return (segment, offset);
        }
        let (segment, offset) = self.arena.alloc(self.bytes(value));
        self.places.insert(value, Spot::Arena { segment, offset });
        (segment, offset)
    }

    fn free_ended(&mut self, i: usize, node: &Node, taken: &[Value]) {
        let mut ended: Vec<Value> =
            node.inputs.iter().copied().filter(|v| self.ends(*v, i) && !taken.contains(v)).collect();
        ended.extend(node.outputs.iter().copied().filter(|v| !self.last_use.contains_key(v)));
        // What lies inside of another tensor ends with that.
        ended.retain(|v| !self.joined.contains_key(v));
        ended.sort();
        ended.dedup();
        for v in ended {
            if let Spot::Arena { segment, offset } = self.places[&v] {
                self.arena.free(segment, offset, self.bytes(v));
            }
        }
    }
}

/// An input whose memory output `o` of a node may take over ([`crate::Op::reuses`]), among those that are `free`.
fn donor(graph: &Graph, node: &Node, o: usize, free: impl Fn(Value) -> bool) -> Option<Value> {
    let bytes = |v: Value| graph.info(v).ty.bytes();
    let reuses = node.op.reuses();
    reuses.iter().filter(|(output, _)| *output == o).find_map(|&(_, input)| {
        let v = *node.inputs.get(input)?;
        // The same tensor may also be an input that the op does not give away.
        let mut uses = node.inputs.iter().enumerate().filter(|(_, u)| **u == v);
        let given = uses.all(|(i, _)| reuses.contains(&(o, i)));
        (given && free(v) && bytes(v) == bytes(node.outputs[o])).then_some(v)
    })
}

/// Where a tensor lies that is made inside of another one.
#[derive(Clone, Copy)]
struct Joined {
    whole: Value,
    /// Bytes from the beginning of `whole`.
    offset: usize,
}

/// The tensors that are made inside of another one: inputs of a joining op that nothing reads after it, and with
/// `in_place` those whose memory these take over.
fn joined(graph: &Graph, live: &[bool], last_use: &HashMap<Value, usize>, in_place: bool) -> HashMap<Value, Joined> {
    let mut joined = HashMap::new();
    let mut wholes = HashSet::new();
    let mut makers: HashMap<Value, usize> = HashMap::new();
    for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
        makers.extend(node.outputs.iter().map(|&v| (v, i)));
        let types: Vec<&TensorType> = node.inputs.iter().map(|&v| &graph.info(v).ty).collect();
        let offsets = node.op.joins(&types);
        let (Some(&whole), false) = (node.outputs.first(), offsets.is_empty()) else { continue };
        wholes.insert(whole);
        for (&input, offset) in node.inputs.iter().zip(offsets) {
            if node.inputs.iter().filter(|&&v| v == input).count() > 1 {
                continue;
            }
            let mut next = Some((input, i));
            while let Some((value, reader)) = next {
                // External tensors have no maker, and a joined tensor cannot lie inside another one.
                let own = !joined.contains_key(&value) && !wholes.contains(&value);
                let (Some(&maker), true) = (makers.get(&value), own && last_use.get(&value) == Some(&reader)) else {
                    break;
                };
                joined.insert(value, Joined { whole, offset });
                let made = &graph.nodes()[maker];
                let output = made.outputs.iter().position(|&v| in_place && v == value);
                let free =
                    |v: Value| makers.contains_key(&v) && last_use.get(&v) == Some(&maker) && !joined.contains_key(&v);
                next = output.and_then(|o| donor(graph, made, o, free)).map(|v| (v, maker));
            }
        }
    }
    joined
}
