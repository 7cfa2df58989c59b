use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use crate::simd::{map, simd};
use sparta_graph::ops::Scale;

pub fn prepare<T: Real>(op: &Scale, io: &Io) -> Result<Kernel, String> {
    let (x, y, n, factor) = (io.real::<T>(0)?, io.output::<T>(0)?, io.numel(0)?, T::from_f32(op.factor));
    Ok(Kernel::plain(move || {
        // SAFETY: chunks of tensors of n elements.
        chunks(n, GRAIN, |c| unsafe { scale(c.len(), x.at(c.start), factor, y.at(c.start)) });
    }))
}

simd! {
    unsafe fn scale<T: Real>(n: usize, x: *const T, factor: T, y: *mut T) {
        map!(n, |x| -> y { factor * x })
    }
}
