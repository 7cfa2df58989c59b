use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use crate::simd::{map, simd};

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let (x, s, y, n) = (io.real::<T>(0)?, io.real::<T>(1)?, io.output::<T>(0)?, io.numel(0)?);
    Ok(Kernel::plain(move || {
        // SAFETY: s has one element, the others are chunks of tensors of n elements.
        chunks(n, GRAIN, |c| unsafe { scale(c.len(), x.at(c.start), *s.at(0), y.at(c.start)) });
    }))
}

simd! {
    unsafe fn scale<T: Real>(n: usize, x: *const T, factor: T, y: *mut T) {
        map!(n, |x| -> y { factor * x })
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check};
    use sparta_graph::DType;
    use sparta_graph::ops::ScaleBy;

    #[test]
    fn scales() {
        let x = Tensor::random(DType::F32, &[3, 12_345], 1);
        let expected = x.values().iter().map(|x| 0.75 * x).collect();
        check(ScaleBy {}, &[x, Tensor::f32(&[1], &[0.75])], &[expected], 1e-7);
    }
}
