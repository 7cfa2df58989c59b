use super::add::add;
use super::linear_few::{self, FewRows};
use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Need, Ptr};
use crate::parallel::tasks;
use crate::product::{self, Output};
use crate::real::{Matrix, Operand, Real};
use sparta_graph::ops::{Layout, Linear};
use std::ops::Range;

/// Rows and columns of `c` that are one piece of work, and the depth of a converted block of a 16-bit operand. They are
/// the same for every number of threads.
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
    if let Some(product) = product.few_rows() {
        return Ok(product.kernel());
    }
    if let Some(product) = product.bf16() {
        let need = Need { shared: product.scratch(), per_thread: 0 };
        return Ok(Kernel::new(need, move |scratch| {
            // SAFETY: the operands are those of the op, dense and checked; the scratch memory is what was asked for.
            unsafe { product.run(scratch.shared(), true) };
            Ok(())
        }));
    }
    let need = Need { shared: 0, per_thread: product.areas().iter().sum::<usize>() * size_of::<T>() };
    Ok(Kernel::new(need, move |scratch| {
        let (down, across) = (m.div_ceil(ROWS), n.div_ceil(COLUMNS));
        tasks(down * across, |task| {
            let (row, column) = (task % down * ROWS, task / down * COLUMNS);
            let (rows, columns) = (row..m.min(row + ROWS), column..n.min(column + COLUMNS));
            // SAFETY: each task writes its own block of c, and the scratch memory of its thread.
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
    /// The product of two bf16 tensors with f32 sums, which need not be converted.
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

    /// The product of a few rows with contiguous columns. For bf16 by bf16 only of one row: several, as in training,
    /// must add in the order of larger products.
    fn few_rows(&self) -> Option<FewRows> {
        let narrow = matches!((self.a, self.b), (Floats::Bf16(_), Floats::Bf16(_)));
        if self.layout != Layout::Nt || self.size[0] > if narrow { 1 } else { linear_few::ROWS } {
            return None;
        }
        Some(FewRows {
            size: self.size,
            scale: self.scale,
            a: T::single(self.a)?,
            b: T::single(self.b)?,
            c: T::single(self.c)?,
            bias: self.bias.and_then(T::single),
            residual: self.residual.and_then(T::single),
        })
    }

    /// Elements of the areas of a thread's scratch memory: converted blocks of b, of a and of c. The first holds the
    /// bias beforehand.
    fn areas(&self) -> [usize; 3] {
        let [m, n, k] = [self.size[0].min(ROWS), self.size[1].min(COLUMNS), self.size[2].min(DEPTH)];
        let converted = |tensor: Floats<T>, len| if tensor.is_full() { 0 } else { len };
        let bias = if self.bias.is_some() { n } else { 0 };
        [converted(self.b, k * n).max(bias), converted(self.a, m * k), converted(self.c, m * n)]
    }

    /// # Safety
    /// The block is in c and nothing else touches it concurrently; `scratch` holds what `prepare` asked for.
    unsafe fn block(&self, rows: Range<usize>, columns: Range<usize>, scratch: Ptr<T>) {
        let [_, n, k] = self.size;
        let [b_area, a_area, _] = self.areas();
        let (a_buffer, c_buffer) = (Ptr::new(scratch.at(b_area)), scratch.at(b_area + a_area));
        let at = rows.start * n + columns.start;
        let c = match self.c {
            Floats::Full(c) => Matrix::rows(c.at(at), n),
            _ => Matrix::rows(c_buffer, columns.len()),
        };
        // SAFETY: the caller vouches for it.
        let read = unsafe { self.start(&rows, &columns, c, scratch) };
        // Operands that need no conversion take one product. At least one runs, so that c is written when k is 0.
        let depth = if self.a.is_full() && self.b.is_full() { k } else { DEPTH }.max(1);
        for start in (0..k.max(1)).step_by(depth) {
            let deep = depth.min(k - start);
            // SAFETY: the blocks of a, b and c lie in their tensors and c overlaps neither a nor b; converted blocks
            // have at most DEPTH * ROWS and DEPTH * COLUMNS elements.
            unsafe {
                let a = match self.layout {
                    Layout::Nt | Layout::Nn => along(self.a, &rows, k, start, deep, a_buffer),
                    Layout::Tn => across(self.a, &rows, self.size[0], start, deep, a_buffer).transposed(),
                };
                let b = match self.layout {
                    Layout::Nt => along(self.b, &columns, k, start, deep, scratch).transposed(),
                    Layout::Nn | Layout::Tn => across(self.b, &columns, n, start, deep, scratch),
                };
                T::gemm([rows.len(), columns.len(), deep], c, read || start > 0, a, b, T::from_f32(self.scale));
            }
        }
        for (i, row) in rows.enumerate() {
            // SAFETY: part of a row of c, whose numbers stand in c or in the scratch memory.
            unsafe { self.c.finish(row * n + columns.start, columns.len(), c.at.add(i * c.row)) };
        }
    }

    /// Writes what the product is added to into the block of c; false if there is nothing.
    ///
    /// # Safety
    /// As for [`Product::block`].
    unsafe fn start(&self, rows: &Range<usize>, columns: &Range<usize>, c: Matrix<*mut T>, scratch: Ptr<T>) -> bool {
        let (n, width) = (self.size[1], columns.len());
        // SAFETY: parts of rows of tensors of shape `[m, n]`, and of the bias; the scratch memory holds COLUMNS.
        unsafe {
            if let Some(bias) = self.bias {
                bias.load(columns.start, width, scratch.at(0));
            }
            for (i, at) in rows.clone().map(|row| row * n + columns.start).enumerate() {
                let c = c.at.add(i * c.row);
                match (self.bias, self.residual) {
                    (Some(_), Some(residual)) => add(width, scratch.at(0), residual.read(at, width, c), c),
                    (Some(_), None) => c.copy_from_nonoverlapping(scratch.at(0), width),
                    // In place: c and the residual are the same memory.
                    (None, Some(Floats::Full(residual))) if residual.at(at) == c => break,
                    (None, Some(residual)) => residual.load(at, width, c),
                    (None, None) => break,
                }
            }
        }
        self.bias.is_some() || self.residual.is_some()
    }
}

/// Lines of an operand that run along k, `[lines, k]`: elements `start .. start + deep` of each, where they lie or
/// converted into `buffer`. A matrix of `lines` rows.
///
/// # Safety
/// The lines are in the tensor, and the buffer has room for them.
unsafe fn along<T: Real>(
    x: Floats<T>,
    lines: &Range<usize>,
    k: usize,
    start: usize,
    deep: usize,
    buffer: Ptr<T>,
) -> Operand<T> {
    if let Floats::Full(x) = x {
        return Operand::rows(x.at(lines.start * k + start), k);
    }
    for (i, line) in lines.clone().enumerate() {
        // SAFETY: the caller vouches for it.
        unsafe { x.load(line * k + start, deep, buffer.at(i * deep)) };
    }
    Operand::rows(buffer.at(0), deep)
}

/// As [`along`], of an operand `[k, width]` whose lines are columns. A matrix of `deep` rows.
///
/// # Safety
/// As for [`along`].
unsafe fn across<T: Real>(
    x: Floats<T>,
    lines: &Range<usize>,
    width: usize,
    start: usize,
    deep: usize,
    buffer: Ptr<T>,
) -> Operand<T> {
    if let Floats::Full(x) = x {
        return Operand::rows(x.at(start * width + lines.start), width);
    }
    for i in 0..deep {
        // SAFETY: the caller vouches for it.
        unsafe { x.load((start + i) * width + lines.start, lines.len(), buffer.at(i * lines.len())) };
    }
    Operand::rows(buffer.at(0), lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16};
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
        check(op.clone(), &inputs, &[c], 2e-6);
        if dtype == DType::F32 {
            let residual = inputs.len() - usize::from(residual);
            // Every mixture of operands and outputs; the residual is of the output's type.
            for which in [vec![0], vec![1], vec![0, 1]] {
                let narrow = Linear { output: Some(DType::BF16), ..op.clone() };
                check_bf16(narrow, &inputs, &[which.clone(), (residual..inputs.len()).collect()].concat(), 2e-6);
                check_bf16(Linear { output: Some(DType::F32), ..op.clone() }, &inputs, &which, 2e-6);
            }
        }
    }

    #[test]
    fn layouts_types_and_sizes() {
        for size in [
            [1, 1, 1],
            [3, 2, 1],
            [1, 7, 5],
            [4, 300, 200],
            [2, 70, 64],
            [17, 97, 33],
            [70, 200, 64],
            [520, 10, 8],
            [8, 100, 1030],
            [2, 3, 0],
        ] {
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
        for size in [[5, 3, 4], [1, 130, 33], [3, 5, 70], [33, 130, 20], [600, 100, 3]] {
            for bias in [None, Some(DType::F32), Some(DType::BF16), Some(DType::F16)] {
                for residual in [false, true] {
                    case(Layout::Nt, size, DType::F32, bias, residual);
                    case(Layout::Tn, size, DType::F32, bias, residual);
                }
            }
        }
    }
}
