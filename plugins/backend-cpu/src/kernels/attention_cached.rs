use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Need, Ptr};
use crate::parallel::try_tasks;
use crate::real::Real;
use crate::simd::{dot, simd};
use sparta_graph::ops::AttentionCached;
use std::ops::Range;

pub fn prepare<T: Real>(op: &AttentionCached, io: &Io) -> Result<Kernel, String> {
    let op = &op.0;
    let ((rows, width), (kept, kv_width)) = (io.matrix(0)?, io.matrix(1)?);
    let spans = io.words(3)?;
    let group = Group::<T> {
        q: io.floats(0)?,
        k: io.floats(1)?,
        v: io.floats(2)?,
        o: io.float_output(0)?,
        heads: op.heads / op.kv_heads,
        head_dim: op.head_dim,
        kv_width,
        scale: T::from_f32(op.scale),
        cap: op.soft_cap.map(T::from_f32),
    };
    let (window, kv_heads) = (op.window.unwrap_or(usize::MAX), op.kv_heads);
    let elements = group.heads.checked_mul(kept.min(window)).and_then(|scores| scores.checked_add(group.fixed()?));
    let per_thread = elements.and_then(|n| n.checked_mul(size_of::<T>()));
    let need = Need { shared: 0, per_thread: per_thread.ok_or("a row has too many scores to address")? };
    Ok(Kernel::new(need, move |scratch| {
        try_tasks(rows * kv_heads, |task| {
            let (row, kv_head) = (task / kv_heads, task % kv_heads);
            let keys = seen(spans, row, kept, window)?;
            let query = row * width + kv_head * group.heads * group.head_dim;
            // SAFETY: the keys were checked; these heads of the row are this task's own, and the scratch memory has what
            // the group asked for and a score for each key and head.
            unsafe { attend(group, keys, query, kv_head * group.head_dim, scratch.thread()) }
            Ok(())
        })
    }))
}

/// The rows of k and v that a row of q sees.
fn seen(spans: Ptr<u32>, row: usize, kept: usize, window: usize) -> Result<Range<usize>, String> {
    // SAFETY: spans are u32 `[rows, 2]`, which the op does not write.
    let [start, end] = unsafe { [*spans.at(2 * row), *spans.at(2 * row + 1)] }.map(|x| x as usize);
    if start > end || end > kept {
        return Err(format!("row {row} has the span {start}..{end}, which is not a range of the {kept} rows kept"));
    }
    Ok(start.max(end.saturating_sub(window))..end)
}

/// The query heads that share a key head.
#[derive(Clone, Copy)]
struct Group<T> {
    q: Floats<T>,
    k: Floats<T>,
    v: Floats<T>,
    o: Floats<T>,
    heads: usize,
    head_dim: usize,
    /// Elements of a row of k and v.
    kv_width: usize,
    scale: T,
    cap: Option<T>,
}

impl<T> Group<T> {
    /// Elements of scratch memory beside the scores: queries, results, and a row of k or v.
    fn fixed(&self) -> Option<usize> {
        self.heads.checked_mul(2)?.checked_add(1)?.checked_mul(self.head_dim)
    }
}

simd! {
    /// The heads of a group of one row: their first element is `query` in q and o, and `column` in each row of k and v.
    unsafe fn attend<T: Real>(group: Group<T>, keys: Range<usize>, query: usize, column: usize, scratch: Ptr<T>) {
        let (heads, d, n) = (group.heads, group.head_dim, keys.len());
        let queries = scratch.slice_mut(0, heads * d);
        let results = scratch.slice_mut(heads * d, heads * d);
        let line = scratch.at(2 * heads * d);
        let scores = scratch.slice_mut((2 * heads + 1) * d, heads * n);
        group.q.load(query, heads * d, queries.as_mut_ptr());
        for (i, j) in keys.clone().enumerate() {
            let key = std::slice::from_raw_parts(group.k.read(j * group.kv_width + column, d, line), d);
            for h in 0..heads {
                scores[h * n + i] = group.scale * dot(&queries[h * d..(h + 1) * d], key);
            }
        }
        results.fill(T::ZERO);
        for h in 0..heads {
            let scores = &mut scores[h * n..(h + 1) * n];
            let inverse = softmax(scores, group.cap);
            // Scaled here, each result is a sum of as many products.
            scores.iter_mut().for_each(|p| *p = *p * inverse);
        }
        for (i, j) in keys.enumerate() {
            let value = std::slice::from_raw_parts(group.v.read(j * group.kv_width + column, d, line), d);
            for h in 0..heads {
                let p = scores[h * n + i];
                for (sum, x) in results[h * d..(h + 1) * d].iter_mut().zip(value) {
                    *sum = x.mul_add(p, *sum);
                }
            }
        }
        group.o.store(query, heads * d, results.as_ptr());
    }
}

/// Scores to `exp(s - max)`; returns 1 / their sum, or 0 without scores.
#[inline(always)]
fn softmax<T: Real>(scores: &mut [T], cap: Option<T>) -> T {
    if let Some(cap) = cap {
        scores.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
    }
    let largest = scores.iter().fold(T::NEG_INFINITY, |largest, s| s.max(largest));
    let mut sum = T::ZERO;
    for s in scores.iter_mut() {
        *s = (*s - largest).exp();
        sum += *s;
    }
    if scores.is_empty() { T::ZERO } else { T::ONE / sum }
}

#[cfg(test)]
mod tests {
    use super::super::attention::tests::{cases, inputs, naive, op};
    use super::*;
    use crate::testing::{Tensor, check, check_bf16, error, spans};
    use sparta_graph::DType;
    use sparta_graph::ops::Attention;

    /// What attention computes in segments, it computes with spans that end at each row.
    #[test]
    fn agrees_with_attention_in_segments() {
        for (op, lengths) in cases().into_iter().filter(|(op, _)| op.dropout == 0.0) {
            let all = inputs(&op, &lengths);
            let [o, _] = naive(&op, &all);
            let causal = all[3].words().chunks(2).zip(1..).flat_map(|(span, end)| [span[0], end]).collect::<Vec<_>>();
            let inputs = [&all[..3], &[Tensor::u32(&[causal.len() / 2, 2], &causal)]].concat();
            check(AttentionCached(op.clone()), &inputs, &[o], 2e-6);
            check_bf16(AttentionCached(op), &inputs, &[0, 1, 2], 2e-6);
        }
    }

    /// Rows with their own spans over more rows of k and v, in any order, one of them empty.
    #[test]
    fn rows_see_their_spans() {
        let op = Attention { window: Some(6), ..op(4, 2, 8) };
        let random = |rows: usize, heads: usize, seed| Tensor::random(DType::F32, &[rows, heads * 8], seed);
        let (q, k, v) = (random(3, 4, 1), random(20, 2, 2), random(20, 2, 3));
        let all = [(3, 20), (7, 7), (0usize, 4usize)];
        let expected = all.iter().enumerate().flat_map(|(row, &(start, end))| {
            let first = end.saturating_sub(6).max(start);
            let part = |x: &Tensor, heads: usize, rows: Range<usize>| {
                let width = heads * 8;
                Tensor::f32(&[rows.len(), width], &x.values()[rows.start * width..rows.end * width])
            };
            if first == end {
                return vec![0.0; 32];
            }
            // The last of as many queries in a segment of these keys.
            let n = end - first;
            let queries = part(&q, 4, row..row + 1).values().repeat(n);
            let rows = [Tensor::f32(&[n, 32], &queries), part(&k, 2, first..end), part(&v, 2, first..end), spans(&[n])];
            naive(&op, &rows)[0][(n - 1) * 32..].to_vec()
        });
        let expected: Vec<f64> = expected.collect();
        let spans: Vec<u32> = all.iter().flat_map(|&(start, end)| [start as u32, end as u32]).collect();
        let inputs = [q, k, v, Tensor::u32(&[3, 2], &spans)];
        check(AttentionCached(op.clone()), &inputs, &[expected], 2e-6);
        check_bf16(AttentionCached(op), &inputs, &[0, 1, 2], 2e-6);
    }

    #[test]
    fn bad_spans_are_refused() {
        let rows = |n| Tensor::random(DType::F32, &[n, 4], 1);
        for span in [[0, 6], [3, 2]] {
            let inputs = [rows(1), rows(5), rows(5), Tensor::u32(&[1, 2], &span)];
            assert!(error(AttentionCached(op(1, 1, 4)), &inputs).contains("which is not a range of the 5 rows"));
        }
    }
}
