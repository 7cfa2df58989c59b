use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    const BUFFER: usize = 512;
    let (x, y, n) = (io.floats::<T>(0)?, io.float_output::<T>(0)?, io.numel(0)?);
    Ok(Kernel::plain(move || {
        chunks(n, GRAIN, |c| {
            let mut buffer = [T::ZERO; BUFFER];
            for start in c.clone().step_by(BUFFER) {
                let len = BUFFER.min(c.end - start);
                // SAFETY: a part of tensors of n elements, at most as long as the buffer.
                unsafe {
                    x.load(start, len, buffer.as_mut_ptr());
                    y.store(start, len, buffer.as_ptr());
                }
            }
        });
    }))
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check};
    use half::{bf16, f16};
    use sparta_graph::DType;
    use sparta_graph::ops::Cast;

    #[test]
    fn rounds_to_nearest_even() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let x = Tensor::random(dtype, &[30, 1001], 1);
            for to in [DType::F32, DType::BF16, DType::F16] {
                let round = |x: &f64| match to {
                    DType::BF16 => bf16::from_f64(*x).to_f64(),
                    DType::F16 => f16::from_f64(*x).to_f64(),
                    _ => *x,
                };
                check(Cast { to }, std::slice::from_ref(&x), &[x.values().iter().map(round).collect()], 0.0);
            }
        }
    }
}
