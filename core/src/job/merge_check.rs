//! Whether a merged model computes what the base model computes with its adapter.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Logits with the adapter against logits of the merged weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeCheck {
    pub examples: usize,
    /// Largest absolute difference of a logit, of the head or of the vocabulary for each token.
    pub largest_difference: f64,
    /// What rounding can explain: 8 sqrt(n) (u + e) S. n is the number of matrices on a token's way; u the unit roundoff
    /// of the coarsest type that a weight was rounded to by merging (0 where none was); e = 2^-24 sqrt(k), the f32
    /// arithmetic of inner products of k terms, and the unit roundoff of 16-bit activations; S the largest norm of a row of head * norm. Rounding errors of the
    /// matrices add up like a random walk in the hidden state and have no preferred direction there, so a logit, the
    /// product with such a row, has an error of a standard deviation of at most sqrt(n) (u + e) S.
    pub bound: f64,
    /// Examples, or tokens, whose largest logit is another one.
    pub other_class: usize,
}

impl MergeCheck {
    /// Written so that a bound of NaN agrees with nothing.
    pub fn agrees(&self) -> bool {
        self.largest_difference <= self.bound
    }
}

impl fmt::Display for MergeCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MergeCheck { examples, largest_difference, bound, other_class } = self;
        let verdict = if self.agrees() { "within" } else { "ABOVE" };
        write!(
            f,
            "the logits of the merged model and of the adapter differ by at most {largest_difference:.1e} on {examples} \
             examples, {verdict} the {bound:.1e} that rounding explains"
        )?;
        if *other_class > 0 { write!(f, "; {other_class} have another largest logit") } else { Ok(()) }
    }
}
