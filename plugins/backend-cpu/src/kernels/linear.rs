use super::add::add;
use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Need, Ptr};
use crate::parallel::tasks;
use crate::real::{Matrix, Operand, Real};
use sparta_graph::ops::{Layout, Linear};
use std::ops::Range;

/// Rows and columns of `c` that are one piece of work, and the depth of a converted block of a 16-bit `b`. They are
/// the same for every number of threads.
const ROWS: usize = 512;
const COLUMNS: usize = 96;
const DEPTH: usize = 1024;

pub fn prepare<T: Real>(op: &Linear, io: &Io) -> Result<Kernel, String> {
    let (m, n, k) = op.dims(io.ty(0)?, io.ty(1)?)?;
    let product = Product {
        size: [m, n, k],
        layout: op.layout,
        scale: T::from_f32(op.scale),
        a: io.real(0)?,
        b: io.floats(1)?,
        c: io.output(0)?,
        bias: if op.bias { Some(io.floats(2)?) } else { None },
        residual: op.residual_index().map(|i| io.real(i)).transpose()?,
    };
    let converted = if matches!(product.b, Floats::Full(_)) { 0 } else { DEPTH.min(k) * COLUMNS.min(n) };
    let bias = if op.bias { COLUMNS } else { 0 };
    let need = Need { shared: 0, per_thread: converted.max(bias) * size_of::<T>() };
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
    scale: T,
    a: Ptr<T>,
    b: Floats<T>,
    c: Ptr<T>,
    bias: Option<Floats<T>>,
    residual: Option<Ptr<T>>,
}

impl<T: Real> Product<T> {
    /// # Safety
    /// The block lies in c and nobody else touches it meanwhile; `scratch` holds what `prepare` asked for.
    unsafe fn block(&self, rows: Range<usize>, columns: Range<usize>, scratch: Ptr<T>) {
        let [m, n, k] = self.size;
        // SAFETY: the caller vouches for it.
        let read = unsafe { self.start(&rows, &columns, scratch) };
        let c = Matrix::rows(self.c.at(rows.start * n + columns.start), n);
        let a = |depth: usize| match self.layout {
            Layout::Nt | Layout::Nn => Operand::rows(self.a.at(rows.start * k + depth).cast_const(), k),
            Layout::Tn => Operand::columns(self.a.at(depth * m + rows.start).cast_const(), m),
        };
        let size = |depth| [rows.len(), columns.len(), depth];
        if let Floats::Full(b) = self.b {
            let b = match self.layout {
                Layout::Nt => Operand::columns(b.at(columns.start * k).cast_const(), k),
                Layout::Nn | Layout::Tn => Operand::rows(b.at(columns.start).cast_const(), n),
            };
            // SAFETY: the blocks of a, b and c lie in their tensors; c overlaps neither a nor b.
            return unsafe { T::gemm(size(k), c, read, a(0), b, self.scale) };
        }
        // At least once, so that c is written when k is 0.
        for depth in (0..k.max(1)).step_by(DEPTH) {
            let deep = DEPTH.min(k - depth);
            // SAFETY: as above; the converted block of b has at most DEPTH * COLUMNS elements.
            unsafe {
                let b = self.convert(&columns, depth, deep, scratch);
                T::gemm(size(deep), c, read || depth > 0, a(depth), b, self.scale);
            }
        }
    }

    /// Writes what the product is added to into the block of c; false when it is nothing.
    ///
    /// # Safety
    /// As for [`Product::block`].
    unsafe fn start(&self, rows: &Range<usize>, columns: &Range<usize>, scratch: Ptr<T>) -> bool {
        let (n, width) = (self.size[1], columns.len());
        // SAFETY: parts of rows of tensors of shape `[m, n]`, and of the bias; the scratch memory holds COLUMNS.
        unsafe {
            if let Some(bias) = self.bias {
                bias.load(columns.start, width, scratch.at(0));
            }
            for at in rows.clone().map(|row| row * n + columns.start) {
                let c = self.c.at(at);
                match (self.bias, self.residual) {
                    (Some(_), Some(residual)) => add(width, scratch.at(0), residual.at(at), c),
                    (Some(_), None) => c.copy_from_nonoverlapping(scratch.at(0), width),
                    // In place: c and the residual are the same memory.
                    (None, Some(residual)) if residual.at(at) != c => {
                        c.copy_from_nonoverlapping(residual.at(at), width)
                    }
                    (None, _) => break,
                }
            }
        }
        self.bias.is_some() || self.residual.is_some()
    }

    /// Rows `depth .. depth + deep` of the columns of `op(b)` in scratch memory.
    ///
    /// # Safety
    /// As for [`Product::block`]; the block lies in b.
    unsafe fn convert(&self, columns: &Range<usize>, depth: usize, deep: usize, scratch: Ptr<T>) -> Operand<T> {
        let [_, n, k] = self.size;
        let width = columns.len();
        // SAFETY: the caller vouches for it.
        unsafe {
            match self.layout {
                Layout::Nt => {
                    let column = |(i, column)| self.b.load(column * k + depth, deep, scratch.at(i * deep));
                    columns.clone().enumerate().for_each(column);
                    Operand::columns(scratch.at(0), deep)
                }
                Layout::Nn | Layout::Tn => {
                    let row = |i| self.b.load((depth + i) * n + columns.start, width, scratch.at(i * width));
                    (0..deep).for_each(row);
                    Operand::rows(scratch.at(0), width)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check};
    use sparta_graph::DType;

    fn case(layout: Layout, [m, n, k]: [usize; 3], dtype: DType, bias: Option<DType>, residual: bool) {
        let op = Linear { layout, scale: 0.75, bias: bias.is_some(), residual, output: None };
        let (a_shape, b_shape) = match layout {
            Layout::Nt => ([m, k], [n, k]),
            Layout::Nn => ([m, k], [k, n]),
            Layout::Tn => ([k, m], [k, n]),
        };
        let mut inputs = vec![Tensor::random(DType::F32, &a_shape, 1), Tensor::random(dtype, &b_shape, 2)];
        inputs.extend(bias.map(|dtype| Tensor::random(dtype, &[n], 3)));
        inputs.extend(residual.then(|| Tensor::random(DType::F32, &[m, n], 4)));
        let (a, b) = (inputs[0].values(), inputs[1].values());
        let mut c = vec![0.0; m * n];
        for (i, c) in c.iter_mut().enumerate() {
            let (i, j) = (i / n, i % n);
            let a = |l: usize| if layout == Layout::Tn { a[l * m + i] } else { a[i * k + l] };
            let b = |l: usize| if layout == Layout::Nt { b[j * k + l] } else { b[l * n + j] };
            *c = 0.75 * (0..k).map(|l| a(l) * b(l)).sum::<f64>();
            if bias.is_some() {
                *c += inputs[2].values()[j];
            }
            if residual {
                *c += inputs.last().unwrap().values()[i * n + j];
            }
        }
        check(op, &inputs, &[c], 2e-6);
    }

    #[test]
    fn layouts_types_and_sizes() {
        for size in
            [[1, 1, 1], [3, 2, 1], [1, 7, 5], [17, 97, 33], [70, 200, 64], [520, 10, 8], [8, 100, 1030], [2, 3, 0]]
        {
            for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
                case(layout, size, DType::F32, None, false);
            }
            for layout in [Layout::Nt, Layout::Nn] {
                case(layout, size, DType::BF16, None, false);
                case(layout, size, DType::F16, None, true);
            }
        }
    }

    #[test]
    fn bias_and_residual() {
        for size in [[5, 3, 4], [33, 130, 20], [600, 100, 3]] {
            for bias in [None, Some(DType::F32), Some(DType::BF16), Some(DType::F16)] {
                for residual in [false, true] {
                    case(Layout::Nt, size, DType::F32, bias, residual);
                    case(Layout::Tn, size, DType::F32, bias, residual);
                }
            }
        }
    }
}
