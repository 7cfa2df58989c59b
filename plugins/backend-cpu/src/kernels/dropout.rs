use crate::bind::{Io, Kernel};
use crate::draw::threshold;
use crate::elementwise::elementwise;
use crate::real::Real;
use crate::simd::simd;
use sparta_graph::ops::Dropout;
use sparta_graph::philox4x32_10;

pub fn prepare<T: Real>(op: &Dropout, io: &Io) -> Result<Kernel, String> {
    let (x, rng, y, n) = (io.floats::<T>(0)?, io.words(1)?, io.float_output::<T>(0)?, io.numel(0)?);
    let (salt, dropped, keep) = (op.salt, threshold(op.p), T::ONE / (T::ONE - T::from_f32(op.p)));
    Ok(Kernel::plain(move || {
        // SAFETY: rng is u32 `[4]`.
        let key = unsafe { [*rng.at(0), *rng.at(1)] };
        // SAFETY: tensors of n elements; ranges start at multiples of 4.
        unsafe {
            elementwise(n, [x], [y], |r, [x], [y]| {
                apply(r.len(), x, y, r.start as u32 / 4, key, salt, dropped, keep);
            });
        }
    }))
}

/// Counters that are drawn together.
const GROUP: usize = 16;

simd! {
    /// `first` is the counter of the first element.
    unsafe fn apply<T: Real>(
        n: usize, x: *const T, y: *mut T, first: u32, key: [u32; 2], salt: u32, dropped: u32, keep: T,
    ) {
        for start in (0..n).step_by(4 * GROUP) {
            let mut draws = [[0; 4]; GROUP];
            for (g, draw) in draws.iter_mut().enumerate() {
                *draw = philox4x32_10([first + (start / 4 + g) as u32, salt, 0, 0], key);
            }
            for (l, draw) in draws.as_flattened().iter().enumerate().take(n - start) {
                let kept = if *draw < dropped { T::ZERO } else { keep };
                *y.add(start + l) = *x.add(start + l) * kept;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;

    #[test]
    fn drops_by_counter() {
        for n in [1, 5, 130, 40_000] {
            let (x, rng) = (Tensor::random(DType::F32, &[n], 1), Tensor::u32(&[4], &[11, 12, 13, 14]));
            let of = |(i, x): (usize, &f64)| {
                let draw = philox4x32_10([i as u32 / 4, 9, 0, 0], [11, 12])[i % 4];
                if (draw as f64) * 2f64.powi(-32) < 0.25 { 0.0 } else { x / 0.75 }
            };
            let expected = x.values().iter().enumerate().map(of).collect();
            check(Dropout { p: 0.25, salt: 9 }, &[x.clone(), rng.clone()], &[expected], 1e-6);
            check_bf16(Dropout { p: 0.25, salt: 9 }, &[x, rng], &[0], 1e-6);
        }
    }
}
