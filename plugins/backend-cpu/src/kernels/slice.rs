use super::moved;
use crate::bind::{Io, Kernel};
use crate::real::Real;
use sparta_graph::ops::{Slice, Unslice};

pub fn prepare<T: Real>(op: &Slice, io: &Io) -> Result<Kernel, String> {
    let ((_, width), [first, end], [left, right]) = (io.matrix(0)?, op.rows, op.columns);
    moved::prepare::<T>(io, [end - first, right - left], move |row, column| Some((first + row) * width + left + column))
}

pub fn prepare_unslice<T: Real>(op: &Unslice, io: &Io) -> Result<Kernel, String> {
    let ((height, width), [first, left]) = (io.matrix(0)?, op.at);
    moved::prepare::<T>(io, op.shape, move |row, column| {
        let (row, column) = (row.checked_sub(first)?, column.checked_sub(left)?);
        (row < height && column < width).then_some(row * width + column)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::moved::testing::check_moved;

    #[test]
    fn takes_a_block_and_puts_it_back() {
        check_moved(Slice { rows: [1, 3], columns: [2, 4] }, &[3, 5], [2, 2], |x, i, j| x[(i + 1) * 5 + j + 2]);
        let inside = |i: usize, j: usize| (2..5).contains(&i) && (1..6).contains(&j);
        check_moved(Unslice { shape: [6, 7], at: [2, 1] }, &[3, 5], [6, 7], |x, i, j| {
            if inside(i, j) { x[(i - 2) * 5 + j - 1] } else { 0.0 }
        });
    }
}
