//! Packed batches: examples laid end to end, nothing computed for padding.

use sparta_graph::ops::IGNORED;

/// A tokenized example.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    pub tokens: Vec<u32>,
    pub target: Target,
}

/// What is learned from an example.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// One of n classes.
    Class(u32),
    /// A number for each output of the model; NaN where unknown.
    Numbers(Vec<f32>),
    /// Its tokens after the first or, with a mask (one element per token), those that the mask selects.
    Tokens(Option<Vec<bool>>),
}

impl Encoded {
    /// An example with a class.
    pub fn class(tokens: Vec<u32>, class: u32) -> Encoded {
        Encoded { tokens, target: Target::Class(class) }
    }
}

/// Rows of a batch are rounded up, so that few different plans are needed: to a multiple of this and of a sixteenth
/// of the next lower power of two. The padding rows are segments of one token that nothing reads.
pub const ROW_MULTIPLE: usize = 16;

/// N examples in T rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[T]`
    pub tokens: Vec<u32>,
    /// `[T, 2]`: start and end row of each row's segment.
    pub spans: Vec<u32>,
    /// `[N]`: the last row of each example.
    pub rows: Vec<u32>,
    pub labels: Labels,
    /// Rows that belong to examples.
    pub real_rows: usize,
    /// The weight of its loss in that of a step.
    pub weight: f32,
}

/// The size of a batch: T tokens of N examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Size {
    pub rows: usize,
    pub examples: usize,
}

/// Labels of an objective's rows, as stored on the device.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// Classes or tokens; [`IGNORED`] where there is no target.
    Ids(Vec<u32>),
    /// NaN where there is no target.
    Numbers(Vec<f32>),
}

/// The T of a batch with this many real rows.
pub fn padded_rows(real: usize) -> usize {
    let below = real.checked_ilog2().map_or(0, |log| 1 << log);
    real.next_multiple_of(ROW_MULTIPLE.max(below / 16))
}

impl Batch {
    /// Lays examples end to end; none may be empty.
    pub fn new(examples: &[&Encoded], labels: Labels) -> Batch {
        let mut batch = Batch { tokens: vec![], spans: vec![], rows: vec![], labels, real_rows: 0, weight: 1.0 };
        for example in examples {
            batch.segment(&example.tokens);
            batch.rows.push((batch.tokens.len() as u32).saturating_sub(1));
        }
        batch.fill();
        batch
    }

    fn segment(&mut self, tokens: &[u32]) {
        let start = self.tokens.len() as u32;
        let end = start + tokens.len() as u32;
        self.tokens.extend(tokens);
        tokens.iter().for_each(|_| self.spans.extend([start, end]));
    }

    fn fill(&mut self) {
        self.real_rows = self.tokens.len();
        for row in self.real_rows..padded_rows(self.real_rows) {
            self.tokens.push(0);
            self.spans.extend([row as u32, row as u32 + 1]);
        }
    }

    /// The rows of each segment, including padding.
    pub fn lengths(&self) -> Vec<usize> {
        let starts = self.spans.as_chunks::<2>().0.iter().enumerate().filter(|(row, span)| span[0] as usize == *row);
        starts.map(|(_, &[start, end])| (end - start) as usize).collect()
    }

    /// The number of labels that count in the loss.
    pub fn targets(&self) -> usize {
        match &self.labels {
            Labels::Ids(ids) => ids.iter().filter(|&&id| id != IGNORED).count(),
            Labels::Numbers(numbers) => numbers.iter().filter(|x| !x.is_nan()).count(),
        }
    }
}

/// Splits a sequence of lengths into runs of at most `budget` rows (or one longer example) and at most `limit`
/// examples; returns the end of each run.
pub fn split_by_budget(lengths: &[usize], budget: usize, limit: usize) -> Vec<usize> {
    let mut ends = Vec::new();
    let (mut rows, mut examples) = (0, 0);
    for (i, &n) in lengths.iter().enumerate() {
        if examples > 0 && (rows + n > budget || examples == limit) {
            ends.push(i);
            (rows, examples) = (0, 0);
        }
        rows += n;
        examples += 1;
    }
    if examples > 0 {
        ends.push(lengths.len());
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_do_not_mix_and_filling_rows_stand_alone() {
        let (a, b) = (Encoded::class(vec![5, 6, 7], 1), Encoded::class(vec![8], 0));
        let batch = Batch::new(&[&a, &b], Labels::Ids(vec![1, 0]));
        assert_eq!(batch.tokens[..5], [5, 6, 7, 8, 0]);
        assert_eq!(batch.spans[..10], [0, 3, 0, 3, 0, 3, 3, 4, 4, 5]);
        assert_eq!(batch.lengths()[..3], [3, 1, 1]);
        assert_eq!(batch.lengths().len(), 14);
        assert_eq!((&batch.rows, batch.targets()), (&vec![2, 3], 2));
        assert_eq!((batch.tokens.len(), batch.real_rows), (16, 4));
    }

    #[test]
    fn rows_are_rounded_up_to_few_classes() {
        assert_eq!(
            [1, 16, 17, 511, 512, 513, 1025, 4096, 4097].map(padded_rows),
            [16, 16, 32, 512, 512, 544, 1088, 4096, 4352]
        );
        let classes: std::collections::BTreeSet<usize> = (1..=4096).map(padded_rows).collect();
        assert_eq!(classes.len(), 16 + 16 + 16 * 3);
    }

    #[test]
    fn a_budget_splits_in_order_and_never_drops() {
        assert_eq!(split_by_budget(&[3, 4, 9, 1, 1], 8, 10), vec![2, 3, 5]);
        assert_eq!(split_by_budget(&[1, 1, 1], 100, 2), vec![2, 3]);
        assert!(split_by_budget(&[], 8, 10).is_empty());
    }
}
