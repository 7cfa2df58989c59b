//! From logits to the next token.

use crate::method::philox::Stream;
use std::cmp::Ordering;

/// The settings of sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the most probable token.
    pub temperature: f64,
    /// Only this many of the most probable tokens.
    pub top_k: Option<usize>,
    /// Only the smallest set of most probable tokens whose probabilities add up to this.
    pub top_p: f64,
    pub seed: u64,
}

/// Draws the tokens of one text.
pub struct Sampler<'s> {
    sampling: &'s Sampling,
    random: Stream,
    drawn: u64,
}

impl<'s> Sampler<'s> {
    /// The sampler of the text with this number; each text has its own random numbers.
    pub fn new(sampling: &'s Sampling, text: u64) -> Sampler<'s> {
        Sampler { sampling, random: Stream::new(sampling.seed, "generate", &text.to_string()), drawn: 0 }
    }

    /// Draws the next token from `logits`, which are finite and not empty.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        if self.sampling.temperature == 0.0 {
            return most_probable(logits);
        }
        let candidates = candidates(self.sampling, logits);
        let [high, low, ..] = self.random.block(self.drawn);
        self.drawn += 1;
        // 53 bits, as many as an f64 holds.
        let unit = (u64::from(high) << 21 | u64::from(low) >> 11) as f64 / (1u64 << 53) as f64;
        let mut rest = unit * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
        let drawn = candidates.iter().find(|(_, weight)| {
            rest -= weight;
            rest < 0.0
        });
        drawn.or(candidates.last()).map_or(0, |(token, _)| *token)
    }
}

/// The token with the largest logit, the first among equals; 0 if there are none.
pub fn most_probable(logits: &[f32]) -> u32 {
    (0..logits.len() as u32).min_by(|&a, &b| by_logit(logits, a, b)).unwrap_or(0)
}

/// Orders the more probable token first; among equals, the smaller id.
fn by_logit(logits: &[f32], a: u32, b: u32) -> Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// The tokens that may be drawn, with weights proportional to their probabilities.
fn candidates(sampling: &Sampling, logits: &[f32]) -> Vec<(u32, f64)> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    let most = sampling.top_k.unwrap_or(tokens.len()).clamp(1, tokens.len().max(1));
    if most < tokens.len() {
        tokens.select_nth_unstable_by(most, |&a, &b| by_logit(logits, a, b));
        tokens.truncate(most);
    }
    let cut = sampling.top_p < 1.0;
    if cut || most < logits.len() {
        tokens.sort_unstable_by(|&a, &b| by_logit(logits, a, b));
    }
    let largest = tokens.iter().map(|&t| logits[t as usize]).fold(f32::NEG_INFINITY, f32::max);
    let weight = |token: u32| (f64::from(logits[token as usize] - largest) / sampling.temperature).exp();
    let mut weighted: Vec<(u32, f64)> = tokens.into_iter().map(|token| (token, weight(token))).collect();
    if cut {
        let enough = sampling.top_p * weighted.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut sum = 0.0;
        let before = weighted.iter().take_while(|(_, weight)| {
            sum += weight;
            sum < enough
        });
        let kept = before.count() + 1;
        weighted.truncate(kept);
    }
    weighted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.5, 0.25, 0.15, 0.1 at temperature 1, in a different order.
    fn logits() -> Vec<f32> {
        [0.15f32, 0.5, 0.1, 0.25].map(f32::ln).to_vec()
    }

    fn sampling(temperature: f64, top_k: Option<usize>, top_p: f64) -> Sampling {
        Sampling { temperature, top_k, top_p, seed: 7 }
    }

    fn shares(sampling: &Sampling) -> [f64; 4] {
        let mut sampler = Sampler::new(sampling, 0);
        let mut shares = [0.0; 4];
        for _ in 0..20_000 {
            shares[sampler.choose(&logits()) as usize] += 1.0 / 20_000.0;
        }
        shares
    }

    /// The standard deviation of a share of 20,000 draws is at most 0.0036; seeds are fixed.
    fn close(got: [f64; 4], expected: [f64; 4]) {
        assert!(got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 0.015 && (e > 0.0 || *g == 0.0)), "{got:?}");
    }

    #[test]
    fn tokens_are_drawn_by_their_probabilities() {
        close(shares(&sampling(1.0, None, 1.0)), [0.15, 0.5, 0.1, 0.25]);
        // Squares of the probabilities, divided by their sum 0.345.
        close(shares(&sampling(0.5, None, 1.0)), [0.0225, 0.25, 0.01, 0.0625].map(|p| p / 0.345));
        close(shares(&sampling(1.0, Some(2), 1.0)), [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        close(shares(&sampling(1.0, Some(1), 1.0)), [0.0, 1.0, 0.0, 0.0]);
        close(shares(&sampling(1.0, Some(9), 1.0)), [0.15, 0.5, 0.1, 0.25]);
        // 0.5 + 0.25 is less than 0.8: the third comes in.
        close(shares(&sampling(1.0, None, 0.8)), [0.15, 0.5, 0.0, 0.25].map(|p| p / 0.9));
        close(shares(&sampling(1.0, None, 0.3)), [0.0, 1.0, 0.0, 0.0]);
        close(shares(&sampling(1.0, Some(2), 0.7)), [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
    }

    #[test]
    fn without_temperature_the_first_of_the_largest_is_taken() {
        let greedy = sampling(0.0, None, 1.0);
        assert_eq!(Sampler::new(&greedy, 0).choose(&logits()), 1);
        assert_eq!(Sampler::new(&greedy, 0).choose(&[1.0, 3.0, 3.0, -1.0]), 1);
    }

    #[test]
    fn a_seed_and_a_text_repeat_their_draws() {
        let draws = |seed, text| {
            let sampling = Sampling { seed, ..sampling(1.0, None, 1.0) };
            let mut sampler = Sampler::new(&sampling, text);
            (0..50).map(|_| sampler.choose(&logits())).collect::<Vec<_>>()
        };
        assert_eq!(draws(1, 0), draws(1, 0));
        assert_ne!(draws(1, 0), draws(2, 0));
        assert_ne!(draws(1, 0), draws(1, 1));
    }
}
