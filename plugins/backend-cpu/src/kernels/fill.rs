use crate::bind::{Io, Kernel};
use crate::parallel::{GRAIN, chunks};
use crate::real::Real;
use sparta_graph::ops::Fill;

pub fn prepare<T: Real>(op: &Fill, io: &Io) -> Result<Kernel, String> {
    let (y, n, value) = (io.output::<T>(0)?, io.output_numel(0)?, T::from_f32(op.value));
    Ok(Kernel::plain(move || {
        // SAFETY: chunks of a tensor of n elements.
        chunks(n, GRAIN, |c| unsafe { y.slice_mut(c.start, c.len()) }.fill(value));
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn fills() {
        check(Fill { value: 0.75, shape: vec![3, 7000] }, &[], &[vec![0.75; 21_000]], 0.0);
    }
}
