//! Ops that move elements: each element of the result is one of x, or 0.

use crate::bind::{Io, Kernel};
use crate::parallel;
use crate::real::Real;

/// A kernel that makes element (row, column) of its result from the element of x that `source` names.
pub fn prepare<T: Real>(
    io: &Io,
    [rows, columns]: [usize; 2],
    source: impl Fn(usize, usize) -> Option<usize> + Send + Sync + 'static,
) -> Result<Kernel, String> {
    let (x, y) = (io.floats::<T>(0)?, io.float_output::<T>(0)?);
    Ok(Kernel::plain(move || {
        parallel::rows(rows, columns, |part| {
            for row in part {
                for column in 0..columns {
                    // SAFETY: an element of y; `source` names one of x, as the shape rule has it.
                    unsafe { y.set(row * columns + column, source(row, column).map_or(T::ZERO, |at| x.get(at))) };
                }
            }
        });
    }))
}

#[cfg(test)]
pub mod testing {
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::{DType, Op};

    /// Compares an op on a tensor of this shape with what `expected` makes of its numbers.
    pub fn check_moved(
        op: impl Into<Op>,
        shape: &[usize],
        size: [usize; 2],
        expected: impl Fn(&[f64], usize, usize) -> f64,
    ) {
        let (op, x) = (op.into(), Tensor::random(DType::F32, shape, 1));
        let values = x.values();
        let numbers = (0..size[0] * size[1]).map(|e| expected(&values, e / size[1], e % size[1])).collect();
        check(op.clone(), std::slice::from_ref(&x), &[numbers], 0.0);
        check_bf16(op, &[x], &[0], 0.0);
    }
}
