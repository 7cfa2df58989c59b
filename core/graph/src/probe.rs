//! Finds where numbers stop being finite: a graph that also measures every tensor it makes.

use crate::DType;
use crate::graph::{Graph, GraphError, Value};
use crate::ops::{Op, PARTIALS, SumOfSquares};

/// One measured tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// The op that makes it, and its place in the model.
    pub op: &'static str,
    pub label: String,
    /// Whether the op belongs to the backward pass, after the loss.
    pub backward: bool,
    /// External tensors that the op reads.
    pub externals: Vec<String>,
}

/// The computation up to the clip factor, on which every optimizer update depends. After each node, the partial sums of
/// squares of its f32 and bf16 outputs are written to the external tensor `norms`, f32 `[probes, PARTIALS]`, a row for
/// each returned probe in order of computation.
///
/// A row is not finite if its tensor is not, or holds values above 1e19, whose squares overflow.
pub fn probe(graph: &Graph, norms: &str) -> Result<(Graph, Vec<Probe>), GraphError> {
    let end = graph.nodes().iter().position(|node| matches!(node.op, Op::ClipCoef(_))).unwrap_or(graph.nodes().len());
    let loss = graph.nodes().iter().position(|node| node.op.is_loss()).unwrap_or(end);
    let measured = |v: &Value| graph.info(*v).ty.dtype.is_activation();
    let nodes = &graph.nodes()[..end];
    let count = nodes.iter().flat_map(|node| &node.outputs).filter(|v| measured(v)).count();
    let mut out = graph.clone();
    out.nodes.clear();
    let norms = out.external(norms, DType::F32, [count, PARTIALS]);
    let mut probes = Vec::with_capacity(count);
    for (i, node) in nodes.iter().enumerate() {
        out.nodes.push(node.clone());
        for value in node.outputs.iter().copied().filter(measured) {
            out.apply(SumOfSquares { slot: probes.len() }.into(), &[norms, value])?;
            let externals = node.inputs.iter().filter_map(|&v| graph.info(v).external.clone()).collect();
            let (op, label) = (node.op.name(), node.label.clone());
            probes.push(Probe { op, label, backward: i > loss, externals });
        }
    }
    Ok((out, probes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Add, Cast, Scale, Store};

    #[test]
    fn every_tensor_is_measured_where_it_is_made() {
        let mut g = Graph::new();
        let [x, w, out] = ["x", "w", "out"].map(|name| g.external(name, DType::F32, [4]));
        g.set_label("first");
        let a = g.one(Scale { factor: 2.0 }, &[x]).unwrap();
        let half = g.one(Cast { to: DType::BF16 }, &[a]).unwrap();
        let back = g.one(Cast { to: DType::F32 }, &[half]).unwrap();
        g.set_label("second");
        let b = g.one(Add {}, &[back, w]).unwrap();
        g.apply(Store {}.into(), &[out, b]).unwrap();

        let (probed, probes) = probe(&g, "norms").unwrap();
        let names: Vec<&str> = probed.nodes().iter().map(|node| node.op.name()).collect();
        let sum = "sum_of_squares";
        assert_eq!(names, ["scale", sum, "cast", sum, "cast", sum, "add", sum, "store"]);
        assert_eq!(
            probes.iter().map(|p| (p.op, &*p.label)).collect::<Vec<_>>(),
            [("scale", "first"), ("cast", "first"), ("cast", "first"), ("add", "second")]
        );
        assert_eq!(probes[3].externals, ["w"]);
        let norms = probed.values().iter().find(|v| v.external.as_deref() == Some("norms")).unwrap();
        assert_eq!(norms.ty.shape, [4, PARTIALS]);
    }
}
