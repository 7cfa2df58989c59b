use super::add::add;
use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Need, Ptr};
use crate::parallel::tasks;
use crate::product::{self, Output};
use crate::real::{Matrix, Operand, Real};
use sparta_graph::ops::{Layout, Linear};
use std::ops::Range;

/// Rows and columns of `c` that are one piece of work, and the depth of a converted block. They are the same for every
/// number of threads.
const ROWS: usize = 512;
const COLUMNS: usize = 96;
const DEPTH: usize = 1024;

pub fn prepare<T: Real>(op: &Linear, io: &Io) -> Result<Kernel, String> {
    let (m, n, k) = op.dims(io.ty(0)?, io.ty(1)?)?;
    let product = Product::<T> {
        size: [m, n, k],
        layout: op.layout,
        scale: op.scale,
        a: io.floats(0)?,
        b: io.floats(1)?,
        c: io.float_output(0)?,
        bias: if op.bias { Some(io.floats(2)?) } else { None },
        residual: op.residual_index().map(|i| io.floats(i)).transpose()?,
    };
    if let Some(product) = product.bf16() {
        let need = Need { shared: product.scratch(), per_thread: 0 };
        return Ok(Kernel::new(need, move |scratch| {
            // SAFETY: the operands are those of the op, dense and checked; the scratch memory is what was asked for.
            unsafe { product.run(scratch.shared(), true) };
            Ok(())
        }));
    }
    let need = Need { shared: 0, per_thread: product.parts().iter().sum::<usize>() * size_of::<T>() };
    Ok(Kernel::new(need, move |scratch| {
        let (down, across) = (m.div_ceil(ROWS), n.div_ceil(COLUMNS));
        tasks(down * across, |task| {
            let (row, column) = (task % down * ROWS, task / down * COLUMNS);
            let (rows, columns) = (row..m.min(row + ROWS), column..n.min(column + COLUMNS));
            // SAFETY: each task writes a block of c of its own, and the scratch memory of its thread.
            unsafe { product.block(rows, columns, scratch.thread()) }
        });
        Ok(())
    }))
}

/// `c = scale * op(a) op(b) + bias + residual`
#[derive(Clone, Copy)]
struct Product<T> {
    /// m, n, k
    size: [usize; 3],
    layout: Layout,
    scale: f32,
    a: Floats<T>,
    b: Floats<T>,
    c: Floats<T>,
    bias: Option<Floats<T>>,
    residual: Option<Floats<T>>,
}

impl<T: Real> Product<T> {
    /// The product of two tensors of bf16 with f32 sums.
    fn bf16(&self) -> Option<product::Product> {
        let (Floats::Bf16(a), Floats::Bf16(b)) = (self.a, self.b) else { return None };
        let [m, n, k] = self.size;
        let (a, b) = match self.layout {
            Layout::Nt => (product::Operand::along_k(a, k), product::Operand::along_k(b, k)),
            Layout::Nn => (product::Operand::along_k(a, k), product::Operand::across_k(b, n)),
            Layout::Tn => (product::Operand::across_k(a, m), product::Operand::across_k(b, n)),
        };
        let output = |tensor: Floats<T>| T::single(tensor).and_then(Output::of);
        let mut product = product::Product::new(self.size, a, b, output(self.c)?);
        product.scale = self.scale;
        if let Some(bias) = self.bias {
            product.bias = Some(T::single(bias)?);
        }
        if let Some(residual) = self.residual {
            product.residual = Some(output(residual)?);
        }
        Some(product)
    }

    /// Elements of scratch memory for the converted blocks of a and b, for c and for the bias.
    fn parts(&self) -> [usize; 4] {
        let [m, n, k] = self.size;
        let (rows, columns, depth) = (ROWS.min(m), COLUMNS.min(n), DEPTH.min(k));
        let if_stored = |tensor, elements| if full(tensor).is_some() { 0 } else { elements };
        [
            if_stored(self.a, rows * depth),
            if_stored(self.b, depth * columns),
            if_stored(self.c, rows * columns),
            if self.bias.is_some() { columns } else { 0 },
        ]
    }

    /// # Safety
    /// The block lies in c and nobody else touches it meanwhile; `scratch` holds what `prepare` asked for.
    unsafe fn block(&self, rows: Range<usize>, columns: Range<usize>, scratch: Ptr<T>) {
        let [m, n, k] = self.size;
        let [a_part, b_part, c_part, _] = self.parts();
        let part = |start: usize| Ptr::new(scratch.at(start));
        let (to_a, to_b, to_bias) = (part(0), part(a_part), part(a_part + b_part + c_part));
        let c = match full(self.c) {
            Some(c) => Matrix::rows(c.at(rows.start * n + columns.start), n),
            None => Matrix::rows(scratch.at(a_part + b_part), columns.len()),
        };
        // SAFETY: the caller vouches for it.
        let read = unsafe { self.start(&rows, &columns, c, to_bias) };
        // In one piece where nothing is converted; at least once, so that c is written when k is 0.
        let step = if a_part + b_part == 0 { k.max(1) } else { DEPTH };
        for depth in (0..k.max(1)).step_by(step) {
            let depths = depth..k.min(depth + step);
            let size = [rows.len(), columns.len(), depths.len()];
            // SAFETY: the blocks of a, b and c lie in their tensors or are converted in scratch memory, which has room
            // for DEPTH of k; c overlaps neither a nor b.
            unsafe {
                let a = match self.layout {
                    Layout::Nt | Layout::Nn => operand(self.a, k, rows.clone(), depths.clone(), to_a),
                    Layout::Tn => operand(self.a, m, depths.clone(), rows.clone(), to_a).transposed(),
                };
                let b = match self.layout {
                    Layout::Nt => operand(self.b, k, columns.clone(), depths, to_b).transposed(),
                    Layout::Nn | Layout::Tn => operand(self.b, n, depths, columns.clone(), to_b),
                };
                T::gemm(size, c, read || depth > 0, a, b, T::from_f32(self.scale));
            }
        }
        if full(self.c).is_none() {
            for (i, row) in rows.enumerate() {
                // SAFETY: a row of the block, of c and in scratch memory.
                unsafe { self.c.store(row * n + columns.start, columns.len(), c.at.add(i * c.row)) }
            }
        }
    }

    /// Writes what the product is added to into the block of c; false when it is nothing.
    ///
    /// # Safety
    /// As for [`Product::block`]; `c` is the block in c or in scratch memory, `bias` has room for its columns.
    unsafe fn start(&self, rows: &Range<usize>, columns: &Range<usize>, c: Matrix<*mut T>, bias: Ptr<T>) -> bool {
        let (n, width) = (self.size[1], columns.len());
        // SAFETY: parts of rows of tensors of shape `[m, n]`, and of the bias.
        unsafe {
            if let Some(tensor) = self.bias {
                tensor.load(columns.start, width, bias.at(0));
            }
            for (i, row) in rows.clone().enumerate() {
                let c = c.at.add(i * c.row);
                let at = row * n + columns.start;
                match (self.bias, self.residual) {
                    // In place: c and the residual are the same memory.
                    (None, Some(Floats::Full(residual))) if residual.at(at) == c => break,
                    (_, Some(residual)) => residual.load(at, width, c),
                    (Some(_), None) => c.copy_from_nonoverlapping(bias.at(0), width),
                    (None, None) => break,
                }
                if self.bias.is_some() && self.residual.is_some() {
                    add(width, bias.at(0), c, c);
                }
            }
        }
        self.bias.is_some() || self.residual.is_some()
    }
}

/// A tensor that holds the number type.
fn full<T>(tensor: Floats<T>) -> Option<Ptr<T>> {
    match tensor {
        Floats::Full(x) => Some(x),
        Floats::Bf16(_) | Floats::F16(_) => None,
    }
}

/// Some rows and columns of a tensor with rows of `width` elements: where they lie, or converted in scratch memory.
///
/// # Safety
/// They lie in the tensor, and the scratch memory has room for them.
unsafe fn operand<T: Real>(
    tensor: Floats<T>,
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    scratch: Ptr<T>,
) -> Operand<T> {
    if let Some(x) = full(tensor) {
        return Operand::rows(x.at(rows.start * width + columns.start), width);
    }
    for (i, row) in rows.enumerate() {
        // SAFETY: the caller vouches for it.
        unsafe { tensor.load(row * width + columns.start, columns.len(), scratch.at(i * columns.len())) }
    }
    Operand::rows(scratch.at(0), columns.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check};
    use sparta_graph::DType;

    /// The types of a, b, the bias, and of c with the residual.
    struct Types {
        a: DType,
        b: DType,
        bias: Option<DType>,
        c: DType,
        residual: bool,
    }

    fn case(layout: Layout, [m, n, k]: [usize; 3], types: Types) {
        let Types { bias, residual, .. } = types;
        let op = Linear { layout, scale: 0.75, bias: bias.is_some(), residual, output: Some(types.c) };
        let (a_shape, b_shape) = match layout {
            Layout::Nt => ([m, k], [n, k]),
            Layout::Nn => ([m, k], [k, n]),
            Layout::Tn => ([k, m], [k, n]),
        };
        let mut inputs = vec![Tensor::random(types.a, &a_shape, 1), Tensor::random(types.b, &b_shape, 2)];
        inputs.extend(bias.map(|dtype| Tensor::random(dtype, &[n], 3)));
        inputs.extend(residual.then(|| Tensor::random(types.c, &[m, n], 4)));
        let values: Vec<Vec<f64>> = inputs.iter().map(Tensor::values).collect();
        let (a, b) = (&values[0], &values[1]);
        let mut c = vec![0.0; m * n];
        for (i, c) in c.iter_mut().enumerate() {
            let (i, j) = (i / n, i % n);
            let a = |l: usize| if layout == Layout::Tn { a[l * m + i] } else { a[i * k + l] };
            let b = |l: usize| if layout == Layout::Nt { b[j * k + l] } else { b[l * n + j] };
            *c = 0.75 * (0..k).map(|l| a(l) * b(l)).sum::<f64>();
            if bias.is_some() {
                *c += values[2][j];
            }
            if residual {
                *c += values[values.len() - 1][i * n + j];
            }
        }
        check(op, &inputs, &[c], 2e-6);
    }

    fn plain(a: DType, b: DType, c: DType) -> Types {
        Types { a, b, bias: None, c, residual: false }
    }

    #[test]
    fn layouts_types_and_sizes() {
        use DType::{BF16, F16, F32};
        for size in
            [[1, 1, 1], [3, 2, 1], [1, 7, 5], [17, 97, 33], [70, 200, 64], [520, 10, 8], [8, 100, 1030], [2, 3, 0]]
        {
            for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
                case(layout, size, plain(F32, F32, F32));
                case(layout, size, plain(F32, BF16, F32));
                case(layout, size, plain(BF16, F32, BF16));
                case(layout, size, plain(BF16, BF16, F32));
                case(layout, size, plain(BF16, BF16, BF16));
            }
            for layout in [Layout::Nt, Layout::Nn] {
                case(layout, size, Types { residual: true, ..plain(F32, F16, F32) });
                case(layout, size, Types { residual: true, ..plain(BF16, F16, BF16) });
            }
        }
    }

    #[test]
    fn bias_and_residual() {
        use DType::{BF16, F16, F32};
        for size in [[5, 3, 4], [33, 130, 20], [600, 100, 3]] {
            for bias in [None, Some(F32), Some(BF16), Some(F16)] {
                for residual in [false, true] {
                    for (inputs, c) in [(F32, F32), (BF16, F32), (BF16, BF16), (F32, BF16)] {
                        case(Layout::Nt, size, Types { a: inputs, b: inputs, bias, c, residual });
                        case(Layout::Tn, size, Types { a: inputs, b: inputs, bias, c, residual });
                    }
                }
            }
        }
    }
}
