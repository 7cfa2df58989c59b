use super::add::add;
use super::attention::{Block, Dropout, QUERIES, Shape, View, factor, query_blocks};
use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Need, Ptr, Scratch};
use crate::parallel::{self, tasks};
use crate::real::{Matrix, Operand, Real};
use crate::segments::segments;
use crate::simd::{dot, simd};
use sparta_graph::ops::{AttentionDelta, AttentionGrad};
use std::ops::Range;

pub fn prepare_delta<T: Real>(op: &AttentionDelta, io: &Io) -> Result<Kernel, String> {
    let ((rows, heads), head_dim) = (io.matrix(2)?, op.head_dim);
    let (o, d_o, lse, ld) = (io.floats::<T>(0)?, io.floats::<T>(1)?, io.real::<T>(2)?, io.output::<T>(0)?);
    let per_thread = if o.is_full() { 0 } else { 2 * head_dim * size_of::<T>() };
    Ok(Kernel::new(Need { shared: 0, per_thread }, move |scratch| {
        parallel::rows(rows * heads, head_dim, |part| {
            let buffers: Ptr<T> = scratch.thread();
            for i in part {
                let at = i * head_dim;
                // SAFETY: head i, counted over all rows, of the tensors, and the buffers of this thread.
                unsafe {
                    let head = |x: Floats<T>, buffer| {
                        std::slice::from_raw_parts(x.read(at, head_dim, buffers.at(buffer)), head_dim)
                    };
                    *ld.at(2 * i) = *lse.at(i);
                    *ld.at(2 * i + 1) = head_dot(head(o, 0), head(d_o, head_dim));
                }
            }
        });
        Ok(())
    }))
}

simd! {
    unsafe fn head_dot<T: Real>(x: &[T], y: &[T]) -> T {
        dot(x, y)
    }
}

pub fn prepare<T: Real>(op: &AttentionGrad, io: &Io) -> Result<Kernel, String> {
    let shape = Shape::<T>::new(&op.0, io.matrix(0)?.0)?;
    let inputs = Inputs { q: io.floats(0)?, k: io.floats(1)?, v: io.floats(2)?, d_o: io.floats(3)?, ld: io.real(4)? };
    let spans = io.words(5)?;
    let rng = if op.0.dropout > 0.0 { Some(io.words(6)?) } else { None };
    let (dq, dk, dv) = (io.float_output::<T>(0)?, io.float_output::<T>(1)?, io.float_output::<T>(2)?);
    // Blocks of queries, and query heads that share a key head, add up their parts of dk and dv as numbers, in a fixed
    // order.
    let own = match (shape.group, dk, dv) {
        (1, Floats::Full(dk), Floats::Full(dv)) => Some((dk, dv)),
        _ => None,
    };
    let parts = if own.is_none() { 2 * shape.rows * shape.width } else { 0 };
    let need = Need { shared: parts * size_of::<T>(), per_thread: Buffers::<T>::len(&shape, dk) * size_of::<T>() };
    Ok(Kernel::new(need, move |scratch| {
        let segments = segments(spans, shape.rows)?;
        let shared: Ptr<T> = scratch.shared();
        let (dk_parts, dv_parts) = own.unwrap_or((shared, Ptr::new(shared.at(parts / 2))));
        let head = Head { shape, inputs, dq, dk: dk_parts, dv: dv_parts, dropout: shape.dropout(rng) };
        tasks(segments.len() * shape.heads, |task| {
            // SAFETY: a task writes the gradients of one segment and head, which are its own.
            unsafe { head.run(&segments[task / shape.heads], task % shape.heads, scratch) }
        });
        if own.is_none() {
            for (parts, sum) in [(dk_parts, dk), (dv_parts, dv)] {
                parallel::rows(shape.rows, shape.width, |rows| {
                    // SAFETY: rows of the tensors, which no other task touches, and a buffer of this thread.
                    rows.for_each(|row| unsafe { add_group(shape, row, parts, sum, scratch.thread()) });
                });
            }
        }
        Ok(())
    }))
}

#[derive(Clone, Copy)]
struct Inputs<T> {
    q: Floats<T>,
    k: Floats<T>,
    v: Floats<T>,
    d_o: Floats<T>,
    ld: Ptr<T>,
}

/// The scratch memory of a thread. It has rows of one head if they must be converted.
struct Buffers<T> {
    /// `[rows, QUERIES]`
    p: Ptr<T>,
    dp: Ptr<T>,
    /// `[rows, head_dim]`
    k: Ptr<T>,
    v: Ptr<T>,
    /// `[QUERIES, head_dim]`
    q: Ptr<T>,
    d_o: Ptr<T>,
    dq: Ptr<T>,
}

impl<T: Real> Buffers<T> {
    /// How many numbers the buffers hold, for gradients that are stored like `dk`.
    fn len(shape: &Shape<T>, dk: Floats<T>) -> usize {
        let converted = if dk.is_full() { 0 } else { (2 * shape.rows + 3 * QUERIES) * shape.head_dim };
        2 * shape.rows * QUERIES + converted
    }

    fn new(shape: &Shape<T>, start: Ptr<T>) -> Self {
        let (scores, keys, queries) = (shape.rows * QUERIES, shape.rows * shape.head_dim, QUERIES * shape.head_dim);
        let after = |ptr: Ptr<T>, len| Ptr::new(ptr.at(len));
        let (p, dp) = (start, after(start, scores));
        let k = after(dp, scores);
        let v = after(k, keys);
        let q = after(v, keys);
        let d_o = after(q, queries);
        Buffers { p, dp, k, v, q, d_o, dq: after(d_o, queries) }
    }
}

struct Head<T> {
    shape: Shape<T>,
    inputs: Inputs<T>,
    dq: Floats<T>,
    /// Per query head, even if several share a key head.
    dk: Ptr<T>,
    dv: Ptr<T>,
    dropout: Option<Dropout<T>>,
}

impl<T: Real> Head<T> {
    /// # Safety
    /// The segment is in the tensors, and nothing else touches its gradients for this head.
    unsafe fn run(&self, segment: &Range<usize>, head: usize, scratch: &Scratch) {
        let (shape, width) = (self.shape, self.shape.width);
        let column = head * shape.head_dim;
        for row in segment.clone() {
            // SAFETY: one head of a row of the gradients.
            unsafe {
                self.dk.slice_mut(row * width + column, shape.head_dim).fill(T::ZERO);
                self.dv.slice_mut(row * width + column, shape.head_dim).fill(T::ZERO);
            }
        }
        let buffers = Buffers::new(&shape, scratch.thread());
        // SAFETY: the rows of the segment, and buffers that have room for them.
        let (k, v) = unsafe {
            let rows = |x, buffer| shape.keys_of(x, segment.clone(), head, buffer);
            (rows(self.inputs.k, buffers.k), rows(self.inputs.v, buffers.v))
        };
        for block in query_blocks(std::slice::from_ref(segment)) {
            // SAFETY: the buffers are those of this thread.
            unsafe { self.block(&block, head, k, v, &buffers) }
        }
    }

    /// `k` and `v` are the key rows of the segment.
    ///
    /// # Safety
    /// As for [`Head::run`]; the buffers have the lengths that they ask for.
    unsafe fn block(&self, block: &Block, head: usize, k: Operand<T>, v: Operand<T>, buffers: &Buffers<T>) {
        let (shape, Inputs { q, d_o, ld, .. }, &Buffers { p, dp, .. }) = (self.shape, self.inputs, buffers);
        let (keys, rows) = (shape.keys(block), block.rows.clone());
        let (n, m, width) = (rows.len(), keys.len(), shape.width);
        let key_at = keys.start * width + head * shape.head_dim;
        let skipped = keys.start - block.segment.start;
        let key_rows = |x: Operand<T>| Operand::rows(x.at.wrapping_add(skipped * x.row), x.row);
        let (k, v) = (key_rows(k), key_rows(v));
        let mut terms = Terms { lse: [T::ZERO; QUERIES], delta: [T::ZERO; QUERIES], cap: shape.cap, head };
        // SAFETY: the rows are in the tensors; `ld` is `[rows, heads, 2]`.
        unsafe {
            for (l, row) in rows.clone().enumerate() {
                let ld = ld.at(2 * (row * shape.heads + head));
                (terms.lse[l], terms.delta[l]) = (*ld, *ld.add(1));
            }
            let q = shape.queries(q, rows.clone(), head, buffers.q);
            let d_o = shape.queries(d_o, rows.clone(), head, buffers.d_o);
            shape.scores([m, n], q, k, p);
            T::gemm([m, n, shape.head_dim], Matrix::rows(dp.at(0), QUERIES), false, v, d_o.transposed(), T::ONE);
            differentiate(shape.view(keys.start, rows.start, n, p), m, dp, &terms, self.dropout);

            let ds = Operand::columns(dp.at(0).cast_const(), QUERIES);
            let dq = shape.query_target(self.dq, rows.start, head, buffers.dq);
            T::gemm([n, shape.head_dim, m], dq, false, ds, k, shape.scale);
            for (i, row) in rows.enumerate() {
                let target = dq.at.add(i * dq.row);
                self.dq.finish(row * width + head * shape.head_dim, shape.head_dim, target);
            }

            let ds = Operand::rows(dp.at(0).cast_const(), QUERIES);
            let dk = Matrix::rows(self.dk.at(key_at), width);
            T::gemm([m, shape.head_dim, n], dk, true, ds, q, shape.scale);

            let p = Operand::rows(p.at(0).cast_const(), QUERIES);
            let dv = Matrix::rows(self.dv.at(key_at), width);
            T::gemm([m, shape.head_dim, n], dv, true, p, d_o, T::ONE);
        }
    }
}

/// What the gradient of the softmax needs, per query of a block.
struct Terms<T> {
    lse: [T; QUERIES],
    delta: [T; QUERIES],
    cap: Option<T>,
    head: usize,
}

simd! {
    /// From scores and `dp = do . v`: the probabilities after dropout in place of the scores, and the gradient of the
    /// scores before the soft-cap in place of dp.
    unsafe fn differentiate<T: Real>(
        view: View<T>, keys: usize, dp: Ptr<T>, terms: &Terms<T>, dropout: Option<Dropout<T>>,
    ) {
        for key in 0..keys {
            let s = &mut *view.at.at(key * QUERIES).cast::<[T; QUERIES]>();
            let dp = &mut *dp.at(key * QUERIES).cast::<[T; QUERIES]>();
            let mut slope = [T::ONE; QUERIES];
            if let Some(cap) = terms.cap {
                for l in 0..QUERIES {
                    let t = (s[l] / cap).tanh();
                    s[l] = cap * t;
                    slope[l] = T::ONE - t * t;
                }
            }
            for (s, &lse) in s.iter_mut().zip(&terms.lse) {
                *s = (*s - lse).exp();
            }
            let mut p = *s;
            if let Some(dropout) = dropout {
                for l in 0..QUERIES {
                    let factor = factor(view.key + key, view.query + l, terms.head, dropout);
                    s[l] = s[l] * factor;
                    dp[l] = dp[l] * factor;
                }
            }
            for l in 0..QUERIES {
                p[l] = p[l] * (dp[l] - terms.delta[l]) * slope[l];
            }
            *dp = p;
            let seen = view.seen_by(view.key + key);
            if seen.len() < QUERIES {
                for x in [s, dp] {
                    x[..seen.start].fill(T::ZERO);
                    x[seen.end..].fill(T::ZERO);
                }
            }
        }
    }
}

/// Row `row` of `y`: the sum over the query heads of each key head.
///
/// # Safety
/// The row is in the tensors, and nothing else touches it; the buffer has room for a head.
unsafe fn add_group<T: Real>(shape: Shape<T>, row: usize, parts: Ptr<T>, y: Floats<T>, buffer: Ptr<T>) {
    let width = shape.head_dim;
    for head in 0..shape.heads / shape.group {
        let (at, first) = (row * shape.kv_width + head * width, row * shape.width + head * shape.group * width);
        // SAFETY: the caller vouches for the row and the buffer.
        unsafe {
            let target = y.target(at, buffer.at(0));
            target.copy_from_nonoverlapping(parts.at(first), width);
            (1..shape.group).for_each(|i| add(width, target, parts.at(first + i * width), target));
            y.finish(at, width, target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::tests::{cases, inputs, naive, pairs};
    use super::*;
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;

    #[test]
    fn gradients() {
        for (op, lengths) in cases() {
            let forward = inputs(&op, &lengths);
            let rows: usize = lengths.iter().sum();
            let (d, group, heads) = (op.head_dim, op.heads / op.kv_heads, op.heads);
            let [o, lse] = naive(&op, &forward);
            let (o, lse) = (Tensor::f32(&[rows, heads * d], &o), Tensor::f32(&[rows, heads], &lse));
            let d_o = Tensor::random(DType::F32, &[rows, heads * d], 9);
            let (delta_inputs, lse) = ([o.clone(), d_o.clone(), lse.clone()], lse.values());
            let products: Vec<f64> = o.values().iter().zip(d_o.values()).map(|(o, d_o)| o * d_o).collect();
            let deltas = products.chunks(d).map(|head| head.iter().sum());
            let ld: Vec<f64> = lse.iter().zip(deltas).flat_map(|(&lse, delta): (_, f64)| [lse, delta]).collect();
            check(AttentionDelta { heads, head_dim: d }, &delta_inputs, std::slice::from_ref(&ld), 2e-6);
            check_bf16(AttentionDelta { heads, head_dim: d }, &delta_inputs, &[0, 1], 2e-6);
            let ld = Tensor::f32(&[rows, heads, 2], &ld);

            let (q, k, v) = (forward[0].values(), forward[1].values(), forward[2].values());
            let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
            for (t, h) in (0..rows).flat_map(|t| (0..heads).map(move |h| (t, h))) {
                let d_o = &d_o.values()[(t * heads + h) * d..][..d];
                for (j, s, factor, slope) in pairs(&op, &forward, t, h) {
                    let (at, kv) = ((t * heads + h) * d, (j * op.kv_heads + h / group) * d);
                    let p = (s - lse[t * heads + h]).exp();
                    let dp = factor * (0..d).map(|i| d_o[i] * v[kv + i]).sum::<f64>();
                    let ds = p * (dp - ld.values()[2 * (t * heads + h) + 1]) * slope * op.scale as f64;
                    for i in 0..d {
                        dq[at + i] += ds * k[kv + i];
                        dk[kv + i] += ds * q[at + i];
                        dv[kv + i] += p * factor * d_o[i];
                    }
                }
            }
            let mut inputs = forward[..3].to_vec();
            inputs.extend([d_o, ld, forward[3].clone()]);
            inputs.extend(forward.get(4).cloned());
            check(AttentionGrad(op.clone()), &inputs, &[dq, dk, dv], 4e-6);
            check_bf16(AttentionGrad(op), &inputs, &[0, 1, 2, 3], 4e-6);
        }
    }
}
