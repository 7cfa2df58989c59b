use super::binary;
use crate::bind::{Io, Kernel};
use crate::real::Real;
use crate::simd::{map, simd};

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    binary::prepare::<T>(io, add::<T>)
}

simd! {
    pub unsafe fn add<T: Real>(n: usize, a: *const T, b: *const T, c: *mut T) {
        map!(n, |a, b| -> c { a + b })
    }
}

#[cfg(test)]
mod tests {
    use super::binary::testing::check_binary;
    use sparta_graph::ops::Add;

    #[test]
    fn adds() {
        check_binary(Add {}, |a, b| a + b);
    }
}
