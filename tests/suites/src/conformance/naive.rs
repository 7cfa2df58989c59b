//! The ops once more, straight from their definitions, in f64 on slices.

use sparta_graph::ops::{Activation, Adam, Attention, Layout, Rope};

/// `op(a) op(b)`.
pub fn product(layout: Layout, [m, n, k]: [usize; 3], a: &[f64], b: &[f64]) -> Vec<f64> {
    let term = |i: usize, j: usize, l: usize| match layout {
        Layout::Nt => a[i * k + l] * b[j * k + l],
        Layout::Nn => a[i * k + l] * b[l * n + j],
        Layout::Tn => a[l * m + i] * b[l * n + j],
    };
    (0..m * n).map(|e| (0..k).map(|l| term(e / n, e % n, l)).sum()).collect()
}

pub fn rms_norm(x: &[f64], w: &[f64], eps: f32, plus_one: bool) -> Vec<f64> {
    let shift = if plus_one { 1.0 } else { 0.0 };
    let row = |x: &[f64]| {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (mean + f64::from(eps)).sqrt();
        x.iter().zip(w).map(|(x, w)| x * r * (shift + w)).collect::<Vec<_>>()
    };
    x.chunks(w.len()).flat_map(row).collect()
}

/// The rotation by `angle(position, pair)` of each pair (i, i + r / 2) of the first r elements of a head.
pub fn rope(op: &Rope, width: usize, x: &[f64], spans: &[f64], table: &[f64]) -> Vec<f64> {
    let half = op.width() / 2;
    let element = |e: usize| {
        let (t, i) = (e / width, e % op.head_dim);
        if i >= 2 * half {
            return x[e];
        }
        let row = &table[(t - spans[2 * t] as usize) * 2 * half..][..2 * half];
        let (cos, sin) = (row[i % half], row[half + i % half]);
        let sin = if op.inverse { -sin } else { sin };
        if i < half { x[e] * cos - x[e + half] * sin } else { x[e] * cos + x[e - half] * sin }
    };
    (0..x.len()).map(element).collect()
}

pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let (mut k, mut c) = (key, counter);
    for _ in 0..10 {
        let wide = |m: u32, x: u32| (((u64::from(m) * u64::from(x)) >> 32) as u32, m.wrapping_mul(x));
        let ((h0, l0), (h1, l1)) = (wide(0xD2511F53, c[0]), wide(0xCD9E8D57, c[2]));
        c = [h1 ^ c[1] ^ k[0], l1, h0 ^ c[3] ^ k[1], l0];
        k = [k[0].wrapping_add(0x9E3779B9), k[1].wrapping_add(0xBB67AE85)];
    }
    c
}

/// The factor of inverted dropout for one draw.
pub fn kept(draw: u32, p: f32) -> f64 {
    if f64::from(draw) * 2f64.powi(-32) < f64::from(p) { 0.0 } else { 1.0 / (1.0 - f64::from(p)) }
}

pub fn key(rng: &[f64]) -> [u32; 2] {
    [rng[0] as u32, rng[1] as u32]
}

/// A query row and a key row that it sees.
pub struct Pair {
    /// Where the first element of the query's head is, and of the key's.
    pub query: usize,
    pub key: usize,
    /// The row of log-sum-exp.
    pub row: usize,
    pub probability: f64,
    /// That of dropout.
    pub factor: f64,
    /// The derivative of the soft-cap.
    pub slope: f64,
}

/// All pairs, and the log-sum-exp of each row and head.
pub fn attention_pairs(
    op: &Attention,
    q: &[f64],
    k: &[f64],
    spans: &[f64],
    rng: Option<&[f64]>,
) -> (Vec<Pair>, Vec<f64>) {
    let d = op.head_dim;
    let (mut pairs, mut lse) = (vec![], vec![]);
    for t in 0..spans.len() / 2 {
        for h in 0..op.heads {
            let head = h / (op.heads / op.kv_heads);
            let query = (t * op.heads + h) * d;
            let key = |j: usize| (j * op.kv_heads + head) * d;
            let first = (spans[2 * t] as usize).max((t + 1).saturating_sub(op.window.unwrap_or(t + 1)));
            let score = |j: usize| {
                let dot: f64 = q[query..][..d].iter().zip(&k[key(j)..][..d]).map(|(q, k)| q * k).sum();
                let s = f64::from(op.scale) * dot;
                let tanh = op.soft_cap.map_or(0.0, |cap| (s / f64::from(cap)).tanh());
                (op.soft_cap.map_or(s, |cap| f64::from(cap) * tanh), 1.0 - tanh * tanh)
            };
            let scores: Vec<(f64, f64)> = (first..=t).map(score).collect();
            let log_sum = log_sum_exp(&scores.iter().map(|(s, _)| *s).collect::<Vec<_>>());
            pairs.extend((first..).zip(&scores).map(|(j, (s, slope))| {
                let counter = [j as u32, t as u32, h as u32, op.salt];
                let draw = |rng| kept(philox(self::key(rng), counter)[0], op.dropout);
                let probability = (s - log_sum).exp();
                Pair { query, key: key(j), row: lse.len(), probability, factor: rng.map_or(1.0, draw), slope: *slope }
            }));
            lse.push(log_sum);
        }
    }
    (pairs, lse)
}

/// Output and log-sum-exp.
pub fn attention(
    op: &Attention,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    spans: &[f64],
    rng: Option<&[f64]>,
) -> (Vec<f64>, Vec<f64>) {
    let (pairs, lse) = attention_pairs(op, q, k, spans, rng);
    let mut o = vec![0.0; q.len()];
    for pair in pairs {
        add_row(&mut o[pair.query..][..op.head_dim], pair.probability * pair.factor, &v[pair.key..]);
    }
    (o, lse)
}

/// Output of queries that see spans of the keys, of a window the last ones.
pub fn attention_cached(op: &Attention, q: &[f64], k: &[f64], v: &[f64], spans: &[(usize, usize)]) -> Vec<f64> {
    let (d, width) = (op.head_dim, op.kv_heads * op.head_dim);
    let mut o = Vec::with_capacity(q.len());
    for (t, &(start, end)) in spans.iter().enumerate() {
        let first = start.max(end.saturating_sub(op.window.unwrap_or(end)));
        for h in 0..op.heads {
            let (query, column) = (&q[(t * op.heads + h) * d..][..d], h / (op.heads / op.kv_heads) * d);
            let score = |j: usize| {
                let dot: f64 = query.iter().zip(&k[j * width + column..]).map(|(q, k)| q * k).sum();
                let s = f64::from(op.scale) * dot;
                op.soft_cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
            };
            let scores: Vec<f64> = (first..end).map(score).collect();
            let log_sum = log_sum_exp(&scores);
            let mut row = vec![0.0; d];
            for (j, s) in (first..end).zip(scores) {
                add_row(&mut row, (s - log_sum).exp(), &v[j * width + column..]);
            }
            o.extend(row);
        }
    }
    o
}

/// `to += factor * row`.
pub fn add_row(to: &mut [f64], factor: f64, row: &[f64]) {
    to.iter_mut().zip(row).for_each(|(to, x)| *to += factor * x);
}

pub fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

pub fn activate(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    }
}

/// One step of AdamW on (p, m, v).
pub fn adam(op: &Adam, state: [&mut f64; 3], grad: f64, lr: f64, bias: [f64; 2]) {
    let [b1, b2, eps, decay] = [op.beta1, op.beta2, op.eps, op.weight_decay].map(f64::from);
    let [p, m, v] = state;
    let lr = f64::from(op.lr_factor) * lr;
    *m = b1 * *m + (1.0 - b1) * grad;
    *v = b2 * *v + (1.0 - b2) * grad * grad;
    *p -= lr * decay * *p + lr * (*m / bias[0]) / ((*v / bias[1]).sqrt() + eps);
}

/// x, which f32 holds exactly, rounded to bf16 by 16 random bits: up with a probability equal to the part cut off.
pub fn stochastic_bf16(x: f64, random: u32) -> f64 {
    assert_eq!(f64::from(x as f32), x, "not exact in f32");
    let bits = (x as f32).to_bits() + random;
    f64::from(f32::from_bits(bits & 0xffff_0000))
}
