//! What ops may round inside, for the tolerances by which [`super::narrow`] judges them.

use super::naive;
use crate::Tensor;
use sparta_graph::ops::{Attention, IGNORED, Layout, LinearCrossEntropy, WeightGrad, step};
use sparta_graph::{DType, DeviceInfo, Op};

/// The most that rounding to bf16 changes a number, as a share of it. A product with one rounded factor changes by at
/// most this share of the product of the absolute values.
const ROUNDING: f64 = 1.0 / 256.0;

/// The same for TF32, which may be truncated after 10 bits.
const TF32: f64 = 1.0 / 1024.0;

/// What a device rounds inside its ops.
#[derive(Clone, Copy)]
pub struct Rounding {
    in_attention: bool,
    tf32: bool,
}

impl Rounding {
    /// `tf32`: the plan allows it.
    pub fn of(info: &DeviceInfo, tf32: bool) -> Rounding {
        Rounding { in_attention: info.rounds_in_attention, tf32 }
    }
}

/// How much rounding inside the op can change each element of its outputs.
pub fn inside(op: &Op, inputs: &[Tensor], rounding: Rounding) -> Vec<Vec<f64>> {
    let [first, second, ..] = inputs else { return vec![] };
    match op {
        Op::Linear(op) => product(op.layout, op.scale, [first, second], rounding).into_iter().collect(),
        Op::SampledGrad(op) => {
            let Some(dense) = product(Layout::Tn, op.scale, [first, second], rounding) else { return vec![] };
            vec![inputs[2].values.iter().map(|&i| dense[i as usize]).collect()]
        }
        _ if first.ty.dtype != DType::BF16 => vec![],
        Op::LinearCrossEntropy(op) => inside_linear_cross_entropy(op, inputs),
        Op::Attention(op) if rounding.in_attention => inside_attention(op, inputs),
        Op::AttentionGrad(op) if rounding.in_attention => inside_attention_grad(&op.0, inputs),
        _ => vec![],
    }
}

/// How much TF32 can change each element of a product; `None` if it is not used.
///
/// Both factors may be truncated. Tensor cores also truncate instead of rounding: each product and each sum of a few of
/// them, at worst at the last bit of an f32 as large as the largest number in that addition. Sums are made over ranges
/// of k, one after the other, so no number in them is larger than the distance between the least and the greatest sum
/// of the first l products over all l. There are k products and at most k / 4 sums, as the smallest units add 4
/// products at a time.
fn product(layout: Layout, scale: f32, [a, b]: [&Tensor; 2], rounding: Rounding) -> Option<Vec<f64>> {
    if !(rounding.tf32 && a.ty.dtype == DType::F32 && b.ty.dtype.is_float()) {
        return None;
    }
    let (k, m) = if layout == Layout::Tn { (a.ty.shape[0], a.ty.shape[1]) } else { (a.ty.shape[1], a.ty.shape[0]) };
    let n = if layout == Layout::Nt { b.ty.shape[0] } else { b.ty.shape[1] };
    let factors = (1.0 + TF32).powi(2) - 1.0;
    let sums = 1.25 * k as f64 * 2f64.powi(-23);
    let change = |i: usize, j: usize| {
        let (mut sum, mut least, mut greatest, mut sizes) = (0f64, 0f64, 0f64, 0f64);
        for l in 0..k {
            let x = a.values[if layout == Layout::Tn { l * m + i } else { i * k + l }];
            let y = b.values[if layout == Layout::Nt { j * k + l } else { l * n + j }];
            sum += x * y;
            sizes += (x * y).abs();
            (least, greatest) = (least.min(sum), greatest.max(sum));
        }
        f64::from(scale.abs()) * (factors * sizes + sums * (1.0 + factors) * (greatest - least))
    };
    Some((0..m * n).map(|e| change(e / n, e % n)).collect())
}

/// The probabilities are rounded and multiplied by v.
fn inside_attention(op: &Attention, inputs: &[Tensor]) -> Vec<Vec<f64>> {
    let [q, k, v, spans, rng @ ..] = inputs else { return vec![] };
    let (rng, v) = (rng.first().map(|rng| &rng.values[..]), absolute(v));
    let (pairs, _) = naive::attention_pairs(op, &q.values, &k.values, &spans.values, rng);
    let mut o = vec![0.0; q.values.len()];
    for pair in pairs {
        let change = ROUNDING * pair.probability * pair.factor;
        naive::add_row(&mut o[pair.query..][..op.head_dim], change, &v[pair.key..]);
    }
    vec![o]
}

/// The gradients of the scores are rounded and multiplied by k and q, the probabilities by the gradient of the result.
fn inside_attention_grad(op: &Attention, inputs: &[Tensor]) -> Vec<Vec<f64>> {
    let [q, k, v, d_o, ld, spans, rng @ ..] = inputs else { return vec![] };
    let (d, rng) = (op.head_dim, rng.first().map(|rng| &rng.values[..]));
    let (pairs, _) = naive::attention_pairs(op, &q.values, &k.values, &spans.values, rng);
    let [q, k, to] = [q, k, d_o].map(absolute);
    let [mut dq, mut dk, mut dv] = [&q, &k, &k].map(|like| vec![0.0; like.len()]);
    for pair in pairs {
        let row = d_o.values[pair.query..][..d].iter();
        let dot: f64 = row.zip(&v.values[pair.key..]).map(|(a, b)| a * b).sum();
        let d_score = pair.probability * (pair.factor * dot - ld.values[2 * pair.row + 1]) * pair.slope;
        let change = ROUNDING * (f64::from(op.scale) * d_score).abs();
        naive::add_row(&mut dq[pair.query..][..d], change, &k[pair.key..]);
        naive::add_row(&mut dk[pair.key..][..d], change, &q[pair.query..]);
        let change = ROUNDING * pair.probability * pair.factor;
        naive::add_row(&mut dv[pair.key..][..d], change, &to[pair.query..]);
    }
    vec![dq, dk, dv]
}

fn absolute(tensor: &Tensor) -> Vec<f64> {
    tensor.values.iter().map(|x| x.abs()).collect()
}

/// The gradient of the logits is rounded to the type of the hidden states and multiplied by weight and hidden states.
fn inside_linear_cross_entropy(op: &LinearCrossEntropy, inputs: &[Tensor]) -> Vec<Vec<f64>> {
    let [hidden, weight, labels, scalars, more @ ..] = inputs else { return vec![] };
    let ([rows, width], vocabulary) = ([hidden.ty.shape[0], hidden.ty.shape[1]], weight.ty.shape[0]);
    let scale = f64::from(op.scale);
    let products = naive::product(Layout::Nt, [rows, vocabulary, width], &hidden.values, &weight.values);
    let mut gradient = Vec::with_capacity(products.len());
    for (row, &label) in products.chunks(vocabulary).zip(&labels.values) {
        let tanh = |x: f64| op.soft_cap.map_or(0.0, |cap| (x * scale / f64::from(cap)).tanh());
        let logit = |x: f64| op.soft_cap.map_or(x * scale, |cap| f64::from(cap) * tanh(x));
        let lse = naive::log_sum_exp(&row.iter().map(|&x| logit(x)).collect::<Vec<_>>());
        let counts = if label == f64::from(IGNORED) { 0.0 } else { scalars.values[step::LOSS_WEIGHT] };
        gradient.extend(row.iter().enumerate().map(|(v, &x)| {
            let hit = f64::from(u8::from(v as f64 == label));
            (counts * ((logit(x) - lse).exp() - hit) * (1.0 - tanh(x).powi(2))).abs()
        }));
    }
    let bound = |product: Vec<f64>| product.into_iter().map(|x| ROUNDING * scale.abs() * x).collect::<Vec<_>>();
    let mut all = vec![vec![], vec![]];
    if op.hidden_grad {
        all.push(bound(naive::product(Layout::Nn, [rows, width, vocabulary], &gradient, &absolute(weight))));
    }
    let whole = bound(naive::product(Layout::Tn, [vocabulary, width, rows], &gradient, &absolute(hidden)));
    match (op.weight_grad, more) {
        (WeightGrad::Dense, _) => all.push(whole),
        (WeightGrad::Sampled, [index, ..]) => all.push(index.values.iter().map(|&i| whole[i as usize]).collect()),
        _ => {}
    }
    all
}
