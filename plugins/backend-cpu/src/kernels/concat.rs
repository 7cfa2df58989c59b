use crate::bind::{Io, Kernel};
use crate::memory::Ptr;
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use sparta_graph::ops::Concat;

/// A piece of the output: `n` elements of an input, then zeros up to `end`.
struct Part<T> {
    from: Ptr<T>,
    n: usize,
    begin: usize,
    end: usize,
}

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let y = io.output::<T>(0)?;
    let lengths = (0..io.inputs()).map(|i| io.numel(i)).collect::<Result<Vec<_>, _>>()?;
    let (begins, length) = Concat::layout(lengths.iter().copied());
    let ends = begins.iter().skip(1).copied().chain([length]);
    let parts = begins.iter().zip(ends).zip(lengths).enumerate();
    let parts = parts.map(|(i, ((&begin, end), n))| Ok(Part { from: io.real::<T>(i)?, n, begin, end }));
    let parts = parts.collect::<Result<Vec<_>, String>>()?;
    Ok(Kernel::plain(move || {
        for part in &parts {
            // The planner made this input in place: nothing to copy.
            if part.from.at(0) != y.at(part.begin) {
                // SAFETY: chunks of an input and of its part of the output, which do not overlap here.
                chunks(part.n, GRAIN, |c| unsafe {
                    y.slice_mut(part.begin + c.start, c.len()).copy_from_slice(part.from.slice(c.start, c.len()))
                });
            }
            // SAFETY: the gap after the part, which belongs to the output alone.
            unsafe { y.slice_mut(part.begin + part.n, part.end - part.begin - part.n).fill(T::ZERO) };
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check};
    use sparta_graph::DType;

    #[test]
    fn joins_with_zeros_between() {
        let shapes: [&[usize]; 5] = [&[3, 7], &[64], &[0], &[1], &[200, 301]];
        let inputs: Vec<Tensor> =
            shapes.iter().enumerate().map(|(i, shape)| Tensor::random(DType::F32, shape, i as u64)).collect();
        let mut expected = vec![];
        for input in &inputs {
            expected.extend(input.values());
            expected.resize(expected.len().next_multiple_of(64), 0.0);
        }
        check(Concat {}, &inputs, &[expected], 0.0);
    }
}
