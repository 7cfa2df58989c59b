//! One forward and backward pass of each family, through the function behind `sparta-cli inspect forward`.

use super::data::{Expectation, Layout, Source, difference, model_directory, nan_max};
use super::distance::{self, Distance};
use crate::{Precision, Subject};
use sparta_core::Error;
use sparta_core::job::PrecisionChoice;
use sparta_core::run::{InspectRequest, InspectTask, inspect_forward};
use sparta_core::weights::TensorFile;

// PyTorch in f32 is off from f64 by at most 1.9e-6 in class logits, 1.4e-5 in the logits of language models, 8e-7 in
// losses, and 1.2e-6 in gradients, 3.4e-6 in their relative L2. An implementation that adds in another order may be off
// 12 to 27 times as far; a typical mistake moves class logits by 3e-4 or more.
const CLASS_LOGITS: f64 = 5e-5;
pub(super) const LM_LOGITS: f64 = 2e-4;
const LOSS: f64 = 1e-5;
const GRADIENT_MAX: f64 = 2e-5;
const GRADIENT_L2: f64 = 5e-5;
/// Hidden states after the final norm have the magnitude of the logits computed from them.
const HIDDEN: f64 = 5e-5;

/// What is wrong with a family's model on a backend.
pub fn check(
    subject: &mut Subject,
    source: &Source,
    family: &str,
    layout: Layout,
    precision: Precision,
) -> Vec<String> {
    distance::check(subject, precision, |subject| measure(subject, source, family, layout, precision))
}

fn measure(
    subject: &mut Subject,
    source: &Source,
    family: &str,
    layout: Layout,
    precision: Precision,
) -> Result<Vec<Distance>, String> {
    let model = model_directory(source, family, layout);
    let batch = source.batch(family);
    let out = model.path().join("out.safetensors");
    let request = InspectRequest {
        model: model.path().to_owned(),
        batch: batch.clone(),
        task: if layout.lm { InspectTask::CausalLm } else { InspectTask::Classification },
        grads: true,
        precision: match precision {
            Precision::F32 => PrecisionChoice::F32,
            Precision::Bf16 => PrecisionChoice::Bf16,
        },
        out: out.clone(),
    };
    let result = subject.open().map_err(Error::from).and_then(|device| inspect_forward(&request, device));
    result.map_err(|e| e.to_string())?;
    let got = TensorFile::open(&out).expect("the result");
    let floats = |name: &str| got.floats(name).unwrap_or_else(|e| panic!("{e}")).1;
    let expected = source.expected(family, layout.lm);
    let mask = TensorFile::open(&batch).expect("the batch").integers("attention_mask").expect("the mask").1;

    let mut distances = vec![];
    let logits = &expected.expectations("logits")[0];
    let real = if layout.lm { Some((&mask[..], 300)) } else { None };
    let allowed = if layout.lm { LM_LOGITS } else { CLASS_LOGITS };
    distances.push(Distance::new("logits", worst(logits, &floats("logits"), real), allowed));
    distances.push(Distance::new("loss", difference(floats("loss")[0], expected.floats("loss")[0]), LOSS));
    if !layout.lm {
        let hidden = &expected.expectations("last_hidden_state")[0];
        let off = worst(hidden, &floats("last_hidden_state"), Some((&mask, 64)));
        distances.push(Distance::new("last_hidden_state", off, HIDDEN));
    }
    let gradients = expected.expectations("grad.");
    let named = got.names().filter(|name| name.starts_with("grad.")).count();
    assert_eq!(named, gradients.len(), "{family}: gradients of all parameters");
    for gradient in gradients {
        let values = floats(&format!("grad.{}", gradient.name));
        distances.extend(gradient.distances("gradient", &values, GRADIENT_MAX, GRADIENT_L2));
    }
    Ok(distances)
}

/// The largest difference, in real positions only where `mask` and the width of a position are given.
pub(super) fn worst(expected: &Expectation, got: &[f32], mask: Option<(&[i64], usize)>) -> f64 {
    let is_real = |i: usize| mask.is_none_or(|(mask, width)| mask[i * expected.stride / width] == 1);
    let pairs = expected.pairs(got).enumerate().filter(|(i, _)| is_real(*i));
    pairs.map(|(_, (a, b))| difference(a, b)).fold(0.0, nan_max)
}
