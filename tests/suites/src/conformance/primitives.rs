//! The ops that methods are built from: elementwise products and functions, sums, and moves of elements.

use super::case::{Build, Case};
use sparta_graph::ops::{
    Add, Broadcast, ColumnSum, Detach, Div, Function, Layout, Linear, Map, Mul, RowSum, Slice, Transpose, Unslice,
};
use sparta_graph::{DType, Op, Value};

const SHAPES: [[usize; 2]; 7] = [[1, 1], [1, 7], [3, 2], [17, 1], [5, 65], [33, 129], [129, 31]];

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for repeated in [Repeated::No, Repeated::Row, Repeated::Column] {
            cases.push(binary(Mul {}.into(), |a, b| a * b, shape, repeated));
            cases.push(binary(Div {}.into(), |a, b| a / b, shape, repeated));
            cases.push(binary(Add {}.into(), |a, b| a + b, shape, repeated));
        }
        cases.push(row_of_weights(shape, [DType::BF16, DType::F16][i % 2]));
        for function in Function::ALL {
            cases.push(map(function, shape));
        }
        cases.push(sums(shape));
        cases.push(broadcasts(shape));
        cases.push(moves(shape));
    }
    cases.push(norm_of_a_weight());
    cases
}

#[derive(Clone, Copy, Debug)]
enum Repeated {
    No,
    Row,
    Column,
}

/// Normal numbers that are moved away from 0, where quotients and kinks are.
fn away_from_zero(b: &mut Build, shape: &[usize]) -> Value {
    let values = b.random.normals(shape.iter().product());
    b.f32s(shape, values.into_iter().map(|x| x + 0.5 * x.signum()).collect())
}

fn binary(op: Op, f: fn(f64, f64) -> f64, shape: [usize; 2], repeated: Repeated) -> Case {
    Case::new(format!("{} {shape:?} repeated {repeated:?}", op.name()), move |b| {
        let [rows, columns] = shape;
        let x = b.normal(&shape);
        let y = match repeated {
            Repeated::No => away_from_zero(b, &shape),
            Repeated::Row => away_from_zero(b, &[columns]),
            Repeated::Column => away_from_zero(b, &[rows, 1]),
        };
        let at = |e: usize| match repeated {
            Repeated::No => e,
            Repeated::Row => e % columns,
            Repeated::Column => e / columns,
        };
        let z = b.one(op.clone(), &[x, y]);
        let factors = b.of(y);
        b.expect(z, b.of(x).iter().enumerate().map(|(e, x)| f(*x, factors[at(e)])).collect());
        b.seed(z);
        b.wrt(&[x, y]);
    })
}

/// A 16-bit weight as the row.
fn row_of_weights(shape: [usize; 2], dtype: DType) -> Case {
    Case::new(format!("mul by a row of {dtype} {shape:?}"), move |b| {
        let (x, w) = (b.normal(&shape), b.weight(dtype, &shape[1..]));
        let y = b.one(Mul {}, &[x, w]);
        b.seed(y);
        b.wrt(&[x, w]);
    })
}

fn map(function: Function, shape: [usize; 2]) -> Case {
    Case::new(format!("map {function:?} {shape:?}"), move |b| {
        let values = b.random.normals(shape[0] * shape[1]).into_iter();
        let values: Vec<f64> = match function {
            Function::Rsqrt => values.map(|x| x.abs() + 0.5).collect(),
            Function::Exp => values.collect(),
            Function::Abs | Function::Relu | Function::Step => values.map(|x| x + 0.25 * x.signum()).collect(),
            // Away from halfway cases.
            Function::Round => values.map(|x| 3.0 * x).map(|x| x.round() + 0.75 * (x - x.round())).collect(),
        };
        let x = b.f32s(&shape, values);
        let y = b.one(Map { function }, &[x]);
        let f = |x: &f64| match function {
            Function::Exp => x.exp(),
            Function::Rsqrt => 1.0 / x.sqrt(),
            Function::Abs => x.abs(),
            Function::Relu => x.max(0.0),
            Function::Round => x.round_ties_even(),
            Function::Step => f64::from(u8::from(*x > 0.0)),
        };
        b.expect(y, b.of(x).iter().map(f).collect());
        b.seed(y);
        b.wrt(&[x]);
    })
}

fn sums([rows, columns]: [usize; 2]) -> Case {
    Case::new(format!("sums of rows and columns {rows}x{columns}"), move |b| {
        let x = b.normal(&[rows, columns]);
        let (of_rows, of_columns) = (b.one(RowSum {}, &[x]), b.one(ColumnSum {}, &[x]));
        let values = b.of(x);
        b.expect(of_rows, values.chunks(columns).map(|row| row.iter().sum()).collect());
        b.expect(of_columns, (0..columns).map(|c| values.iter().skip(c).step_by(columns).sum()).collect());
        b.seed(of_rows);
        b.seed(of_columns);
        b.wrt(&[x]);
    })
}

fn broadcasts([rows, columns]: [usize; 2]) -> Case {
    Case::new(format!("broadcast to {rows}x{columns}"), move |b| {
        let (row, column) = (b.normal(&[columns]), b.normal(&[rows, 1]));
        let shape = [rows, columns];
        let y = b.one(Broadcast { shape }, &[row]);
        let values = b.of(row);
        b.expect(y, values.repeat(rows));
        b.seed(y);
        b.wrt(&[row]);
        if columns > 1 {
            let z = b.one(Broadcast { shape }, &[column]);
            let values = b.of(column);
            b.expect(z, values.iter().flat_map(|x| vec![*x; columns]).collect());
            b.seed(z);
            b.wrt(&[column]);
        }
    })
}

fn moves([rows, columns]: [usize; 2]) -> Case {
    Case::new(format!("transpose, slice and unslice {rows}x{columns}"), move |b| {
        let x = b.normal(&[rows, columns]);
        let values = b.of(x);
        let turned = b.one(Transpose {}, &[x]);
        b.expect(turned, (0..rows * columns).map(|e| values[e % rows * columns + e / rows]).collect());
        let (top, left) = (rows / 3, columns / 2);
        let block = b.one(Slice { rows: [top, rows], columns: [left, columns] }, &[x]);
        b.expect(block, values.chunks(columns).skip(top).flat_map(|row| row[left..].to_vec()).collect());
        let (height, width) = (rows + 3, columns + 2);
        let placed = b.one(Unslice { shape: [height, width], at: [2, 1] }, &[x]);
        let inside = |e: usize| {
            let (i, j) = ((e / width).checked_sub(2)?, (e % width).checked_sub(1)?);
            (i < rows && j < columns).then(|| values[i * columns + j])
        };
        b.expect(placed, (0..height * width).map(|e| inside(e).unwrap_or(0.0)).collect());
        for y in [turned, block, placed] {
            b.seed(y);
        }
        b.wrt(&[x]);
    })
}

/// DoRA's weight: the rows divided by their norms, through which no gradient passes, times magnitudes.
fn norm_of_a_weight() -> Case {
    Case::new("rows of a weight by their detached norms", |b| {
        let (x, w, m) = (b.normal(&[9, 21]), b.normal(&[13, 21]), b.normal(&[13]));
        let squares = b.one(Mul {}, &[w, w]);
        let norms = b.one(RowSum {}, &[squares]);
        let inverse = b.one(Map { function: Function::Rsqrt }, &[norms]);
        let frozen = b.one(Detach {}, &[inverse]);
        let rows = b.one(Mul {}, &[w, frozen]);
        let y = b.one(Linear::plain(Layout::Nt), &[x, rows]);
        let y = b.one(Mul {}, &[y, m]);
        b.seed(y);
        // Differences with respect to w would go through the norms, so they cannot be compared.
        b.wrt(&[x, m]);
    })
}
