//! Every kernel against the f64 reference, whole and in shards.

mod attention;
mod device;
mod linear;
mod long;
mod optimizer;
mod rows;
mod sparse;
mod tune;

use crate::{Options, WgpuBackend, devices};
use half::{bf16, f16};
use sparta_backend_cpu::Reference;
use sparta_graph::graph::TensorType;
use sparta_graph::ops::{Linear, RmsNorm, Store};
use sparta_graph::{Backend, DType, Graph, Op, Plan, Value};
use std::sync::{Mutex, PoisonError};

impl WgpuBackend {
    /// Makes an invalid buffer, as a bug would.
    pub(crate) fn provoke_an_error(&self) {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE;
        drop(self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4,
            usage,
            mapped_at_creation: false,
        }));
    }

    /// Loses the device, as a driver reset would.
    pub(crate) fn lose(&self) {
        self.device.destroy();
    }
}

/// A binding limit that shards all but small tensors.
const LOW: u64 = 64 << 10;

/// Software drivers use all cores, so devices in parallel would only wait for each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The best adapter, with lower limits; `None` on a machine without one, which is an error in CI.
fn open(max_binding: Option<u64>) -> Option<WgpuBackend> {
    open_with(Options { max_binding, ..Options::default() })
}

fn open_with(options: Options) -> Option<WgpuBackend> {
    if devices().is_empty() {
        assert!(std::env::var_os("CI").is_none(), "no wgpu adapter; CI needs one");
        println!("SKIPPED: no wgpu adapter on this machine");
        return None;
    }
    let best = WgpuBackend::open("wgpu").unwrap();
    let index = best.info().id.trim_start_matches("wgpu:").parse().unwrap();
    Some(WgpuBackend::open_with(index, options).unwrap())
}

/// A tensor's little-endian bytes.
#[derive(Clone, Debug)]
struct Data {
    ty: TensorType,
    bytes: Vec<u8>,
}

/// Roughly normal random numbers: sums of three uniform ones, shifted to mean 0 and variance 1.
fn noise(n: usize, seed: u64) -> impl Iterator<Item = f32> {
    (0..n as u32).map(move |i| {
        let [a, b, c, _] = sparta_graph::philox4x32_10([i, 0, 0, 0], [seed as u32, 0]);
        let sum: f32 = [a, b, c].map(|word| (word >> 8) as f32 / (1 << 24) as f32).iter().sum();
        2.0 * sum - 3.0
    })
}

fn floats(dtype: DType, shape: &[usize], seed: u64) -> Data {
    let ty = TensorType::new(dtype, shape);
    let values: Vec<f32> = noise(ty.numel(), seed).collect();
    let bytes = match dtype {
        DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    Data { ty, bytes }
}

fn f32s(shape: &[usize], seed: u64) -> Data {
    floats(DType::F32, shape, seed)
}

/// f32 of these values.
fn exactly(shape: &[usize], values: &[f32]) -> Data {
    Data { ty: TensorType::f32(shape), bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect() }
}

fn u32s(shape: &[usize], values: &[u32]) -> Data {
    Data { ty: TensorType::new(DType::U32, shape), bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect() }
}

fn rng() -> Data {
    u32s(&[4], &[0xdead_beef, 42, 0, 0])
}

fn step() -> Data {
    exactly(&[8], &[1e-2, 0.1, 0.001, 0.125, 0.0, 0.0, 0.0, 0.0])
}

/// Segments of these lengths as spans.
fn spans(lengths: &[usize]) -> Data {
    let mut values = Vec::new();
    let mut start = 0;
    for &length in lengths {
        let end = start + length as u32;
        (0..length).for_each(|_| values.extend([start, end]));
        start = end;
    }
    u32s(&[values.len() / 2, 2], &values)
}

/// About this share of `0..n`, ascending.
fn subset(n: usize, share: f32, seed: u64) -> Vec<u32> {
    let draws = noise(n, seed).map(|x| (x / 3.0).abs());
    // |x| / 3 of a sum of three uniforms is below s for about 2.25 s of them, when s is small.
    (0..n as u32).zip(draws).filter(|(_, x)| *x < share / 2.25).map(|(i, _)| i).collect()
}

/// Runs one op; returns its outputs and the inputs it overwrote, as bytes.
fn run(backend: &mut dyn Backend, op: &Op, inputs: &[Data]) -> Vec<(TensorType, Vec<u8>)> {
    let mut graph = Graph::new();
    graph.set_label("test");
    let external = |graph: &mut Graph, name: String, ty: &TensorType| graph.external(name, ty.dtype, ty.shape.clone());
    let values: Vec<Value> =
        inputs.iter().enumerate().map(|(i, data)| external(&mut graph, format!("input {i}"), &data.ty)).collect();
    let outputs = graph.apply(op.clone(), &values).unwrap();
    let mut read: Vec<(String, TensorType)> =
        op.writes().iter().map(|&i| (format!("input {i}"), inputs[i].ty.clone())).collect();
    for (i, output) in outputs.into_iter().enumerate() {
        let ty = graph.ty(output).unwrap().clone();
        let name = format!("output {i}");
        let target = external(&mut graph, name.clone(), &ty);
        graph.apply(Store {}.into(), &[target, output]).unwrap();
        read.push((name, ty));
    }
    let plan = Plan::build(&graph, false);
    let arena = backend.alloc(DType::F32, plan.arena / 4, "arena").unwrap();
    let mut buffers = Vec::new();
    for tensor in &plan.externals {
        let buffer = backend.alloc(tensor.ty.dtype, tensor.ty.numel(), &tensor.name).unwrap();
        if let Some(i) = tensor.name.strip_prefix("input ") {
            backend.write(buffer, 0, &inputs[i.parse::<usize>().unwrap()].bytes).unwrap();
        }
        buffers.push(buffer);
    }
    let id = backend.prepare(&plan, &[arena], &buffers).unwrap();
    backend.run(id).unwrap();
    let mut results = Vec::new();
    for (name, ty) in read {
        let i = plan.externals.iter().position(|e| e.name == name).unwrap();
        let mut bytes = vec![0; ty.bytes()];
        backend.read(buffers[i], 0, &mut bytes).unwrap();
        results.push((ty, bytes));
    }
    backend.release(id);
    buffers.into_iter().chain([arena]).for_each(|buffer| backend.free(buffer));
    results
}

fn numbers(ty: &TensorType, bytes: &[u8]) -> Vec<f32> {
    match ty.dtype {
        DType::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// Backends under test: one with the device's binding limit and one with a low one.
struct Bench {
    backends: Vec<WgpuBackend>,
    _guard: std::sync::MutexGuard<'static, ()>,
}

fn bench() -> Option<Bench> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let backends = [None, Some(LOW)].map(open);
    let mut backends: Vec<WgpuBackend> = backends.into_iter().collect::<Option<_>>()?;
    // One with transposed tiles on matrix units, one without.
    for (i, backend) in backends.iter_mut().enumerate() {
        backend.bounds.units.iter_mut().for_each(|units| units.transpose = i == 0);
    }
    Some(Bench { backends, _guard: guard })
}

impl Bench {
    /// Compares an op with the reference on every backend, to `tolerance` of the largest number of each result (but at
    /// least of 0.1, for results that cancel), and requires the same bits from a second run.
    fn check_to(&mut self, tolerance: f32, op: impl Into<Op>, inputs: &[Data]) {
        let op = op.into();
        let expected = run(&mut Reference::new(Some(1)).unwrap(), &op, inputs);
        for (i, backend) in self.backends.iter_mut().enumerate() {
            let got = run(backend, &op, inputs);
            assert_eq!(got, run(backend, &op, inputs), "{op:?}: two runs differ");
            for (output, ((ty, expected), (_, got))) in expected.iter().zip(&got).enumerate() {
                compare(
                    tolerance,
                    &numbers(ty, expected),
                    &numbers(ty, got),
                    &format!("{op:?}, result {output}, backend {i}"),
                );
            }
        }
    }

    fn check(&mut self, op: impl Into<Op>, inputs: &[Data]) {
        self.check_to(2e-6, op, inputs);
    }
}

/// The op on f32 tensors alone.
fn in_f32(op: &Op) -> Op {
    match op.clone() {
        Op::Linear(op) => Linear { output: None, ..op }.into(),
        Op::RmsNorm(op) => RmsNorm { output: None, ..op }.into(),
        op => op,
    }
}

impl Bench {
    /// Compares an op whose inputs at `rounded` are bf16 with the reference on f32 of the same values: a bf16 result
    /// must be what rounding makes of some number within `tolerance` of the expected one.
    fn check_bf16(&mut self, tolerance: f32, op: impl Into<Op>, inputs: &[Data], rounded: &[usize]) {
        let op = op.into();
        let (mut low, mut exact) = (inputs.to_vec(), inputs.to_vec());
        for &i in rounded {
            let values = numbers(&inputs[i].ty, &inputs[i].bytes);
            let shape = &inputs[i].ty.shape;
            let bits: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
            let ty = TensorType::new(DType::BF16, shape.clone());
            low[i] = Data { ty, bytes: bits.iter().flat_map(|x| x.to_le_bytes()).collect() };
            exact[i] = exactly(shape, &bits.iter().map(|x| x.to_f32()).collect::<Vec<f32>>());
        }
        let expected = run(&mut Reference::new(Some(1)).unwrap(), &in_f32(&op), &exact);
        for (i, backend) in self.backends.iter_mut().enumerate() {
            let got = run(backend, &op, &low);
            assert_eq!(got, run(backend, &op, &low), "{op:?}: two runs differ");
            for (output, ((ty, expected), (got_ty, got))) in expected.iter().zip(&got).enumerate() {
                let what = format!("{op:?}, result {output} in {}, backend {i}", got_ty.dtype);
                let (expected, got) = (numbers(ty, expected), numbers(got_ty, got));
                if got_ty.dtype != DType::BF16 {
                    compare(tolerance, &expected, &got, &what);
                    continue;
                }
                let error = tolerance * expected.iter().fold(0.1f32, |m, x| m.max(x.abs()));
                for (j, (e, g)) in expected.iter().zip(&got).enumerate() {
                    let ends = [e - error, e + error].map(|x| bf16::from_f32(x).to_f32());
                    assert!(ends[0] <= *g && *g <= ends[1], "{what}: element {j}: expected {e}, got {g}");
                }
            }
        }
    }
}

fn compare(tolerance: f32, expected: &[f32], got: &[f32], what: &str) {
    assert_eq!(expected.len(), got.len(), "{what}");
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs())).max(0.1);
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        let close = e == g || (e - g).abs() <= tolerance * largest;
        assert!(close, "{what}: element {i} of {}: expected {e}, got {g} (largest {largest})", expected.len());
    }
}
