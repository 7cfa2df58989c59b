use crate::bind::{Io, Kernel};
use crate::elementwise::pieces;
use crate::parallel::tasks;
use crate::real::Real;
use crate::simd::{simd, sum};
use sparta_graph::ops::{ClipCoef, PARTIALS, SumOfSquares};

pub fn prepare<T: Real>(op: &SumOfSquares, io: &Io) -> Result<Kernel, String> {
    let (norms, x, n) = (io.real::<T>(0)?, io.floats::<T>(1)?, io.numel(1)?);
    let (first, part) = (op.slot * PARTIALS, n.div_ceil(PARTIALS));
    let square = move |i: usize| {
        let start = n.min(i * part);
        let mut sum = T::ZERO;
        // SAFETY: part i of x, and partial sum i of the slot, which the shape rule has checked.
        unsafe {
            pieces(start..n.min(start + part), [x], [], |r, [x], []| {
                sum += sum_of_squares(std::slice::from_raw_parts(x, r.len()));
            });
            *norms.at(first + i) = sum;
        }
    };
    Ok(Kernel::plain(move || tasks(PARTIALS, square)))
}

pub fn prepare_clip<T: Real>(op: &ClipCoef, io: &Io) -> Result<Kernel, String> {
    let (norms, y, n) = (io.real::<T>(0)?, io.output::<T>(0)?, io.numel(0)?);
    let max_norm = op.max_norm;
    Ok(Kernel::plain(move || {
        // SAFETY: norms has n elements, y 2.
        unsafe {
            let norm = norms.slice(0, n).iter().map(|x| x.to_f64()).sum::<f64>().sqrt();
            let factor = max_norm.map_or(1.0, |max| max as f64 / (norm + 1e-6));
            *y.at(0) = T::from_f64(norm);
            *y.at(1) = T::from_f64(if norm.is_finite() { factor.min(1.0) } else { -1.0 });
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
    use crate::testing::{Tensor, check, run};
    use sparta_graph::DType;

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
        let norms = Tensor::f32(&[2, PARTIALS], &[0.5; 2 * PARTIALS]);
        for (max_norm, factor) in [(None, 1.0), (Some(2.0), 2.0 / (8.0 + 1e-6)), (Some(9.0), 1.0)] {
            check(ClipCoef { max_norm }, std::slice::from_ref(&norms), &[vec![8.0, factor]], 1e-7);
        }
        let nan = Tensor::f32(&[1, PARTIALS], &[f64::NAN; PARTIALS]);
        for max_norm in [None, Some(1.0)] {
            let clip = &run::<f32>(ClipCoef { max_norm }, std::slice::from_ref(&nan)).unwrap()[0];
            assert!(clip[0].is_nan() && clip[1] == -1.0);
        }
    }
}
