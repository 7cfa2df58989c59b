use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use sparta_graph::ops::step;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    prepare_loss(io, softplus_minus::<T>)
}

pub fn prepare_grad<T: Real>(io: &Io) -> Result<Kernel, String> {
    prepare_loss_grad(io, |x: T, y| x.sigmoid() - y)
}

/// `ln(1 + e^x) - y x`, which never overflows.
fn softplus_minus<T: Real>(x: T, y: T) -> T {
    let positive = if x > T::ZERO { x } else { T::ZERO };
    let magnitude = if x > T::ZERO { x } else { -x };
    positive - y * x + (-magnitude).exp().ln_1p()
}

/// A loss that is a sum over elements `(x, label)`; NaN labels do not count.
pub(super) fn prepare_loss<T: Real>(io: &Io, term: fn(T, T) -> T) -> Result<Kernel, String> {
    let (x, labels, step) = (io.real::<T>(0)?, io.real::<T>(1)?, io.real::<T>(2)?);
    let (loss, n) = (io.output::<T>(0)?, io.numel(0)?);
    Ok(Kernel::plain(move || {
        // SAFETY: tensors of n elements, one loss, and `step` with `step::LEN` elements.
        unsafe {
            let pairs = x.slice(0, n).iter().zip(labels.slice(0, n)).filter(|(_, y)| !is_nan(**y));
            let total: T = pairs.map(|(&x, &y)| term(x, y)).sum();
            *loss.at(0) = *step.at(step::LOSS_WEIGHT) * total;
        }
    }))
}

/// The gradient of [`prepare_loss`], whose terms have this derivative by x.
pub(super) fn prepare_loss_grad<T: Real>(io: &Io, derivative: fn(T, T) -> T) -> Result<Kernel, String> {
    let (x, labels, step, d_loss) = (io.real::<T>(0)?, io.real::<T>(1)?, io.real::<T>(2)?, io.real::<T>(3)?);
    let (dx, n) = (io.output::<T>(0)?, io.numel(0)?);
    Ok(Kernel::plain(move || {
        // SAFETY: one upstream gradient; `step` has `step::LEN` elements.
        let scale = unsafe { *d_loss.at(0) * *step.at(step::LOSS_WEIGHT) };
        chunks(n, GRAIN, |chunk| {
            for i in chunk {
                // SAFETY: element i of tensors of n elements; dx may be x.
                unsafe {
                    let (x, y) = (*x.at(i), *labels.at(i));
                    *dx.at(i) = if is_nan(y) { T::ZERO } else { scale * derivative(x, y) };
                }
            }
        });
    }))
}

fn is_nan<T: Real>(x: T) -> bool {
    x.partial_cmp(&x).is_none()
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check};
    use sparta_graph::DType;
    use sparta_graph::ops::{BinaryCrossEntropy, BinaryCrossEntropyGrad};

    #[test]
    fn loss_and_gradient() {
        let shape = [7, 5];
        let logits: Vec<f64> = Tensor::random(DType::F32, &shape, 1).values().iter().map(|x| 40.0 * x).collect();
        let labels: Vec<f64> = (0..35).map(|i| [0.0, 1.0, 0.25, f64::NAN][i % 4]).collect();
        let step = Tensor::f32(&[8], &[0.0, 0.0, 0.0, 0.125, 0.0, 0.0, 0.0, 0.0]);
        let pairs = || logits.iter().zip(&labels).map(|(&x, &y)| (f64::from(x as f32), y));
        let loss: f64 = pairs().filter(|(_, y)| !y.is_nan()).map(|(x, y)| x.exp().ln_1p() - y * x).sum();
        let grad = |(x, y): (f64, f64)| if y.is_nan() { 0.0 } else { 0.25 * (1.0 / (1.0 + (-x).exp()) - y) };
        let inputs = [Tensor::f32(&shape, &logits), Tensor::f32(&shape, &labels), step];
        check(BinaryCrossEntropy {}, &inputs, &[vec![0.125 * loss]], 1e-6);
        let inputs = [&inputs[..], &[Tensor::f32(&[1], &[2.0])]].concat();
        check(BinaryCrossEntropyGrad {}, &inputs, &[pairs().map(grad).collect()], 1e-6);
    }
}
