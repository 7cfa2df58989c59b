use crate::bind::{Io, Kernel};
use crate::memory::{Need, Ptr};
use crate::parallel::{GRAIN, chunks, try_tasks};
use crate::real::Real;
use crate::simd::{map, simd};
use sparta_graph::ops::{Embed, EmbedGrad};

pub fn prepare<T: Real>(op: &Embed, io: &Io) -> Result<Kernel, String> {
    let ((vocab, width), table, tokens) = (io.matrix(0)?, io.floats::<T>(0)?, io.words(1)?);
    let (y, rows, factor) = (io.output::<T>(0)?, io.numel(1)?, T::from_f32(op.scale));
    Ok(Kernel::new(Need::default(), move |_| {
        let size = GRAIN.div_ceil(width.max(1));
        try_tasks(rows.div_ceil(size), |task| {
            for row in task * size..rows.min((task + 1) * size) {
                let token = token(tokens, row, vocab)?;
                // SAFETY: the token was checked; row `row` of y is this task's own.
                unsafe {
                    table.load(token * width, width, y.at(row * width));
                    scale(width, y.at(row * width), factor);
                }
            }
            Ok(())
        })
    }))
}

/// Elements of a row that one task adds.
const COLUMNS: usize = 64;

pub fn prepare_grad<T: Real>(op: &EmbedGrad, io: &Io) -> Result<Kernel, String> {
    let ((rows, width), dy, tokens) = (io.matrix(0)?, io.real::<T>(0)?, io.words(1)?);
    let (grad, total) = (io.output::<T>(0)?, io.output_numel(0)?);
    let (vocab, padding, factor) = (op.vocab, op.padding, T::from_f32(op.scale));
    Ok(Kernel::new(Need::default(), move |_| {
        // SAFETY: chunks of the gradient.
        chunks(total, GRAIN, |c| unsafe { grad.slice_mut(c.start, c.len()) }.fill(T::ZERO));
        try_tasks(width.div_ceil(COLUMNS), |task| {
            let first = task * COLUMNS;
            let columns = COLUMNS.min(width - first);
            for row in 0..rows {
                let token = token(tokens, row, vocab)?;
                if padding.is_none_or(|padding| padding as usize != token) {
                    // SAFETY: the token was checked; these columns are this task's own.
                    unsafe { add(columns, grad.at(token * width + first), dy.at(row * width + first), factor) };
                }
            }
            Ok(())
        })
    }))
}

fn token(tokens: Ptr<u32>, row: usize, vocab: usize) -> Result<usize, String> {
    // SAFETY: the callers' rows are those of `tokens`, which the ops do not write.
    match unsafe { *tokens.at(row) } as usize {
        token if token < vocab => Ok(token),
        token => Err(format!("row {row} has token {token}, but the table has {vocab} rows")),
    }
}

simd! {
    unsafe fn scale<T: Real>(n: usize, y: *mut T, factor: T) {
        let x = y;
        map!(n, |x| -> y { factor * x })
    }

    unsafe fn add<T: Real>(n: usize, sum: *mut T, x: *const T, factor: T) {
        let out = sum;
        map!(n, |sum, x| -> out { x.mul_add(factor, sum) })
    }
}
