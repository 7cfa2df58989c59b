//! Losses and gradient norms of a few steps on the CPU backend: a device that computes something else gets no figure.

use sparta_graph::DType;
use sparta_model::{Error, Result};
use std::collections::BTreeMap;

/// Loss and gradient norm of each step.
type Steps = Vec<[f64; 2]>;
/// By [`key`].
pub type Trajectories = BTreeMap<String, Steps>;

const STORED: &str = include_str!("trajectories.json");

/// Relative differences of loss and norm that a different order of f32 sums may cause. The CPU backend and a software
/// GPU differ by at most 9e-7 and 1.2e-4.
const F32: [f64; 2] = [1e-4, 1e-3];
/// Tolerance of bf16, as a multiple of the distance that rounding to it causes on the CPU: two independent roundings
/// differ by sqrt(2) times as much on average.
const ROUNDING: f64 = 4.0;
/// What the names of SpaRTA's cells have before the density.
const SPARTA: &str = " sparta-";
const QUANTITIES: [&str; 2] = ["loss", "gradient norm"];

/// The key under which a cell's trajectory is stored.
pub fn key(cell: &str, precision: DType) -> String {
    format!("{cell} {precision}")
}

pub fn stored() -> Result<Trajectories> {
    serde_json::from_str(STORED).map_err(|e| Error::Training(format!("the stored trajectories are damaged: {e}")))
}

/// Compares a trajectory with the stored ones of its cell. `None`: there is none.
///
/// f32 is compared with f32; bf16 with bf16, within [`ROUNDING`] times the largest distance of the stored bf16 from the
/// stored f32 up to the same step, in this cell or its [`kin`].
pub fn check(
    stored: &Trajectories,
    cell: &str,
    precision: DType,
    found: &[[f64; 2]],
) -> Option<std::result::Result<(), String>> {
    stored.get(&key(cell, DType::F32))?;
    let expected = stored.get(&key(cell, precision))?;
    let kin = kin(stored, cell, precision);
    let mut allowed = F32;
    if found.len() != expected.len() {
        return Some(Err(format!("{} steps were done, {} are stored", found.len(), expected.len())));
    }
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (i, quantity) in QUANTITIES.into_iter().enumerate() {
            for (rounded, exact) in &kin {
                let distance = rounded.get(step).zip(exact.get(step)).map_or(0.0, |(a, b)| distance(a[i], b[i]));
                allowed[i] = allowed[i].max(ROUNDING * distance);
            }
            // False for NaN.
            let agrees = distance(found[i], expected[i]) <= allowed[i];
            if !agrees {
                return Some(Err(format!(
                    "wrong results: the {quantity} of step {} is {}, expected {} within {:.1e}",
                    step + 1,
                    found[i],
                    expected[i],
                    allowed[i]
                )));
            }
        }
    }
    Some(Ok(()))
}

/// The stored steps, in `precision` and in f32, of the cells whose rounding is as large as this one's: SpaRTA's, at any
/// density of the same shape. A single cell's distance may be small by chance. On an H100, 110M at 5 % was 4.9e-3 away
/// from f32 at the third step, where the CPU is 5.0e-4 away, and 4.4e-3 at 0.5 %.
fn kin<'a>(stored: &'a Trajectories, cell: &str, precision: DType) -> Vec<(&'a Steps, &'a Steps)> {
    let common = cell.find(SPARTA).map(|at| &cell[..at + SPARTA.len()]);
    let suffix = key("", precision);
    let related = stored.iter().filter_map(|(found, rounded)| {
        let found = found.strip_suffix(&suffix)?;
        let kin = found == cell || common.is_some_and(|common| found.starts_with(common));
        Some((rounded, stored.get(&key(found, DType::F32)).filter(|_| kin)?))
    });
    related.collect()
}

fn distance(a: f64, b: f64) -> f64 {
    (a - b).abs() / b.abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trajectories() -> Trajectories {
        BTreeMap::from([
            (key("cell", DType::F32), vec![[1.0, 10.0], [0.5, 5.0]]),
            (key("cell", DType::BF16), vec![[1.01, 10.0], [0.5, 5.1]]),
        ])
    }

    #[test]
    fn f32_is_held_to_f32_and_bf16_to_its_rounding() {
        let check = |precision, found: &[[f64; 2]]| check(&trajectories(), "cell", precision, found).unwrap();
        assert_eq!(check(DType::F32, &[[1.00005, 10.005], [0.5, 5.0]]), Ok(()));
        let wrong = check(DType::F32, &[[1.0, 10.0], [0.5, 5.1]]).unwrap_err();
        assert!(wrong.contains("gradient norm of step 2 is 5.1, expected 5 "), "{wrong}");
        assert_eq!(check(DType::BF16, &[[1.04, 10.0], [0.509, 5.4]]), Ok(()));
        assert!(check(DType::BF16, &[[1.01, 10.3], [0.5, 5.1]]).is_err(), "rounding comes to the norm in step 2");
        assert!(check(DType::BF16, &[[1.06, 10.0], [0.5, 5.1]]).is_err());
    }

    #[test]
    fn the_rounding_of_one_density_counts_for_the_others_of_the_shape() {
        let cell = |name, precision, loss| (key(name, precision), vec![[loss, 1.0]]);
        let stored = BTreeMap::from([
            cell("A sparta-0.5", DType::F32, 1.0),
            cell("A sparta-0.5", DType::BF16, 1.0),
            cell("A sparta-0.1", DType::F32, 1.0),
            cell("A sparta-0.1", DType::BF16, 1.01),
            cell("A lora", DType::F32, 1.0),
            cell("A lora", DType::BF16, 1.5),
            cell("A lora-all", DType::F32, 1.0),
            cell("A lora-all", DType::BF16, 1.0),
        ]);
        let check = |cell, loss| check(&stored, cell, DType::BF16, &[[loss, 1.0]]).unwrap();
        assert_eq!(check("A sparta-0.5", 1.039), Ok(()));
        assert!(check("A sparta-0.5", 1.041).is_err(), "not lora's");
        assert!(check("A lora-all", 1.001).is_err(), "its own rounding only");
        assert!(check("A lora", 1.6).is_ok());
    }

    #[test]
    fn values_that_are_nan_or_too_few_are_wrong_and_unstored_steps_are_not_judged() {
        let stored = trajectories();
        assert!(check(&stored, "cell", DType::F32, &[[1.0, f64::NAN], [0.5, 5.0]]).unwrap().is_err());
        assert!(check(&stored, "cell", DType::F32, &[[1.0, 10.0]]).unwrap().is_err());
        assert_eq!(check(&stored, "other", DType::F32, &[]), None);
    }

    #[test]
    fn the_stored_ones_are_whole() {
        for (key, steps) in stored().unwrap() {
            assert!(!steps.is_empty() && steps.iter().flatten().all(|x| x.is_finite() && *x > 0.0), "{key}");
        }
    }
}
