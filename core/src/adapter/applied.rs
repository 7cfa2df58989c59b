use super::stored::{StoredMethod, sparse_and_whole};
use super::{Adapter, Head, Kind, align_head, load};
use crate::hash::fingerprint;
use crate::job::PrecisionChoice;
use crate::method::options::{self, Given};
use crate::method::{Adaptation, IndexSet, TrainMode, index_set};
use crate::model::{Decoder, HEAD, check_weights};
use crate::plugin::{PluginKind, PluginSet, Recorded};
use crate::text::{Padding, Tokenizer};
use crate::train::evaluate::EVAL_EXAMPLES;
use crate::train::layout::{plan_memory, size_of};
use crate::train::objective::Classification;
use crate::train::{HeadInit, Objective, Optimization, Session, SessionLimits, Setup};
use crate::weights::Weights;
use crate::{Error, Result, decoder};
use sparta_graph::{Backend, DType};
use sparta_plugin::method::{Options, Parameter};
use std::path::Path;
use std::sync::Arc;

/// An adapter on its base model, ready to be loaded onto a device.
pub struct AppliedAdapter {
    pub adapter: Adapter,
    pub weights: Weights,
    pub decoder: Decoder,
    pub adaptation: Adaptation,
    /// The objective of the only head; of several heads, their classes combined.
    pub objective: Arc<dyn Objective>,
    /// The float types to compute in: those of the run that made the adapter, if any, else f32.
    pub precision: PrecisionChoice,
    /// The plugins of the runs that made it, compared with those found now.
    pub recorded: Recorded,
}

impl AppliedAdapter {
    /// Opens an adapter, of any format, on its base model, or on `model`.
    ///
    /// Errors: a damaged adapter; a missing or a different base model; a method plugin that is missing, draws other
    /// index sets, or is not the one that the run used; index sets or tensors that do not fit the model.
    pub fn open(path: &Path, model: Option<&Path>, plugins: &PluginSet) -> Result<AppliedAdapter> {
        let adapter = load(path, model)?;
        let configs = adapter.heads.iter().filter_map(|head| head.config.as_ref());
        let recorded = Recorded::new(configs.flat_map(|config| &config.plugins), plugins)?;
        if let Kind::Native(manifest) = &adapter.kind {
            recorded.check(PluginKind::Method, &manifest.method)?;
        }
        if !decoder::is_model(&adapter.model) {
            return Err(Error::Usage(format!(
                "{}: its base model `{}` is not here; give the model with --model",
                adapter.dir.display(),
                adapter.model.display()
            )));
        }
        let decoder = decoder::open(&adapter.model)?;
        let mut weights = Weights::open(&adapter.model)?;
        if let Some(base) = &adapter.base
            && fingerprint(&weights) != *base
        {
            return Err(Error::Weights(format!(
                "{}: not the model that {} was trained on; give that one with --model",
                adapter.model.display(),
                adapter.dir.display(),
            )));
        }
        let objective = objective_of(&adapter.heads)?;
        if adapter.values.contains_key(HEAD) {
            weights.remove(HEAD);
        } else if let (Kind::Native(manifest), true) = (&adapter.kind, objective.pools()) {
            align_head(&mut weights, &decoder, &manifest.labels)?;
        }
        let precision = adapter.heads.iter().find_map(|head| Some(head.config.as_ref()?.precision));
        let precision = precision.unwrap_or(PrecisionChoice::F32);
        // As the run did.
        weights.quantize(adapter.heads.iter().find_map(|head| head.config.as_ref()?.quantize));
        if precision == PrecisionChoice::Bf16 {
            weights.decode_as(DType::BF16);
        }
        let parameters = check_weights(&decoder, &weights, objective.head())?;
        let mut adaptation = adapt(&adapter, parameters, &weights, plugins)?;
        adaptation.residual =
            adapter.heads.iter().filter_map(|head| head.config.as_ref()).any(|config| config.residual);
        check_values(&adapter, &adaptation)?;
        Ok(AppliedAdapter { precision, adapter, weights, decoder, adaptation, objective, recorded })
    }

    /// The padding token of the texts that the adapter is applied to. Language models have none.
    pub fn padding(&self) -> Padding {
        match self.adapter.kind {
            _ if !self.objective.pools() => Padding::Is(None),
            Kind::Model => Padding::Is(self.decoder.pad_token_id),
            _ => Padding::of_adapter(self.decoder.pad_token_id),
        }
    }

    /// The id of that token. Errors: the tokenizer cannot be read.
    pub fn pad(&self) -> Result<Option<u32>> {
        match self.padding() {
            Padding::Is(pad) => Ok(pad),
            Padding::OfTokenizer if !Tokenizer::is_in(&self.adapter.model) => Ok(None),
            Padding::OfTokenizer => Ok(Tokenizer::open(&self.adapter.model)?.pad_id()),
        }
    }

    /// The seed of the run that made the adapter.
    fn seed(&self) -> u64 {
        match &self.adapter.kind {
            Kind::Native(manifest) => manifest.seed,
            _ => 0,
        }
    }

    /// Loads model and adapter onto a device, for batches of up to `tokens` tokens in sequences of up to `longest`.
    pub fn session(&self, device: Box<dyn Backend>, tokens: usize, longest: usize) -> Result<Session> {
        let limits = SessionLimits {
            train: None,
            micro_batches: false,
            shared: false,
            evaluate: size_of(tokens.max(longest), EVAL_EXAMPLES),
            positions: longest,
            head_features: false,
            batch: 0,
            cache: None,
        };
        self.session_with(device, self.adaptation.clone(), limits)
    }

    /// Loads model and adapter onto a device, to generate texts of up to `context` tokens.
    ///
    /// Errors: a model that classifies; those of [`Session::open`].
    pub fn generation(&self, device: Box<dyn Backend>, context: usize) -> Result<Session> {
        if self.objective.pools() {
            return Err(Error::Usage(format!(
                "{}: made for {}, but only language models generate text; use `predict`",
                self.adapter.dir.display(),
                self.objective.name()
            )));
        }
        self.session_with(device, self.adaptation.clone(), SessionLimits::generation(context))
    }

    /// As [`AppliedAdapter::session`], for another adaptation of the model, whose trained values are then not set.
    pub(super) fn session_with(
        &self,
        device: Box<dyn Backend>,
        mut adaptation: Adaptation,
        limits: SessionLimits,
    ) -> Result<Session> {
        let info = device.info();
        self.recorded.check(PluginKind::Backend, info.id.split(':').next().unwrap_or_default())?;
        let blocks = |parameter: &Parameter| self.weights.get(&parameter.name)?.blocks();
        adaptation.precision = self.precision.choose(&adaptation.parameters, blocks, &info)?.precision;
        let mut setup = Setup {
            decoder: self.decoder.clone(),
            adaptation,
            objective: self.objective.clone(),
            optimization: Optimization::default(),
            dropout: 0.0,
            recompute: false,
            // For added tensors that are not trained.
            seed: self.seed(),
            head_init: HeadInit::Normal { std: 0.0 },
            limits,
        };
        // Generation multiplies single rows, for which decoding a matrix each time would cost most: decode once if
        // memory allows.
        let decoded =
            limits.cache.map(|_| plan_memory(&setup, &info)).transpose()?.filter(|planned| planned.fits(&info));
        let arena = match decoded {
            Some(planned) => planned.arena,
            None => {
                setup.adaptation.keep_blocks(blocks);
                plan_memory(&setup, &info)?.arena
            }
        };
        let own = limits.train.is_none();
        let mut session = Session::open(device, &self.weights, setup, &arena)?;
        if own {
            session.set_trained_values(&self.adapter.values)?;
        }
        Ok(session)
    }
}

/// The objective of a model with these heads.
///
/// Errors: an objective that this version does not know.
fn objective_of(heads: &[Head]) -> Result<Arc<dyn Objective>> {
    match heads {
        [only] => only.objective(),
        several => Ok(Arc::new(Classification { classes: several.iter().map(|head| head.labels.len()).sum() })),
    }
}

/// The adaptation that an adapter describes, for a model with these parameters.
fn adapt(adapter: &Adapter, parameters: Vec<Parameter>, weights: &Weights, plugins: &PluginSet) -> Result<Adaptation> {
    let stored = |method: StoredMethod, parameters| {
        let sets = |p: &Parameter| stored_set(adapter, p);
        Adaptation::with_indices(Arc::new(method), parameters, Options::new(), sets)
    };
    match &adapter.kind {
        Kind::Model => Ok(Adaptation::none(parameters)),
        Kind::Peft(lora) => {
            for parameter in &parameters {
                let Some(layer) = lora.layers.get(&parameter.name) else { continue };
                if parameter.shape != [layer.output, layer.input] {
                    let (dir, name, expected) = (adapter.dir.display(), &parameter.name, &parameter.shape);
                    let got = [layer.output, layer.input];
                    return Err(Error::Weights(format!(
                        "{dir}: {name}: expected changes of {expected:?}, got {got:?}"
                    )));
                }
            }
            let whole = adapter.values.keys().filter(|name| !name.contains(".lora_")).cloned();
            stored(StoredMethod::lora(lora, whole, plugins)?, parameters)
        }
        Kind::Deltas { .. } | Kind::Combined(_) => {
            let selections = sparse_and_whole(&parameters, &adapter.indices, &adapter.values)?;
            stored(StoredMethod::new("deltas", selections), parameters)
        }
        Kind::Native(manifest) => {
            let method = plugins.method(&manifest.method)?;
            let given = manifest.options.iter().map(|(name, value)| (name.clone(), Given::Typed(value.clone())));
            let owner = format!("method {}", manifest.method);
            let options = options::check(&owner, &method.info().options, &given.collect())
                .map_err(|e| Error::Weights(format!("{}: adapter.json: {e}", adapter.dir.display())))?;
            let mut adaptation = if adapter.indices.is_empty() {
                Adaptation::new(method, parameters, options, manifest.seed, weights)?
            } else {
                Adaptation::with_indices(method, parameters, options, |p| stored_set(adapter, p))?
            };
            if let Some(expected) = &manifest.index_sha256
                && index_set::fingerprint(adaptation.index_sets().into_values()) != *expected
            {
                return Err(Error::Method(format!(
                    "{}: method `{}` {} chooses different elements than version {} did",
                    adapter.dir.display(),
                    manifest.method,
                    adaptation.info.version,
                    manifest.method_version
                )));
            }
            // A new head that the method did not train is stored whole.
            for (parameter, part) in adaptation.parameters.iter().zip(&mut adaptation.modes) {
                if matches!(part, TrainMode::Frozen) && adapter.values.contains_key(&parameter.name) {
                    *part = TrainMode::Dense;
                }
            }
            Ok(adaptation)
        }
    }
}

/// The explicit index set of a parameter, checked: ascending and inside the tensor.
fn stored_set(adapter: &Adapter, parameter: &Parameter) -> Result<IndexSet> {
    let indices = adapter.indices.get(&parameter.name).cloned().unwrap_or_default();
    let (name, numel) = (&parameter.name, parameter.numel());
    let ascending = indices.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || indices.last().is_some_and(|&last| u64::from(last) >= numel) {
        return Err(Error::Weights(format!(
            "{}: the index set of {name} is not ascending, or points beyond its {numel} elements",
            adapter.dir.display()
        )));
    }
    Ok(IndexSet { tensor: name.clone(), numel, indices })
}

fn check_values(adapter: &Adapter, adaptation: &Adaptation) -> Result<()> {
    let stored = adaptation.stored();
    for t in &stored {
        let got = adapter.values.get(&t.name).map(Vec::len);
        if got != Some(t.numel()) {
            let (expected, got) = (t.numel(), got.map_or("nothing".into(), |n| n.to_string()));
            let (dir, name) = (adapter.dir.display(), &t.name);
            return Err(Error::Weights(format!("{dir}: {name}: expected {expected} values, got {got}")));
        }
    }
    match adapter.values.keys().find(|name| !stored.iter().any(|t| t.name == **name)) {
        Some(extra) => Err(Error::Weights(format!("{}: `{extra}` is not part of the model", adapter.dir.display()))),
        None => Ok(()),
    }
}
