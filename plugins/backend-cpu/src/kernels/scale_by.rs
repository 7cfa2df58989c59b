use crate::bind::{Io, Kernel};
use crate::elementwise::elementwise;
use crate::real::Real;
use crate::simd::{map, simd};

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let (x, s, y, n) = (io.floats::<T>(0)?, io.real::<T>(1)?, io.float_output::<T>(0)?, io.numel(0)?);
    Ok(Kernel::plain(move || {
        // SAFETY: s has one element, the others are tensors of n elements.
        unsafe { elementwise(n, [x], [y], |r, [x], [y]| scale(r.len(), x, *s.at(0), y)) }
    }))
}

simd! {
    unsafe fn scale<T: Real>(n: usize, x: *const T, factor: T, y: *mut T) {
        map!(n, |x| -> y { factor * x })
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;
    use sparta_graph::ops::ScaleBy;

    #[test]
    fn scales() {
        let x = Tensor::random(DType::F32, &[3, 12_345], 1);
        let expected = x.values().iter().map(|x| 0.75 * x).collect();
        let inputs = [x, Tensor::f32(&[1], &[0.75])];
        check(ScaleBy {}, &inputs, &[expected], 1e-7);
        check_bf16(ScaleBy {}, &inputs, &[0], 1e-7);
    }
}
