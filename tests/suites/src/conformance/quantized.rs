//! Weights that are stored in blocks: decoded as a whole, with chosen elements laid over them, by rows, and in products.
//!
//! The formula is `Blocks::decode`, which golden vectors of llama.cpp's reference judge; backends must decode to the
//! same bits.

use super::case::{Build, Case};
use super::naive;
use crate::Precision;
use crate::tensor::round;
use half::f16;
use sparta_graph::ops::{Dequantize, Layout, Linear, Scale};
use sparta_graph::{Blocks, DType, Value};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for blocks in Blocks::ALL {
        // The smallest device of the suite binds 80 KiB: rows of 256 elements are few, and those of Q6_K, only every
        // 128th of which is aligned as bindings must be, are bound at once.
        let sizes = match blocks {
            Blocks::Q6K => [(1, 1), (7, 3), (65, 1), (80, 1)],
            _ if blocks.elements() == 256 => [(1, 1), (7, 3), (65, 1), (300, 1)],
            _ => [(1, 1), (7, 3), (65, 5), (300, 2)],
        };
        for (rows, per_row) in sizes {
            let columns = per_row * blocks.elements();
            for output in [DType::F32, DType::BF16] {
                cases.push(whole(blocks, [rows, columns], output, None));
            }
            cases.push(looked_up(blocks, [rows, columns], 2 * rows + 1));
        }
        let size = [9, 3 * blocks.elements()];
        for (output, density) in [(DType::F32, 0.05), (DType::BF16, 0.3), (DType::BF16, 1.0), (DType::F32, 0.0)] {
            cases.push(whole(blocks, size, output, Some(density)));
        }
        for rows in [1, 17] {
            cases.push(product(blocks, rows, [33, 2 * blocks.elements()]));
        }
    }
    cases
}

/// Random blocks whose scales make numbers near 1, some with the smallest scales there are.
fn stored(b: &mut Build, blocks: Blocks, [rows, columns]: [usize; 2]) -> (Value, Vec<f64>) {
    // Where a block has f16 scales, and the largest number that the first one multiplies.
    let (halves, largest): (&[usize], f64) = match blocks {
        Blocks::Q4_0 => (&[0], 8.0),
        Blocks::Q4_1 => (&[0, 2], 15.0),
        Blocks::Q5_0 => (&[0], 16.0),
        Blocks::Q5_1 => (&[0, 2], 31.0),
        Blocks::Q8_0 => (&[0], 128.0),
        Blocks::Q4K => (&[0, 2], 63.0 * 15.0),
        Blocks::Q5K => (&[0, 2], 63.0 * 31.0),
        Blocks::Q6K => (&[208], 128.0 * 32.0),
    };
    let count = rows * columns / blocks.elements();
    let mut bytes: Vec<u8> = (0..count * blocks.bytes()).map(|_| b.random.bits() as u8).collect();
    for (i, block) in bytes.chunks_exact_mut(blocks.bytes()).enumerate() {
        for &at in halves {
            let scale = (b.random.uniform() - 0.5) * 4.0 / largest;
            let scale = if i % 7 == 3 { f16::from_bits(3) } else { f16::from_f64(scale) };
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    let mut values = vec![0f32; rows * columns];
    blocks.decode(&bytes, &mut values);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let words: Vec<f64> = bytes.as_chunks().0.iter().map(|word| f64::from(u32::from_le_bytes(*word))).collect();
    (b.stored(DType::U32, &[words.len()], words), values.into_iter().map(f64::from).collect())
}

/// The whole matrix, with a share of its elements overlaid.
fn whole(blocks: Blocks, size: [usize; 2], output: DType, density: Option<f64>) -> Case {
    Case::new(format!("dequantize {blocks} {size:?} to {output}, overlaid {density:?}"), move |b| {
        let (words, mut values) = stored(b, blocks, size);
        let mut inputs = vec![words];
        if let Some(density) = density {
            let index = b.random.subset(values.len(), density);
            let on_grid = |x: f64| (x * 256.0).round() / 256.0;
            let base: Vec<f64> = index.iter().map(|&i| round(output, on_grid(values[i]))).collect();
            let delta: Vec<f64> = b.random.normals(index.len()).into_iter().map(on_grid).collect();
            for (&i, (base, delta)) in index.iter().zip(base.iter().zip(&delta)) {
                values[i] = base + delta;
            }
            let n = [index.len()];
            inputs.push(b.u32s(&n, index));
            inputs.extend([b.stored(output, &n, base), b.f32s(&n, delta)]);
        }
        let op = Dequantize { overlay: density.is_some(), ..Dequantize::whole(blocks, size, output) };
        let w = b.one(op, &inputs);
        b.expect(w, values.into_iter().map(|x| round(output, x)).collect());
    })
}

fn looked_up(blocks: Blocks, size: [usize; 2], count: usize) -> Case {
    Case::new(format!("dequantize {count} rows of {blocks} {size:?}"), move |b| {
        let (words, values) = stored(b, blocks, size);
        let rows: Vec<usize> = (0..count).map(|_| b.random.below(size[0])).collect();
        let tokens = b.u32s(&[count], rows.iter().copied());
        let op = Dequantize { lookup: true, ..Dequantize::whole(blocks, size, DType::F32) };
        let y = b.one(op, &[words, tokens]);
        b.expect(y, rows.iter().flat_map(|&row| values[row * size[1]..][..size[1]].to_vec()).collect());
    })
}

/// Two products with the matrix; the gradient of the second passes through the first.
fn product(blocks: Blocks, rows: usize, size: [usize; 2]) -> Case {
    Case::new(format!("linear {rows} with {blocks} {size:?}"), move |b| {
        let (words, values) = stored(b, blocks, size);
        let output = if b.precision == Precision::F32 { DType::F32 } else { DType::BF16 };
        let x = b.normal(&[rows, size[1]]);
        let mut y = x;
        for layout in [Layout::Nt, Layout::Nn] {
            let w = b.one(Dequantize::whole(blocks, size, output), &[words]);
            y = b.one(Linear { scale: 0.125, ..Linear::plain(layout) }, &[y, w]);
        }
        if output == DType::F32 {
            let [outputs, inputs] = size;
            let h = naive::product(Layout::Nt, [rows, outputs, inputs], &b.of(x), &values);
            let z = naive::product(Layout::Nn, [rows, inputs, outputs], &h, &values);
            b.expect(y, z.into_iter().map(|z| z / 64.0).collect());
        } else {
            b.observe(y);
        }
        let y = b.one(Scale { factor: 0.5 }, &[y]);
        b.seed(y);
        b.wrt(&[x]);
    })
}
