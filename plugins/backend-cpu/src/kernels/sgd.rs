use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use crate::simd::{map, simd};
use sparta_graph::ops::{Sgd, step};

pub fn prepare<T: Real>(op: &Sgd, io: &Io) -> Result<Kernel, String> {
    let (p, grad, clip, step) = (io.real::<T>(0)?, io.real::<T>(1)?, io.real::<T>(2)?, io.real::<T>(3)?);
    let state = if io.inputs() > 4 { Some(io.real::<T>(4)?) } else { None };
    let (op, n) = (op.clone(), io.numel(0)?);
    Ok(Kernel::plain(move || {
        // SAFETY: `clip` has 2 elements, `step` `step::LEN`.
        let (clip, step) = unsafe { (*clip.at(1), step.slice(0, step::LEN)) };
        if clip < T::ZERO {
            return;
        }
        let lr = step[step::LR] * T::from_f32(op.lr_factor);
        let [momentum, decay] = [op.momentum, op.weight_decay].map(T::from_f32);
        // SAFETY: chunks of tensors of n elements.
        chunks(n, GRAIN, |c| unsafe {
            let (p, grad) = (p.at(c.start), grad.at(c.start));
            match state {
                Some(b) => with_momentum(c.len(), p, b.at(c.start), grad, clip, momentum, decay, lr),
                None => plain(c.len(), p, grad, clip, decay, lr),
            }
        });
    }))
}

simd! {
    unsafe fn with_momentum<T: Real>(
        n: usize, p: *mut T, b: *mut T, grad: *const T, clip: T, momentum: T, decay: T, lr: T,
    ) {
        let (p_out, b_out) = (p, b);
        map!(n, |p, b, grad| -> p_out, b_out {
            let b = momentum * b + (clip * grad + decay * p);
            (p - lr * b, b)
        })
    }

    unsafe fn plain<T: Real>(n: usize, p: *mut T, grad: *const T, clip: T, decay: T, lr: T) {
        let p_out = p;
        map!(n, |p, grad| -> p_out { p - lr * (clip * grad + decay * p) })
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
        let [p, b, g] = [1, 2, 3].map(|seed| Tensor::random(DType::F32, &[n], seed));
        let (clip, stopped) = (Tensor::f32(&[2], &[3.0, 0.5]), Tensor::f32(&[2], &[3.0, -1.0]));
        let step = Tensor::f32(&[8], &[0.25, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        for momentum in [0.0, 0.75] {
            let op = Sgd { momentum, weight_decay: 0.125, lr_factor: 0.5 };
            let terms = p.values().into_iter().zip(b.values()).zip(g.values());
            let (mut ps, mut bs) = (vec![], vec![]);
            for ((p, b), g) in terms {
                bs.push(f64::from(momentum) * b + 0.5 * g + 0.125 * p);
                ps.push(p - 0.125 * bs[bs.len() - 1]);
            }
            let mut inputs = vec![p.clone(), g.clone(), clip.clone(), step.clone()];
            inputs.extend((momentum > 0.0).then(|| b.clone()));
            let states = 1 + usize::from(momentum > 0.0);
            check(op.clone(), &inputs, &[ps, bs][..states], 1e-6);
            inputs[2] = stopped.clone();
            check(op, &inputs, &[p.values(), b.values()][..states], 0.0);
        }
    }
}
