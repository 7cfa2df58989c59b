use super::{Data, bench, exactly, f32s, floats, numbers};
use sparta_graph::DType;
use sparta_graph::ops::{Layout, Linear};

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn inputs(op: &Linear, m: usize, n: usize, k: usize, dtype: DType) -> Vec<Data> {
    let (a, b) = match op.layout {
        Layout::Nt => ([m, k], [n, k]),
        Layout::Nn => ([m, k], [k, n]),
        Layout::Tn => ([k, m], [k, n]),
    };
    let mut inputs = vec![f32s(&a, 1), floats(dtype, &b, 2)];
    inputs.extend(op.bias.then(|| floats(DType::F16, &[n], 3)));
    inputs.extend(op.residual.then(|| f32s(&[m, n], 4)));
    inputs
}

#[test]
fn every_layout_and_type_at_ragged_sizes() {
    let Some(mut bench) = bench() else { return };
    for (m, n, k) in [(1, 1, 1), (9, 66, 17), (65, 9, 33), (70, 130, 40)] {
        for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
            for dtype in DTYPES.into_iter().filter(|&t| layout != Layout::Tn || t == DType::F32) {
                let fused = (m + n) % 2 == 1;
                let op = Linear { layout, scale: 0.5, bias: fused, residual: fused, output: None };
                bench.check(op.clone(), &inputs(&op, m, n, k, dtype));
            }
        }
    }
}

/// Activations in bf16, with results of even and odd width, in one dispatch and in shards of every operand.
#[test]
fn products_in_bf16() {
    let Some(mut bench) = bench() else { return };
    let sizes = [(1, 1, 1), (9, 66, 17), (65, 9, 33), (70, 131, 40), (50, 3, 129), (70, 500, 160), (200, 111, 250)];
    for (m, n, k) in sizes {
        for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
            for output in [None, Some(DType::F32)] {
                let fused = n % 2 == 1;
                let op = Linear { layout, scale: 0.5, bias: fused, residual: fused, output };
                let mut rounded = vec![0, 1];
                // A residual has the type of the output.
                rounded.extend((fused && output.is_none()).then_some(3));
                bench.check_bf16(2e-6, op.clone(), &inputs(&op, m, n, k, DType::F32), &rounded);
            }
        }
    }
    let op = Linear { output: Some(DType::BF16), ..Linear::plain(Layout::Nt) };
    bench.check_bf16(2e-6, op.clone(), &inputs(&op, 70, 40, 30, DType::BF16), &[]);
}

#[test]
fn few_rows_or_columns() {
    let Some(mut bench) = bench() else { return };
    for (m, n, k) in [(1, 5, 100), (8, 3, 65), (3, 70, 33), (50, 8, 129), (50, 1, 7)] {
        let op = Linear { layout: Layout::Nt, scale: 2.0, bias: true, residual: true, output: None };
        bench.check(op.clone(), &inputs(&op, m, n, k, DType::BF16));
    }
}

/// With rows and columns of whole vectors and others, and with and without a whole number of tiles of k.
#[test]
fn large_tiles() {
    let Some(mut bench) = bench() else { return };
    // Too small a limit for rows this long.
    bench.backends.truncate(1);
    for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
        for (m, n, k) in [(1000, 1100, 12), (1024, 1030, 32), (901, 1152, 37)] {
            let op = Linear::plain(layout);
            bench.check(op.clone(), &inputs(&op, m, n, k, DType::F32));
            bench.check_bf16(2e-6, op.clone(), &inputs(&op, m, n, k, DType::F32), &[0, 1]);
        }
    }
}

/// Operands of 16 bits and whole loads, which matrix units multiply where there are any: ragged tiles, both sizes of tiles,
/// pieces of k, results of both types, shards; magnitudes far from those that f16 holds.
#[test]
fn products_on_matrix_units() {
    let Some(mut bench) = bench() else { return };
    for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
        for (m, n, k) in [(16, 24, 40), (72, 80, 64), (144, 400, 160), (64, 40, 1024), (136, 144, 4096)] {
            if k == 4096 {
                // Too small a limit for rows this long.
                bench.backends.truncate(1);
            }
            for (output, fused) in [(None, true), (Some(DType::F32), false)] {
                let op = Linear { layout, scale: 0.5, bias: fused, residual: fused, output };
                let rounded = if fused { vec![0, 1, 3] } else { vec![0, 1] };
                bench.check_bf16(2e-6, op.clone(), &inputs(&op, m, n, k, DType::F32), &rounded);
            }
        }
        for (large, small) in [(2f32.powi(80), 2f32.powi(-90)), (2f32.powi(-60), 2f32.powi(60)), (3e5, 1e-3)] {
            let op = Linear { output: Some(DType::F32), ..Linear::plain(layout) };
            let mut inputs = inputs(&op, 72, 80, 96, DType::F32);
            for (input, factor) in inputs.iter_mut().zip([large, small]) {
                let values: Vec<f32> = numbers(&input.ty, &input.bytes).iter().map(|x| x * factor).collect();
                *input = exactly(&input.ty.shape, &values);
            }
            bench.check_bf16(2e-6, op, &inputs, &[0, 1]);
        }
    }
    // Weights in f16.
    let op = Linear::plain(Layout::Nt);
    let mut inputs = inputs(&op, 72, 80, 64, DType::F16);
    inputs[0] = floats(DType::BF16, &[72, 64], 1);
    bench.check_bf16(2e-6, op, &inputs, &[0]);
}

/// Few tiles and a long inner dimension: pieces of it are summed separately, in small tiles and in large ones.
#[test]
fn inner_dimensions_in_pieces() {
    let Some(mut bench) = bench() else { return };
    for (m, n, k) in [(12, 33, 800), (16, 70, 1030), (130, 129, 4096)] {
        if k > 800 {
            // Too small a limit for rows this long.
            bench.backends.truncate(1);
        }
        for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
            let op = Linear { layout, scale: 0.5, bias: true, residual: true, output: None };
            bench.check(op.clone(), &inputs(&op, m, n, k, DType::F32));
            bench.check_bf16(2e-6, op.clone(), &inputs(&op, m, n, k, DType::F32), &[0, 1, 3]);
        }
    }
}

/// 64 KiB bindings: every operand is several shards.
#[test]
fn sharded_operands() {
    let Some(mut bench) = bench() else { return };
    for (layout, dtype, m, n, k) in [
        (Layout::Nt, DType::BF16, 70, 500, 160),
        (Layout::Nt, DType::F32, 300, 304, 100),
        (Layout::Nn, DType::F16, 70, 160, 500),
        (Layout::Nn, DType::F32, 300, 110, 304),
        (Layout::Tn, DType::F32, 200, 150, 301),
        // Odd rows of a 2-byte type: a shard starts at a multiple of 128 rows.
        (Layout::Nt, DType::BF16, 10, 700, 127),
    ] {
        let op = Linear { layout, scale: 1.5, bias: true, residual: true, output: None };
        bench.check(op.clone(), &inputs(&op, m, n, k, dtype));
    }
}

#[test]
fn an_empty_inner_dimension_gives_the_residual() {
    let Some(mut bench) = bench() else { return };
    let op = Linear { layout: Layout::Nt, scale: 1.0, bias: false, residual: true, output: None };
    bench.check(op.clone(), &inputs(&op, 20, 30, 0, DType::F32));
}
