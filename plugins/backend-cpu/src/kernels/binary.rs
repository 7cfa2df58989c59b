//! Elementwise ops of two operands, the second of which may be a repeated row or column.

use crate::bind::{Io, Kernel};
use crate::elementwise::{elementwise, pieces};
use crate::memory::{Floats, Need, Ptr};
use crate::parallel;
use crate::real::Real;
use sparta_graph::ops::Broadcasting;

/// `c = f(a, b)` for n elements.
pub type Binary<T> = unsafe fn(n: usize, a: *const T, b: *const T, c: *mut T);

pub fn prepare<T: Real>(io: &Io, f: Binary<T>) -> Result<Kernel, String> {
    let (a, b, c, n) = (io.floats::<T>(0)?, io.floats::<T>(1)?, io.float_output::<T>(0)?, io.numel(0)?);
    match Broadcasting::of(io.ty(0)?, io.ty(1)?)? {
        Broadcasting::None => Ok(Kernel::plain(move || {
            // SAFETY: tensors of n elements.
            unsafe { elementwise(n, [a, b], [c], |r, [a, b], [c]| f(r.len(), a, b, c)) }
        })),
        Broadcasting::Row => by_row(io.matrix(0)?, [a, b, c], f),
        Broadcasting::Column => by_column(io.matrix(0)?, [a, b, c], f),
    }
}

fn by_row<T: Real>((rows, width): (usize, usize), [a, b, c]: [Floats<T>; 3], f: Binary<T>) -> Result<Kernel, String> {
    let need = Need { shared: width * size_of::<T>(), per_thread: 0 };
    Ok(Kernel::new(need, move |scratch| {
        let repeated: Ptr<T> = scratch.shared();
        // SAFETY: b and the scratch memory have `width` elements.
        unsafe { b.load(0, width, repeated.at(0)) };
        parallel::rows(rows, width, |part| {
            for at in part.map(|row| row * width) {
                // SAFETY: a row of a and c.
                unsafe {
                    pieces(at..at + width, [a], [c], |r, [a], [c]| f(r.len(), a, repeated.at(r.start - at), c));
                }
            }
        });
        Ok(())
    }))
}

fn by_column<T: Real>(
    (rows, width): (usize, usize),
    [a, b, c]: [Floats<T>; 3],
    f: Binary<T>,
) -> Result<Kernel, String> {
    let need = Need { shared: 0, per_thread: width * size_of::<T>() };
    Ok(Kernel::new(need, move |scratch| {
        parallel::rows(rows, width, |part| {
            let repeated: Ptr<T> = scratch.thread();
            for row in part {
                let at = row * width;
                // SAFETY: a row of a and c, and its number in b; the scratch memory is this thread's.
                unsafe {
                    repeated.slice_mut(0, width).fill(b.get(row));
                    pieces(at..at + width, [a], [c], |r, [a], [c]| f(r.len(), a, repeated.at(0), c));
                }
            }
        });
        Ok(())
    }))
}

#[cfg(test)]
pub mod testing {
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::{DType, Op};

    /// Compares an op with `f`, for operands of one shape, rows and columns of all types. The second has no numbers
    /// near 0.
    pub fn check_binary(op: impl Into<Op>, f: impl Fn(f64, f64) -> f64) {
        let op = op.into();
        for (rows, columns) in [(1, 1), (3, 70), (300, 129)] {
            let a = Tensor::random(DType::F32, &[rows, columns], 1);
            let away = |dtype, shape: &[usize]| {
                let values: Vec<f64> = Tensor::random(dtype, shape, 2).values();
                Tensor::float(dtype, shape, &values.iter().map(|x| x + 1.5 * x.signum()).collect::<Vec<_>>())
            };
            let against = |b: &Tensor, at: &dyn Fn(usize) -> usize| {
                let values = b.values();
                let expected = a.values().iter().enumerate().map(|(i, a)| f(*a, values[at(i)])).collect();
                check(op.clone(), &[a.clone(), b.clone()], &[expected], 1e-6);
            };
            let b = away(DType::F32, &[rows, columns]);
            against(&b, &|i| i);
            for which in [&[0][..], &[1], &[0, 1]] {
                check_bf16(op.clone(), &[a.clone(), b.clone()], which, 1e-6);
            }
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                against(&away(dtype, &[columns]), &|i| i % columns);
            }
            let column = away(DType::F32, &[rows, 1]);
            against(&column, &|i| i / columns);
            check_bf16(op.clone(), &[a.clone(), column], &[0, 1], 1e-6);
        }
    }
}
