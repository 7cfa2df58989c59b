use crate::bind::{Io, Kernel};
use crate::elementwise::elementwise;
use crate::real::Real;
use crate::simd::{map, simd};
use sparta_graph::ops::Scale;

pub fn prepare<T: Real>(op: &Scale, io: &Io) -> Result<Kernel, String> {
    let (x, y, n, factor) = (io.floats::<T>(0)?, io.float_output::<T>(0)?, io.numel(0)?, T::from_f32(op.factor));
    Ok(Kernel::plain(move || {
        // SAFETY: tensors of n elements.
        unsafe { elementwise(n, [x], [y], |r, [x], [y]| scale(r.len(), x, factor, y)) }
    }))
}

simd! {
    unsafe fn scale<T: Real>(n: usize, x: *const T, factor: T, y: *mut T) {
        map!(n, |x| -> y { factor * x })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;

    #[test]
    fn scales() {
        let x = Tensor::random(DType::F32, &[3, 12_345], 1);
        let expected = x.values().iter().map(|x| 0.3f32 as f64 * x).collect();
        check(Scale { factor: 0.3 }, std::slice::from_ref(&x), &[expected], 1e-7);
        check_bf16(Scale { factor: 0.3 }, &[x], &[0], 1e-7);
    }
}
