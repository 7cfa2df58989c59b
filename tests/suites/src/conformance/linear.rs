//! Matrix products: all layouts, types of the weight, bias, residual and scale, over ragged sizes; column sums.

use super::case::Case;
use super::naive;
use sparta_graph::DType;
use sparta_graph::ops::{Add, ColumnSum, Layout, Linear};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// (m, n, k): tiny, odd, just below and above tile sizes, and long in one direction.
const SIZES: [[usize; 3]; 22] = [
    [1, 1, 1],
    [1, 7, 3],
    [2, 3, 17],
    [3, 2, 1],
    [7, 1, 33],
    [3, 64, 65],
    [17, 33, 63],
    [33, 130, 7],
    [63, 65, 64],
    [64, 64, 64],
    [65, 63, 2],
    [65, 129, 128],
    [130, 127, 33],
    [127, 128, 129],
    [128, 128, 128],
    [1, 257, 130],
    [2, 257, 257],
    [257, 2, 129],
    [257, 65, 1],
    [1, 1, 1027],
    [3, 1031, 5],
    [1033, 3, 4],
];

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (i, size) in SIZES.into_iter().enumerate() {
        for (l, layout) in [Layout::Nt, Layout::Nn, Layout::Tn].into_iter().enumerate() {
            // Every pair of layout, type, bias and residual occurs somewhere in the grid.
            let dtype = if layout == Layout::Tn { DType::F32 } else { FLOATS[(i + l) % 3] };
            let op = Linear {
                layout,
                scale: [1.0, -0.3, 2.0][(i / 2) % 3],
                bias: i % 2 == 1,
                residual: (i / 4 + l) % 2 == 1,
                output: None,
            };
            cases.push(linear(size, op, dtype, FLOATS[(i / 2) % 3]));
        }
    }
    for dtype in FLOATS {
        for (bias, residual) in [(false, false), (true, false), (false, true), (true, true)] {
            for layout in [Layout::Nt, Layout::Nn] {
                cases.push(linear(
                    [5, 19, 23],
                    Linear { layout, scale: 0.7, bias, residual, output: None },
                    dtype,
                    dtype,
                ));
            }
        }
    }
    // Weights that take several bindings on a device that splits tensors.
    for (layout, size) in [(Layout::Nt, [3, 700, 65]), (Layout::Nn, [3, 131, 333]), (Layout::Tn, [331, 130, 3])] {
        for residual in [false, true] {
            let dtype = if layout == Layout::Tn { DType::F32 } else { FLOATS[1 + usize::from(residual)] };
            cases.push(linear(
                size,
                Linear { layout, scale: 1.0, bias: residual, residual, output: None },
                dtype,
                DType::F32,
            ));
        }
    }
    cases.push(residual_is_the_input());
    cases.push(weight_used_twice());
    cases.push(many_rows());
    cases.extend([[1, 1], [1, 33], [2, 257], [63, 3], [130, 65], [257, 128], [2, 70_001]].map(column_sum));
    cases
}

fn linear([m, n, k]: [usize; 3], op: Linear, weight: DType, bias: DType) -> Case {
    let name = format!("{op:?} {m}x{n}x{k} {weight} bias {bias}");
    Case::new(name, move |b| {
        let (a, w) = match op.layout {
            Layout::Nt => ([m, k], [n, k]),
            Layout::Nn => ([m, k], [k, n]),
            Layout::Tn => ([k, m], [k, n]),
        };
        let mut inputs = vec![b.normal(&a), b.weight(weight, &w)];
        let scale = f64::from(op.scale);
        b.magnitude = scale.abs().max(1.0);
        let product = naive::product(op.layout, [m, n, k], &b.of(inputs[0]), &b.of(inputs[1]));
        let mut y: Vec<f64> = product.into_iter().map(|x| scale * x).collect();
        if op.bias {
            inputs.push(b.weight(bias, &[n]));
            let bias = b.of(inputs[2]);
            y.iter_mut().enumerate().for_each(|(e, y)| *y += bias[e % n]);
        }
        if let Some(i) = op.residual_index() {
            inputs.push(b.normal(&[m, n]));
            let residual = b.of(inputs[i]);
            y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
        }
        let out = b.one(op.clone(), &inputs);
        b.expect(out, y);
        b.seed(out);
        b.wrt(&inputs);
    })
}

/// `x w + x` and its gradient, where one tensor is operand and residual.
fn residual_is_the_input() -> Case {
    Case::new("linear whose residual is its input", |b| {
        let (x, w) = (b.normal(&[9, 33]), b.weight(DType::BF16, &[33, 33]));
        let h = b.one(Add {}, &[x, x]);
        let y = b.one(Linear { residual: true, ..Linear::plain(Layout::Nt) }, &[h, w, h]);
        b.seed(y);
        b.wrt(&[x, w]);
    })
}

fn weight_used_twice() -> Case {
    Case::new("linear with one weight in two layers", |b| {
        let (x, w) = (b.normal(&[7, 17]), b.weight(DType::F16, &[17, 17]));
        let h = b.one(Linear { scale: 0.2, ..Linear::plain(Layout::Nt) }, &[x, w]);
        let y = b.one(Linear { scale: 0.2, ..Linear::plain(Layout::Nn) }, &[h, w]);
        b.seed(h);
        b.seed(y);
        b.wrt(&[x, w]);
    })
}

/// More rows than workgroups fit into one dimension.
fn many_rows() -> Case {
    Case::new("linear of 70001 rows", |b| {
        let (x, w) = (b.normal(&[70_001, 3]), b.weight(DType::BF16, &[2, 3]));
        let y = b.one(Linear::plain(Layout::Nt), &[x, w]);
        b.expect(y, naive::product(Layout::Nt, [70_001, 2, 3], &b.of(x), &b.of(w)));
    })
}

fn column_sum([rows, columns]: [usize; 2]) -> Case {
    Case::new(format!("column_sum {rows}x{columns}"), move |b| {
        b.refusable = true;
        let x = b.normal(&[rows, columns]);
        let y = b.one(ColumnSum {}, &[x]);
        let values = b.of(x);
        b.expect(y, (0..columns).map(|c| values.iter().skip(c).step_by(columns).sum()).collect());
    })
}
