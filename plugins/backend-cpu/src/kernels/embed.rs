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

/// The token of a row. Errors: it is outside of the table.
pub fn token(tokens: Ptr<u32>, row: usize, vocab: usize) -> Result<usize, String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, error};
    use sparta_graph::DType;

    #[test]
    fn lookup_and_gradient() {
        let (vocab, width, tokens) = (50, 130, [3, 0, 3, 49, 7, 3]);
        let ids = Tensor::u32(&[tokens.len()], &tokens);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let table = Tensor::random(dtype, &[vocab, width], 1);
            let rows = tokens.iter().map(|&t| table.values()[t as usize * width..][..width].to_vec());
            let expected = rows.flatten().map(|x| 1.5 * x).collect();
            check(Embed { scale: 1.5, padding: Some(0) }, &[table.clone(), ids.clone()], &[expected], 1e-6);
        }
        let dy = Tensor::random(DType::F32, &[tokens.len(), width], 2);
        let mut grad = vec![0.0; vocab * width];
        for (row, &token) in tokens.iter().enumerate().filter(|(_, token)| **token != 7) {
            (0..width).for_each(|c| grad[token as usize * width + c] += 1.5 * dy.values()[row * width + c]);
        }
        check(EmbedGrad { vocab, scale: 1.5, padding: Some(7) }, &[dy, ids], &[grad], 1e-6);
    }

    #[test]
    fn a_token_outside_of_the_table_is_refused() {
        let inputs = [Tensor::f32(&[2, 1], &[0.0; 2]), Tensor::u32(&[2], &[1, 2])];
        assert!(error(Embed { scale: 1.0, padding: None }, &inputs).contains("row 1 has token 2"));
    }
}
