use super::moved;
use crate::bind::{Io, Kernel};
use crate::real::Real;
use sparta_graph::ops::Broadcast;

pub fn prepare<T: Real>(op: &Broadcast, io: &Io) -> Result<Kernel, String> {
    match io.ty(0)?.shape[..] {
        [_] => moved::prepare::<T>(io, op.shape, |_, column| Some(column)),
        _ => moved::prepare::<T>(io, op.shape, |row, _| Some(row)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::moved::testing::check_moved;

    #[test]
    fn repeats_a_row_or_a_column() {
        check_moved(Broadcast { shape: [4, 5] }, &[5], [4, 5], |x, _, column| x[column]);
        check_moved(Broadcast { shape: [5, 4] }, &[5, 1], [5, 4], |x, row, _| x[row]);
    }
}
