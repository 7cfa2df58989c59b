//! Operands held as numbers: products by fused multiply-add.

use super::{DEPTH, Lines, TOGETHER};
use crate::memory::{Floats, Ptr};
use crate::real::{Matrix, Operand, Real};
use crate::simd::{simd, sum_lanes};

/// Tensors of any types, which are converted unless they hold numbers.
#[derive(Clone, Copy)]
pub struct Numbers<T> {
    pub dy: Floats<T>,
    pub x: Floats<T>,
}

impl<T: Real> Numbers<T> {
    fn is_full(&self) -> bool {
        self.dy.is_full() && self.x.is_full()
    }
}

impl<T: Real> Lines<T> for Numbers<T> {
    type Element = T;

    fn line(&self, deep: usize) -> usize {
        deep
    }

    fn strip(&self, columns: usize) -> usize {
        if self.is_full() { 0 } else { SIDE * columns }
    }

    unsafe fn lines_of_dy(&self, at: usize, width: usize, size: [usize; 2], to: Ptr<T>, strip: Ptr<T>) {
        // SAFETY: the caller vouches for it.
        unsafe { transpose(self.dy, at, width, size, to, strip) }
    }

    unsafe fn lines_of_x(&self, at: usize, width: usize, size: [usize; 2], to: Ptr<T>, strip: Ptr<T>) {
        // SAFETY: the caller vouches for it.
        unsafe { transpose(self.x, at, width, size, to, strip) }
    }

    fn dots(&self, dy: &[T], columns: &[&[T]]) -> [T; TOGETHER] {
        let (mut lines, mut sums) = ([dy; TOGETHER], [T::ZERO; TOGETHER]);
        lines[..columns.len()].copy_from_slice(columns);
        // SAFETY: the function's body is safe code.
        unsafe {
            match columns.len() {
                1 => dots::<T, 1>(dy, &lines, &mut sums),
                _ => dots::<T, TOGETHER>(dy, &lines, &mut sums),
            }
        }
        sums
    }

    fn tile_scratch(&self, [t, rows, columns]: [usize; 3]) -> usize {
        let converted = if self.is_full() { 0 } else { DEPTH.min(t) * (rows + columns) };
        converted * size_of::<T>()
    }

    unsafe fn tile(
        &self,
        [t, rows, columns]: [usize; 3],
        [dy, x]: [usize; 2],
        widths: [usize; 2],
        scale: f32,
        to: Ptr<T>,
        scratch: Ptr<u8>,
    ) {
        let dy_buffer = Ptr::new(scratch.at(0).cast());
        // Operands that need no conversion take one product; at least one runs, so that the tile is written.
        let depth = if self.is_full() { t } else { DEPTH }.max(1);
        for start in (0..t.max(1)).step_by(depth) {
            let deep = depth.min(t - start);
            let x_buffer = Ptr::new(dy_buffer.at(rows * deep));
            // SAFETY: the caller vouches for the operands and the tile; the converted rows fit the scratch memory.
            unsafe {
                let dy = rows_of(self.dy, start * widths[0] + dy, widths[0], [deep, rows], dy_buffer);
                let x = rows_of(self.x, start * widths[1] + x, widths[1], [deep, columns], x_buffer);
                let tile = Matrix::rows(to.at(0), columns);
                T::gemm([rows, columns, deep], tile, start > 0, dy.transposed(), x, T::from_f32(scale));
            }
        }
    }
}

/// Side of the squares that are transposed in registers.
const SIDE: usize = 8;
/// Partial sums of each product.
const LANES: usize = super::LANES;

/// A block of a matrix whose rows are `width` apart, from element `at` on: where it lies, or converted into `buffer`.
///
/// # Safety
/// The block is in the tensor, and the buffer has room for it.
unsafe fn rows_of<T: Real>(x: Floats<T>, at: usize, width: usize, size: [usize; 2], buffer: Ptr<T>) -> Operand<T> {
    let [deep, columns] = size;
    if let Floats::Full(x) = x {
        return Operand::rows(x.at(at), width);
    }
    for i in 0..deep {
        // SAFETY: the caller vouches for it.
        unsafe { x.load(at + i * width, columns, buffer.at(i * columns)) };
    }
    Operand::rows(buffer.at(0), columns)
}

/// `y [columns, deep]` = the block `[deep, columns]` of x transposed, from element `at` on, the rows `width` apart.
/// What has to be converted goes through `strip`, a few rows at a time.
///
/// # Safety
/// The block is in the tensor, y has room for it, and the strip for SIDE rows of it.
unsafe fn transpose<T: Real>(x: Floats<T>, at: usize, width: usize, size: [usize; 2], y: Ptr<T>, strip: Ptr<T>) {
    let [deep, columns] = size;
    if let Floats::Full(x) = x {
        // SAFETY: the caller vouches for it.
        return unsafe { transpose_rows(x.at(at), width, size, y.at(0), deep) };
    }
    for t in (0..deep).step_by(SIDE) {
        let rows = SIDE.min(deep - t);
        // SAFETY: the caller vouches for it.
        unsafe {
            (0..rows).for_each(|i| x.load(at + (t + i) * width, columns, strip.at(i * columns)));
            transpose_rows(strip.at(0), columns, [rows, columns], y.at(t), deep);
        }
    }
}

simd! {
    /// `y [columns, deep]` = `x [deep, columns]` transposed; the rows of x are `width` apart, those of y `stride`.
    unsafe fn transpose_rows<T: Real>(x: *const T, width: usize, size: [usize; 2], y: *mut T, stride: usize) {
        let [deep, columns] = size;
        let (whole_deep, whole_columns) = (deep / SIDE * SIDE, columns / SIDE * SIDE);
        for column in (0..whole_columns).step_by(SIDE) {
            for t in (0..whole_deep).step_by(SIDE) {
                let row = |i| x.add((t + i) * width + column).cast::<[T; SIDE]>().read_unaligned();
                let square = transposed([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)]);
                for (i, line) in square.into_iter().enumerate() {
                    y.add((column + i) * stride + t).cast::<[T; SIDE]>().write_unaligned(line);
                }
            }
        }
        for column in 0..columns {
            let done = if column < whole_columns { whole_deep } else { 0 };
            for t in done..deep {
                *y.add(column * stride + t) = *x.add(t * width + column);
            }
        }
    }

    /// The products of `dy` with the first N of `columns`, all of one length.
    unsafe fn dots<T: Real, const N: usize>(dy: &[T], columns: &[&[T]; TOGETHER], sums: &mut [T; TOGETHER]) {
        let mut lanes = [[T::ZERO; LANES]; N];
        let whole = dy.len() / LANES * LANES;
        for t in (0..whole).step_by(LANES) {
            let block = |x: &[T]| x.as_ptr().add(t).cast::<[T; LANES]>().read_unaligned();
            let dy = block(dy);
            for i in 0..N {
                let x = block(columns[i]);
                for l in 0..LANES {
                    lanes[i][l] = dy[l].mul_add(x[l], lanes[i][l]);
                }
            }
        }
        for i in 0..N {
            let rest = dy[whole..].iter().zip(&columns[i][whole..]);
            sums[i] = sum_lanes(lanes[i]) + rest.fold(T::ZERO, |sum, (&dy, &x)| dy.mul_add(x, sum));
        }
    }
}

/// The transpose of a square of rows, as the three steps that vector units do it in: pairs, quadruples, halves.
#[inline(always)]
fn transposed<T: Real>(rows: [[T; SIDE]; SIDE]) -> [[T; SIDE]; SIDE] {
    let [a, b, c, d, e, f, g, h] = rows;
    let low = |x: [T; 8], y: [T; 8]| [x[0], y[0], x[1], y[1], x[4], y[4], x[5], y[5]];
    let high = |x: [T; 8], y: [T; 8]| [x[2], y[2], x[3], y[3], x[6], y[6], x[7], y[7]];
    let (ab, ab2, cd, cd2) = (low(a, b), high(a, b), low(c, d), high(c, d));
    let (ef, ef2, gh, gh2) = (low(e, f), high(e, f), low(g, h), high(g, h));
    let first = |x: [T; 8], y: [T; 8]| [x[0], x[1], y[0], y[1], x[4], x[5], y[4], y[5]];
    let second = |x: [T; 8], y: [T; 8]| [x[2], x[3], y[2], y[3], x[6], x[7], y[6], y[7]];
    let (p0, p1, p2, p3) = (first(ab, cd), second(ab, cd), first(ab2, cd2), second(ab2, cd2));
    let (q0, q1, q2, q3) = (first(ef, gh), second(ef, gh), first(ef2, gh2), second(ef2, gh2));
    let lower = |x: [T; 8], y: [T; 8]| [x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]];
    let upper = |x: [T; 8], y: [T; 8]| [x[4], x[5], x[6], x[7], y[4], y[5], y[6], y[7]];
    [
        lower(p0, q0),
        lower(p1, q1),
        lower(p2, q2),
        lower(p3, q3),
        upper(p0, q0),
        upper(p1, q1),
        upper(p2, q2),
        upper(p3, q3),
    ]
}
