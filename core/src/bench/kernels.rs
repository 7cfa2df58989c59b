//! Single ops at the sizes they have in training.

use super::shape::Shape;
use serde::{Deserialize, Serialize};
use sparta_graph::graph::TensorType;
use sparta_graph::ops::{
    Activation, Adam, Attention, AttentionDelta, AttentionGrad, GatedAct, Layout, Linear, RmsNorm, SampledGrad,
    Sampling, Scatter, Store,
};
use sparta_graph::plan::External;
use sparta_graph::{Backend, BackendError, DType, Graph, GraphError, Plan, Value};
use sparta_model::Result;
use sparta_train::{Ceiling, best_time, numbers};

/// The measurement of an op.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    pub name: String,
    pub precision: DType,
    pub seconds: f64,
    pub gflops: f64,
    /// Bytes of the operands, each counted once.
    pub gb_per_s: f64,
    /// Share of the arithmetic or memory ceiling, whichever is larger.
    pub share_of_ceiling: f64,
}

/// Rows of the operands.
const ROWS: usize = 2048;
/// Sparse gradients and updates touch one in this many elements of a weight.
const ONE_IN: usize = 20;

/// Measures the ops of a layer of this shape, and raises the ceiling to what they reach; shares are computed later, when
/// the ceiling is final. Ops that do not fit the device's memory, or would take longer than `longest` seconds at its
/// ceiling, are reported to `left_out` with the reason.
///
/// Errors: a device that fails.
pub fn measure(
    device: &mut dyn Backend,
    shape: &Shape,
    precision: DType,
    ceiling: &mut Ceiling,
    longest: f64,
    mut left_out: impl FnMut(String),
) -> Result<Vec<Kernel>> {
    let mut found = Vec::new();
    for (name, plan) in plans(device, shape, precision)? {
        let lengths = [ROWS];
        let flops = plan.calls.iter().map(|call| call.packed_flops(&lengths)).sum::<u64>();
        let bytes = plan.calls.iter().map(|call| call.bytes()).sum::<u64>();
        let least = ceiling.least_seconds(precision, flops, bytes);
        if least > longest {
            left_out(format!("{name} in {precision}: one call takes at least {least:.1} s"));
            continue;
        }
        let time = match best_time(device, &plan, |external| data(external, shape.hidden)) {
            Ok(time) => time.as_secs_f64(),
            Err(BackendError::OutOfMemory { bytes, .. }) => {
                left_out(format!("{name} in {precision}: no memory for {bytes} bytes"));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        ceiling.raise(precision, flops, bytes, time);
        found.push((name, time, flops, bytes));
    }
    let kernel = |(name, seconds, flops, bytes): (String, f64, u64, u64)| Kernel {
        name,
        precision,
        seconds,
        gflops: flops as f64 * 1e-9 / seconds,
        gb_per_s: bytes as f64 * 1e-9 / seconds,
        share_of_ceiling: 0.0,
    };
    Ok(found.into_iter().map(kernel).collect())
}

/// Builds the graph of an op on external inputs; each output is stored, so that the op is not eliminated.
struct Builder {
    graph: Graph,
}

impl Builder {
    fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Value {
        self.graph.external(name, dtype, shape)
    }

    fn keep(&mut self, outputs: &[Value]) -> std::result::Result<(), GraphError> {
        for (i, &output) in outputs.iter().enumerate() {
            let TensorType { dtype, shape } = self.graph.ty(output)?.clone();
            let to = self.graph.external(format!("out.{i}"), dtype, shape);
            self.graph.apply(Store {}.into(), &[to, output])?;
        }
        Ok(())
    }
}

fn plans(device: &dyn Backend, shape: &Shape, dtype: DType) -> Result<Vec<(String, Plan)>> {
    type Build<'a> = &'a dyn Fn(&mut Builder) -> std::result::Result<Vec<Value>, GraphError>;
    let (d, f) = (shape.hidden, shape.intermediate);
    let (q_width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let chosen = (f * d).div_ceil(ONE_IN);
    let product = |b: &mut Builder, layout, x: [usize; 2], y: [usize; 2], output| {
        let inputs = [b.input("a", dtype, &x), b.input("b", dtype, &y)];
        b.graph.apply(Linear { output, ..Linear::plain(layout) }.into(), &inputs)
    };
    let attention = Attention {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        scale: 1.0 / (shape.head_dim as f32).sqrt(),
        window: None,
        soft_cap: None,
        dropout: 0.0,
        salt: 0,
    };
    let qkv = |b: &mut Builder| {
        let widths = [("q", q_width), ("k", kv_width), ("v", kv_width)];
        let [q, k, v] = widths.map(|(name, width)| b.input(name, dtype, &[ROWS, width]));
        [q, k, v, b.input("spans", DType::U32, &[ROWS, 2])]
    };
    let list: [(String, Build); 9] = [
        (format!("linear nt {ROWS} x {f} x {d}"), &|b| product(b, Layout::Nt, [ROWS, d], [f, d], None)),
        (format!("linear nn {ROWS} x {d} x {f}"), &|b| product(b, Layout::Nn, [ROWS, f], [f, d], None)),
        (format!("linear tn {f} x {d} x {ROWS}"), &|b| product(b, Layout::Tn, [ROWS, f], [ROWS, d], Some(DType::F32))),
        (format!("linear tn 8 x {d} x {ROWS}"), &|b| product(b, Layout::Tn, [ROWS, 8], [ROWS, d], Some(DType::F32))),
        (format!("sampled_grad {f} x {d}, 1 of {ONE_IN}"), &|b| {
            let (dy, x) = (b.input("dy", dtype, &[ROWS, f]), b.input("x", dtype, &[ROWS, d]));
            let index = b.input("index", DType::U32, &[chosen]);
            let row_ptr = b.input("row_ptr", DType::U32, &[f + 1]);
            b.graph.apply(SampledGrad { scale: 1.0, sampling: Sampling::Auto }.into(), &[dy, x, index, row_ptr])
        }),
        (format!("attention {ROWS}, {} heads of {}", shape.heads, shape.head_dim), &|b| {
            let inputs = qkv(b);
            b.graph.apply(attention.clone().into(), &inputs)
        }),
        (format!("attention_grad {ROWS}, {} heads of {}", shape.heads, shape.head_dim), &|b| {
            let [q, k, v, spans] = qkv(b);
            let [o, d_o] = ["o", "d_o"].map(|name| b.input(name, dtype, &[ROWS, q_width]));
            let lse = b.input("lse", DType::F32, &[ROWS, shape.heads]);
            let delta = AttentionDelta { heads: shape.heads, head_dim: shape.head_dim };
            let ld = b.graph.one(delta, &[o, d_o, lse])?;
            b.graph.apply(AttentionGrad(attention.clone()).into(), &[q, k, v, d_o, ld, spans])
        }),
        (format!("gated_act {ROWS} x {f}"), &|b| {
            let inputs = ["gate", "up"].map(|name| b.input(name, dtype, &[ROWS, f]));
            b.graph.apply(GatedAct { act: Activation::Silu }.into(), &inputs)
        }),
        (format!("rms_norm {ROWS} x {d}"), &|b| {
            let inputs = [b.input("x", dtype, &[ROWS, d]), b.input("w", dtype, &[d])];
            b.graph.apply(RmsNorm { eps: 1e-6, plus_one: false, output: None, rate: false }.into(), &inputs)
        }),
    ];
    let mut plans = Vec::new();
    for (name, build) in list {
        let mut builder = Builder { graph: Graph::new() };
        let outputs = build(&mut builder)?;
        builder.keep(&outputs)?;
        plans.push((name, device.info().plan(&builder.graph)));
    }
    plans.extend(updates(device, [f, d], chosen)?);
    Ok(plans)
}

/// A sparse method's update of a weight after each step.
fn updates(device: &dyn Backend, [rows, columns]: [usize; 2], chosen: usize) -> Result<[(String, Plan); 2]> {
    let mut graph = Graph::new();
    let [p, m, v, grad] =
        ["p", "first_moment", "second_moment", "grad"].map(|name| graph.external(name, DType::F32, [chosen]));
    let clip = graph.external("clip", DType::F32, [2]);
    let step = graph.external("step", DType::F32, [sparta_graph::ops::step::LEN]);
    let adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, lr_factor: 1.0 };
    graph.apply(adam.into(), &[p, m, v, grad, clip, step])?;
    let adam = device.info().plan(&graph);
    let mut graph = Graph::new();
    let w = graph.external("w", DType::BF16, [rows, columns]);
    let index = graph.external("index", DType::U32, [chosen]);
    let [base, delta] = ["base", "delta"].map(|name| graph.external(name, DType::F32, [chosen]));
    graph.apply(Scatter::default().into(), &[w, index, base, delta])?;
    let scatter = device.info().plan(&graph);
    Ok([(format!("adam {chosen}"), adam), (format!("scatter {chosen} of {rows} x {columns}"), scatter)])
}

/// Contents of an input: random floats, every [`ONE_IN`]th index of a weight with this many columns, or one segment of
/// all rows.
fn data(external: &External, columns: usize) -> Vec<u8> {
    let n = external.ty.numel();
    let words = |word: &dyn Fn(usize) -> usize| (0..n).flat_map(|i| (word(i) as u32).to_le_bytes()).collect();
    match external.name.as_str() {
        "index" => words(&|i| i * ONE_IN),
        "row_ptr" => words(&|row| (row * columns).div_ceil(ONE_IN)),
        "spans" => words(&|i| (i % 2) * ROWS),
        // Second moments are never negative.
        "second_moment" => vec![0; n * 4],
        // A negative clip factor would cancel the update; bias corrections are not 0.
        "clip" | "step" => 1f32.to_le_bytes().repeat(n),
        _ => numbers(external),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_sets_are_those_of_a_sparse_method() {
        let external =
            |name: &str, n: usize| External { name: name.into(), offset: 0, ty: TensorType::new(DType::U32, [n]) };
        let words = |name: &str, n: usize| {
            let bytes = data(&external(name, n), 30);
            bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect::<Vec<_>>()
        };
        // 4 rows of 30 elements, of which 0, 20, ..., 100 are chosen.
        assert_eq!(words("index", 6), [0, 20, 40, 60, 80, 100]);
        assert_eq!(words("row_ptr", 5), [0, 2, 3, 5, 6]);
    }
}
