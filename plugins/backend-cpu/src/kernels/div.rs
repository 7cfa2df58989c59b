use super::binary;
use crate::bind::{Io, Kernel};
use crate::real::Real;
use crate::simd::{map, simd};

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    binary::prepare::<T>(io, div::<T>)
}

simd! {
    unsafe fn div<T: Real>(n: usize, a: *const T, b: *const T, c: *mut T) {
        map!(n, |a, b| -> c { a / b })
    }
}

#[cfg(test)]
mod tests {
    use super::binary::testing::check_binary;
    use sparta_graph::ops::Div;

    #[test]
    fn divides() {
        check_binary(Div {}, |a, b| a / b);
    }
}
