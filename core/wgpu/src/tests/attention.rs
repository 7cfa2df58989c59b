use super::{Data, bench, f32s, open_with, rng, spans};
use crate::Options;
use sparta_graph::Op;
use sparta_graph::ops::{Attention, AttentionDelta, AttentionGrad};

/// Forward, delta and gradient of attention. The log-sum-exp that the gradient reads is near that of unit scores; the
/// kernels need not know that it belongs to these scores.
pub(super) fn check(op: Attention, lengths: &[usize]) {
    let Some(mut bench) = bench() else { return };
    // Attention binds whole tensors, larger than the low limit here; its tiles depend on the workgroup memory.
    bench.backends.truncate(1);
    bench.backends.extend(open_with(Options { max_workgroup_memory: Some(16 << 10), ..Options::default() }));
    let t = lengths.iter().sum::<usize>();
    let (wide, narrow) = ([t, op.heads * op.head_dim], [t, op.kv_heads * op.head_dim]);
    let extra: Vec<Data> = (op.dropout > 0.0).then(rng).into_iter().collect();
    let (q, k, v) = (f32s(&wide, 1), f32s(&narrow, 2), f32s(&narrow, 3));
    let mut inputs = vec![q.clone(), k.clone(), v.clone(), spans(lengths)];
    inputs.extend(extra.clone());
    bench.check_to(1e-5, op.clone(), &inputs);
    bench.check_bf16(1e-5, op.clone(), &inputs, &[0, 1, 2]);
    let forward: Op = op.clone().into();
    let outputs = super::run(&mut bench.backends[0], &forward, &inputs);
    let data = |i: usize| Data { ty: outputs[i].0.clone(), bytes: outputs[i].1.clone() };
    let (o, lse) = (data(0), data(1));
    let d_o = f32s(&wide, 4);
    let delta = AttentionDelta { heads: op.heads, head_dim: op.head_dim };
    let inputs = [o, d_o.clone(), lse];
    bench.check(delta.clone(), &inputs);
    bench.check_bf16(2e-6, delta.clone(), &inputs, &[0, 1]);
    let (ty, bytes) = super::run(&mut bench.backends[0], &delta.into(), &inputs).remove(0);
    let mut inputs = vec![q, k, v, d_o, Data { ty, bytes }, spans(lengths)];
    inputs.extend(extra);
    bench.check_to(1e-5, AttentionGrad(op.clone()), &inputs);
    bench.check_bf16(1e-5, AttentionGrad(op), &inputs, &[0, 1, 2, 3]);
}

pub(super) fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> Attention {
    let scale = (head_dim as f32).sqrt().recip();
    Attention { heads, kv_heads, head_dim, scale, window: None, soft_cap: None, dropout: 0.0, salt: 0 }
}

#[test]
fn one_segment() {
    check(plain(2, 2, 16), &[70]);
    check(plain(1, 1, 4), &[1]);
    check(plain(2, 2, 7), &[40]);
    check(plain(4, 2, 5), &[33, 9]);
}

#[test]
fn segments_and_grouped_heads() {
    check(plain(4, 2, 40), &[1, 37, 5, 64, 20]);
    check(plain(3, 1, 64), &[33, 32]);
}

#[test]
fn large_heads() {
    check(plain(2, 1, 256), &[40, 9]);
}

#[test]
fn sliding_window_and_soft_cap() {
    check(Attention { window: Some(10), ..plain(2, 1, 32) }, &[100, 8]);
    check(Attention { window: Some(40), soft_cap: Some(1.5), scale: 1.0, ..plain(2, 2, 24) }, &[90]);
}

#[test]
fn dropout() {
    check(Attention { dropout: 0.3, salt: 7, ..plain(4, 2, 16) }, &[50, 30]);
}
