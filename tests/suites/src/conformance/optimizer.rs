//! AdamW, gradient descent, gradient norms, clipping, joining and accumulation.

use super::case::{Build, Case};
use super::naive;
use sparta_graph::ops::{Accumulate, Adam, AdamBf16, ClipCoef, Concat, PARTIALS, Scale, Sgd, SumOfSquares, step};
use sparta_graph::{DType, Value};

const ADAM: Adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, lr_factor: 1.0 };

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (i, n) in [0, 1, 2, 7, 33, 65, 257, 4099].into_iter().enumerate() {
        cases.push(adam(n, Adam { weight_decay: [0.0, 0.1][i % 2], ..ADAM }, 1 + i % 4));
        cases.push(accumulate(n));
    }
    cases.push(adam(50, Adam { beta1: 0.0, beta2: 0.5, eps: 1e-3, weight_decay: 0.01, lr_factor: 0.3 }, 6));
    for n in [1, 2, 3, 66, 257, 40_003] {
        cases.push(adam_bf16(n));
        cases.push(sgd(n, Sgd { momentum: 0.9, weight_decay: 0.1, lr_factor: 0.5 }, 3));
        cases.push(sgd(n, Sgd { momentum: 0.0, weight_decay: 0.0, lr_factor: 1.0 }, 2));
    }
    for (i, lengths) in [vec![1], vec![64], vec![0, 3], vec![63, 64, 65, 1], vec![4099, 1, 257], vec![100_003, 5]]
        .into_iter()
        .enumerate()
    {
        cases.push(concat(lengths.clone(), i));
        cases.push(norms_of_parts(lengths));
    }
    cases.push(latch());
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
            let scalars = [(step::LR, 1e-2 * t as f64), (Adam::BIAS_1, bias[0]), (Adam::BIAS_2, bias[1])];
            let step = b.step(&scalars);
            b.apply(op.clone(), &[p, m, v, grad, clip, step]);
            let (coef, s) = (b.of(clip)[1], b.of(step));
            for (i, g) in b.of(grad).into_iter().enumerate() {
                let state = [&mut ps[i], &mut ms[i], &mut vs[i]];
                naive::adam(&op, state, coef * g, s[step::LR], [s[Adam::BIAS_1], s[Adam::BIAS_2]]);
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
        let step = b.step(&[(step::LR, 0.1), (Adam::BIAS_1, 0.1), (Adam::BIAS_2, 0.001)]);
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
        let clip = clip_of(b, Some(1.0), partials);
        let step = b.step(&[(step::LR, 0.1), (Adam::BIAS_1, 0.1), (Adam::BIAS_2, 0.001)]);
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
        let clip = clip_of(b, max_norm, partials);
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
        let clip = clip_of(b, Some(1.0), partials);
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
        let clip = clip_of(b, Some(2.0), partials);
        let norm = tensors.iter().flat_map(|&x| b.of(x)).map(|x| x * x).sum::<f64>().sqrt();
        b.expect(clip, vec![norm, 2.0 / (norm + 1e-6)]);
    })
}

/// The clip factor for a finite loss, with no earlier step that was not finite.
fn clip_of(b: &mut Build, max_norm: Option<f32>, partials: Value) -> Value {
    let (loss, latch) = (b.normal(&[1]), b.zeros(&[1]));
    b.one(ClipCoef { max_norm }, &[partials, loss, latch])
}

/// A loss that is not finite stops this update and the next one.
fn latch() -> Case {
    Case::new("clip with a latch", |b| {
        let partials = b.normal(&[2, PARTIALS]);
        let latch = b.zeros(&[1]);
        let norm = b.of(partials).iter().map(|x| x.abs()).sum::<f64>();
        let squares = b.f32s(&[2, PARTIALS], b.of(partials).iter().map(|x| x.abs()).collect());
        b.ignore(partials);
        for (loss, factor) in [(1.0, 1.0), (f64::INFINITY, -1.0), (1.0, -1.0)] {
            let loss = b.f32s(&[1], vec![loss]);
            let clip = b.one(ClipCoef { max_norm: None }, &[squares, loss, latch]);
            b.magnitude = norm;
            b.expect(clip, vec![norm.sqrt(), factor]);
        }
        b.expect(latch, vec![1.0]);
    })
}

/// Gradients and decay on grids on which all moments are exact in f32, so that every backend must round alike.
fn adam_bf16(n: usize) -> Case {
    Case::new(format!("adam with bf16 moments, {n} elements"), move |b| {
        let op = Adam { beta1: 0.5, beta2: 0.5, eps: 1e-3, weight_decay: 0.1, lr_factor: 0.5 };
        let (p, rng) = (b.normal(&[n]), b.rng_key());
        let [m, v] = [(); 2].map(|()| b.stored(DType::BF16, &[n], vec![0.0; n]));
        let [mut ps, mut ms, mut vs] = [p, m, v].map(|x| b.of(x));
        let key = [b.of(rng)[0] as u32, b.of(rng)[1] as u32];
        for t in 1..=2u32 {
            let grid = b.random.normals(n).iter().map(|x| (x * 32.0).round() / 32.0).collect();
            let grad = b.f32s(&[n], grid);
            let clip = b.f32s(&[2], vec![123.0, 1.0 / f64::from(t)]);
            let step = b.step(&[(step::LR, 1e-2), (Adam::BIAS_1, 0.5), (Adam::BIAS_2, 0.75)]);
            b.apply(AdamBf16 { adam: op.clone(), salt: t }, &[p, m, v, grad, clip, step, rng]);
            let (coef, s) = (b.of(clip)[1], b.of(step));
            for (i, g) in b.of(grad).into_iter().enumerate() {
                let state = [&mut ps[i], &mut ms[i], &mut vs[i]];
                naive::adam(&op, state, coef * g, s[step::LR], [s[Adam::BIAS_1], s[Adam::BIAS_2]]);
                let word = naive::philox(key, [i as u32 / 4, t, 1, 0])[i % 4];
                ms[i] = naive::stochastic_bf16(ms[i], word & 0xffff);
                vs[i] = naive::stochastic_bf16(vs[i], word >> 16);
            }
        }
        b.expect(p, ps);
        b.expect(m, ms);
        b.expect(v, vs);
    })
}

fn sgd(n: usize, op: Sgd, steps: usize) -> Case {
    Case::new(format!("{op:?} {n} elements, {steps} steps"), move |b| {
        let (p, state) = (b.normal(&[n]), b.zeros(&[n]));
        let (mut ps, mut bs) = (b.of(p), vec![0.0; n]);
        for t in 1..=steps {
            let grad = b.normal(&[n]);
            let clip = b.f32s(&[2], vec![123.0, 1.0 / t as f64]);
            let step = b.step(&[(step::LR, 1e-2)]);
            let mut inputs = vec![p, grad, clip, step];
            inputs.extend((op.momentum > 0.0).then_some(state));
            b.apply(op.clone(), &inputs);
            let lr = f64::from(op.lr_factor) * b.of(step)[step::LR];
            for (i, g) in b.of(grad).into_iter().enumerate() {
                bs[i] = f64::from(op.momentum) * bs[i] + b.of(clip)[1] * g + f64::from(op.weight_decay) * ps[i];
                ps[i] -= lr * bs[i];
            }
        }
        b.expect(p, ps);
        if op.momentum > 0.0 {
            b.expect(state, bs);
        }
    })
}

/// Intermediate tensors, which may be computed in place, and external ones, which are copied.
fn concat(lengths: Vec<usize>, salt: usize) -> Case {
    Case::new(format!("concat of {lengths:?} {salt}"), move |b| {
        let (mut inputs, mut joined) = (vec![], vec![]);
        for (i, &n) in lengths.iter().enumerate() {
            let x = b.normal(&[n]);
            let made = !(i + salt).is_multiple_of(3);
            inputs.push(if made { b.one(Scale { factor: 2.0 }, &[x]) } else { x });
            joined.extend(b.of(x).iter().map(|x| if made { 2.0 * x } else { *x }));
            joined.resize(joined.len().next_multiple_of(64), 0.0);
        }
        let y = b.one(Concat {}, &inputs);
        b.expect(y, joined);
    })
}

/// The norm of each part of a joined tensor is that of the part alone.
fn norms_of_parts(lengths: Vec<usize>) -> Case {
    Case::new(format!("clip of parts {lengths:?}"), move |b| {
        let (begins, n) = Concat::layout(lengths.iter().copied());
        let x = b.normal(&[n]);
        let table = begins.iter().zip(&lengths).flat_map(|(&begin, &n)| [begin, n]);
        let parts = b.u32s(&[lengths.len(), 2], table.collect::<Vec<_>>());
        let partials = b.zeros(&[1 + lengths.len(), PARTIALS]);
        b.ignore(partials);
        b.apply(SumOfSquares { slot: 1 }, &[partials, x, parts]);
        let clip = clip_of(b, None, partials);
        let values = b.of(x);
        let inside = begins.iter().zip(&lengths).flat_map(|(&begin, &n)| &values[begin..begin + n]);
        let norm = inside.map(|x| x * x).sum::<f64>().sqrt();
        b.magnitude = n as f64;
        b.expect(clip, vec![norm, 1.0]);
    })
}
