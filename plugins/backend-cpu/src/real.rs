//! The number type of the arithmetic: f32, or f64 for the reference.

use crate::memory::Floats;
use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// What the kernels need from a float type.
///
/// The elementwise functions of f32 are branch-free, so that loops over them vectorise; fused multiply-add is always
/// one rounding, so that every instruction set gives the same bits.
pub trait Real:
    bytemuck::Pod
    + Send
    + Sync
    + Debug
    + Display
    + PartialOrd
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Sum
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;

    fn from_f32(x: f32) -> Self;
    fn from_f64(x: f64) -> Self;
    fn to_f64(self) -> f64;
    /// Rounded to odd if f32 cannot hold the number, so that rounding again to 16 bits gives the nearest.
    fn to_f32_odd(self) -> f32;
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The tensor itself, if the number type is f32.
    fn single(tensor: Floats<Self>) -> Option<Floats<f32>>;
    fn sqrt(self) -> Self;
    fn ln(self) -> Self;
    /// `ln(1 + x)`
    fn ln_1p(self) -> Self;
    fn exp(self) -> Self;
    fn tanh(self) -> Self;
    /// To the nearest whole number, ties to even.
    fn round(self) -> Self;

    /// `c = read * c + scale * a b` of an `m x n` and depth `k` product; (column, row) strides in elements.
    ///
    /// # Safety
    /// The pointers and strides describe matrices inside live allocations, and `c` overlaps neither `a` nor `b`.
    unsafe fn gemm(size: [usize; 3], c: Matrix<*mut Self>, read: bool, a: Operand<Self>, b: Operand<Self>, scale: Self);

    /// The larger number; `other` when either is NaN.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }

    /// `1 / (1 + exp(-x))`
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }

    /// The sigmoid of x and that of -x, neither by subtraction from 1.
    #[inline(always)]
    fn sigmoids(self) -> (Self, Self) {
        let negative = self < Self::ZERO;
        let e = (if negative { self } else { -self }).exp();
        let large = Self::ONE / (Self::ONE + e);
        if negative { (e * large, large) } else { (large, e * large) }
    }
}

/// A pointer to element (0, 0), with the distances between rows and between columns in elements.
#[derive(Clone, Copy)]
pub struct Matrix<P> {
    pub at: P,
    pub row: usize,
    pub column: usize,
}

impl<P> Matrix<P> {
    /// Row-major with rows `row` elements apart.
    pub fn rows(at: P, row: usize) -> Self {
        Matrix { at, row, column: 1 }
    }

    /// The transpose of [`Matrix::rows`].
    pub fn columns(at: P, column: usize) -> Self {
        Matrix { at, row: 1, column }
    }

    pub fn transposed(self) -> Self {
        Matrix { at: self.at, row: self.column, column: self.row }
    }
}

pub type Operand<T> = Matrix<*const T>;

macro_rules! gemm {
    () => {
        #[inline]
        unsafe fn gemm(
            [m, n, k]: [usize; 3],
            c: Matrix<*mut Self>,
            read: bool,
            a: Operand<Self>,
            b: Operand<Self>,
            scale: Self,
        ) {
            let stride = |s: usize| s as isize;
            // SAFETY: the caller vouches for the matrices.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    c.at,
                    stride(c.column),
                    stride(c.row),
                    read,
                    a.at,
                    stride(a.column),
                    stride(a.row),
                    b.at,
                    stride(b.column),
                    stride(b.row),
                    1.0,
                    scale,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                )
            }
        }
    };
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn from_f64(x: f64) -> f32 {
        x as f32
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }

    #[inline(always)]
    fn to_f32_odd(self) -> f32 {
        self
    }

    #[inline(always)]
    fn mul_add(self, factor: f32, addend: f32) -> f32 {
        f32::mul_add(self, factor, addend)
    }

    fn single(tensor: Floats<f32>) -> Option<Floats<f32>> {
        Some(tensor)
    }

    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    fn ln(self) -> f32 {
        f32::ln(self)
    }

    fn ln_1p(self) -> f32 {
        f32::ln_1p(self)
    }

    #[inline(always)]
    fn exp(self) -> f32 {
        // Below -104 the result is 0, above 89 infinite; NaN passes both comparisons.
        let x = if self < -104.0 { -104.0 } else { self };
        let x = if x > 89.0 { 89.0 } else { x };
        let (power, p) = reduced_expm1(x);
        // 2^power in two factors, so that neither leaves the range of normal numbers.
        let half = power >> 1;
        (p + 1.0) * power_of_two(half) * power_of_two(power - half)
    }

    #[inline(always)]
    fn round(self) -> f32 {
        self.round_ties_even()
    }
    #[inline(always)]
    fn tanh(self) -> f32 {
        // (e - 1) / (e + 1) with e = exp(2 |x|), by e - 1, so that nothing cancels near 0.
        let double = 2.0 * self.abs();
        let double = if double > 20.0 { 20.0 } else { double };
        let (power, p) = reduced_expm1(double);
        let scale = power_of_two(power);
        let e1 = scale.mul_add(p, scale - 1.0);
        (e1 / (e1 + 2.0)).copysign(self)
    }

    gemm!();
}

/// (n, exp(r) - 1) with `x = n ln 2 + r`, |r| <= ln 2 / 2; the polynomial is that of SLEEF's `expf` (1 ulp).
#[inline(always)]
fn reduced_expm1(x: f32) -> (i32, f32) {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_145_75, x);
    let r = n.mul_add(-1.428_606_8e-6, r);
    let p = 0.000_198_527_62_f32;
    let p = p.mul_add(r, 0.001_393_043_6);
    let p = p.mul_add(r, 0.008_333_361);
    let p = p.mul_add(r, 0.041_666_485);
    let p = p.mul_add(r, 0.166_666_67);
    let p = p.mul_add(r, 0.5);
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    (power, (r * r).mul_add(p, r))
}

/// 2^n for n in -126..=127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;

    #[inline(always)]
    fn from_f32(x: f32) -> f64 {
        x as f64
    }

    #[inline(always)]
    fn from_f64(x: f64) -> f64 {
        x
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    fn to_f32_odd(self) -> f32 {
        let nearest = self as f32;
        if nearest as f64 == self || !nearest.is_finite() {
            return nearest;
        }
        let away = (nearest as f64).abs() > self.abs();
        f32::from_bits((nearest.to_bits() - u32::from(away)) | 1)
    }

    #[inline(always)]
    fn mul_add(self, factor: f64, addend: f64) -> f64 {
        f64::mul_add(self, factor, addend)
    }

    fn single(_: Floats<f64>) -> Option<Floats<f32>> {
        None
    }

    #[inline(always)]
    fn round(self) -> f64 {
        self.round_ties_even()
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    fn ln(self) -> f64 {
        f64::ln(self)
    }

    fn ln_1p(self) -> f64 {
        f64::ln_1p(self)
    }

    fn exp(self) -> f64 {
        f64::exp(self)
    }

    fn tanh(self) -> f64 {
        f64::tanh(self)
    }

    gemm!();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the f32 nearest to `exact`.
    fn ulps(got: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        if got == nearest {
            return 0.0;
        }
        let spacing = (f32::from_bits(nearest.abs().to_bits() + 1) - nearest.abs()) as f64;
        (got as f64 - exact).abs() / spacing
    }

    #[test]
    fn exp_is_within_two_ulps_over_the_whole_range() {
        let worst = (-1_040_000..=887_000).map(|i| i as f32 * 1e-4).map(|x| ulps(Real::exp(x), (x as f64).exp()));
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 2.0, "{worst} ulps");
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(Real::exp(0.0f32), 1.0);
        assert!(Real::exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_three_ulps() {
        let tiny = (-149..0).map(|e| 2f32.powi(e) * 1.37);
        let points = (-120_000..=120_000).map(|i| i as f32 * 1e-4).chain(tiny);
        let worst = points.map(|x| ulps(Real::tanh(x), (x as f64).tanh())).fold(0.0, f64::max);
        assert!(worst < 3.0, "{worst} ulps");
        assert_eq!(Real::tanh(f32::INFINITY), 1.0);
        assert_eq!(Real::tanh(f32::NEG_INFINITY), -1.0);
        assert!(Real::tanh(f32::NAN).is_nan());
    }

    #[test]
    fn rounding_f64_to_bf16_rounds_once() {
        // Just above the middle of two bf16 numbers: f32 in between would land on the tie and go to even.
        let middle = 1.0 + 2f64.powi(-8);
        let above = middle + 2f64.powi(-40);
        assert_eq!(half::bf16::from_f32(Real::to_f32_odd(middle)).to_f64(), 1.0);
        assert_eq!(half::bf16::from_f32(Real::to_f32_odd(above)).to_f64(), 1.0 + 2f64.powi(-7));
        assert_eq!(half::bf16::from_f32(Real::to_f32_odd(-above)).to_f64(), -1.0 - 2f64.powi(-7));
    }
}
