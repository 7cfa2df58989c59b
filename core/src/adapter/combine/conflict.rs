use super::strategy::Aligned;
use crate::adapter::AppliedAdapter;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where two adapters change the same weights of the body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conflict {
    pub a: PathBuf,
    pub b: PathBuf,
    /// Weights that A, B and both change.
    pub changed_a: u64,
    pub changed_b: u64,
    pub both: u64,
    /// Those among `both` that A and B change in opposite directions.
    pub opposite: u64,
    /// Euclidean norm of A's changes, and of those at weights that B also changes; the same for B.
    pub norm_a: f64,
    pub norm_a_shared: f64,
    pub norm_b: f64,
    pub norm_b_shared: f64,
}

/// Compares each pair of adapters. A change of exactly 0 does not count.
pub fn conflicts(adapters: &[AppliedAdapter], all: &[Option<Aligned>]) -> Vec<Conflict> {
    let mut reports = Vec::new();
    for i in 0..adapters.len() {
        for j in i + 1..adapters.len() {
            let pairs = all.iter().flatten().flat_map(|aligned| aligned.columns[i].iter().zip(&aligned.columns[j]));
            let sums = Sums::of(pairs.map(|(&a, &b)| (a, b)));
            reports.push(sums.report(adapters[i].adapter.dir.clone(), adapters[j].adapter.dir.clone()));
        }
    }
    reports
}

#[derive(Default)]
struct Sums {
    counts: [u64; 4],
    squares: [f64; 4],
}

impl Sums {
    fn of(pairs: impl Iterator<Item = (f32, f32)>) -> Sums {
        let mut sums = Sums::default();
        for (a, b) in pairs {
            let both = a != 0.0 && b != 0.0;
            let flags = [a != 0.0, b != 0.0, both, both && (a > 0.0) != (b > 0.0)];
            sums.counts.iter_mut().zip(flags).for_each(|(count, flag)| *count += u64::from(flag));
            let (aa, bb) = (f64::from(a).powi(2), f64::from(b).powi(2));
            let squares = [aa, if both { aa } else { 0.0 }, bb, if both { bb } else { 0.0 }];
            sums.squares.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
        }
        sums
    }

    fn report(self, a: PathBuf, b: PathBuf) -> Conflict {
        let [changed_a, changed_b, both, opposite] = self.counts;
        let [norm_a, norm_a_shared, norm_b, norm_b_shared] = self.squares.map(f64::sqrt);
        Conflict { a, b, changed_a, changed_b, both, opposite, norm_a, norm_a_shared, norm_b, norm_b_shared }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_by_hand() {
        let pairs = [(3.0, 0.0), (4.0, -1.0), (0.0, 2.0), (1.0, 2.0), (0.0, 0.0)];
        let report = Sums::of(pairs.into_iter()).report("a".into(), "b".into());
        assert_eq!((report.changed_a, report.changed_b, report.both, report.opposite), (3, 3, 2, 1));
        assert_eq!((report.norm_a, report.norm_a_shared), (26f64.sqrt(), 17f64.sqrt()));
        assert_eq!((report.norm_b, report.norm_b_shared), (3.0, 5f64.sqrt()));
    }
}
