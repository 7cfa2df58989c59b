use crate::bind::{Io, Kernel};
use crate::draw::threshold;
use crate::memory::{Floats, Need, Ptr};
use crate::parallel::tasks;
use crate::real::{Matrix, Operand, Real};
use crate::segments::segments;
use crate::simd::simd;
use sparta_graph::ops::Attention;
use sparta_graph::philox4x32_10;
use std::ops::Range;

/// Query rows of a block. Scores of a block are stored transposed, `[keys, QUERIES]`: every step of the softmax then
/// runs along the lanes of vectors.
pub const QUERIES: usize = 64;

pub fn prepare<T: Real>(op: &Attention, io: &Io) -> Result<Kernel, String> {
    let shape = Shape::<T>::new(op, io.matrix(0)?.0)?;
    let (q, k, v, spans) = (io.floats::<T>(0)?, io.floats::<T>(1)?, io.floats::<T>(2)?, io.words(3)?);
    let rng = if op.dropout > 0.0 { Some(io.words(4)?) } else { None };
    let (o, lse) = (io.float_output::<T>(0)?, io.output::<T>(1)?);
    // Scores; if they are converted, also keys or values, and queries or outputs.
    let converted = if q.is_full() { 0 } else { (shape.rows + QUERIES) * shape.head_dim };
    let need = Need { shared: 0, per_thread: (shape.rows * QUERIES + converted) * size_of::<T>() };
    Ok(Kernel::new(need, move |scratch| {
        let blocks = query_blocks(&segments(spans, shape.rows)?);
        let dropout = shape.dropout(rng);
        tasks(blocks.len() * shape.heads, |task| {
            let (block, head) = (&blocks[task / shape.heads], task % shape.heads);
            let (keys, n) = (shape.keys(block), block.rows.len());
            let scores: Ptr<T> = scratch.thread();
            let query_buffer = Ptr::new(scores.at(shape.rows * QUERIES));
            let key_buffer = Ptr::new(query_buffer.at(QUERIES * shape.head_dim));
            // SAFETY: the blocks lie in the tensors; the scratch memory has QUERIES elements for every key row, and the
            // buffers of converted rows; the outputs of this block and head are this task's own.
            unsafe {
                let queries = shape.queries(q, block.rows.clone(), head, query_buffer);
                let key_rows = shape.keys_of(k, keys.clone(), head, key_buffer);
                shape.scores([keys.len(), n], queries, key_rows, scores);
                let mut lanes = Lanes { lse: [T::ZERO; QUERIES], inverse: [T::ZERO; QUERIES] };
                let view = shape.view(keys.start, block.rows.start, n, scores);
                softmax(view, keys.len(), shape.cap, &mut lanes);
                if let Some(dropout) = dropout {
                    drop_out(view, keys.len(), head, dropout);
                }
                let p = Operand::columns(scores.at(0).cast_const(), QUERIES);
                let values = shape.keys_of(v, keys.clone(), head, key_buffer);
                let outputs = shape.query_target(o, block.rows.start, head, query_buffer);
                T::gemm([n, shape.head_dim, keys.len()], outputs, false, p, values, T::ONE);
                for (i, row) in block.rows.clone().enumerate() {
                    let target = std::slice::from_raw_parts_mut(outputs.at.add(i * outputs.row), shape.head_dim);
                    target.iter_mut().for_each(|o| *o = *o * lanes.inverse[i]);
                    o.finish(row * shape.width + head * shape.head_dim, shape.head_dim, target.as_ptr());
                    *lse.at(row * shape.heads + head) = lanes.lse[i];
                }
            }
        });
        Ok(())
    }))
}

/// Consecutive query rows of one segment.
pub struct Block {
    pub segment: Range<usize>,
    pub rows: Range<usize>,
}

pub fn query_blocks(segments: &[Range<usize>]) -> Vec<Block> {
    let of = |s: &Range<usize>| {
        let segment = s.clone();
        s.clone()
            .step_by(QUERIES)
            .map(move |row| Block { segment: segment.clone(), rows: row..segment.end.min(row + QUERIES) })
    };
    segments.iter().flat_map(of).collect()
}

/// The sizes and constants of an attention op.
#[derive(Clone, Copy)]
pub struct Shape<T> {
    pub rows: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Query heads per key head.
    pub group: usize,
    /// Elements of a row of q and o, and of k and v.
    pub width: usize,
    pub kv_width: usize,
    pub scale: T,
    pub cap: Option<T>,
    window: Option<usize>,
    p: f32,
    salt: u32,
}

/// The scores of a block of queries.
#[derive(Clone, Copy)]
pub struct View<T> {
    pub at: Ptr<T>,
    /// The first key and the first query row, and how many queries there are.
    pub key: usize,
    pub query: usize,
    pub queries: usize,
    window: Option<usize>,
}

impl<T> View<T> {
    /// The queries, counted from the first of the block, that see this key.
    #[inline(always)]
    pub fn seen_by(&self, key: usize) -> Range<usize> {
        let first = key.saturating_sub(self.query).min(self.queries);
        let end = self.window.map_or(usize::MAX, |w| key.saturating_add(w).saturating_sub(self.query));
        first..end.clamp(first, self.queries)
    }
}

#[derive(Clone, Copy)]
pub struct Dropout<T> {
    key: [u32; 2],
    salt: u32,
    dropped: u32,
    keep: T,
}

impl<T: Real> Shape<T> {
    pub fn new(op: &Attention, rows: usize) -> Result<Self, String> {
        let (width, kv_width) = (op.heads.checked_mul(op.head_dim), op.kv_heads.checked_mul(op.head_dim));
        let (Some(width), Some(kv_width)) = (width, kv_width) else {
            return Err(format!("{} heads of {} elements are too large to address", op.heads, op.head_dim));
        };
        Ok(Shape {
            rows,
            heads: op.heads,
            head_dim: op.head_dim,
            group: op.heads / op.kv_heads,
            width,
            kv_width,
            scale: T::from_f32(op.scale),
            cap: op.soft_cap.map(T::from_f32),
            window: op.window,
            p: op.dropout,
            salt: op.salt,
        })
    }

    pub fn dropout(&self, rng: Option<Ptr<u32>>) -> Option<Dropout<T>> {
        rng.map(|rng| Dropout {
            // SAFETY: rng is u32 `[4]`.
            key: unsafe { [*rng.at(0), *rng.at(1)] },
            salt: self.salt,
            dropped: threshold(self.p),
            keep: T::ONE / (T::ONE - T::from_f32(self.p)),
        })
    }

    /// The keys that some query of the block sees.
    pub fn keys(&self, block: &Block) -> Range<usize> {
        let oldest = self.window.map_or(0, |w| (block.rows.start + 1).saturating_sub(w));
        oldest.max(block.segment.start)..block.rows.end
    }

    pub fn view(&self, key: usize, query: usize, queries: usize, at: Ptr<T>) -> View<T> {
        View { at, key, query, queries, window: self.window }
    }

    /// Rows of one query head of q, o or do, as numbers: where they lie, or converted into `buffer`.
    ///
    /// # Safety
    /// The rows are in the tensor, and the buffer has room for them, `[rows, head_dim]`.
    pub unsafe fn queries(&self, x: Floats<T>, rows: Range<usize>, head: usize, buffer: Ptr<T>) -> Operand<T> {
        // SAFETY: the caller vouches for it.
        unsafe { self.rows(x, rows, self.width, head * self.head_dim, buffer) }
    }

    /// Rows of k or v for the key head of a query head, as [`Shape::queries`].
    ///
    /// # Safety
    /// As for [`Shape::queries`].
    pub unsafe fn keys_of(&self, x: Floats<T>, rows: Range<usize>, head: usize, buffer: Ptr<T>) -> Operand<T> {
        // SAFETY: the caller vouches for it.
        unsafe { self.rows(x, rows, self.kv_width, head / self.group * self.head_dim, buffer) }
    }

    unsafe fn rows(&self, x: Floats<T>, rows: Range<usize>, width: usize, column: usize, buffer: Ptr<T>) -> Operand<T> {
        if let Floats::Full(x) = x {
            return Operand::rows(x.at(rows.start * width + column), width);
        }
        for (i, row) in rows.enumerate() {
            // SAFETY: the caller vouches for the row and the buffer.
            unsafe { x.load(row * width + column, self.head_dim, buffer.at(i * self.head_dim)) };
        }
        Operand::rows(buffer.at(0), self.head_dim)
    }

    /// Where to write rows of one query head from `row` on: straight to their place, or to `buffer`.
    pub fn query_target(&self, y: Floats<T>, row: usize, head: usize, buffer: Ptr<T>) -> Matrix<*mut T> {
        match y {
            Floats::Full(y) => Matrix::rows(y.at(row * self.width + head * self.head_dim), self.width),
            _ => Matrix::rows(buffer.at(0), self.head_dim),
        }
    }

    /// `scale * k q^T` of one head into `[keys, QUERIES]`.
    ///
    /// # Safety
    /// `size` are the numbers of keys and queries, whose rows are readable, and `scores` has QUERIES elements per key.
    pub unsafe fn scores(&self, size: [usize; 2], queries: Operand<T>, keys: Operand<T>, scores: Ptr<T>) {
        let (size, scores) = ([size[0], size[1], self.head_dim], Matrix::rows(scores.at(0), QUERIES));
        // SAFETY: the caller vouches for it.
        unsafe { T::gemm(size, scores, false, keys, queries.transposed(), self.scale) }
    }
}

/// Per query of a block: the log-sum-exp, and 1 / the sum of exp(s - max).
struct Lanes<T> {
    lse: [T; QUERIES],
    inverse: [T; QUERIES],
}

/// One row of scores, all lanes; lanes that hold no query may hold anything.
#[inline(always)]
unsafe fn row<'a, T>(view: View<T>, key: usize) -> &'a mut [T; QUERIES] {
    // SAFETY: the scores have QUERIES elements per key, and belong to one task.
    unsafe { &mut *view.at.at(key * QUERIES).cast() }
}

simd! {
    /// Scores to `exp(s - max)`, zero where the query does not see the key.
    unsafe fn softmax<T: Real>(view: View<T>, keys: usize, cap: Option<T>, lanes: &mut Lanes<T>) {
        let mut largest = [T::NEG_INFINITY; QUERIES];
        for key in 0..keys {
            let s = row(view, key);
            if let Some(cap) = cap {
                for s in s.iter_mut() {
                    *s = cap * (*s / cap).tanh();
                }
            }
            let seen = view.seen_by(view.key + key);
            if seen.len() < QUERIES {
                s[..seen.start].fill(T::NEG_INFINITY);
                s[seen.end..].fill(T::NEG_INFINITY);
            }
            for l in 0..QUERIES {
                largest[l] = s[l].max(largest[l]);
            }
        }
        // Lanes without a query have seen nothing.
        largest[view.queries..].fill(T::ZERO);
        let mut sums = [T::ZERO; QUERIES];
        for key in 0..keys {
            let s = row(view, key);
            for l in 0..QUERIES {
                s[l] = (s[l] - largest[l]).exp();
                sums[l] += s[l];
            }
        }
        for l in 0..view.queries {
            lanes.lse[l] = sums[l].ln() + largest[l];
            lanes.inverse[l] = T::ONE / sums[l];
        }
    }

    /// Zero where the key is dropped, divided by 1 - p elsewhere.
    pub unsafe fn drop_out<T: Real>(view: View<T>, keys: usize, head: usize, dropout: Dropout<T>) {
        for key in 0..keys {
            let (p, j) = (row(view, key), view.key + key);
            for (l, p) in p.iter_mut().enumerate() {
                *p = *p * factor(j, view.query + l, head, dropout);
            }
        }
    }
}

/// What dropout multiplies the probability of (key, query) by.
#[inline(always)]
pub fn factor<T: Real>(key: usize, query: usize, head: usize, dropout: Dropout<T>) -> T {
    let draw = philox4x32_10([key as u32, query as u32, head as u32, dropout.salt], dropout.key)[0];
    if draw < dropout.dropped { T::ZERO } else { dropout.keep }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16, error, spans};
    use sparta_graph::DType;

    pub fn op(heads: usize, kv_heads: usize, head_dim: usize) -> Attention {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Attention { heads, kv_heads, head_dim, scale, window: None, soft_cap: None, dropout: 0.0, salt: 3 }
    }

    /// Shapes of all kinds: grouped heads, windows, caps, dropout, segments longer than a block.
    pub fn cases() -> Vec<(Attention, Vec<usize>)> {
        vec![
            (op(1, 1, 4), vec![1]),
            (op(2, 2, 8), vec![5, 1, 3]),
            (op(4, 2, 16), vec![70, 2, 130]),
            (Attention { window: Some(3), ..op(2, 1, 8) }, vec![9, 1, 2]),
            (Attention { window: Some(66), ..op(2, 1, 8) }, vec![150, 4]),
            (Attention { soft_cap: Some(0.5), ..op(4, 1, 6) }, vec![10, 66]),
            (Attention { dropout: 0.3, ..op(2, 2, 8) }, vec![20, 67]),
            (Attention { dropout: 0.3, soft_cap: Some(1.5), window: Some(5), ..op(4, 2, 10) }, vec![20, 67, 1]),
        ]
    }

    pub fn inputs(op: &Attention, lengths: &[usize]) -> Vec<Tensor> {
        let rows = lengths.iter().sum();
        let random = |heads: usize, seed| Tensor::random(DType::F32, &[rows, heads * op.head_dim], seed);
        let mut inputs = vec![random(op.heads, 1), random(op.kv_heads, 2), random(op.kv_heads, 3), spans(lengths)];
        inputs.extend((op.dropout > 0.0).then(|| Tensor::u32(&[4], &[5, 6, 7, 8])));
        inputs
    }

    /// Score, dropout factor and derivative of the cap for every pair, straight from the definition.
    pub fn pairs(op: &Attention, inputs: &[Tensor], t: usize, h: usize) -> Vec<(usize, f64, f64, f64)> {
        let (q, k, spans) = (inputs[0].values(), inputs[1].values(), inputs[3].words());
        let (d, group) = (op.head_dim, op.heads / op.kv_heads);
        let seen = (spans[2 * t] as usize..=t).filter(|j| op.window.is_none_or(|w| *j + w > t));
        seen.map(|j| {
            let (q, k) = (&q[(t * op.heads + h) * d..][..d], &k[(j * op.kv_heads + h / group) * d..][..d]);
            let mut s = op.scale as f64 * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
            let mut slope = 1.0;
            if let Some(cap) = op.soft_cap {
                let tanh = (s / cap as f64).tanh();
                (s, slope) = (cap as f64 * tanh, 1.0 - tanh * tanh);
            }
            let mut factor = 1.0;
            if op.dropout > 0.0 {
                let key = inputs[4].words();
                let draw = philox4x32_10([j as u32, t as u32, h as u32, op.salt], [key[0], key[1]])[0];
                let dropped = (draw as f64) * 2f64.powi(-32) < op.dropout as f64;
                factor = if dropped { 0.0 } else { 1.0 / (1.0 - op.dropout as f64) };
            }
            (j, s, factor, slope)
        })
        .collect()
    }

    pub fn naive(op: &Attention, inputs: &[Tensor]) -> [Vec<f64>; 2] {
        let (rows, v) = (inputs[0].ty.shape[0], inputs[2].values());
        let (d, group) = (op.head_dim, op.heads / op.kv_heads);
        let (mut o, mut lse) = (vec![0.0; rows * op.heads * d], vec![0.0; rows * op.heads]);
        for (t, h) in (0..rows).flat_map(|t| (0..op.heads).map(move |h| (t, h))) {
            let pairs = pairs(op, inputs, t, h);
            let l = pairs.iter().map(|p| p.1.exp()).sum::<f64>().ln();
            lse[t * op.heads + h] = l;
            for (j, s, factor, _) in pairs {
                for i in 0..d {
                    o[(t * op.heads + h) * d + i] += (s - l).exp() * factor * v[(j * op.kv_heads + h / group) * d + i];
                }
            }
        }
        [o, lse]
    }

    #[test]
    fn forward() {
        for (op, lengths) in cases() {
            let inputs = inputs(&op, &lengths);
            let expected = naive(&op, &inputs);
            check(op.clone(), &inputs, &expected, 2e-6);
            check_bf16(op, &inputs, &[0, 1, 2], 2e-6);
        }
    }

    #[test]
    fn spans_that_are_not_segments_are_refused() {
        let mut inputs = inputs(&op(1, 1, 4), &[3]);
        inputs[3] = Tensor::u32(&[3, 2], &[0, 3, 0, 3, 1, 3]);
        assert!(error(op(1, 1, 4), &inputs).contains("row 2 has the span 1..3"));
    }
}
