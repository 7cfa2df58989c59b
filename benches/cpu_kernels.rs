//! Speed of the CPU backend's kernels: `cargo bench --workspace --bench cpu_kernels [-- FILTER]`.

use sparta_backend_cpu::Cpu;
use sparta_graph::graph::TensorType;
use sparta_graph::ops::*;
use sparta_graph::{Backend, BackendError, DType, Graph, Op, Plan};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// An input: its type, and its values if random numbers will not do.
type Input = (TensorType, Option<Vec<u32>>);

fn main() -> Result<()> {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let backend = Cpu::new(None)?;
    println!("{}, {}", backend.info().name, backend.info().driver);
    let mut bench = Bench { backend, filter };
    linear(&mut bench)?;
    attention(&mut bench)?;
    sampled(&mut bench)?;
    vocabulary_loss(&mut bench)?;
    elementwise(&mut bench)
}

fn linear(bench: &mut Bench) -> Result<()> {
    let sizes = [[1024, 288, 288], [1024, 288, 768], [512, 768, 768], [512, 768, 2048], [1024, 2048, 2048]];
    for [m, n, k] in sizes.into_iter().chain(sizes.map(|[m, n, k]| [m, k, n])) {
        for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
            product(bench, layout, [m, n, k], DType::F32, DType::F32)?;
            product(bench, layout, [m, n, k], DType::BF16, DType::BF16)?;
        }
        product(bench, Layout::Nt, [m, n, k], DType::F32, DType::BF16)?;
        product(bench, Layout::Nn, [m, n, k], DType::F32, DType::BF16)?;
    }
    for [m, n, k] in [[1, 49152, 576], [1, 1536, 576], [4, 49152, 576]] {
        for b in [DType::F32, DType::F16, DType::BF16] {
            product(bench, Layout::Nt, [m, n, k], DType::F32, b)?;
        }
        product(bench, Layout::Nt, [m, n, k], DType::BF16, DType::BF16)?;
    }
    for dtype in [DType::F32, DType::BF16] {
        for [m, n, k] in [[1024, 8, 768], [1024, 768, 8], [8, 2, 768]] {
            product(bench, Layout::Nt, [m, n, k], dtype, dtype)?;
        }
        for [m, n, k] in [[1024, 8, 768], [1024, 768, 8]] {
            product(bench, Layout::Nn, [m, n, k], dtype, dtype)?;
        }
        for [m, n, k] in [[768, 8, 1024], [8, 768, 1024]] {
            product(bench, Layout::Tn, [m, n, k], dtype, dtype)?;
        }
    }
    Ok(())
}

/// A product whose output has the type of `a`, or f32 if it is the gradient of a weight.
fn product(bench: &mut Bench, layout: Layout, [m, n, k]: [usize; 3], a_type: DType, b_type: DType) -> Result<()> {
    let (a, b) = match layout {
        Layout::Nt => ([m, k], [n, k]),
        Layout::Nn => ([m, k], [k, n]),
        Layout::Tn => ([k, m], [k, n]),
    };
    let output = if layout == Layout::Tn { DType::F32 } else { a_type };
    let op = Linear { output: Some(output), ..Linear::plain(layout) };
    let inputs = [(TensorType::new(a_type, a), None), (TensorType::new(b_type, b), None)];
    bench.flops(&format!("linear {layout:?} {a_type} {b_type} [{m}x{n}x{k}]"), op.into(), &inputs, None)
}

fn attention(bench: &mut Bench) -> Result<()> {
    let (heads, head_dim) = (12, 64);
    for (segments, length) in [(8, 256), (4, 128), (32, 32), (1, 2048)] {
        let rows = segments * length;
        let start = |row: usize| row / length * length;
        let spans = (0..rows).flat_map(|row| [start(row) as u32, (start(row) + length) as u32]).collect();
        let spans = (TensorType::new(DType::U32, [rows, 2]), Some(spans));
        let wide = || (TensorType::f32([rows, heads * head_dim]), None);
        let op = Attention {
            heads,
            kv_heads: heads,
            head_dim,
            scale: 0.125,
            window: None,
            soft_cap: None,
            dropout: 0.0,
            salt: 0,
        };
        let pairs = (segments * heads * length * (length + 1) / 2 * head_dim) as u64;
        let name = format!("[{segments}x{length} x {heads} heads x {head_dim}]");
        bench.flops(
            &format!("attention {name}"),
            op.clone().into(),
            &[wide(), wide(), wide(), spans.clone()],
            Some(4 * pairs),
        )?;
        let ld = (TensorType::f32([rows, heads, 2]), None);
        let inputs = [wide(), wide(), wide(), wide(), ld, spans];
        bench.flops(&format!("attention_grad {name}"), AttentionGrad(op).into(), &inputs, Some(10 * pairs))?;
    }
    Ok(())
}

fn sampled(bench: &mut Bench) -> Result<()> {
    for [t, rows, columns] in [[1024, 768, 768], [1024, 288, 288], [512, 2048, 768]] {
        let dense = [(TensorType::f32([t, rows]), None), (TensorType::f32([t, columns]), None)];
        let name = format!("dense gradient [{t}x{rows}x{columns}]");
        bench.flops(&name, Linear::plain(Layout::Tn).into(), &dense, None)?;
        for density in [0.005, 0.02, 0.05, 0.1, 0.2, 0.4] {
            let chosen = |i: &usize| f64::from(word(*i)) * 2f64.powi(-32) < density;
            let index: Vec<u32> = (0..rows * columns).filter(chosen).map(|i| i as u32).collect();
            let row_ptr = (0..=rows).map(|r| index.partition_point(|&i| (i as usize) < r * columns) as u32);
            let mut inputs = dense.to_vec();
            inputs.push((TensorType::new(DType::U32, [index.len()]), Some(index.clone())));
            inputs.push((TensorType::new(DType::U32, [rows + 1]), Some(row_ptr.collect())));
            for sampling in [Sampling::Sampled, Sampling::Tiled] {
                let name = format!("sampled_grad {sampling:?} {} % [{t}x{rows}x{columns}]", 100.0 * density);
                bench.flops(&name, SampledGrad { scale: 1.0, sampling }.into(), &inputs, None)?;
            }
        }
    }
    Ok(())
}

/// Compares `linear_cross_entropy`, with the gradients of hidden states and weight, with its products alone,
/// alternating between the two.
fn vocabulary_loss(bench: &mut Bench) -> Result<()> {
    const ROUNDS: usize = 7;
    for (tokens, width, vocabulary) in [(4096, 512, 32_000), (4096, 1024, 32_000), (1024, 512, 128_000)] {
        for dtype in [DType::F32, DType::BF16] {
            let name = format!("linear_cross_entropy {dtype} [{tokens}x{vocabulary}x{width}]");
            if !name.contains(&bench.filter) {
                continue;
            }
            let op = LinearCrossEntropy {
                hidden_grad: true,
                weight_grad: WeightGrad::Dense,
                ..LinearCrossEntropy::new(vocabulary, 1.0, None)
            };
            let types = [
                TensorType::new(dtype, [tokens, width]),
                TensorType::new(dtype, [vocabulary, width]),
                TensorType::new(DType::U32, [tokens]),
                TensorType::f32([step::LEN]),
            ];
            let products = bench.prepare(products(&op, &types)?, &[])?;
            let mut graph = Graph::new();
            apply(&mut graph, op.into(), &types)?;
            let labels = (0..tokens).map(|i| word(i) % vocabulary as u32).collect();
            let whole = bench.prepare(graph, &[None, None, Some(labels), Some(vec![1f32.to_bits(); step::LEN])])?;
            let mut times = [vec![], vec![]];
            for _ in 0..ROUNDS {
                for (run, times) in [&whole, &products].into_iter().zip(&mut times) {
                    times.push(bench.run(run)?.as_secs_f64());
                }
            }
            let [time, alone] = times.map(|times| times.into_iter().fold(f64::INFINITY, f64::min));
            let speed = whole.plan.flops() as f64 / time * 1e-9;
            println!("{name:60} {:9.1} us {speed:8.1} GFLOP/s, {:.3} of the products alone", time * 1e6, time / alone);
            bench.free(whole);
            bench.free(products);
        }
    }
    Ok(())
}

/// The products of the op, in its chunks.
fn products(op: &LinearCrossEntropy, types: &[TensorType]) -> Result<Graph> {
    let [hidden, weight, ..] = types else { return Err("hidden states and weight are missing".into()) };
    let (tokens, vocabulary, dtype) = (hidden.shape[0], weight.shape[0], hidden.dtype);
    let mut graph = Graph::new();
    let w = graph.external("weight", dtype, weight.shape.clone());
    let product = |layout, output| Linear { output: Some(output), ..Linear::plain(layout) };
    let mut sum: Option<sparta_graph::Value> = None;
    for start in (0..tokens).step_by(op.chunk) {
        let rows = op.chunk.min(tokens - start);
        let h = graph.external(format!("hidden {start}"), dtype, [rows, hidden.shape[1]]);
        let gradient = graph.external(format!("gradient of {rows}"), dtype, [rows, vocabulary]);
        let logits = graph.one(product(Layout::Nt, DType::F32), &[h, w])?;
        keep(&mut graph, logits, "logits")?;
        let d_hidden = graph.one(product(Layout::Nn, dtype), &[gradient, w])?;
        keep(&mut graph, d_hidden, "d_hidden")?;
        let inputs: Vec<_> = [Some(gradient), Some(h), sum].into_iter().flatten().collect();
        let op = Linear { residual: sum.is_some(), ..product(Layout::Tn, DType::F32) };
        sum = Some(graph.one(op, &inputs)?);
    }
    sum.map_or(Ok(()), |sum| keep(&mut graph, sum, "d_weight"))?;
    Ok(graph)
}

fn elementwise(bench: &mut Bench) -> Result<()> {
    for (rows, width) in [(1024, 768), (1024, 2048)] {
        let wide = || (TensorType::f32([rows, width]), None);
        let weight = (TensorType::f32([width]), None);
        let rng = (TensorType::new(DType::U32, [4]), None);
        let cases: [(Op, Vec<Input>); 10] = [
            (Add {}.into(), vec![wide(), wide()]),
            (Scale { factor: 0.5 }.into(), vec![wide()]),
            (RmsNorm { eps: 1e-6, plus_one: false, output: None, rate: false }.into(), vec![wide(), weight.clone()]),
            (RmsNormGrad { eps: 1e-6, plus_one: false }.into(), vec![wide(), weight, wide()]),
            (RmsNormGradW { width }.into(), vec![wide(), wide(), (TensorType::f32([rows, 1]), None)]),
            (GatedAct { act: Activation::Silu }.into(), vec![wide(), wide()]),
            (GatedAct { act: Activation::GeluTanh }.into(), vec![wide(), wide()]),
            (GatedActGrad { act: Activation::GeluTanh }.into(), vec![wide(), wide(), wide()]),
            (SoftCap { cap: 30.0 }.into(), vec![wide()]),
            (Dropout { p: 0.1, salt: 0 }.into(), vec![wide(), rng]),
        ];
        for (op, inputs) in cases {
            let name = match &op {
                Op::GatedAct(GatedAct { act }) => format!("gated_act {act:?} [{rows}x{width}]"),
                _ => format!("{} [{rows}x{width}]", op.name()),
            };
            bench.bytes(&name, op, &inputs)?;
        }
        let adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, lr_factor: 1.0 };
        let ones = |n: usize| (TensorType::f32([n]), Some(vec![1f32.to_bits(); n]));
        let inputs = [wide(), wide(), wide(), wide(), ones(2), ones(8)];
        bench.bytes(&format!("adam [{rows}x{width}]"), adam.into(), &inputs)?;
    }
    Ok(())
}

/// Applies an op to `input 0`, `input 1`, ... and keeps its first output.
fn apply(graph: &mut Graph, op: Op, types: &[TensorType]) -> Result<()> {
    let input = |(i, ty): (usize, &TensorType)| graph.external(format!("input {i}"), ty.dtype, ty.shape.clone());
    let inputs: Vec<_> = types.iter().enumerate().map(input).collect();
    match graph.apply(op, &inputs)?.first() {
        Some(&output) => keep(graph, output, "output"),
        None => Ok(()),
    }
}

/// Stores a value, so that what computes it is not dropped.
fn keep(graph: &mut Graph, value: sparta_graph::Value, name: &str) -> Result<()> {
    let ty = graph.ty(value)?.clone();
    let kept = graph.external(name, ty.dtype, ty.shape);
    graph.apply(Store {}.into(), &[kept, value])?;
    Ok(())
}

struct Bench {
    backend: Cpu,
    filter: String,
}

/// A plan on the device.
struct Run {
    id: sparta_graph::PlanId,
    plan: Plan,
    buffers: Vec<sparta_graph::BufferId>,
}

impl Bench {
    fn flops(&mut self, name: &str, op: Op, inputs: &[Input], flops: Option<u64>) -> Result<()> {
        let Some((time, plan)) = self.time(name, op, inputs)? else { return Ok(()) };
        let flops = flops.unwrap_or(plan.flops()) as f64;
        println!("{name:60} {:9.1} us {:8.1} GFLOP/s", time.as_secs_f64() * 1e6, flops / time.as_secs_f64() * 1e-9);
        Ok(())
    }

    fn bytes(&mut self, name: &str, op: Op, inputs: &[Input]) -> Result<()> {
        let Some((time, plan)) = self.time(name, op, inputs)? else { return Ok(()) };
        let bytes = plan.calls.iter().map(|call| call.bytes()).sum::<u64>() as f64;
        println!("{name:60} {:9.1} us {:8.1} GB/s", time.as_secs_f64() * 1e6, bytes / time.as_secs_f64() * 1e-9);
        Ok(())
    }

    /// The shortest time of one run, and the plan without the parts that only keep the op alive.
    fn time(&mut self, name: &str, op: Op, inputs: &[Input]) -> Result<Option<(Duration, Plan)>> {
        if !name.contains(&self.filter) {
            return Ok(None);
        }
        let (types, values): (Vec<TensorType>, Vec<_>) = inputs.iter().cloned().unzip();
        let mut graph = Graph::new();
        apply(&mut graph, op, &types)?;
        let run = self.prepare(graph, &values)?;
        let mut times = vec![];
        let start = Instant::now();
        while times.len() < 5 || start.elapsed() < Duration::from_millis(200) && times.len() < 1000 {
            times.push(self.run(&run)?);
        }
        Ok(Some((times.into_iter().min().unwrap_or_default(), self.free(run))))
    }

    /// The graph on the device, without the parts that only keep its ops alive. `values` are those of `input 0`, ...
    fn prepare(&mut self, graph: Graph, values: &[Option<Vec<u32>>]) -> Result<Run> {
        let mut plan = Plan::build(&graph, true);
        plan.calls.retain(|call| !matches!(call.op, Op::Store(_)));
        let arena = self.backend.alloc(DType::F32, plan.arena.div_ceil(4), "arena")?;
        let mut buffers = vec![];
        for external in &plan.externals {
            let buffer = self.backend.alloc(external.ty.dtype, external.ty.numel(), &external.name)?;
            let given = external.name.strip_prefix("input ").and_then(|i| values.get(i.parse::<usize>().ok()?));
            self.fill(buffer, &external.ty, given.and_then(Option::as_deref))?;
            buffers.push(buffer);
        }
        let id = self.backend.prepare(&plan, &[arena], &buffers)?;
        buffers.push(arena);
        Ok(Run { id, plan, buffers })
    }

    fn run(&mut self, run: &Run) -> Result<Duration> {
        let start = Instant::now();
        self.backend.run(run.id)?;
        Ok(start.elapsed())
    }

    fn free(&mut self, run: Run) -> Plan {
        self.backend.release(run.id);
        run.buffers.into_iter().for_each(|buffer| self.backend.free(buffer));
        run.plan
    }

    fn fill(
        &mut self,
        buffer: sparta_graph::BufferId,
        ty: &TensorType,
        values: Option<&[u32]>,
    ) -> std::result::Result<(), BackendError> {
        let random = |i: usize| (word(i) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let n = ty.numel();
        let data: Vec<u8> = match (values, ty.dtype) {
            (Some(values), _) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            (None, DType::F32) => (0..n).flat_map(|i| random(i).to_le_bytes()).collect(),
            // The upper half of an f32 is a bf16; read as an f16, it is some other number.
            (None, DType::BF16 | DType::F16) => {
                (0..n).flat_map(|i| ((random(i).to_bits() >> 16) as u16).to_le_bytes()).collect()
            }
            (None, DType::U32) => vec![0; 4 * n],
        };
        self.backend.write(buffer, 0, &data)
    }
}

/// Random word `i`.
fn word(i: usize) -> u32 {
    sparta_graph::philox4x32_10([i as u32, 0, 0, 0], [0; 2])[0]
}
