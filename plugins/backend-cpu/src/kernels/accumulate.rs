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
