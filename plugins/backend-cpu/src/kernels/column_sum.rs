use super::add::add;
use crate::bind::{Io, Kernel};
use crate::elementwise::pieces;
use crate::memory::{Need, Ptr, Scratch};
use crate::parallel::{chunks, tasks};
use crate::real::Real;
use std::ops::Range;

/// Rows whose sum is one partial result.
const ROWS: usize = 32;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let ((rows, columns), x, y) = (io.matrix(0)?, io.floats::<T>(0)?, io.output::<T>(0)?);
    Ok(Kernel::new(need::<T>(rows, columns), move |scratch| {
        sum_rows(rows, columns, y, scratch, |row, sums| {
            let at = row * columns;
            // SAFETY: row `row` of x, and `columns` sums.
            unsafe {
                pieces(at..at + columns, [x], [], |r, [x], []| {
                    let sums = sums.add(r.start - at);
                    add(r.len(), sums, x, sums);
                });
            }
        });
        Ok(())
    }))
}

/// The scratch memory of [`sum_rows`].
pub fn need<T>(rows: usize, columns: usize) -> Need {
    Need { shared: rows.div_ceil(ROWS) * columns * size_of::<T>(), per_thread: 0 }
}

/// `y = ` the sum over all rows of what `add_row(row, sums)` adds to its `columns` sums; rows are added in a fixed order.
pub fn sum_rows<T: Real>(
    rows: usize,
    columns: usize,
    y: Ptr<T>,
    scratch: &Scratch,
    add_row: impl Fn(usize, *mut T) + Send + Sync,
) {
    let partial: Ptr<T> = scratch.shared();
    let parts = rows.div_ceil(ROWS);
    tasks(parts, |part| {
        // SAFETY: the scratch memory holds `parts * columns` elements, and each task has its own.
        unsafe { partial.slice_mut(part * columns, columns) }.fill(T::ZERO);
        (part * ROWS..rows.min((part + 1) * ROWS)).for_each(|row| add_row(row, partial.at(part * columns)));
    });
    chunks(columns, 256, |c: Range<usize>| {
        // SAFETY: y has `columns` elements, and each chunk is written by one task.
        unsafe {
            y.slice_mut(c.start, c.len()).fill(T::ZERO);
            for part in 0..parts {
                add(c.len(), y.at(c.start), partial.at(part * columns + c.start), y.at(c.start));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;
    use sparta_graph::ops::ColumnSum;

    #[test]
    fn sums_rows() {
        for (rows, columns) in [(1, 1), (33, 300), (200, 65), (0, 3)] {
            let x = Tensor::random(DType::F32, &[rows, columns], 1);
            let mut sums = vec![0.0; columns];
            x.values().iter().enumerate().for_each(|(i, x)| sums[i % columns] += x);
            check(ColumnSum {}, std::slice::from_ref(&x), &[sums], 1e-6);
            check_bf16(ColumnSum {}, &[x], &[0], 1e-6);
        }
    }
}
