//! From the calls of a plan to kernels with their memory. A plan may come from anywhere: everything that the kernels
//! rely on is checked here.

use crate::kernels;
use crate::memory::{Buffer, Floats, Need, Ptr, Scratch};
use crate::real::Real;
use sparta_graph::graph::TensorType;
use sparta_graph::plan::{ALIGNMENT, External};
use sparta_graph::{Call, DType, Op, Operand, PartCall, Place, Plan, Rows, Slot};
use std::ops::Range;
use std::sync::Arc;

type Run = dyn Fn(&Scratch) -> Result<(), String> + Send + Sync;

/// A call that is ready to run, and the scratch memory it needs.
pub struct Kernel {
    pub need: Need,
    pub run: Box<Run>,
}

impl Kernel {
    /// A kernel that neither fails nor needs scratch memory.
    pub fn plain(run: impl Fn() + Send + Sync + 'static) -> Kernel {
        Kernel::new(Need::default(), move |_| {
            run();
            Ok(())
        })
    }

    pub fn new(need: Need, run: impl Fn(&Scratch) -> Result<(), String> + Send + Sync + 'static) -> Kernel {
        Kernel { need, run: Box::new(run) }
    }
}

/// The operands of one call.
pub struct Io {
    inputs: Vec<Bound>,
    outputs: Vec<Bound>,
}

struct Bound {
    at: *mut u8,
    bytes: usize,
    ty: TensorType,
}

impl Bound {
    fn range(&self) -> Range<usize> {
        self.at.addr()..self.at.addr() + self.bytes
    }

    fn overlaps(&self, other: &Bound) -> bool {
        let (a, b) = (self.range(), other.range());
        a.start < b.end && b.start < a.end && self.bytes > 0 && other.bytes > 0
    }

    fn rows(&self, part: &Rows) -> Result<Bound, String> {
        let all = self.ty.shape.first().copied().unwrap_or(0);
        if part.rows.start > part.rows.end || part.rows.end > all {
            return Err(format!("rows {:?} of an operand of {all} rows", part.rows));
        }
        let row = self.bytes / all.max(1);
        let at = self.at.wrapping_add(part.rows.start * row);
        Ok(Bound { at, bytes: part.rows.len() * row, ty: part.ty(&self.ty) })
    }

    fn typed<E>(&self, dtype: DType) -> Result<Ptr<E>, String> {
        if self.ty.dtype == dtype {
            return Ok(Ptr::new(self.at.cast()));
        }
        Err(format!("expected an operand of {dtype}, got {} {:?}", self.ty.dtype, self.ty.shape))
    }

    fn floats<T: Real>(&self) -> Result<Floats<T>, String> {
        match self.ty.dtype {
            DType::F32 => self.typed(DType::F32).map(Floats::Full),
            DType::BF16 => self.typed(DType::BF16).map(Floats::Bf16),
            DType::F16 => self.typed(DType::F16).map(Floats::F16),
            DType::U32 => Err("expected an operand of a float type, got u32".into()),
        }
    }
}

impl Io {
    fn input_at(&self, i: usize) -> Result<&Bound, String> {
        self.inputs.get(i).ok_or_else(|| format!("input {i} is missing"))
    }

    fn output_at(&self, i: usize) -> Result<&Bound, String> {
        self.outputs.get(i).ok_or_else(|| format!("output {i} is missing"))
    }

    /// The types of the inputs.
    pub fn types(&self) -> Vec<&TensorType> {
        self.inputs.iter().map(|b| &b.ty).collect()
    }

    /// The operands of a part of a composite op, checked like those of any call.
    pub fn part<T>(&self, part: &PartCall) -> Result<Io, String> {
        let rows = |rows: &Rows| {
            let whole = match rows.slot {
                Slot::Input(i) => self.input_at(i)?,
                Slot::Output(o) => self.output_at(o)?,
            };
            whole.rows(rows)
        };
        let io = Io {
            inputs: part.inputs.iter().map(rows).collect::<Result<_, String>>()?,
            outputs: part.outputs.iter().map(rows).collect::<Result<_, String>>()?,
        };
        let inferred = part.op.infer(&io.types())?;
        if !inferred.iter().eq(io.outputs.iter().map(|b| &b.ty)) {
            return Err(format!("the outputs of its {} must be {inferred:?}", part.op.name()));
        }
        check_overlaps::<T>(&part.op, &io)?;
        Ok(io)
    }

    pub fn inputs(&self) -> usize {
        self.inputs.len()
    }

    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// An f32 input.
    pub fn real<T: Real>(&self, i: usize) -> Result<Ptr<T>, String> {
        self.input_at(i)?.typed(DType::F32)
    }

    /// A u32 input.
    pub fn words(&self, i: usize) -> Result<Ptr<u32>, String> {
        self.input_at(i)?.typed(DType::U32)
    }

    /// An input of any float type.
    pub fn floats<T: Real>(&self, i: usize) -> Result<Floats<T>, String> {
        self.input_at(i)?.floats()
    }

    /// An f32 output.
    pub fn output<T: Real>(&self, i: usize) -> Result<Ptr<T>, String> {
        self.output_at(i)?.typed(DType::F32)
    }

    /// An output of any float type.
    pub fn float_output<T: Real>(&self, i: usize) -> Result<Floats<T>, String> {
        self.output_at(i)?.floats()
    }

    /// An input as bytes.
    pub fn bytes(&self, i: usize) -> Result<(Ptr<u8>, usize), String> {
        self.input_at(i).map(|b| (Ptr::new(b.at), b.bytes))
    }

    pub fn numel(&self, i: usize) -> Result<usize, String> {
        self.input_at(i).map(|b| b.ty.numel())
    }

    pub fn ty(&self, i: usize) -> Result<&TensorType, String> {
        self.input_at(i).map(|b| &b.ty)
    }

    pub fn output_ty(&self, i: usize) -> Result<&TensorType, String> {
        self.output_at(i).map(|b| &b.ty)
    }

    /// Rows and columns of an input.
    pub fn matrix(&self, i: usize) -> Result<(usize, usize), String> {
        match self.input_at(i)?.ty.shape[..] {
            [rows, columns] => Ok((rows, columns)),
            ref shape => Err(format!("input {i} must be a matrix, got shape {shape:?}")),
        }
    }

    /// An output as bytes.
    pub fn output_bytes(&self, i: usize) -> Result<(Ptr<u8>, usize), String> {
        self.output_at(i).map(|b| (Ptr::new(b.at), b.bytes))
    }

    pub fn output_numel(&self, i: usize) -> Result<usize, String> {
        self.output_at(i).map(|b| b.ty.numel())
    }
}

/// Checks one call of a plan and makes its kernel.
pub fn bind<T: Real>(
    plan: &Plan,
    call: &Call,
    arena: &[Arc<Buffer>],
    externals: &[Arc<Buffer>],
) -> Result<Kernel, String> {
    for ty in call.inputs.iter().chain(&call.outputs).map(|o| &o.ty) {
        bytes::<T>(ty)?;
    }
    let types: Vec<&TensorType> = call.inputs.iter().map(|o| &o.ty).collect();
    let inferred = call.op.infer(&types)?;
    if !inferred.iter().eq(call.outputs.iter().map(|o| &o.ty)) {
        let got: Vec<&TensorType> = call.outputs.iter().map(|o| &o.ty).collect();
        return Err(format!("the outputs must be {inferred:?}, the plan says {got:?}"));
    }
    let bound = |operand: &Operand| place::<T>(plan, operand, arena, externals);
    let io = Io {
        inputs: call.inputs.iter().map(bound).collect::<Result<_, _>>()?,
        outputs: call.outputs.iter().map(bound).collect::<Result<_, _>>()?,
    };
    check_overlaps::<T>(&call.op, &io)?;
    kernels::prepare::<T>(&call.op, &io)
}

/// Bytes of a tensor as it is in memory.
pub fn bytes<T>(ty: &TensorType) -> Result<usize, String> {
    const LARGEST: usize = 1 << 40;
    let size = element::<T>(ty.dtype);
    let product = ty.shape.iter().try_fold(size, |n, &d| n.checked_mul(d)).filter(|&n| n <= isize::MAX as usize / 16);
    match product {
        Some(n) if ty.shape.iter().all(|&d| d <= LARGEST) => Ok(n),
        _ => Err(format!("a tensor of shape {:?} is too large to address", ty.shape)),
    }
}

/// Bytes of an element as it is in memory.
pub fn element<T>(dtype: DType) -> usize {
    if dtype == DType::F32 { size_of::<T>() } else { dtype.size() }
}

/// The byte of its buffer at which an external tensor begins; `None` if it is not an aligned part of it.
pub fn begin<T>(external: &External, buffer: &Buffer) -> Option<usize> {
    let aligned = external.offset.checked_mul(external.ty.dtype.size())?.is_multiple_of(ALIGNMENT);
    let begin = external.offset.checked_mul(element::<T>(external.ty.dtype))?;
    let end = begin.checked_add(bytes::<T>(&external.ty).ok()?)?;
    (aligned && end <= buffer.memory.bytes()).then_some(begin)
}

fn place<T: Real>(
    plan: &Plan,
    operand: &Operand,
    arena: &[Arc<Buffer>],
    externals: &[Arc<Buffer>],
) -> Result<Bound, String> {
    let (ty, bytes) = (operand.ty.clone(), bytes::<T>(&operand.ty)?);
    match operand.place {
        Place::Arena(offset) => {
            // The plan counts 4 bytes per f32; a wider number type widens the whole arena.
            let wide = size_of::<T>() / 4;
            let (segment, begin) = plan.locate(offset);
            let end = begin.checked_mul(wide).and_then(|start| start.checked_add(bytes));
            let fits = |size: usize| end.is_some_and(|end| end <= size.saturating_mul(wide));
            let size = plan.arena_buffers().get(segment).copied().filter(|&size| fits(size));
            let (Some(buffer), Some(_), true) = (arena.get(segment), size, offset.is_multiple_of(ALIGNMENT)) else {
                return Err(format!(
                    "{bytes} bytes at offset {offset} are not an aligned part of an arena of {} bytes",
                    plan.arena
                ));
            };
            Ok(Bound { at: buffer.memory.ptr().wrapping_add(begin * wide), bytes, ty })
        }
        Place::External(i) => {
            let (Some(buffer), Some(external)) = (externals.get(i), plan.externals.get(i)) else {
                return Err(format!("external tensor {i} of {}", externals.len()));
            };
            let begin = begin::<T>(external, buffer).filter(|begin| bytes <= buffer.memory.bytes() - begin);
            let (Some(begin), true) = (begin, buffer.dtype == ty.dtype) else {
                return Err(format!(
                    "the call expects {} {:?} in `{}`, which holds {} elements of {}",
                    ty.dtype, ty.shape, buffer.label, buffer.len, buffer.dtype
                ));
            };
            Ok(Bound { at: buffer.memory.ptr().wrapping_add(begin), bytes, ty })
        }
    }
}

/// What a call writes may overlap another operand only where the op says so, and then exactly.
fn check_overlaps<T>(op: &Op, io: &Io) -> Result<(), String> {
    let types: Vec<&TensorType> = io.inputs.iter().map(|input| &input.ty).collect();
    let joins = op.joins(&types);
    for (o, output) in io.outputs.iter().enumerate() {
        // An f32 in the arena may be wider than the 4 bytes that the op counts.
        let wide = element::<T>(output.ty.dtype) / output.ty.dtype.size();
        let within = |i: usize, input: &Bound| {
            o == 0 && joins.get(i).is_some_and(|offset| input.at == output.at.wrapping_add(offset * wide))
        };
        let reused = |at: *mut u8| {
            op.reuses().iter().any(|&(out, input)| out == o && io.inputs.get(input).is_some_and(|b| b.at == at))
        };
        for (i, input) in io.inputs.iter().enumerate().filter(|(_, input)| input.overlaps(output)) {
            let shared = input.at == output.at && input.bytes == output.bytes && reused(input.at);
            if !shared && !within(i, input) {
                return Err(format!("output {o} overlaps input {i}"));
            }
        }
        if let Some(other) = io.outputs[..o].iter().position(|other| other.overlaps(output)) {
            return Err(format!("output {o} overlaps output {other}"));
        }
    }
    for &w in op.writes() {
        let written = io.input_at(w)?;
        let others = io.inputs.iter().enumerate().filter(|(i, _)| *i != w).map(|(_, b)| b).chain(&io.outputs);
        if others.into_iter().any(|other| other.overlaps(written)) {
            return Err(format!("input {w}, which the op overwrites, overlaps another operand"));
        }
    }
    Ok(())
}
