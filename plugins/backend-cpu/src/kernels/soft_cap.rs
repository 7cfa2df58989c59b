use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use crate::simd::{map, simd};
use sparta_graph::ops::{SoftCap, SoftCapGrad};

pub fn prepare<T: Real>(op: &SoftCap, io: &Io) -> Result<Kernel, String> {
    let (x, y, n, cap) = (io.real::<T>(0)?, io.output::<T>(0)?, io.numel(0)?, T::from_f32(op.cap));
    Ok(Kernel::plain(move || {
        // SAFETY: chunks of tensors of n elements.
        chunks(n, GRAIN, |c| unsafe { soft_cap(c.len(), x.at(c.start), cap, y.at(c.start)) });
    }))
}

pub fn prepare_grad<T: Real>(op: &SoftCapGrad, io: &Io) -> Result<Kernel, String> {
    let (x, dy, dx, n) = (io.real::<T>(0)?, io.real::<T>(1)?, io.output::<T>(0)?, io.numel(0)?);
    let cap = T::from_f32(op.cap);
    Ok(Kernel::plain(move || {
        // SAFETY: chunks of tensors of n elements.
        chunks(n, GRAIN, |c| unsafe { soft_cap_grad(c.len(), x.at(c.start), dy.at(c.start), cap, dx.at(c.start)) });
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
    use crate::testing::{Tensor, check};
    use sparta_graph::DType;

    #[test]
    fn values_and_gradients() {
        let n = 20_001;
        let (x, dy) = (Tensor::random(DType::F32, &[n], 1), Tensor::random(DType::F32, &[n], 2));
        let cap = 0.3f32;
        let tanh: Vec<f64> = x.values().iter().map(|x| (x / cap as f64).tanh()).collect();
        check(SoftCap { cap }, std::slice::from_ref(&x), &[tanh.iter().map(|t| cap as f64 * t).collect()], 1e-6);
        let dx = tanh.iter().zip(dy.values()).map(|(t, dy)| dy * (1.0 - t * t)).collect();
        check(SoftCapGrad { cap }, &[x, dy], &[dx], 1e-6);
    }
}
