use super::embed::token;
use super::scatter::Overlay;
use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Need};
use crate::parallel::{GRAIN, try_tasks};
use crate::real::Real;
use crate::simd::simd;
use sparta_graph::Blocks;
use sparta_graph::ops::Dequantize;

/// Elements decoded at once: one of the longest blocks, or several shorter ones.
const AT_ONCE: usize = 256;

pub fn prepare<T: Real>(op: &Dequantize, io: &Io) -> Result<Kernel, String> {
    let (blocks, stored) = io.bytes(0)?;
    let (y, format, vocab, width) = (io.float_output::<T>(0)?, op.blocks, op.rows, op.columns);
    let tokens = if op.lookup { Some(io.words(1)?) } else { None };
    let overlay = if op.overlay { Some(Overlay::<T>::new(io)?) } else { None };
    let rows = io.output_numel(0)? / width.max(1);
    let row_bytes = format.bytes_of(width).filter(|bytes| bytes * vocab <= stored);
    let row_bytes = row_bytes.ok_or("rows of its blocks lie outside of their tensor")?;
    let size = GRAIN.div_ceil(width.max(1));
    Ok(Kernel::new(Need::default(), move |_| {
        if let Some(overlay) = &overlay {
            overlay.check(vocab * width)?;
        }
        try_tasks(rows.div_ceil(size), |task| {
            let rows = task * size..rows.min((task + 1) * size);
            for row in rows.clone() {
                let source = tokens.map_or(Ok(row), |tokens| token(tokens, row, vocab))?;
                // SAFETY: the row lies in the tensor, as its place was checked; nobody writes it.
                let bytes = unsafe { blocks.slice(source * row_bytes, row_bytes) };
                // SAFETY: row `row` of y is this task's own.
                unsafe { decode_row(format, bytes, y, row * width) };
            }
            if let Some(overlay) = &overlay {
                // SAFETY: the elements of these rows are this task's own.
                unsafe { overlay.write(y, rows.start * width..rows.end * width) };
            }
            Ok(())
        })
    }))
}

simd! {
    /// Decodes blocks into the elements from `start` on.
    ///
    /// # Safety
    /// The elements lie in `y`, and nobody else reads or writes them concurrently.
    unsafe fn decode_row<T: Real>(format: Blocks, bytes: &[u8], y: Floats<T>, start: usize) {
        let (mut values, mut numbers) = ([0f32; AT_ONCE], [T::ZERO; AT_ONCE]);
        let single = T::single(y);
        for (i, blocks) in bytes.chunks(AT_ONCE / format.elements() * format.bytes()).enumerate() {
            let (at, n) = (start + i * AT_ONCE, blocks.len() / format.bytes() * format.elements());
            // SAFETY: the caller vouches for the elements.
            unsafe {
                let out = match single {
                    Some(Floats::Full(y)) => y.slice_mut(at, n),
                    _ => &mut values[..n],
                };
                format.decode(blocks, out);
                match single {
                    Some(Floats::Full(_)) => {}
                    Some(y) => y.store(at, n, values.as_ptr()),
                    None => {
                        numbers.iter_mut().zip(&values).for_each(|(number, &value)| *number = T::from_f32(value));
                        y.store(at, n, numbers.as_ptr());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, error, rounded};
    use sparta_graph::DType;

    /// Rows of Q8_0 that hold 0.5 (i - 60), and their words.
    fn stored(rows: usize, columns: usize) -> (Vec<f64>, Tensor) {
        let q = |i: usize| (i % 121) as i8 - 60;
        let block = |b: usize| {
            let scale = half::f16::from_f32(0.5).to_le_bytes();
            let numbers: Vec<u8> = (32 * b..32 * (b + 1)).map(|i| q(i) as u8).collect();
            [&scale[..], &numbers].concat()
        };
        let mut bytes: Vec<u8> = (0..rows * columns / 32).flat_map(block).collect();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let words: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        ((0..rows * columns).map(|i| 0.5 * f64::from(q(i))).collect(), Tensor::u32(&[words.len()], &words))
    }

    #[test]
    fn decodes_rows_and_lays_chosen_elements_over_them() {
        let (rows, columns) = (700, 96);
        let (mut expected, blocks) = stored(rows, columns);
        for output in [DType::F32, DType::BF16] {
            let op = Dequantize::whole(Blocks::Q8_0, [rows, columns], output);
            check(op.clone(), std::slice::from_ref(&blocks), &[expected.clone()], 0.0);
            let tokens = [3u32, 0, 699, 3];
            let looked_up = tokens.iter().flat_map(|&t| expected[t as usize * columns..][..columns].to_vec()).collect();
            let lookup = Dequantize { lookup: true, ..op.clone() };
            check(lookup.clone(), &[blocks.clone(), Tensor::u32(&[4], &tokens)], &[looked_up], 0.0);
            assert!(error(lookup, &[blocks.clone(), Tensor::u32(&[1], &[700])]).contains("700 rows"));
        }
        let index: Vec<u32> = (1..(rows * columns) as u32).step_by(7).collect();
        let (base, delta) =
            (Tensor::random(DType::BF16, &[index.len()], 1), Tensor::random(DType::F32, &[index.len()], 2));
        for (&at, (base, delta)) in index.iter().zip(base.values().iter().zip(delta.values())) {
            expected[at as usize] = rounded(DType::BF16, base + delta);
        }
        let op = Dequantize { overlay: true, ..Dequantize::whole(Blocks::Q8_0, [rows, columns], DType::BF16) };
        check(op.clone(), &[blocks.clone(), Tensor::u32(&[index.len()], &index), base, delta], &[expected], 0.0);
        let zeros = Tensor::f32(&[2], &[0.0; 2]);
        let outside = [blocks, Tensor::u32(&[2], &[5, 67_200]), zeros.clone(), zeros];
        assert!(error(op, &outside).contains("index[1]"));
    }
}
