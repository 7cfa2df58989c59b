use crate::bind::{Io, Kernel};
use crate::elementwise::pieces;
use crate::parallel;
use crate::real::Real;

/// Numbers that are summed one after the other; the sums of these are added up in order.
const LANES: usize = 16;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let ((rows, width), x, y) = (io.matrix(0)?, io.floats::<T>(0)?, io.output::<T>(0)?);
    Ok(Kernel::plain(move || {
        parallel::rows(rows, width, |part| {
            for row in part {
                let (at, mut sums) = (row * width, [T::ZERO; LANES]);
                // SAFETY: a row of x, and its sum.
                unsafe {
                    pieces(at..at + width, [x], [], |r, [x], []| {
                        for i in 0..r.len() {
                            sums[(r.start - at + i) % LANES] += *x.add(i);
                        }
                    });
                    *y.at(row) = sums.into_iter().sum();
                }
            }
        });
    }))
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;
    use sparta_graph::ops::RowSum;

    #[test]
    fn sums_each_row() {
        for (rows, columns) in [(1, 1), (33, 300), (200, 1065), (3, 0)] {
            let x = Tensor::random(DType::F32, &[rows, columns], 1);
            let values = x.values();
            let sums = (0..rows).map(|row| values[row * columns..(row + 1) * columns].iter().sum()).collect();
            check(RowSum {}, std::slice::from_ref(&x), &[sums], 1e-6);
            check_bf16(RowSum {}, &[x], &[0], 1e-6);
        }
    }
}
