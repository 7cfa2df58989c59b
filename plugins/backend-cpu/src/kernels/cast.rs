use crate::bind::{Io, Kernel};
use crate::elementwise::elementwise;
use crate::memory::Floats;
use crate::real::Real;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let (x, y, n) = (io.floats::<T>(0)?, io.float_output::<T>(0)?, io.numel(0)?);
    Ok(convert(n, x, y))
}

/// Rounds the n elements of x into y.
pub fn convert<T: Real>(n: usize, x: Floats<T>, y: Floats<T>) -> Kernel {
    Kernel::plain(move || {
        // SAFETY: tensors of n elements. Numbers are loaded straight into the output, or stored straight from the input.
        unsafe {
            match y {
                Floats::Full(_) => elementwise(n, [], [y], |r, [], [y]| x.load(r.start, r.len(), y)),
                _ => elementwise(n, [x], [], |r, [x], []| y.store(r.start, r.len(), x)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, rounded};
    use sparta_graph::DType;
    use sparta_graph::ops::Cast;

    #[test]
    fn rounds_to_nearest_even() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let x = Tensor::random(dtype, &[30, 1001], 1);
            for to in [DType::F32, DType::BF16, DType::F16] {
                let expected = x.values().iter().map(|&x| rounded(to, x)).collect();
                check(Cast { to }, std::slice::from_ref(&x), &[expected], 0.0);
            }
        }
    }
}
