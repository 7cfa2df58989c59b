//! The examples of each training step.

use crate::splits::permutation;
use crate::train::batch::split_by_budget;
use std::ops::Range;

/// The size of an optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepSize {
    Examples(usize),
    /// Whole examples with at most this many tokens in total; a longer one is a separate step.
    Tokens(usize),
}

/// The order of the training examples, and their division into steps: a function of the seed alone.
pub struct Epochs {
    seed: u64,
    lengths: Vec<usize>,
    size: StepSize,
    /// The first step of each epoch, and the end of the last.
    starts: Vec<usize>,
}

impl Epochs {
    /// `lengths` are those of the training examples, in tokens.
    pub fn new(seed: u64, lengths: Vec<usize>, size: StepSize, epochs: usize) -> Epochs {
        let mut this = Epochs { seed, lengths, size, starts: vec![0] };
        for epoch in 0..epochs {
            let steps = match size {
                StepSize::Examples(n) => this.lengths.len().div_ceil(n),
                StepSize::Tokens(_) => this.steps(&this.order(epoch)).len(),
            };
            this.starts.push(this.starts[epoch] + steps);
        }
        this
    }

    /// Steps of all epochs.
    pub fn total(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Steps of the first epoch.
    pub fn first(&self) -> usize {
        self.starts.get(1).copied().unwrap_or(0)
    }

    /// The epoch of a step, and the step's number in it.
    pub fn position(&self, step: usize) -> (usize, usize) {
        let epoch = self.starts.partition_point(|&start| start <= step).saturating_sub(1);
        (epoch, step - self.starts[epoch])
    }

    /// Whether an epoch ends at this step.
    pub fn ends_at(&self, steps: usize) -> bool {
        self.starts[1..].contains(&steps)
    }

    /// The order of the examples in an epoch.
    pub fn order(&self, epoch: usize) -> Vec<usize> {
        permutation(self.seed, "order", &epoch.to_string(), self.lengths.len())
    }

    /// The range of an epoch's order for each step.
    pub fn steps(&self, order: &[usize]) -> Vec<Range<usize>> {
        let ends: Vec<usize> = match self.size {
            StepSize::Examples(n) => (n..order.len()).step_by(n).chain([order.len()]).collect(),
            StepSize::Tokens(budget) => {
                let lengths: Vec<usize> = order.iter().map(|&i| self.lengths[i]).collect();
                split_by_budget(&lengths, budget, usize::MAX)
            }
        };
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(&ends).map(|(start, &end)| start..end).collect()
    }

    /// The most tokens of any step.
    pub fn largest(&self) -> usize {
        match self.size {
            StepSize::Examples(n) => {
                let mut lengths = self.lengths.clone();
                lengths.sort_unstable_by(|a, b| b.cmp(a));
                lengths.iter().take(n).sum()
            }
            StepSize::Tokens(budget) => self.lengths.iter().copied().max().unwrap_or(1).max(budget),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_cover_every_epoch_once() {
        let lengths: Vec<usize> = (1..=23).collect();
        for size in [StepSize::Examples(4), StepSize::Examples(23), StepSize::Examples(100), StepSize::Tokens(30)] {
            let epochs = Epochs::new(7, lengths.clone(), size, 3);
            let mut step = 0;
            for epoch in 0..3 {
                let order = epochs.order(epoch);
                let steps = epochs.steps(&order);
                assert_eq!((steps[0].start, steps.last().unwrap().end), (0, 23));
                assert!(steps.windows(2).all(|pair| pair[0].end == pair[1].start));
                for (i, range) in steps.iter().enumerate() {
                    assert_eq!(epochs.position(step), (epoch, i), "{size:?}, step {step}");
                    let rows: usize = order[range.clone()].iter().map(|&i| lengths[i]).sum();
                    assert!(rows <= epochs.largest());
                    step += 1;
                    assert_eq!(epochs.ends_at(step), i + 1 == steps.len());
                }
            }
            assert_eq!(step, epochs.total());
        }
    }
}
