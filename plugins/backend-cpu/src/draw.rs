//! Dropout's draws.

/// The draws `x` below this are those with `x * 2^-32 < p`.
pub fn threshold(p: f32) -> u32 {
    (p as f64 * 2f64.powi(32)).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threshold_is_the_first_draw_that_stays() {
        for p in [0.0, 0.1, 0.25, 0.999_999_94] {
            let t = threshold(p);
            let stays = |x: u32| x as f64 * 2f64.powi(-32) >= p as f64;
            assert!(stays(t) && (t == 0 || !stays(t - 1)), "{p}");
        }
    }
}
