//! RMS norms and rotary embeddings.

use super::case::{Build, Case};
use super::naive;
use sparta_graph::ops::{Add, RmsNorm, Rope};
use sparta_graph::{DType, Value};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    let sizes = [(1, 1, 1), (3, 1, 2), (2, 1, 7), (17, 3, 8), (7, 1, 33), (5, 1, 63), (64, 2, 64), (65, 1, 65)];
    let wide =
        [(3, 1, 127), (2, 5, 80), (2, 1, 129), (3, 2, 96), (257, 1, 16), (2, 1, 257), (2, 1, 1030), (1, 1, 4099)];
    for (i, (rows, heads, width)) in sizes.into_iter().chain(wide).enumerate() {
        let dtype = [DType::F32, DType::BF16, DType::F16][i % 3];
        cases.push(rms_norm(
            rows,
            heads,
            width,
            RmsNorm { eps: [1e-6, 1e-5][i / 2 % 2], plus_one: i % 2 == 1, output: None, rate: false },
            dtype,
        ));
    }
    cases.push(residual_around_a_norm());
    cases.push(tiny_rows());
    cases.push(many_norms());
    for (i, head_dim) in [2, 4, 8, 16, 34, 64, 80, 96, 128, 256].into_iter().enumerate() {
        let segments = [vec![1], vec![5], vec![1, 2, 1], vec![17, 1, 33], vec![3, 64]][i % 5].clone();
        let op = |inverse| Rope { head_dim, inverse, rotated: None };
        cases.push(rope(op(false), 1 + i % 3, segments.clone()));
        cases.push(rope(op(true), 1 + i % 2, segments));
    }
    cases.push(rope(Rope { head_dim: 2, inverse: false, rotated: None }, 1, vec![257; 256]));
    for (i, (head_dim, rotated)) in [(4, 2), (16, 12), (34, 32), (128, 96)].into_iter().enumerate() {
        cases.push(rope(Rope { head_dim, inverse: i % 2 == 1, rotated: Some(rotated) }, 1 + i % 3, vec![5, 1, 33]));
    }
    cases
}

fn rms_norm(rows: usize, heads: usize, width: usize, op: RmsNorm, dtype: DType) -> Case {
    Case::new(format!("{op:?} {rows}x{heads}x{width} {dtype}"), move |b| {
        let (x, w) = (b.normal(&[rows, heads * width]), b.weight(dtype, &[width]));
        let y = b.one(op.clone(), &[x, w]);
        b.expect(y, naive::rms_norm(&b.of(x), &b.of(w), op.eps, op.plus_one));
        // The gradient of x is a difference of two terms, each divided by the root mean square of the row.
        let rms = |row: &[f64]| (row.iter().map(|x| x * x).sum::<f64>() / width as f64).sqrt();
        b.magnitude = b.of(x).chunks(width).map(|row| 1.0 / rms(row)).fold(1.0, f64::max);
        b.seed(y);
        b.wrt(&[x, w]);
    })
}

/// `x + norm(x)`: the gradient of the residual path enters the norm's gradient kernel, and is also its upstream.
fn residual_around_a_norm() -> Case {
    Case::new("rms_norm inside a residual", |b| {
        let (x, w) = (b.normal(&[9, 33]), b.weight(DType::BF16, &[33]));
        let h = b.one(Add {}, &[x, x]);
        let normed = b.one(RmsNorm { eps: 1e-6, plus_one: true, output: None, rate: false }, &[h, w]);
        let y = b.one(Add {}, &[h, normed]);
        b.seed(y);
        b.wrt(&[x, w]);
    })
}

/// Rows so small that eps counts, one of them zero.
fn tiny_rows() -> Case {
    Case::new("rms_norm of tiny rows", |b| {
        let values = b.random.normals(3 * 19).iter().enumerate().map(|(i, x)| x * [0.0, 1e-3, 1e-2][i / 19]).collect();
        let (x, w) = (b.f32s(&[3, 19], values), b.normal(&[19]));
        let y = b.one(RmsNorm { eps: 1e-5, plus_one: false, output: None, rate: false }, &[x, w]);
        b.expect(y, naive::rms_norm(&b.of(x), &b.of(w), 1e-5, false));
        b.seed(y);
        b.wrt(&[w]);
    })
}

fn many_norms() -> Case {
    Case::new("rms_norm of 70001 rows", |b| {
        let (x, w) = (b.normal(&[70_001, 2]), b.normal(&[2]));
        let y = b.one(RmsNorm { eps: 1e-2, plus_one: false, output: None, rate: false }, &[x, w]);
        b.expect(y, naive::rms_norm(&b.of(x), &b.of(w), 1e-2, false));
        b.seed(y);
        b.wrt(&[x]);
    })
}

/// Cosines and sines of positions up to `positions`, of the default frequencies.
pub fn rope_table(b: &mut Build, positions: usize, width: usize) -> Value {
    let half = width / 2;
    let angle = |p: usize, i: usize| p as f64 * 1e4f64.powf(-(i as f64) / half as f64);
    let row = |p| {
        let cosines = (0..half).map(move |i| angle(p, i).cos());
        cosines.chain((0..half).map(move |i| angle(p, i).sin())).collect::<Vec<_>>()
    };
    b.f32s(&[positions, width], (0..positions).flat_map(row).collect())
}

fn rope(op: Rope, heads: usize, segments: Vec<usize>) -> Case {
    let name = format!("{op:?} of {heads} heads, {} segments of {}", segments.len(), segments[0]);
    Case::new(name, move |b| {
        let rows: usize = segments.iter().sum();
        let longest = segments.iter().copied().max().unwrap_or(0);
        let width = heads * op.head_dim;
        let (x, spans) = (b.normal(&[rows, width]), b.spans(&segments));
        let table = rope_table(b, longest + 1, op.width());
        let y = b.one(op.clone(), &[x, spans, table]);
        b.expect(y, naive::rope(&op, width, &b.of(x), &b.of(spans), &b.of(table)));
        b.seed(y);
        b.wrt(&[x]);
    })
}
