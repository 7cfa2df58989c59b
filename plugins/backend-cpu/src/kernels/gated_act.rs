use crate::bind::{Io, Kernel};
use crate::elementwise::elementwise;
use crate::real::Real;
use crate::simd::{map, simd};
use sparta_graph::ops::{Activation, GatedAct, GatedActGrad};

pub fn prepare<T: Real>(op: &GatedAct, io: &Io) -> Result<Kernel, String> {
    let (gate, up, y, n) = (io.floats::<T>(0)?, io.floats::<T>(1)?, io.float_output::<T>(0)?, io.numel(0)?);
    let kernel = match op.act {
        Activation::Silu => silu,
        Activation::GeluTanh => gelu,
    };
    Ok(Kernel::plain(move || {
        // SAFETY: tensors of n elements.
        unsafe { elementwise(n, [gate, up], [y], |r, [gate, up], [y]| kernel(r.len(), gate, up, y)) }
    }))
}

pub fn prepare_grad<T: Real>(op: &GatedActGrad, io: &Io) -> Result<Kernel, String> {
    let (inputs, n) = ([io.floats::<T>(0)?, io.floats::<T>(1)?, io.floats::<T>(2)?], io.numel(0)?);
    let outputs = [io.float_output::<T>(0)?, io.float_output::<T>(1)?];
    let kernel = match op.act {
        Activation::Silu => silu_grad,
        Activation::GeluTanh => gelu_grad,
    };
    Ok(Kernel::plain(move || {
        // SAFETY: tensors of n elements.
        unsafe {
            elementwise(n, inputs, outputs, |r, [gate, up, dy], [dgate, dup]| {
                kernel(r.len(), gate, up, dy, dgate, dup);
            });
        }
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
            let (s, rest) = gate.sigmoids();
            let slope = s * gate.mul_add(rest, T::ONE);
            (dy * up * slope, dy * gate * s)
        })
    }

    unsafe fn gelu_grad<T: Real>(n: usize, gate: *const T, up: *const T, dy: *const T, dgate: *mut T, dup: *mut T) {
        let (cubic, factor) = gelu_constants::<T>();
        let cubic3 = cubic * T::from_f32(3.0);
        map!(n, |gate, up, dy| -> dgate, dup {
            let (s, rest) = gelu_argument(gate, cubic, factor).sigmoids();
            let inner = factor * (cubic3 * gate).mul_add(gate, T::ONE);
            let slope = (gate * s * rest).mul_add(inner, s);
            (dy * up * slope, dy * gate * s)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;

    /// (value, derivative), by the formulas of the op.
    fn exact(act: Activation, x: f64) -> (f64, f64) {
        match act {
            Activation::Silu => {
                let s = 1.0 / (1.0 + (-x).exp());
                (x * s, s * (1.0 + x * (1.0 - s)))
            }
            Activation::GeluTanh => {
                let c = (2.0 / std::f64::consts::PI).sqrt();
                let t = (c * (x + 0.044715 * x.powi(3))).tanh();
                let slope = (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x);
                (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * slope)
            }
        }
    }

    #[test]
    fn values_and_gradients() {
        for act in [Activation::Silu, Activation::GeluTanh] {
            for n in [1, 65, 40_000] {
                let gate: Vec<f64> = crate::testing::random(n, 1).iter().map(|x| 8.0 * x).collect();
                let gate = Tensor::f32(&[n], &gate);
                let [up, dy] = [2, 3].map(|seed| Tensor::random(DType::F32, &[n], seed));
                let (g, u, d) = (gate.values(), up.values(), dy.values());
                let y = (0..n).map(|i| exact(act, g[i]).0 * u[i]).collect();
                check(GatedAct { act }, &[gate.clone(), up.clone()], &[y], 1e-6);
                let dgate = (0..n).map(|i| d[i] * u[i] * exact(act, g[i]).1).collect();
                let dup = (0..n).map(|i| d[i] * exact(act, g[i]).0).collect();
                check(GatedActGrad { act }, &[gate.clone(), up.clone(), dy.clone()], &[dgate, dup], 1e-6);
                check_bf16(GatedAct { act }, &[gate.clone(), up.clone()], &[0, 1], 1e-6);
                check_bf16(GatedActGrad { act }, &[gate, up, dy], &[0, 1, 2], 1e-6);
            }
        }
    }
}
