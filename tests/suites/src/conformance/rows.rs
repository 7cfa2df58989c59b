//! Ops that pick rows or columns.

use super::case::Case;
use crate::tensor::round;
use sparta_graph::DType;
use sparta_graph::ops::{
    Embed, IGNORED, JoinColumns, Layout, Linear, ScatterRows, SelectRows, SplitColumns, StoreRows,
};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    let tables = [(1, 1, 1), (3, 7, 2), (17, 33, 5), (300, 63, 40), (7, 64, 65), (33, 129, 17), (2, 257, 130)];
    for (i, (vocab, width, rows)) in tables.into_iter().enumerate() {
        let dtype = [DType::BF16, DType::F32, DType::F16][i % 3];
        let op = Embed { scale: [1.0, 45.25][i % 2], padding: (i % 2 == 1).then_some(0) };
        cases.push(embed(vocab, width, rows, op, dtype));
    }
    cases.push(embed(70_001, 2, 3, Embed { scale: 1.0, padding: None }, DType::F32));
    cases.push(embed(3, 1, 70_001, Embed { scale: 1.0, padding: None }, DType::BF16));
    cases.push(tied_embedding());
    for (total, width, rows) in [
        (1, 1, vec![0]),
        (5, 3, vec![4]),
        (7, 33, vec![6, 0, 3]),
        (64, 65, vec![63]),
        (130, 2, (0..130).rev().collect()),
    ] {
        cases.push(select_rows(total, width, rows.clone()));
        cases.push(scatter_rows(total, width, rows));
    }
    cases.push(scatter_rows(70_001, 2, vec![70_000, 5]));
    let ignored = IGNORED as usize;
    for (kept, width, rows) in [
        (1, 2, vec![0]),
        (5, 4, vec![4, ignored, 0, ignored]),
        (64, 66, vec![63, 0, 7]),
        (300, 130, (100..171).rev().collect()),
        (3, 2, vec![ignored]),
        (70_001, 2, vec![70_000, ignored, 5]),
    ] {
        for dtype in [DType::F32, DType::BF16] {
            cases.push(store_rows(kept, width, rows.clone(), dtype));
        }
    }
    cases.push(store_rows(9, 5, vec![8, 2], DType::F32));
    for (rows, widths) in
        [(1, vec![2]), (3, vec![2, 6]), (65, vec![34, 2, 64]), (7, vec![130, 258]), (9_001, vec![2, 2])]
    {
        cases.push(split_columns(rows, widths.clone(), None));
        cases.push(split_columns(rows, widths.clone(), Some(widths.len() - 1)));
        cases.push(join_columns(rows, widths));
    }
    cases
}

/// Numbers that bf16 holds and numbers that are rounded to it, over existing numbers.
fn store_rows(kept: usize, width: usize, rows: Vec<usize>, dtype: DType) -> Case {
    Case::new(format!("store_rows {} of {kept}x{width} {dtype}", rows.len()), move |b| {
        let dst = b.weight(dtype, &[kept, width]);
        let src = b.normal(&[rows.len(), width]);
        let index = b.u32s(&[rows.len()], rows.iter().copied());
        let (mut expected, new) = (b.of(dst), b.of(src));
        b.apply(StoreRows {}, &[dst, src, index]);
        for (&row, new) in rows.iter().zip(new.chunks(width)).filter(|(row, _)| **row < kept) {
            let stored = new.iter().map(|&x| round(dtype, x));
            expected[row * width..][..width].iter_mut().zip(stored).for_each(|(old, new)| *old = new);
        }
        b.expect(dst, expected);
    })
}

/// The columns of each block in every row of `x`.
fn blocks(x: &[f64], widths: &[usize]) -> Vec<Vec<f64>> {
    let columns = widths.iter().sum();
    let mut end = 0;
    let block = |&width: &usize| {
        end += width;
        x.chunks(columns).flat_map(|row| row[end - width..end].to_vec()).collect()
    };
    widths.iter().map(block).collect()
}

/// With `used`, only one of the outputs has a gradient.
fn split_columns(rows: usize, widths: Vec<usize>, used: Option<usize>) -> Case {
    Case::new(format!("split_columns {widths:?} of {rows} rows, used {used:?}"), move |b| {
        let x = b.normal(&[rows, widths.iter().sum()]);
        let outputs = b.apply(SplitColumns { widths: widths.clone() }, &[x]);
        for (i, (&y, expected)) in outputs.iter().zip(blocks(&b.of(x), &widths)).enumerate() {
            b.expect(y, expected);
            if used.is_none_or(|used| used == i) {
                b.seed(y);
            }
        }
        b.wrt(&[x]);
    })
}

fn join_columns(rows: usize, widths: Vec<usize>) -> Case {
    Case::new(format!("join_columns {widths:?} of {rows} rows"), move |b| {
        let all = b.random.normals(rows * widths.iter().sum::<usize>());
        let inputs: Vec<_> =
            blocks(&all, &widths).into_iter().zip(&widths).map(|(x, &w)| b.f32s(&[rows, w], x)).collect();
        let y = b.one(JoinColumns {}, &inputs);
        let parts: Vec<Vec<f64>> = inputs.iter().map(|&x| b.of(x)).collect();
        let row = |t: usize| parts.iter().zip(&widths).flat_map(move |(x, &w)| x[t * w..][..w].to_vec());
        let expected = (0..rows).flat_map(row).collect();
        b.expect(y, expected);
    })
}

/// Tokens repeat, so that rows of the gradient are sums.
fn embed(vocab: usize, width: usize, rows: usize, op: Embed, dtype: DType) -> Case {
    Case::new(format!("{op:?} {vocab}x{width} {dtype}, {rows} tokens"), move |b| {
        let table = b.weight(dtype, &[vocab, width]);
        let tokens: Vec<usize> = (0..rows).map(|_| b.random.below(vocab.min(rows / 2 + 1))).collect();
        let ids = b.u32s(&[rows], tokens.iter().copied());
        let y = b.one(op.clone(), &[table, ids]);
        let (values, scale) = (b.of(table), f64::from(op.scale));
        b.expect(y, tokens.iter().flat_map(|t| values[t * width..][..width].to_vec()).map(|x| scale * x).collect());
        b.seed(y);
        if op.padding.is_none() {
            b.wrt(&[table]);
        } else {
            // The padding row gets no gradient although it has an effect: compare with the definition.
            let dy = b.normal(&[rows, width]);
            let grad = sparta_graph::ops::EmbedGrad { vocab, scale: op.scale, padding: op.padding };
            let dtable = b.one(grad, &[dy, ids]);
            let mut sum = vec![0.0; vocab * width];
            let upstream = b.of(dy);
            for (t, &token) in tokens.iter().enumerate().filter(|(_, token)| Some(**token as u32) != op.padding) {
                (0..width).for_each(|c| sum[token * width + c] += scale * upstream[t * width + c]);
            }
            b.magnitude = scale;
            b.expect(dtable, sum);
        }
    })
}

/// One table for lookup and output, as in Gemma.
fn tied_embedding() -> Case {
    Case::new("tied embedding", |b| {
        let table = b.weight(DType::BF16, &[19, 8]);
        let tokens = b.u32s(&[6], [3, 3, 0, 18, 7, 3]);
        let h = b.one(Embed { scale: 0.5, padding: None }, &[table, tokens]);
        let logits = b.one(Linear::plain(Layout::Nt), &[h, table]);
        b.seed(logits);
        b.wrt(&[table]);
    })
}

fn select_rows(total: usize, width: usize, rows: Vec<usize>) -> Case {
    Case::new(format!("select_rows {} of {total}x{width}", rows.len()), move |b| {
        let x = b.normal(&[total, width]);
        let index = b.u32s(&[rows.len()], rows.iter().copied());
        let y = b.one(SelectRows {}, &[x, index]);
        let values = b.of(x);
        b.expect(y, rows.iter().flat_map(|r| values[r * width..][..width].to_vec()).collect());
        b.seed(y);
        b.wrt(&[x]);
    })
}

fn scatter_rows(total: usize, width: usize, rows: Vec<usize>) -> Case {
    Case::new(format!("scatter_rows {} of {total}x{width}", rows.len()), move |b| {
        let x = b.normal(&[rows.len(), width]);
        let index = b.u32s(&[rows.len()], rows.iter().copied());
        let y = b.one(ScatterRows { rows: total }, &[x, index]);
        let mut expected = vec![0.0; total * width];
        let values = b.of(x);
        for (row, chunk) in rows.iter().zip(values.chunks(width)) {
            expected[row * width..][..width].copy_from_slice(chunk);
        }
        b.expect(y, expected);
    })
}
