//! How far results are from the golden ones, and how far they may be.

use crate::{Precision, Subject};
use sparta_backend_cpu::Reference;

pub struct Distance {
    pub what: String,
    pub off: f64,
    /// How far off f32 arithmetic may be.
    pub allowed: f64,
    /// How many times as far off as the reference a backend that rounds to bf16 may be.
    times: f64,
}

/// Two draws of the largest of n normal deviates differ by more than this factor once in a thousand times, for n = 64
/// and for n = 8.
const OF_MANY: f64 = 2.0;
const OF_FEW: f64 = 4.0;

impl Distance {
    pub fn new(what: impl Into<String>, off: f64, allowed: f64) -> Distance {
        Distance { what: what.into(), off, allowed, times: OF_MANY }
    }

    /// The largest difference of about eight values, or of one value over steps that share most of their roundings.
    pub fn of_few(what: impl Into<String>, off: f64, allowed: f64) -> Distance {
        Distance { times: OF_FEW, ..Distance::new(what, off, allowed) }
    }
}

/// Measures a backend and says what is too far off. In bf16 that is judged by the f64 reference, which rounds where the
/// graph says bf16. Roundings that fall differently make another draw from the same distribution, so a backend may be
/// [`OF_MANY`] or [`OF_FEW`] times as far from the golden numbers as the reference is, plus the distance allowed for f32
/// arithmetic.
pub fn check(
    subject: &mut Subject,
    precision: Precision,
    measure: impl Fn(&mut Subject) -> Result<Vec<Distance>, String>,
) -> Vec<String> {
    let reference = match precision {
        Precision::F32 => None,
        Precision::Bf16 => Some(measure(&mut Subject::new("the reference", || Ok(Box::new(Reference::new(None)?))))),
    };
    match (measure(subject), reference.transpose()) {
        (Ok(got), Ok(reference)) => beyond(&subject.name, &got, reference.as_deref()),
        (got, reference) => got.err().into_iter().chain(reference.err()).collect(),
    }
}

fn beyond(name: &str, got: &[Distance], reference: Option<&[Distance]>) -> Vec<String> {
    let mut failures = vec![];
    for (i, Distance { what, off, allowed, times }) in got.iter().enumerate() {
        let allowed = allowed + reference.map_or(0.0, |reference| times * reference[i].off);
        println!("{name} {what}: {off:.1e} of {allowed:.1e}");
        if off.is_nan() || *off > allowed {
            failures.push(format!("{what}: off by {off:.1e}, allowed {allowed:.1e}"));
        }
    }
    failures
}
