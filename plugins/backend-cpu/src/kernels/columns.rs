use crate::bind::{Io, Kernel};
use crate::memory::Ptr;
use crate::parallel;

/// A block of columns, in bytes: where it lies, its width, and where its columns begin in a row of the whole matrix.
struct Block {
    at: Ptr<u8>,
    width: usize,
    begin: usize,
}

pub fn prepare_split(io: &Io) -> Result<Kernel, String> {
    let ((rows, _), (x, bytes)) = (io.matrix(0)?, io.bytes(0)?);
    let blocks = blocks(rows, (0..io.outputs()).map(|i| io.output_bytes(i)))?;
    let stride = bytes / rows.max(1);
    Ok(Kernel::plain(move || {
        parallel::rows(rows, stride, |part| {
            for (row, block) in part.flat_map(|row| blocks.iter().map(move |block| (row, block))) {
                // SAFETY: a row of a block, and its columns of that row of x; this task alone writes the block's row.
                unsafe {
                    let from = x.slice(row * stride + block.begin, block.width);
                    block.at.slice_mut(row * block.width, block.width).copy_from_slice(from);
                }
            }
        });
    }))
}

pub fn prepare_join(io: &Io) -> Result<Kernel, String> {
    let ((rows, _), (y, bytes)) = (io.matrix(0)?, io.output_bytes(0)?);
    let blocks = blocks(rows, (0..io.inputs()).map(|i| io.bytes(i)))?;
    let stride = bytes / rows.max(1);
    Ok(Kernel::plain(move || {
        parallel::rows(rows, stride, |part| {
            for (row, block) in part.flat_map(|row| blocks.iter().map(move |block| (row, block))) {
                // SAFETY: a row of a block, and its columns of that row of y, which this task alone writes.
                unsafe {
                    let from = block.at.slice(row * block.width, block.width);
                    y.slice_mut(row * stride + block.begin, block.width).copy_from_slice(from);
                }
            }
        });
    }))
}

fn blocks(rows: usize, tensors: impl Iterator<Item = Result<(Ptr<u8>, usize), String>>) -> Result<Vec<Block>, String> {
    let mut begin = 0;
    let block = |tensor: Result<(Ptr<u8>, usize), String>| {
        let (at, bytes) = tensor?;
        let width = bytes / rows.max(1);
        begin += width;
        Ok(Block { at, width, begin: begin - width })
    };
    tensors.map(block).collect()
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;
    use sparta_graph::ops::{JoinColumns, SplitColumns};

    #[test]
    fn cuts_and_joins() {
        for (rows, widths) in [(1, vec![2]), (3, vec![2, 6]), (700, vec![34, 2, 64])] {
            let columns: usize = widths.iter().sum();
            let x = Tensor::random(DType::F32, &[rows, columns], 1);
            let mut begin = 0;
            let block = |&width: &usize| {
                begin += width;
                x.values().chunks(columns).flat_map(|row| row[begin - width..begin].to_vec()).collect::<Vec<_>>()
            };
            let blocks: Vec<Vec<f64>> = widths.iter().map(block).collect();
            check(SplitColumns { widths: widths.clone() }, std::slice::from_ref(&x), &blocks, 0.0);
            check_bf16(SplitColumns { widths: widths.clone() }, std::slice::from_ref(&x), &[0], 0.0);
            let tensors: Vec<Tensor> = blocks.iter().zip(&widths).map(|(b, &w)| Tensor::f32(&[rows, w], b)).collect();
            check(JoinColumns {}, &tensors, &[x.values()], 0.0);
            check_bf16(JoinColumns {}, &tensors, &(0..widths.len()).collect::<Vec<_>>(), 0.0);
        }
    }
}
