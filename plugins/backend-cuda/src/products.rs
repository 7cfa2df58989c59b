//! Which calls the vendor's library multiplies for, in place of the translated kernels.

use crate::pieces::{Argument, Launch, Multiply, Piece, Pieces, Program, Written, bytes_of, whole};
use crate::{Matrix, Product, Threads};
use sparta_graph::graph::TensorType;
use sparta_graph::ops::{Cast, Layout, Linear, SampledGrad, Sampling};
use sparta_graph::{Call, DType, Op, Operand, Place, SampledCost};
use sparta_kernels::{Bounds, Memory, View};

/// The costs by which sampled gradients are computed from dense products. A dot product reads, for each multiplication, a
/// sector of 32 bytes from the second-level cache; tensor cores make dense products of bf16, of f32 they are made without.
pub const SAMPLED_COST: SampledCost = SampledCost { f32: 32, bf16: 170 };

/// Bytes of rows of a dense gradient from which chosen elements are gathered: they stay in the second-level cache.
const DENSE_ROWS: usize = 16 << 20;
/// Rows of such a gradient begin at aligned bytes of their factor.
const ROW_UNIT: usize = 64;
/// Blocks of a gather, which go over the chosen elements together: some for each multiprocessor.
const GATHER_BLOCKS: u32 = 512;
const GATHER_THREADS: u32 = 256;
/// Bytes of a factor that is widened to f32 at a time.
const WIDENED: usize = 64 << 20;

type Serves<'s> = &'s mut dyn FnMut(&Product) -> Result<bool, String>;

/// The pieces of a call that has products of the library's; `None` where translated kernels serve.
pub(crate) fn pieces(call: &Call, bounds: Bounds, serves: Serves) -> Result<Option<Pieces>, String> {
    match &call.op {
        Op::Linear(op) => linear(op, call, bounds, serves),
        Op::SampledGrad(op) => sampled_grad(op, call, bounds, serves),
        _ => Ok(None),
    }
}

fn operand(operands: &[Operand], i: usize) -> Result<&Operand, String> {
    operands.get(i).ok_or_else(|| format!("operand {i} is missing"))
}

fn width(operand: &Operand) -> usize {
    operand.ty.shape.iter().skip(1).product()
}

fn matrix(operand: &Operand) -> Matrix {
    Matrix { dtype: operand.ty.dtype, stride: width(operand) }
}

/// One product; several of f32 and narrower numbers, of which ranges of rows are widened one after the other.
fn linear(op: &Linear, call: &Call, bounds: Bounds, serves: Serves) -> Result<Option<Pieces>, String> {
    let (a, b, c) = (operand(&call.inputs, 0)?, operand(&call.inputs, 1)?, operand(&call.outputs, 0)?);
    let (m, n, k) = op.dims(&a.ty, &b.ty)?;
    if m * n * k == 0 {
        return Ok(None);
    }
    let bias = if op.bias { Some(operand(&call.inputs, 2)?) } else { None };
    let residual = op.residual_index().map(|i| operand(&call.inputs, i)).transpose()?;
    let form = Product {
        layout: op.layout,
        m,
        n,
        k,
        a: matrix(a),
        b: matrix(b),
        c: matrix(c),
        bias: bias.map(|bias| bias.ty.dtype),
        residual: residual.is_some(),
    };
    let multiply = Multiply {
        form,
        a: whole(a),
        b: whole(b),
        c: whole(c),
        bias: bias.map(whole),
        residual: residual.map(whole),
        scale: op.scale,
    };
    let narrow = c.ty.dtype == DType::F32 || c.ty.dtype == a.ty.dtype;
    if a.ty.dtype == b.ty.dtype && narrow {
        let pieces = vec![Piece::Multiply(multiply)];
        return Ok(serves(&form)?.then_some(Pieces { pieces, scratch: 0 }));
    }
    if (a.ty.dtype, c.ty.dtype) != (DType::F32, DType::F32) {
        return Ok(None);
    }
    widened(&multiply, b, bounds, serves)
}

/// The product of f32 and a narrower `b`, of which ranges of stored rows are made f32 in scratch memory: columns of the
/// result, or pieces of the inner dimension that are added up.
fn widened(product: &Multiply, b: &Operand, bounds: Bounds, serves: Serves) -> Result<Option<Pieces>, String> {
    let columns = product.form.layout == Layout::Nt;
    let (rows, width) = if columns { (product.form.n, product.form.k) } else { (product.form.k, product.form.n) };
    let most = (WIDENED / (4 * width) / ROW_UNIT * ROW_UNIT).max(ROW_UNIT);
    let scratch = 4 * width * rows.min(most);
    if scratch > bounds.binding {
        return Ok(None);
    }
    let mut all = Pieces { pieces: vec![], scratch };
    for start in (0..rows).step_by(most) {
        let count = most.min(rows - start);
        let wide = View { memory: Memory::Scratch, offset: 0, bytes: 4 * width * count };
        let mut part = product.clone();
        (part.b, part.form.b.dtype) = (wide, DType::F32);
        if columns {
            part.form.n = count;
            part.c.offset += 4 * start;
            part.residual.iter_mut().for_each(|residual| residual.offset += 4 * start);
            let bias = part.bias.iter_mut().zip(product.form.bias);
            bias.for_each(|(bias, dtype)| bias.offset += dtype.size() * start);
        } else {
            part.form.k = count;
            // The columns of `a` for Nn, the rows for Tn.
            let step = if part.form.layout == Layout::Nn { 1 } else { part.form.a.stride };
            part.a.offset += 4 * step * start;
            if start > 0 {
                (part.bias, part.form.bias) = (None, None);
                (part.residual, part.form.residual) = (Some(part.c), true);
            }
        }
        if !serves(&part.form)? {
            return Ok(None);
        }
        let row = width * b.ty.dtype.size();
        let narrow = bytes_of(b, start * row, (start + count) * row);
        all.append(widen(narrow, b.ty.dtype, wide, width * count, bounds)?);
        all.pieces.push(Piece::Multiply(part));
    }
    Ok(Some(all))
}

/// Widens `elements` numbers to f32.
fn widen(from: View, dtype: DType, to: View, elements: usize, bounds: Bounds) -> Result<Pieces, String> {
    let operand = |i, dtype| Operand { place: Place::External(i), ty: TensorType::new(dtype, [elements]) };
    let call = Call {
        op: Cast { to: DType::F32 }.into(),
        inputs: vec![operand(0, dtype)],
        outputs: vec![operand(1, DType::F32)],
        label: String::new(),
    };
    Ok(Pieces::lowered(&call, bounds)?.within(&[from, to]))
}

/// The dense gradient of ranges of rows, from which the chosen elements are gathered.
fn sampled_grad(op: &SampledGrad, call: &Call, bounds: Bounds, serves: Serves) -> Result<Option<Pieces>, String> {
    let (dy, x) = (operand(&call.inputs, 0)?, operand(&call.inputs, 1)?);
    let (index, row_ptr) = (operand(&call.inputs, 2)?, operand(&call.inputs, 3)?);
    let g = operand(&call.outputs, 0)?;
    let (tokens, out, columns, chosen) = (dy.ty.shape[0], width(dy), width(x), index.ty.numel());
    let SampledCost { f32, bf16 } = bounds.sampled_cost;
    let cost = if dy.ty.dtype == DType::F32 { f32 } else { bf16 };
    let dense = match op.sampling {
        Sampling::Auto => chosen as u64 * u64::from(cost) > (out * columns) as u64,
        Sampling::Sampled => false,
        Sampling::Tiled => true,
    };
    if !dense || dy.ty.dtype != x.ty.dtype || tokens * out * columns * chosen == 0 {
        return Ok(None);
    }
    let most = (DENSE_ROWS / (4 * columns) / ROW_UNIT * ROW_UNIT).max(ROW_UNIT);
    let mut all = Pieces { pieces: vec![], scratch: 4 * columns * most.min(out) };
    for start in (0..out).step_by(most) {
        let rows = most.min(out - start);
        let scratch = View { memory: Memory::Scratch, offset: 0, bytes: 4 * columns * rows };
        let form = Product {
            layout: Layout::Tn,
            m: rows,
            n: columns,
            k: tokens,
            a: matrix(dy),
            b: matrix(x),
            c: Matrix { dtype: DType::F32, stride: columns },
            bias: None,
            residual: false,
        };
        if !serves(&form)? {
            return Ok(None);
        }
        let a = bytes_of(dy, start * dy.ty.dtype.size(), dy.ty.bytes());
        let (b, scale) = (whole(x), op.scale);
        all.pieces.push(Piece::Multiply(Multiply { form, a, b, c: scratch, bias: None, residual: None, scale }));
        let sizes = [start, rows, columns, chosen].map(|size| size as u32);
        let views = [scratch, whole(row_ptr), whole(index), whole(g)];
        let mut arguments = vec![Argument::Words(sizes.to_vec())];
        arguments.extend(views.map(Argument::Address));
        all.pieces.push(Piece::Launch(Launch {
            program: Program::Written(Written::SampledGather),
            grid: [GATHER_BLOCKS.min(chosen.div_ceil(GATHER_THREADS as usize) as u32), 1, 1],
            threads: Threads { block: GATHER_THREADS, shared: 0 },
            arguments,
        }));
    }
    Ok(Some(all))
}
