use super::add::add;
use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let (acc, x, n) = (io.real::<T>(0)?, io.real::<T>(1)?, io.numel(0)?);
    Ok(Kernel::plain(move || {
        // SAFETY: chunks of tensors of n elements.
        chunks(n, GRAIN, |c| unsafe { add(c.len(), acc.at(c.start), x.at(c.start), acc.at(c.start)) });
    }))
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check};
    use sparta_graph::DType;
    use sparta_graph::ops::Accumulate;

    #[test]
    fn adds_in_place() {
        for n in [0, 1, 63, 64, 40_000] {
            let inputs = [1, 2].map(|seed| Tensor::random(DType::F32, &[n], seed));
            let sums = inputs[0].values().iter().zip(inputs[1].values()).map(|(a, b)| a + b).collect();
            check(Accumulate {}, &inputs, &[sums], 1e-7);
        }
    }
}
