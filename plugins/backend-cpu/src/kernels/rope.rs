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
