use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use crate::simd::{map, simd};
use sparta_graph::ops::{Activation, GatedAct, GatedActGrad};

pub fn prepare<T: Real>(op: &GatedAct, io: &Io) -> Result<Kernel, String> {
    let (gate, up, y, n) = (io.real::<T>(0)?, io.real::<T>(1)?, io.output::<T>(0)?, io.numel(0)?);
    let kernel = match op.act {
        Activation::Silu => silu,
        Activation::GeluTanh => gelu,
    };
    Ok(Kernel::plain(move || {
        // SAFETY: chunks of tensors of n elements.
        chunks(n, GRAIN, |c| unsafe { kernel(c.len(), gate.at(c.start), up.at(c.start), y.at(c.start)) });
    }))
}

pub fn prepare_grad<T: Real>(op: &GatedActGrad, io: &Io) -> Result<Kernel, String> {
    let (gate, up, dy, n) = (io.real::<T>(0)?, io.real::<T>(1)?, io.real::<T>(2)?, io.numel(0)?);
    let (dgate, dup) = (io.output::<T>(0)?, io.output::<T>(1)?);
    let kernel = match op.act {
        Activation::Silu => silu_grad,
        Activation::GeluTanh => gelu_grad,
    };
    Ok(Kernel::plain(move || {
        chunks(n, GRAIN, |c| {
            let i = c.start;
            // SAFETY: chunks of tensors of n elements.
            unsafe { kernel(c.len(), gate.at(i), up.at(i), dy.at(i), dgate.at(i), dup.at(i)) }
        });
    }))
}

/// GELU by tanh is `x sigmoid(2 u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`: this gives `2 u`.
#[inline(always)]
fn gelu_argument<T: Real>(x: T, cubic: T, factor: T) -> T {
    factor * (cubic * x * x).mul_add(x, x)
}

/// 0.044715 and 2 sqrt(2/pi).
#[inline(always)]
fn gelu_constants<T: Real>() -> (T, T) {
    (T::from_f64(0.044715), T::from_f64(2.0 * (2.0 * std::f64::consts::FRAC_1_PI).sqrt()))
}

simd! {
    unsafe fn silu<T: Real>(n: usize, gate: *const T, up: *const T, y: *mut T) {
        map!(n, |gate, up| -> y { gate * gate.sigmoid() * up })
    }

    unsafe fn gelu<T: Real>(n: usize, gate: *const T, up: *const T, y: *mut T) {
        let (cubic, factor) = gelu_constants::<T>();
        map!(n, |gate, up| -> y { gate * gelu_argument(gate, cubic, factor).sigmoid() * up })
    }

    unsafe fn silu_grad<T: Real>(n: usize, gate: *const T, up: *const T, dy: *const T, dgate: *mut T, dup: *mut T) {
        map!(n, |gate, up, dy| -> dgate, dup {
            let s = gate.sigmoid();
            let slope = s * gate.mul_add(T::ONE - s, T::ONE);
            (dy * up * slope, dy * gate * s)
        })
    }

    unsafe fn gelu_grad<T: Real>(n: usize, gate: *const T, up: *const T, dy: *const T, dgate: *mut T, dup: *mut T) {
        let (cubic, factor) = gelu_constants::<T>();
        let cubic3 = cubic * T::from_f32(3.0);
        map!(n, |gate, up, dy| -> dgate, dup {
            let s = gelu_argument(gate, cubic, factor).sigmoid();
            let inner = factor * (cubic3 * gate).mul_add(gate, T::ONE);
            let slope = (gate * s * (T::ONE - s)).mul_add(inner, s);
            (dy * up * slope, dy * gate * s)
        })
    }
}
