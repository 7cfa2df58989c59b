//! Losses and gradient norms of a few steps on the CPU backend: a device that computes something else gets no figure.

use sparta_graph::DType;
use sparta_model::{Error, Result};
use std::collections::BTreeMap;

/// By [`key`]: loss and gradient norm of each step.
pub type Trajectories = BTreeMap<String, Vec<[f64; 2]>>;

const STORED: &str = include_str!("trajectories.json");

/// Relative differences of loss and norm that a different order of f32 sums may cause. The CPU backend and a software
/// GPU differ by at most 9e-7 and 1.2e-4.
const F32: [f64; 2] = [1e-4, 1e-3];
/// Tolerance of bf16, as a multiple of the distance that rounding to it causes on the CPU: two independent roundings
/// differ by sqrt(2) times as much on average, and either may be small by chance.
const ROUNDING: f64 = 4.0;
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
/// stored f32 up to the same step.
pub fn check(
    stored: &Trajectories,
    cell: &str,
    precision: DType,
    found: &[[f64; 2]],
) -> Option<std::result::Result<(), String>> {
    let exact = stored.get(&key(cell, DType::F32))?;
    let expected = stored.get(&key(cell, precision))?;
    let mut allowed = F32;
    if found.len() != expected.len() {
        return Some(Err(format!("{} steps were done, {} are stored", found.len(), expected.len())));
    }
    for (step, ((found, expected), exact)) in found.iter().zip(expected).zip(exact).enumerate() {
        for (i, quantity) in QUANTITIES.into_iter().enumerate() {
            if precision != DType::F32 {
                allowed[i] = allowed[i].max(ROUNDING * distance(expected[i], exact[i]));
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
