//! Verifies that a merged model computes what the base model computes with its adapter.

use crate::job::MergeCheck;
use crate::method::TrainMode;
use crate::method::philox::Stream;
use crate::model::{Decoder, HEAD, to_f32};
use crate::text::without_padding;
use crate::train::evaluate::evaluate;
use crate::train::{Encoded, Objective, Prediction, Session, Setup};
use crate::weights::Weights;
use crate::{Error, Result};
use sparta_graph::DType;
use std::borrow::Cow;

/// Tokens of the longest sequence that a merged model is checked on.
pub const SAMPLE_LENGTH: usize = 48;

/// The examples for the check of a run's result: a few of its dev examples, or samples, if whole documents would give
/// too many logits of the vocabulary.
pub fn check_examples(setup: &Setup, dev: &[Encoded]) -> Vec<Encoded> {
    if setup.objective.pools() {
        return dev[..dev.len().min(8)].to_vec();
    }
    let longest = SAMPLE_LENGTH.min(setup.limits.positions).min(setup.limits.evaluate.rows);
    examples(&*setup.objective, &sample_texts(setup.decoder.vocab_size, longest, None), None)
}

/// The logits of each example, or of each token for a vocabulary head.
fn logits(session: &mut Session, examples: &[Encoded], budget: usize) -> Result<Vec<Prediction>> {
    let objective = session.setup().objective.clone();
    if objective.pools() {
        return Ok(evaluate(session, examples, budget, None, |_, _| true)?.predictions);
    }
    let vocabulary = session.setup().decoder.vocab_size;
    let mut rows = Vec::new();
    for example in examples {
        let found = session.inspect(&objective.pack([example])?)?.logits.unwrap_or_default();
        let own = found.chunks(vocabulary).take(example.tokens.len());
        rows.extend(own.map(|logits| Prediction { logits: logits.to_vec() }));
    }
    Ok(rows)
}

/// Token sequences of several lengths up to `longest`, some ending in the padding token; the same at every call.
pub fn sample_texts(vocab: usize, longest: usize, pad: Option<u32>) -> Vec<Vec<u32>> {
    let mut words = Stream::new(0, "merge check", "").words();
    let lengths = [1, 2, 3, 7, 16, 24, 33, 48].map(|n: usize| n.min(longest));
    let mut token = || ((u64::from(words.next().unwrap_or_default()) * vocab as u64) >> 32) as u32;
    let mut texts: Vec<Vec<u32>> = lengths.map(|n| (0..n).map(|_| token()).collect()).to_vec();
    for (text, count) in texts.iter_mut().zip([0, 0, 1, 2, 0, 1]) {
        let end = text.len().saturating_sub(count);
        text[end..].iter_mut().for_each(|last| *last = pad.unwrap_or(*last));
    }
    texts
}

/// The texts as examples, with this padding token.
pub fn examples(objective: &dyn Objective, texts: &[Vec<u32>], pad: Option<u32>) -> Vec<Encoded> {
    let example = |text: &Vec<u32>| {
        let mut tokens = text.clone();
        without_padding(&mut tokens, pad);
        Encoded { tokens, target: objective.blank() }
    };
    texts.iter().map(example).collect()
}

/// Evaluates the first of the `examples`, replaces every weight of the session by `merged` of its position (type and
/// little-endian values), and evaluates the second, the same texts as prepared for the merged model. Afterwards the
/// session is a plain model. Values may lie in `weights`, which forgets each tensor when the device has it.
pub fn check_merged<'a>(
    session: &mut Session,
    [examples, again]: [&[Encoded]; 2],
    budget: usize,
    weights: &Weights,
    mut merged: impl FnMut(&mut Session, usize) -> Result<(DType, Cow<'a, [u8]>)>,
) -> Result<MergeCheck> {
    let before = logits(session, examples, budget)?;
    let Setup { decoder, adaptation, objective, .. } = session.setup();
    let mut scale = Scale::new(decoder, &**objective);
    let mut order: Vec<usize> = (0..adaptation.parameters.len()).collect();
    // The norm comes first, as the head's scale includes it.
    order.sort_by_key(|&position| adaptation.parameters[position].name != NORM);
    let mut rounding = 0f64;
    for position in order {
        let adaptation = &session.setup().adaptation;
        if adaptation.weight_of(position).is_some() {
            continue;
        }
        // A method may change a layer's weight and bias together: both are merged before either is replaced.
        let mut layer = Vec::new();
        for position in [Some(position), adaptation.bias_of(position)].into_iter().flatten() {
            let (dtype, bytes) = merged(session, position)?;
            rounding += roundoff(session, position, dtype).powi(2);
            scale.see(&session.setup().adaptation.parameters[position].name, dtype, &bytes)?;
            layer.push((position, dtype, bytes));
        }
        for (position, dtype, bytes) in layer {
            session.replace_weight(position, dtype, &bytes)?;
            weights.forget(&session.setup().adaptation.parameters[position].name);
        }
    }
    let after = logits(session, again, budget)?;
    let pairs = || before.iter().zip(&after);
    let both = pairs().flat_map(|(a, b)| a.logits.iter().zip(&b.logits));
    // A NaN logit never agrees, and JSON holds only finite numbers.
    let difference = |(a, b): (&f32, &f32)| if (a - b).is_finite() { f64::from((a - b).abs()) } else { f64::MAX };
    let largest_difference = both.map(difference).fold(0.0, f64::max);
    let decoder = &session.setup().decoder;
    let inner = decoder.hidden_size.max(decoder.intermediate_size) as f64;
    let precision = session.setup().adaptation.precision;
    // TF32 may cut off both factors of a product after 10 bits.
    let factors = if precision.tf32 { 2f64.powi(-10) * (2.0f64 / 3.0).sqrt() } else { 0.0 };
    let arithmetic = 2f64.powi(-24) * inner.sqrt() + deviation(precision.activations) + factors;
    let matrices = (7 * decoder.layers + 1) as f64;
    Ok(MergeCheck {
        examples: examples.len(),
        largest_difference,
        bound: 8.0 * scale.largest_row * (rounding + matrices * arithmetic.powi(2)).sqrt(),
        largest_logit: before.iter().flat_map(|p| &p.logits).map(|z| f64::from(z.abs())).fold(0.0, f64::max),
        quantized: false,
        other_class: pairs().filter(|(a, b)| a.class() != b.class()).count(),
    })
}

/// Standard deviation of the relative error from merging this weight.
fn roundoff(session: &Session, position: usize, to: DType) -> f64 {
    let adaptation = &session.setup().adaptation;
    let parameter = &adaptation.parameters[position];
    match &adaptation.modes[position] {
        _ if parameter.dtype != to => deviation(to),
        TrainMode::Dense | TrainMode::Reparam(_) => deviation(to),
        // The method may merge the bias with the weight.
        TrainMode::Frozen if adaptation.weight_of(position).is_some_and(|weight| adaptation.is_linear_site(weight)) => {
            deviation(to)
        }
        // Only the chosen elements are rounded; the adapter's products are not.
        TrainMode::Sparse(set) if adaptation.residual => {
            deviation(to) * (set.indices.len() as f64 / parameter.numel() as f64).sqrt()
        }
        TrainMode::Sparse(_) | TrainMode::Frozen => 0.0,
    }
}

/// Standard deviation of rounding to a 16-bit type: at most uniform within the unit roundoff. That of f32 is counted
/// with the products.
fn deviation(dtype: DType) -> f64 {
    let unit_roundoff = match dtype {
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        DType::F32 | DType::U32 => 0.0,
    };
    unit_roundoff / 3f64.sqrt()
}

const NORM: &str = "model.norm.weight";

/// The head and the final norm, through which errors of the hidden state become errors of logits.
struct Scale {
    head: &'static str,
    hidden: usize,
    plus_one: bool,
    /// Factors of the final norm.
    norm: Vec<f64>,
    /// Largest norm of a row of the head times the norm's factors.
    largest_row: f64,
}

impl Scale {
    fn new(decoder: &Decoder, objective: &dyn Objective) -> Scale {
        let head = if objective.pools() { HEAD } else { decoder.vocabulary_head() };
        Scale { head, hidden: decoder.hidden_size, plus_one: decoder.norm_plus_one, norm: vec![], largest_row: 0.0 }
    }

    /// Must see the norm before the head.
    fn see(&mut self, name: &str, dtype: DType, bytes: &[u8]) -> Result<()> {
        let floats =
            |bytes: &[u8]| to_f32(dtype, bytes).ok_or_else(|| Error::Weights(format!("{name} is stored as {dtype}")));
        if name == NORM {
            let one = if self.plus_one { 1.0 } else { 0.0 };
            self.norm = floats(bytes)?.into_iter().map(|w| f64::from(w) + one).collect();
        }
        if name == self.head {
            for row in bytes.chunks(self.hidden * dtype.size()) {
                let squares = floats(row)?.into_iter().zip(&self.norm).map(|(s, w)| (f64::from(s) * w).powi(2));
                self.largest_row = self.largest_row.max(squares.sum::<f64>().sqrt());
            }
        }
        Ok(())
    }
}
