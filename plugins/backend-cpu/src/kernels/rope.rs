use crate::bind::{Io, Kernel};
use crate::memory::{Need, Ptr};
use crate::parallel;
use crate::real::Real;
use crate::segments::segments;
use crate::simd::simd;
use sparta_graph::ops::Rope;

pub fn prepare<T: Real>(op: &Rope, io: &Io) -> Result<Kernel, String> {
    let ((rows, columns), x, spans) = (io.matrix(0)?, io.floats::<T>(0)?, io.words(1)?);
    let ((positions, _), table, y) = (io.matrix(2)?, io.real::<T>(2)?, io.float_output::<T>(0)?);
    let (head_dim, half) = (op.head_dim, op.head_dim / 2);
    let direction = if op.inverse { -T::ONE } else { T::ONE };
    let per_thread = if x.is_full() { 0 } else { columns * size_of::<T>() };
    Ok(Kernel::new(Need { shared: 0, per_thread }, move |scratch| {
        if let Some(long) = segments(spans, rows)?.iter().find(|s| s.len() > positions) {
            return Err(format!(
                "the segment of rows {}..{} is longer than the rope table of {positions} positions",
                long.start, long.end
            ));
        }
        parallel::rows(rows, columns, |rows| {
            let buffer: Ptr<T> = scratch.thread();
            for row in rows {
                let at = row * columns;
                // SAFETY: heads of row `row`, and the row of its position in the table, which was checked. The row is
                // rotated in place where it is converted.
                unsafe {
                    let angles = table.at((row - *spans.at(2 * row) as usize) * head_dim);
                    let (x, target) = (x.read(at, columns, buffer.at(0)), y.target(at, buffer.at(0)));
                    rotate(columns / head_dim, half, x, angles, direction, target);
                    y.finish(at, columns, target);
                }
            }
        });
        Ok(())
    }))
}

/// Elements that are rotated together.
const LANES: usize = 8;

simd! {
    /// One row of heads of `2 * half` elements; `angles` are `half` cosines and as many sines. y may be x.
    unsafe fn rotate<T: Real>(heads: usize, half: usize, x: *const T, angles: *const T, direction: T, y: *mut T) {
        let whole = half / LANES * LANES;
        for head in 0..heads {
            let (x, y) = (x.add(2 * half * head), y.add(2 * half * head));
            for i in (0..whole).step_by(LANES) {
                rotate_block::<T, LANES>(half, x.add(i), angles.add(i), direction, y.add(i));
            }
            for i in whole..half {
                rotate_block::<T, 1>(half, x.add(i), angles.add(i), direction, y.add(i));
            }
        }
    }
}

/// N elements and those `half` further on.
///
/// # Safety
/// The elements and their angles lie in the tensors.
#[inline(always)]
unsafe fn rotate_block<T: Real, const N: usize>(half: usize, x: *const T, angles: *const T, direction: T, y: *mut T) {
    // SAFETY: the caller vouches for the elements.
    unsafe {
        let load = |at: *const T| at.cast::<[T; N]>().read_unaligned();
        let (a, b, cosine, sine) = (load(x), load(x.add(half)), load(angles), load(angles.add(half)));
        let (mut first, mut second) = ([T::ZERO; N], [T::ZERO; N]);
        for l in 0..N {
            let sine = direction * sine[l];
            first[l] = a[l] * cosine[l] - b[l] * sine;
            second[l] = b[l] * cosine[l] + a[l] * sine;
        }
        y.cast::<[T; N]>().write_unaligned(first);
        y.add(half).cast::<[T; N]>().write_unaligned(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16, error, spans};
    use sparta_graph::DType;

    #[test]
    fn rotates_by_the_position_in_the_segment() {
        let (lengths, heads, head_dim) = ([3, 1, 70], 3, 10);
        let (rows, half) = (74, 5);
        let x = Tensor::random(DType::F32, &[rows, heads * head_dim], 1);
        let table = Tensor::random(DType::F32, &[70, head_dim], 2);
        for inverse in [false, true] {
            let (v, angles, s) = (x.values(), table.values(), if inverse { -1.0 } else { 1.0 });
            let mut y = vec![0.0; v.len()];
            for (row, position) in lengths.iter().flat_map(|&n| 0..n).enumerate() {
                for (head, i) in (0..heads).flat_map(|h| (0..half).map(move |i| (h, i))) {
                    let at = (row * heads + head) * head_dim + i;
                    let (cos, sin) = (angles[position * head_dim + i], s * angles[position * head_dim + half + i]);
                    y[at] = v[at] * cos - v[at + half] * sin;
                    y[at + half] = v[at + half] * cos + v[at] * sin;
                }
            }
            let inputs = [x.clone(), spans(&lengths), table.clone()];
            check(Rope { head_dim, inverse }, &inputs, &[y], 1e-6);
            check_bf16(Rope { head_dim, inverse }, &inputs, &[0], 1e-6);
        }
        let short = Tensor::random(DType::F32, &[69, head_dim], 2);
        assert!(error(Rope { head_dim, inverse: false }, &[x, spans(&lengths), short]).contains("rows 4..74"));
    }
}
