use crate::bind::{Io, Kernel};
use crate::memory::{Need, Ptr};
use crate::parallel::{GRAIN, try_tasks};
use crate::real::Real;
use crate::simd::{LANES, map, simd, sum};
use sparta_graph::ops::{IGNORED, step};

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let ((rows, classes), logits, labels, step) = (io.matrix(0)?, io.real::<T>(0)?, io.words(1)?, io.real::<T>(2)?);
    let (loss, lse) = (io.output::<T>(0)?, io.output::<T>(1)?);
    Ok(Kernel::new(Need::default(), move |_| {
        each_row(rows, classes, labels, |row, _| {
            // SAFETY: row `row` of the tensors, which no other task touches.
            unsafe { *lse.at(row) = log_sum_exp(logits.slice(row * classes, classes)) }
        })?;
        let mut total = T::ZERO;
        for row in 0..rows {
            // SAFETY: row `row` of the tensors, and a label that was checked above.
            unsafe {
                let label = *labels.at(row);
                if label != IGNORED {
                    total += *lse.at(row) - *logits.at(row * classes + label as usize);
                }
            }
        }
        // SAFETY: one loss; `step` has `step::LEN` elements.
        unsafe { *loss.at(0) = *step.at(step::LOSS_SCALE) * total };
        Ok(())
    }))
}

pub fn prepare_grad<T: Real>(io: &Io) -> Result<Kernel, String> {
    let ((rows, classes), logits, labels, lse) = (io.matrix(0)?, io.real::<T>(0)?, io.words(1)?, io.real::<T>(2)?);
    let (step, d_loss, grad) = (io.real::<T>(3)?, io.real::<T>(4)?, io.output::<T>(0)?);
    Ok(Kernel::new(Need::default(), move |_| {
        // SAFETY: one upstream gradient; `step` has `step::LEN` elements.
        let scale = unsafe { *d_loss.at(0) * *step.at(step::LOSS_SCALE) };
        each_row(rows, classes, labels, |row, label| {
            let at = grad.at(row * classes);
            // SAFETY: row `row` of the tensors, which no other task touches; the label was checked.
            unsafe {
                match label {
                    Some(label) => {
                        softmax(classes, logits.at(row * classes), *lse.at(row), scale, at);
                        *at.add(label) += -scale;
                    }
                    None => grad.slice_mut(row * classes, classes).fill(T::ZERO),
                }
            }
        })
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

simd! {
    unsafe fn log_sum_exp<T: Real>(x: &[T]) -> T {
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
        sum!(T, |x| (x - largest).exp()).ln() + largest
    }

    unsafe fn softmax<T: Real>(n: usize, x: *const T, lse: T, scale: T, y: *mut T) {
        map!(n, |x| -> y { scale * (x - lse).exp() })
    }
}
