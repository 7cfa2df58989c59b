//! Generates text token by token, with the keys and values of earlier tokens cached on the device.

use crate::Error;
use crate::Result;
use crate::batch::ROW_MULTIPLE;
use crate::graphs::{Purpose, StepNumbers, names, results};
use crate::session::Session;
use crate::setup::SessionLimits;
use sparta_graph::ops::{IGNORED, step as step_input};

impl Session {
    /// Reads the tokens that follow `past` cached ones, and caches their keys and values. Returns
    /// the vocabulary logits after the last token.
    ///
    /// Errors: no tokens, or more than [`SessionLimits::cache`] can hold; a device that fails.
    pub fn decode(&mut self, tokens: &[u32], past: usize) -> Result<Vec<f32>> {
        let cache = self.setup().limits.cache.unwrap_or(0);
        if tokens.is_empty() || past + tokens.len() > cache {
            let count = tokens.len();
            return Err(Error::Training(format!("{count} tokens after {past} do not fit in a cache of {cache}")));
        }
        let mut begin = past;
        for chunk in tokens.chunks(SessionLimits::DECODED) {
            let plan = self.prepared(Purpose::Decode { rows: rows_for(chunk.len()), cache })?;
            self.queue_decoding(chunk, begin)?;
            self.tensors().queue_run(plan);
            begin += chunk.len();
        }
        let vocabulary = self.setup().decoder.vocab_size;
        let ([canary, logits], len) = results::of_decoding(vocabulary);
        let mut values = self.tensors().read_f32(names::RESULTS, len)?;
        let numbers = numbers((tokens.len() - 1) / SessionLimits::DECODED * SessionLimits::DECODED + past);
        self.check_canary(&numbers, &values[canary..canary + step_input::LEN])?;
        values.truncate(logits + vocabulary);
        Ok(values.split_off(logits))
    }

    fn queue_decoding(&mut self, chunk: &[u32], begin: usize) -> Result<()> {
        let (n, rows) = (chunk.len(), rows_for(chunk.len()));
        let filled = |real: &mut dyn Iterator<Item = u32>, filling: u32| -> Vec<u32> {
            real.chain(std::iter::repeat(filling)).take(rows).collect()
        };
        let places = || begin as u32..(begin + n) as u32;
        let mut seen: Vec<u32> = places().flat_map(|row| [0, row + 1]).collect();
        seen.resize(2 * rows, 0);
        let tensors = self.tensors();
        tensors.queue_write(names::STEP, &numbers(begin))?;
        tensors.queue_write(names::TOKENS, &filled(&mut chunk.iter().copied(), 0))?;
        tensors.queue_write(names::SPANS, &[0, rows as u32].repeat(rows))?;
        tensors.queue_write(names::POSITIONS, &filled(&mut places(), 0))?;
        tensors.queue_write(names::CACHE_ROWS, &filled(&mut places(), IGNORED))?;
        tensors.queue_write(names::SEEN, &seen)?;
        tensors.queue_write(names::ROWS, &[n as u32 - 1])
    }
}

/// The rows of the plan that decodes this many tokens, rounded up so that a few plans serve all texts.
fn rows_for(tokens: usize) -> usize {
    if tokens == 1 { 1 } else { tokens.next_power_of_two().max(ROW_MULTIPLE) }
}

/// The host's scalars of one run, which come back with its results: its start distinguishes new results from old ones.
fn numbers(begin: usize) -> StepNumbers {
    let mut numbers = [0.0; step_input::LEN];
    numbers[step_input::LR] = 1.0 + begin as f32;
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_sizes_serve_all() {
        assert_eq!([1, 2, 16, 17, 33, 256].map(rows_for), [1, 16, 16, 32, 64, 256]);
        assert!((1..=SessionLimits::DECODED).all(|n| (n..=SessionLimits::DECODED).contains(&rows_for(n))));
    }
}
