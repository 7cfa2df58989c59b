//! Operations that a method defines.

use super::Recorder;
use crate::Error;
use crate::method::GraphBuilder;
use sparta_graph::ops::{
    Body, BodyCall, CpuFunction, GradientRule, Launch, Own as OwnNode, OwnFunction, OwnOp, RawTensor, Wgsl,
};
use sparta_graph::{DType, Graph, Op, Value};
use std::panic::catch_unwind;

/// A method's own operation: a named subgraph, optionally with its own gradient and kernels. Since ABI minor version 5.
///
/// The subgraph defines the result. Kernels only make it faster: they run if all tensors are f32 and the device supports
/// them; otherwise the subgraph does.
///
/// ```
/// use sparta_plugin::Error;
/// use sparta_plugin::graph::ops::{Function, Launch, Map};
/// use sparta_plugin::graph::{Own, Value};
/// use sparta_plugin::method::GraphBuilder;
///
/// /// To the nearest whole number; the gradient passes as if nothing were rounded.
/// fn rounded(graph: &mut dyn GraphBuilder, x: Value) -> Result<Value, Error> {
///     let round = Own::new("round", [("x", graph.shape(x)?)], ["y"], |graph, [x]| {
///         Ok([graph.one(Map { function: Function::Round }, &[x])?])
///     })?
///     .straight_through(["x"], |_, _, _, dy| Ok([dy[0]]))?
///     .wgsl(Launch::Elements, "fn kernel(i: u32) { y[i] = round(x[i]); }");
///     graph.one(round, &[x])
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Own {
    op: OwnOp,
    inputs: Vec<Vec<usize>>,
    outputs: Vec<Vec<usize>>,
}

/// Builds a part of an operation on separate values.
type Build<'b> = &'b mut dyn FnMut(&mut dyn GraphBuilder, &[Value]) -> Result<Vec<Value>, Error>;

impl Own {
    /// An operation on inputs with these names and shapes, from which `body` makes the outputs. Names are words.
    ///
    /// Errors: those of `body`, which gets f32 inputs.
    pub fn new<const I: usize, const O: usize>(
        name: &str,
        inputs: [(&str, Vec<usize>); I],
        outputs: [&str; O],
        mut body: impl FnMut(&mut dyn GraphBuilder, [Value; I]) -> Result<[Value; O], Error>,
    ) -> Result<Self, Error> {
        let shapes = inputs.iter().map(|(_, shape)| shape.clone()).collect::<Vec<_>>();
        let (body, made) = record(&shapes, &mut |graph, values| {
            let values = values.try_into().map_err(|_| Error::new("a different number of inputs"))?;
            body(graph, values).map(Vec::from)
        })?;
        let op = OwnOp {
            name: name.into(),
            inputs: inputs.map(|(name, _)| name.into()).into(),
            outputs: outputs.map(Into::into).into(),
            body,
            gradient: None,
            wgsl: None,
            function: None,
        };
        Ok(Own { op, inputs: shapes, outputs: made })
    }

    /// Defines its gradient as another subgraph: `rule` gets the inputs, the outputs and the gradients of the outputs,
    /// and returns the gradients of the inputs `of`; the others have none. Without a rule, the subgraph is
    /// differentiated.
    ///
    /// Errors: those of `rule`; an unknown input.
    pub fn gradient<const G: usize>(
        self,
        of: [&str; G],
        rule: impl FnMut(&mut dyn GraphBuilder, &[Value], &[Value], &[Value]) -> Result<[Value; G], Error>,
    ) -> Result<Self, Error> {
        self.rule(of, false, rule)
    }

    /// [`Own::gradient`] with a rule that is deliberately not the derivative, so that no check compares it with
    /// differences.
    ///
    /// Errors: those of [`Own::gradient`].
    pub fn straight_through<const G: usize>(
        self,
        of: [&str; G],
        rule: impl FnMut(&mut dyn GraphBuilder, &[Value], &[Value], &[Value]) -> Result<[Value; G], Error>,
    ) -> Result<Self, Error> {
        self.rule(of, true, rule)
    }

    fn rule<const G: usize>(
        mut self,
        of: [&str; G],
        straight_through: bool,
        mut rule: impl FnMut(&mut dyn GraphBuilder, &[Value], &[Value], &[Value]) -> Result<[Value; G], Error>,
    ) -> Result<Self, Error> {
        let position = |name: &&str| {
            let at = self.op.inputs.iter().position(|input| input == name);
            at.map(|at| at as u32).ok_or_else(|| Error(format!("`{}` has no input `{name}`", self.op.name)))
        };
        let of = of.iter().map(position).collect::<Result<Vec<u32>, Error>>()?;
        let (inputs, outputs) = (self.inputs.len(), self.outputs.len());
        let shapes = [&self.inputs[..], &self.outputs, &self.outputs].concat();
        let (body, _) = record(&shapes, &mut |graph, values| {
            let (inputs, rest) = values.split_at(inputs);
            let (outputs, gradients) = rest.split_at(outputs);
            rule(graph, inputs, outputs, gradients).map(Vec::from)
        })?;
        self.op.gradient = Some(GradientRule { of, body, straight_through });
        Ok(self)
    }

    /// A kernel in WGSL: `text` declares `fn kernel(i: u32)`, called for each element of the first output, or with
    /// [`Launch::Rows`] `fn kernel(row: u32, lane: u32)`, called by `LANES` threads for each of its rows.
    ///
    /// Inputs and outputs are arrays of f32 with their names; `sizes.x_0` and `sizes.x_1` are the dimensions of `x`. It
    /// may use workgroup memory; it must write all elements of the outputs and none of the inputs.
    pub fn wgsl(mut self, launch: Launch, text: &str) -> Self {
        self.op.wgsl = Some(Wgsl { text: text.into(), launch, lanes: 64 });
        self
    }

    /// Threads of a workgroup of the WGSL kernel, 1 to 256; 64 without it.
    pub fn lanes(mut self, lanes: u32) -> Self {
        if let Some(wgsl) = &mut self.op.wgsl {
            wgsl.lanes = lanes;
        }
        self
    }

    /// A function for the CPU.
    pub fn cpu<K: CpuKernel>(mut self) -> Self {
        // SAFETY: `call` uses slices of the tensors' sizes and does not unwind; hosts never unload a library.
        self.op.function = Some(unsafe { CpuFunction::new(call::<K> as OwnFunction) });
        self
    }
}

impl From<Own> for Op {
    fn from(own: Own) -> Op {
        OwnNode(Box::new(own.op)).into()
    }
}

/// What `build` adds to a graph with f32 inputs of these shapes, and the shapes of its outputs.
fn record(shapes: &[Vec<usize>], build: Build) -> Result<(Body, Vec<Vec<usize>>), Error> {
    let mut graph = Graph::new();
    let inputs: Vec<Value> =
        shapes.iter().enumerate().map(|(i, shape)| graph.external(format!("{i}"), DType::F32, &**shape)).collect();
    let outputs = build(&mut Recorder { graph: &mut graph, rng: None }, &inputs)?;
    let shape = |&output: &Value| graph.shape(output).map(<[usize]>::to_vec).map_err(|e| Error(e.to_string()));
    let made = outputs.iter().map(shape).collect::<Result<_, _>>()?;
    // The inputs are the first values of the graph, and nodes number their outputs on from there.
    let call = |node: &sparta_graph::Node| BodyCall { op: node.op.clone(), inputs: numbers(&node.inputs) };
    let body = Body { calls: graph.nodes().iter().map(call).collect(), outputs: numbers(&outputs) };
    Ok((body, made))
}

fn numbers(values: &[Value]) -> Vec<u32> {
    values.iter().map(|value| value.0).collect()
}

/// An input of a [`CpuKernel`].
#[derive(Clone, Copy, Debug)]
pub struct CpuInput<'a> {
    /// Its dimensions.
    pub shape: &'a [u64],
    /// Its elements, row by row.
    pub values: &'a [f32],
}

/// An output of a [`CpuKernel`].
#[derive(Debug)]
pub struct CpuOutput<'a> {
    /// Its dimensions.
    pub shape: &'a [u64],
    /// Its elements, row by row, to be overwritten.
    pub values: &'a mut [f32],
}

/// Computes an operation on the CPU, on the thread that it is called on.
pub trait CpuKernel {
    /// Writes all elements of the outputs. A panic is an error of the step.
    fn run(inputs: &[CpuInput], outputs: &mut [CpuOutput]);
}

unsafe extern "C" fn call<K: CpuKernel>(
    inputs: *const RawTensor,
    input_count: usize,
    outputs: *const RawTensor,
    output_count: usize,
) -> i32 {
    let done = catch_unwind(|| {
        // SAFETY: the backend passes arrays of tensors whose shapes are those of the operation and whose memory is
        // theirs; outputs overlap nothing.
        unsafe {
            let shape = |t: &RawTensor| crate::abi::slice(t.shape, t.rank);
            let count = |t: &RawTensor| shape(t).iter().product::<u64>() as usize;
            let input = |t: &RawTensor| CpuInput { shape: shape(t), values: crate::abi::slice(t.data, count(t)) };
            let output = |t: &RawTensor| CpuOutput {
                shape: shape(t),
                values: match count(t) {
                    0 => &mut [],
                    n => std::slice::from_raw_parts_mut(t.data, n),
                },
            };
            let inputs: Vec<CpuInput> = crate::abi::slice(inputs, input_count).iter().map(input).collect();
            let mut outputs: Vec<CpuOutput> = crate::abi::slice(outputs, output_count).iter().map(output).collect();
            K::run(&inputs, &mut outputs);
        }
    });
    i32::from(done.is_err())
}
