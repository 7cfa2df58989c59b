//! The placement of a graph's tensors: intermediate ones share an arena, by liveness.

use crate::arena::{Arena, Block};
use crate::graph::{Graph, Node, TensorType, Value};
use std::collections::{HashMap, HashSet};

/// The placement of the tensors of a graph's live nodes.
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
    /// The arguments are those of [`crate::Plan::within`].
    pub fn of(graph: &Graph, in_place: bool, reserved: &[usize], limit: usize) -> Placement {
        let live = live_nodes(graph);
        let last_use = last_uses(graph, &live);
        let joined = joined(graph, &live, &last_use, in_place);
        let (blocks, homes, externals) = (Vec::new(), HashMap::new(), Vec::new());
        let mut planner = Planner { graph, in_place, last_use, joined, blocks, homes, externals };
        for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
            planner.find_externals(node);
            planner.find_homes(i, node);
        }
        let Arena { segments, places } = Arena::of(&planner.blocks, reserved, limit);
        let external = planner.externals.iter().enumerate().map(|(i, &v)| (v, Spot::External(i)));
        let inner = planner.homes.iter().map(|(&v, home)| {
            let (segment, begin) = places[home.block];
            (v, Spot::Arena { segment, offset: begin + home.offset })
        });
        let spots = external.chain(inner).collect();
        Placement { live, segments, spots, externals: planner.externals }
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

/// The last live node that reads each value; values that are never read are absent.
fn last_uses(graph: &Graph, live: &[bool]) -> HashMap<Value, usize> {
    let nodes = graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]);
    nodes.flat_map(|(i, node)| node.inputs.iter().map(move |&v| (v, i))).collect()
}

/// The place of a value.
#[derive(Clone, Copy)]
pub enum Spot {
    Arena {
        segment: usize,
        offset: usize,
    },
    /// Position in [`Placement::externals`].
    External(usize),
}

/// The block of memory that holds a value, and the value's offset in it.
#[derive(Clone, Copy)]
struct Home {
    block: usize,
    offset: usize,
}

/// Finds the blocks of memory that tensors need, and when, node by node.
struct Planner<'g> {
    graph: &'g Graph,
    in_place: bool,
    last_use: HashMap<Value, usize>,
    joined: HashMap<Value, Joined>,
    blocks: Vec<Block>,
    homes: HashMap<Value, Home>,
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
            if self.graph.info(v).external.is_some() && !self.externals.contains(&v) {
                self.externals.push(v);
            }
        }
    }

    /// The homes of the outputs of node `i`.
    fn find_homes(&mut self, i: usize, node: &Node) {
        let mut taken = Vec::new();
        for (o, &out) in node.outputs.iter().enumerate() {
            if let Some(&Joined { whole, offset }) = self.joined.get(&out) {
                let (block, bytes) = (self.own_block(whole, i), self.bytes(out));
                self.homes.insert(out, Home { block, offset });
                self.blocks[block].use_from(i, offset, bytes);
                continue;
            }
            let free = |v| self.ends(v, i) && !taken.contains(&v) && !self.joined.contains_key(&v);
            let donor = if self.in_place { donor(self.graph, node, o, free) } else { None };
            let block = match donor.and_then(|v| Some((v, *self.homes.get(&v)?))) {
                Some((v, home)) => {
                    taken.push(v);
                    self.homes.insert(out, home);
                    home.block
                }
                None => self.own_block(out, i),
            };
            self.use_whole(block, i, node, out);
        }
    }

    /// The block that starts with this value, created at node `i` if it has none yet.
    fn own_block(&mut self, value: Value, i: usize) -> usize {
        let (bytes, blocks) = (self.bytes(value), &mut self.blocks);
        let new = || {
            blocks.push(Block::new(bytes, i));
            Home { block: blocks.len() - 1, offset: 0 }
        };
        self.homes.entry(value).or_insert_with(new).block
    }

    /// Node `i` makes `out`, which fills a block; parts made earlier inside it are already in use.
    fn use_whole(&mut self, block: usize, i: usize, node: &Node, out: Value) {
        let types: Vec<&TensorType> = node.inputs.iter().map(|&v| &self.graph.info(v).ty).collect();
        let mut begins = node.op.joins(&types);
        if begins.is_empty() {
            begins.push(0);
        }
        let bytes = self.bytes(out);
        let ends = begins.iter().skip(1).copied().chain([bytes]);
        let block = &mut self.blocks[block];
        for (begin, end) in begins.iter().zip(ends) {
            block.use_from(i, *begin, end - begin);
        }
        block.last = self.last_use.get(&out).copied().unwrap_or(i);
    }
}

/// An input whose memory output `o` of a node may take over ([`crate::Op::reuses`]), among those that are `free`.
fn donor(graph: &Graph, node: &Node, o: usize, free: impl Fn(Value) -> bool) -> Option<Value> {
    let bytes = |v: Value| graph.info(v).ty.bytes();
    let reuses = node.op.reuses();
    reuses.iter().filter(|(output, _)| *output == o).find_map(|&(_, input)| {
        let v = *node.inputs.get(input)?;
        // The same tensor may also be an input whose memory cannot be reused.
        let mut uses = node.inputs.iter().enumerate().filter(|(_, u)| **u == v);
        let given = uses.all(|(i, _)| reuses.contains(&(o, i)));
        (given && free(v) && bytes(v) == bytes(node.outputs[o])).then_some(v)
    })
}

/// The place of a tensor that is made inside another one.
#[derive(Clone, Copy)]
struct Joined {
    whole: Value,
    /// Bytes from the beginning of `whole`.
    offset: usize,
}

/// The tensors that are made inside another one: inputs of a joining op that nothing reads after it, and with
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
                // External tensors are made by no node, and a joined tensor cannot lie inside another one.
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
