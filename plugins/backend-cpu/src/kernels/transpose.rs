use super::moved;
use crate::bind::{Io, Kernel};
use crate::real::Real;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let (rows, columns) = io.matrix(0)?;
    moved::prepare::<T>(io, [columns, rows], move |row, column| Some(column * columns + row))
}

#[cfg(test)]
mod tests {
    use crate::kernels::moved::testing::check_moved;
    use sparta_graph::ops::Transpose;

    #[test]
    fn swaps_rows_and_columns() {
        check_moved(Transpose {}, &[3, 5], [5, 3], |x, row, column| x[column * 5 + row]);
        check_moved(Transpose {}, &[150, 301], [301, 150], |x, row, column| x[column * 301 + row]);
    }
}
