//! Whether a merged model computes what the base model computes with its adapter.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Logits with the adapter, compared with those of the merged weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeCheck {
    pub examples: usize,
    /// Largest absolute difference of a logit, whether of the head or of the vocabulary at each token.
    pub largest_difference: f64,
    /// What rounding can explain: 8 S sqrt(sum of r^2 + n e^2). r is the standard deviation of the relative error of a
    /// weight that merging has rounded, u / sqrt(3) with the unit roundoff u of its type, and the sum is over all of
    /// them; n is the number of matrices on a token's path and e the deviation of the arithmetic, 2^-24 sqrt(k) for
    /// inner products of k terms and u / sqrt(3) of 16-bit activations; S the largest norm of a row of head * norm.
    /// Rounding errors of the matrices add up like a random walk in the hidden state, without a preferred direction, so
    /// the error of a logit, the product with such a row, has a standard deviation of at most an eighth of this.
    pub bound: f64,
    /// Largest absolute value of a logit with the adapter.
    #[serde(default = "unknown")]
    pub largest_logit: f64,
    /// Examples, or tokens, whose largest logit is a different one.
    pub other_class: usize,
    /// Whether the merged weights were rounded to blocks, which was checked weight by weight: the difference of logits
    /// is then the cost of the format, and has no known bound.
    #[serde(default, skip_serializing_if = "is_false")]
    pub quantized: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl MergeCheck {
    /// Whether the logits are equal, or as close as rounding explains, if that is less than the logits themselves.
    /// Written so that a bound of NaN never agrees.
    pub fn agrees(&self) -> bool {
        if self.quantized {
            // NaN logits count as differing by this.
            return self.largest_difference < f64::MAX;
        }
        self.largest_difference == 0.0 || (self.largest_difference <= self.bound && self.bound < self.largest_logit)
    }
}

/// The largest logit, for a stored check that lacks it.
fn unknown() -> f64 {
    f64::MAX
}

impl fmt::Display for MergeCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MergeCheck { examples, largest_difference, bound, largest_logit, other_class, quantized } = self;
        if *quantized {
            return write!(
                f,
                "the weights are the adapter's, rounded to blocks; logits of up to {largest_logit:.1e} differ by at most \
                 {largest_difference:.1e} on {examples} examples; {other_class} have a different largest logit"
            );
        }
        let verdict = if largest_difference <= bound { "within" } else { "ABOVE" };
        write!(
            f,
            "the logits of the merged model and of the adapter differ by at most {largest_difference:.1e} on {examples} \
             examples, {verdict} the {bound:.1e} that rounding explains"
        )?;
        if !self.agrees() && largest_difference <= bound {
            write!(f, ", which proves nothing: no logit is above {largest_logit:.1e}")?;
        }
        if *other_class > 0 { write!(f, "; {other_class} have a different largest logit") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_above_the_logits_proves_nothing() {
        let check = |largest_difference, bound, largest_logit| MergeCheck {
            examples: 8,
            largest_difference,
            bound,
            largest_logit,
            other_class: 0,
            quantized: false,
        };
        assert!(check(0.1, 0.2, 1.0).agrees());
        assert!(check(0.0, 0.2, 0.1).agrees(), "the same logits need no bound");
        let loose = check(0.1, 0.3, 0.2);
        assert!(!loose.agrees() && loose.to_string().contains("proves nothing: no logit is above 2.0e-1"), "{loose}");
        let blocks = |difference| MergeCheck { quantized: true, ..check(difference, 0.0, 1.0) };
        assert!(blocks(0.3).agrees() && !blocks(f64::MAX).agrees());
        assert!(blocks(0.3).to_string().contains("rounded to blocks"), "{}", blocks(0.3));
        assert!(!check(0.3, 0.2, 1.0).agrees() && !check(0.1, f64::NAN, 1.0).agrees());
        let stored = r#"{"examples": 8, "largest_difference": 0.1, "bound": 0.2, "other_class": 0}"#;
        assert!(serde_json::from_str::<MergeCheck>(stored).unwrap().agrees());
    }
}
