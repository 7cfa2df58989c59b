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
/// Tolerance of bf16, as a multiple of what rounding to it changes on the CPU: two devices round independently, so they
/// differ by sqrt(2) times as much on average, and in one of 10,000 comparisons by 5.7 times that (Student's t, for the
/// 12 forward passes whose rounding is known).
const ROUNDING: f64 = 8.1;
/// By how much more loss and norm may scatter in the third step than in the first. With the last bit of a random tenth
/// of the weights flipped, those of 15M, 110M and SmolLM2-135M scattered 1.15 and 1.44 times as much.
const GROWTH: [f64; 2] = [1.2, 1.5];
const QUANTITIES: [&str; 2] = ["loss", "gradient norm"];

/// The key under which a cell's trajectory is stored.
pub fn key(cell: &str, precision: DType) -> String {
    format!("{cell} {precision}")
}

pub fn stored() -> Result<Trajectories> {
    serde_json::from_str(STORED).map_err(|e| Error::Training(format!("the stored trajectories are damaged: {e}")))
}

/// Compares a trajectory with the stored one of its cell, within [`allowed`]. `None`: there is none.
pub fn check(
    stored: &Trajectories,
    cell: &str,
    precision: DType,
    found: &[[f64; 2]],
) -> Option<std::result::Result<(), String>> {
    let expected = stored.get(&key(cell, precision))?;
    let allowed = allowed(stored, precision)?;
    if found.len() != expected.len() {
        return Some(Err(format!("{} steps were done, {} are stored", found.len(), expected.len())));
    }
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (i, quantity) in QUANTITIES.into_iter().enumerate() {
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

/// The allowed relative differences of loss and norm: [`F32`], or [`ROUNDING`] and [`GROWTH`] times the root mean square
/// by which the stored first steps in `precision` differ from those in f32. All cells count, as one alone may be close
/// to f32 by chance. Later steps do not: updates that are too small to show in rounded weights keep bf16 away from f32,
/// but not from bf16 on another device. `None`: there is no such pair.
fn allowed(stored: &Trajectories, precision: DType) -> Option<[f64; 2]> {
    if precision == DType::F32 {
        return Some(F32);
    }
    let suffix = key("", precision);
    let first = |(found, rounded): (&String, &Steps)| {
        let exact = stored.get(&key(found.strip_suffix(&suffix)?, DType::F32))?;
        Some((*rounded.first()?, *exact.first()?))
    };
    let pairs: Vec<_> = stored.iter().filter_map(first).collect();
    let rms = |i: usize| {
        let squares = pairs.iter().map(|(rounded, exact)| distance(rounded[i], exact[i]).powi(2));
        (squares.sum::<f64>() / pairs.len() as f64).sqrt()
    };
    (!pairs.is_empty()).then(|| [0, 1].map(|i| F32[i].max(ROUNDING * GROWTH[i] * rms(i))))
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
            (key("cell", DType::BF16), vec![[1.01, 10.0], [0.7, 5.5]]),
            (key("near", DType::F32), vec![[1.0, 10.0]]),
            (key("near", DType::BF16), vec![[1.0, 10.0]]),
        ])
    }

    #[test]
    fn f32_is_held_to_f32_and_bf16_to_what_rounding_changes_in_first_steps() {
        let check = |precision, found: &[[f64; 2]]| check(&trajectories(), "cell", precision, found).unwrap();
        assert_eq!(check(DType::F32, &[[1.00005, 10.005], [0.5, 5.0]]), Ok(()));
        let wrong = check(DType::F32, &[[1.0, 10.0], [0.5, 5.1]]).unwrap_err();
        assert!(wrong.contains("gradient norm of step 2 is 5.1, expected 5 "), "{wrong}");
        // 8.1 and 1.2 times the root mean square of 1 % and 0; norms are not rounded here.
        assert_eq!(check(DType::BF16, &[[1.079, 10.005], [0.748, 5.5]]), Ok(()));
        assert!(check(DType::BF16, &[[1.08, 10.0], [0.7, 5.5]]).is_err());
        assert!(check(DType::BF16, &[[1.01, 10.0], [0.7, 5.51]]).is_err());
        assert!(check(DType::BF16, &[[1.01, 10.0], [0.5, 5.5]]).is_err(), "what f32 gives, which is further away");
    }

    /// A device that never updates repeats its first step. Gemma's rate in full fine-tuning is so low (the change grows
    /// with the number of trained scalars) that its rounded weights hardly move.
    #[test]
    fn a_device_that_does_not_train_gets_no_figure() {
        let stored = stored().unwrap();
        let idle = |(key, steps): (&String, &Steps)| {
            let (cell, precision) = key.rsplit_once(' ').unwrap();
            let precision = if precision == "f32" { DType::F32 } else { DType::BF16 };
            let passes = check(&stored, cell, precision, &vec![steps[0]; steps.len()]) == Some(Ok(()));
            passes.then(|| key.clone())
        };
        let passed: Vec<String> = stored.iter().filter_map(idle).collect();
        assert_eq!(passed, ["gemma-2b 16x256 full bf16"]);
    }

    /// Seen on an H100: 4.4e-3 from the stored loss of 0.4587.
    #[test]
    fn the_known_distance_of_a_card_is_allowed() {
        let stored = stored().unwrap();
        let mut found = stored[&key("110M 4x128 sparta-0.05", DType::BF16)].clone();
        found[2][0] = 0.4567;
        assert_eq!(check(&stored, "110M 4x128 sparta-0.05", DType::BF16, &found), Some(Ok(())));
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
