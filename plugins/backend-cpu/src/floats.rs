//! Conversion between stored float types and the number type.

use crate::memory::Floats;
use crate::real::Real;
use crate::simd::{map, simd};
use half::{bf16, f16};

impl<T: Real> Floats<T> {
    /// Converts elements `start .. start + n` into `out`.
    ///
    /// # Safety
    /// The elements are in the tensor, `out` has room for them, and nothing else writes either concurrently.
    pub unsafe fn load(self, start: usize, n: usize, out: *mut T) {
        // SAFETY: the caller vouches for it.
        unsafe {
            match self {
                Floats::Full(x) => std::ptr::copy(x.at(start), out, n),
                Floats::Bf16(x) => from_bf16(n, x.at(start).cast(), out),
                Floats::F16(x) => from_f16(n, x.at(start).cast(), out),
            }
        }
    }

    /// Rounds n numbers into elements `start .. start + n`.
    ///
    /// # Safety
    /// As for [`Floats::load`].
    pub unsafe fn store(self, start: usize, n: usize, x: *const T) {
        // SAFETY: the caller vouches for it.
        unsafe {
            match self {
                Floats::Full(y) => std::ptr::copy(x, y.at(start), n),
                Floats::Bf16(y) => to_bf16(n, x, y.at(start).cast()),
                Floats::F16(_) => (0..n).for_each(|i| self.set(start + i, *x.add(i))),
            }
        }
    }

    /// Whether the elements lie in memory as numbers, so that kernels work on them in place.
    #[inline(always)]
    pub fn is_full(self) -> bool {
        matches!(self, Floats::Full(_))
    }

    /// Elements `start .. start + n` as numbers: where they lie, or converted into `buffer`.
    ///
    /// # Safety
    /// As for [`Floats::load`], if the tensor does not hold numbers.
    #[inline(always)]
    pub unsafe fn read(self, start: usize, n: usize, buffer: *mut T) -> *const T {
        if let Floats::Full(x) = self {
            return x.at(start);
        }
        // SAFETY: the caller vouches for it.
        unsafe { self.load(start, n, buffer) };
        buffer
    }

    /// Where a kernel writes the numbers from element `start` on: straight to their place, or to `buffer`, from which
    /// [`Floats::finish`] stores them.
    #[inline(always)]
    pub fn target(self, start: usize, buffer: *mut T) -> *mut T {
        match self {
            Floats::Full(y) => y.at(start),
            Floats::Bf16(_) | Floats::F16(_) => buffer,
        }
    }

    /// Stores n numbers that a kernel has put at [`Floats::target`].
    ///
    /// # Safety
    /// As for [`Floats::load`]; `start` is that of the target.
    #[inline(always)]
    pub unsafe fn finish(self, start: usize, n: usize, target: *const T) {
        if !self.is_full() {
            // SAFETY: the caller vouches for it.
            unsafe { self.store(start, n, target) };
        }
    }

    /// Element i.
    ///
    /// # Safety
    /// Element i is in the tensor, and nothing else writes it concurrently.
    #[inline(always)]
    pub unsafe fn get(self, i: usize) -> T {
        // SAFETY: the caller vouches for it.
        unsafe {
            match self {
                Floats::Full(x) => *x.at(i),
                Floats::Bf16(x) => T::from_f32((*x.at(i)).to_f32()),
                Floats::F16(x) => T::from_f32((*x.at(i)).to_f32()),
            }
        }
    }

    /// Rounds x into element i: to nearest, ties to even.
    ///
    /// # Safety
    /// Element i is in the tensor, and nothing else reads or writes it concurrently.
    #[inline(always)]
    pub unsafe fn set(self, i: usize, x: T) {
        // SAFETY: the caller vouches for it.
        unsafe {
            match self {
                Floats::Full(y) => *y.at(i) = x,
                Floats::Bf16(y) => *y.at(i) = bf16::from_f32(x.to_f32_odd()),
                Floats::F16(y) => *y.at(i) = f16::from_f32(x.to_f32_odd()),
            }
        }
    }
}

simd! {
    unsafe fn from_bf16<T: Real>(n: usize, x: *const u16, y: *mut T) {
        map!(n, |x| -> y { T::from_f32(f32::from_bits((x as u32) << 16)) })
    }

    unsafe fn to_bf16<T: Real>(n: usize, x: *const T, y: *mut u16) {
        map!(n, |x| -> y { bf16_bits(x.to_f32_odd()) })
    }

    unsafe fn from_f16<T: Real>(n: usize, x: *const u16, y: *mut T) {
        map!(n, |x| -> y { T::from_f32(f16_to_f32(x)) })
    }
}

/// The nearest bf16, ties to even, without branches: the increment carries into the exponent where it must. NaN stays
/// NaN.
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits >> 16 | 0x40;
    (if x.is_nan() { nan } else { rounded }) as u16
}

/// Exact, without branches.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let bits = bits as u32;
    // Exponent and mantissa moved into place are the number divided by 2^112, subnormal ones included.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let infinite = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | infinite | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Ptr;

    #[test]
    fn rounding_to_bf16_is_that_of_the_half_crate() {
        // All upper halves, with lower halves around the ties.
        let lows = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        for bits in (0..=u16::MAX).flat_map(|high| lows.map(|low| u32::from(high) << 16 | low)) {
            let x = f32::from_bits(bits);
            assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn every_16_bit_float_converts_exactly_and_back() {
        let mut bits: Vec<u16> = (0..=u16::MAX).collect();
        let n = bits.len();
        let at = bits.as_mut_ptr();
        for (tensor, exact) in [
            (Floats::<f64>::Bf16(Ptr::new(at.cast())), (|b| bf16::from_bits(b).to_f64()) as fn(u16) -> f64),
            (Floats::F16(Ptr::new(at.cast())), |b| f16::from_bits(b).to_f64()),
        ] {
            let mut out = vec![0.0; n];
            // SAFETY: both have n elements.
            unsafe { tensor.load(0, n, out.as_mut_ptr()) };
            for (b, &x) in (0..=u16::MAX).zip(&out) {
                assert!(x == exact(b) || x.is_nan() && exact(b).is_nan(), "{b:#x}: {x}");
            }
            let finite: Vec<usize> = (0..n).filter(|&i| !out[i].is_nan()).collect();
            for i in finite {
                // SAFETY: i is below n.
                unsafe { tensor.set(i, out[i]) };
            }
        }
        assert!((0..=u16::MAX).eq(bits.iter().copied()));
    }
}
