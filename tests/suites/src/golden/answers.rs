//! Fine-tuning on prompts and answers, from the text to the loss of each step, compared with TRL's `SFTTrainer`.

use super::data::{Layout, Source, model_directory, nan_max};
use super::distance::{self, Distance};
use crate::{Precision, Subject};
use serde::Deserialize;
use sparta_core::decoder;
use sparta_core::method::Adaptation;
use sparta_core::model::check_weights;
use sparta_core::text::{Encoder, Instruct, TrainOn};
use sparta_core::train::layout::{self, size_of};
use sparta_core::train::objective::NextToken;
use sparta_core::train::{Encoded, HeadInit, Objective, Optimization, Session, SessionLimits, Setup, Target};
use sparta_core::weights::Weights;
use sparta_plugin::task::{Example, Message};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Of each of 20 steps.
const LOSS: f64 = 1e-5;
/// Conversations of a step.
const BATCH: usize = 4;
const POSITIONS: usize = 64;

/// What TRL found: see `make_sft.py`.
#[derive(Deserialize)]
struct Trl {
    settings: Settings,
    /// Tokens of each conversation.
    ids: Vec<Vec<u32>>,
    /// The first token of its completion.
    begins: Vec<usize>,
    loss: BTreeMap<String, Vec<f64>>,
}

#[derive(Deserialize)]
struct Settings {
    lr: f64,
    weight_decay: f32,
    max_grad_norm: f32,
}

#[derive(Deserialize)]
struct Row {
    prompt: Vec<Turn>,
    completion: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

/// What is wrong with 20 steps of full fine-tuning in f32 on a backend: on the answers alone, and on all tokens.
pub fn check(subject: &mut Subject, source: &Source) -> Vec<String> {
    let [rows, trl, ..] = source.answers();
    let trl: Trl = serde_json::from_str(&fs::read_to_string(trl).expect("the results")).expect("JSON");
    let model = model_directory(source, "llama", Layout { lm: true, f32: true, version_4: false });
    for file in &source.answers()[2..] {
        fs::copy(file, model.path().join(file.file_name().expect("a name"))).expect("the tokenizer is copied");
    }
    let rows = fs::read_to_string(rows).expect("the conversations");
    let examples: Vec<Example> = rows.lines().map(|line| example(serde_json::from_str(line).expect("a row"))).collect();
    let mut failures = Vec::new();
    for (mode, train_on) in [("answers", TrainOn::Answers), ("all", TrainOn::All)] {
        let encoded = encode(model.path(), train_on, &examples);
        failures.extend(misread(&trl, train_on, &encoded).map(|what| format!("{mode}: {what}")));
        let measure = |subject: &mut Subject| train(subject, model.path(), &trl, mode, &encoded);
        let found = distance::check(subject, Precision::F32, measure);
        failures.extend(found.into_iter().map(|failure| format!("{mode}: {failure}")));
    }
    failures
}

fn example(row: Row) -> Example {
    let message = |context| move |turn: Turn| Message { role: turn.role, content: turn.content, context };
    let prompt = row.prompt.into_iter().map(message(true));
    Example { messages: prompt.chain(row.completion.into_iter().map(message(false))).collect(), ..Example::default() }
}

fn encode(model: &Path, train_on: TrainOn, examples: &[Example]) -> Vec<Encoded> {
    let instruct = Instruct::new(None, None);
    let encoder = Encoder::of_lessons(model, Some(&instruct), train_on, None).unwrap_or_else(|e| panic!("{e}"));
    let encode = |example| {
        let lesson = encoder.lesson(example).unwrap_or_else(|e| panic!("{e}"));
        Encoded { tokens: lesson.tokens, target: Target::Tokens(Some(lesson.trained)) }
    };
    examples.iter().map(encode).collect()
}

/// The first conversation in which the wrong tokens are trained on.
fn misread(trl: &Trl, train_on: TrainOn, encoded: &[Encoded]) -> Option<String> {
    assert_eq!((encoded.len(), trl.ids.len()), (trl.begins.len(), trl.begins.len()));
    let expected = |i: usize| {
        // No token comes before the first one.
        let begin = if train_on == TrainOn::All { 1 } else { trl.begins[i] };
        let tokens = trl.ids[i].clone();
        let trained = (0..tokens.len()).map(|token| token >= begin).collect();
        Encoded { tokens, target: Target::Tokens(Some(trained)) }
    };
    let wrong = (0..encoded.len()).find(|&i| encoded[i] != expected(i))?;
    Some(format!("conversation {wrong}: {:?}, expected {:?}", encoded[wrong], expected(wrong)))
}

fn train(
    subject: &mut Subject,
    model: &Path,
    trl: &Trl,
    mode: &str,
    encoded: &[Encoded],
) -> Result<Vec<Distance>, String> {
    let objective = Arc::new(NextToken {});
    let weights = Weights::open(model).unwrap_or_else(|e| panic!("{e}"));
    let decoder = decoder::open(model).unwrap_or_else(|e| panic!("{e}"));
    let parameters = check_weights(&decoder, &weights, objective.head()).unwrap_or_else(|e| panic!("{e}"));
    let size = size_of(BATCH * POSITIONS, BATCH);
    let setup = Setup {
        decoder,
        adaptation: Adaptation::whole(parameters),
        objective: objective.clone(),
        optimization: Optimization {
            weight_decay: trl.settings.weight_decay,
            max_grad_norm: Some(trl.settings.max_grad_norm),
            ..Optimization::default()
        },
        dropout: 0.0,
        seed: 0,
        head_init: HeadInit::Normal { std: 0.02 },
        limits: SessionLimits {
            train: Some(size),
            micro_batches: false,
            shared: false,
            evaluate: size,
            positions: POSITIONS,
            head_features: false,
            batch: BATCH,
            cache: None,
        },
        recompute: false,
    };
    let device = subject.open().map_err(|e| e.to_string())?;
    let arena = layout::plan_memory(&setup, &device.info()).expect("the plan").arena;
    let mut session = Session::open(device, &weights, setup, &arena).unwrap_or_else(|e| panic!("{e}"));
    let expected = &trl.loss[mode];
    let mut worst = 0.0;
    for (examples, expected) in encoded.chunks(BATCH).cycle().zip(expected) {
        let batch = objective.batch(&examples.iter().collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{e}"));
        let output = session.step(&[batch], trl.settings.lr).unwrap_or_else(|e| panic!("{e}"));
        worst = nan_max((output.loss - expected).abs(), worst);
    }
    Ok(vec![Distance::new("loss of a step", worst, LOSS)])
}
