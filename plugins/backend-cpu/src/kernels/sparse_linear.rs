use crate::bind::{Io, Kernel};
use crate::memory::{Need, Ptr};
use crate::parallel::{tasks, try_tasks};
use crate::real::Real;
use crate::simd::simd;
use sparta_graph::ops::SparseLinear;

/// Rows of x that are multiplied together: each element of the matrix is read once for all of them.
const BLOCK: usize = 16;

pub fn prepare<T: Real>(op: &SparseLinear, io: &Io) -> Result<Kernel, String> {
    let (x, values, y) = (io.floats::<T>(0)?, io.real::<T>(1)?, io.output::<T>(0)?);
    let (rows, width) = io.matrix(0)?;
    let (out, input) = (io.numel(3)? - 1, io.numel(5)? - 1);
    let made = if op.transposed { input } else { out };
    let elements = Elements {
        n: io.numel(1)?,
        size: [out, input],
        index: io.words(2)?,
        row_ptr: io.words(3)?,
        order: io.words(4)?,
        column_ptr: io.words(5)?,
        transposed: op.transposed,
    };
    let need = Need { shared: 0, per_thread: width * BLOCK * size_of::<T>() };
    Ok(Kernel::new(need, move |scratch| {
        try_tasks(made, |line| elements.check(line))?;
        tasks(rows.div_ceil(BLOCK), |block| {
            let first = block * BLOCK;
            let count = (rows - first).min(BLOCK);
            let columns: Ptr<T> = scratch.thread();
            // SAFETY: rows of this block, which no other task writes; the elements were checked.
            unsafe {
                for row in 0..BLOCK {
                    for i in 0..width {
                        let value = if row < count { x.get((first + row) * width + i) } else { T::ZERO };
                        *columns.at(i * BLOCK + row) = value;
                    }
                }
                multiply(elements, values, columns.at(0), made, count, y.at(first * made));
            }
        });
        Ok(())
    }))
}

/// The positions of a sparse matrix's elements, by the lines that make an output: rows, or columns if transposed.
#[derive(Clone, Copy)]
struct Elements {
    n: usize,
    /// Rows and columns.
    size: [usize; 2],
    index: Ptr<u32>,
    row_ptr: Ptr<u32>,
    order: Ptr<u32>,
    column_ptr: Ptr<u32>,
    transposed: bool,
}

impl Elements {
    /// Where the elements of a line lie in its order.
    ///
    /// # Safety
    /// There is such a line.
    #[inline(always)]
    unsafe fn line(&self, line: usize) -> (usize, usize) {
        let ptr = if self.transposed { self.column_ptr } else { self.row_ptr };
        // SAFETY: the caller vouches for it.
        unsafe { (*ptr.at(line) as usize, *ptr.at(line + 1) as usize) }
    }

    /// Element `k` of the order of lines: its number, row and column.
    ///
    /// # Safety
    /// `k` is below n, and so are the numbers in the order.
    #[inline(always)]
    unsafe fn element(&self, k: usize) -> (usize, usize, usize) {
        // SAFETY: the caller vouches for it.
        unsafe {
            let i = if self.transposed { *self.order.at(k) as usize } else { k };
            let at = *self.index.at(i) as usize;
            (i, at / self.size[1], at % self.size[1])
        }
    }

    /// Errors: an element of a line that is not in the matrix, or belongs to another line.
    fn check(&self, line: usize) -> Result<(), String> {
        // SAFETY: the line is one of the matrix; what the tensors hold is checked before it is used.
        unsafe {
            let (begin, end) = self.line(line);
            if begin > end || end > self.n {
                return Err(format!("line {line} has the elements {begin}..{end} of {}", self.n));
            }
            for k in begin..end {
                if self.transposed && *self.order.at(k) as usize >= self.n {
                    return Err(format!("order[{k}] is {}, but there are {} elements", *self.order.at(k), self.n));
                }
                let (i, row, column) = self.element(k);
                if row >= self.size[0] || line != if self.transposed { column } else { row } {
                    return Err(format!("element {i}, ({row}, {column}), does not belong to line {line}"));
                }
            }
        }
        Ok(())
    }
}

simd! {
    /// The first `count` rows of `y [BLOCK, made]`, of `x [width, BLOCK]`.
    unsafe fn multiply<T: Real>(
        elements: Elements,
        values: Ptr<T>,
        x: *const T,
        made: usize,
        count: usize,
        y: *mut T,
    ) {
        for line in 0..made {
            let (begin, end) = elements.line(line);
            let mut sums = [T::ZERO; BLOCK];
            for k in begin..end {
                let (i, row, column) = elements.element(k);
                let inner = if elements.transposed { row } else { column };
                let (value, x) = (*values.at(i), x.add(inner * BLOCK).cast::<[T; BLOCK]>().read());
                for l in 0..BLOCK {
                    sums[l] = value.mul_add(x[l], sums[l]);
                }
            }
            for (row, sum) in sums.iter().enumerate().take(count) {
                *y.add(row * made + line) = *sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, error};
    use sparta_graph::DType;
    use sparta_graph::ops::SparseLinear;

    /// Index, row_ptr, order and column_ptr of a matrix.
    fn places(index: &[u32], out: u32, input: u32) -> [Tensor; 4] {
        let mut order: Vec<u32> = (0..index.len() as u32).collect();
        order.sort_by_key(|&i| index[i as usize] % input);
        let starts = |lines: u32, of: &dyn Fn(u32) -> u32| -> Vec<u32> {
            (0..=lines).map(|line| index.iter().filter(|&&at| of(at) < line).count() as u32).collect()
        };
        let (rows, columns) = (starts(out, &|at| at / input), starts(input, &|at| at % input));
        [index, &rows, &order, &columns].map(|words| Tensor::u32(&[words.len()], words))
    }

    #[test]
    fn multiplies_only_by_the_stored_elements() {
        let (out, input, rows) = (37, 29, 35);
        let index: Vec<u32> = (0..out * input).filter(|i| i * 7 % 11 < 3).collect();
        let values = Tensor::random(DType::F32, &[index.len()], 1);
        let mut dense = vec![0.0; (out * input) as usize];
        index.iter().zip(values.values()).for_each(|(&at, value)| dense[at as usize] = value);
        for transposed in [false, true] {
            let (width, made) = if transposed { (out, input) } else { (input, out) };
            let x = Tensor::random(DType::F32, &[rows, width as usize], 2);
            let at = |inner: u32, line: u32| if transposed { inner * input + line } else { line * input + inner };
            let expected: Vec<f64> = (0..rows)
                .flat_map(|t| (0..made).map(move |line| (t, line)))
                .map(|(t, line)| {
                    let term =
                        |inner: u32| x.values()[t * width as usize + inner as usize] * dense[at(inner, line) as usize];
                    (0..width).map(term).sum()
                })
                .collect();
            let [index, row_ptr, order, column_ptr] = places(&index, out, input);
            let inputs = [x.clone(), values.clone(), index, row_ptr, order, column_ptr];
            check(SparseLinear { transposed }, &inputs, &[expected], 1e-5);
        }
    }

    #[test]
    fn places_outside_of_the_matrix_are_refused() {
        let x = Tensor::f32(&[1, 2], &[1.0; 2]);
        let inputs = |index: [u32; 2], row_ptr: [u32; 3], order: [u32; 2]| {
            let words = |words: &[u32]| Tensor::u32(&[words.len()], words);
            let values = Tensor::f32(&[2], &[1.0; 2]);
            [x.clone(), values, words(&index), words(&row_ptr), words(&order), words(&[0, 1, 2])]
        };
        let forward = SparseLinear { transposed: false };
        assert!(error(forward.clone(), &inputs([0, 4], [0, 1, 2], [0, 1])).contains("element 1"));
        assert!(error(forward, &inputs([0, 3], [0, 1, 3], [0, 1])).contains("line 1 has the elements 1..3"));
        assert!(error(SparseLinear { transposed: true }, &inputs([0, 3], [0, 1, 2], [0, 2])).contains("order[1] is 2"));
    }
}
