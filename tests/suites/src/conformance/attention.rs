//! Attention in packed segments, with every combination of groups, windows, caps and dropout somewhere in the grid.

use super::case::Case;
use super::naive;
use super::norm::rope_table;
use sparta_graph::DType;
use sparta_graph::ops::{Attention, Layout, Linear, Rope};

fn op(heads: usize, kv_heads: usize, head_dim: usize) -> Attention {
    let scale = (head_dim as f32).powf(-0.5);
    Attention { heads, kv_heads, head_dim, scale, window: None, soft_cap: None, dropout: 0.0, salt: 0 }
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    // Every head size, with groups of 1, 2, 3 and 8 query heads, over ragged segments.
    for (i, head_dim) in [1, 2, 5, 8, 16, 24, 32, 64, 80, 96, 128, 192, 256].into_iter().enumerate() {
        let (heads, kv_heads) = [(1, 1), (2, 1), (4, 2), (3, 1), (8, 1), (6, 2)][i % 6];
        let segments = [vec![1], vec![2, 1, 3], vec![7], vec![1, 1, 1, 1], vec![17, 1, 5]][i % 5].clone();
        cases.push(attention(op(heads, kv_heads, head_dim), segments));
    }
    // Around the sizes of blocks of queries and keys.
    for rows in [31, 33, 63, 64, 65, 127, 129, 130] {
        cases.push(attention(op(2, 1, 8), vec![rows]));
    }
    cases.push(attention(op(2, 2, 16), vec![63, 2, 65]));
    cases.push(attention(op(1, 1, 64), vec![257]));
    cases.push(attention(op(3, 1, 80), vec![3, 66, 1]));
    for window in [1, 2, 3, 8, 33, 64, 1000] {
        cases.push(attention(Attention { window: Some(window), ..op(4, 2, 8) }, vec![70, 1, 13]));
    }
    cases.push(attention(Attention { window: Some(65), ..op(1, 1, 32) }, vec![200]));
    for (cap, window) in [(0.5, None), (50.0, None), (2.0, Some(5))] {
        cases.push(attention(Attention { soft_cap: Some(cap), window, ..op(4, 1, 24) }, vec![19, 2]));
    }
    for (dropout, window, soft_cap) in [(0.1, None, None), (0.5, Some(9), None), (0.9, None, Some(3.0))] {
        cases.push(attention(Attention { dropout, window, soft_cap, salt: 7, ..op(6, 2, 16) }, vec![33, 1, 8]));
    }
    cases.push(attention(Attention { dropout: 0.3, salt: u32::MAX, ..op(1, 1, 256) }, vec![67]));
    // Heads that tensor cores are used for, over several blocks of 64 rows, within the smallest binding that is tested.
    let (window, soft_cap) = (Some(50), Some(5.0));
    cases.push(attention(Attention { window, soft_cap, ..op(2, 1, 64) }, vec![37, 1, 90, 26]));
    cases.push(attention(Attention { dropout: 0.2, salt: 3, ..op(2, 1, 128) }, vec![40, 1, 38]));
    cases.push(attention(Attention { soft_cap, ..op(1, 1, 256) }, vec![3, 66]));
    cases.push(attention(Attention { scale: -3.0, ..op(2, 1, 8) }, vec![40]));
    cases.push(huge_scores());
    cases.extend([0, 11, 39].map(nan_in_a_key));
    cases.push(nan_in_a_query());
    cases.push(many_segments(70_001, 1));
    cases.push(many_segments(20_001, 4));
    cases.push(only_some_gradients());
    cases
}

fn attention(op: Attention, segments: Vec<usize>) -> Case {
    Case::new(format!("{op:?} segments {segments:?}"), move |b| {
        let rows = segments.iter().sum();
        // Rounding of a score grows with the score, and the gradients are scaled once more.
        b.magnitude = f64::from(op.scale).powi(2).max(1.0);
        let (q_width, kv_width) = (op.heads * op.head_dim, op.kv_heads * op.head_dim);
        let [q, k, v] = [q_width, kv_width, kv_width].map(|width| b.normal(&[rows, width]));
        let spans = b.spans(&segments);
        let mut inputs = vec![q, k, v, spans];
        let rng = (op.dropout > 0.0).then(|| b.rng_key());
        inputs.extend(rng);
        let outputs = b.apply(op.clone(), &inputs);
        let rng = rng.map(|rng| b.of(rng));
        let (o, lse) = naive::attention(&op, &b.of(q), &b.of(k), &b.of(v), &b.of(spans), rng.as_deref());
        b.expect(outputs[0], o);
        b.expect(outputs[1], lse);
        b.seed(outputs[0]);
        b.wrt(&[q, k, v]);
    })
}

/// Scores in the thousands: the softmax is a hard choice and `exp` alone would overflow.
fn huge_scores() -> Case {
    Case::new("attention with huge scores", |b| {
        let op = Attention { scale: 1.0, ..op(2, 1, 8) };
        let mut large = |width: usize| {
            let values = b.random.normals(20 * width).iter().map(|x| (x * 8.0).round() * 4.0).collect();
            b.f32s(&[20, width], values)
        };
        let (q, k) = (large(16), large(8));
        let (v, spans) = (b.normal(&[20, 8]), b.spans(&[20]));
        b.magnitude = 1e3;
        let outputs = b.apply(op.clone(), &[q, k, v, spans]);
        let (o, lse) = naive::attention(&op, &b.of(q), &b.of(k), &b.of(v), &b.of(spans), None);
        b.expect(outputs[0], o);
        b.expect(outputs[1], lse);
    })
}

/// Every row that sees the key has a NaN for its result, and no other row has.
fn nan_in_a_key(row: usize) -> Case {
    with_nan(format!("attention with a NaN in key row {row}"), move |_, k| k[8 * row + 3] = f64::NAN)
}

fn nan_in_a_query() -> Case {
    with_nan("attention with a NaN in query row 33".into(), |q, _| q[16 * 33 + 9] = f64::NAN)
}

/// Segments of 35 and 12 rows, with what `spoil` makes of q and k.
fn with_nan(name: String, spoil: impl Fn(&mut [f64], &mut [f64]) + 'static) -> Case {
    Case::new(name, move |b| {
        let op = op(2, 1, 8);
        let [mut q, mut k] = [16, 8].map(|width| b.random.normals(47 * width));
        spoil(&mut q, &mut k);
        let (q, k) = (b.f32s(&[47, 16], q), b.f32s(&[47, 8], k));
        let (v, spans) = (b.normal(&[47, 8]), b.spans(&[35, 12]));
        let outputs = b.apply(op.clone(), &[q, k, v, spans]);
        let (o, lse) = naive::attention(&op, &b.of(q), &b.of(k), &b.of(v), &b.of(spans), None);
        b.expect(outputs[0], o);
        b.expect(outputs[1], lse);
    })
}

/// More (row, head) pairs, and more rows, than workgroups fit into one dimension.
fn many_segments(rows: usize, heads: usize) -> Case {
    Case::new(format!("attention in {rows} segments of one row, {heads} heads"), move |b| {
        b.refusable = true;
        let [q, k, v] = [(); 3].map(|()| b.normal(&[rows, 2 * heads]));
        let spans = b.spans(&vec![1; rows]);
        let outputs = b.apply(op(heads, heads, 2), &[q, k, v, spans]);
        b.expect(outputs[0], b.of(v));
    })
}

/// The path of a real layer, of which only the value projection is trained.
fn only_some_gradients() -> Case {
    Case::new("attention layer with a trained value projection", |b| {
        let op = op(2, 1, 8);
        let (x, spans) = (b.normal(&[13, 12]), b.spans(&[6, 7]));
        let table = rope_table(b, 7, 8);
        let weights = [16, 8, 8].map(|out| b.weight(DType::BF16, &[out, 12]));
        let [q, k, v] = weights.map(|w| b.one(Linear { scale: 0.3, ..Linear::plain(Layout::Nt) }, &[x, w]));
        let [q, k] = [q, k].map(|x| b.one(Rope { head_dim: 8, inverse: false, rotated: None }, &[x, spans, table]));
        let o = b.one(op.clone(), &[q, k, v, spans]);
        b.seed(o);
        b.wrt(&[weights[2]]);
    })
}
