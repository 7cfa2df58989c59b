use crate::bind::{Io, Kernel};
use crate::elementwise::pieces;
use crate::memory::{Floats, Need, Ptr};
use crate::parallel::{GRAIN, try_tasks};
use crate::real::Real;
use crate::simd::{LANES, map, simd, sum};
use sparta_graph::ops::{CrossEntropy, CrossEntropyGrad, IGNORED, step};

pub fn prepare<T: Real>(op: &CrossEntropy, io: &Io) -> Result<Kernel, String> {
    let ((rows, classes), logits, labels, step) = (io.matrix(0)?, io.real::<T>(0)?, io.words(1)?, io.real::<T>(2)?);
    let (loss, lse) = (io.output::<T>(0)?, io.output::<T>(1)?);
    let cap = op.soft_cap.map(T::from_f32);
    Ok(Kernel::new(Need::default(), move |_| {
        each_row(rows, classes, labels, |row, _| {
            // SAFETY: row `row` of the tensors, which no other task touches.
            unsafe {
                let logits = logits.slice(row * classes, classes);
                *lse.at(row) = match cap {
                    None => log_sum_exp::<T, false>(logits, T::ONE),
                    Some(cap) => log_sum_exp::<T, true>(logits, cap),
                }
            }
        })?;
        let mut total = T::ZERO;
        for row in 0..rows {
            // SAFETY: row `row` of the tensors, and a label that was checked above.
            unsafe {
                let label = *labels.at(row);
                if label != IGNORED {
                    let logit = *logits.at(row * classes + label as usize);
                    total += *lse.at(row) - cap.map_or(logit, |cap| capped(logit, cap));
                }
            }
        }
        // SAFETY: one loss; `step` has `step::LEN` elements.
        unsafe { *loss.at(0) = *step.at(step::LOSS_WEIGHT) * total };
        Ok(())
    }))
}

pub fn prepare_grad<T: Real>(op: &CrossEntropyGrad, io: &Io) -> Result<Kernel, String> {
    let ((rows, classes), logits, labels, lse) = (io.matrix(0)?, io.real::<T>(0)?, io.words(1)?, io.real::<T>(2)?);
    let (step, d_loss, grad) = (io.real::<T>(3)?, io.real::<T>(4)?, io.output::<T>(0)?);
    let cap = op.soft_cap.map(T::from_f32);
    Ok(Kernel::new(Need::default(), move |_| {
        // SAFETY: one upstream gradient; `step` has `step::LEN` elements.
        let scale = unsafe { *d_loss.at(0) * *step.at(step::LOSS_WEIGHT) };
        each_row(rows, classes, labels, |row, label| {
            let at = grad.at(row * classes);
            // SAFETY: row `row` of the tensors, which no other task touches; the label was checked.
            unsafe {
                match label {
                    Some(label) => {
                        // The gradient may take the place of the logits.
                        let logits = logits.at(row * classes);
                        let one_hot = scale * cap.map_or(T::ONE, |cap| slope(*logits.add(label), cap));
                        match cap {
                            None => softmax::<T, false>(classes, logits, T::ONE, *lse.at(row), scale, at),
                            Some(cap) => softmax::<T, true>(classes, logits, cap, *lse.at(row), scale, at),
                        }
                        *at.add(label) += -one_hot;
                    }
                    None => grad.slice_mut(row * classes, classes).fill(T::ZERO),
                }
            }
        })
    }))
}

/// Both at once: the gradient goes to `output`, which may be the logits.
pub fn prepare_with_grad<T: Real>(op: &CrossEntropy, io: &Io, grad: &Io, output: Floats<T>) -> Result<Kernel, String> {
    let ((rows, classes), logits, labels, step) = (io.matrix(0)?, io.real::<T>(0)?, io.words(1)?, io.real::<T>(2)?);
    let (loss, lse, d_loss) = (io.output::<T>(0)?, io.output::<T>(1)?, grad.real::<T>(4)?);
    let cap = op.soft_cap.map(T::from_f32);
    let need = Need { shared: rows * size_of::<T>(), per_thread: 0 };
    Ok(Kernel::new(need, move |scratch| {
        let losses = scratch.shared::<T>();
        // SAFETY: one upstream gradient; `step` has `step::LEN` elements.
        let (weight, scale) = unsafe { (*step.at(step::LOSS_WEIGHT), *d_loss.at(0) * *step.at(step::LOSS_WEIGHT)) };
        each_row(rows, classes, labels, |row, label| {
            // SAFETY: row `row` of the tensors, which no other task touches; the label was checked.
            unsafe {
                let x = logits.slice(row * classes, classes);
                let log_sum = match cap {
                    None => log_sum_exp::<T, false>(x, T::ONE),
                    Some(cap) => log_sum_exp::<T, true>(x, cap),
                };
                let logit = label.map(|label| x[label]);
                let own = |logit| log_sum - cap.map_or(logit, |cap| capped(logit, cap));
                (*lse.at(row), *losses.at(row)) = (log_sum, logit.map_or(T::ZERO, own));
                let one_hot = logit.map(|logit| scale * cap.map_or(T::ONE, |cap| slope(logit, cap)));
                let range = row * classes..(row + 1) * classes;
                pieces(range, [Floats::Full(logits)], [output], |piece, [x], [y]| match (label, one_hot) {
                    (Some(label), Some(one_hot)) => {
                        match cap {
                            None => softmax::<T, false>(piece.len(), x, T::ONE, log_sum, scale, y),
                            Some(cap) => softmax::<T, true>(piece.len(), x, cap, log_sum, scale, y),
                        }
                        let label = row * classes + label;
                        if piece.contains(&label) {
                            *y.add(label - piece.start) += -one_hot;
                        }
                    }
                    _ => std::slice::from_raw_parts_mut(y, piece.len()).fill(T::ZERO),
                });
            }
        })?;
        // SAFETY: all rows are written, and one loss.
        unsafe { *loss.at(0) = weight * losses.slice(0, rows).iter().fold(T::ZERO, |sum, &x| sum + x) };
        Ok(())
    }))
}

/// Calls `f(row, label)` for every row in parallel; no label in ignored rows.
fn each_row(
    rows: usize,
    classes: usize,
    labels: Ptr<u32>,
    f: impl Fn(usize, Option<usize>) + Send + Sync,
) -> Result<(), String> {
    let size = GRAIN.div_ceil(classes.max(1));
    try_tasks(rows.div_ceil(size), |task| {
        for row in task * size..rows.min((task + 1) * size) {
            // SAFETY: labels are u32 `[rows]`, and the op does not write them.
            match unsafe { *labels.at(row) } {
                IGNORED => f(row, None),
                label if (label as usize) < classes => f(row, Some(label as usize)),
                label => return Err(format!("row {row} has label {label}, but there are {classes} classes")),
            }
        }
        Ok(())
    })
}

/// `cap * tanh(x / cap)`
#[inline(always)]
fn capped<T: Real>(x: T, cap: T) -> T {
    cap * (x / cap).tanh()
}

/// The derivative of [`capped`].
#[inline(always)]
fn slope<T: Real>(x: T, cap: T) -> T {
    let t = (x / cap).tanh();
    T::ONE - t * t
}

simd! {
    unsafe fn log_sum_exp<T: Real, const CAP: bool>(x: &[T], cap: T) -> T {
        let mut largest = [T::NEG_INFINITY; LANES];
        let blocks = x.chunks_exact(LANES);
        for (l, &x) in blocks.remainder().iter().enumerate() {
            largest[l] = x;
        }
        for block in blocks {
            for l in 0..LANES {
                largest[l] = block[l].max(largest[l]);
            }
        }
        let largest = largest.into_iter().fold(T::NEG_INFINITY, T::max);
        // The cap keeps the order.
        let largest = if CAP { capped(largest, cap) } else { largest };
        sum!(T, |x| ((if CAP { capped(x, cap) } else { x }) - largest).exp()).ln() + largest
    }

    unsafe fn softmax<T: Real, const CAP: bool>(n: usize, x: *const T, cap: T, lse: T, scale: T, y: *mut T) {
        map!(n, |x| -> y {
            if CAP {
                scale * (capped(x, cap) - lse).exp() * slope(x, cap)
            } else {
                scale * (x - lse).exp()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, error};
    use sparta_graph::ops::{CrossEntropy, CrossEntropyGrad};

    #[test]
    fn loss_and_gradient() {
        for (rows, classes) in [(1, 1), (5, 2), (40, 33), (3, 70_000)] {
            let large: Vec<f64> = crate::testing::random(rows * classes, 1).iter().map(|x| 100.0 * x).collect();
            let logits = Tensor::f32(&[rows, classes], &large);
            let label = |row: usize| if row % 3 == 1 { IGNORED } else { (row * 7 % classes) as u32 };
            let labels = Tensor::u32(&[rows], &(0..rows).map(label).collect::<Vec<_>>());
            let step = Tensor::f32(&[8], &[0.0, 0.0, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0]);
            let (x, mut loss, mut lse, mut grad) = (logits.values(), 0.0, vec![], vec![0.0; rows * classes]);
            for row in 0..rows {
                let x = &x[row * classes..][..classes];
                let l = (x.iter().map(|x| (x - 100.0).exp()).sum::<f64>()).ln() + 100.0;
                lse.push(l);
                if label(row) != IGNORED {
                    loss += 0.25 * (l - x[label(row) as usize]);
                    (0..classes).for_each(|c| grad[row * classes + c] = 0.5 * (x[c] - l as f32 as f64).exp());
                    grad[row * classes + label(row) as usize] -= 0.5;
                }
            }
            let inputs = [logits.clone(), labels.clone(), step.clone()];
            check(CrossEntropy::default(), &inputs, &[vec![loss], lse.clone()], 1e-6);
            let inputs = [logits, labels, Tensor::f32(&[rows], &lse), step, Tensor::f32(&[1], &[2.0])];
            // exp of a difference of two numbers around 100 that f32 rounds.
            check(CrossEntropyGrad::default(), &inputs, &[grad], 4e-5);
        }
    }

    #[test]
    fn a_label_without_a_class_is_refused() {
        let step = Tensor::f32(&[8], &[1.0; 8]);
        let inputs = [Tensor::f32(&[1, 2], &[0.0; 2]), Tensor::u32(&[1], &[2]), step];
        assert!(error(CrossEntropy::default(), &inputs).contains("row 0 has label 2"));
    }
}
