use crate::bind::{Io, Kernel};
use crate::elementwise::elementwise;
use crate::real::Real;
use crate::simd::{map, simd};
use sparta_graph::ops::{Function, Map, MapGrad};

pub fn prepare<T: Real>(op: &Map, io: &Io) -> Result<Kernel, String> {
    let (x, y, n) = (io.floats::<T>(0)?, io.float_output::<T>(0)?, io.numel(0)?);
    let f: unsafe fn(usize, *const T, *mut T) = match op.function {
        Function::Exp => exp::<T>,
        Function::Rsqrt => rsqrt::<T>,
        Function::Abs => abs::<T>,
        Function::Relu => relu::<T>,
        Function::Round => round::<T>,
        Function::Step => step::<T>,
    };
    Ok(Kernel::plain(move || {
        // SAFETY: tensors of n elements.
        unsafe { elementwise(n, [x], [y], |r, [x], [y]| f(r.len(), x, y)) }
    }))
}

pub fn prepare_grad<T: Real>(op: &MapGrad, io: &Io) -> Result<Kernel, String> {
    let (x, dy, dx, n) = (io.floats::<T>(0)?, io.floats::<T>(1)?, io.float_output::<T>(0)?, io.numel(0)?);
    let f: unsafe fn(usize, *const T, *const T, *mut T) = match op.function {
        Function::Exp => exp_grad::<T>,
        Function::Rsqrt => rsqrt_grad::<T>,
        Function::Abs => abs_grad::<T>,
        Function::Relu => relu_grad::<T>,
        Function::Round | Function::Step => flat_grad::<T>,
    };
    Ok(Kernel::plain(move || {
        // SAFETY: tensors of n elements.
        unsafe { elementwise(n, [x, dy], [dx], |r, [x, dy], [dx]| f(r.len(), x, dy, dx)) }
    }))
}

/// What has the sign of x and the size of y; 0 where x is 0 or NaN.
#[inline(always)]
fn signed<T: Real>(x: T, y: T) -> T {
    if x > T::ZERO {
        y
    } else if x < T::ZERO {
        -y
    } else {
        T::ZERO
    }
}

simd! {
    unsafe fn exp<T: Real>(n: usize, x: *const T, y: *mut T) {
        map!(n, |x| -> y { x.exp() })
    }
    unsafe fn rsqrt<T: Real>(n: usize, x: *const T, y: *mut T) {
        map!(n, |x| -> y { T::ONE / x.sqrt() })
    }
    unsafe fn abs<T: Real>(n: usize, x: *const T, y: *mut T) {
        map!(n, |x| -> y { if x < T::ZERO { -x } else { x } })
    }
    unsafe fn relu<T: Real>(n: usize, x: *const T, y: *mut T) {
        map!(n, |x| -> y { if x < T::ZERO { T::ZERO } else { x } })
    }
    unsafe fn round<T: Real>(n: usize, x: *const T, y: *mut T) {
        map!(n, |x| -> y { x.round() })
    }
    unsafe fn step<T: Real>(n: usize, x: *const T, y: *mut T) {
        map!(n, |x| -> y { if x > T::ZERO { T::ONE } else { T::ZERO } })
    }
    unsafe fn flat_grad<T: Real>(n: usize, x: *const T, dy: *const T, dx: *mut T) {
        map!(n, |x, dy| -> dx {{
            let _ = (x, dy);
            T::ZERO
        }})
    }
    unsafe fn exp_grad<T: Real>(n: usize, x: *const T, dy: *const T, dx: *mut T) {
        map!(n, |x, dy| -> dx { dy * x.exp() })
    }
    unsafe fn rsqrt_grad<T: Real>(n: usize, x: *const T, dy: *const T, dx: *mut T) {
        map!(n, |x, dy| -> dx { -dy / ((T::ONE + T::ONE) * x * x.sqrt()) })
    }
    unsafe fn abs_grad<T: Real>(n: usize, x: *const T, dy: *const T, dx: *mut T) {
        map!(n, |x, dy| -> dx { signed(x, dy) })
    }
    unsafe fn relu_grad<T: Real>(n: usize, x: *const T, dy: *const T, dx: *mut T) {
        map!(n, |x, dy| -> dx { if x > T::ZERO { dy } else { T::ZERO } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;

    #[test]
    fn maps_and_their_derivatives() {
        type F = fn(f64) -> f64;
        let functions: [(Function, F, F); 6] = [
            (Function::Exp, f64::exp, f64::exp),
            (Function::Rsqrt, |x| 1.0 / x.sqrt(), |x| -0.5 * x.powf(-1.5)),
            (Function::Abs, f64::abs, f64::signum),
            (Function::Relu, |x| x.max(0.0), |x| if x > 0.0 { 1.0 } else { 0.0 }),
            (Function::Round, f64::round_ties_even, |_| 0.0),
            (Function::Step, |x| if x > 0.0 { 1.0 } else { 0.0 }, |_| 0.0),
        ];
        for (function, f, derivative) in functions {
            let mut values = Tensor::random(DType::F32, &[3, 2345], 1).values();
            if function == Function::Rsqrt {
                values.iter_mut().for_each(|x| *x = x.abs() + 0.25);
            }
            let x = Tensor::f32(&[3, 2345], &values);
            let dy = Tensor::random(DType::F32, &[3, 2345], 2);
            check(Map { function }, std::slice::from_ref(&x), &[x.values().into_iter().map(f).collect()], 1e-6);
            check_bf16(Map { function }, std::slice::from_ref(&x), &[0], 1e-6);
            let dx = x.values().into_iter().zip(dy.values()).map(|(x, dy)| derivative(x) * dy).collect();
            check(MapGrad { function }, &[x.clone(), dy.clone()], &[dx], 1e-5);
            check_bf16(MapGrad { function }, &[x, dy], &[0, 1], 1e-5);
        }
    }

    #[test]
    fn between_whole_numbers_the_even_one_is_nearest() {
        let x = Tensor::f32(&[6], &[0.5, 1.5, -0.5, -2.5, 2.4999, 8_388_609.0]);
        check(Map { function: Function::Round }, &[x], &[vec![0.0, 2.0, 0.0, -2.0, 2.0, 8_388_609.0]], 0.0);
    }

    #[test]
    fn at_zero_the_derivatives_are_zero() {
        for function in [Function::Abs, Function::Relu] {
            let [x, dy] = [[0.0, -0.0], [1.0, 2.0]].map(|values| Tensor::f32(&[2], &values));
            check(MapGrad { function }, &[x, dy], &[vec![0.0, 0.0]], 0.0);
        }
    }
}
