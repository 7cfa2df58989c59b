use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Need, Ptr};
use crate::parallel::{GRAIN, try_tasks};
use crate::real::Real;
use sparta_graph::ops::Scatter;
use std::ops::Range;

/// Chosen elements of a tensor, `base[i] + delta[i]` at `index[i]`, which are inputs 1 to 3 of an op.
#[derive(Clone, Copy)]
pub struct Overlay<T> {
    n: usize,
    index: Ptr<u32>,
    base: Floats<T>,
    delta: Ptr<T>,
}

impl<T: Real> Overlay<T> {
    pub fn new(io: &Io) -> Result<Self, String> {
        Ok(Overlay { n: io.numel(1)?, index: io.words(1)?, base: io.floats::<T>(2)?, delta: io.real::<T>(3)? })
    }

    fn indices(&self) -> &[u32] {
        // SAFETY: `index` has n elements, which no op with an overlay writes.
        unsafe { self.index.slice(0, self.n) }
    }

    /// Errors: indices that do not ascend, or lie outside of a tensor of this many elements.
    pub fn check(&self, elements: usize) -> Result<(), String> {
        let index = self.indices();
        let bad = |i: usize| index[i] as usize >= elements || i > 0 && index[i - 1] >= index[i];
        try_tasks(self.n.div_ceil(GRAIN), |task| {
            let wrong = (task * GRAIN..self.n.min((task + 1) * GRAIN)).find(|&i| bad(i));
            wrong.map_or(Ok(()), |i| {
                Err(format!("index[{i}] is {}: indices must ascend and be below {elements}", index[i]))
            })
        })
    }

    /// Writes those of its elements that lie in a range of w.
    ///
    /// # Safety
    /// The indices are checked; the range lies in w, and nobody else reads or writes it concurrently.
    pub unsafe fn write(&self, w: Floats<T>, range: Range<usize>) {
        let index = self.indices();
        let at = |element: usize| index.partition_point(|&i| (i as usize) < element);
        for i in at(range.start)..at(range.end) {
            // SAFETY: i is below n, and the caller vouches for the elements of w.
            unsafe { self.set(w, i) };
        }
    }

    /// Writes its element i, and returns what rounding it lost.
    ///
    /// # Safety
    /// As for [`Overlay::write`]; i is below n.
    unsafe fn set(&self, w: Floats<T>, i: usize) -> T {
        // SAFETY: the caller vouches for it.
        unsafe {
            let (at, sum) = (*self.index.at(i) as usize, self.base.get(i) + *self.delta.at(i));
            w.set(at, sum);
            sum - w.get(at)
        }
    }
}

pub fn prepare<T: Real>(op: &Scatter, io: &Io) -> Result<Kernel, String> {
    let (w, overlay) = (io.floats::<T>(0)?, Overlay::<T>::new(io)?);
    let remainder = if op.remainder { Some(io.real::<T>(4)?) } else { None };
    let (elements, n) = (io.numel(0)?, overlay.n);
    Ok(Kernel::new(Need::default(), move |_| {
        overlay.check(elements)?;
        try_tasks(n.div_ceil(GRAIN), |task| {
            for i in task * GRAIN..n.min((task + 1) * GRAIN) {
                // SAFETY: i is below n; indices lie in w and ascend, so that no other task writes the same element.
                unsafe {
                    let lost = overlay.set(w, i);
                    if let Some(remainder) = remainder {
                        *remainder.at(i) = lost;
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
