use crate::bind::{Io, Kernel};
use crate::memory::Need;
use crate::parallel::{GRAIN, try_tasks};
use crate::real::Real;
use sparta_graph::ops::Scatter;

pub fn prepare<T: Real>(op: &Scatter, io: &Io) -> Result<Kernel, String> {
    let (w, index, base, delta) = (io.floats::<T>(0)?, io.words(1)?, io.floats::<T>(2)?, io.real::<T>(3)?);
    let remainder = if op.remainder { Some(io.real::<T>(4)?) } else { None };
    let (elements, n) = (io.numel(0)?, io.numel(1)?);
    Ok(Kernel::new(Need::default(), move |_| {
        try_tasks(n.div_ceil(GRAIN), |task| {
            for i in task * GRAIN..n.min((task + 1) * GRAIN) {
                // SAFETY: i is below n; indices are checked to lie in w and to ascend, so that no other task writes
                // the same element.
                unsafe {
                    let at = *index.at(i) as usize;
                    if at >= elements || i > 0 && *index.at(i - 1) as usize >= at {
                        return Err(format!("index[{i}] is {at}: indices must ascend and be below {elements}"));
                    }
                    let sum = base.get(i) + *delta.at(i);
                    w.set(at, sum);
                    if let Some(remainder) = remainder {
                        *remainder.at(i) = sum - w.get(at);
                    }
                }
            }
            Ok(())
        })
    }))
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, error, rounded};
    use sparta_graph::DType;
    use sparta_graph::ops::Scatter;

    #[test]
    fn writes_rounded_sums() {
        let index: Vec<u32> = (1..60_000).step_by(3).collect();
        let n = index.len();
        let delta = Tensor::random(DType::F32, &[n], 2);
        let types = [DType::F32, DType::BF16, DType::F16];
        for (dtype, of_base) in types.into_iter().zip([DType::F32, DType::F32, DType::F32]).chain(types.map(|t| (t, t)))
        {
            let base = Tensor::random(of_base, &[n], 1);
            let sums: Vec<f64> = base.values().iter().zip(delta.values()).map(|(base, delta)| base + delta).collect();
            let w = Tensor::random(dtype, &[200, 300], 3);
            let mut expected = w.values();
            for (&at, &sum) in index.iter().zip(&sums) {
                expected[at as usize] = if dtype == DType::F32 { sum } else { rounded(dtype, sum) };
            }
            let inputs = [w, Tensor::u32(&[n], &index), base.clone(), delta.clone()];
            check(Scatter::default(), &inputs, &[expected], 1e-7);
        }
    }

    #[test]
    fn indices_must_ascend_inside_of_the_tensor() {
        let zeros = Tensor::f32(&[2], &[0.0; 2]);
        for bad in [[1, 1], [2, 1], [0, 4]] {
            let inputs = [Tensor::f32(&[4], &[0.0; 4]), Tensor::u32(&[2], &bad), zeros.clone(), zeros.clone()];
            assert!(error(Scatter::default(), &inputs).contains("index[1]"));
        }
    }
}
