//! Cases in bf16: the same graphs on rounded activations, and how they are judged.
//!
//! A rounded value that lies near the middle of two bf16 numbers may become either of them, and everything after it
//! then differs. So each op is judged alone, on the values that the device itself gave it: its result lies between
//! `round(ref - t)` and `round(ref + t)`, where ref is the reference's result from these values before rounding and t
//! the tolerance in f32. Rounding inside an op widens that interval by the largest change that it can cause.

use super::case::Program;
use super::check::Failure;
use super::inside::{Rounding, inside};
use crate::device::Tensors;
use crate::tensor::round;
use crate::{Device, Tensor};
use sparta_graph::graph::{Node, TensorType};
use sparta_graph::ops::{Cast, Dequantize, Linear, RmsNorm, Store, WeightGrad};
use sparta_graph::{DType, Graph, GraphError, Op, Plan, Value};
use std::collections::HashMap;

/// Larger tensors are left to the cases in f32.
const LARGEST: usize = 1 << 20;

/// The inputs that can be bf16 besides weights.
pub fn activations(op: &Op) -> &'static [usize] {
    match op {
        Op::Linear(_) | Op::RmsNorm(_) | Op::ColumnSum(_) | Op::Rope(_) | Op::Scale(_) | Op::Dropout(_) => &[0],
        Op::Map(_) | Op::RowSum(_) | Op::Broadcast(_) | Op::Transpose(_) => &[0],
        Op::Slice(_) | Op::Unslice(_) | Op::Detach(_) => &[0],
        Op::Mul(_) | Op::Div(_) | Op::MapGrad(_) => &[0, 1],
        Op::SelectRows(_) | Op::ScatterRows(_) | Op::SoftCap(_) | Op::Gather(_) | Op::SplitColumns(_) => &[0],
        Op::GatedAct(_) | Op::SoftCapGrad(_) | Op::SampledGrad(_) | Op::RmsNormGradW(_) => &[0, 1],
        Op::Add(_) | Op::AttentionDelta(_) => &[0, 1],
        Op::LinearCrossEntropy(_) | Op::ScaleBy(_) | Op::SparseLinear(_) => &[0],
        Op::Attention(_) | Op::AttentionCached(_) | Op::GatedActGrad(_) | Op::JoinColumns(_) => &[0, 1, 2],
        Op::RmsNormGrad(_) => &[0, 2, 3],
        Op::AttentionGrad(_) => &[0, 1, 2, 3],
        Op::SumOfSquares(_) => &[1],
        _ => &[],
    }
}

/// Whether no input but weights can be bf16.
pub fn is_for_f32(op: &Op) -> bool {
    activations(op).is_empty() && !matches!(op, Op::Cast(_) | Op::Store(_))
}

/// The op on rounded inputs: the inputs to cast to bf16, and the op with the output that `variant` asks of it. Where an
/// op names its output, one variant rounds both sides, one the inputs only, one the output only.
pub fn narrowed(op: Op, inputs: &[TensorType], variant: usize) -> (Op, Vec<usize>) {
    let mut cast = activations(&op).to_vec();
    let output = [None, Some(DType::F32), Some(DType::BF16)][variant % 3];
    let op = match op {
        Op::Linear(op) => {
            // The residual is of the output's type.
            let residual = op.residual_index().filter(|_| output != Some(DType::F32));
            cast.retain(|_| output != Some(DType::BF16));
            cast.extend(residual);
            Op::Linear(Linear { output, ..op })
        }
        Op::RmsNorm(op) => {
            cast.retain(|_| output != Some(DType::BF16));
            Op::RmsNorm(RmsNorm { output, ..op })
        }
        // A vector beside a matrix is a weight.
        Op::Add(op) => {
            cast.retain(|&i| inputs[i].shape == inputs[0].shape);
            Op::Add(op)
        }
        op => op,
    };
    cast.retain(|&i| inputs.get(i).is_some_and(|ty| ty.dtype == DType::F32));
    (op, cast)
}

/// The op on f32, with an f32 result.
fn with_f32_output(op: &Op) -> Op {
    match op.clone() {
        Op::Linear(op) => Op::Linear(Linear { output: None, ..op }),
        Op::RmsNorm(op) => Op::RmsNorm(RmsNorm { output: None, ..op }),
        Op::Cast(_) => Op::Cast(Cast { to: DType::F32 }),
        Op::Dequantize(op) => Op::Dequantize(Dequantize { output: DType::F32, ..op }),
        op => op,
    }
}

/// The same graph without any rounding: every float tensor is f32.
pub fn unrounded(graph: &Graph) -> Result<Graph, GraphError> {
    let mut wide = Graph::new();
    let mut values: HashMap<Value, Value> = HashMap::new();
    for (i, info) in graph.values().iter().enumerate() {
        if let Some(name) = &info.external {
            values.insert(Value(i as u32), wide.external(name, wide_type(info.ty.dtype), info.ty.shape.clone()));
        }
    }
    for node in graph.nodes() {
        let inputs: Vec<Value> = node.inputs.iter().map(|v| values[v]).collect();
        let outputs = wide.apply(with_f32_output(&node.op), &inputs)?;
        values.extend(node.outputs.iter().copied().zip(outputs));
    }
    Ok(wide)
}

fn wide_type(dtype: DType) -> DType {
    if dtype.is_float() { DType::F32 } else { dtype }
}

/// The same data, floats as f32.
pub fn widened(data: &Tensors) -> Tensors {
    let wide = |tensor: &Tensor| {
        let ty = TensorType::new(wide_type(tensor.ty.dtype), tensor.ty.shape.clone());
        Tensor { ty, values: tensor.values.clone() }
    };
    data.iter().map(|(name, tensor)| (name.clone(), wide(tensor))).collect()
}

/// Whether no tensor is so large that only the cases in f32 are worth its time.
pub fn is_small(program: &Program) -> bool {
    program.graph.values().iter().all(|v| v.ty.numel() <= LARGEST)
}

/// Whether the ops change only what is observed. Other graphs round only exact values, so they are compared as a whole.
pub fn is_pure(graph: &Graph) -> bool {
    graph.nodes().iter().all(|node| node.op.writes().is_empty() || matches!(node.op, Op::Store(_)))
}

/// The graph with every intermediate tensor stored where the host can read it, under [`place_of`].
fn observed(graph: &Graph) -> Result<(Graph, Vec<(String, TensorType)>), GraphError> {
    let mut all = graph.clone();
    let mut places = vec![];
    for value in graph.nodes().iter().flat_map(|node| &node.outputs) {
        let (name, ty) = (place_of(*value), graph.ty(*value)?.clone());
        let place = all.external(&name, ty.dtype, ty.shape.clone());
        all.apply(Store {}.into(), &[place, *value])?;
        places.push((name, ty));
    }
    Ok((all, places))
}

fn place_of(value: Value) -> String {
    format!("value {}", value.0)
}

/// Runs the program with everything observed and judges each op on the values that it was given. `tf32`: products may
/// round to TF32. `tolerance(x)` is that of arithmetic before rounding, in an element whose true value is x.
pub fn judge(
    program: &Program,
    device: &mut Device,
    tf32: bool,
    tolerance: impl Fn(f64) -> f64,
) -> Result<(), Failure> {
    let wrong = |e: GraphError| Failure::Wrong(e.to_string());
    let (graph, places) = observed(&program.graph).map_err(wrong)?;
    let mut data = program.data.clone();
    data.extend(places.into_iter().map(|(name, ty)| (name, Tensor::zeros(ty))));
    let info = device.info();
    let plan = Plan { tf32, ..Plan::in_segments(&graph, false, info.segment_limit()) };
    let outputs = device.run(&plan, &data)?;
    let rounding = Rounding::of(&info, tf32);
    let value = |v: Value| {
        let name = program.graph.values()[v.0 as usize].external.clone().unwrap_or_else(|| place_of(v));
        outputs.get(&name).or_else(|| program.data.get(&name)).cloned()
    };
    for node in program.graph.nodes().iter().filter(|node| !matches!(node.op, Op::Store(_))) {
        let inputs: Option<Vec<Tensor>> = node.inputs.iter().map(|&v| value(v)).collect();
        let inputs = inputs.ok_or_else(|| Failure::Wrong(format!("{}: an input is missing", node.op.name())))?;
        let (exact, inside) = (one_op(node, &inputs)?, inside(&node.op, &inputs, rounding));
        for (o, (&output, exact)) in node.outputs.iter().zip(exact).take(results(&node.op)).enumerate() {
            let Some(got) = value(output) else { continue };
            let context = format!("{:?}, output {o} {} {:?}", node.op, got.ty.dtype, got.ty.shape);
            let more = inside.get(o).map_or(&[][..], Vec::as_slice);
            between(&context, &got, &exact, more, &tolerance).map_err(Failure::Wrong)?;
        }
    }
    Ok(())
}

/// What the reference computes from these values before rounding, per output.
fn one_op(node: &Node, inputs: &[Tensor]) -> Result<Vec<Vec<f64>>, Failure> {
    let wrong = |e: GraphError| Failure::Wrong(format!("{:?}: {e}", node.op));
    let mut graph = Graph::new();
    let mut data = Tensors::new();
    let mut values = vec![];
    // One tensor may be several inputs.
    for (i, input) in inputs.iter().enumerate() {
        let tensor = Tensor { ty: TensorType::new(wide_type(input.ty.dtype), input.ty.shape.clone()), ..input.clone() };
        values.push(graph.external(format!("in{i}"), tensor.ty.dtype, tensor.ty.shape.clone()));
        data.insert(format!("in{i}"), tensor);
    }
    let outputs = graph.apply(with_f32_output(&node.op), &values).map_err(wrong)?;
    for (o, &value) in outputs.iter().enumerate() {
        let ty = graph.ty(value).map_err(wrong)?.clone();
        let place = graph.external(format!("out{o}"), ty.dtype, ty.shape.clone());
        graph.apply(Store {}.into(), &[place, value]).map_err(wrong)?;
        data.insert(format!("out{o}"), Tensor::zeros(ty));
    }
    let mut results = Device::reference().run(&Plan::build(&graph, false), &data)?;
    Ok((0..outputs.len()).filter_map(|o| results.remove(&format!("out{o}"))).map(|tensor| tensor.values).collect())
}

/// Outputs before scratch memory.
fn results(op: &Op) -> usize {
    match op {
        Op::LinearCrossEntropy(op) => 2 + usize::from(op.hidden_grad) + usize::from(op.weight_grad != WeightGrad::None),
        _ => usize::MAX,
    }
}

fn between(
    context: &str,
    got: &Tensor,
    exact: &[f64],
    more: &[f64],
    tolerance: &impl Fn(f64) -> f64,
) -> Result<(), String> {
    let dtype = got.ty.dtype;
    for (i, (&x, &exact)) in got.values.iter().zip(exact).enumerate() {
        let t = if exact.is_finite() { tolerance(exact) + more.get(i).unwrap_or(&0.0) } else { 0.0 };
        let (low, high) = match dtype {
            DType::BF16 | DType::F16 => (round(dtype, exact - t), round(dtype, exact + t)),
            _ => (exact - t, exact + t),
        };
        if !((low..=high).contains(&x) || x.is_nan() && exact.is_nan()) {
            return Err(format!("{context}: element {i} is {x:e}, expected {low:e} to {high:e}"));
        }
    }
    Ok(())
}
