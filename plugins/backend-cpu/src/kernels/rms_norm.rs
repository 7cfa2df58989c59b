use super::column_sum;
use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Need, Ptr, Scratch};
use crate::parallel;
use crate::real::Real;
use crate::simd::{map, simd, sum};
use sparta_graph::ops::{RmsNorm, RmsNormGrad, RmsNormGradW};

pub fn prepare<T: Real>(op: &RmsNorm, io: &Io) -> Result<Kernel, String> {
    let (x, y, w) = (io.floats::<T>(0)?, io.float_output::<T>(0)?, Weight::bind(io, op.plus_one)?);
    let rate = if op.rate { Some(io.output::<T>(1)?) } else { None };
    let (width, norms, eps) = (w.width, io.numel(0)? / w.width.max(1), T::from_f32(op.eps));
    Ok(Kernel::new(Need { per_thread: row_buffers(width, &[x, y]), ..w.need() }, move |scratch| {
        let w = w.load(scratch);
        parallel::rows(norms, width, |rows| {
            let buffers: Ptr<T> = scratch.thread();
            for row in rows {
                let at = row * width;
                // SAFETY: one row of x and y, of the buffers of this thread, and the rate of one norm.
                unsafe {
                    let (x, target) = (x.read(at, width, buffers.at(0)), y.target(at, buffers.at(width)));
                    let r = normalise(width, x, w.at(0), target, eps);
                    y.finish(at, width, target);
                    if let Some(rate) = rate {
                        *rate.at(row) = r;
                    }
                }
            }
        });
        Ok(())
    }))
}

pub fn prepare_grad<T: Real>(op: &RmsNormGrad, io: &Io) -> Result<Kernel, String> {
    let (x, dy, dx, w) =
        (io.floats::<T>(0)?, io.floats::<T>(2)?, io.float_output::<T>(0)?, Weight::bind(io, op.plus_one)?);
    let acc = if io.inputs() > 3 { Some(io.floats::<T>(3)?) } else { None };
    let (width, norms, eps) = (w.width, io.numel(0)? / w.width.max(1), T::from_f32(op.eps));
    let tensors = [x, dy, dx, acc.unwrap_or(x)];
    Ok(Kernel::new(Need { per_thread: row_buffers(width, &tensors), ..w.need() }, move |scratch| {
        let w = w.load(scratch);
        parallel::rows(norms, width, |rows| {
            let buffers: Ptr<T> = scratch.thread();
            for at in rows.map(|row| row * width) {
                // SAFETY: one row of the tensors, and of the buffers of this thread.
                unsafe {
                    let (x, dy) = (x.read(at, width, buffers.at(0)), dy.read(at, width, buffers.at(width)));
                    let target = dx.target(at, buffers.at(2 * width));
                    match acc {
                        Some(acc) => {
                            let acc = acc.read(at, width, buffers.at(3 * width));
                            grad_add(width, x, w.at(0), dy, acc, target, eps);
                        }
                        None => grad(width, x, w.at(0), dy, target, eps),
                    }
                    dx.finish(at, width, target);
                }
            }
        });
        Ok(())
    }))
}

pub fn prepare_grad_w<T: Real>(op: &RmsNormGradW, io: &Io) -> Result<Kernel, String> {
    let (x, dy, rate, dw) = (io.floats::<T>(0)?, io.floats::<T>(1)?, io.real::<T>(2)?, io.output::<T>(0)?);
    let (width, norms, elements) = (op.width, io.numel(0)? / op.width.max(1), io.output_numel(0)?);
    let index = if io.inputs() > 3 { Some(io.words(3)?) } else { None };
    let need = Need { per_thread: row_buffers(width, &[x, dy]), ..column_sum::need::<T>(norms, elements) };
    Ok(Kernel::new(need, move |scratch| {
        // SAFETY: the index has as many elements as the output, and nobody writes them concurrently.
        let index = index.map(|index| unsafe { index.slice(0, elements) });
        if let Some(wrong) = index.and_then(|index| index.iter().find(|&&i| i as usize >= width)) {
            return Err(format!("the index {wrong} is not below {width}"));
        }
        column_sum::sum_rows(norms, elements, dw, scratch, |row, sums| {
            let (at, buffers) = (row * width, scratch.thread::<T>());
            // SAFETY: one row of the tensors and of the buffers of this thread, its rate, and a sum for each column, or
            // for each index, which is checked.
            unsafe {
                let (x, dy) = (x.read(at, width, buffers.at(0)), dy.read(at, width, buffers.at(width)));
                match index {
                    Some(index) => add_chosen(index, x, dy, sums, *rate.at(row)),
                    None => grad_w(width, x, dy, sums, *rate.at(row)),
                }
            }
        });
        Ok(())
    }))
}

/// Bytes of one row of each tensor as numbers; none if all of them hold numbers.
fn row_buffers<T: Real>(width: usize, tensors: &[Floats<T>]) -> usize {
    if tensors.iter().all(|tensor| tensor.is_full()) { 0 } else { tensors.len() * width * size_of::<T>() }
}

/// The weight, which is converted to the number type before use.
#[derive(Clone, Copy)]
struct Weight<T> {
    stored: Floats<T>,
    width: usize,
    plus_one: bool,
}

impl<T: Real> Weight<T> {
    /// Input 1.
    fn bind(io: &Io, plus_one: bool) -> Result<Self, String> {
        Ok(Weight { stored: io.floats(1)?, width: io.numel(1)?, plus_one })
    }

    fn need(self) -> Need {
        Need { shared: self.width * size_of::<T>(), per_thread: 0 }
    }

    /// The factors, in shared scratch memory.
    fn load(self, scratch: &Scratch) -> Ptr<T> {
        let w: Ptr<T> = scratch.shared();
        // SAFETY: the scratch memory has `width` elements, which nothing else uses yet.
        unsafe {
            self.stored.load(0, self.width, w.at(0));
            if self.plus_one {
                w.slice_mut(0, self.width).iter_mut().for_each(|w| *w += T::ONE);
            }
        }
        w
    }
}

/// `1 / sqrt(mean(x^2) + eps)`
#[inline(always)]
fn inverse_rms<T: Real>(x: &[T], eps: T) -> T {
    let n = T::from_f64(x.len() as f64);
    let squares = sum!(T, |x| x * x);
    T::ONE / (squares / n + eps).sqrt()
}

/// Adds `dy * x * r` of chosen columns to their sums.
///
/// # Safety
/// x and dy have elements at each index, and there is a sum for each, which nothing else uses concurrently.
unsafe fn add_chosen<T: Real>(index: &[u32], x: *const T, dy: *const T, sums: *mut T, r: T) {
    for (j, &i) in index.iter().enumerate() {
        // SAFETY: the caller vouches for it.
        unsafe {
            let sum = sums.add(j);
            *sum = (*dy.add(i as usize) * *x.add(i as usize)).mul_add(r, *sum);
        }
    }
}

/// (r, c) of `dx = r g - c x`.
///
/// # Safety
/// The pointers have n elements, which nothing else writes concurrently.
#[inline(always)]
unsafe fn grad_factors<T: Real>(n: usize, x: *const T, w: *const T, dy: *const T, eps: T) -> (T, T) {
    // SAFETY: the caller vouches for it.
    let (x, w, dy) = unsafe {
        (std::slice::from_raw_parts(x, n), std::slice::from_raw_parts(w, n), std::slice::from_raw_parts(dy, n))
    };
    let r = inverse_rms(x, eps);
    let along = sum!(T, |x, w, dy| x * w * dy);
    (r, r * r * r * along / T::from_f64(n as f64))
}

simd! {
    /// Returns the rate of the norm.
    unsafe fn normalise<T: Real>(n: usize, x: *const T, w: *const T, y: *mut T, eps: T) -> T {
        let r = inverse_rms(std::slice::from_raw_parts(x, n), eps);
        map!(n, |x, w| -> y { x * r * w });
        r
    }

    unsafe fn grad<T: Real>(n: usize, x: *const T, w: *const T, dy: *const T, dx: *mut T, eps: T) {
        let (r, c) = grad_factors(n, x, w, dy, eps);
        map!(n, |x, w, dy| -> dx { r * dy * w - c * x })
    }

    unsafe fn grad_add<T: Real>(
        n: usize, x: *const T, w: *const T, dy: *const T, acc: *const T, dx: *mut T, eps: T,
    ) {
        let (r, c) = grad_factors(n, x, w, dy, eps);
        map!(n, |x, w, dy, acc| -> dx { r * dy * w - c * x + acc })
    }

    unsafe fn grad_w<T: Real>(n: usize, x: *const T, dy: *const T, sums: *mut T, r: T) {
        let out = sums;
        map!(n, |x, dy, sums| -> out { (dy * x).mul_add(r, sums) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;

    #[test]
    fn values_and_gradients() {
        let eps = 1e-5f32;
        for (rows, heads, width) in [(1, 1, 1), (3, 1, 5), (2, 3, 64), (70, 1, 288), (5, 2, 1000)] {
            for (dtype, plus_one) in [(DType::F32, false), (DType::BF16, true), (DType::F16, false)] {
                let shape = [rows, heads * width];
                let [x, dy, acc] = [1, 2, 3].map(|seed| Tensor::random(DType::F32, &shape, seed));
                let w = Tensor::random(dtype, &[width], 4);
                let factors: Vec<f64> = w.values().iter().map(|w| w + if plus_one { 1.0 } else { 0.0 }).collect();
                let (xs, dys) = (x.values(), dy.values());
                let (mut y, mut dx, mut dw, mut rates) = (vec![], vec![], vec![0.0; width], vec![]);
                for at in (0..xs.len()).step_by(width) {
                    let (x, dy) = (&xs[at..at + width], &dys[at..at + width]);
                    let mean = |f: &dyn Fn(usize) -> f64| (0..width).map(f).sum::<f64>() / width as f64;
                    let r = 1.0 / (mean(&|i| x[i] * x[i]) + eps as f64).sqrt();
                    rates.push(r);
                    let along = mean(&|i| dy[i] * factors[i] * x[i]);
                    for i in 0..width {
                        y.push(x[i] * r * factors[i]);
                        dx.push(r * (dy[i] * factors[i] - x[i] * r * r * along));
                        dw[i] += dy[i] * x[i] * r;
                    }
                }
                let added = dx.iter().zip(acc.values()).map(|(a, b)| a + b).collect();
                let norm = RmsNorm { eps, plus_one, output: None, rate: false };
                check(norm.clone(), &[x.clone(), w.clone()], std::slice::from_ref(&y), 1e-6);
                let rate = Tensor::f32(&[rows, heads], &rates);
                check(RmsNorm { rate: true, ..norm.clone() }, &[x.clone(), w.clone()], &[y, rates], 1e-6);
                let grad = RmsNormGrad { eps, plus_one };
                check(grad.clone(), &[x.clone(), w.clone(), dy.clone()], &[dx], 2e-6);
                check(grad.clone(), &[x.clone(), w.clone(), dy.clone(), acc.clone()], &[added], 2e-6);
                let index: Vec<u32> = (0..width as u32).step_by(3).collect();
                let some = index.iter().map(|&i| dw[i as usize]).collect();
                let chosen = [x.clone(), dy.clone(), rate.clone(), Tensor::u32(&[index.len()], &index)];
                check(RmsNormGradW { width }, &chosen, &[some], 2e-6);
                check(RmsNormGradW { width }, &chosen[..3], &[dw], 2e-6);
                check_bf16(norm.clone(), &[x.clone(), w.clone()], &[0], 1e-6);
                let to_bf16 = RmsNorm { output: Some(DType::BF16), rate: true, ..norm };
                check_bf16(to_bf16, &[x.clone(), w.clone()], &[], 1e-6);
                check_bf16(grad.clone(), &[x.clone(), w.clone(), dy.clone(), acc.clone()], &[2], 2e-6);
                check_bf16(grad, &[x.clone(), w, dy.clone(), acc], &[0, 2, 3], 2e-6);
                check_bf16(RmsNormGradW { width }, &[x, dy, rate], &[0, 1], 2e-6);
            }
        }
    }
}
