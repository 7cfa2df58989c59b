use crate::bind::{Io, Kernel};
use crate::elementwise::pieces;
use crate::memory::{Floats, Need};
use crate::parallel::{tasks, try_tasks};
use crate::real::Real;
use crate::simd::{simd, sum};
use sparta_graph::ops::{ClipCoef, PARTIALS, SumOfSquares, elements_per_partial};

pub fn prepare<T: Real>(op: &SumOfSquares, io: &Io) -> Result<Kernel, String> {
    let (norms, x, n) = (io.real::<T>(0)?, io.floats::<T>(1)?, io.numel(1)?);
    let first = op.slot * PARTIALS;
    // SAFETY: the tensor is in x, and the slots are those of the shape rule.
    let square =
        move |slot: usize, begin, len, i| unsafe { *norms.at(first + slot * PARTIALS + i) = partial(x, begin, len, i) };
    if io.inputs() < 3 {
        return Ok(Kernel::plain(move || tasks(PARTIALS, |i| square(0, 0, n, i))));
    }
    let (parts, count) = (io.words(2)?, io.numel(2)? / 2);
    Ok(Kernel::new(Need::default(), move |_| {
        try_tasks(count * PARTIALS, |task| {
            let slot = task / PARTIALS;
            // SAFETY: parts is `[count, 2]`.
            let [begin, len] = unsafe { [*parts.at(2 * slot), *parts.at(2 * slot + 1)] }.map(|x| x as usize);
            if begin + len > n {
                return Err(format!("parts[{slot}] ends at {}, but there are {n} elements", begin + len));
            }
            square(slot, begin, len, task % PARTIALS);
            Ok(())
        })
    }))
}

/// Partial sum i of the tensor that begins at `begin`.
///
/// # Safety
/// The tensor is in x, and nothing else writes it concurrently.
unsafe fn partial<T: Real>(x: Floats<T>, begin: usize, len: usize, i: usize) -> T {
    let chunk = elements_per_partial(len);
    let start = len.min(i * chunk);
    let mut sum = T::ZERO;
    // SAFETY: the caller vouches for it.
    unsafe {
        pieces(begin + start..begin + len.min(start + chunk), [x], [], |r, [x], []| {
            sum += sum_of_squares(std::slice::from_raw_parts(x, r.len()));
        });
    }
    sum
}

pub fn prepare_clip<T: Real>(op: &ClipCoef, io: &Io) -> Result<Kernel, String> {
    let (norms, loss, latch) = (io.real::<T>(0)?, io.real::<T>(1)?, io.real::<T>(2)?);
    let (y, n, max_norm) = (io.output::<T>(0)?, io.numel(0)?, op.max_norm);
    Ok(Kernel::plain(move || {
        // SAFETY: norms has n elements, loss and latch one, y 2.
        unsafe {
            let norm = norms.slice(0, n).iter().map(|x| x.to_f64()).sum::<f64>().sqrt();
            if !norm.is_finite() || !(*loss.at(0)).to_f64().is_finite() {
                *latch.at(0) = T::ONE;
            }
            let factor = max_norm.map_or(1.0, |max| max as f64 / (norm + 1e-6));
            *y.at(0) = T::from_f64(norm);
            *y.at(1) = T::from_f64(if *latch.at(0) == T::ZERO { factor.min(1.0) } else { -1.0 });
        }
    }))
}

simd! {
    unsafe fn sum_of_squares<T: Real>(x: &[T]) -> T {
        sum!(T, |x| x * x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, error, run};
    use sparta_graph::DType;
    use sparta_graph::ops::Concat;

    #[test]
    fn partial_sums_and_clip_factor() {
        for n in [1, 64, 1000, 100_003] {
            let (norms, x) = (Tensor::random(DType::F32, &[3, PARTIALS], 1), Tensor::random(DType::F32, &[n], 2));
            for got in
                [run::<f32>, run::<f64>].map(|f| f(SumOfSquares { slot: 1 }, &[norms.clone(), x.clone()]).unwrap())
            {
                let exact: f64 = x.values().iter().map(|x| x * x).sum();
                let sum: f64 = got[0][PARTIALS..2 * PARTIALS].iter().sum();
                assert!((sum - exact).abs() < 1e-6 * exact);
                assert!(got[0][..PARTIALS] == norms.values()[..PARTIALS]);
                assert!(got[0][2 * PARTIALS..] == norms.values()[2 * PARTIALS..]);
            }
        }
    }

    #[test]
    fn tensors_in_a_row_have_the_sums_that_they_have_alone() {
        let lengths = [70_001, 3, 0, 64];
        let (begins, n) = Concat::layout(lengths);
        let (norms, x) = (Tensor::random(DType::F32, &[6, PARTIALS], 1), Tensor::random(DType::F32, &[n], 2));
        let table: Vec<u32> = begins.iter().zip(lengths).flat_map(|(&begin, n)| [begin as u32, n as u32]).collect();
        let parts = Tensor::u32(&[4, 2], &table);
        let together = &run::<f32>(SumOfSquares { slot: 1 }, &[norms.clone(), x.clone(), parts]).unwrap()[0];
        for (i, (&begin, len)) in begins.iter().zip(lengths).enumerate() {
            let alone = Tensor::f32(&[len], &x.values()[begin..begin + len]);
            let alone = &run::<f32>(SumOfSquares { slot: 1 + i }, &[norms.clone(), alone]).unwrap()[0];
            let row = (1 + i) * PARTIALS..(2 + i) * PARTIALS;
            assert_eq!(together[row.clone()], alone[row]);
        }
        let beyond = Tensor::u32(&[1, 2], &[n as u32, 1]);
        assert!(error(SumOfSquares { slot: 0 }, &[norms, x, beyond]).contains("parts[0]"));
    }

    #[test]
    fn the_factor_stops_updates_until_the_latch_is_cleared() {
        let norms = Tensor::f32(&[2, PARTIALS], &[0.5; 2 * PARTIALS]);
        let scalar = |x: f64| Tensor::f32(&[1], &[x]);
        for (max_norm, factor) in [(None, 1.0), (Some(2.0), 2.0 / (8.0 + 1e-6)), (Some(9.0), 1.0)] {
            let inputs = [norms.clone(), scalar(0.7), scalar(0.0)];
            check(ClipCoef { max_norm }, &inputs, &[vec![8.0, factor], vec![0.0]], 1e-7);
        }
        let nan = Tensor::f32(&[1, PARTIALS], &[f64::NAN; PARTIALS]);
        let clip = |norms: &Tensor, loss, latch| {
            let inputs = [norms.clone(), scalar(loss), scalar(latch)];
            run::<f32>(ClipCoef { max_norm: Some(1.0) }, &inputs).unwrap()
        };
        let bad = clip(&nan, 0.7, 0.0);
        assert!(bad[0][0].is_nan() && bad[0][1] == -1.0 && bad[1] == [1.0]);
        assert_eq!(clip(&norms, f64::INFINITY, 0.0), [vec![8.0, -1.0], vec![1.0]]);
        assert_eq!(clip(&norms, 0.7, 1.0), [vec![8.0, -1.0], vec![1.0]], "good again, but the latch is set");
    }
}
