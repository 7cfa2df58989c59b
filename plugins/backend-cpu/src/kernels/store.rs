use super::cast;
use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    if io.ty(0)?.dtype != io.ty(1)?.dtype {
        return Ok(cast::convert::<T>(io.numel(0)?, io.floats(1)?, io.floats(0)?));
    }
    let ((dst, bytes), (src, _)) = (io.bytes(0)?, io.bytes(1)?);
    Ok(Kernel::plain(move || {
        chunks(bytes, 4 * GRAIN, |c| {
            // SAFETY: chunks of two tensors of the same size, which do not overlap.
            unsafe { dst.slice_mut(c.start, c.len()).copy_from_slice(src.slice(c.start, c.len())) }
        });
    }))
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, rounded};
    use sparta_graph::DType;
    use sparta_graph::ops::Store;

    #[test]
    fn copies_every_type() {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::U32] {
            let tensor = |seed| match dtype {
                DType::U32 => Tensor::u32(&[3, 25_000], &(seed..seed + 75_000).collect::<Vec<_>>()),
                _ => Tensor::random(dtype, &[3, 25_000], seed as u64),
            };
            let inputs = [tensor(1), tensor(2)];
            check(Store {}, &inputs, &[inputs[1].values()], 0.0);
        }
    }

    #[test]
    fn rounds_to_the_type_of_the_destination() {
        let x = Tensor::random(DType::F32, &[3, 25_000], 1);
        let rounded = x.values().iter().map(|&x| rounded(DType::BF16, x)).collect();
        check(Store {}, &[Tensor::random(DType::BF16, &[3, 25_000], 2), x], &[rounded], 0.0);
        let x = Tensor::random(DType::BF16, &[3, 25_000], 3);
        check(Store {}, &[Tensor::random(DType::F32, &[3, 25_000], 4), x.clone()], &[x.values()], 0.0);
    }
}
