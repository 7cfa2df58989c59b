//! Operations that plugins define, with their own kernels if the device supports those.

use super::case::{Build, Case};
use sparta_graph::Value;
use sparta_plugin::Error;
use sparta_plugin::graph::ops::{Function, Launch, Map, Mul, RowSum};
use sparta_plugin::graph::{CpuInput, CpuKernel, CpuOutput, Own};

const SHAPES: [[usize; 2]; 5] = [[1, 1], [3, 2], [5, 65], [129, 31], [70, 1000]];

pub fn cases() -> Vec<Case> {
    SHAPES.into_iter().flat_map(|shape| [gate(shape), squares(shape), plain(shape)]).collect()
}

/// `y = relu(a) b`, elementwise.
struct Gate;

impl CpuKernel for Gate {
    fn run(inputs: &[CpuInput], outputs: &mut [CpuOutput]) {
        for ((y, a), b) in outputs[0].values.iter_mut().zip(inputs[0].values).zip(inputs[1].values) {
            *y = a.max(0.0) * b;
        }
    }
}

fn gate_op(shape: &[usize]) -> Result<Own, Error> {
    Own::new("gate", [("a", shape.to_vec()), ("b", shape.to_vec())], ["y"], |graph, [a, b]| {
        let open = graph.one(Map { function: Function::Relu }, &[a])?;
        Ok([graph.one(Mul {}, &[open, b])?])
    })
}

/// Two inputs away from the kink of relu.
fn operands(b: &mut Build, shape: &[usize]) -> [Value; 2] {
    let values = b.random.normals(shape.iter().product());
    [b.f32s(shape, values.into_iter().map(|x| x + 0.25 * x.signum()).collect()), b.normal(shape)]
}

fn observed(b: &mut Build, op: Own, inputs: [Value; 2]) {
    // A kernel needs its operands whole.
    b.refusable = true;
    let y = b.one(op, &inputs);
    let [x, w] = inputs.map(|input| b.of(input));
    b.expect(y, x.iter().zip(&w).map(|(x, w)| x.max(0.0) * w).collect());
    b.seed(y);
    b.wrt(&inputs);
}

/// With a rule for its gradient, a WGSL kernel for elements, and a function.
fn gate(shape: [usize; 2]) -> Case {
    Case::new(format!("own gate {shape:?}"), move |b| {
        let inputs = operands(b, &shape);
        let op = gate_op(&shape).and_then(|op| {
            op.gradient(["a", "b"], |graph, inputs, _, dy| {
                let passed = graph.one(Mul {}, &[dy[0], inputs[1]])?;
                let inside = graph.one(Map { function: Function::Step }, &inputs[..1])?;
                let open = graph.one(Map { function: Function::Relu }, &inputs[..1])?;
                Ok([graph.one(Mul {}, &[passed, inside])?, graph.one(Mul {}, &[dy[0], open])?])
            })
        });
        let text = "fn kernel(i: u32) {\n    y[i] = max(a[i], 0.0) * b[i];\n}";
        let op = op.unwrap_or_else(|e| panic!("{e}")).wgsl(Launch::Elements, text).lanes(256).cpu::<Gate>();
        observed(b, op, inputs);
    })
}

/// The subgraph alone.
fn plain(shape: [usize; 2]) -> Case {
    Case::new(format!("own gate without kernels {shape:?}"), move |b| {
        let inputs = operands(b, &shape);
        observed(b, gate_op(&shape).unwrap_or_else(|e| panic!("{e}")), inputs);
    })
}

struct Squares;

impl CpuKernel for Squares {
    fn run(inputs: &[CpuInput], outputs: &mut [CpuOutput]) {
        let width = inputs[0].shape[1] as usize;
        for (y, row) in outputs[0].values.iter_mut().zip(inputs[0].values.chunks(width)) {
            *y = row.iter().map(|x| x * x).sum();
        }
    }
}

const ROWS: &str = "var<workgroup> partial: array<f32, LANES>;

fn kernel(row: u32, lane: u32) {
    var sum = 0.0;
    for (var c = lane; c < sizes.x_1; c += LANES) {
        let number = x[row * sizes.x_1 + c];
        sum += number * number;
    }
    partial[lane] = sum;
    workgroupBarrier();
    if (lane == 0u) {
        var total = 0.0;
        for (var i = 0u; i < LANES; i++) {
            total += partial[i];
        }
        y[row] = total;
    }
}";

/// Sums of squares of rows, by a workgroup each; the gradient is that of the subgraph.
fn squares(shape: [usize; 2]) -> Case {
    Case::new(format!("own squares of rows {shape:?}"), move |b| {
        let x = b.normal(&shape);
        b.refusable = true;
        let op = Own::new("squares", [("x", shape.to_vec())], ["y"], |graph, [x]| {
            let squares = graph.one(Mul {}, &[x, x])?;
            Ok([graph.one(RowSum {}, &[squares])?])
        });
        let op = op.unwrap_or_else(|e| panic!("{e}")).wgsl(Launch::Rows, ROWS).cpu::<Squares>();
        let y = b.one(op, &[x]);
        let values = b.of(x);
        b.expect(y, values.chunks(shape[1]).map(|row| row.iter().map(|x| x * x).sum()).collect());
        b.seed(y);
        b.wrt(&[x]);
    })
}
