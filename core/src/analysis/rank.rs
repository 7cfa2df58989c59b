//! Numerical ranks of the differences between two models' weight matrices (appendix A of the paper).

use crate::model::TensorView;
use crate::weights::Weights;
use crate::{Error, Result};
use faer::{Mat, MatRef};
use serde::Serialize;
use sparta_graph::DType;
use std::ops::Range;
use std::path::PathBuf;

/// The type whose eps sets the tolerance. The rule is that of numpy.linalg.matrix_rank and torch.linalg.matrix_rank:
/// a singular value counts if it is above `sigma_max * max(rows, columns) * eps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// eps = 2^-23: both libraries compute in f32 or more, as neither decomposes f16 or bf16. The paper's Tables 7 and
    /// 8 use it, too: with bf16's eps every matrix with a side above 127 would have rank 0.
    F32,
    /// The eps of the coarser of the two stored types, that is the gap between 1 and the next number: f32 2^-23,
    /// f16 2^-10, bf16 2^-7.
    Stored,
}

impl Precision {
    fn eps(self, stored: DType) -> f64 {
        match (self, stored) {
            (Precision::Stored, DType::BF16) => 2f64.powi(-7),
            (Precision::Stored, DType::F16) => 2f64.powi(-10),
            _ => f64::from(f32::EPSILON),
        }
    }
}

/// The rank of one difference, `tuned - base`.
#[derive(Clone, Debug, Serialize)]
pub struct MatrixRank {
    pub name: String,
    /// Rows and columns as stored.
    pub shape: [usize; 2],
    /// The coarser of the two stored types.
    pub stored: DType,
    /// Elements that differ.
    pub nonzeros: u64,
    pub rank: usize,
    /// The shorter side minus the rank.
    pub deficiency: usize,
    /// Singular values up to this count as zero.
    pub tolerance: f64,
    /// Descending; their number is the shorter side.
    pub singular_values: Vec<f32>,
}

/// The ranks of all matrices that two models have in common.
#[derive(Clone, Debug, Serialize)]
pub struct RankReport {
    pub base: PathBuf,
    pub tuned: PathBuf,
    pub precision: Precision,
    /// Embedding, layers by kind, head.
    pub matrices: Vec<MatrixRank>,
    /// Matrices of only one of the models, such as a new head.
    pub unmatched: Vec<String>,
}

/// Compares two models, one matrix at a time. `progress(done, total, name)` is called before each matrix.
///
/// Errors: no matrix in common; a matrix whose two shapes differ; a weight that is not finite.
pub fn ranks(
    base: &Weights,
    tuned: &Weights,
    precision: Precision,
    mut progress: impl FnMut(usize, usize, &str),
) -> Result<RankReport> {
    let matrix = |weights: &Weights, name: &str| weights.get(name).is_some_and(|view| view.shape.len() == 2);
    let mut names: Vec<&str> = base.names().filter(|name| matrix(base, name) && matrix(tuned, name)).collect();
    names.sort_by_key(|name| super::rank_table::order(name));
    let alone = |a: &Weights, b: &Weights| -> Vec<String> {
        a.names().filter(|name| matrix(a, name) && b.get(name).is_none()).map(str::to_owned).collect()
    };
    let unmatched = [alone(base, tuned), alone(tuned, base)].concat();
    if names.is_empty() {
        let (a, b) = (base.dir().display(), tuned.dir().display());
        return Err(Error::Weights(format!("{a} and {b} have no matrix in common; expected two states of one model")));
    }
    let mut matrices = Vec::with_capacity(names.len());
    for (done, name) in names.iter().enumerate() {
        progress(done, names.len(), name);
        if let (Some(base), Some(tuned)) = (base.get(name), tuned.get(name)) {
            matrices.push(rank(name, base, tuned, precision)?);
        }
    }
    Ok(RankReport { base: base.dir().into(), tuned: tuned.dir().into(), precision, matrices, unmatched })
}

/// The rank of the difference of two `[rows, columns]` matrices.
///
/// Errors: different shapes; a weight that is not finite.
pub fn rank(name: &str, base: TensorView, tuned: TensorView, precision: Precision) -> Result<MatrixRank> {
    let ([rows, columns], true) = (<[usize; 2]>::try_from(base.shape).unwrap_or_default(), base.shape == tuned.shape)
    else {
        return Err(Error::Weights(format!(
            "{name} is {:?} in the base model and {:?} in the tuned one; expected two matrices of one shape",
            base.shape, tuned.shape
        )));
    };
    let stored = if base.dtype == DType::F32 { tuned.dtype } else { base.dtype };
    let stored = if tuned.dtype == DType::BF16 { DType::BF16 } else { stored };
    let mut difference = Difference { name, base, tuned, rows, columns, nonzeros: 0 };
    let singular_values = difference.singular_values()?;
    let largest = singular_values.first().copied().unwrap_or(0.0);
    let tolerance = f64::from(largest) * rows.max(columns) as f64 * precision.eps(stored);
    let rank = singular_values.iter().filter(|&&sigma| f64::from(sigma) > tolerance).count();
    Ok(MatrixRank {
        name: name.to_owned(),
        shape: [rows, columns],
        stored,
        nonzeros: difference.nonzeros,
        rank,
        deficiency: rows.min(columns) - rank,
        tolerance,
        singular_values,
    })
}

/// Rows of a block per column: large enough that the triangle carried along adds only a quarter to the work.
const BLOCK: usize = 4;

/// The difference of two matrices, computed block by block. The blocks are rows of the matrix or, if that is taller, of
/// its transpose.
struct Difference<'a> {
    name: &'a str,
    base: TensorView<'a>,
    tuned: TensorView<'a>,
    rows: usize,
    columns: usize,
    nonzeros: u64,
}

impl Difference<'_> {
    /// The singular values, descending. A tall matrix is first reduced, block by block, to the triangle R of its QR
    /// decomposition, which has the same singular values: R of [R of the blocks so far; next block].
    fn singular_values(&mut self) -> Result<Vec<f32>> {
        let (long, short) = (self.rows.max(self.columns), self.rows.min(self.columns));
        if short == 0 || (self.base.dtype == self.tuned.dtype && self.base.bytes() == self.tuned.bytes()) {
            return Ok(vec![0.0; short]);
        }
        let mut end = long.min(BLOCK * short);
        let mut stack = self.block(0..end)?;
        while end < long {
            let next = self.block(end..long.min(end + BLOCK * short))?;
            end += next.nrows();
            let triangle = stack.qr().thin_R().to_owned();
            stack = faer::concat![[triangle], [next]];
        }
        stack.singular_values().map_err(|_| {
            Error::Weights(format!("{}: the singular values of the difference do not converge", self.name))
        })
    }

    fn block(&mut self, range: Range<usize>) -> Result<Mat<f32>> {
        let (rows, columns) = (self.rows, self.columns);
        if rows >= columns {
            let values = self.values(range.start * columns..range.end * columns)?;
            return Ok(MatRef::from_row_major_slice(&values, range.len(), columns).to_owned());
        }
        let mut values = Vec::with_capacity(range.len() * rows);
        for row in 0..rows {
            values.extend(self.values(row * columns + range.start..row * columns + range.end)?);
        }
        Ok(MatRef::from_column_major_slice(&values, range.len(), rows).to_owned())
    }

    /// A run of the difference in row-major order.
    fn values(&mut self, range: Range<usize>) -> Result<Vec<f32>> {
        let part = |view: &TensorView| {
            view.part_f32(range.clone()).ok_or_else(|| {
                Error::Weights(format!("{}: expected a float tensor of shape {:?}", self.name, view.shape))
            })
        };
        let (mut values, base) = (part(&self.tuned)?, part(&self.base)?);
        values.iter_mut().zip(base).for_each(|(tuned, base)| *tuned -= base);
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let (row, column) = ((range.start + at) / self.columns, (range.start + at) % self.columns);
            return Err(Error::Weights(format!(
                "{}[{row}, {column}]: tuned - base is not finite; one of the models is damaged",
                self.name
            )));
        }
        self.nonzeros += values.iter().filter(|&&x| x != 0.0).count() as u64;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::from_f32;

    /// Small whole numbers, so that sums and products are exact in every type.
    fn integers(rows: usize, columns: usize, seed: u32) -> Vec<f32> {
        let word = |i: usize| sparta_graph::philox4x32_10([i as u32, 0, 0, 0], [seed, 0])[0];
        (0..rows * columns).map(|i| (word(i) % 5) as f32 - 2.0).collect()
    }

    /// The product of `[rows, rank]` and `[rank, columns]`, which has this rank except by bad luck, which the test
    /// would show.
    fn product(rows: usize, columns: usize, rank: usize) -> Vec<f32> {
        let (a, b) = (integers(rows, rank, 8), integers(rank, columns, 9));
        let element = |i: usize, j: usize| (0..rank).map(|k| a[i * rank + k] * b[k * columns + j]).sum();
        (0..rows * columns).map(|at| element(at / columns, at % columns)).collect()
    }

    fn difference(shape: [usize; 2], dtype: DType, delta: &[f32], precision: Precision) -> Result<MatrixRank> {
        let base = integers(shape[0], shape[1], 3);
        let tuned: Vec<f32> = base.iter().zip(delta).map(|(w, d)| w + d).collect();
        let (base, tuned) = (from_f32(dtype, &base).unwrap(), from_f32(dtype, &tuned).unwrap());
        let view = |bytes| TensorView::new(dtype, &shape, bytes);
        rank("w", view(&base), view(&tuned), precision)
    }

    #[test]
    fn known_ranks_in_every_type_and_shape() {
        // Square, less than one block, several blocks with a ragged last one, and the transposes.
        for shape in [[24, 24], [40, 24], [24, 40], [333, 24], [24, 333], [1, 7], [7, 1]] {
            let most = shape[0].min(shape[1]);
            for known in [1, 5, 23, 24].into_iter().filter(|&known| known <= most) {
                for dtype in [DType::F32, DType::BF16, DType::F16] {
                    let delta = product(shape[0], shape[1], known);
                    let found = difference(shape, dtype, &delta, Precision::F32).unwrap();
                    assert_eq!((found.rank, found.deficiency), (known, most - known), "{shape:?} {dtype}");
                    assert_eq!(found.singular_values.len(), most);
                    assert_eq!(found.nonzeros, delta.iter().filter(|&&d| d != 0.0).count() as u64);
                }
            }
        }
    }

    #[test]
    fn singular_values_of_a_diagonal() {
        let mut delta = vec![0.0; 8 * 4];
        for (i, value) in [2.0, 64.0, 0.0, 16.0].into_iter().enumerate() {
            delta[i * 4 + i] = value;
        }
        let found = difference([8, 4], DType::F32, &delta, Precision::F32).unwrap();
        assert_eq!(found.rank, 3);
        for (sigma, expected) in found.singular_values.iter().zip([64.0, 16.0, 2.0, 0.0]) {
            assert!((sigma - expected).abs() < 1e-4, "{:?}", found.singular_values);
        }
        assert!((found.tolerance - 64.0 * 8.0 * 2f64.powi(-23)).abs() < 1e-9, "{}", found.tolerance);
    }

    /// 64 * 8 * 2^-7 = 4 and 64 * 8 * 2^-10 = 0.5: bf16's eps counts two singular values, f16's three.
    #[test]
    fn the_stored_type_sets_the_tolerance_when_asked() {
        let mut delta = vec![0.0; 8 * 4];
        for (i, value) in [2.0, 64.0, 0.0, 16.0].into_iter().enumerate() {
            delta[i * 4 + i] = value;
        }
        let rank = |dtype, precision| difference([8, 4], dtype, &delta, precision).unwrap().rank;
        assert_eq!([DType::F32, DType::F16, DType::BF16].map(|dtype| rank(dtype, Precision::Stored)), [3, 3, 2]);
        assert_eq!(rank(DType::BF16, Precision::F32), 3);
    }

    #[test]
    fn equal_matrices_have_rank_0() {
        let found = difference([6, 4], DType::F32, &[0.0; 24], Precision::F32).unwrap();
        assert_eq!((found.rank, found.deficiency, found.nonzeros), (0, 4, 0));
        assert_eq!(found.singular_values, [0.0; 4]);
    }

    #[test]
    fn weights_that_are_not_finite_are_named() {
        let mut delta = vec![1.0; 24];
        delta[9] = f32::NAN;
        let message = difference([6, 4], DType::F32, &delta, Precision::F32).unwrap_err().to_string();
        assert!(message.contains("w[2, 1]"), "{message}");
    }

    #[test]
    #[ignore = "measures: 16384 x 2048 takes 3 s on two cores"]
    fn speed() {
        let shape = [16_384, 2048];
        let delta: Vec<f32> = integers(shape[0], shape[1], 5).iter().map(|x| x * 0.37).collect();
        let start = std::time::Instant::now();
        let found = difference(shape, DType::F32, &delta, Precision::F32).unwrap();
        println!("rank {} of {shape:?} in {:?}", found.rank, start.elapsed());
    }
}
