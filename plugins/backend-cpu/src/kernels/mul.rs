use super::binary;
use crate::bind::{Io, Kernel};
use crate::real::Real;
use crate::simd::{map, simd};

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    binary::prepare::<T>(io, mul::<T>)
}

simd! {
    unsafe fn mul<T: Real>(n: usize, a: *const T, b: *const T, c: *mut T) {
        map!(n, |a, b| -> c { a * b })
    }
}

#[cfg(test)]
mod tests {
    use super::binary::testing::check_binary;
    use sparta_graph::ops::Mul;

    #[test]
    fn multiplies() {
        check_binary(Mul {}, |a, b| a * b);
    }
}
