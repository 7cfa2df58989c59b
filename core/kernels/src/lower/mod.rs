//! Lowers a plan's calls to dispatches.
//!
//! A tensor larger than the binding limit is processed in shards, one dispatch each: ranges of its rows, or of its
//! flattened elements, that start at a multiple of 256 bytes.
//!
//! Buffers are bound as words of 32 bits, and two threads of a dispatch never write the same word. A thread writes
//! 16-bit elements in pairs; if separately computed rows would share a word, they are computed in f32 and then rounded
//! ([`Lowering::target`]).

mod attention;
mod attention_units;
mod choice;
mod dequantize;
mod elementwise;
mod linear;
mod losses;
mod moved;
mod optimizer;
mod own;
mod parts;
mod product;
mod rows;
mod sparse;

pub use choice::{Choosing, Question, Trial};
pub use parts::parts;

use crate::source::{Constants, Kernel, LANES};
use sparta_graph::plan::ALIGNMENT;
use sparta_graph::{Call, DType, DeviceInfo, DeviceKind, Op, Operand, Place, Plan, SampledCost};
use std::fmt;
use std::ops::Range;

/// A byte range that a step reads or writes. The offset of a binding is a multiple of [`ALIGNMENT`], the length of 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub memory: Memory,
    pub offset: usize,
    pub bytes: usize,
}

/// The buffer of a [`View`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    Arena,
    /// The external tensor at this position of the plan's list.
    External(usize),
    /// Memory used only within one call, so that all calls share it: [`Lowered::scratch`] bytes.
    Scratch,
    /// [`ALIGNMENT`] bytes that stand for an absent operand: bound, never read.
    Unused,
}

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub kernel: Kernel,
    /// The kernel's `Params`, floats as their bits.
    pub params: Vec<u32>,
    /// Storage bindings, from 1 on.
    pub bindings: Vec<View>,
    pub rng: Option<View>,
    /// Total number of workgroups; a launch takes them as a [`Dispatch::grid`].
    pub groups: usize,
}

impl Dispatch {
    /// The workgroups in two dimensions, of which the first holds at most `most`. Kernels number them row by row and
    /// skip those beyond the end.
    pub fn grid(&self, most: usize) -> (u32, u32) {
        let y = self.groups.div_ceil(most);
        (self.groups.div_ceil(y.max(1)) as u32, y as u32)
    }
}

/// One launch or copy. A step sees the writes of earlier steps.
#[derive(Clone, Debug)]
pub enum Step {
    Dispatch(Dispatch),
    /// Copies `from.bytes` bytes, as many as `to` has.
    Copy {
        from: View,
        to: View,
    },
}

/// Limits of a device that the lowering respects.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'c> {
    /// Bytes of the largest storage binding, a multiple of [`ALIGNMENT`].
    pub binding: usize,
    /// The most floating point operations of one dispatch, to avoid watchdog timeouts on slow devices.
    pub flops: u64,
    /// The most iterations of a thread's loops in total: llvmpipe silently ends loops after 65,535.
    pub rounds: usize,
    /// Bytes of workgroup memory that a kernel may take; WebGPU's default is the least.
    pub memory: u32,
    /// Matrix units for 16-bit floats, if the device has them: for products and attention.
    pub units: Option<MatrixUnits>,
    pub attention_units: Option<MatrixUnits>,
    /// Decides between dot products and dense products.
    pub sampled_cost: SampledCost,
    /// Unroll factor of the k loop in large f32 tiles. 16 is up to 1.5 times as fast on an H100 and costs AMD's
    /// compiler no spills; Intel's runs out of registers, and llvmpipe compiles it slowly.
    pub unroll: u32,
    pub choosing: Choosing<'c>,
}

/// The costs on a device. A dot product reads, for each multiplication, a sector of 32 bytes from a GPU's second-level
/// cache, whose bandwidth is about 0.07 bytes per f32 operation; tiles in registers reach about half of the peak rate,
/// and matrix units do eight times as many. llvmpipe runs on a CPU, whose cache keeps the line for neighbouring
/// elements.
pub fn sampled_cost(kind: DeviceKind, units: Option<&MatrixUnits>) -> SampledCost {
    match kind {
        DeviceKind::SoftwareGpu | DeviceKind::Cpu => SampledCost { f32: 32, bf16: 32 },
        _ => SampledCost { f32: 64, bf16: if units.is_some() { 512 } else { 64 } },
    }
}

/// Matrix units that multiply fragments of f16 and add up in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixUnits {
    /// Rows, columns and depth of a fragment: 8 or 16.
    pub size: u32,
    /// Threads of a subgroup.
    pub subgroup: u32,
    /// Whether fragments are loaded from workgroup memory of vectors; Metal wants scalars.
    pub vectors: bool,
    /// Bytes of workgroup memory that a kernel may take.
    pub memory: u32,
    /// Whether operands are transposed if k is not the stored column, so that tiles are contiguous along k in workgroup
    /// memory: compilers other than NVIDIA's load transposed fragments element by element.
    pub transpose: bool,
}

impl fmt::Display for MatrixUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "matrix units {0}x{0}x{0} f16", self.size)
    }
}

impl MatrixUnits {
    /// Bytes of workgroup memory that kernels on matrix units require, and may use at most.
    pub const MEMORY: u32 = 30 << 10;
    pub const MOST_MEMORY: u32 = 47 << 10;

    /// Threads of a workgroup, which makes one tile. With fewer subgroups, each has a larger part of the tile and loads
    /// fewer fragments per product; the registers for the sums set the limit.
    pub fn lanes(&self) -> u32 {
        if self.subgroup <= 32 { 128 } else { 256 }
    }

    /// The specialisation constants of a kernel on these units.
    pub fn constants(&self) -> Constants {
        let [vectors, transpose] = [self.vectors, self.transpose].map(u32::from);
        let sizes = [("UNITS", self.size), ("SUBGROUP", self.subgroup), ("LANES", self.lanes())];
        [&sizes[..], &[("VECTORS", 1), ("VECTOR_MEMORY", vectors), ("TRANSPOSE", transpose)]].concat()
    }

    /// Whether tiles can be divided among subgroups of this size.
    pub fn fit(&self) -> bool {
        matches!((self.size, self.subgroup), (8, 8..=128) | (16, 16..=128)) && self.subgroup.is_power_of_two()
    }
}

impl Bounds<'_> {
    /// The bounds of a device that runs these kernels; `None` for one with its own kernels
    /// ([`DeviceInfo::max_binding`]).
    pub fn of(device: &DeviceInfo) -> Option<Self> {
        let binding = usize::try_from(device.max_binding?).unwrap_or(usize::MAX);
        Some(Bounds::new(device.kind, binding))
    }

    /// The bounds for a device of this kind that binds `binding` bytes at once: a matrix product takes less than about
    /// half a second even on slow devices of the kind.
    pub fn new(kind: DeviceKind, binding: usize) -> Self {
        let flops = match kind {
            DeviceKind::DiscreteGpu => 2_000_000_000_000,
            _ => 100_000_000_000,
        };
        let rounds = if kind == DeviceKind::SoftwareGpu { MAX_ROUNDS } else { usize::MAX };
        Bounds {
            binding: binding / ALIGNMENT * ALIGNMENT,
            flops,
            rounds,
            memory: 16 << 10,
            units: None,
            attention_units: None,
            sampled_cost: sampled_cost(kind, None),
            unroll: 1,
            choosing: Choosing::ByRule,
        }
    }
}

/// A lowered call.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// In order of execution.
    pub steps: Vec<Step>,
    /// Bytes of [`Memory::Scratch`].
    pub scratch: usize,
    /// With [`Choosing::Measured`]: the names of the choices that the steps depend on, and those not made yet.
    pub asked: Vec<String>,
    pub questions: Vec<Question>,
}

/// Checks that every call of a plan can be lowered. Errors: the first that cannot, with the reason.
pub fn check(plan: &Plan, bounds: Bounds) -> Result<(), String> {
    plan.calls.iter().try_for_each(|call| {
        lower(call, bounds).map_err(|reason| format!("{} ({}): {reason}", call.op.name(), call.label))?;
        Ok(())
    })
}

/// Lowers one call. Errors: a tensor that no kernel can bind, with its sizes.
pub fn lower(call: &Call, bounds: Bounds) -> Result<Lowered, String> {
    for operand in call.inputs.iter().chain(&call.outputs) {
        if operand.ty.numel() > u32::MAX as usize {
            return Err(format!("a tensor of shape {:?} has more than 2^32 elements", operand.ty.shape));
        }
    }
    let (steps, asked, questions) = (Vec::new(), Vec::new(), Vec::new());
    let mut lowering = Lowering { call, bounds, steps, used: 0, scratch: 0, asked, questions };
    lowering.op()?;
    let Lowering { steps, scratch, asked, questions, .. } = lowering;
    Ok(Lowered { steps, scratch, asked, questions })
}

struct Lowering<'a> {
    call: &'a Call,
    bounds: Bounds<'a>,
    steps: Vec<Step>,
    /// Bytes of scratch memory in use, and the peak.
    used: usize,
    scratch: usize,
    asked: Vec<String>,
    questions: Vec<Question>,
}

impl<'a> Lowering<'a> {
    fn op(&mut self) -> Result<(), String> {
        match &self.call.op {
            Op::Embed(op) => self.embed(op.scale),
            Op::EmbedGrad(op) => self.embed_grad(op),
            Op::RmsNorm(op) => self.rms_norm(op),
            Op::RmsNormGrad(op) => self.rms_norm_grad(op),
            Op::RmsNormGradW(op) => self.rms_norm_grad_w(op),
            Op::Linear(op) => self.linear(op),
            Op::ColumnSum(_) => self.column_sum(),
            Op::SplitColumns(_) => self.columns(self.input(0)?, &self.call.outputs, false),
            Op::JoinColumns(_) => self.columns(self.output(0)?, &self.call.inputs, true),
            Op::Rope(op) => self.rope(op),
            Op::Attention(op) => self.attention(op),
            Op::AttentionCached(op) => self.attention_cached(&op.0),
            Op::AttentionDelta(op) => self.attention_delta(op),
            Op::AttentionGrad(op) => self.attention_grad(&op.0),
            Op::GatedAct(op) => self.gated_act(op.act),
            Op::GatedActGrad(op) => self.gated_act_grad(op.act),
            Op::Add(_) => self.binary("add"),
            Op::Mul(_) => self.binary("mul"),
            Op::Div(_) => self.binary("div"),
            Op::Map(op) => self.elementwise("map", &[("FUNCTION", op.function as u32)], &[]),
            Op::MapGrad(op) => self.map_grad(op.function),
            Op::RowSum(_) => self.row_sum(),
            Op::Broadcast(_) => self.broadcast(),
            Op::Transpose(_) => self.transpose(),
            Op::Slice(op) => self.slice(op),
            Op::Unslice(op) => self.unslice(op),
            Op::Dequantize(op) => self.dequantize(op),
            Op::Detach(_) => self.cast(self.input(0)?, self.output(0)?),
            Op::Scale(op) => self.elementwise("scale", &[], &[op.factor]),
            Op::ScaleBy(_) => self.scale_by(),
            Op::Dropout(op) => self.dropout(op),
            // Its rows are looked up like those of an embedding table.
            Op::SelectRows(_) => self.embed(1.0),
            Op::ScatterRows(_) => self.scatter_rows(),
            Op::SoftCap(op) => self.elementwise("soft_cap", &[], &[op.cap]),
            Op::SoftCapGrad(op) => self.elementwise("soft_cap_grad", &[], &[op.cap]),
            Op::CrossEntropy(op) => self.cross_entropy(op.soft_cap),
            Op::CrossEntropyGrad(op) => self.cross_entropy_grad(op.soft_cap),
            Op::LinearCrossEntropy(_) => self.parts(),
            Op::BinaryCrossEntropy(_) => self.element_loss("binary_cross_entropy"),
            Op::BinaryCrossEntropyGrad(_) => self.element_loss_grad("binary_cross_entropy_grad"),
            Op::SquaredError(_) => self.element_loss("squared_error"),
            Op::SquaredErrorGrad(_) => self.element_loss_grad("squared_error_grad"),
            Op::SampledGrad(op) => self.sampled_grad(op),
            Op::Gather(_) => self.gather(),
            Op::Scatter(op) => self.scatter(op),
            Op::SparseLinear(op) => self.sparse_linear(op),
            Op::Concat(_) => self.concat(),
            Op::Adam(op) => self.adam(op),
            Op::AdamBf16(op) => self.adam_bf16(op),
            Op::Sgd(op) => self.sgd(op),
            Op::SumOfSquares(op) => self.sum_of_squares(op),
            Op::ClipCoef(op) => self.clip_coef(op),
            Op::Accumulate(_) => self.elementwise("accumulate", &[], &[]),
            Op::Fill(op) => self.fill(op.value),
            Op::Cast(_) => self.cast(self.input(0)?, self.output(0)?),
            Op::Store(_) => self.store(),
            Op::StoreRows(_) => self.store_rows(),
            Op::Own(op) => self.own(&op.0),
        }
    }

    fn input(&self, i: usize) -> Result<&'a Operand, String> {
        self.call.inputs.get(i).ok_or_else(|| format!("input {i} is missing"))
    }

    fn output(&self, i: usize) -> Result<&'a Operand, String> {
        self.call.outputs.get(i).ok_or_else(|| format!("output {i} is missing"))
    }

    /// A whole tensor. Errors: it does not fit one binding. `what` names the operand.
    fn whole(&self, operand: &Operand, what: &str) -> Result<View, String> {
        let bytes = operand.ty.bytes();
        if bytes <= self.bounds.binding {
            return Ok(view(operand, 0, bytes));
        }
        Err(format!(
            "{what} of shape {:?} takes {bytes} bytes, but this device binds at most {} at once and the kernel needs \
             all of it; use fewer tokens per micro-batch",
            operand.ty.shape, self.bounds.binding
        ))
    }

    /// The ranges of rows for each dispatch, given the bytes per row of the operands that are bound by rows. Without
    /// rows: one empty range.
    fn shards(&self, rows: usize, row_bytes: &[usize]) -> Result<Vec<Range<usize>>, String> {
        let largest = row_bytes.iter().copied().max().unwrap_or(0);
        if rows * largest <= self.bounds.binding {
            return Ok(std::iter::once(0..rows).collect());
        }
        // A power of two, as ALIGNMENT is.
        let aligned = |bytes: usize| ALIGNMENT >> bytes.trailing_zeros().min(ALIGNMENT.trailing_zeros());
        let unit = row_bytes.iter().map(|&bytes| aligned(bytes)).max().unwrap_or(1);
        let step = self.bounds.binding / largest / unit * unit;
        if step == 0 {
            return Err(format!(
                "{unit} rows of {largest} bytes are more than the {} that this device binds at once",
                self.bounds.binding
            ));
        }
        Ok((0..rows).step_by(step).map(|start| start..rows.min(start + step)).collect())
    }

    /// Shards of tensors with the same number of rows.
    fn row_shards(&self, operands: &[&Operand]) -> Result<Vec<Range<usize>>, String> {
        let rows = operands.first().map_or(0, |o| rows_of(o));
        self.shards(rows, &operands.iter().map(|o| row_bytes(o)).collect::<Vec<_>>())
    }

    /// Shards of the rows of an output, written in runs of `run` elements ([`Lowering::target`]), and of other tensors
    /// with the same number of rows.
    fn target_shards(&self, output: &Operand, run: usize, others: &[&Operand]) -> Result<Vec<Range<usize>>, String> {
        let mut bytes: Vec<usize> = others.iter().chain([&output]).map(|o| row_bytes(o)).collect();
        bytes.extend(shares_words(output, run).then(|| 4 * width_of(output)));
        self.shards(rows_of(output), &bytes)
    }

    /// Shards of tensors with the same number of elements, flattened; of packed pairs for 2-byte types.
    fn element_shards(&self, operands: &[&Operand]) -> Result<Vec<Range<usize>>, String> {
        let elements = operands.first().map_or(0, |o| o.ty.numel());
        self.shards(elements, &operands.iter().map(|o| o.ty.dtype.size()).collect::<Vec<_>>())
    }

    fn push(
        &mut self,
        name: &'static str,
        constants: &[(&'static str, u32)],
        params: &[u32],
        bindings: &[View],
    ) -> Launch<'_> {
        let kernel = Kernel::new(name, constants.to_vec());
        let (params, bindings) = (params.to_vec(), bindings.to_vec());
        Launch { steps: &mut self.steps, dispatch: Dispatch { kernel, params, bindings, rng: None, groups: 0 } }
    }

    /// Launches a kernel on `n` elements of a tensor of type `y`, in vectors of this many or, with 0, in words.
    fn push_elements(
        &mut self,
        name: &'static str,
        constants: &[(&'static str, u32)],
        (n, vectors, y): (usize, usize, DType),
        params: &[u32],
        bindings: &[View],
    ) {
        let constants = [constants, &[("VECTORS", vectors as u32)]].concat();
        self.push(name, &constants, params, bindings).threads(steps(n, vectors, y));
    }

    /// Scratch memory of `elements` f32.
    fn scratch(&mut self, elements: usize, what: &str) -> Result<View, String> {
        let bytes = 4 * elements.max(1);
        if bytes > self.bounds.binding {
            return Err(format!(
                "{what} take {bytes} bytes, but this device binds at most {} at once; use fewer tokens per micro-batch",
                self.bounds.binding
            ));
        }
        let offset = self.used.next_multiple_of(ALIGNMENT);
        self.used = offset + bytes;
        self.scratch = self.scratch.max(self.used);
        Ok(View { memory: Memory::Scratch, offset, bytes })
    }

    /// The target of a kernel that writes a range of rows of an output, in runs of `run` elements by different threads:
    /// the output itself, or f32 scratch memory if runs would share words. [`Lowering::finish`] completes it.
    fn target(&mut self, output: &Operand, range: &Range<usize>, run: usize) -> Result<Target, String> {
        if shares_words(output, run) {
            return self.staged(output, range);
        }
        Ok(Target { view: rows(output, range), dtype: output.ty.dtype, rounded_to: None })
    }

    /// Scratch memory in f32 for a range of rows of an output, which [`Lowering::finish`] rounds.
    fn staged(&mut self, output: &Operand, range: &Range<usize>) -> Result<Target, String> {
        let elements = range.len() * width_of(output);
        let view = self.scratch(elements, "results before rounding")?;
        Ok(Target { view, dtype: DType::F32, rounded_to: Some((rows(output, range), output.ty.dtype, elements)) })
    }

    /// Rounds results in scratch memory, and frees that memory. Targets must be finished in reverse order.
    fn finish(&mut self, target: Target) {
        let Some((view, dtype, n)) = target.rounded_to else { return };
        let constants = [("X", code(target.dtype)), ("Y", code(dtype))];
        let elements = (n, vectors(n, &[target.dtype, dtype]), dtype);
        self.push_elements("cast", &constants, elements, &[n as u32], &[target.view, view]);
        self.used = target.view.offset;
    }
}

/// The place that a kernel writes, and its type.
struct Target {
    view: View,
    dtype: DType,
    /// The place, type and number of elements to round it to.
    rounded_to: Option<(View, DType, usize)>,
}

/// A dispatch that still lacks its number of workgroups.
struct Launch<'l> {
    steps: &'l mut Vec<Step>,
    dispatch: Dispatch,
}

impl Launch<'_> {
    fn rng(mut self, rng: View) -> Self {
        self.dispatch.rng = Some(rng);
        self
    }

    /// Launches this many workgroups; nothing for 0.
    fn groups(mut self, groups: usize) {
        self.dispatch.groups = groups;
        if groups > 0 {
            self.steps.push(Step::Dispatch(self.dispatch));
        }
    }

    /// Launches one thread for each element or word.
    fn threads(self, threads: usize) {
        let lanes = self.dispatch.kernel.lanes() as usize;
        self.groups(threads.div_ceil(lanes));
    }
}

/// Below llvmpipe's limit.
const MAX_ROUNDS: usize = 60_000;

/// The rows that a kernel may loop over in one dispatch, with this many iterations per row; a multiple of every
/// alignment.
fn rows_for_rounds(rounds_per_row: usize) -> usize {
    (MAX_ROUNDS / rounds_per_row / ALIGNMENT).max(1) * ALIGNMENT
}

const UNUSED: View = View { memory: Memory::Unused, offset: 0, bytes: 256 };

/// Threads for a reduction over `width` elements.
fn lanes_for(width: usize) -> u32 {
    if width <= 256 { 64 } else { LANES }
}

/// The code of an element type in kernels.
fn code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 | DType::U32 => 0,
        DType::BF16 => 1,
        DType::F16 => 2,
    }
}

/// Whether runs of `run` elements can end inside a word.
fn shares_words(operand: &Operand, run: usize) -> bool {
    operand.ty.dtype.size() == 2 && run % 2 == 1
}

/// The 32-bit words that a number of elements fill: one thread each in elementwise kernels.
fn words(elements: usize, dtype: DType) -> usize {
    elements.div_ceil(4 / dtype.size())
}

/// How many elements a thread takes at a time from tensors of these types, where `n` is the length of their rows or of
/// the whole tensors: 4 or 8, which fill a vector of 16 bytes. 0, for single words, if `n` is not whole vectors, and
/// for empty tensors, which bind a single word.
fn vectors(n: usize, types: &[DType]) -> usize {
    let most = if types.iter().any(|dtype| dtype.size() == 2) { 8 } else { 4 };
    if n > 0 && n.is_multiple_of(most) { most } else { 0 }
}

/// The threads for `n` elements of a type, each with `vectors` elements or, if that is 0, with one word.
fn steps(n: usize, vectors: usize, dtype: DType) -> usize {
    n.checked_div(vectors).unwrap_or_else(|| words(n, dtype))
}

fn rows_of(operand: &Operand) -> usize {
    operand.ty.shape.first().copied().unwrap_or(1)
}

fn width_of(operand: &Operand) -> usize {
    operand.ty.shape.iter().skip(1).product()
}

fn row_bytes(operand: &Operand) -> usize {
    width_of(operand) * operand.ty.dtype.size()
}

/// Bytes `from .. to` of a tensor, the end rounded up to whole words, which every buffer has.
fn view(operand: &Operand, from: usize, to: usize) -> View {
    let bytes = (to - from).max(1).next_multiple_of(4);
    match operand.place {
        Place::Arena(offset) => View { memory: Memory::Arena, offset: offset + from, bytes },
        Place::External(i) => View { memory: Memory::External(i), offset: from, bytes },
    }
}

fn rows(operand: &Operand, range: &Range<usize>) -> View {
    view(operand, range.start * row_bytes(operand), range.end * row_bytes(operand))
}

fn elements(operand: &Operand, range: &Range<usize>) -> View {
    let size = operand.ty.dtype.size();
    view(operand, range.start * size, range.end * size)
}

/// Consecutive parts of a range, of at most `most`.
fn split(range: &Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range.clone().step_by(most).map(move |start| start..end.min(start + most))
}

/// The draws of Philox below this are dropped: `draw * 2^-32 < p`, exactly.
fn dropout_threshold(p: f32) -> u32 {
    (f64::from(p) * 4_294_967_296.0).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_graph::graph::TensorType;
    use sparta_graph::ops::Add;

    #[test]
    fn shards_are_aligned_and_cover_everything() {
        let call = Call { op: Add {}.into(), inputs: vec![], outputs: vec![], label: String::new() };
        let bounds = Bounds { flops: u64::MAX, ..Bounds::new(DeviceKind::Other, 64 << 10) };
        let lowering =
            Lowering { call: &call, bounds, steps: vec![], used: 0, scratch: 0, asked: vec![], questions: vec![] };
        for (rows, widths) in [(1000, &[300][..]), (777, &[2, 300]), (5, &[4, 4]), (100_000, &[2, 4]), (0, &[8])] {
            let shards = lowering.shards(rows, widths).unwrap();
            assert_eq!(shards.first().map(|s| s.start), Some(0));
            assert_eq!(shards.last().map(|s| s.end), Some(rows));
            assert!(shards.windows(2).all(|pair| pair[0].end == pair[1].start));
            for (shard, width) in shards.iter().flat_map(|s| widths.iter().map(move |w| (s, w))) {
                assert_eq!(shard.start * width % ALIGNMENT, 0);
                assert!(shard.len() * width <= bounds.binding);
            }
        }
        assert!(lowering.shards(3, &[70_000]).is_err());
        let operand = Operand { place: Place::Arena(0), ty: TensorType::f32([200, 300]) };
        assert!(lowering.whole(&operand, "x").is_err_and(|e| e.contains("240000") && e.contains("65536")));
    }

    #[test]
    fn the_dropout_threshold_is_exact() {
        assert_eq!(dropout_threshold(0.0), 0);
        assert_eq!(dropout_threshold(0.5), 1 << 31);
        assert_eq!(dropout_threshold(1.0 - f32::EPSILON / 2.0), u32::MAX - 255);
    }
}
