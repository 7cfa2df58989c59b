use super::{Data, bench, exactly, f32s, floats, rng, spans, step, u32s};
use sparta_graph::DType;
use sparta_graph::ops::*;

#[test]
fn norms() {
    let Some(mut bench) = bench() else { return };
    for (t, width, per_row, dtype) in [(3, 7, 1, DType::F32), (130, 300, 1, DType::BF16), (70, 64, 5, DType::F16)] {
        let (x, dy, acc) = (&[t, width * per_row], 2, 3);
        let (x, dy, acc, w) = (f32s(x, 1), f32s(x, dy), f32s(x, acc), floats(dtype, &[width], 4));
        for plus_one in [false, true] {
            let eps = 1e-2;
            bench.check(RmsNorm { eps, plus_one, output: None, rate: plus_one }, &[x.clone(), w.clone()]);
            let op = RmsNormGrad { eps, plus_one };
            bench.check(op.clone(), &[x.clone(), w.clone(), dy.clone()]);
            bench.check(op, &[x.clone(), w.clone(), dy.clone(), acc.clone()]);
        }
        let (rate, index) = (f32s(&[t, per_row], 5), u32s(&[2], &[1, width as u32 - 2]));
        bench.check(RmsNormGradW { width }, &[x.clone(), dy.clone(), rate.clone()]);
        bench.check(RmsNormGradW { width }, &[x, dy, rate, index]);
    }
}

#[test]
fn rope() {
    let Some(mut bench) = bench() else { return };
    let lengths = [1, 100, 37, 62];
    for inverse in [false, true] {
        let inputs = [f32s(&[200, 3 * 40], 1), spans(&lengths), f32s(&[100, 40], 2)];
        bench.check(Rope { head_dim: 40, inverse, rotated: None }, &inputs);
    }
}

/// Rows of bf16, of even and odd width: those of odd width share words.
#[test]
fn rows_in_bf16() {
    let Some(mut bench) = bench() else { return };
    for (t, width, per_row) in [(3, 7, 1), (331, 101, 1), (70, 64, 5), (50, 3, 4)] {
        let shape = [t, width * per_row];
        let (x, dy, acc, w) = (f32s(&shape, 1), f32s(&shape, 2), f32s(&shape, 3), floats(DType::BF16, &[width], 4));
        let eps = 1e-2;
        for output in [None, Some(DType::F32), Some(DType::BF16)] {
            let op = RmsNorm { eps, plus_one: true, output, rate: true };
            bench.check_bf16(2e-6, op.clone(), &[x.clone(), w.clone()], &[0]);
            bench.check_bf16(2e-6, op, &[x.clone(), w.clone()], &[]);
        }
        let op = RmsNormGrad { eps, plus_one: true };
        bench.check_bf16(2e-6, op.clone(), &[x.clone(), w.clone(), dy.clone()], &[2]);
        bench.check_bf16(2e-6, op, &[x.clone(), w.clone(), dy.clone(), acc], &[0, 2, 3]);
        let rate = f32s(&[t, per_row], 5);
        bench.check_bf16(2e-6, RmsNormGradW { width }, &[x.clone(), dy, rate], &[0, 1]);
        bench.check_bf16(2e-6, ColumnSum {}, std::slice::from_ref(&x), &[0]);
    }
    for head_dim in [40, 6] {
        let inputs = [f32s(&[200, 3 * head_dim], 1), spans(&[1, 100, 37, 62]), f32s(&[100, head_dim], 2)];
        bench.check_bf16(2e-6, Rope { head_dim, inverse: false, rotated: None }, &inputs, &[0]);
    }
    let rows: Vec<u32> = (0..90).map(|i| (i * 37) % 400).collect();
    for width in [200, 101, 1] {
        bench.check_bf16(0.0, SelectRows {}, &[f32s(&[400, width], 1), u32s(&[90], &rows)], &[0]);
        bench.check_bf16(0.0, ScatterRows { rows: 400 }, &[f32s(&[90, width], 1), u32s(&[90], &rows)], &[0]);
    }
}

#[test]
fn elements_in_bf16() {
    let Some(mut bench) = bench() else { return };
    for shape in [&[1usize][..], &[7, 37], &[300, 201]] {
        let (a, b, c) = (f32s(shape, 1), f32s(shape, 2), f32s(shape, 3));
        for rounded in [&[0usize][..], &[1], &[0, 1]] {
            bench.check_bf16(2e-6, Add {}, &[a.clone(), b.clone()], rounded);
        }
        bench.check_bf16(2e-6, Scale { factor: -0.3 }, std::slice::from_ref(&a), &[0]);
        bench.check_bf16(2e-6, SoftCap { cap: 0.7 }, std::slice::from_ref(&a), &[0]);
        bench.check_bf16(2e-6, SoftCapGrad { cap: 0.7 }, &[a.clone(), b.clone()], &[0, 1]);
        for act in [Activation::Silu, Activation::GeluTanh] {
            bench.check_bf16(2e-6, GatedAct { act }, &[a.clone(), b.clone()], &[0, 1]);
            bench.check_bf16(2e-6, GatedActGrad { act }, &[a.clone(), b.clone(), c.clone()], &[0, 1, 2]);
        }
        bench.check_bf16(2e-6, Dropout { p: 0.4, salt: 9 }, &[a.clone(), rng()], &[0]);
        bench.check_bf16(2e-6, SumOfSquares { slot: 0 }, &[f32s(&[1, PARTIALS], 4), a.clone()], &[1]);
        // Rounds to the type of its destination.
        bench.check_bf16(0.0, Store {}, &[b, a], &[0]);
    }
    for (dtype, t, n) in [(DType::F32, 1, 3), (DType::BF16, 401, 101)] {
        bench.check_bf16(2e-6, Add {}, &[f32s(&[t, n], 1), floats(dtype, &[n], 2)], &[0]);
    }
}

fn tokens(n: usize, vocab: u32) -> Data {
    let values: Vec<u32> = (0..n as u32).map(|i| (i * i * 7 + i / 3) % vocab).collect();
    u32s(&[n], &values)
}

#[test]
fn lookups() {
    let Some(mut bench) = bench() else { return };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (t, vocab, width) in [(5, 3, 7), (150, 999, 129)] {
            let inputs = [floats(dtype, &[vocab, width], 1), tokens(t, vocab as u32)];
            bench.check(Embed { scale: 2.5, padding: None }, &inputs);
        }
    }
    // The last: more rows than a loop of llvmpipe has rounds, and as many roundings.
    for (t, vocab, width, padding) in [(5, 3, 7, None), (150, 333, 129, Some(7)), (70_000, 3, 1, None)] {
        let op = EmbedGrad { vocab, scale: 2.5, padding };
        bench.check_to(1e-5, op, &[f32s(&[t, width], 1), tokens(t, vocab as u32)]);
    }
    let rows: Vec<u32> = (0..90).map(|i| (i * 37) % 300).collect();
    bench.check(SelectRows {}, &[f32s(&[300, 200], 1), u32s(&[90], &rows)]);
    bench.check(ScatterRows { rows: 300 }, &[f32s(&[90, 200], 1), u32s(&[90], &rows)]);
}

#[test]
fn losses() {
    let Some(mut bench) = bench() else { return };
    for (n, classes) in [(1, 2), (7, 3), (200, 250)] {
        let labels: Vec<u32> =
            (0..n as u32).map(|i| if i % 5 == 4 { IGNORED } else { i * 7 % classes as u32 }).collect();
        let (logits, labels) = (f32s(&[n, classes], 1), u32s(&[n], &labels));
        bench.check(CrossEntropy::default(), &[logits.clone(), labels.clone(), step()]);
        let lse: Vec<f32> = (0..n).map(|i| 5.0 + i as f32 / 10.0).collect();
        let inputs = [logits, labels, exactly(&[n], &lse), step(), exactly(&[1], &[3.0])];
        bench.check(CrossEntropyGrad::default(), &inputs);
    }
}

#[test]
fn column_sums() {
    let Some(mut bench) = bench() else { return };
    for (t, n) in [(1, 1), (9, 33), (400, 77)] {
        bench.check(ColumnSum {}, &[f32s(&[t, n], 1)]);
    }
}

#[test]
fn elementwise() {
    let Some(mut bench) = bench() else { return };
    for shape in [&[1usize][..], &[7, 37], &[300, 101]] {
        let (a, b, c) = (f32s(shape, 1), f32s(shape, 2), f32s(shape, 3));
        bench.check(Add {}, &[a.clone(), b.clone()]);
        bench.check(Accumulate {}, &[a.clone(), b.clone()]);
        bench.check(Scale { factor: -0.3 }, std::slice::from_ref(&a));
        bench.check(Fill { value: 4.5, shape: shape.to_vec() }, &[]);
        bench.check(SoftCap { cap: 0.7 }, std::slice::from_ref(&a));
        bench.check(SoftCapGrad { cap: 0.7 }, &[a.clone(), b.clone()]);
        for act in [Activation::Silu, Activation::GeluTanh] {
            bench.check(GatedAct { act }, &[a.clone(), b.clone()]);
            bench.check(GatedActGrad { act }, &[a.clone(), b.clone(), c.clone()]);
        }
        for p in [0.0, 0.4] {
            bench.check(Dropout { p, salt: 9 }, &[a.clone(), rng()]);
        }
        bench.check(Store {}, &[a.clone(), b.clone()]);
    }
}

#[test]
fn biases() {
    let Some(mut bench) = bench() else { return };
    for (dtype, t, n) in [(DType::F32, 1, 3), (DType::BF16, 300, 101), (DType::F16, 9, 64)] {
        bench.check(Add {}, &[f32s(&[t, n], 1), floats(dtype, &[n], 2)]);
    }
}

/// Large arguments saturate; they do not overflow.
#[test]
fn extremes() {
    let Some(mut bench) = bench() else { return };
    let x = exactly(&[8], &[-1e4, -100.0, -20.0, -0.0, 0.0, 20.0, 100.0, 1e4]);
    let one = exactly(&[8], &[1.0; 8]);
    bench.check(SoftCap { cap: 1.0 }, std::slice::from_ref(&x));
    for act in [Activation::Silu, Activation::GeluTanh] {
        bench.check(GatedAct { act }, &[x.clone(), one.clone()]);
        bench.check(GatedActGrad { act }, &[x.clone(), one.clone(), one.clone()]);
    }
}

/// Every f16 and bf16 number decodes exactly, halfway cases round to even, and odd lengths keep their last element.
#[test]
fn casts() {
    let Some(mut bench) = bench() else { return };
    let finite = |dtype: DType| {
        let infinity: u16 = if dtype == DType::F16 { 0x7c00 } else { 0x7f80 };
        let bits = (0..=u16::MAX).filter(move |b| b & 0x7fff <= infinity);
        bits.flat_map(u16::to_le_bytes).collect::<Vec<u8>>()
    };
    for dtype in [DType::F16, DType::BF16] {
        let bytes = finite(dtype);
        let ty = sparta_graph::graph::TensorType::new(dtype, [bytes.len() / 2]);
        bench.check_to(0.0, Cast { to: DType::F32 }, &[Data { ty, bytes }]);
    }
    let mut halfway = Vec::new();
    for exponent in -28..17 {
        for step in 0..64u32 {
            let x = (1.0 + step as f32 / 64.0 + if step % 3 == 0 { 1.0 / 2048.0 } else { 1.0 / 512.0 })
                * 2f32.powi(exponent);
            halfway.extend([x, -x, f32::from_bits(x.to_bits() + 1), f32::from_bits(x.to_bits() - 1)]);
        }
    }
    halfway.extend([65519.0, 65520.0, 1e30, 0.0, -0.0, 3.0]);
    halfway.push(1.5);
    for to in [DType::F16, DType::BF16, DType::F32] {
        bench.check_to(0.0, Cast { to }, &[exactly(&[halfway.len()], &halfway)]);
        bench.check_to(0.0, Cast { to }, &[floats(DType::BF16, &[50_001], 1)]);
    }
}
