//! AdamW, gradient norms, clipping and accumulation.

use super::case::Case;
use super::naive;
use sparta_graph::ops::{Accumulate, Adam, ClipCoef, PARTIALS, SumOfSquares, step};

const ADAM: Adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (i, n) in [0, 1, 2, 7, 33, 65, 257, 4099].into_iter().enumerate() {
        cases.push(adam(n, Adam { weight_decay: [0.0, 0.1][i % 2], ..ADAM }, 1 + i % 4));
        cases.push(accumulate(n));
    }
    cases.push(adam(50, Adam { beta1: 0.0, beta2: 0.5, eps: 1e-3, weight_decay: 0.01 }, 6));
    cases.push(zero_gradients());
    cases.push(not_finite());
    for (i, lengths) in
        [vec![1], vec![63, 64, 65], vec![0, 3], vec![4099, 1, 257], vec![100_003]].into_iter().enumerate()
    {
        for max_norm in [None, Some(1.0), Some(1e4)] {
            cases.push(clip(lengths.clone(), max_norm, i));
        }
    }
    cases.push(clip_of_nothing());
    cases.push(many_tensors());
    cases
}

/// Several steps in one plan, each with its own gradient, clip factor and scalars.
fn adam(n: usize, op: Adam, steps: usize) -> Case {
    Case::new(format!("{op:?} {n} elements, {steps} steps"), move |b| {
        let p = b.normal(&[n]);
        let (m, v) = (b.zeros(&[n]), b.zeros(&[n]));
        let [mut ps, mut ms, mut vs] = [p, m, v].map(|x| b.of(x));
        for t in 1..=steps {
            let grad = b.normal(&[n]);
            let clip = b.f32s(&[2], vec![123.0, 1.0 / t as f64]);
            let bias = [op.beta1, op.beta2].map(|beta| 1.0 - f64::from(beta).powi(t as i32));
            let scalars = [(step::LR, 1e-2 * t as f64), (step::BIAS_1, bias[0]), (step::BIAS_2, bias[1])];
            let step = b.step(&scalars);
            b.apply(op.clone(), &[p, m, v, grad, clip, step]);
            let (coef, s) = (b.of(clip)[1], b.of(step));
            for (i, g) in b.of(grad).into_iter().enumerate() {
                let state = [&mut ps[i], &mut ms[i], &mut vs[i]];
                naive::adam(&op, state, coef * g, s[step::LR], [s[step::BIAS_1], s[step::BIAS_2]]);
            }
        }
        b.expect(p, ps);
        b.expect(m, ms);
        b.expect(v, vs);
    })
}

/// Nothing moves, and nothing divides by zero, where the gradient is zero.
fn zero_gradients() -> Case {
    Case::new("adam without gradients", |b| {
        let p = b.normal(&[9]);
        let [m, v, grad] = [(); 3].map(|()| b.zeros(&[9]));
        let clip = b.f32s(&[2], vec![0.0, 1.0]);
        let step = b.step(&[(step::LR, 0.1), (step::BIAS_1, 0.1), (step::BIAS_2, 0.001)]);
        b.apply(Adam { weight_decay: 0.0, ..ADAM }, &[p, m, v, grad, clip, step]);
        b.expect(p, b.of(p));
    })
}

/// A gradient that is not finite updates nothing.
fn not_finite() -> Case {
    Case::new("clip and adam of a gradient that is not finite", |b| {
        let partials = b.normal(&[1, PARTIALS]);
        b.ignore(partials);
        let (p, m, v) = (b.normal(&[9]), b.normal(&[9]), b.zeros(&[9]));
        let grad = b.f32s(&[9], vec![1.0, f64::INFINITY, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        b.apply(SumOfSquares { slot: 0 }, &[partials, grad]);
        let clip = b.one(ClipCoef { max_norm: Some(1.0) }, &[partials]);
        let step = b.step(&[(step::LR, 0.1), (step::BIAS_1, 0.1), (step::BIAS_2, 0.001)]);
        b.apply(ADAM, &[p, m, v, grad, clip, step]);
        for x in [p, m, v] {
            b.expect(x, b.of(x));
        }
    })
}

fn accumulate(n: usize) -> Case {
    Case::new(format!("accumulate {n}"), move |b| {
        let (acc, x, y) = (b.normal(&[n]), b.normal(&[n]), b.normal(&[n]));
        b.apply(Accumulate {}, &[acc, x]);
        b.apply(Accumulate {}, &[acc, y]);
        let sums = b.of(acc).iter().zip(b.of(x)).zip(b.of(y)).map(|((a, x), y)| a + x + y).collect();
        b.expect(acc, sums);
    })
}

/// The global norm of tensors of these lengths. The partial sums themselves may be split in any way.
fn clip(lengths: Vec<usize>, max_norm: Option<f32>, salt: usize) -> Case {
    Case::new(format!("clip {max_norm:?} of {lengths:?} {salt}"), move |b| {
        let tensors: Vec<_> = lengths.iter().map(|&n| b.normal(&[n])).collect();
        // Old partial sums must not count.
        let partials = b.normal(&[tensors.len(), PARTIALS]);
        b.ignore(partials);
        for (slot, &x) in tensors.iter().enumerate() {
            b.apply(SumOfSquares { slot }, &[partials, x]);
        }
        let clip = b.one(ClipCoef { max_norm }, &[partials]);
        let norm = tensors.iter().flat_map(|&x| b.of(x)).map(|x| x * x).sum::<f64>().sqrt();
        let factor = max_norm.map_or(1.0, |max| (f64::from(max) / (norm + 1e-6)).min(1.0));
        b.magnitude = lengths.iter().sum::<usize>() as f64;
        b.expect(clip, vec![norm, factor]);
    })
}

fn clip_of_nothing() -> Case {
    Case::new("clip of zero gradients", |b| {
        let (x, partials) = (b.zeros(&[77]), b.normal(&[1, PARTIALS]));
        b.apply(SumOfSquares { slot: 0 }, &[partials, x]);
        let clip = b.one(ClipCoef { max_norm: Some(1.0) }, &[partials]);
        b.expect(clip, vec![0.0, 1.0]);
    })
}

/// As many tensors as a large model has.
fn many_tensors() -> Case {
    Case::new("clip over 300 tensors", |b| {
        let partials = b.normal(&[300, PARTIALS]);
        b.ignore(partials);
        let tensors: Vec<_> = (0..300).map(|_| b.normal(&[5])).collect();
        for (slot, &x) in tensors.iter().enumerate() {
            b.apply(SumOfSquares { slot }, &[partials, x]);
        }
        let clip = b.one(ClipCoef { max_norm: Some(2.0) }, &[partials]);
        let norm = tensors.iter().flat_map(|&x| b.of(x)).map(|x| x * x).sum::<f64>().sqrt();
        b.expect(clip, vec![norm, 2.0 / (norm + 1e-6)]);
    })
}
