use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use crate::simd::{map, simd};
use sparta_graph::ops::{Adam, step};

pub fn prepare<T: Real>(op: &Adam, io: &Io) -> Result<Kernel, String> {
    let (p, m, v, grad) = (io.real::<T>(0)?, io.real::<T>(1)?, io.real::<T>(2)?, io.real::<T>(3)?);
    let (clip, step, n) = (io.real::<T>(4)?, io.real::<T>(5)?, io.numel(0)?);
    let op = op.clone();
    Ok(Kernel::plain(move || {
        // SAFETY: `clip` has 2 elements, `step` `step::LEN`.
        let (clip, step) = unsafe { (*clip.at(1), step.slice(0, step::LEN)) };
        if clip < T::ZERO {
            return;
        }
        let rates = Rates::new(&op, clip, step);
        chunks(n, GRAIN, |c| {
            // SAFETY: chunks of tensors of n elements.
            unsafe { update(c.len(), p.at(c.start), m.at(c.start), v.at(c.start), grad.at(c.start), &rates) }
        });
    }))
}

/// The numbers of one step.
pub struct Rates<T> {
    clip: T,
    beta1: T,
    beta2: T,
    eps: T,
    /// Learning rate times weight decay.
    decay: T,
    /// Learning rate over the bias correction of the first moment.
    rate: T,
    /// 1 over the bias correction of the second moment.
    unbias2: T,
}

impl<T: Real> Rates<T> {
    /// `step` has `step::LEN` elements.
    pub fn new(op: &Adam, clip: T, step: &[T]) -> Self {
        let lr = step[step::LR] * T::from_f32(op.lr_factor);
        Rates {
            clip,
            beta1: T::from_f32(op.beta1),
            beta2: T::from_f32(op.beta2),
            eps: T::from_f32(op.eps),
            decay: lr * T::from_f32(op.weight_decay),
            rate: lr / step[Adam::BIAS_1],
            unbias2: T::ONE / step[Adam::BIAS_2],
        }
    }

    /// The new value and moments.
    #[inline(always)]
    pub fn update(&self, p: T, m: T, v: T, grad: T) -> (T, T, T) {
        let g = self.clip * grad;
        let m = self.beta1 * m + (T::ONE - self.beta1) * g;
        let v = self.beta2 * v + (T::ONE - self.beta2) * g * g;
        (p - self.decay * p - self.rate * m / ((v * self.unbias2).sqrt() + self.eps), m, v)
    }
}

simd! {
    unsafe fn update<T: Real>(n: usize, p: *mut T, m: *mut T, v: *mut T, grad: *const T, rates: &Rates<T>) {
        let Rates { clip, beta1, beta2, eps, decay, rate, unbias2 } = *rates;
        let rates = Rates { clip, beta1, beta2, eps, decay, rate, unbias2 };
        let (p_out, m_out, v_out) = (p, m, v);
        map!(n, |p, m, v, grad| -> p_out, m_out, v_out { rates.update(p, m, v, grad) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check};
    use sparta_graph::DType;

    #[test]
    fn one_step() {
        let n = 40_001;
        let op = Adam { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1, lr_factor: 0.5 };
        let [p, m, v, g] = [1, 2, 3, 4].map(|seed| Tensor::random(DType::F32, &[n], seed));
        let v = Tensor::f32(&[n], &v.values().iter().map(|v| v.abs()).collect::<Vec<_>>());
        let clip = Tensor::f32(&[2], &[3.0, 0.5]);
        let step = Tensor::f32(&[8], &[0.01, 0.19, 0.0199, 1.0, 0.0, 0.0, 0.0, 0.0]);
        let (b1, b2, eps, decay) = (op.beta1 as f64, op.beta2 as f64, op.eps as f64, op.weight_decay as f64);
        let [lr, bias1, bias2] = [0, 1, 2].map(|i| step.values()[i]);
        let lr = 0.5 * lr;
        let mut expected = [p.values(), m.values(), v.values()];
        for (i, g) in g.values().iter().enumerate() {
            let g = 0.5 * g;
            expected[1][i] = b1 * expected[1][i] + (1.0 - b1) * g;
            expected[2][i] = b2 * expected[2][i] + (1.0 - b2) * g * g;
            let update = (expected[1][i] / bias1) / ((expected[2][i] / bias2).sqrt() + eps);
            expected[0][i] -= lr * decay * expected[0][i] + lr * update;
        }
        let inputs = [p, m, v, g, clip, step];
        check(op.clone(), &inputs, &expected, 1e-6);
        let mut skipped = inputs;
        skipped[4] = Tensor::f32(&[2], &[f64::NAN, -1.0]);
        let unchanged = [0, 1, 2].map(|i: usize| skipped[i].values());
        check(op, &skipped, &unchanged, 0.0);
    }
}
