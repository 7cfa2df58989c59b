//! Runs single ops for the kernels' tests.

use crate::{CpuBackend, Real};
use half::{bf16, f16};
use sparta_graph::graph::TensorType;
use sparta_graph::ops::Store;
use sparta_graph::{Backend, BackendError, DType, Graph, Op, Plan};

#[derive(Clone)]
pub struct Tensor {
    pub ty: TensorType,
    /// Little-endian.
    pub data: Vec<u8>,
}

impl Tensor {
    pub fn f32(shape: &[usize], values: &[f64]) -> Tensor {
        Self::float(DType::F32, shape, values)
    }

    pub fn u32(shape: &[usize], values: &[u32]) -> Tensor {
        let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor { ty: TensorType::new(DType::U32, shape), data }
    }

    pub fn float(dtype: DType, shape: &[usize], values: &[f64]) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let bytes = |x: &f64| match dtype {
            DType::BF16 => bf16::from_f32(x.to_f32_odd()).to_le_bytes().to_vec(),
            DType::F16 => f16::from_f32(x.to_f32_odd()).to_le_bytes().to_vec(),
            _ => (*x as f32).to_le_bytes().to_vec(),
        };
        Tensor { ty: TensorType::new(dtype, shape), data: values.iter().flat_map(bytes).collect() }
    }

    /// Numbers between -1 and 1 that f32 holds exactly.
    pub fn random(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
        let values: Vec<f64> = random(shape.iter().product(), seed);
        Self::float(dtype, shape, &values)
    }

    /// The numbers as stored.
    pub fn values(&self) -> Vec<f64> {
        decode(self.ty.dtype, &self.data)
    }

    pub fn words(&self) -> Vec<u32> {
        self.data.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }
}

/// The nearest number of a type, ties to even. (The half crate's conversions from f64 lose bits below f32's.)
pub fn rounded(dtype: DType, x: f64) -> f64 {
    Tensor::float(dtype, &[1], &[x]).values()[0]
}

fn decode(dtype: DType, data: &[u8]) -> Vec<f64> {
    match dtype {
        DType::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect(),
        DType::U32 => data.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b) as f64).collect(),
        DType::BF16 => data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).collect(),
        DType::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
    }
}

/// Numbers between -1 and 1 that f32 holds exactly.
pub fn random(n: usize, seed: u64) -> Vec<f64> {
    let draw = |i| sparta_graph::philox4x32_10([i as u32, 0, 0, 0], [seed as u32, 7])[0];
    (0..n).map(|i| (draw(i) >> 8) as f64 * 2f64.powi(-23) - 1.0).collect()
}

/// `[start, end)` of each row for segments of these lengths.
pub fn spans(lengths: &[usize]) -> Tensor {
    let (mut spans, mut start) = (vec![], 0);
    for &n in lengths {
        (0..n).for_each(|_| spans.extend([start as u32, (start + n) as u32]));
        start += n;
    }
    Tensor::u32(&[start, 2], &spans)
}

/// The outputs of an op, then the inputs that it overwrites.
fn run_with<T: Real>(op: &Op, inputs: &[Tensor], threads: usize, in_place: bool) -> Result<Vec<Vec<u8>>, BackendError> {
    let mut graph = Graph::new();
    let values: Vec<_> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| graph.external(format!("in{i}"), t.ty.dtype, t.ty.shape.clone()))
        .collect();
    let types: Vec<_> = inputs.iter().map(|t| &t.ty).collect();
    let outputs = op.infer(&types).unwrap();
    // With `in_place`, inputs that may be reused pass through the arena first.
    let mut args = values.clone();
    for &(_, i) in op.reuses().iter().filter(|_| in_place) {
        if i < args.len() && args[i] == values[i] && inputs[i].ty.dtype.is_activation() {
            args[i] = graph.one(sparta_graph::ops::Scale { factor: 1.0 }, &[values[i]]).unwrap();
        }
    }
    let results = graph.apply(op.clone(), &args).unwrap();
    for (i, (&value, ty)) in results.iter().zip(&outputs).enumerate() {
        let out = graph.external(format!("out{i}"), ty.dtype, ty.shape.clone());
        graph.apply(Store {}.into(), &[out, value]).unwrap();
    }
    let plan = Plan::build(&graph, in_place);
    let mut backend = CpuBackend::<T>::new(Some(threads))?;
    let mut buffers = vec![];
    for external in &plan.externals {
        let buffer = backend.alloc(external.ty.dtype, external.ty.numel(), &external.name)?;
        if let Some(i) = external.name.strip_prefix("in") {
            backend.write(buffer, 0, &inputs[i.parse::<usize>().unwrap()].data)?;
        }
        buffers.push(buffer);
    }
    let arena = backend.alloc(DType::F32, plan.arena / 4, "arena")?;
    let id = backend.prepare(&plan, &[arena], &buffers)?;
    // Memory that the op does not write shows up.
    let garbage = vec![0xff; plan.arena / 4 * 4];
    backend.write(arena, 0, &garbage)?;
    backend.run(id)?;
    let mut read = |name: String, ty: &TensorType| {
        let mut out = vec![0; ty.bytes()];
        if let Some(at) = plan.externals.iter().position(|e| e.name == name) {
            backend.read(buffers[at], 0, &mut out).unwrap();
        }
        out
    };
    let written: Vec<_> = op.writes().iter().map(|&i| read(format!("in{i}"), &inputs[i].ty)).collect();
    Ok(outputs.iter().enumerate().map(|(i, ty)| read(format!("out{i}"), ty)).chain(written).collect())
}

/// What `T` computes; the same bits for 1, 2 and 3 threads, in place or not.
pub fn run<T: Real>(op: impl Into<Op>, inputs: &[Tensor]) -> Result<Vec<Vec<f64>>, BackendError> {
    let op = op.into();
    let one = run_with::<T>(&op, inputs, 1, false)?;
    for (threads, in_place) in [(2, false), (3, true)] {
        let other = run_with::<T>(&op, inputs, threads, in_place)?;
        assert!(one == other, "{}: different bits with {threads} threads, in place: {in_place}", op.name());
    }
    let types: Vec<_> = inputs.iter().map(|t| &t.ty).collect();
    let dtypes = op.infer(&types).unwrap().into_iter().map(|ty| ty.dtype);
    let dtypes = dtypes.chain(op.writes().iter().map(|&i| inputs[i].ty.dtype));
    Ok(dtypes.zip(&one).map(|(dtype, data)| decode(dtype, data)).collect())
}

/// Both number types give these results, f32 up to `tolerance` times the largest of them.
pub fn check(op: impl Into<Op>, inputs: &[Tensor], expected: &[Vec<f64>], tolerance: f64) {
    let op = op.into();
    // The reference is read as f32.
    compare(&op, &run::<f64>(op.clone(), inputs).unwrap(), expected, 1e-7);
    compare(&op, &run::<f32>(op.clone(), inputs).unwrap(), expected, tolerance);
}

fn compare(op: &Op, got: &[Vec<f64>], expected: &[Vec<f64>], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (o, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len());
        // Where the exact result is 0, the rounding error is that of numbers around 1.
        let scale = expected.iter().fold(0.1, |m: f64, x| m.max(x.abs()));
        for (i, (g, e)) in got.iter().zip(expected).enumerate() {
            assert!((g - e).abs() <= tolerance * scale, "{op:?}: output {o}, element {i}: got {g}, expected {e}");
        }
    }
}

/// With the inputs `which` rounded to bf16, an op computes what it computes from the same numbers in f32, and rounds
/// that once if its output is bf16: up to a last bit of f32 in f64, and up to `tolerance` before it is rounded in f32.
pub fn check_bf16(op: impl Into<Op>, inputs: &[Tensor], which: &[usize], tolerance: f64) {
    let op = op.into();
    let (mut stored, mut wide) = (inputs.to_vec(), inputs.to_vec());
    for &i in which {
        stored[i] = Tensor::float(DType::BF16, &inputs[i].ty.shape, &inputs[i].values());
        wide[i] = Tensor::f32(&inputs[i].ty.shape, &stored[i].values());
    }
    let exact = run::<f64>(with_f32_output(&op), &wide).unwrap();
    let types: Vec<_> = stored.iter().map(|t| &t.ty).collect();
    let mut dtypes: Vec<DType> = op.infer(&types).unwrap().iter().map(|ty| ty.dtype).collect();
    dtypes.extend(op.writes().iter().map(|&i| stored[i].ty.dtype));
    for (got, tolerance) in
        [(run::<f64>(op.clone(), &stored), 1e-7), (run::<f32>(op.clone(), &stored), tolerance.max(1e-7))]
    {
        for (o, ((got, exact), dtype)) in got.unwrap().iter().zip(&exact).zip(&dtypes).enumerate() {
            let scale = exact.iter().fold(0.1, |m: f64, x| m.max(x.abs()));
            let round = |x: f64| if *dtype == DType::BF16 { rounded(DType::BF16, x) } else { x };
            assert_eq!(got.len(), exact.len());
            for (i, (g, e)) in got.iter().zip(exact).enumerate() {
                let (low, high) = (round(e - tolerance * scale), round(e + tolerance * scale));
                assert!((low..=high).contains(g), "{op:?}: output {o}, element {i}: got {g}, expected {low}..={high}");
            }
        }
    }
}

fn with_f32_output(op: &Op) -> Op {
    match op.clone() {
        Op::Linear(op) => Op::Linear(sparta_graph::ops::Linear { output: Some(DType::F32), ..op }),
        Op::RmsNorm(op) => Op::RmsNorm(sparta_graph::ops::RmsNorm { output: Some(DType::F32), ..op }),
        op => op,
    }
}

/// The error of an op on data that it must refuse.
pub fn error(op: impl Into<Op>, inputs: &[Tensor]) -> String {
    run_with::<f32>(&op.into(), inputs, 2, false).expect_err("bad data was accepted").to_string()
}
