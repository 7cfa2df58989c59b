//! Attention in packed segments, with every combination of groups, windows, caps and dropout somewhere in the grid.

use super::case::Case;
use super::naive;
use super::norm::rope_table;
use crate::tensor::round;
use sparta_graph::DType;
use sparta_graph::ops::{Attention, AttentionCached, Embed, Layout, Linear, Rope, StoreRows};

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
    cases.extend([None, Some(5.0)].map(nan_in_a_query));
    cases.push(many_segments(70_001, 1));
    cases.push(many_segments(20_001, 4));
    cases.push(only_some_gradients());
    cases.extend(cached_cases());
    cases
}

/// Queries with their own spans of cached keys, around the sizes of tiles of keys.
fn cached_cases() -> Vec<Case> {
    let mut cases = vec![];
    for (i, head_dim) in [1, 2, 5, 8, 16, 24, 64, 80, 128, 256].into_iter().enumerate() {
        let (heads, kv_heads) = [(1, 1), (4, 2), (3, 1), (8, 1)][i % 4];
        let spans = [vec![(0, 1)], vec![(0, 7), (2, 3)], vec![(5, 5), (0, 9), (8, 9)]][i % 3].clone();
        cases.push(cached(op(heads, kv_heads, head_dim), 9, spans));
    }
    for kept in [127, 128, 129, 300] {
        cases.push(cached(op(4, 2, 8), kept, vec![(0, kept), (1, kept), (kept - 1, kept), (0, 1), (3, 126)]));
    }
    for (window, soft_cap) in [(1, None), (8, Some(2.0)), (130, None), (1000, Some(50.0))] {
        let op = Attention { window: Some(window), soft_cap, ..op(6, 2, 16) };
        cases.push(cached(op, 200, (0..13).map(|i| (7 * i, 100 + 8 * i)).collect()));
    }
    cases.push(cached(Attention { scale: -3.0, ..op(2, 1, 8) }, 40, vec![(0, 40), (10, 30)]));
    cases.extend([None, Some(2.0)].map(nan_in_a_kept_key));
    cases.push(steps_with_a_cache());
    cases
}

fn cached(op: Attention, kept: usize, spans: Vec<(usize, usize)>) -> Case {
    Case::new(format!("cached {op:?} of {kept} keys, {spans:?}"), move |b| {
        b.magnitude = f64::from(op.scale).powi(2).max(1.0);
        let q = b.normal(&[spans.len(), op.heads * op.head_dim]);
        let [k, v] = [(); 2].map(|()| b.normal(&[kept, op.kv_heads * op.head_dim]));
        let rows = b.u32s(&[spans.len(), 2], spans.iter().flat_map(|&(start, end)| [start, end]));
        let o = b.one(AttentionCached(op.clone()), &[q, k, v, rows]);
        b.expect(o, naive::attention_cached(&op, &b.of(q), &b.of(k), &b.of(v), &spans));
    })
}

/// The result of a row is NaN if it sees the key, and only then.
fn nan_in_a_kept_key(soft_cap: Option<f32>) -> Case {
    Case::new(format!("cached attention with a NaN in key row 130, cap {soft_cap:?}"), move |b| {
        let (op, spans) = (Attention { soft_cap, ..op(2, 1, 8) }, [(0, 140), (0, 130), (131, 140), (100, 131)]);
        let mut keys = b.random.normals(140 * 8);
        keys[130 * 8 + 3] = f64::NAN;
        let (q, k, v) = (b.normal(&[4, 16]), b.f32s(&[140, 8], keys), b.normal(&[140, 8]));
        let rows = b.u32s(&[4, 2], spans.iter().flat_map(|&(start, end)| [start, end]));
        let o = b.one(AttentionCached(op.clone()), &[q, k, v, rows]);
        b.expect(o, naive::attention_cached(&op, &b.of(q), &b.of(k), &b.of(v), &spans));
    })
}

/// A layer during generation: rows of the rope table by position, keys and values stored in their rows, and attention
/// over the whole cache; the result is that of attention in one segment.
fn steps_with_a_cache() -> Case {
    Case::new("attention in steps with a cache", |b| {
        let (op, width) = (Attention { window: Some(9), ..op(4, 2, 8) }, [32, 16, 16]);
        let exact = |x: Vec<f64>| x.into_iter().map(|x| round(DType::F32, x)).collect::<Vec<_>>();
        let all = width.map(|width| exact(b.random.normals(14 * width)));
        let (table, kept) = (rope_table(b, 14, 8), [(); 2].map(|()| b.zeros(&[16, 16])));
        let [q, k, v] = [0, 1, 2].map(|i| b.f32s(&[14, width[i]], all[i].clone()));
        let segment = b.spans(&[14]);
        let rotation = Rope { head_dim: 8, inverse: false, rotated: None };
        let [rotated_q, rotated_k] = [q, k].map(|x| b.one(rotation.clone(), &[x, segment, table]));
        let whole = b.apply(op.clone(), &[rotated_q, rotated_k, v, segment])[0];
        b.observe(whole);
        let (table, spans) = (b.of(table), (0..14).flat_map(|_| [0.0, 14.0]).collect::<Vec<_>>());
        let rope = |x: &[f64], width| naive::rope(&rotation, width, x, &spans, &table);
        let (queries, keys) = (rope(&all[0], 32), rope(&all[1], 16));
        let (expected, _) = naive::attention(&op, &queries, &keys, &all[2], &spans, None);
        let table = b.f32s(&[14, 8], table.clone());
        for (start, end) in [(0, 5), (5, 6), (6, 14)] {
            let n = end - start;
            let part = |i: usize| all[i][start * width[i]..end * width[i]].to_vec();
            let [q, k, v] = [0, 1, 2].map(|i| b.f32s(&[n, width[i]], part(i)));
            let positions = b.u32s(&[n], start..end);
            let angles = b.one(Embed { scale: 1.0, padding: None }, &[table, positions]);
            let segment = b.spans(&[n]);
            let [q, k] = [q, k].map(|x| b.one(rotation.clone(), &[x, segment, angles]));
            for (kept, new) in kept.into_iter().zip([k, v]) {
                b.apply(StoreRows {}, &[kept, new, positions]);
            }
            let seen = b.u32s(&[n, 2], (start..end).flat_map(|row| [0, row + 1]));
            let o = b.one(AttentionCached(op.clone()), &[q, kept[0], kept[1], seen]);
            b.expect(o, expected[start * 32..end * 32].to_vec());
        }
    })
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

/// The results of all rows that see the key are NaN, and no others.
fn nan_in_a_key(row: usize) -> Case {
    with_nan(format!("attention with a NaN in key row {row}"), None, move |_, k| k[8 * row + 3] = f64::NAN)
}

fn nan_in_a_query(soft_cap: Option<f32>) -> Case {
    let name = format!("attention with a NaN in query row 33, cap {soft_cap:?}");
    with_nan(name, soft_cap, |q, _| q[16 * 33 + 9] = f64::NAN)
}

/// Segments of 35 and 12 rows, with q and k changed by `spoil`.
fn with_nan(name: String, soft_cap: Option<f32>, spoil: impl Fn(&mut [f64], &mut [f64]) + 'static) -> Case {
    Case::new(name, move |b| {
        let op = Attention { soft_cap, ..op(2, 1, 8) };
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

/// The path of a real layer, in which only the value projection is trained.
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
