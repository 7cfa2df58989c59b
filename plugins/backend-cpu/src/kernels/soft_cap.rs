use crate::bind::{Io, Kernel};
use crate::elementwise::elementwise;
use crate::real::Real;
use crate::simd::{map, simd};
use sparta_graph::ops::{SoftCap, SoftCapGrad};

pub fn prepare<T: Real>(op: &SoftCap, io: &Io) -> Result<Kernel, String> {
    let (x, y, n, cap) = (io.floats::<T>(0)?, io.float_output::<T>(0)?, io.numel(0)?, T::from_f32(op.cap));
    Ok(Kernel::plain(move || {
        // SAFETY: tensors of n elements.
        unsafe { elementwise(n, [x], [y], |r, [x], [y]| soft_cap(r.len(), x, cap, y)) }
    }))
}

pub fn prepare_grad<T: Real>(op: &SoftCapGrad, io: &Io) -> Result<Kernel, String> {
    let (x, dy, dx, n) = (io.floats::<T>(0)?, io.floats::<T>(1)?, io.float_output::<T>(0)?, io.numel(0)?);
    let cap = T::from_f32(op.cap);
    Ok(Kernel::plain(move || {
        // SAFETY: tensors of n elements.
        unsafe { elementwise(n, [x, dy], [dx], |r, [x, dy], [dx]| soft_cap_grad(r.len(), x, dy, cap, dx)) }
    }))
}

simd! {
    unsafe fn soft_cap<T: Real>(n: usize, x: *const T, cap: T, y: *mut T) {
        map!(n, |x| -> y { cap * (x / cap).tanh() })
    }

    unsafe fn soft_cap_grad<T: Real>(n: usize, x: *const T, dy: *const T, cap: T, dx: *mut T) {
        map!(n, |x, dy| -> dx {
            let t = (x / cap).tanh();
            dy * (T::ONE - t * t)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;

    #[test]
    fn values_and_gradients() {
        let n = 20_001;
        let (x, dy) = (Tensor::random(DType::F32, &[n], 1), Tensor::random(DType::F32, &[n], 2));
        let cap = 0.3f32;
        let tanh: Vec<f64> = x.values().iter().map(|x| (x / cap as f64).tanh()).collect();
        check(SoftCap { cap }, std::slice::from_ref(&x), &[tanh.iter().map(|t| cap as f64 * t).collect()], 1e-6);
        let dx = tanh.iter().zip(dy.values()).map(|(t, dy)| dy * (1.0 - t * t)).collect();
        check(SoftCapGrad { cap }, &[x.clone(), dy.clone()], &[dx], 1e-6);
        check_bf16(SoftCap { cap }, std::slice::from_ref(&x), &[0], 1e-6);
        check_bf16(SoftCapGrad { cap }, &[x, dy], &[0, 1], 1e-6);
    }
}
