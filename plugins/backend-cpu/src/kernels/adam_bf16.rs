use super::adam::Rates;
use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Ptr};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use crate::simd::{BLOCK, load_block, simd, store_block};
use half::bf16;
use sparta_graph::ops::{AdamBf16, step};
use sparta_graph::philox4x32_10;

pub fn prepare<T: Real>(op: &AdamBf16, io: &Io) -> Result<Kernel, String> {
    let (p, m, v, grad) = (io.real::<T>(0)?, halves(io, 1)?, halves(io, 2)?, io.real::<T>(3)?);
    let (clip, step, rng, n) = (io.real::<T>(4)?, io.real::<T>(5)?, io.words(6)?, io.numel(0)?);
    let op = op.clone();
    Ok(Kernel::plain(move || {
        // SAFETY: `clip` has 2 elements, `step` `step::LEN`, `rng` 4.
        let (clip, step, key) = unsafe { (*clip.at(1), step.slice(0, step::LEN), [*rng.at(0), *rng.at(1)]) };
        if clip < T::ZERO {
            return;
        }
        let rates = Rates::new(&op.adam, clip, step);
        chunks(n, GRAIN, |c| {
            let draws = Draws { first: c.start as u32 / 4, salt: op.salt, key };
            // SAFETY: chunks of tensors of n elements; GRAIN is a multiple of 4.
            unsafe { update(c.len(), p.at(c.start), m.at(c.start), v.at(c.start), grad.at(c.start), &rates, &draws) }
        });
    }))
}

fn halves(io: &Io, i: usize) -> Result<Ptr<bf16>, String> {
    match io.floats::<f32>(i)? {
        Floats::Bf16(x) => Ok(x),
        _ => Err(format!("input {i} must be bf16")),
    }
}

/// Where the random words of a chunk begin.
struct Draws {
    /// The counter of the first element.
    first: u32,
    salt: u32,
    key: [u32; 2],
}

simd! {
    unsafe fn update<T: Real>(
        n: usize, p: *mut T, m: *mut bf16, v: *mut bf16, grad: *const T, rates: &Rates<T>, draws: &Draws,
    ) {
        let (m, v) = (m.cast::<u16>(), v.cast::<u16>());
        for start in (0..n).step_by(BLOCK) {
            let mut words = [[0; 4]; BLOCK / 4];
            for (g, word) in words.iter_mut().enumerate() {
                let counter = draws.first + (start / 4 + g) as u32;
                *word = philox4x32_10([counter, draws.salt, 1, 0], draws.key);
            }
            let words = words.as_flattened();
            let (mut ps, gs) = (load_block(p, start, n), load_block(grad, start, n));
            let (mut ms, mut vs) = (load_block(m, start, n), load_block(v, start, n));
            for l in 0..BLOCK {
                let (p, m, v) = rates.update(ps[l], wide(ms[l]), wide(vs[l]), gs[l]);
                (ps[l], ms[l], vs[l]) = (p, round(m, words[l] & 0xffff), round(v, words[l] >> 16));
            }
            store_block(p, start, n, &ps);
            store_block(m, start, n, &ms);
            store_block(v, start, n, &vs);
        }
    }
}

#[inline(always)]
fn wide<T: Real>(bits: u16) -> T {
    T::from_f32(f32::from_bits((bits as u32) << 16))
}

/// The bits of x as bf16, rounded up with a probability equal to the part cut off; `random` has 16 bits.
#[inline(always)]
fn round<T: Real>(x: T, random: u32) -> u16 {
    let bits = x.to_f32_odd().to_bits();
    let finite = bits & 0x7f80_0000 != 0x7f80_0000;
    let nan = u32::from(!finite && bits & 0x007f_ffff != 0) << 6;
    ((bits.wrapping_add(if finite { random } else { 0 })) >> 16 | nan) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, run};
    use sparta_graph::DType;
    use sparta_graph::ops::Adam;

    #[test]
    fn rounding_is_unbiased_and_keeps_what_bf16_holds() {
        for x in [0.0f32, -1.5, f32::INFINITY, 2f32.powi(-130)] {
            assert_eq!(round(x, 0xffff), bf16::from_f32(x).to_bits());
        }
        assert!(bf16::from_bits(round(f32::NAN, 0xffff)).is_nan());
        let x = -1.0f32 - 3.0 / 1024.0;
        let up = (0..1 << 16).filter(|&r| bf16::from_bits(round(x, r)).to_f32() != -1.0).count();
        assert_eq!(up, 3 << 13, "3/8 of a unit in the last place");
        assert_eq!(round(f64::from(x), 1 << 14), round(x, 1 << 14));
    }

    #[test]
    fn moments_stay_close_to_the_exact_ones() {
        let n = 40_001;
        let adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, lr_factor: 1.0 };
        let [p, m] = [1, 2].map(|seed| Tensor::random(DType::F32, &[n], seed));
        let [g, zeros] = [p.clone(), Tensor::f32(&[n], &vec![0.0; n])];
        let half = |t: &Tensor| Tensor::float(DType::BF16, &[n], &t.values());
        let clip = Tensor::f32(&[2], &[3.0, 1.0]);
        let step = Tensor::f32(&[8], &[0.01, 0.1, 0.001, 1.0, 0.0, 0.0, 0.0, 0.0]);
        let rng = Tensor::u32(&[4], &[11, 12, 13, 14]);
        let inputs = [p, half(&m), half(&zeros), g.clone(), clip, step, rng];
        let out = run::<f32>(AdamBf16 { adam, salt: 5 }, &inputs).unwrap();
        let error = |i: usize, exact: &dyn Fn(usize) -> f64| {
            let errors = (0..n).map(|l| (out[i][l] - exact(l)) / exact(l).abs().max(1e-9));
            let (sum, most) = errors.fold((0.0, 0.0f64), |(sum, most), e| (sum + e, most.max(e.abs())));
            (sum / n as f64, most)
        };
        let (m, g) = (inputs[1].values(), g.values());
        for (mean, most) in [error(1, &|l| 0.9 * m[l] + 0.1 * g[l]), error(2, &|l| 0.001 * g[l] * g[l])] {
            assert!(mean.abs() < 1e-4 && most < 2f64.powi(-7), "mean {mean:e}, largest {most:e}");
        }
    }
}
