//! Products of a few rows, `c = scale * a b + bias + residual`, where the columns of b are contiguous: b is nearly all
//! there is to read, and each of its elements is needed once. An element of c is a dot product over k in
//! [`LANES`] sums, whose halves are added until one is left: the same bits with every instruction set and any number of
//! threads.

use crate::bind::Kernel;
use crate::memory::{Floats, Need, Ptr};
use crate::parallel::chunks;
use crate::product::{Isa, Unit, for_units};
use crate::simd::LANES;
use std::ops::Range;

/// The most rows: beyond them tiles, which read b into registers once for more rows, are faster.
pub const ROWS: usize = 4;
/// Approximate bytes of b in one piece of work.
const PIECE: usize = 96 << 10;
/// Vectors of the narrowest instruction set that hold the sums of an element.
const VECTORS: usize = LANES / 8;

/// A product with its operands: a `[m, k]`, b `[n, k]`, c and the residual `[m, n]`, the bias `[n]`, with m up to
/// [`ROWS`].
#[derive(Clone, Copy)]
pub struct FewRows {
    /// m, n, k
    pub size: [usize; 3],
    pub scale: f32,
    pub a: Floats<f32>,
    pub b: Floats<f32>,
    pub c: Floats<f32>,
    pub bias: Option<Floats<f32>>,
    /// May share the memory of c.
    pub residual: Option<Floats<f32>>,
}

impl FewRows {
    pub fn kernel(self) -> Kernel {
        let ([m, n, k], unit) = (self.size, Unit::best());
        let columns = PIECE.div_ceil(self.b.bytes(k).max(1));
        let need = Need { shared: if self.a.is_full() { 0 } else { m * k * size_of::<f32>() }, per_thread: 0 };
        Kernel::new(need, move |scratch| {
            // SAFETY: a has m * k elements, and so has the scratch memory if they must be converted.
            let a = Ptr::new(unsafe { self.a.read(0, m * k, scratch.shared::<f32>().at(0)) }.cast_mut());
            chunks(n, columns, |columns| {
                // SAFETY: the operands are those of the op, dense and checked; each piece writes its own columns.
                unsafe {
                    match m {
                        1 => multiply::<1>(unit, &self, a, columns),
                        2 => multiply::<2>(unit, &self, a, columns),
                        3 => multiply::<3>(unit, &self, a, columns),
                        _ => multiply::<ROWS>(unit, &self, a, columns),
                    }
                }
            });
            Ok(())
        })
    }

    /// Writes element (row, column) from its sum over k.
    ///
    /// # Safety
    /// It lies in c, which nothing else writes concurrently.
    #[inline(always)]
    unsafe fn finish(&self, row: usize, column: usize, sum: f32) {
        let at = row * self.size[1] + column;
        // SAFETY: the bias has an element per column, the residual one for each of c.
        unsafe {
            let added = [self.bias.map(|bias| bias.get(column)), self.residual.map(|residual| residual.get(at))];
            self.c.set(at, added.into_iter().flatten().fold(self.scale * sum, |sum, x| sum + x));
        }
    }
}

for_units! {
    /// # Safety
    /// The operands have the sizes that the product says, `a` those of `[M, k]`; nothing else writes these columns of
    /// c.
    unsafe fn multiply<S, const M: usize>(product: &FewRows, a: Ptr<f32>, columns: Range<usize>) {
        match product.b {
            Floats::Full(b) => sweep::<S, f32, M>(product, a, b.at(0), columns),
            Floats::Bf16(b) => sweep::<S, half::bf16, M>(product, a, b.at(0), columns),
            Floats::F16(b) => sweep::<S, half::f16, M>(product, a, b.at(0), columns),
        }
    }
}

/// How an element of b becomes f32.
trait Element: Copy {
    /// # Safety
    /// `at` points to a whole vector, and the processor has the instructions of `S`.
    unsafe fn vector<S: Isa>(at: *const Self) -> S::Vector;
    fn number(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn vector<S: Isa>(at: *const f32) -> S::Vector {
        // SAFETY: the caller vouches for it.
        unsafe { S::load(at) }
    }

    #[inline(always)]
    fn number(self) -> f32 {
        self
    }
}

impl Element for half::bf16 {
    #[inline(always)]
    unsafe fn vector<S: Isa>(at: *const half::bf16) -> S::Vector {
        // SAFETY: as above.
        unsafe { S::load_bf16(at.cast()) }
    }

    #[inline(always)]
    fn number(self) -> f32 {
        self.to_f32()
    }
}

impl Element for half::f16 {
    #[inline(always)]
    unsafe fn vector<S: Isa>(at: *const half::f16) -> S::Vector {
        // SAFETY: as above.
        unsafe { S::load_f16(at.cast()) }
    }

    #[inline(always)]
    fn number(self) -> f32 {
        self.to_f32()
    }
}

/// # Safety
/// As for [`multiply`]; the processor has the instructions of `S`.
#[inline(always)]
unsafe fn sweep<S: Isa, B: Element, const M: usize>(
    product: &FewRows,
    a: Ptr<f32>,
    b: *const B,
    columns: Range<usize>,
) {
    let k = product.size[2];
    // One column after the other: the processor fetches one stream of b ahead, not several.
    for column in columns {
        // SAFETY: the caller vouches for the operands.
        unsafe {
            for (row, sum) in dots::<S, B, M>(k, a.at(0), b.add(column * k)).into_iter().enumerate() {
                product.finish(row, column, sum);
            }
        }
    }
}

/// The dot products of M rows of a, k elements apart, with a column of b.
///
/// # Safety
/// Rows and column have k elements, and the processor has the instructions of `S`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Counted loops are what the compiler unrolls.
unsafe fn dots<S: Isa, B: Element, const M: usize>(k: usize, a: *const f32, b: *const B) -> [f32; M] {
    let whole = k / LANES * LANES;
    // SAFETY: the caller vouches for the operands; vectors end at `whole`.
    unsafe {
        let mut lanes = [[S::zero(); VECTORS]; M];
        for at in (0..whole).step_by(LANES) {
            for v in 0..LANES / S::LANES {
                let at = at + v * S::LANES;
                let column = B::vector::<S>(b.add(at));
                for r in 0..M {
                    lanes[r][v] = S::multiply_add(S::load(a.add(r * k + at)), column, lanes[r][v]);
                }
            }
        }
        let mut sums = [0.0; M];
        for r in 0..M {
            let mut vectors = LANES / S::LANES;
            while vectors > 1 {
                vectors /= 2;
                for v in 0..vectors {
                    lanes[r][v] = S::add(lanes[r][v], lanes[r][v + vectors]);
                }
            }
            let mut rest = 0.0;
            for at in whole..k {
                rest = f32::mul_add(*a.add(r * k + at), (*b.add(at)).number(), rest);
            }
            sums[r] = S::sum(lanes[r][0]) + rest;
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;
    use half::{bf16, f16};

    /// Every unit gives the bits of plain code, for each type of b, whole vectors and remainders.
    #[test]
    fn every_unit_has_the_same_bits() {
        for [n, k] in [[1, 1], [2, 31], [3, 32], [5, 97], [7, 640]] {
            let floats = |n, seed| random(n, seed).into_iter().map(|x| x as f32).collect::<Vec<_>>();
            let (a, b) = (floats(ROWS * k, 1), floats(n * k, 2));
            let (brain, half): (Vec<bf16>, Vec<f16>) = b.iter().map(|&x| (bf16::from_f32(x), f16::from_f32(x))).unzip();
            let at = |x: &[f32]| Ptr::new(x.as_ptr().cast_mut());
            let types = [
                Floats::Full(at(&b)),
                Floats::Bf16(Ptr::new(brain.as_ptr().cast_mut())),
                Floats::F16(Ptr::new(half.as_ptr().cast_mut())),
            ];
            for (of, b) in types.into_iter().enumerate() {
                let results: Vec<Vec<u32>> = Unit::all()
                    .map(|unit| {
                        let mut c = vec![f32::NAN; ROWS * n];
                        let product = FewRows {
                            size: [ROWS, n, k],
                            scale: 0.7,
                            a: Floats::Full(at(&a)),
                            b,
                            c: Floats::Full(Ptr::new(c.as_mut_ptr())),
                            bias: None,
                            residual: None,
                        };
                        // SAFETY: the operands have these sizes and outlive the call.
                        unsafe { multiply::<ROWS>(unit, &product, at(&a), 0..n) };
                        c.into_iter().map(f32::to_bits).collect()
                    })
                    .collect();
                assert!(results.iter().all(|bits| *bits == results[0]), "type {of} of b, {n} columns of {k}");
            }
        }
    }
}
