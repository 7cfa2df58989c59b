//! The learning rate over the steps of a run.

use serde::{Deserialize, Serialize};

/// How the learning rate changes after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    /// Linear to 0 after the warm-up.
    Linear,
    /// Half a cosine to 0 after the warm-up.
    Cosine,
}

/// The learning rate of optimizer step `step` (0-based) of `total`: a linear rise over `warmup` of the steps (the first
/// step has `base / warm`, as in transformers' schedules shifted by one so that no step has rate 0), then the schedule.
pub fn learning_rate(schedule: Schedule, base: f64, warmup: f64, step: usize, total: usize) -> f64 {
    let warm = if warmup > 0.0 { ((warmup * total as f64) as usize).max(1) } else { 0 };
    if step < warm {
        return base * (step + 1) as f64 / warm as f64;
    }
    let rest = total.saturating_sub(warm).max(1) as f64;
    let left = ((total as f64 - step as f64) / rest).clamp(0.0, 1.0);
    match schedule {
        Schedule::Constant => base,
        Schedule::Linear => base * left,
        Schedule::Cosine => base * 0.5 * (1.0 - (std::f64::consts::PI * left).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_is_the_recipe_of_the_reference() {
        // lr(s) = (s + 1) / warm below warm, else (steps - s) / (steps - warm).
        let at = |step| learning_rate(Schedule::Linear, 1.0, 0.06, step, 100);
        assert_eq!(at(0), 1.0 / 6.0);
        assert_eq!(at(5), 1.0);
        assert_eq!(at(6), 1.0);
        assert_eq!(at(53), 47.0 / 94.0);
        assert_eq!(at(99), 1.0 / 94.0);
    }

    #[test]
    fn the_others_begin_at_the_base_rate() {
        assert_eq!(learning_rate(Schedule::Constant, 0.5, 0.0, 7, 10), 0.5);
        assert_eq!(learning_rate(Schedule::Cosine, 0.5, 0.0, 0, 10), 0.5);
        assert!((learning_rate(Schedule::Cosine, 1.0, 0.0, 5, 10) - 0.5).abs() < 1e-12);
    }
}
