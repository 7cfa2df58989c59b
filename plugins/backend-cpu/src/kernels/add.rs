use crate::bind::{Io, Kernel};
use crate::elementwise::{elementwise, pieces};
use crate::memory::{Need, Ptr};
use crate::parallel;
use crate::real::Real;
use crate::simd::{map, simd};

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    if io.ty(0)?.shape != io.ty(1)?.shape {
        return prepare_bias::<T>(io);
    }
    let (a, b, c, n) = (io.floats::<T>(0)?, io.floats::<T>(1)?, io.float_output::<T>(0)?, io.numel(0)?);
    Ok(Kernel::plain(move || {
        // SAFETY: tensors of n elements.
        unsafe { elementwise(n, [a, b], [c], |r, [a, b], [c]| add(r.len(), a, b, c)) }
    }))
}

fn prepare_bias<T: Real>(io: &Io) -> Result<Kernel, String> {
    let ((rows, width), a, b, c) = (io.matrix(0)?, io.floats::<T>(0)?, io.floats::<T>(1)?, io.float_output::<T>(0)?);
    let need = Need { shared: width * size_of::<T>(), per_thread: 0 };
    Ok(Kernel::new(need, move |scratch| {
        let bias: Ptr<T> = scratch.shared();
        // SAFETY: the bias and the scratch memory have `width` elements.
        unsafe { b.load(0, width, bias.at(0)) };
        parallel::rows(rows, width, |part| {
            for at in part.map(|row| row * width) {
                // SAFETY: a row of a and c.
                unsafe {
                    pieces(at..at + width, [a], [c], |r, [a], [c]| add(r.len(), a, bias.at(r.start - at), c));
                }
            }
        });
        Ok(())
    }))
}

simd! {
    pub unsafe fn add<T: Real>(n: usize, a: *const T, b: *const T, c: *mut T) {
        map!(n, |a, b| -> c { a + b })
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, check_bf16};
    use sparta_graph::DType;
    use sparta_graph::ops::Add;

    #[test]
    fn same_shape_and_bias() {
        for (rows, columns) in [(1, 1), (3, 70), (300, 129)] {
            let a = Tensor::random(DType::F32, &[rows, columns], 1);
            let add = |b: &Tensor| {
                let values = b.values();
                let sums = a.values().iter().enumerate().map(|(i, a)| a + values[i % values.len()]).collect();
                check(Add {}, &[a.clone(), b.clone()], &[sums], 1e-7);
            };
            let b = Tensor::random(DType::F32, &[rows, columns], 2);
            add(&b);
            for which in [&[0][..], &[1], &[0, 1]] {
                check_bf16(Add {}, &[a.clone(), b.clone()], which, 1e-7);
            }
            check_bf16(Add {}, &[a.clone(), Tensor::random(DType::F32, &[columns], 3)], &[0, 1], 1e-7);
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                add(&Tensor::random(dtype, &[columns], 3));
            }
        }
    }
}
