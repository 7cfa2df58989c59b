//! How far results are from the golden ones, and how far they may be.

use crate::{Precision, Subject};
use sparta_backend_cpu::Reference;

pub struct Distance {
    pub what: String,
    pub off: f64,
    /// How far off f32 arithmetic may be.
    pub allowed: f64,
}

impl Distance {
    pub fn new(what: impl Into<String>, off: f64, allowed: f64) -> Distance {
        Distance { what: what.into(), off, allowed }
    }
}

/// Measures a backend and says what is too far off. In bf16 that is judged by the f64 reference, which rounds where the
/// graph says bf16: a backend may be twice as far from the golden numbers as the reference is, plus the distance
/// allowed for f32 arithmetic.
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
    for (i, Distance { what, off, allowed }) in got.iter().enumerate() {
        let allowed = allowed + reference.map_or(0.0, |reference| 2.0 * reference[i].off);
        println!("{name} {what}: {off:.1e} of {allowed:.1e}");
        if off.is_nan() || *off > allowed {
            failures.push(format!("{what}: off by {off:.1e}, allowed {allowed:.1e}"));
        }
    }
    failures
}
