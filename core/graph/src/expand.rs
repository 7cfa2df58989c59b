//! Replaces plugins' own operations by their subgraphs.

use crate::Op;
use crate::graph::{Graph, TensorType, Value};
use crate::ops::OwnKernel;
use std::borrow::Cow;
use std::collections::HashMap;

/// The same computation, with each of the plugins' own operations replaced by its subgraph unless one of `kernels` can
/// run it.
pub fn expand<'g>(graph: &'g Graph, kernels: &[OwnKernel]) -> Cow<'g, Graph> {
    if !graph.nodes().iter().any(|node| matches!(node.op, Op::Own(_))) {
        return Cow::Borrowed(graph);
    }
    let mut out = graph.clone();
    out.nodes.clear();
    let mut replaced: HashMap<Value, Value> = HashMap::new();
    for node in graph.nodes() {
        let mut node = node.clone();
        node.inputs.iter_mut().for_each(|v| *v = replaced.get(v).copied().unwrap_or(*v));
        let Op::Own(own) = &node.op else {
            out.nodes.push(node);
            continue;
        };
        let operands: Vec<&TensorType> = node.inputs.iter().chain(&node.outputs).map(|&v| &out.info(v).ty).collect();
        if kernels.iter().any(|&kernel| own.0.runs(kernel, &operands)) {
            out.nodes.push(node);
            continue;
        }
        out.set_label(node.label.clone());
        out.set_segment(node.segment);
        // The op's rule has checked the subgraph on these inputs; a node that stays is refused by the device.
        match own.0.body.inline(&mut out, &node.inputs) {
            Ok(outputs) => replaced.extend(node.outputs.iter().copied().zip(outputs)),
            Err(_) => out.nodes.push(node),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Add, Body, BodyCall, CpuFunction, GradientRule, Mul, Own, OwnOp, RawTensor, Scale, Store};
    use crate::{DType, GradRequest, GraphError, gradients};

    unsafe extern "C" fn nothing(_: *const RawTensor, _: usize, _: *const RawTensor, _: usize) -> i32 {
        0
    }

    fn call(op: impl Into<Op>, inputs: &[u32]) -> BodyCall {
        BodyCall { op: op.into(), inputs: inputs.to_vec() }
    }

    /// `y = a a b`.
    fn product() -> OwnOp {
        OwnOp {
            name: "product".into(),
            inputs: vec!["a".into(), "b".into()],
            outputs: vec!["y".into()],
            body: Body { calls: vec![call(Mul {}, &[0, 0]), call(Mul {}, &[2, 1])], outputs: vec![3] },
            gradient: None,
            wgsl: None,
            function: None,
        }
    }

    fn names(graph: &Graph) -> Vec<&'static str> {
        graph.nodes().iter().map(|node| node.op.name()).collect()
    }

    /// The nodes of `out = product(a, b)` and of the gradients that are asked for.
    fn built(op: OwnOp, by: &[usize]) -> Result<Graph, GraphError> {
        let mut graph = Graph::new();
        let inputs = ["a", "b"].map(|name| graph.external(name, DType::F32, [4, 3]));
        let [seed, out] = ["seed", "out"].map(|name| graph.external(name, DType::F32, [4, 3]));
        graph.set_label("layer");
        let y = graph.one(Own(Box::new(op)), &inputs)?;
        graph.apply(Store {}.into(), &[out, y])?;
        let requests: Vec<_> = by.iter().map(|&i| (inputs[i], GradRequest::Dense)).collect();
        gradients(&mut graph, &[(y, seed)], &requests)?;
        Ok(graph)
    }

    #[test]
    fn the_subgraph_takes_the_place_of_an_op_without_a_kernel() {
        let graph = built(product(), &[]).unwrap();
        let expanded = expand(&graph, &[OwnKernel::Wgsl, OwnKernel::Function]);
        assert_eq!(names(&expanded), ["mul", "mul", "store"]);
        assert!(expanded.nodes()[..2].iter().all(|node| node.label == "layer"));
        assert_eq!(expanded.nodes()[2].inputs[1], expanded.nodes()[1].outputs[0]);

        // SAFETY: it touches nothing.
        let function = Some(unsafe { CpuFunction::new(nothing) });
        let graph = built(OwnOp { function, ..product() }, &[]).unwrap();
        assert_eq!(names(&expand(&graph, &[OwnKernel::Function])), ["own", "store"]);
        assert_eq!(names(&expand(&graph, &[OwnKernel::Wgsl])), ["mul", "mul", "store"]);
        let mut graph = Graph::new();
        let x = graph.external("x", DType::BF16, [4]);
        graph.one(Own(Box::new(OwnOp { function, ..product() })), &[x, x]).unwrap();
        assert_eq!(names(&expand(&graph, &[OwnKernel::Function])), ["mul", "mul"], "not in bf16");
    }

    #[test]
    fn without_a_rule_the_subgraph_is_differentiated() {
        let graph = built(product(), &[0, 1]).unwrap();
        // The square is computed again, for db; da has two terms, which are added.
        assert_eq!(names(&graph)[..2], ["own", "store"]);
        assert_eq!(names(&graph)[2..].iter().filter(|name| **name == "mul").count(), 2 + 4);
        let only_b = built(product(), &[1]).unwrap();
        assert_eq!(names(&only_b)[2..], ["mul", "mul", "mul"]);
    }

    #[test]
    fn a_rule_takes_the_place_of_differentiation() {
        let body = Body { calls: vec![call(Scale { factor: 3.0 }, &[3])], outputs: vec![4] };
        let rule = |body| Some(GradientRule { of: vec![0], body, straight_through: true });
        let op = OwnOp { gradient: rule(body.clone()), ..product() };
        assert_eq!(names(&built(op.clone(), &[0]).unwrap()), ["own", "store", "scale"]);
        let error = built(op, &[0, 1]).unwrap_err();
        assert_eq!(error, GraphError::NotDifferentiable { op: "own", input: 1 });
        let error = built(OwnOp { gradient: rule(Body { outputs: vec![9], ..body }), ..product() }, &[0]).unwrap_err();
        let expected = "layer: own: `product`: its gradient: its output: there is no value 9, only 5 so far";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn an_invalid_subgraph_is_refused_with_its_place() {
        let refused = |change: fn(&mut OwnOp)| {
            let mut op = product();
            change(&mut op);
            built(op, &[]).unwrap_err().to_string()
        };
        let nested = |op: &mut OwnOp| op.body.calls[1] = call(Own(Box::new(product())), &[0, 1]);
        for (change, expected) in [
            (
                (|op| op.body.calls[1] = call(Add {}, &[0, 7])) as fn(&mut OwnOp),
                "operation 1, add: there is no value 7",
            ),
            (|op| op.body.calls[0] = call(Store {}, &[0, 1]), "operation 0, store: a subgraph cannot have it"),
            (nested, "operation 1, own: a subgraph cannot have it"),
            (|op| op.inputs[1] = "a".into(), "two operands are called `a`"),
            (|op| op.outputs[0] = "y z".into(), "the name `y z` is not a word"),
            (|op| op.outputs.push("z".into()), "it names 2 outputs and has 1"),
            (|op| op.inputs.truncate(1), "expected 1 inputs, got 2"),
        ] {
            let message = refused(change);
            assert!(message.contains(expected), "{message}");
        }
    }
}
