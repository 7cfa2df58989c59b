//! Random streams by purpose and tensor, and initial values drawn from them.

use sha2::{Digest, Sha256};
use sparta_graph::philox4x32_10;

/// The random words of one purpose for one tensor: word i is lane i mod 4 of Philox with
/// key = (low, high half of the seed) and counter = (low, high half of i / 4, low, high half of h), where h is the
/// first eight bytes, little-endian, of SHA-256("<purpose>:<tensor>").
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    name: [u32; 2],
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

impl Stream {
    pub fn new(seed: u64, purpose: &str, tensor: &str) -> Self {
        let hash = Sha256::digest(format!("{purpose}:{tensor}"));
        let name = hash.iter().take(8).rev().fold(0, |h, &byte| h << 8 | u64::from(byte));
        Stream { key: halves(seed), name: halves(name) }
    }

    /// Words 4 b to 4 b + 3.
    #[inline(always)]
    pub fn block(&self, b: u64) -> [u32; 4] {
        let [low, high] = halves(b);
        philox4x32_10([low, high, self.name[0], self.name[1]], self.key)
    }

    pub fn words(self) -> impl Iterator<Item = u32> {
        (0..).flat_map(move |b| self.block(b))
    }
}

/// `len` values uniform in (-bound, bound) for the initial values of a tensor: (2 (word + 0.5) / 2^32 - 1) bound.
pub fn uniform(seed: u64, tensor: &str, len: usize, bound: f64) -> Vec<f32> {
    let words = Stream::new(seed, "init", tensor).words().take(len);
    words.map(|word| ((2.0 * unit(word) - 1.0) * bound) as f32).collect()
}

/// `len` normal values with mean 0 for the initial values of a tensor. Box-Muller in f64 on pairs of words, the cosine
/// first, with libm's functions, so that every platform gets the same bits.
pub fn normal(seed: u64, tensor: &str, len: usize, std: f64) -> Vec<f32> {
    let blocks = len.div_ceil(4) as u64;
    let stream = Stream::new(seed, "init", tensor);
    let pairs = (0..blocks).map(|b| stream.block(b)).flat_map(|[a, b, c, d]| [(a, b), (c, d)]);
    let values = pairs.flat_map(|(a, b)| {
        let radius = std * libm::sqrt(-2.0 * libm::log(unit(a)));
        let angle = std::f64::consts::TAU * unit(b);
        [(radius * libm::cos(angle)) as f32, (radius * libm::sin(angle)) as f32]
    });
    values.take(len).collect()
}

/// The middle of the word's interval of (0, 1): never 0 or 1.
fn unit(word: u32) -> f64 {
    (f64::from(word) + 0.5) / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/kat_vectors` of Random123.
    #[test]
    fn streams_differ_by_seed_purpose_and_tensor() {
        let first = |seed, purpose, tensor| Stream::new(seed, purpose, tensor).block(0);
        let base = first(1, "init", "a");
        assert_eq!(base, first(1, "init", "a"));
        for other in
            [first(2, "init", "a"), first(1 | 1 << 32, "init", "a"), first(1, "index", "a"), first(1, "init", "b")]
        {
            assert_ne!(base, other);
        }
    }

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        (mean, values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn uniform_values_fill_their_interval() {
        let values = uniform(3, "w", 100_001, 0.25);
        assert_eq!(values.len(), 100_001);
        assert!(values.iter().all(|x| x.abs() <= 0.25));
        let (mean, variance) = moments(&values);
        // Five standard errors.
        assert!(mean.abs() < 0.0023, "{mean}");
        assert!((variance - 0.0625 / 3.0).abs() < 0.0003, "{variance}");
    }

    #[test]
    fn normal_values_have_their_moments() {
        let values = normal(3, "w", 100_001, 0.5);
        assert_eq!(values.len(), 100_001);
        let (mean, variance) = moments(&values);
        assert!(mean.abs() < 0.008, "{mean}");
        assert!((variance - 0.25).abs() < 0.006, "{variance}");
        let beyond_two = values.iter().filter(|x| x.abs() > 1.0).count() as f64 / 100_001.0;
        assert!((beyond_two - 0.0455).abs() < 0.0035, "{beyond_two}");
        assert_eq!(normal(3, "w", 7, 0.5), values[..7]);
    }
}
