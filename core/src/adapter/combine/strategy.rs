//! Strategies that merge the changes of several adapters. w0 is the base weight and d_k the change by adapter k, 0
//! where it makes none; all formulas are per weight.

use crate::adapter::vector::Delta;
use crate::method::philox::Stream;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_plugin::method::Options;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Strategy {
    /// w0 + sum d_k: section 8 of the paper; task arithmetic with factor 1 (Ilharco et al. 2023, section 2).
    Sum,
    /// w0 + sum a_k d_k (Ilharco et al. 2023).
    Weighted { weights: Vec<f64> },
    /// Trim, elect sign, merge (Yadav et al. 2023, algorithm 1): each adapter keeps the largest `keep` of its changes;
    /// the sign with the larger total wins; w0 + the mean of the changes that have it. `weights` scale the d_k first.
    Ties { weights: Vec<f64>, keep: f64 },
    /// Drop and rescale (Yu et al. 2024, equations 2 to 4): each change is dropped with probability `drop`, the others
    /// are divided by 1 - drop; w0 + sum a_k of these. The draw depends on the seed alone.
    Dare { weights: Vec<f64>, drop: f64, seed: u64 },
    /// A soup, the mean of the models (Wortsman et al. 2022, section 2): w0 + sum a_k d_k / sum a_k.
    Soup { weights: Vec<f64> },
    /// Fisher-weighted averaging (Matena and Raffel 2022, equation 2): sum a_k F_k w_k / sum a_k F_k, with F_k the
    /// diagonal of the Fisher information of adapter k on `examples` of its dev split (their equation 3). The weighted
    /// mean where all F are 0.
    Fisher { weights: Vec<f64>, examples: usize },
}

impl Strategy {
    pub fn name(&self) -> &'static str {
        match self {
            Strategy::Sum => "sum",
            Strategy::Weighted { .. } => "weighted",
            Strategy::Ties { .. } => "ties",
            Strategy::Dare { .. } => "dare",
            Strategy::Soup { .. } => "soup",
            Strategy::Fisher { .. } => "fisher",
        }
    }

    /// Settings by name.
    pub fn options(&self) -> Options {
        let mut options = Options::new();
        if !self.weights().is_empty() {
            options.insert("weights".into(), self.weights().into());
        }
        match self {
            Strategy::Ties { keep, .. } => drop(options.insert("keep".into(), (*keep).into())),
            Strategy::Dare { drop: p, seed, .. } => {
                options.insert("drop".into(), (*p).into());
                options.insert("seed".into(), (*seed).into());
            }
            Strategy::Fisher { examples, .. } => drop(options.insert("examples".into(), (*examples).into())),
            Strategy::Sum | Strategy::Weighted { .. } | Strategy::Soup { .. } => {}
        }
        options
    }

    /// Whether the result is a mean of the models, so that heads of one task are averaged as well.
    pub fn averages(&self) -> bool {
        matches!(self, Strategy::Soup { .. } | Strategy::Fisher { .. })
    }

    fn weights(&self) -> &[f64] {
        match self {
            Strategy::Sum => &[],
            Strategy::Weighted { weights }
            | Strategy::Ties { weights, .. }
            | Strategy::Dare { weights, .. }
            | Strategy::Soup { weights }
            | Strategy::Fisher { weights, .. } => weights,
        }
    }

    /// Errors: settings that are out of range, or do not match the number of adapters.
    pub fn check(&self, adapters: usize) -> Result<()> {
        let refuse = |what: String| Err(Error::Usage(what));
        let weights = self.weights();
        if !matches!(self, Strategy::Sum) && weights.len() != adapters {
            return refuse(format!(
                "--weights: expected {adapters} numbers, one for each adapter, got {}",
                weights.len()
            ));
        }
        if let Some(bad) = weights.iter().find(|w| !w.is_finite()) {
            return refuse(format!("--weights: {bad} is not a finite number"));
        }
        if self.averages() && !(weights.iter().all(|&w| w >= 0.0) && weights.iter().sum::<f64>() > 0.0) {
            return refuse(format!("--weights: a mean needs weights of at least 0 and a sum above 0, got {weights:?}"));
        }
        match self {
            Strategy::Ties { keep, .. } if !(*keep > 0.0 && *keep <= 1.0) => {
                refuse(format!("--keep: expected a share in (0, 1], got {keep}"))
            }
            Strategy::Dare { drop, .. } if !(0.0..1.0).contains(drop) => {
                refuse(format!("--drop: expected a probability in [0, 1), got {drop}"))
            }
            Strategy::Fisher { examples: 0, .. } => refuse("--examples: expected at least 1".into()),
            _ => Ok(()),
        }
    }

    /// Trims or drops changes of each adapter on its own. `all` has one entry per parameter.
    pub fn prepare(&self, all: &mut [Option<Aligned>]) {
        match self {
            Strategy::Ties { keep, .. } => {
                let adapters = all.iter().flatten().map(|a| a.columns.len()).max().unwrap_or(0);
                (0..adapters).for_each(|k| trim(all, k, *keep));
            }
            Strategy::Dare { drop, seed, .. } => {
                for (position, aligned) in all.iter_mut().enumerate() {
                    if let Some(aligned) = aligned {
                        drop_and_rescale(aligned, position, *drop, *seed);
                    }
                }
            }
            _ => {}
        }
    }

    /// The combined change of one parameter. `fisher` has a slice per adapter for [`Strategy::Fisher`].
    pub fn combine(&self, aligned: &Aligned, fisher: &[&[f32]]) -> Vec<f32> {
        let columns = &aligned.columns;
        let weight = |k: usize| self.weights().get(k).copied().unwrap_or(1.0);
        let at = |k: usize, i: usize| f64::from(columns[k][i]);
        let sum = |i: usize| (0..columns.len()).map(|k| weight(k) * at(k, i)).sum::<f64>();
        let total: f64 = (0..columns.len()).map(weight).sum();
        let one = |i: usize| match self {
            Strategy::Sum | Strategy::Weighted { .. } | Strategy::Dare { .. } => sum(i),
            Strategy::Ties { .. } => elected_mean((0..columns.len()).map(|k| weight(k) * at(k, i))),
            Strategy::Soup { .. } => sum(i) / total,
            Strategy::Fisher { .. } => {
                let f = |k: usize| weight(k) * fisher.get(k).and_then(|f| f.get(i)).map_or(0.0, |&f| f64::from(f));
                let all: f64 = (0..columns.len()).map(f).sum();
                if all > 0.0 { (0..columns.len()).map(|k| f(k) * at(k, i)).sum::<f64>() / all } else { sum(i) / total }
            }
        };
        (0..aligned.len()).map(|i| one(i) as f32).collect()
    }
}

/// The mean of the values that have the sign of the sum.
fn elected_mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let sign: f64 = values.clone().sum();
    let (sum, count) = values.filter(|v| v * sign > 0.0).fold((0.0, 0), |(sum, n), v| (sum + v, n + 1));
    if count == 0 { 0.0 } else { sum / f64::from(count) }
}

/// Changes of one parameter by several adapters, at common positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Aligned {
    /// Flat positions, ascending; `None`: all of the parameter.
    pub indices: Option<Vec<u32>>,
    /// For each adapter a value per position, 0 where it changes nothing.
    pub columns: Vec<Vec<f32>>,
}

impl Aligned {
    /// The union of the positions; `None` where no adapter changes anything.
    pub fn new(deltas: &[Option<Delta>], numel: usize) -> Option<Aligned> {
        if deltas.iter().all(Option::is_none) {
            return None;
        }
        let dense = deltas.iter().flatten().any(|delta| matches!(delta, Delta::Dense(_)));
        let mut union: Vec<u32> = Vec::new();
        if !dense {
            for delta in deltas.iter().flatten() {
                if let Delta::Sparse { indices, .. } = delta {
                    union.extend(indices);
                }
            }
            union.sort_unstable();
            union.dedup();
        }
        let len = if dense { numel } else { union.len() };
        let column = |delta: &Option<Delta>| {
            let mut column = vec![0.0; len];
            if let Some(delta) = delta {
                for (k, &value) in delta.values().iter().enumerate() {
                    let place = match dense {
                        true => delta.position(k),
                        false => union.binary_search(&(delta.position(k) as u32)).unwrap_or(k),
                    };
                    column[place] = value;
                }
            }
            column
        };
        let columns = deltas.iter().map(column).collect();
        Some(Aligned { indices: (!dense).then_some(union), columns })
    }

    pub fn len(&self) -> usize {
        self.columns.first().map_or(0, Vec::len)
    }

    fn flat(&self, i: usize) -> u64 {
        self.indices.as_ref().and_then(|set| set.get(i)).map_or(i as u64, |&flat| u64::from(flat))
    }
}

/// Sets all but the largest `keep` of adapter k's changes to 0; changes as large as the smallest kept one stay, too.
fn trim(all: &mut [Option<Aligned>], k: usize, keep: f64) {
    let values = || all.iter().flatten().flat_map(|a| &a.columns[k]);
    let mut sizes: Vec<f32> = values().map(|v| v.abs()).filter(|v| *v > 0.0).collect();
    let kept = (keep * sizes.len() as f64).ceil() as usize;
    if kept == 0 || kept >= sizes.len() {
        return;
    }
    let (_, threshold, _) = sizes.select_nth_unstable_by(kept - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    for value in all.iter_mut().flatten().flat_map(|a| &mut a.columns[k]) {
        if value.abs() < threshold {
            *value = 0.0;
        }
    }
}

/// One draw for each adapter and weight, by the weight's flat position.
fn drop_and_rescale(aligned: &mut Aligned, position: usize, drop: f64, seed: u64) {
    let flats: Vec<u64> = (0..aligned.len()).map(|i| aligned.flat(i)).collect();
    let threshold = (drop * 4_294_967_296.0).ceil() as u64;
    for (k, column) in aligned.columns.iter_mut().enumerate() {
        let stream = Stream::new(seed, "dare", &format!("{k}/{position}"));
        for (value, flat) in column.iter_mut().zip(&flats) {
            let word = stream.block(flat / 4)[(flat % 4) as usize];
            *value = if u64::from(word) < threshold { 0.0 } else { (f64::from(*value) / (1.0 - drop)) as f32 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(indices: &[u32], values: &[f32]) -> Option<Delta> {
        Some(Delta::Sparse { indices: indices.to_vec(), values: values.to_vec() })
    }

    fn two() -> Aligned {
        Aligned::new(&[sparse(&[1, 4], &[1.0, -2.0]), sparse(&[0, 4], &[3.0, 0.5])], 8).unwrap()
    }

    #[test]
    fn positions_are_united() {
        let aligned = two();
        assert_eq!(aligned.indices.as_deref(), Some(&[0, 1, 4][..]));
        assert_eq!(aligned.columns, [[0.0, 1.0, -2.0], [3.0, 0.0, 0.5]]);
        let dense = Aligned::new(&[sparse(&[2], &[1.0]), Some(Delta::Dense(vec![1.0, 2.0, 3.0])), None], 3).unwrap();
        assert_eq!(dense.columns, [[0.0, 0.0, 1.0], [1.0, 2.0, 3.0], [0.0; 3]]);
        assert_eq!((dense.indices, Aligned::new(&[None, None], 3)), (None, None));
    }

    #[test]
    fn sums_and_means_by_hand() {
        assert_eq!(Strategy::Sum.combine(&two(), &[]), [3.0, 1.0, -1.5]);
        assert_eq!(Strategy::Weighted { weights: vec![0.5, 2.0] }.combine(&two(), &[]), [6.0, 0.5, 0.0]);
        assert_eq!(Strategy::Soup { weights: vec![3.0, 1.0] }.combine(&two(), &[]), [0.75, 0.75, -1.375]);
    }

    #[test]
    fn fisher_by_hand() {
        let strategy = Strategy::Fisher { weights: vec![1.0, 1.0], examples: 1 };
        // (1 * 0 + 3 * 3) / 4, (2 * 1 + 0 * 0) / 2, no information: the mean of -2 and 0.5.
        let combined = strategy.combine(&two(), &[&[1.0, 2.0, 0.0], &[3.0, 0.0, 0.0]]);
        assert_eq!(combined, [2.25, 1.0, -0.75]);
    }

    /// In the spirit of figure 1: redundant values go, signs are elected, and agreeing values are averaged.
    #[test]
    fn ties_by_hand() {
        let a = Some(Delta::Dense(vec![4.0, -3.0, 0.1, 2.0]));
        let b = Some(Delta::Dense(vec![2.0, 1.0, 5.0, -0.2]));
        let c = Some(Delta::Dense(vec![-1.0, -1.0, 0.3, 3.0]));
        let mut all = [Aligned::new(&[a, b, c], 4)];
        let strategy = Strategy::Ties { weights: vec![1.0; 3], keep: 0.5 };
        strategy.prepare(&mut all);
        let aligned = all[0].as_ref().unwrap();
        // c keeps 3 and both of its values of size 1.
        assert_eq!(aligned.columns, [[4.0, -3.0, 0.0, 0.0], [2.0, 0.0, 5.0, 0.0], [-1.0, -1.0, 0.0, 3.0]]);
        assert_eq!(strategy.combine(aligned, &[]), [3.0, -2.0, 5.0, 3.0]);
    }

    #[test]
    fn dare_keeps_the_mean_and_depends_only_on_position() {
        let n = 20_000;
        let column = |len: usize| Aligned { indices: None, columns: vec![vec![1.0; len]] };
        let strategy = Strategy::Dare { weights: vec![1.0], drop: 0.9, seed: 7 };
        let mut all = [Some(column(n))];
        strategy.prepare(&mut all);
        let dropped = all[0].as_ref().unwrap().columns[0].clone();
        assert!(dropped.iter().all(|&x| x == 0.0 || (x - 10.0).abs() < 1e-5));
        let mean = dropped.iter().sum::<f32>() / n as f32;
        assert!((mean - 1.0).abs() < 0.1, "{mean}");
        let mut sparse = [Some(Aligned { indices: Some((100..200).collect()), columns: vec![vec![1.0; 100]] })];
        strategy.prepare(&mut sparse);
        assert_eq!(sparse[0].as_ref().unwrap().columns[0], dropped[100..200]);
    }

    #[test]
    fn settings_are_checked() {
        let message = |strategy: Strategy| strategy.check(2).unwrap_err().to_string();
        assert!(message(Strategy::Weighted { weights: vec![1.0] }).contains("expected 2 numbers"));
        assert!(message(Strategy::Soup { weights: vec![0.0, 0.0] }).contains("sum above 0"));
        assert!(message(Strategy::Ties { weights: vec![1.0, 1.0], keep: 0.0 }).contains("--keep"));
        assert!(message(Strategy::Dare { weights: vec![1.0, 1.0], drop: 1.0, seed: 0 }).contains("--drop"));
        assert!(message(Strategy::Weighted { weights: vec![1.0, f64::NAN] }).contains("NaN"));
        assert!(Strategy::Sum.check(2).is_ok());
    }
}
