use super::binary_cross_entropy::{prepare_loss, prepare_loss_grad};
use crate::bind::{Io, Kernel};
use crate::real::Real;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    prepare_loss(io, |x: T, y| (x - y) * (x - y))
}

pub fn prepare_grad<T: Real>(io: &Io) -> Result<Kernel, String> {
    prepare_loss_grad(io, |x: T, y| (x - y) + (x - y))
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check};
    use sparta_graph::DType;
    use sparta_graph::ops::{SquaredError, SquaredErrorGrad};

    #[test]
    fn loss_and_gradient() {
        let x = Tensor::random(DType::F32, &[9, 1], 1);
        let labels: Vec<f64> = (0..9).map(|i| if i == 4 { f64::NAN } else { 0.5 * i as f64 }).collect();
        let step = Tensor::f32(&[8], &[0.0, 0.0, 0.0, 0.125, 0.0, 0.0, 0.0, 0.0]);
        let differences: Vec<f64> =
            x.values().iter().zip(&labels).map(|(x, y)| if y.is_nan() { 0.0 } else { x - y }).collect();
        let loss = 0.125 * differences.iter().map(|d| d * d).sum::<f64>();
        let inputs = [x, Tensor::f32(&[9, 1], &labels), step];
        check(SquaredError {}, &inputs, &[vec![loss]], 1e-6);
        let inputs = [&inputs[..], &[Tensor::f32(&[1], &[3.0])]].concat();
        check(SquaredErrorGrad {}, &inputs, &[differences.iter().map(|d| 0.75 * d).collect()], 1e-6);
    }
}
