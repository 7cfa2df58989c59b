//! Composite ops: their parts, one after the other.

use super::cross_entropy;
use crate::bind::{Io, Kernel};
use crate::memory::Need;
use crate::real::Real;
use sparta_graph::{Op, PartCall};

/// A kernel that runs the parts of `op`.
pub fn prepare<T: Real>(op: &Op, io: &Io) -> Result<Kernel, String> {
    let kernels = kernels::<T>(&op.parts(&io.types()), io)?;
    let need = kernels.iter().fold(Need::default(), |need, kernel| need.max(kernel.need));
    Ok(Kernel::new(need, move |scratch| kernels.iter().try_for_each(|kernel| (kernel.run)(scratch))))
}

/// One per part, except that a cross-entropy, its gradient and a cast that follows are one, which keeps a row of logits
/// in the cache for all three.
fn kernels<T: Real>(parts: &[PartCall], io: &Io) -> Result<Vec<Kernel>, String> {
    let (mut kernels, mut rest) = (Vec::new(), parts);
    while let [part, after @ ..] = rest {
        rest = after;
        let own = io.part::<T>(part)?;
        let (Op::CrossEntropy(op), [grad, after @ ..]) = (&part.op, after) else {
            kernels.push(super::prepare::<T>(&part.op, &own)?);
            continue;
        };
        if !matches!(grad.op, Op::CrossEntropyGrad(_)) || grad.inputs[0] != part.inputs[0] {
            kernels.push(super::prepare::<T>(&part.op, &own)?);
            continue;
        }
        let cast = after.first().filter(|cast| matches!(cast.op, Op::Cast(_)) && cast.inputs[0] == grad.outputs[0]);
        let output = io.part::<T>(cast.unwrap_or(grad))?.float_output(0)?;
        kernels.push(cross_entropy::prepare_with_grad::<T>(op, &own, &io.part::<T>(grad)?, output)?);
        rest = &after[usize::from(cast.is_some())..];
    }
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, run};
    use sparta_graph::DType;
    use sparta_graph::ops::{IGNORED, LinearCrossEntropy, WeightGrad};

    /// Loss, log-sum-exp and both gradients, straight from the definition.
    fn expected(
        op: &LinearCrossEntropy,
        hidden: &[f64],
        weight: &[f64],
        labels: &[u32],
        width: usize,
    ) -> [Vec<f64>; 4] {
        let (rows, scale) = (labels.len(), f64::from(op.scale));
        let (mut loss, mut lse) = (0.0, vec![]);
        let (mut d_hidden, mut d_weight) = (vec![0.0; hidden.len()], vec![0.0; weight.len()]);
        for t in 0..rows {
            let h = &hidden[t * width..][..width];
            let raw: Vec<f64> =
                weight.chunks(width).map(|w| scale * w.iter().zip(h).map(|(w, h)| w * h).sum::<f64>()).collect();
            let tanh = |x: f64| op.soft_cap.map_or(0.0, |cap| (x / f64::from(cap)).tanh());
            let logits: Vec<f64> = raw.iter().map(|&x| op.soft_cap.map_or(x, |cap| f64::from(cap) * tanh(x))).collect();
            lse.push(logits.iter().map(|x| x.exp()).sum::<f64>().ln());
            if labels[t] == IGNORED {
                continue;
            }
            loss += 0.25 * (lse[t] - logits[labels[t] as usize]);
            for (v, logit) in logits.iter().enumerate() {
                let hit = f64::from(u8::from(v == labels[t] as usize));
                let d = 0.25 * scale * ((logit - lse[t]).exp() - hit) * (1.0 - tanh(raw[v]).powi(2));
                for c in 0..width {
                    d_hidden[t * width + c] += d * weight[v * width + c];
                    d_weight[v * width + c] += d * h[c];
                }
            }
        }
        [vec![loss], lse, d_hidden, d_weight]
    }

    #[test]
    fn chunks_together_give_the_same_result() {
        for (rows, soft_cap, dtype) in [
            (1, None, DType::F32),
            (128, Some(1.5), DType::BF16),
            (300, None, DType::F16),
            (257, Some(0.5), DType::F32),
        ] {
            let (vocabulary, width) = (37, 9);
            let op = LinearCrossEntropy {
                scale: 0.75,
                soft_cap,
                chunk: 128,
                hidden_grad: true,
                weight_grad: WeightGrad::Dense,
            };
            let (hidden, weight) =
                (Tensor::random(DType::F32, &[rows, width], 1), Tensor::random(dtype, &[vocabulary, width], 2));
            let label = |t: usize| if t % 5 == 3 { IGNORED } else { (t * 11 % vocabulary) as u32 };
            let labels: Vec<u32> = (0..rows).map(label).collect();
            let step = Tensor::f32(&[8], &[0.0, 0.0, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0]);
            let expected = expected(&op, &hidden.values(), &weight.values(), &labels, width);
            let inputs = [hidden, weight, Tensor::u32(&[rows], &labels), step];
            let got = run::<f64>(op.clone(), &inputs).unwrap();
            for (got, expected) in got.iter().zip(&expected) {
                assert!(got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-5 * (1.0 + e.abs())));
            }
            let plain = LinearCrossEntropy { hidden_grad: false, weight_grad: WeightGrad::None, ..op };
            assert_eq!(run::<f64>(plain, &inputs).unwrap()[..2], got[..2]);
        }
    }
}
