//! Uses the vendor's library for matrix products instead of translated kernels.

use crate::pieces::{Argument, Device, Launch, Multiply, Piece, Pieces, Program, Written, bytes_of, whole};
use crate::{Matrix, Product, Threads};
use sparta_graph::graph::TensorType;
use sparta_graph::ops::{Cast, Layout, Linear, SampledGrad, Sampling};
use sparta_graph::plan::ALIGNMENT;
use sparta_graph::{Call, DType, Op, Operand, Place, SampledCost};
use sparta_kernels::{Bounds, Memory, View};

/// The costs that decide whether sampled gradients use dense products. A dot product reads, for each multiplication, a
/// sector of 32 bytes from the second-level cache; dense products of bf16 run on tensor cores, those of f32 do not.
pub const SAMPLED_COST: SampledCost = SampledCost { f32: 32, bf16: 170 };

/// Bytes of a range of rows of a dense gradient, small enough to stay in the second-level cache for the gather.
const DENSE_ROWS: usize = 16 << 20;
/// Ranges of rows are multiples of this, so that they begin at aligned bytes of their factor.
const ROW_UNIT: usize = 64;
/// Blocks of a gather, several per multiprocessor.
const GATHER_BLOCKS: u32 = 512;
const GATHER_THREADS: u32 = 256;
/// Bytes of a factor that are widened to f32 at a time.
const WIDENED: usize = 64 << 20;

type Serves<'s> = &'s mut dyn FnMut(&Product) -> Result<bool, String>;

/// The pieces of a call that uses the library; `None` if translated kernels are used.
pub(crate) fn pieces(call: &Call, device: &Device, serves: Serves) -> Result<Option<Pieces>, String> {
    match &call.op {
        Op::Linear(op) => linear(op, call, device, serves),
        Op::SampledGrad(op) => sampled_grad(op, call, device, serves),
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

/// One product, or several if f32 is multiplied by a narrower type, whose rows are widened a range at a time.
fn linear(op: &Linear, call: &Call, device: &Device, serves: Serves) -> Result<Option<Pieces>, String> {
    let bounds = device.bounds;
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
        bias: bias.is_some(),
        residual: residual.is_some(),
        tf32: device.tf32 && a.ty.dtype == DType::F32,
    };
    let mut multiply = Multiply {
        form,
        a: whole(a),
        b: whole(b),
        c: whole(c),
        bias: bias.map(whole),
        residual: residual.map(whole),
        scale: op.scale,
    };
    let mut all = Pieces::default();
    if let Some(bias) = bias.filter(|bias| bias.ty.dtype != DType::F32) {
        let wide = View { memory: Memory::Scratch, offset: 0, bytes: 4 * n };
        all = cast([whole(bias), wide], [bias.ty.dtype, DType::F32], n, bounds)?;
        all.scratch = all.scratch.max(wide.bytes.next_multiple_of(ALIGNMENT));
        multiply.bias = Some(wide);
    }
    let products = match (a.ty.dtype, b.ty.dtype, c.ty.dtype) {
        (a, b, c) if a == b && (c == DType::F32 || c == a && bias.is_none()) => {
            let served = serves(&multiply.form)?;
            served.then(|| Pieces { pieces: vec![Piece::Multiply(multiply)], scratch: 0 })
        }
        (a, b, to) if a == b && to == a => rounded(&multiply, c, bounds, all.scratch, serves)?,
        (DType::F32, _, DType::F32) => widened(&multiply, b, bounds, all.scratch, serves)?,
        _ => None,
    };
    Ok(products.map(|products| {
        all.append(products);
        all
    }))
}

/// A product with a bias and a 16-bit result. cuBLASLt may round such a result, add the bias and round again, as it
/// seems to do on an H100 for some shapes. So sums stay f32 in scratch memory from byte `from` on, a range of rows at a
/// time, and are rounded once.
fn rounded(
    product: &Multiply,
    c: &Operand,
    bounds: Bounds,
    from: usize,
    serves: Serves,
) -> Result<Option<Pieces>, String> {
    let Product { m, n, a, .. } = product.form;
    let most = (WIDENED / (4 * n) / ROW_UNIT * ROW_UNIT).max(ROW_UNIT);
    let bytes = 4 * n * m.min(most);
    if bytes > bounds.binding {
        return Ok(None);
    }
    let mut all = Pieces { pieces: vec![], scratch: from + bytes };
    for start in (0..m).step_by(most) {
        let count = most.min(m - start);
        let wide = View { memory: Memory::Scratch, offset: from, bytes: 4 * n * count };
        let row = n * c.ty.dtype.size();
        let narrow = |whole: View| View { offset: whole.offset + start * row, bytes: count * row, ..whole };
        let mut part = product.clone();
        (part.form.m, part.form.c, part.c) = (count, Matrix { dtype: DType::F32, stride: n }, wide);
        part.a.offset += start * a.dtype.size() * if part.form.layout == Layout::Tn { 1 } else { a.stride };
        if let Some(residual) = &mut part.residual {
            let residual = std::mem::replace(residual, wide);
            all.append(cast([narrow(residual), wide], [c.ty.dtype, DType::F32], n * count, bounds)?);
        }
        if !serves(&part.form)? {
            return Ok(None);
        }
        all.pieces.push(Piece::Multiply(part));
        all.append(cast([wide, narrow(whole(c))], [DType::F32, c.ty.dtype], n * count, bounds)?);
    }
    Ok(Some(all))
}

/// The product of f32 and a narrower `b`, whose stored rows are widened to f32, a range at a time, in scratch memory
/// from byte `from` on. A range gives columns of the result, or pieces of the inner dimension to add up.
fn widened(
    product: &Multiply,
    b: &Operand,
    bounds: Bounds,
    from: usize,
    serves: Serves,
) -> Result<Option<Pieces>, String> {
    let columns = product.form.layout == Layout::Nt;
    let (rows, width) = if columns { (product.form.n, product.form.k) } else { (product.form.k, product.form.n) };
    let most = (WIDENED / (4 * width) / ROW_UNIT * ROW_UNIT).max(ROW_UNIT);
    let bytes = 4 * width * rows.min(most);
    if bytes > bounds.binding {
        return Ok(None);
    }
    let mut all = Pieces { pieces: vec![], scratch: from + bytes };
    for start in (0..rows).step_by(most) {
        let count = most.min(rows - start);
        let wide = View { memory: Memory::Scratch, offset: from, bytes: 4 * width * count };
        let part = part(product, start, count, wide);
        if !serves(&part.form)? {
            return Ok(None);
        }
        let row = width * b.ty.dtype.size();
        let narrow = bytes_of(b, start * row, (start + count) * row);
        all.append(cast([narrow, wide], [b.ty.dtype, DType::F32], width * count, bounds)?);
        all.pieces.push(Piece::Multiply(part));
    }
    Ok(Some(all))
}

/// The product with a range of stored rows of `b`, in f32 at `b`.
fn part(product: &Multiply, start: usize, count: usize, b: View) -> Multiply {
    let mut part = product.clone();
    (part.b, part.form.b.dtype) = (b, DType::F32);
    let f32s = |elements: usize| 4 * elements;
    if product.form.layout == Layout::Nt {
        part.form.n = count;
        part.c.offset += f32s(start);
        part.residual.iter_mut().chain(&mut part.bias).for_each(|added| added.offset += f32s(start));
        return part;
    }
    part.form.k = count;
    // The columns of `a` for Nn, the rows for Tn.
    let step = if part.form.layout == Layout::Nn { 1 } else { part.form.a.stride };
    part.a.offset += f32s(step * start);
    if start > 0 {
        (part.bias, part.form.bias) = (None, false);
        (part.residual, part.form.residual) = (Some(part.c), true);
    }
    part
}

/// Copies `elements` numbers from one view into the other, of these types.
fn cast(views: [View; 2], [from, to]: [DType; 2], elements: usize, bounds: Bounds) -> Result<Pieces, String> {
    let operand = |i, dtype| Operand { place: Place::External(i), ty: TensorType::new(dtype, [elements]) };
    let (inputs, outputs) = (vec![operand(0, from)], vec![operand(1, to)]);
    let call = Call { op: Cast { to }.into(), inputs, outputs, label: String::new() };
    Ok(Pieces::lowered(&call, bounds)?.within(&views))
}

/// Dense gradients of ranges of rows, from which the chosen elements are gathered.
fn sampled_grad(op: &SampledGrad, call: &Call, device: &Device, serves: Serves) -> Result<Option<Pieces>, String> {
    let (dy, x) = (operand(&call.inputs, 0)?, operand(&call.inputs, 1)?);
    let (index, row_ptr) = (operand(&call.inputs, 2)?, operand(&call.inputs, 3)?);
    let g = operand(&call.outputs, 0)?;
    let (tokens, out, columns, chosen) = (dy.ty.shape[0], width(dy), width(x), index.ty.numel());
    let tf32 = device.tf32 && dy.ty.dtype == DType::F32;
    let SampledCost { f32, bf16 } = device.bounds.sampled_cost;
    // Tensor cores multiply TF32 at half the rate of bf16.
    let cost = if tf32 {
        bf16 / 2
    } else if dy.ty.dtype == DType::F32 {
        f32
    } else {
        bf16
    };
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
            bias: false,
            residual: false,
            tf32,
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

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_graph::DeviceKind;
    use sparta_graph::ops::Attention;

    fn operand(i: usize, dtype: DType, shape: impl Into<Vec<usize>>) -> Operand {
        Operand { place: Place::External(i), ty: TensorType::new(dtype, shape) }
    }

    /// The names of a call's pieces on a card of this capability: kernels, and `product` with its sizes.
    fn names(call: &Call, capability: (u32, u32)) -> Vec<String> {
        let bounds = Bounds { sampled_cost: SAMPLED_COST, ..Bounds::new(DeviceKind::DiscreteGpu, 1 << 30) };
        let device = Device { bounds, capability, tf32: false };
        let pieces = Pieces::of(call, &device, &mut |_| Ok(true)).unwrap();
        let name = |piece: Piece| match piece {
            Piece::Launch(launch) => launch.text().unwrap().entry,
            Piece::Copy { .. } => "copy".into(),
            Piece::Multiply(Multiply { form: Product { m, n, k, .. }, .. }) => format!("product {m}x{n}x{k}"),
        };
        pieces.pieces.into_iter().map(name).collect()
    }

    fn linear(a: DType, b: DType, c: DType, bias: Option<DType>, [m, n, k]: [usize; 3]) -> Vec<String> {
        let op = Linear { bias: bias.is_some(), output: Some(c), ..Linear::plain(Layout::Nt) };
        let mut inputs = vec![operand(0, a, [m, k]), operand(1, b, [n, k])];
        inputs.extend(bias.map(|dtype| operand(2, dtype, [n])));
        let call = Call { op: op.into(), inputs, outputs: vec![operand(3, c, [m, n])], label: String::new() };
        names(&call, (8, 0))
    }

    #[test]
    fn the_library_multiplies_what_it_can() {
        let (wide, narrow, size) = (DType::F32, DType::BF16, [9, 24, 16]);
        let product = ["product 9x24x16"];
        assert_eq!(linear(narrow, narrow, narrow, None, size), product);
        assert_eq!(linear(narrow, narrow, narrow, Some(wide), size), ["product 9x24x16", "cast_"]);
        assert_eq!(linear(narrow, narrow, narrow, Some(narrow), size), ["cast_", "product 9x24x16", "cast_"]);
        let parts = ["product 1024x16384x8", "cast_", "product 7x16384x8", "cast_"];
        assert_eq!(linear(narrow, narrow, narrow, Some(wide), [1031, 16384, 8]), parts);
        assert_eq!(linear(narrow, narrow, wide, None, size), product);
        assert_eq!(linear(wide, wide, wide, Some(wide), size), product);
        assert_eq!(linear(narrow, narrow, wide, Some(narrow), size), ["cast_", "product 9x24x16"]);
        assert_eq!(linear(wide, narrow, wide, Some(narrow), size), ["cast_", "cast_", "product 9x24x16"]);
        assert_eq!(linear(narrow, wide, narrow, None, size), ["linear_"]);
        assert_eq!(linear(wide, wide, narrow, None, size), ["linear_"]);
        let parts = ["cast_", "product 9x16384x1024", "cast_", "product 9x7x1024"];
        assert_eq!(linear(wide, narrow, wide, None, [9, 16391, 1024]), parts);
    }

    #[test]
    fn chosen_elements_come_from_rows_of_the_dense_gradient() {
        let sampled = |dtype: DType, chosen: usize| {
            let inputs = vec![
                operand(0, dtype, [32, 5000]),
                operand(1, dtype, [32, 1024]),
                operand(2, DType::U32, [chosen]),
                operand(3, DType::U32, [5001]),
            ];
            let op = SampledGrad { scale: 1.0, sampling: Sampling::Auto };
            let outputs = vec![operand(4, DType::F32, [chosen])];
            names(&Call { op: op.into(), inputs, outputs, label: String::new() }, (8, 0))
        };
        let dense = ["product 4096x1024x32", "sampled_gather", "product 904x1024x32", "sampled_gather"];
        assert_eq!(sampled(DType::BF16, 50_000), dense);
        assert_eq!(sampled(DType::BF16, 20_000), ["sampled_grad_"]);
        assert_eq!(sampled(DType::F32, 50_000), ["sampled_grad_"]);
    }

    #[test]
    fn attention_in_bf16_runs_on_tensor_cores() {
        let attention = |dtype: DType, head_dim: usize, capability| {
            let (scale, window, soft_cap) = (1.0, None, None);
            let op = Attention { heads: 8, kv_heads: 1, head_dim, scale, window, soft_cap, dropout: 0.0, salt: 0 };
            let [q, k, v] = [(0, 8), (1, 1), (2, 1)].map(|(i, heads)| operand(i, dtype, [300, heads * head_dim]));
            let outputs = vec![operand(4, dtype, [300, 8 * head_dim]), operand(5, DType::F32, [300, 8])];
            let inputs = vec![q, k, v, operand(3, DType::U32, [300, 2])];
            names(&Call { op: op.into(), inputs, outputs, label: String::new() }, capability)
        };
        assert_eq!(attention(DType::BF16, 128, (8, 0)), ["attention"]);
        assert_eq!(attention(DType::BF16, 256, (12, 0)), ["attention"]);
        assert_eq!(attention(DType::BF16, 128, (7, 5)), ["attention_"]);
        assert_eq!(attention(DType::BF16, 80, (9, 0)), ["attention_"]);
        assert_eq!(attention(DType::F32, 128, (9, 0)), ["attention_"]);
    }
}
