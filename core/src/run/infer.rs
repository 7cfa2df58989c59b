//! A trained adapter at work: metrics on a split, predictions for texts.

use super::evaluate::{Prediction, predict, score};
use super::prepare::{EVAL_EXAMPLES, encode};
use crate::adapter::{self, Adapter};
use crate::data::{Encoded, splits};
use crate::method::{Adaptation, index_set};
use crate::model::{Decoder, HeadKind, check_weights};
use crate::plugin::PluginSet;
use crate::text::Tokenizer;
use crate::train::layout::{plan_memory, size_of};
use crate::train::{Limits, Metrics, Optimizer, Session, Setup};
use crate::weights::Weights;
use crate::{Error, Result};
use sparta_graph::Backend;
use sparta_plugin::task::{Example, OpenRequest, Task};
use std::path::{Path, PathBuf};

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvalRequest {
    /// `train`, `dev` or `test`.
    pub split: String,
    /// Another task than the one trained on, with the same labels.
    pub task: Option<String>,
    /// Other data than the run's.
    pub data: Option<PathBuf>,
    /// At most so many examples, drawn by the run's seed.
    pub max_examples: Option<usize>,
}

/// An adapter with its base model, ready to be put on a device.
pub struct Adapted {
    adapter: Adapter,
    weights: Weights,
    decoder: Decoder,
    tokenizer: Tokenizer,
    adaptation: Adaptation,
}

impl Adapted {
    /// Opens an adapter (a run directory or an adapter directory) on its base model, or on `model`.
    ///
    /// Errors: a damaged adapter; another base model; a method plugin that is missing or draws other index sets.
    pub fn open(path: &Path, model: Option<&Path>, plugins: &PluginSet) -> Result<Adapted> {
        let adapter = adapter::load(path)?;
        let manifest = &adapter.manifest;
        let model = model.unwrap_or(&manifest.config.model);
        let decoder = Decoder::open(model)?;
        let weights = Weights::open(model)?;
        if adapter::fingerprint(&weights) != manifest.base {
            return Err(Error::Weights(format!(
                "{}: not the model that {} was trained on ({}); give that one with --model",
                model.display(),
                adapter.dir.display(),
                manifest.config.model.display()
            )));
        }
        let method = plugins.method(&manifest.method)?;
        let head = HeadKind::Classification { classes: manifest.labels.len() };
        let parameters = check_weights(&decoder, &weights, head)?;
        let adaptation = Adaptation::new(method, parameters, manifest.options.clone(), manifest.seed)?;
        let sets: Vec<_> = adaptation.index_sets().into_values().cloned().collect();
        if let Some(expected) = &manifest.index_sha256
            && index_set::fingerprint(&sets) != *expected
        {
            let version = &adaptation.info.version;
            return Err(Error::Method(format!(
                "{}: method `{}` {version} chooses other elements than version {} did",
                adapter.dir.display(),
                manifest.method,
                manifest.method_version
            )));
        }
        let tokenizer = Tokenizer::open(model)?;
        Ok(Adapted { adapter, weights, decoder, tokenizer, adaptation })
    }

    pub fn labels(&self) -> &[String] {
        &self.adapter.manifest.labels
    }

    /// One prediction per text or pair of texts. Texts longer than the model's positions are cut.
    pub fn predict(&self, device: Box<dyn Backend>, texts: &[(String, Option<String>)]) -> Result<Vec<Prediction>> {
        let example =
            |(text, pair): &(String, Option<String>)| Example { text: text.clone(), pair: pair.clone(), label: 0 };
        let examples: Vec<Example> = texts.iter().map(example).collect();
        self.predict_encoded(device, &self.encode(&examples)?, |_, _| {})
    }

    fn encode(&self, examples: &[Example]) -> Result<Vec<Encoded>> {
        let mut encoded = encode(&self.tokenizer, examples)?;
        encoded.iter_mut().for_each(|e| e.tokens.truncate(self.decoder.max_position_embeddings));
        Ok(encoded)
    }

    fn predict_encoded(
        &self,
        device: Box<dyn Backend>,
        examples: &[Encoded],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Prediction>> {
        if examples.is_empty() {
            return Ok(Vec::new());
        }
        let budget = self.adapter.manifest.config.micro_batch_tokens;
        let longest = examples.iter().map(|e| e.tokens.len()).max().unwrap_or(1);
        let setup = Setup {
            decoder: self.decoder.clone(),
            adaptation: self.adaptation.clone(),
            head: HeadKind::Classification { classes: self.labels().len() },
            optimizer: Optimizer::default(),
            dropout: 0.0,
            recompute: false,
            seed: self.adapter.manifest.seed,
            head_init_std: 0.0,
            limits: Limits {
                train: None,
                micro_batches: false,
                evaluate: size_of(budget.max(longest), EVAL_EXAMPLES),
                positions: longest,
                head_features: false,
                batch: 0,
            },
        };
        let (_, arena) = plan_memory(&setup, device.info().in_place)?;
        let mut session = Session::open(device, &self.weights, setup, arena)?;
        session.set_trained_values(&self.adapter.values)?;
        predict(&mut session, examples, budget, None, |done, total| {
            progress(done, total);
            true
        })
    }
}

/// Metrics of an adapter on a split of its own data or of other data.
pub fn evaluate(
    adapted: &Adapted,
    request: &EvalRequest,
    plugins: &PluginSet,
    device: Box<dyn Backend>,
    progress: impl FnMut(usize, usize),
) -> Result<Metrics> {
    let config = &adapted.adapter.manifest.config;
    let (plugin, task) = plugins.task(request.task.as_deref().unwrap_or(&config.task))?;
    if task.labels != adapted.labels() {
        return Err(Error::Usage(format!(
            "task {} has the labels {:?}, the adapter was trained for {:?}",
            task.id,
            task.labels,
            adapted.labels()
        )));
    }
    let data = request.data.clone().unwrap_or_else(|| config.data.clone());
    let dataset = plugin.open(&OpenRequest { task: task.id.clone(), data }).map_err(|e| Error::Data(e.to_string()))?;
    let all = splits::load(&*dataset, task.labels.len(), config.seed)?;
    let (examples, cap) = match request.split.as_str() {
        "train" => (all.train, config.max_train),
        "dev" => (all.dev, config.max_dev),
        "test" => (all.test, config.max_test),
        other => return Err(Error::Usage(format!("there is no split `{other}`; the splits are train, dev, test"))),
    };
    let examples = splits::draw(examples, request.max_examples.or(cap), config.seed, &request.split);
    let encoded = adapted.encode(&examples)?;
    let predictions = adapted.predict_encoded(device, &encoded, progress)?;
    score(&task, &encoded, &predictions)
}
