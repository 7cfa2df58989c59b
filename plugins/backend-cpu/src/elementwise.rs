//! Elementwise work on tensors of any stored type, in pieces that fit the first-level cache.

use crate::memory::Floats;
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Elements that are converted at a time, a multiple of 4: dropout draws four at once.
const PIECE: usize = 512;

/// Calls `kernel(elements, inputs, outputs)` for ranges that cover `0..n`, in parallel. The pointers point to the first
/// element of the range, as numbers; what the kernel writes to the outputs is rounded to their types.
///
/// # Safety
/// The tensors have n elements; outputs may be inputs, but overlap them in no other way.
pub unsafe fn elementwise<T: Real, const I: usize, const O: usize>(
    n: usize,
    inputs: [Floats<T>; I],
    outputs: [Floats<T>; O],
    kernel: impl Fn(Range<usize>, [*const T; I], [*mut T; O]) + Send + Sync,
) {
    // SAFETY: the caller vouches for it; chunks do not overlap.
    chunks(n, GRAIN, |chunk| unsafe { pieces(chunk, inputs, outputs, &kernel) });
}

/// [`elementwise`] on a range, in order and on the calling thread. Tensors that all hold numbers are one piece.
///
/// # Safety
/// As for [`elementwise`], and nothing else writes these elements concurrently.
pub unsafe fn pieces<T: Real, const I: usize, const O: usize>(
    range: Range<usize>,
    inputs: [Floats<T>; I],
    outputs: [Floats<T>; O],
    mut kernel: impl FnMut(Range<usize>, [*const T; I], [*mut T; O]),
) {
    let full = inputs.iter().chain(&outputs).all(|tensor| tensor.is_full());
    let size = if full { range.len() } else { PIECE };
    let mut read = [const { MaybeUninit::<[T; PIECE]>::uninit() }; I];
    let mut written = [const { MaybeUninit::<[T; PIECE]>::uninit() }; O];
    let mut start = range.start;
    while start < range.end {
        let piece = start..range.end.min(start + size);
        let n = piece.len();
        // SAFETY: the caller vouches for the tensors; a piece that is converted fits the buffers.
        unsafe {
            let x = std::array::from_fn(|i| inputs[i].read(start, n, read[i].as_mut_ptr().cast()));
            let y: [*mut T; O] = std::array::from_fn(|o| outputs[o].target(start, written[o].as_mut_ptr().cast()));
            kernel(piece, x, y);
            outputs.iter().zip(y).for_each(|(output, y)| output.finish(start, n, y));
        }
        start += n;
    }
}
