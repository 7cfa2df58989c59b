//! Operands of bf16, held as pairs of rows: products as in [`crate::product`], with its instructions.

use super::{LANES, Lines, TOGETHER};
use crate::memory::Ptr;
use crate::product::{Operand, Output, Product, Source, Unit, for_units, lines};
use half::bf16;

#[derive(Clone, Copy)]
pub struct Pairs {
    pub dy: Ptr<bf16>,
    pub x: Ptr<bf16>,
    pub unit: Unit,
}

impl Pairs {
    /// # Safety
    /// As for [`Lines::lines_of_dy`].
    unsafe fn transpose(&self, x: *const bf16, stride: usize, [deep, columns]: [usize; 2], to: Ptr<u32>) {
        let source = Source { at: x.cast(), stride, along_k: false, k: deep };
        // SAFETY: the caller vouches for it.
        unsafe { lines(self.unit, source, columns, to.at(0), self.line(deep)) }
    }
}

impl Lines<f32> for Pairs {
    /// A pair of rows.
    type Element = u32;

    fn line(&self, deep: usize) -> usize {
        deep.div_ceil(2).next_multiple_of(LANES)
    }

    fn strip(&self, _: usize) -> usize {
        0
    }

    unsafe fn lines_of_dy(&self, at: usize, width: usize, size: [usize; 2], to: Ptr<u32>, _: Ptr<u32>) {
        // SAFETY: the caller vouches for it.
        unsafe { self.transpose(self.dy.at(at), width, size, to) }
    }

    unsafe fn lines_of_x(&self, at: usize, width: usize, size: [usize; 2], to: Ptr<u32>, _: Ptr<u32>) {
        // SAFETY: the caller vouches for it.
        unsafe { self.transpose(self.x.at(at), width, size, to) }
    }

    fn dots(&self, dy: &[u32], columns: &[&[u32]]) -> [f32; TOGETHER] {
        let mut lines = [dy; TOGETHER];
        lines[..columns.len()].copy_from_slice(columns);
        // SAFETY: the lines have one length, a multiple of LANES, and the unit is one of this processor.
        unsafe {
            match columns.len() {
                1 => dots::<1>(self.unit, dy, &lines),
                _ => dots::<TOGETHER>(self.unit, dy, &lines),
            }
        }
    }

    fn tile_scratch(&self, size: [usize; 3]) -> usize {
        let nowhere = Operand::across_k(self.dy, 0);
        self.product(size, nowhere, nowhere, Ptr::new(std::ptr::null_mut())).scratch()
    }

    unsafe fn tile(
        &self,
        size: [usize; 3],
        [dy, x]: [usize; 2],
        widths: [usize; 2],
        scale: f32,
        to: Ptr<f32>,
        scratch: Ptr<u8>,
    ) {
        let dy = Operand::across_k(Ptr::new(self.dy.at(dy)), widths[0]);
        let x = Operand::across_k(Ptr::new(self.x.at(x)), widths[1]);
        let product = Product { scale, ..self.product(size, dy, x, to) };
        // SAFETY: the caller vouches for it.
        unsafe { product.run(Ptr::new(scratch.at(0).cast()), false) }
    }
}

impl Pairs {
    fn product(&self, [t, rows, columns]: [usize; 3], dy: Operand, x: Operand, to: Ptr<f32>) -> Product {
        Product { unit: self.unit, ..Product::new([rows, columns, t], dy, x, Output::F32(to)) }
    }
}

for_units! {
    /// The products of `dy` with the first N of `columns`.
    ///
    /// # Safety
    /// All lines have one length, a multiple of [`LANES`], and the unit is one of this processor.
    unsafe fn dots<S, const N: usize>(dy: &[u32], columns: &[&[u32]; TOGETHER]) -> [f32; TOGETHER] {
        let mut lanes = [[S::zero(); LANES / 8]; N];
        for at in (0..dy.len()).step_by(LANES) {
            for part in 0..LANES / S::LANES {
                let at = at + part * S::LANES;
                let dy = S::pairs(dy.as_ptr().add(at));
                for i in 0..N {
                    lanes[i][part] = S::dot(lanes[i][part], dy, S::pairs(columns[i].as_ptr().add(at)));
                }
            }
        }
        let mut sums = [0.0; TOGETHER];
        for i in 0..N {
            let mut stored = [0.0; LANES];
            for part in 0..LANES / S::LANES {
                S::store(stored.as_mut_ptr().add(part * S::LANES), lanes[i][part]);
            }
            sums[i] = sum(stored);
        }
        sums
    }
}

/// The sum of the lanes, pairwise.
#[inline(always)]
fn sum(lanes: [f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|l| lanes[l] + lanes[l + 8]);
    let four: [f32; 4] = std::array::from_fn(|l| eight[l] + eight[l + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
