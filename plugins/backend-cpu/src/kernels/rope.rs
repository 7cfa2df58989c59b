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
    let (head_dim, width) = (op.head_dim, op.width());
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
                // rotated in place if it is converted.
                unsafe {
                    let angles = table.at((row - *spans.at(2 * row) as usize) * width);
                    let (x, target) = (x.read(at, columns, buffer.at(0)), y.target(at, buffer.at(0)));
                    rotate(columns, head_dim, width, x, angles, direction, target);
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
    /// One row of `n` elements in heads of `head_dim`, of which the first `width` are rotated and the others copied; `angles`
    /// are `width / 2` cosines and as many sines. y may be x.
    unsafe fn rotate<T: Real>(
        n: usize,
        head_dim: usize,
        width: usize,
        x: *const T,
        angles: *const T,
        direction: T,
        y: *mut T,
    ) {
        let half = width / 2;
        let whole = half / LANES * LANES;
        for head in (0..n).step_by(head_dim) {
            let (x, y) = (x.add(head), y.add(head));
            y.add(width).copy_from(x.add(width), head_dim - width);
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
        let rows = 74;
        let x = Tensor::random(DType::F32, &[rows, heads * head_dim], 1);
        for (inverse, rotated) in [(false, None), (true, None), (false, Some(6)), (true, Some(2))] {
            let op = Rope { head_dim, inverse, rotated };
            let (width, half) = (op.width(), op.width() / 2);
            let table = Tensor::random(DType::F32, &[70, width], 2);
            let (v, angles, s) = (x.values(), table.values(), if inverse { -1.0 } else { 1.0 });
            let mut y = v.clone();
            for (row, position) in lengths.iter().flat_map(|&n| 0..n).enumerate() {
                for (head, i) in (0..heads).flat_map(|h| (0..half).map(move |i| (h, i))) {
                    let at = (row * heads + head) * head_dim + i;
                    let (cos, sin) = (angles[position * width + i], s * angles[position * width + half + i]);
                    y[at] = v[at] * cos - v[at + half] * sin;
                    y[at + half] = v[at + half] * cos + v[at] * sin;
                }
            }
            let inputs = [x.clone(), spans(&lengths), table];
            check(op.clone(), &inputs, &[y], 1e-6);
            check_bf16(op, &inputs, &[0], 1e-6);
        }
        let short = Tensor::random(DType::F32, &[69, head_dim], 2);
        assert!(
            error(Rope { head_dim, inverse: false, rotated: None }, &[x, spans(&lengths), short])
                .contains("rows 4..74")
        );
    }
}
