//! How far A and B are from orthogonal.

use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Add, ColumnSum, Fill, Function, Layout, Linear, Map, Mul, RowSum, Slice, Unslice};
use sparta_plugin::method::GraphBuilder;

/// The Frobenius norm of `x x^T - I` (nt) or `x^T x - I` (tn) of r rows, f32 `[1]`.
pub fn distance(graph: &mut dyn GraphBuilder, x: Value, layout: Layout, r: usize) -> Result<Value, Error> {
    let identity = minus_identity(graph, r)?;
    let off = graph.one(Linear { residual: true, ..Linear::plain(layout) }, &[x, x, identity])?;
    let squares = graph.one(Mul {}, &[off, off])?;
    let rows = graph.one(RowSum {}, &[squares])?;
    let sum = graph.one(ColumnSum {}, &[rows])?;
    let inverse = graph.one(Map { function: Function::Rsqrt }, &[sum])?;
    graph.one(Mul {}, &[sum, inverse])
}

/// `-I [r, r]`, by doubling.
fn minus_identity(graph: &mut dyn GraphBuilder, r: usize) -> Result<Value, Error> {
    let (mut known, mut n) = (graph.one(Fill { value: -1.0, shape: vec![1, 1] }, &[])?, 1);
    while n < r {
        let [upper, lower] = [[0, 0], [n, n]].map(|at| graph.one(Unslice { shape: [2 * n, 2 * n], at }, &[known]));
        (known, n) = (graph.one(Add {}, &[upper?, lower?])?, 2 * n);
    }
    graph.one(Slice { rows: [0, r], columns: [0, r] }, &[known])
}
