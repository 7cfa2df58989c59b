use crate::bind::{Io, Kernel, element};
use crate::memory::{Need, Ptr};
use crate::parallel;
use crate::real::Real;
use sparta_graph::ops::ScatterRows;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let ((rows, columns), (x, _), chosen) = (io.matrix(0)?, io.bytes(0)?, io.words(1)?);
    let ((y, _), n) = (io.output_bytes(0)?, io.numel(1)?);
    let width = columns * element::<T>(io.ty(0)?.dtype);
    Ok(Kernel::new(Need::default(), move |_| {
        check(chosen, n, rows)?;
        parallel::rows(n, columns, |part| {
            for i in part {
                // SAFETY: a row of x that was checked, and row i of y, as bytes.
                unsafe {
                    let row = *chosen.at(i) as usize;
                    y.slice_mut(i * width, width).copy_from_slice(x.slice(row * width, width));
                }
            }
        });
        Ok(())
    }))
}

pub fn prepare_scatter<T: Real>(op: &ScatterRows, io: &Io) -> Result<Kernel, String> {
    const EMPTY: u32 = u32::MAX;
    let ((n, columns), (x, _), chosen) = (io.matrix(0)?, io.bytes(0)?, io.words(1)?);
    let ((y, _), rows) = (io.output_bytes(0)?, op.rows);
    let width = columns * element::<T>(io.ty(0)?.dtype);
    let need = Need { shared: rows.saturating_mul(size_of::<u32>()), per_thread: 0 };
    Ok(Kernel::new(need, move |scratch| {
        check(chosen, n, rows)?;
        // SAFETY: the scratch memory has one number per row, which only this call uses.
        let source = unsafe { scratch.shared::<u32>().slice_mut(0, rows) };
        source.fill(EMPTY);
        // SAFETY: the rows are u32 `[n]`, and were checked.
        for (i, &row) in unsafe { chosen.slice(0, n) }.iter().enumerate() {
            if source[row as usize] != EMPTY {
                return Err(format!("row {row} is chosen twice"));
            }
            source[row as usize] = i as u32;
        }
        let source = &*source;
        parallel::rows(rows, columns, |part| {
            for row in part {
                // SAFETY: row `row` of y, and a row of x below n, as bytes.
                unsafe {
                    let y = y.slice_mut(row * width, width);
                    match source[row] {
                        // Zero in every float type.
                        EMPTY => y.fill(0),
                        i => y.copy_from_slice(x.slice(i as usize * width, width)),
                    }
                }
            }
        });
        Ok(())
    }))
}

fn check(chosen: Ptr<u32>, n: usize, rows: usize) -> Result<(), String> {
    // SAFETY: the rows are u32 `[n]`, which the ops do not write.
    match unsafe { chosen.slice(0, n) }.iter().enumerate().find(|(_, row)| **row as usize >= rows) {
        Some((i, row)) => Err(format!("rows[{i}] is {row}, but there are {rows} rows")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16, error};
    use sparta_graph::DType;
    use sparta_graph::ops::SelectRows;

    #[test]
    fn selects_and_scatters_rows() {
        let (rows, width, chosen) = (9, 5000, [8, 0, 3]);
        let ids = Tensor::u32(&[3], &chosen);
        let x = Tensor::random(DType::F32, &[rows, width], 1);
        let selected: Vec<f64> =
            chosen.iter().flat_map(|&r| x.values()[r as usize * width..][..width].to_vec()).collect();
        check(SelectRows {}, &[x.clone(), ids.clone()], std::slice::from_ref(&selected), 0.0);
        check_bf16(SelectRows {}, &[x, ids.clone()], &[0], 0.0);
        let mut scattered = vec![0.0; rows * width];
        for (i, &r) in chosen.iter().enumerate() {
            scattered[r as usize * width..][..width].copy_from_slice(&selected[i * width..][..width]);
        }
        let inputs = [Tensor::f32(&[3, width], &selected), ids];
        check(ScatterRows { rows }, &inputs, &[scattered], 0.0);
        check_bf16(ScatterRows { rows }, &inputs, &[0], 0.0);
    }

    #[test]
    fn bad_rows_are_refused() {
        let x = Tensor::f32(&[2, 1], &[1.0; 2]);
        assert!(error(SelectRows {}, &[x.clone(), Tensor::u32(&[1], &[2])]).contains("rows[0] is 2"));
        assert!(error(ScatterRows { rows: 4 }, &[x, Tensor::u32(&[2], &[3, 3])]).contains("row 3 is chosen twice"));
    }
}
