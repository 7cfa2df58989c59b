use crate::bind::{Io, Kernel};
use crate::memory::Need;
use crate::parallel;
use crate::real::Real;
use crate::segments::segments;
use crate::simd::{map, simd};
use sparta_graph::ops::Rope;

pub fn prepare<T: Real>(op: &Rope, io: &Io) -> Result<Kernel, String> {
    let ((rows, columns), x, spans) = (io.matrix(0)?, io.real::<T>(0)?, io.words(1)?);
    let ((positions, _), table, y) = (io.matrix(2)?, io.real::<T>(2)?, io.output::<T>(0)?);
    let (head_dim, half) = (op.head_dim, op.head_dim / 2);
    let direction = if op.inverse { -T::ONE } else { T::ONE };
    Ok(Kernel::new(Need::default(), move |_| {
        if let Some(long) = segments(spans, rows)?.iter().find(|s| s.len() > positions) {
            return Err(format!(
                "the segment of rows {}..{} is longer than the rope table of {positions} positions",
                long.start, long.end
            ));
        }
        parallel::rows(rows, columns, |rows| {
            for row in rows {
                // SAFETY: heads of row `row`, and the row of its position in the table, which was checked.
                unsafe {
                    let angles = table.at((row - *spans.at(2 * row) as usize) * head_dim);
                    for head in (0..columns).step_by(head_dim) {
                        let at = row * columns + head;
                        rotate(half, x.at(at), angles, direction, y.at(at));
                    }
                }
            }
        });
        Ok(())
    }))
}

simd! {
    /// `angles` are n cosines and n sines.
    unsafe fn rotate<T: Real>(n: usize, x: *const T, angles: *const T, direction: T, y: *mut T) {
        let (first, second, cosine, sine) = (x, x.add(n), angles, angles.add(n));
        let (first_out, second_out) = (y, y.add(n));
        map!(n, |first, second, cosine, sine| -> first_out, second_out {
            let sine = direction * sine;
            (first * cosine - second * sine, second * cosine + first * sine)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, error, spans};
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
            check(Rope { head_dim, inverse }, &[x.clone(), spans(&lengths), table.clone()], &[y], 1e-6);
        }
        let short = Tensor::random(DType::F32, &[69, head_dim], 2);
        assert!(error(Rope { head_dim, inverse: false }, &[x, spans(&lengths), short]).contains("rows 4..74"));
    }
}
