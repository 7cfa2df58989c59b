//! A method's decisions for one model, checked, with index sets drawn.

use super::selection::{broken, checked, expected, is_sparse};
use super::{IndexSet, magnitude};
use crate::{Error, Precision, Result, WeightSource};
use sparta_graph::graph::TensorType;
use sparta_graph::ops::Dequantize;
use sparta_graph::{Blocks, DType};
use sparta_plugin::method::{
    ExtraTensor, Magnitude, Method, MethodInfo, Options, Parameter, Rates, Role, Score, Scored, Selection, Steps,
};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// How one parameter is trained.
#[derive(Clone, Debug)]
pub enum TrainMode {
    Frozen,
    Dense,
    /// The elements in the index set.
    Sparse(IndexSet),
    /// Extra tensors; the parameter itself is frozen.
    Reparam(Vec<ExtraTensor>),
}

/// A trained f32 tensor, which the optimizer updates and adapters store under this name; also used for added tensors
/// that are not trained ([`Adaptation::constants`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The parameter's name, `delta.{name}` for a sparse one, `{name without .weight}.{extra}` for an extra tensor.
    pub name: String,
    pub shape: Vec<usize>,
    /// Position of the parameter in [`Adaptation::parameters`].
    pub parameter: usize,
    pub form: Form,
    /// The rates that the method sets for it.
    pub rates: Rates,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Dense,
    Sparse,
    /// An added tensor, by its position among the parameter's.
    Extra(usize),
}

impl Trained {
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A method applied to a model.
#[derive(Clone)]
pub struct Adaptation {
    pub method: Arc<dyn Method>,
    pub info: MethodInfo,
    /// All options of the method, with defaults filled in.
    pub options: Options,
    /// The whole model, the head last.
    pub parameters: Vec<Parameter>,
    /// One per parameter, in order.
    pub modes: Vec<TrainMode>,
    /// The types the adapted model is computed in, f32 by default.
    pub precision: Precision,
    /// Whether products add what 16-bit weights cannot represent of their trained elements; other sparse parameters are then
    /// f32 on the device.
    pub residual: bool,
    /// Weights that are stored in blocks, by position. See [`Adaptation::blocks_of`].
    pub formats: BTreeMap<usize, Blocks>,
    /// How often the method acts between steps, if it does.
    pub steps: Option<Steps>,
    /// The number of elements of each sparse parameter by position, since the index sets of [`Adaptation::expected`] are
    /// empty.
    sparse_sizes: BTreeMap<usize, usize>,
    /// Rates of dense and sparse parameters, by position, where they differ from the run's.
    rates: BTreeMap<usize, Rates>,
    /// Sparse parameters whose elements are yet to be chosen by their scores, by position.
    scored: BTreeMap<usize, Scored>,
    /// Whether index sets depend on the data of a run, so that adapters must store them.
    pub sets_stored: bool,
}

impl Adaptation {
    /// Asks the method what to train, and draws or computes the index sets, except those by score
    /// ([`Adaptation::scored`]). `options` must have been checked.
    ///
    /// Errors: those of the method; a selection that breaks the rules of [`Selection`]; a weight that is needed to
    /// choose its elements or to be reparametrized, but is new.
    pub fn new(
        method: Arc<dyn Method>,
        parameters: Vec<Parameter>,
        options: Options,
        seed: u64,
        weights: &dyn WeightSource,
    ) -> Result<Self> {
        let adaptation = Self::with_sizes(method, parameters, options, |sparse| {
            let by_magnitude = |(parameter, selection): &(_, _)| match selection {
                &&Selection::Magnitude(magnitude) => Some((*parameter, magnitude)),
                _ => None,
            };
            let chosen: Vec<(&Parameter, Magnitude)> = sparse.iter().filter_map(by_magnitude).collect();
            let values = |parameter: &Parameter| magnitude::stored(weights, parameter);
            let mut found = magnitude::index_sets(values, &chosen)?.into_iter();
            let mut set = |(parameter, selection): &(&Parameter, &Selection)| match selection {
                Selection::Chosen { indices } => Some(Ok(IndexSet {
                    tensor: parameter.name.clone(),
                    numel: parameter.numel(),
                    indices: indices.clone(),
                })),
                Selection::Sparse { probability } => {
                    Some(IndexSet::draw(seed, &parameter.name, parameter.numel(), *probability))
                }
                Selection::Scored(_) => Some(Ok(unknown(parameter))),
                _ => found.next().map(Ok),
            };
            let sets = sparse.iter().filter_map(|chosen| Some((chosen, set(chosen)?)));
            let size = |((parameter, selection), set): (&(&Parameter, &Selection), Result<IndexSet>)| {
                let set = set?;
                let size = match selection {
                    Selection::Scored(_) => expected(selection, parameter.numel()),
                    _ => set.indices.len(),
                };
                Ok((size, set))
            };
            sets.map(size).collect()
        })?;
        let reparametrized = |mode: &TrainMode| matches!(mode, TrainMode::Reparam(_));
        let new = |(parameter, mode): &(&Parameter, &TrainMode)| {
            reparametrized(mode) && weights.get(&parameter.name).is_none()
        };
        match adaptation.parameters.iter().zip(&adaptation.modes).find(new) {
            Some((new, _)) => Err(Error::Method(format!(
                "{} is new: it can be trained whole or left as drawn, not reparametrized",
                new.name
            ))),
            None => Ok(adaptation),
        }
    }

    /// Like [`Adaptation::new`], with given index sets: those of an adapter that stores them, or of a reference.
    pub fn with_indices(
        method: Arc<dyn Method>,
        parameters: Vec<Parameter>,
        options: Options,
        mut indices: impl FnMut(&Parameter) -> Result<IndexSet>,
    ) -> Result<Self> {
        Self::with_sizes(method, parameters, options, |sparse| {
            let sets = sparse.iter().map(|(parameter, _)| indices(parameter));
            sets.map(|set| set.map(|set| (set.indices.len(), set))).collect()
        })
    }

    /// Like [`Adaptation::new`], but with only the expected sizes of index sets: enough to plan memory.
    pub fn expected(method: Arc<dyn Method>, parameters: Vec<Parameter>, options: Options) -> Result<Self> {
        Self::with_sizes(method, parameters, options, |sparse| {
            let set = |(parameter, selection): &(&Parameter, &Selection)| {
                Ok((expected(selection, parameter.numel()), unknown(parameter)))
            };
            sparse.iter().map(set).collect()
        })
    }

    /// `sparse` gives the size and the index set of each parameter that has one, in order.
    fn with_sizes(
        method: Arc<dyn Method>,
        parameters: Vec<Parameter>,
        options: Options,
        sparse: impl FnOnce(&[(&Parameter, &Selection)]) -> Result<Vec<(usize, IndexSet)>>,
    ) -> Result<Self> {
        let info = method.describe();
        let selections = method.select(&parameters, &options).map_err(|e| Error::Method(e.to_string()))?;
        let selections = checked(&info, &parameters, selections)?;
        let pairs = parameters.iter().zip(&selections).map(|(parameter, (selection, _))| (parameter, selection));
        let chosen: Vec<_> = pairs.filter(|(_, selection)| is_sparse(selection)).collect();
        let mut sets = sparse(&chosen)?.into_iter();
        let mut modes = Vec::with_capacity(parameters.len());
        let (mut sparse_sizes, mut all_rates, mut scored) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (position, (selection, rates)) in selections.into_iter().enumerate() {
            if rates != Rates::default() {
                all_rates.insert(position, rates);
            }
            modes.push(match selection {
                Selection::Dense => TrainMode::Dense,
                Selection::Reparam { tensors } => TrainMode::Reparam(tensors),
                sparse if is_sparse(&sparse) => {
                    let set = sets.next();
                    let (size, set) = set.ok_or_else(|| broken(&info, "a tensor has no index set".into()))?;
                    if let Selection::Scored(rule) = sparse
                        && set.indices.len() < size
                    {
                        scored.insert(position, rule);
                    }
                    sparse_sizes.insert(position, size);
                    TrainMode::Sparse(set)
                }
                _ => TrainMode::Frozen,
            });
        }
        let steps = method.steps(&options).map_err(|e| Error::Method(e.to_string()))?;
        if steps.is_some_and(|steps| steps.every == 0) {
            return Err(broken(&info, "it asks to be called after every 0 steps".into()));
        }
        let adaptation = Adaptation {
            sparse_sizes,
            rates: all_rates,
            scored,
            steps,
            ..Self::of_modes(method, info, options, parameters, modes)
        };
        if adaptation.trained_count() == 0 {
            return Err(Error::Method(format!(
                "method `{}` trains nothing with these options; choose a larger density or other targets",
                adaptation.info.name
            )));
        }
        Ok(adaptation)
    }

    /// An adaptation with given modes, one per parameter.
    pub fn of_modes(
        method: Arc<dyn Method>,
        info: MethodInfo,
        options: Options,
        parameters: Vec<Parameter>,
        modes: Vec<TrainMode>,
    ) -> Self {
        let size = |(i, mode): (usize, &TrainMode)| match mode {
            TrainMode::Sparse(set) => Some((i, set.indices.len())),
            _ => None,
        };
        let sparse_sizes = modes.iter().enumerate().filter_map(size).collect();
        Adaptation {
            method,
            info,
            options,
            parameters,
            modes,
            precision: Precision::F32,
            residual: false,
            formats: BTreeMap::new(),
            steps: None,
            sparse_sizes,
            rates: BTreeMap::new(),
            scored: BTreeMap::new(),
            sets_stored: false,
        }
    }

    /// Sparse parameters whose elements are yet to be chosen by their scores, by position; they have the expected size.
    pub fn scored(&self) -> &BTreeMap<usize, Scored> {
        &self.scored
    }

    /// The adaptation that computes scores of one kind: it trains all of the scored tensors; [`Score::Change`] also
    /// trains the rest, as the method says.
    pub fn for_score(&self, score: Score) -> Adaptation {
        let mut adaptation = Adaptation { residual: false, steps: None, ..self.clone() };
        let trains = matches!(score, Score::Change { .. });
        for (position, mode) in adaptation.modes.iter_mut().enumerate() {
            match self.scored.get(&position) {
                Some(rule) if rule.score == score => *mode = TrainMode::Dense,
                None if trains || matches!(mode, TrainMode::Reparam(_)) => {}
                _ => *mode = TrainMode::Frozen,
            }
        }
        adaptation.scored.clear();
        adaptation
    }

    /// Chooses the elements of scored parameters. `scores` gives a parameter's scores, compared by magnitude, and is called
    /// repeatedly.
    ///
    /// Errors: those of `scores`; groups that do not divide a row.
    pub fn choose(&mut self, score: Score, scores: impl FnMut(&Parameter) -> Result<Vec<f32>>) -> Result<()> {
        let rule = |(&position, own): (&usize, &Scored)| (own.score == score).then(|| (position, own.rule()));
        let rules: Vec<(usize, Magnitude)> = self.scored.iter().filter_map(rule).collect();
        let chosen: Vec<_> = rules.iter().map(|&(position, rule)| (&self.parameters[position], rule)).collect();
        let sets = magnitude::index_sets(scores, &chosen)?;
        for ((position, _), set) in rules.into_iter().zip(sets) {
            self.set_chosen(position, set);
        }
        Ok(())
    }

    /// Trains these elements of a scored parameter.
    pub fn set_chosen(&mut self, position: usize, set: IndexSet) {
        self.scored.remove(&position);
        self.sets_stored = true;
        self.sparse_sizes.insert(position, set.indices.len());
        self.modes[position] = TrainMode::Sparse(set);
    }

    /// The trained tensors in a fixed order, without empty ones (sparse parameters with no elements).
    pub fn trained(&self) -> Vec<Trained> {
        let mut trained = Vec::new();
        for (i, (parameter, mode)) in self.parameters.iter().zip(&self.modes).enumerate() {
            let rates = self.rates.get(&i).copied().unwrap_or_default();
            let mut push = |name, shape, form, rates| trained.push(Trained { name, shape, parameter: i, form, rates });
            match mode {
                TrainMode::Frozen => {}
                TrainMode::Dense => push(parameter.name.clone(), parameter.shape.clone(), Form::Dense, rates),
                TrainMode::Sparse(_) => {
                    push(delta_name(&parameter.name), vec![self.sparse_size(i)], Form::Sparse, rates);
                }
                TrainMode::Reparam(tensors) => {
                    for (k, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.trained) {
                        let name = extra_name(&parameter.name, tensor);
                        push(name, tensor.shape.clone(), Form::Extra(k), tensor.rates);
                    }
                }
            }
        }
        trained.retain(|t| t.numel() > 0);
        only_first(trained)
    }

    /// Added tensors that are not trained, in a fixed order.
    pub fn constants(&self) -> Vec<Trained> {
        let mut constants = Vec::new();
        for (i, (parameter, mode)) in self.parameters.iter().zip(&self.modes).enumerate() {
            let TrainMode::Reparam(tensors) = mode else { continue };
            for (k, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| !tensor.trained) {
                let (name, shape) = (extra_name(&parameter.name, tensor), tensor.shape.clone());
                constants.push(Trained { name, shape, parameter: i, form: Form::Extra(k), rates: tensor.rates });
            }
        }
        only_first(constants)
    }

    /// What checkpoints and adapters store: trained tensors and, if the method acts between steps, the others that it
    /// adds, since it may set those, too.
    pub fn stored(&self) -> Vec<Trained> {
        let others = if self.steps.is_some() { self.constants() } else { Vec::new() };
        self.trained().into_iter().chain(others).collect()
    }

    /// Whether the device keeps a step's gradients.
    pub fn keeps_gradients(&self) -> bool {
        self.steps.is_some_and(|steps| steps.gradients)
    }

    /// The index sets that the method may have changed during the run, which checkpoints store.
    pub fn changed_indices(&self) -> BTreeMap<String, Vec<u32>> {
        let sets = self.index_sets().into_iter().filter(|_| self.steps.is_some());
        sets.map(|(name, set)| (name.to_owned(), set.indices.clone())).collect()
    }

    /// The index sets that cannot be recomputed without the run, which adapters store.
    pub fn stored_indices(&self) -> BTreeMap<String, Vec<u32>> {
        let sets = self.index_sets().into_iter().filter(|_| self.steps.is_some() || self.sets_stored);
        sets.map(|(name, set)| (name.to_owned(), set.indices.clone())).collect()
    }

    /// Errors: indices that cannot replace those of a parameter, with the reason.
    pub fn check_indices(&self, position: usize, indices: &[u32]) -> std::result::Result<(), String> {
        let (parameter, size) = (&self.parameters[position], self.sparse_size(position));
        let (name, numel) = (&parameter.name, parameter.numel());
        if size != indices.len() {
            return Err(format!("{name}: expected {size} indices, as many as before, got {}", indices.len()));
        }
        if let Some(pair) = indices.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(format!("{name}: expected ascending indices, got {} before {}", pair[0], pair[1]));
        }
        match indices.last() {
            Some(&last) if u64::from(last) >= numel => {
                Err(format!("{name}: expected indices below {numel}, its elements, got {last}"))
            }
            _ => Ok(()),
        }
    }

    /// The number of trained scalars.
    pub fn trained_count(&self) -> u64 {
        self.trained().iter().map(|t| t.numel() as u64).sum()
    }

    /// The number of trained scalars outside the classification head.
    pub fn trained_in_body(&self) -> u64 {
        let body = self.trained().into_iter().filter(|t| self.parameters[t.parameter].role != Role::Head);
        body.map(|t| t.numel() as u64).sum()
    }

    /// Whether only the head is trained, so that the hidden states never change.
    pub fn head_only(&self) -> bool {
        self.trained().iter().all(|t| self.parameters[t.parameter].role == Role::Head)
    }

    /// The type a parameter has on the device: f32 if all of it is trained.
    pub fn device_dtype(&self, parameter: usize) -> DType {
        let own = &self.parameters[parameter];
        match self.modes[parameter] {
            TrainMode::Dense => DType::F32,
            TrainMode::Sparse(_) if self.residual && !own.role.is_projection() => DType::F32,
            _ => own.dtype,
        }
    }

    /// Keeps stored blocks as they are on the device, for the parameters whose uses allow it.
    pub fn keep_blocks(&mut self, stored: impl Fn(&Parameter) -> Option<Blocks>) {
        let formats = self.parameters.iter().enumerate().filter_map(|(i, parameter)| Some((i, stored(parameter)?)));
        self.formats = formats.collect();
    }

    /// The blocks in which the device holds a parameter: a matrix that is read only by products or lookups and is not
    /// trained itself. [`Adaptation::device_dtype`] is the type that it is decoded to.
    pub fn blocks_of(&self, parameter: usize) -> Option<Blocks> {
        let own = &self.parameters[parameter];
        let kept = match self.modes[parameter] {
            TrainMode::Frozen => true,
            TrainMode::Dense => false,
            // Lookups cannot overlay chosen elements.
            TrainMode::Sparse(_) => own.role != Role::Embedding && self.device_dtype(parameter) == own.dtype,
            TrainMode::Reparam(_) => self.is_linear_site(parameter),
        };
        let blocks = *self.formats.get(&parameter)?;
        (kept && own.shape.len() == 2).then_some(blocks)
    }

    /// How the values of a parameter that the device holds in blocks are made.
    pub fn decoding(&self, parameter: usize) -> Option<Dequantize> {
        let (blocks, own) = (self.blocks_of(parameter)?, &self.parameters[parameter]);
        let size = own.shape.as_slice().try_into().ok()?;
        let overlay = self.sparse_size(parameter) > 0;
        Some(Dequantize { overlay, ..Dequantize::whole(blocks, size, self.device_dtype(parameter)) })
    }

    /// What the device holds of a parameter: its values, or the words of its blocks.
    pub fn device_type(&self, parameter: usize) -> TensorType {
        let words = self.decoding(parameter).and_then(|op| op.blocks.words(op.rows, op.columns));
        match words {
            Some(words) => TensorType::new(DType::U32, [words]),
            None => TensorType::new(self.device_dtype(parameter), self.parameters[parameter].shape.clone()),
        }
    }

    /// Errors: a weight that is stored in blocks and would be trained as a whole, which blocks cannot hold.
    pub fn check_trainable(&self) -> Result<()> {
        // A head is small, so it is decoded instead.
        let body = |position: &usize| self.parameters[*position].role != Role::Head;
        let whole = |(position, mode): (usize, &TrainMode)| matches!(mode, TrainMode::Dense).then_some(position);
        let mut whole = self.modes.iter().enumerate().filter_map(whole).filter(body);
        let quantized = |position: usize| Some((&self.parameters[position].name, self.formats.get(&position)?));
        let Some((name, blocks)) = whole.find_map(quantized) else { return Ok(()) };
        Err(Error::Method(format!(
            "method `{}` trains all of {name}, which is quantized ({blocks}): blocks cannot hold what is learned. Train \
             some elements or an addition (sparta, lora), or first write the model as floats: adapter merge MODEL --out DIR \
             --dtype bf16",
            self.info.name
        )))
    }

    /// Whether something on the device depends on the values of a trained tensor: a weight that its elements are
    /// written into, what that weight cannot represent of them, or a rounded copy.
    pub fn is_followed(&self, trained: &Trained) -> bool {
        let position = trained.parameter;
        match trained.form {
            Form::Sparse => self.blocks_of(position).is_none() || self.has_remainder(position),
            Form::Dense => self.is_shadowed(position),
            Form::Extra(_) => false,
        }
    }

    /// Makes products add what 16-bit weights cannot represent of their trained elements.
    ///
    /// Errors: there is no such weight.
    pub fn add_residual(&mut self) -> Result<()> {
        self.residual = true;
        if (0..self.modes.len()).any(|position| self.has_remainder(position)) {
            return Ok(());
        }
        Err(Error::Method(format!(
            "--residual is for 16-bit weights whose elements are trained one by one, and `{}` has none here: leave it out",
            self.info.name
        )))
    }

    /// The number of trained elements of a sparse parameter; 0 for others.
    pub fn sparse_size(&self, parameter: usize) -> usize {
        let size = self.sparse_sizes.get(&parameter).filter(|_| matches!(self.modes[parameter], TrainMode::Sparse(_)));
        size.copied().unwrap_or_default()
    }

    /// Whether the device keeps what the weight cannot represent of its trained elements, for products to add.
    pub fn has_remainder(&self, parameter: usize) -> bool {
        self.residual && self.sparse_size(parameter) > 0 && self.device_dtype(parameter) != DType::F32
    }

    /// Whether products read a rounded copy of the parameter, which is trained and so kept in f32. The
    /// classification head works on f32 rows, and norms, biases and lookups read the trained values themselves.
    pub fn is_shadowed(&self, parameter: usize) -> bool {
        let factor = match self.parameters[parameter].role {
            // The embeddings are the vocabulary head of a model that has no other.
            Role::Embedding => !self.parameters.iter().any(|p| matches!(p.role, Role::Head | Role::LmHead)),
            Role::LmHead => true,
            role => role.is_projection(),
        };
        factor && matches!(self.modes[parameter], TrainMode::Dense) && self.precision.products != DType::F32
    }

    /// The index sets by parameter name.
    pub fn index_sets(&self) -> BTreeMap<&str, &IndexSet> {
        let pairs = self.parameters.iter().zip(&self.modes);
        pairs
            .filter_map(|(p, mode)| if let TrainMode::Sparse(set) = mode { Some((&*p.name, set)) } else { None })
            .collect()
    }

    pub fn position(&self, name: &str) -> Option<usize> {
        self.parameters.iter().position(|p| p.name == name)
    }

    /// The positions of the parameters that the method reparametrizes.
    pub fn reparametrized(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.modes.len()).filter(|&position| matches!(self.modes[position], TrainMode::Reparam(_)))
    }

    /// Whether this is the weight of a reparametrized layer, which computes the method's `forward`.
    pub fn is_linear_site(&self, position: usize) -> bool {
        let role = self.parameters[position].role;
        matches!(self.modes[position], TrainMode::Reparam(_)) && (role.is_projection() || role == Role::Head)
    }

    /// The bias of the layer whose weight this is, by position.
    pub fn bias_of(&self, weight: usize) -> Option<usize> {
        let module = self.parameters[weight].name.strip_suffix(".weight")?;
        self.position(&format!("{module}.bias"))
    }

    /// The weight of the layer whose bias this is, by position.
    pub fn weight_of(&self, bias: usize) -> Option<usize> {
        let module = self.parameters[bias].name.strip_suffix(".bias")?;
        self.position(&format!("{module}.weight"))
    }
}

/// What the device and adapters call the changes of a parameter's chosen elements.
pub fn delta_name(parameter: &str) -> String {
    format!("delta.{parameter}")
}

/// The name of an added tensor on the device and in adapters: `model.layers.0.self_attn.q_proj.weight` and `lora_A`
/// give `model.layers.0.self_attn.q_proj.lora_A`, a shared one `shared.lora_A`.
pub fn extra_name(parameter: &str, extra: &ExtraTensor) -> String {
    match extra.shared {
        true => format!("shared.{}", extra.name),
        false => format!("{}.{}", parameter.strip_suffix(".weight").unwrap_or(parameter), extra.name),
    }
}

/// Drops tensors with the name of an earlier one: a shared tensor counts once.
fn only_first(mut tensors: Vec<Trained>) -> Vec<Trained> {
    let mut seen = HashSet::new();
    tensors.retain(|t| seen.insert(t.name.clone()));
    tensors
}

/// An index set that is not known yet.
fn unknown(parameter: &Parameter) -> IndexSet {
    IndexSet { tensor: parameter.name.clone(), numel: parameter.numel(), indices: Vec::new() }
}
