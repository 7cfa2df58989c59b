use super::add::add;
use super::attention::{Block, Dropout, QUERIES, Shape, View, factor, query_blocks};
use crate::bind::{Io, Kernel};
use crate::memory::{Need, Ptr, Scratch};
use crate::parallel::{self, tasks};
use crate::real::{Matrix, Operand, Real};
use crate::segments::segments;
use crate::simd::{dot, simd};
use sparta_graph::ops::{AttentionDelta, AttentionGrad};
use std::ops::Range;

pub fn prepare_delta<T: Real>(op: &AttentionDelta, io: &Io) -> Result<Kernel, String> {
    let ((rows, heads), head_dim) = (io.matrix(2)?, op.head_dim);
    let (o, d_o, lse, ld) = (io.real::<T>(0)?, io.real::<T>(1)?, io.real::<T>(2)?, io.output::<T>(0)?);
    Ok(Kernel::plain(move || {
        parallel::rows(rows * heads, head_dim, |part| {
            for i in part {
                let at = i * head_dim;
                // SAFETY: head i, counted over all rows, of the tensors.
                unsafe {
                    *ld.at(2 * i) = *lse.at(i);
                    *ld.at(2 * i + 1) = head_dot(o.slice(at, head_dim), d_o.slice(at, head_dim));
                }
            }
        });
    }))
}

simd! {
    unsafe fn head_dot<T: Real>(x: &[T], y: &[T]) -> T {
        dot(x, y)
    }
}

pub fn prepare<T: Real>(op: &AttentionGrad, io: &Io) -> Result<Kernel, String> {
    let shape = Shape::<T>::new(&op.0, io.matrix(0)?.0)?;
    let inputs = Inputs { q: io.real(0)?, k: io.real(1)?, v: io.real(2)?, d_o: io.real(3)?, ld: io.real(4)? };
    let spans = io.words(5)?;
    let rng = if op.0.dropout > 0.0 { Some(io.words(6)?) } else { None };
    let (dq, dk, dv) = (io.output::<T>(0)?, io.output::<T>(1)?, io.output::<T>(2)?);
    // Query heads that share a key head add up their parts afterwards, in a fixed order.
    let parts = if shape.group > 1 { 2 * shape.rows * shape.width } else { 0 };
    let scores = 2 * shape.rows * QUERIES;
    let need = Need { shared: parts * size_of::<T>(), per_thread: scores * size_of::<T>() };
    Ok(Kernel::new(need, move |scratch| {
        let segments = segments(spans, shape.rows)?;
        let shared: Ptr<T> = scratch.shared();
        let (dk_parts, dv_parts) = match shape.group {
            1 => (dk, dv),
            _ => (shared, Ptr::new(shared.at(shape.rows * shape.width))),
        };
        let head = Head { shape, inputs, dq, dk: dk_parts, dv: dv_parts, dropout: shape.dropout(rng) };
        tasks(segments.len() * shape.heads, |task| {
            // SAFETY: a task writes the gradients of one segment and head, which are its own.
            unsafe { head.run(&segments[task / shape.heads], task % shape.heads, scratch) }
        });
        if shape.group > 1 {
            for (parts, sum) in [(dk_parts, dk), (dv_parts, dv)] {
                parallel::rows(shape.rows, shape.width, |rows| {
                    // SAFETY: rows of the tensors, which no other task touches.
                    rows.for_each(|row| unsafe { add_group(shape, row, parts, sum) });
                });
            }
        }
        Ok(())
    }))
}

#[derive(Clone, Copy)]
struct Inputs<T> {
    q: Ptr<T>,
    k: Ptr<T>,
    v: Ptr<T>,
    d_o: Ptr<T>,
    ld: Ptr<T>,
}

struct Head<T> {
    shape: Shape<T>,
    inputs: Inputs<T>,
    dq: Ptr<T>,
    /// Per query head, also where several share a key head.
    dk: Ptr<T>,
    dv: Ptr<T>,
    dropout: Option<Dropout<T>>,
}

impl<T: Real> Head<T> {
    /// # Safety
    /// The segment lies in the tensors, and nobody else touches its gradients for this head.
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
        let p: Ptr<T> = scratch.thread();
        let dp = Ptr::new(p.at(shape.rows * QUERIES));
        for block in query_blocks(std::slice::from_ref(segment)) {
            // SAFETY: the scratch memory has twice QUERIES elements for every row.
            unsafe { self.block(&block, head, p, dp) }
        }
    }

    /// # Safety
    /// As for [`Head::run`]; `p` and `dp` have QUERIES elements per key.
    unsafe fn block(&self, block: &Block, head: usize, p: Ptr<T>, dp: Ptr<T>) {
        let (shape, Inputs { q, k, v, d_o, ld }) = (self.shape, self.inputs);
        let (keys, rows) = (shape.keys(block), block.rows.clone());
        let (n, m, width) = (rows.len(), keys.len(), shape.width);
        let (at, key_at) = (rows.start * width + head * shape.head_dim, keys.start * width + head * shape.head_dim);
        let mut terms = Terms { lse: [T::ZERO; QUERIES], delta: [T::ZERO; QUERIES], cap: shape.cap, head };
        // SAFETY: the rows lie in the tensors; `ld` is `[rows, heads, 2]`.
        unsafe {
            for (l, row) in rows.clone().enumerate() {
                let ld = ld.at(2 * (row * shape.heads + head));
                (terms.lse[l], terms.delta[l]) = (*ld, *ld.add(1));
            }
            shape.scores(keys.clone(), rows.clone(), head, q, k, p);
            let d_o_columns = Operand::columns(d_o.at(at).cast_const(), width);
            let values = shape.key_value(keys.start, head, v);
            T::gemm([m, n, shape.head_dim], Matrix::rows(dp.at(0), QUERIES), false, values, d_o_columns, T::ONE);
            differentiate(shape.view(keys.start, rows.start, n, p), m, dp, &terms, self.dropout);

            let ds = Operand::columns(dp.at(0).cast_const(), QUERIES);
            let key_rows = shape.key_value(keys.start, head, k);
            let dq = Matrix::rows(self.dq.at(at), width);
            T::gemm([n, shape.head_dim, m], dq, false, ds, key_rows, shape.scale);

            let ds = Operand::rows(dp.at(0).cast_const(), QUERIES);
            let queries = Operand::rows(q.at(at).cast_const(), width);
            let dk = Matrix::rows(self.dk.at(key_at), width);
            T::gemm([m, shape.head_dim, n], dk, true, ds, queries, shape.scale);

            let p = Operand::rows(p.at(0).cast_const(), QUERIES);
            let d_o_rows = Operand::rows(d_o.at(at).cast_const(), width);
            let dv = Matrix::rows(self.dv.at(key_at), width);
            T::gemm([m, shape.head_dim, n], dv, true, p, d_o_rows, T::ONE);
        }
    }
}

/// Per query of a block what the gradient of the softmax needs.
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
/// The row lies in the tensors, and nobody else touches it.
unsafe fn add_group<T: Real>(shape: Shape<T>, row: usize, parts: Ptr<T>, y: Ptr<T>) {
    let width = shape.head_dim;
    for head in 0..shape.heads / shape.group {
        let (y, first) = (y.at(row * shape.kv_width + head * width), row * shape.width + head * shape.group * width);
        // SAFETY: the caller vouches for the row.
        unsafe {
            y.copy_from_nonoverlapping(parts.at(first), width);
            (1..shape.group).for_each(|i| add(width, y, parts.at(first + i * width), y));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::tests::{cases, inputs, naive, pairs};
    use super::*;
    use crate::testing::{Tensor, check};
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
            check(AttentionGrad(op), &inputs, &[dq, dk, dv], 4e-6);
        }
    }
}
