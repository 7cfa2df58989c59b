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
