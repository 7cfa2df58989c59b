//! The parts of SpaRTA: gradients of chosen elements, gather, and scatter into weights.

use super::case::{Build, Case};
use super::naive;
use crate::tensor::round;
use sparta_graph::DType;
use sparta_graph::ops::{Embed, Gather, Layout, Linear, RmsNorm, SampledGrad, Sampling, Scatter, SparseLinear};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    // (T, out, in); densities from none to all.
    let sizes =
        [(1, 1, 1), (7, 3, 2), (3, 17, 33), (33, 7, 65), (65, 63, 64), (2, 130, 127), (257, 33, 17), (1, 2, 1031)];
    for (i, size) in sizes.into_iter().enumerate() {
        for sampling in [Sampling::Auto, Sampling::Sampled, Sampling::Tiled] {
            for density in [[0.0, 0.05], [1.0, 0.3]][i % 2] {
                cases.push(sampled_grad(size, density, SampledGrad { scale: 0.7, sampling }));
            }
        }
        cases.push(chosen_weights(size, 0.2, true));
        for transposed in [false, true] {
            cases.push(sparse_linear(size, [0.05, 0.4, 1.0][i % 3], transposed));
        }
    }
    cases.push(sparse_linear((5, 9, 11), 0.0, false));
    cases.push(sparse_linear((3, 70_001, 2), 0.01, true));
    for sampling in [Sampling::Sampled, Sampling::Tiled] {
        cases.push(sampled_grad((2, 271, 263), 1.0, SampledGrad { scale: 1.0, sampling }));
        cases.push(row_patterns(sampling));
    }
    cases.push(sampled_grad((2, 70_001, 2), 0.01, SampledGrad { scale: 1.0, sampling: Sampling::Sampled }));
    cases.push(chosen_weights((5, 9, 11), 0.3, false));
    cases.push(chosen_norms_and_rows());
    for n in [0, 1, 2, 63, 65, 257] {
        cases.push(gather(n));
    }
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (rows, columns, density) in
            [(1, 1, 1.0), (3, 7, 0.5), (17, 33, 0.05), (5, 65, 1.0), (9, 257, 0.3), (2, 3, 0.0)]
        {
            cases.push(scatter([dtype, dtype], rows, columns, density, false));
            cases.push(scatter([dtype, dtype], rows, columns, density, true));
        }
        cases.push(scatter([dtype, dtype], 271, 263, 1.0, true));
        cases.push(scatter([dtype, DType::F32], 17, 33, 0.3, false));
    }
    cases
}

/// `scale * dy^T x` at the chosen elements.
fn chosen_products(dims: (usize, usize, usize), scale: f32, dy: &[f64], x: &[f64], index: &[usize]) -> Vec<f64> {
    let (rows, outputs, inputs) = dims;
    let dense = naive::product(Layout::Tn, [outputs, inputs, rows], dy, x);
    index.iter().map(|&i| f64::from(scale) * dense[i]).collect()
}

fn sampled_grad(dims: (usize, usize, usize), density: f64, op: SampledGrad) -> Case {
    Case::new(format!("{op:?} {dims:?} density {density}"), move |b| {
        let index = b.random.subset(dims.1 * dims.2, density);
        sampled_grad_of(b, dims, index, op.clone());
    })
}

fn sampled_grad_of(b: &mut Build, dims: (usize, usize, usize), index: Vec<usize>, op: SampledGrad) {
    let (rows, outputs, inputs) = dims;
    b.refusable = outputs > 20_000;
    let (dy, x) = (b.normal(&[rows, outputs]), b.normal(&[rows, inputs]));
    let chosen = b.u32s(&[index.len()], index.iter().copied());
    let row_ptr = b.row_ptr(&index, outputs, inputs);
    let y = b.one(op.clone(), &[dy, x, chosen, row_ptr]);
    b.expect(y, chosen_products(dims, op.scale, &b.of(dy), &b.of(x), &index));
}

/// Full rows between empty ones, only the first and last element, and a single column.
fn row_patterns(sampling: Sampling) -> Case {
    Case::new(format!("sampled_grad with patterns of rows, {sampling:?}"), move |b| {
        let (rows, outputs, inputs) = (19, 70, 37);
        let all = 0..outputs * inputs;
        let patterns: [Vec<usize>; 3] = [
            all.clone().filter(|i| (i / inputs) % 3 == 1).collect(),
            vec![0, outputs * inputs - 1],
            all.filter(|i| i % inputs == inputs - 1).collect(),
        ];
        for index in patterns {
            sampled_grad_of(b, (rows, outputs, inputs), index, SampledGrad { scale: 1.0, sampling });
        }
    })
}

/// Through autodiff, against differences of the chosen elements; with or without the rows' starts.
fn chosen_weights((rows, outputs, inputs): (usize, usize, usize), density: f64, row_ptr: bool) -> Case {
    Case::new(format!("chosen elements of linear {rows}x{outputs}x{inputs}, rows {row_ptr}"), move |b| {
        let (x, w) = (b.normal(&[rows, inputs]), b.weight(DType::BF16, &[outputs, inputs]));
        let y = b.one(Linear { scale: -1.5, ..Linear::plain(Layout::Nt) }, &[x, w]);
        let index = b.random.subset(outputs * inputs, density);
        b.seed(y);
        b.wrt_chosen(w, &index, row_ptr);
        b.wrt(&[x]);
    })
}

/// Chosen elements of tensors that no linear layer reads alone.
fn chosen_norms_and_rows() -> Case {
    Case::new("chosen elements of a norm and of a tied embedding", |b| {
        let (table, norm) = (b.weight(DType::BF16, &[11, 9]), b.weight(DType::BF16, &[9]));
        let tokens = b.u32s(&[5], [1, 10, 1, 0, 4]);
        let h = b.one(Embed { scale: 2.0, padding: None }, &[table, tokens]);
        let h = b.one(RmsNorm { eps: 1e-6, plus_one: false, output: None, rate: false }, &[h, norm]);
        let logits = b.one(Linear::plain(Layout::Nt), &[h, table]);
        b.seed(logits);
        b.wrt_chosen(norm, &[0, 3, 8], false);
        b.wrt_chosen(table, &[0, 9, 10, 17, 50, 98], true);
    })
}

fn gather(n: usize) -> Case {
    Case::new(format!("gather {n}"), move |b| {
        let x = b.normal(&[19, 17]);
        let mut index: Vec<usize> = (0..n).map(|_| b.random.below(19 * 17)).collect();
        index.sort();
        let places = b.u32s(&[n], index.iter().copied());
        let y = b.one(Gather {}, &[x, places]);
        let values = b.of(x);
        b.expect(y, index.iter().map(|&i| values[i]).collect());
    })
}

/// The matrix of `(T, out, in)` dimensions that has only chosen elements, times rows of x; and the gradient of x.
fn sparse_linear(dims: (usize, usize, usize), density: f64, transposed: bool) -> Case {
    Case::new(format!("sparse_linear {dims:?} density {density} transposed {transposed}"), move |b| {
        let (rows, out, inputs) = dims;
        b.refusable = out > 20_000;
        let index = b.random.subset(out * inputs, density);
        let n = index.len();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&i| index[i] % inputs);
        let starts = (0..=inputs).map(|c| index.iter().filter(|&&i| i % inputs < c).count());
        let (width, made) = if transposed { (out, inputs) } else { (inputs, out) };
        let (x, values) = (b.normal(&[rows, width]), b.normal(&[n]));
        let places = b.u32s(&[n], index.iter().copied());
        let (row_ptr, order) = (b.row_ptr(&index, out, inputs), b.u32s(&[n], order));
        let column_ptr = b.u32s(&[inputs + 1], starts);
        let y = b.one(SparseLinear { transposed }, &[x, values, places, row_ptr, order, column_ptr]);
        let (x_values, elements) = (b.of(x), b.of(values));
        let mut expected = vec![0.0; rows * made];
        for t in 0..rows {
            for (&at, value) in index.iter().zip(&elements) {
                let (r, c) = (at / inputs, at % inputs);
                let (from, to) = if transposed { (r, c) } else { (c, r) };
                expected[t * made + to] += x_values[t * width + from] * value;
            }
        }
        b.expect(y, expected);
        b.seed(y);
        b.wrt(&[x]);
    })
}

/// Types are those of the weight and of the base values. Base and delta lie on a grid on which their f32 sum is exact, ties of
/// the rounding included, so that every backend must store the same number, and the same remainder. Neighbours of the chosen
/// elements, which share a word with them, must stay.
fn scatter([dtype, of_base]: [DType; 2], rows: usize, columns: usize, density: f64, remainder: bool) -> Case {
    let name = format!("scatter {dtype} from {of_base} {rows}x{columns} density {density} remainder {remainder}");
    Case::new(name, move |b| {
        let w = b.weight(dtype, &[rows, columns]);
        let index = b.random.subset(rows * columns, density);
        let places = b.u32s(&[index.len()], index.iter().copied());
        let mut values = b.of(w);
        let on_grid = |x: f64| round(of_base, (x * 256.0).round() / 256.0);
        let base: Vec<f64> = index.iter().map(|&i| on_grid(values[i])).collect();
        let delta: Vec<f64> = b.random.normals(index.len()).iter().map(|x| (x * 64.0).round() / 4096.0).collect();
        let mut remainders = vec![];
        for (&i, (base, delta)) in index.iter().zip(base.iter().zip(&delta)) {
            values[i] = round(dtype, base + delta);
            remainders.push(base + delta - values[i]);
        }
        let chosen = [index.len()];
        let (base, delta) = (b.data(of_base, &chosen, base), b.f32s(&chosen, delta));
        if remainder {
            let lost = b.zeros(&chosen);
            b.apply(Scatter { remainder }, &[w, places, base, delta, lost]);
            b.expect(lost, remainders);
        } else {
            b.apply(Scatter { remainder }, &[w, places, base, delta]);
        }
        b.expect(w, values);
    })
}
