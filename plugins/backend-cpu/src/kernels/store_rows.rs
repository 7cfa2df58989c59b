use crate::bind::{Io, Kernel};
use crate::memory::{Need, Ptr};
use crate::parallel;
use crate::real::Real;
use sparta_graph::ops::IGNORED;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let ((kept, width), (n, _)) = (io.matrix(0)?, io.matrix(1)?);
    let (dst, src, places) = (io.floats::<T>(0)?, io.floats::<T>(1)?, io.words(2)?);
    let need = Need {
        shared: n.saturating_mul(size_of::<u32>()),
        per_thread: width.saturating_mul(if src.is_full() { 0 } else { size_of::<T>() }),
    };
    Ok(Kernel::new(need, move |scratch| {
        // SAFETY: the rows are u32 `[n]`, which the op does not write, and the scratch memory has as many numbers.
        let (places, sorted) = unsafe { (places.slice(0, n), scratch.shared::<u32>().slice_mut(0, n)) };
        check(places, sorted, kept)?;
        parallel::rows(n, width, |part| {
            let buffer: Ptr<T> = scratch.thread();
            for (i, &row) in part.clone().zip(&places[part]).filter(|(_, row)| **row != IGNORED) {
                // SAFETY: row i of src, and a row of dst that was checked, which no other i has.
                unsafe { dst.store(row as usize * width, width, src.read(i * width, width, buffer.at(0))) }
            }
        });
        Ok(())
    }))
}

/// Errors: a row that does not exist, or occurs twice.
fn check(places: &[u32], sorted: &mut [u32], kept: usize) -> Result<(), String> {
    let goes = |row: &u32| *row != IGNORED;
    if let Some((i, row)) = places.iter().enumerate().find(|(_, row)| goes(row) && **row as usize >= kept) {
        return Err(format!("rows[{i}] is {row}, but there are {kept} rows"));
    }
    sorted.copy_from_slice(places);
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1] && goes(&pair[0])) {
        Some(pair) => Err(format!("row {} is chosen twice", pair[0])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, error, rounded};
    use sparta_graph::DType;
    use sparta_graph::ops::{IGNORED, StoreRows};

    #[test]
    fn stores_rows_and_rounds_them() {
        let (kept, width, places) = (9, 5000, [8, IGNORED, 0, 3, IGNORED]);
        for (to, from) in [(DType::F32, DType::F32), (DType::BF16, DType::F32), (DType::BF16, DType::BF16)] {
            let (dst, src) = (Tensor::random(to, &[kept, width], 1), Tensor::random(from, &[places.len(), width], 2));
            let (mut expected, new) = (dst.values(), src.values());
            for (i, &row) in places.iter().enumerate().filter(|(_, row)| **row != IGNORED) {
                let round = |x: &f64| if to == DType::F32 { *x } else { rounded(to, *x) };
                let row = &mut expected[row as usize * width..][..width];
                row.iter_mut().zip(&new[i * width..]).for_each(|(old, new)| *old = round(new));
            }
            check(StoreRows {}, &[dst, src, Tensor::u32(&[places.len()], &places)], &[expected], 0.0);
        }
    }

    #[test]
    fn bad_rows_are_refused() {
        let (dst, src) = (Tensor::f32(&[4, 1], &[0.0; 4]), Tensor::f32(&[2, 1], &[1.0; 2]));
        let with = |rows: [u32; 2]| error(StoreRows {}, &[dst.clone(), src.clone(), Tensor::u32(&[2], &rows)]);
        assert!(with([0, 4]).contains("rows[1] is 4, but there are 4 rows"));
        assert!(with([3, 3]).contains("row 3 is chosen twice"));
    }
}
