//! Operations: one file per op with its attributes, its shape rule and its gradient rule. A new op is a file here, a
//! line in the list below, and a kernel of the same name in `shaders/` and in the CPU backend.

use crate::DType;
use crate::autodiff::GradCtx;
use crate::graph::{Graph, GraphError, Node, TensorType, Value};
use serde::{Deserialize, Serialize};

/// What every operation declares.
pub trait Operation {
    /// Types of the outputs, or why these inputs are not valid.
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String>;

    /// Adds the gradients of the inputs, given those of the outputs (`None`: the output does not influence the loss).
    /// The default is for ops that have none.
    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let _ = grads;
        match node.inputs.iter().position(|&v| ctx.needs(v)) {
            Some(input) => Err(GraphError::NotDifferentiable { op: node.op.name(), input }),
            None => Ok(()),
        }
    }

    /// Positions of the inputs that are overwritten in place.
    fn writes(&self) -> &'static [usize] {
        &[]
    }

    /// Pairs (output, input) that may share memory when the input is not used again: each element of the output
    /// depends on the same element of that input only.
    fn reuses(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// For an op that only joins its inputs, their byte offsets in its first output: multiples of
    /// [`crate::graph::ALIGNMENT`], one per input. The planner then places inputs there, and nothing is copied.
    fn joins(&self, inputs: &[&TensorType]) -> Vec<usize> {
        let _ = inputs;
        Vec::new()
    }

    /// Whether a single pass over the inputs makes the outputs, so that recomputing them costs little and saves memory.
    fn cheap(&self) -> bool {
        false
    }

    /// Whether its output stands for its first input, in another form: gradients with respect to the output are those
    /// of the input, and a backward pass recomputes the output instead of keeping it.
    fn decodes(&self) -> bool {
        false
    }

    /// Whether its first output is the loss, after which the backward pass begins.
    fn is_loss(&self) -> bool {
        false
    }

    /// The op as calls of other ops, if it is a composite.
    fn parts(&self, inputs: &[&TensorType]) -> Vec<PartCall> {
        let _ = inputs;
        vec![]
    }

    /// Floating point operations, multiply and add counted separately.
    fn flops(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> u64 {
        let _ = inputs;
        outputs.iter().map(|t| t.numel() as u64).sum()
    }
}

macro_rules! ops {
    ($($file:ident: $($variant:ident = $name:literal),+;)*) => {
        $(mod $file; pub use $file::{$($variant),+};)*

        /// An operation with its attributes; serialised as `{"op": "linear", ...}`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "op")]
        pub enum Op {
            $($(#[serde(rename = $name)] $variant($variant)),+),*
        }

        impl Op {
            pub fn name(&self) -> &'static str {
                match self { $($(Op::$variant(_) => $name),+),* }
            }

            fn rule(&self) -> &dyn Operation {
                match self { $($(Op::$variant(op) => op),+),* }
            }

            /// Names of all operations.
            pub const NAMES: &'static [&'static str] = &[$($($name),+),*];
        }

        $($(impl From<$variant> for Op { fn from(op: $variant) -> Op { Op::$variant(op) } })+)*
    };
}

ops! {
    embed: Embed = "embed", EmbedGrad = "embed_grad";
    rms_norm: RmsNorm = "rms_norm", RmsNormGrad = "rms_norm_grad", RmsNormGradW = "rms_norm_grad_w";
    linear: Linear = "linear";
    column_sum: ColumnSum = "column_sum";
    columns: SplitColumns = "split_columns", JoinColumns = "join_columns";
    rope: Rope = "rope";
    attention: Attention = "attention", AttentionDelta = "attention_delta", AttentionGrad = "attention_grad";
    attention_cached: AttentionCached = "attention_cached";
    gated_act: GatedAct = "gated_act", GatedActGrad = "gated_act_grad";
    add: Add = "add";
    mul: Mul = "mul";
    div: Div = "div";
    map: Map = "map", MapGrad = "map_grad";
    row_sum: RowSum = "row_sum";
    broadcast: Broadcast = "broadcast";
    transpose: Transpose = "transpose";
    slice: Slice = "slice", Unslice = "unslice";
    detach: Detach = "detach";
    dequantize: Dequantize = "dequantize";
    scale: Scale = "scale";
    scale_by: ScaleBy = "scale_by";
    dropout: Dropout = "dropout";
    select_rows: SelectRows = "select_rows", ScatterRows = "scatter_rows";
    soft_cap: SoftCap = "soft_cap", SoftCapGrad = "soft_cap_grad";
    cross_entropy: CrossEntropy = "cross_entropy", CrossEntropyGrad = "cross_entropy_grad";
    linear_cross_entropy: LinearCrossEntropy = "linear_cross_entropy";
    binary_cross_entropy: BinaryCrossEntropy = "binary_cross_entropy",
        BinaryCrossEntropyGrad = "binary_cross_entropy_grad";
    squared_error: SquaredError = "squared_error", SquaredErrorGrad = "squared_error_grad";
    sampled_grad: SampledGrad = "sampled_grad";
    gather: Gather = "gather";
    scatter: Scatter = "scatter";
    sparse_linear: SparseLinear = "sparse_linear";
    concat: Concat = "concat";
    adam: Adam = "adam";
    adam_bf16: AdamBf16 = "adam_bf16";
    sgd: Sgd = "sgd";
    grad_norm: SumOfSquares = "sum_of_squares", ClipCoef = "clip_coef";
    accumulate: Accumulate = "accumulate";
    fill: Fill = "fill";
    cast: Cast = "cast";
    store: Store = "store";
    store_rows: StoreRows = "store_rows";
    own: Own = "own";
}

mod parts;

pub use broadcast::Broadcasting;
use broadcast::{add_broadcast, broadcast_grad};
pub use gated_act::Activation;
pub use grad_norm::{PARTIALS, elements_per_partial};
pub use linear::Layout;
pub use linear_cross_entropy::WeightGrad;
pub use map::Function;
pub use own::{Body, BodyCall, CpuFunction, GradientRule, Launch, OwnFunction, OwnKernel, OwnOp, RawTensor, Wgsl};
pub use parts::{PartCall, Rows, Slot};
pub use sampled_grad::Sampling;

impl Op {
    pub fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.rule().infer(inputs)
    }

    pub fn writes(&self) -> &'static [usize] {
        self.rule().writes()
    }

    pub fn reuses(&self) -> &'static [(usize, usize)] {
        self.rule().reuses()
    }

    pub fn joins(&self, inputs: &[&TensorType]) -> Vec<usize> {
        self.rule().joins(inputs)
    }

    pub fn cheap(&self) -> bool {
        self.rule().cheap()
    }

    pub fn decodes(&self) -> bool {
        self.rule().decodes()
    }

    pub fn is_loss(&self) -> bool {
        self.rule().is_loss()
    }

    /// The op as calls of other ops on rows of its operands, in order; empty for an op that is not a composite.
    /// `inputs` are types that [`Op::infer`] accepts.
    pub fn parts(&self, inputs: &[&TensorType]) -> Vec<PartCall> {
        self.rule().parts(inputs)
    }

    pub fn flops(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> u64 {
        self.rule().flops(inputs, outputs)
    }

    pub(crate) fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        self.rule().grad(ctx, node, grads)
    }
}

/// Checks the inputs of every optimizer op besides its state: `p` and `grad` f32 of one shape, `clip` f32 `[2]` of
/// [`ClipCoef`], `step`.
fn optimizer_inputs(p: &TensorType, grad: &TensorType, clip: &TensorType, step: &TensorType) -> Result<(), String> {
    f32s(p, "p")?;
    f32s(grad, "grad")?;
    shape(grad, "grad", &p.shape)?;
    f32s(clip, "clip")?;
    shape(clip, "clip", &[2])?;
    step_input(step)
}

/// Elements of the `step` input, f32 `[8]`, written by the host before each run.
pub mod step {
    pub const LEN: usize = 8;
    /// Learning rate.
    pub const LR: usize = 0;
    /// Two numbers of the optimizer.
    pub const OPTIMIZER: usize = 1;
    /// The weight of one target in the loss: 1 / (targets of the whole step), micro-batches included.
    pub const LOSS_WEIGHT: usize = 3;
}

/// A label that means "no target".
pub const IGNORED: u32 = u32::MAX;

// ---- checks that the shape rules share

fn count(inputs: &[&TensorType], expected: std::ops::RangeInclusive<usize>) -> Result<(), String> {
    if expected.contains(&inputs.len()) {
        return Ok(());
    }
    let (least, most) = (expected.start(), expected.end());
    let count = if least == most { format!("{least}") } else { format!("{least} to {most}") };
    Err(format!("expected {count} inputs, got {}", inputs.len()))
}

fn dtype(ty: &TensorType, what: &str, expected: DType) -> Result<(), String> {
    if ty.dtype == expected {
        return Ok(());
    }
    Err(format!("{what} must be {expected}, got {}", ty.dtype))
}

/// An f32 tensor.
fn f32s(ty: &TensorType, what: &str) -> Result<(), String> {
    dtype(ty, what, DType::F32)
}

/// A tensor of a type that activations can have: f32 or bf16.
fn activation(ty: &TensorType, what: &str) -> Result<(), String> {
    if ty.dtype.is_activation() {
        return Ok(());
    }
    Err(format!("{what} must be f32 or bf16, got {}", ty.dtype))
}

/// A tensor of the same type and shape as another.
fn like(ty: &TensorType, what: &str, other: &TensorType) -> Result<(), String> {
    dtype(ty, what, other.dtype)?;
    shape(ty, what, &other.shape)
}

/// The type of an output: the op's attribute, by default the type of the first input.
fn output_type(output: Option<DType>, first: &TensorType) -> Result<DType, String> {
    match output.unwrap_or(first.dtype) {
        dtype if dtype.is_activation() => Ok(dtype),
        dtype => Err(format!("the output must be f32 or bf16, got {dtype}")),
    }
}

/// A tensor of any float type.
fn floats(ty: &TensorType, what: &str) -> Result<(), String> {
    if ty.dtype.is_float() {
        return Ok(());
    }
    Err(format!("{what} must be a float type, got {}", ty.dtype))
}

fn shape(ty: &TensorType, what: &str, expected: &[usize]) -> Result<(), String> {
    if ty.shape == expected {
        return Ok(());
    }
    Err(format!("{what} must have shape {expected:?}, got {:?}", ty.shape))
}

fn matrix(ty: &TensorType, what: &str) -> Result<(usize, usize), String> {
    match ty.shape[..] {
        [rows, columns] => Ok((rows, columns)),
        _ => Err(format!("{what} must be a matrix, got shape {:?}", ty.shape)),
    }
}

fn vector(ty: &TensorType, what: &str) -> Result<usize, String> {
    match ty.shape[..] {
        [n] => Ok(n),
        _ => Err(format!("{what} must be a vector, got shape {:?}", ty.shape)),
    }
}

/// `[start, end)` of the segment of each row: u32 `[T, 2]`.
fn spans(ty: &TensorType, rows: usize) -> Result<(), String> {
    dtype(ty, "spans", DType::U32)?;
    shape(ty, "spans", &[rows, 2])
}

/// The host's step scalars, f32 `[step::LEN]`.
fn step_input(ty: &TensorType) -> Result<(), String> {
    f32s(ty, "step")?;
    shape(ty, "step", &[step::LEN])
}

/// The host's random key of the step: u32 `[4]`, of which the first two are the Philox key.
fn rng_input(ty: &TensorType) -> Result<(), String> {
    dtype(ty, "rng", DType::U32)?;
    shape(ty, "rng", &[4])
}

/// For ops whose gradient rule does not cover one of their outputs.
fn no_grad_of_output(op: &'static str, grads: &[Option<Value>], output: usize) -> Result<(), GraphError> {
    match grads.get(output) {
        Some(Some(_)) => Err(GraphError::OutputNotDifferentiable { op, output }),
        _ => Ok(()),
    }
}

fn probability(p: f32) -> Result<(), String> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(format!("the dropout probability must be in [0, 1), got {p}"))
}
