//! What a method decided for one model, checked and with its index sets drawn.

use super::{IndexSet, magnitude};
use crate::{Error, Precision, Result, WeightSource};
use sparta_graph::DType;
use sparta_plugin::method::{
    ExtraTensor, Init, Magnitude, Method, MethodInfo, Options, Parameter, Role, Selection, Steps,
};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// What is trained of one parameter.
#[derive(Clone, Debug)]
pub enum Part {
    Frozen,
    Dense,
    /// The elements of the index set.
    Sparse(IndexSet),
    /// Extra tensors; the parameter itself is frozen.
    Reparam(Vec<ExtraTensor>),
}

/// A trained f32 tensor: what the optimizer updates, and what an adapter stores under this name. Also an added tensor that is
/// not trained ([`Adaptation::constants`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The parameter's name, `delta.{name}` for a sparse one, `{name without .weight}.{extra}` for an extra tensor.
    pub name: String,
    pub shape: Vec<usize>,
    /// Position of the parameter in [`Adaptation::parameters`].
    pub parameter: usize,
    pub form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Dense,
    Sparse,
    /// Position in the parameter's extra tensors.
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
    /// Every option of the method, defaults filled in.
    pub options: Options,
    /// The whole model, the head last.
    pub parameters: Vec<Parameter>,
    /// One per parameter, in order.
    pub parts: Vec<Part>,
    /// The types in which the adapted model is computed, f32 at first.
    pub precision: Precision,
    /// Whether products add what a 16-bit weight cannot hold of its trained elements; other sparse parts are then f32 on the
    /// device.
    pub residual: bool,
    /// When the method acts between steps, if it does.
    pub steps: Option<Steps>,
    /// Elements of the sparse parts by position; the sets of [`Adaptation::expected`] do not hold theirs.
    sparse_sizes: BTreeMap<usize, usize>,
}

impl Adaptation {
    /// Asks the method what to train, and draws or finds the index sets. `options` are checked already.
    ///
    /// Errors: whatever the method refuses; a selection that breaks the rules of [`Selection`]; a weight that is needed to
    /// choose elements of it and is missing.
    pub fn new(
        method: Arc<dyn Method>,
        parameters: Vec<Parameter>,
        options: Options,
        seed: u64,
        weights: &dyn WeightSource,
    ) -> Result<Self> {
        Self::with_sizes(method, parameters, options, |sparse| {
            let by_magnitude = |(parameter, selection): &(_, _)| match selection {
                &&Selection::Magnitude(magnitude) => Some((*parameter, magnitude)),
                _ => None,
            };
            let chosen: Vec<(&Parameter, Magnitude)> = sparse.iter().filter_map(by_magnitude).collect();
            let mut found = magnitude::index_sets(weights, &chosen)?.into_iter();
            let set = |(parameter, selection): &(&Parameter, &Selection)| match selection {
                Selection::Chosen { indices } => Some(Ok(IndexSet {
                    tensor: parameter.name.clone(),
                    numel: parameter.numel(),
                    indices: indices.clone(),
                })),
                Selection::Sparse { probability } => {
                    Some(IndexSet::draw(seed, &parameter.name, parameter.numel(), *probability))
                }
                _ => found.next().map(Ok),
            };
            sparse.iter().filter_map(set).map(|set| set.map(|set| (set.indices.len(), set))).collect()
        })
    }

    /// As [`Adaptation::new`], with index sets from elsewhere: an adapter that stores them, a reference.
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

    /// As [`Adaptation::new`], but no index set is drawn, only its expected size known: enough to plan memory.
    pub fn expected(method: Arc<dyn Method>, parameters: Vec<Parameter>, options: Options) -> Result<Self> {
        Self::with_sizes(method, parameters, options, |sparse| {
            let set = |(parameter, selection): &(&Parameter, &Selection)| {
                let (tensor, numel) = (parameter.name.clone(), parameter.numel());
                let size = match selection {
                    Selection::Chosen { indices } => indices.len(),
                    Selection::Magnitude(Magnitude { share, .. }) => magnitude::count(*share, numel) as usize,
                    Selection::Sparse { probability } => (numel as f64 * probability).round() as usize,
                    Selection::Frozen | Selection::Dense | Selection::Reparam { .. } => 0,
                };
                Ok((size, IndexSet { tensor, numel, indices: Vec::new() }))
            };
            sparse.iter().map(set).collect()
        })
    }

    /// `sparse` gives the size and the index set of each of the parameters that have one, in their order.
    fn with_sizes(
        method: Arc<dyn Method>,
        parameters: Vec<Parameter>,
        options: Options,
        sparse: impl FnOnce(&[(&Parameter, &Selection)]) -> Result<Vec<(usize, IndexSet)>>,
    ) -> Result<Self> {
        let info = method.describe();
        let selections = method.select(&parameters, &options).map_err(|e| Error::Method(e.to_string()))?;
        if selections.len() != parameters.len() {
            return Err(broken(&info, format!("{} selections for {} parameters", selections.len(), parameters.len())));
        }
        for (parameter, selection) in parameters.iter().zip(&selections) {
            check(&info, parameter, selection)?;
        }
        check_shared(&info, &selections)?;
        let chosen: Vec<_> = parameters.iter().zip(&selections).filter(|(_, selection)| is_sparse(selection)).collect();
        let mut sets = sparse(&chosen)?.into_iter();
        let mut parts = Vec::with_capacity(parameters.len());
        let mut sparse_sizes = BTreeMap::new();
        for selection in selections {
            parts.push(match selection {
                Selection::Frozen => Part::Frozen,
                Selection::Dense => Part::Dense,
                Selection::Reparam { tensors } => Part::Reparam(tensors),
                Selection::Sparse { .. } | Selection::Chosen { .. } | Selection::Magnitude(_) => {
                    let set = sets.next();
                    let (size, set) = set.ok_or_else(|| broken(&info, "a tensor has no index set".into()))?;
                    sparse_sizes.insert(parts.len(), size);
                    Part::Sparse(set)
                }
            });
        }
        let steps = method.steps(&options).map_err(|e| Error::Method(e.to_string()))?;
        if steps.is_some_and(|steps| steps.every == 0) {
            return Err(broken(&info, "it wants to be called after every 0 steps".into()));
        }
        let precision = Precision::F32;
        let adaptation =
            Adaptation { method, info, options, parameters, parts, precision, residual: false, steps, sparse_sizes };
        if adaptation.trained_count() == 0 {
            return Err(Error::Method(format!(
                "method `{}` trains nothing with these options; choose a larger density or other targets",
                adaptation.info.name
            )));
        }
        Ok(adaptation)
    }

    /// An adaptation whose parts, one per parameter, are decided already.
    pub fn of_parts(
        method: Arc<dyn Method>,
        info: MethodInfo,
        options: Options,
        parameters: Vec<Parameter>,
        parts: Vec<Part>,
    ) -> Self {
        let size = |(i, part): (usize, &Part)| match part {
            Part::Sparse(set) => Some((i, set.indices.len())),
            _ => None,
        };
        let sparse_sizes = parts.iter().enumerate().filter_map(size).collect();
        let precision = Precision::F32;
        let steps = None;
        Adaptation { method, info, options, parameters, parts, precision, residual: false, steps, sparse_sizes }
    }

    /// Trained tensors in a fixed order; empty ones (a sparse part without elements) are left out.
    pub fn trained(&self) -> Vec<Trained> {
        let mut trained = Vec::new();
        for (i, (parameter, part)) in self.parameters.iter().zip(&self.parts).enumerate() {
            let mut push = |name, shape, form| trained.push(Trained { name, shape, parameter: i, form });
            match part {
                Part::Frozen => {}
                Part::Dense => push(parameter.name.clone(), parameter.shape.clone(), Form::Dense),
                Part::Sparse(_) => {
                    push(format!("delta.{}", parameter.name), vec![self.sparse_size(i)], Form::Sparse);
                }
                Part::Reparam(tensors) => {
                    for (k, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.trained) {
                        push(extra_name(&parameter.name, tensor), tensor.shape.clone(), Form::Extra(k));
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
        for (i, (parameter, part)) in self.parameters.iter().zip(&self.parts).enumerate() {
            let Part::Reparam(tensors) = part else { continue };
            for (k, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| !tensor.trained) {
                let (name, shape) = (extra_name(&parameter.name, tensor), tensor.shape.clone());
                constants.push(Trained { name, shape, parameter: i, form: Form::Extra(k) });
            }
        }
        only_first(constants)
    }

    /// What checkpoints and adapters store: trained tensors and, where the method acts between steps, the others that it
    /// adds, as it may set those, too.
    pub fn stored(&self) -> Vec<Trained> {
        let others = if self.steps.is_some() { self.constants() } else { Vec::new() };
        self.trained().into_iter().chain(others).collect()
    }

    /// Whether the device keeps the gradients of a step.
    pub fn keeps_gradients(&self) -> bool {
        self.steps.is_some_and(|steps| steps.gradients)
    }

    /// The index sets as checkpoints and adapters store them: none where they are what the method chose at first.
    pub fn changed_indices(&self) -> BTreeMap<String, Vec<u32>> {
        let sets = self.index_sets().into_iter().filter(|_| self.steps.is_some());
        sets.map(|(name, set)| (name.to_owned(), set.indices.clone())).collect()
    }

    /// Errors: indices that cannot take the place of those of a parameter, in words.
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

    /// Trained scalars.
    pub fn trained_count(&self) -> u64 {
        self.trained().iter().map(|t| t.numel() as u64).sum()
    }

    /// Trained scalars outside the classification head.
    pub fn trained_in_body(&self) -> u64 {
        let body = self.trained().into_iter().filter(|t| self.parameters[t.parameter].role != Role::Head);
        body.map(|t| t.numel() as u64).sum()
    }

    /// Whether nothing but the head is trained: the body's output never changes then.
    pub fn head_only(&self) -> bool {
        self.trained().iter().all(|t| self.parameters[t.parameter].role == Role::Head)
    }

    /// The type in which a parameter is held on the device: f32 where all of it is trained.
    pub fn device_dtype(&self, parameter: usize) -> DType {
        let own = &self.parameters[parameter];
        match self.parts[parameter] {
            Part::Dense => DType::F32,
            Part::Sparse(_) if self.residual && !own.role.is_projection() => DType::F32,
            _ => own.dtype,
        }
    }

    /// Has products add what 16-bit weights cannot hold of their trained elements.
    ///
    /// Errors: there is no such weight.
    pub fn add_residual(&mut self) -> Result<()> {
        self.residual = true;
        if (0..self.parts.len()).any(|position| self.has_remainder(position)) {
            return Ok(());
        }
        Err(Error::Method(format!(
            "--residual is for 16-bit weights whose elements are trained one by one, and `{}` has none here: leave it out",
            self.info.name
        )))
    }

    /// Trained elements of a sparse part; 0 for another.
    pub fn sparse_size(&self, parameter: usize) -> usize {
        let size = self.sparse_sizes.get(&parameter).filter(|_| matches!(self.parts[parameter], Part::Sparse(_)));
        size.copied().unwrap_or_default()
    }

    /// Whether the device holds what the weight cannot hold of its trained elements, for products to add.
    pub fn has_remainder(&self, parameter: usize) -> bool {
        self.residual && self.sparse_size(parameter) > 0 && self.device_dtype(parameter) != DType::F32
    }

    /// Whether products read a rounded copy of the parameter, because it is trained and thus held in f32. The
    /// classification head works on f32 rows, and norms, biases and lookups read the trained values themselves.
    pub fn is_shadowed(&self, parameter: usize) -> bool {
        let factor = match self.parameters[parameter].role {
            // The vocabulary head of a model that has no other.
            Role::Embedding => !self.parameters.iter().any(|p| matches!(p.role, Role::Head | Role::LmHead)),
            Role::LmHead => true,
            role => role.is_projection(),
        };
        factor && matches!(self.parts[parameter], Part::Dense) && self.precision.products != DType::F32
    }

    /// The index sets by parameter name.
    pub fn index_sets(&self) -> BTreeMap<&str, &IndexSet> {
        let pairs = self.parameters.iter().zip(&self.parts);
        pairs.filter_map(|(p, part)| if let Part::Sparse(set) = part { Some((&*p.name, set)) } else { None }).collect()
    }

    pub fn position(&self, name: &str) -> Option<usize> {
        self.parameters.iter().position(|p| p.name == name)
    }
}

/// What the device and adapters call an added tensor: `model.layers.0.self_attn.q_proj.weight` and `lora_A` give
/// `model.layers.0.self_attn.q_proj.lora_A`, a shared one `shared.lora_A`.
pub fn extra_name(parameter: &str, extra: &ExtraTensor) -> String {
    match extra.shared {
        true => format!("shared.{}", extra.name),
        false => format!("{}.{}", parameter.strip_suffix(".weight").unwrap_or(parameter), extra.name),
    }
}

/// Without what has the name of an earlier one: a shared tensor counts once.
fn only_first(mut tensors: Vec<Trained>) -> Vec<Trained> {
    let mut seen = HashSet::new();
    tensors.retain(|t| seen.insert(t.name.clone()));
    tensors
}

fn is_sparse(selection: &Selection) -> bool {
    matches!(selection, Selection::Sparse { .. } | Selection::Chosen { .. } | Selection::Magnitude(_))
}

/// Errors: a shared tensor that two weights describe differently, or that follows from one of them.
fn check_shared(info: &MethodInfo, selections: &[Selection]) -> Result<()> {
    let mut known: BTreeMap<&str, &ExtraTensor> = BTreeMap::new();
    let tensors = selections.iter().filter_map(|selection| match selection {
        Selection::Reparam { tensors } => Some(tensors),
        _ => None,
    });
    for tensor in tensors.flatten().filter(|tensor| tensor.shared) {
        let first = known.entry(&tensor.name).or_insert(tensor);
        if *first != tensor {
            return Err(broken(info, format!("the shared tensor `{}` is {first:?} and {tensor:?}", tensor.name)));
        }
        if tensor.init == Init::RowNorms {
            return Err(broken(info, format!("the shared tensor `{}` has the row norms of one weight", tensor.name)));
        }
    }
    Ok(())
}

fn check(info: &MethodInfo, parameter: &Parameter, selection: &Selection) -> Result<()> {
    let name = &parameter.name;
    match selection {
        Selection::Frozen | Selection::Dense => Ok(()),
        Selection::Sparse { probability } if !(*probability > 0.0 && *probability <= 1.0) => {
            Err(broken(info, format!("the probability {probability} for {name} is not in (0, 1]")))
        }
        Selection::Magnitude(Magnitude { share, .. }) if !(*share > 0.0 && *share <= 1.0) => {
            Err(broken(info, format!("the share {share} of {name} is not in (0, 1]")))
        }
        sparse if is_sparse(sparse) && parameter.numel() >= 1 << 32 => {
            Err(broken(info, format!("{name} has {} elements, an index has 32 bits", parameter.numel())))
        }
        Selection::Chosen { indices } => {
            let ascending = indices.windows(2).all(|pair| pair[0] < pair[1]);
            match ascending && indices.last().is_none_or(|&last| u64::from(last) < parameter.numel()) {
                true => Ok(()),
                false => Err(broken(info, format!("the elements chosen of {name} do not ascend within its shape"))),
            }
        }
        Selection::Sparse { .. } | Selection::Magnitude(_) => Ok(()),
        Selection::Reparam { .. } if !parameter.role.is_projection() => {
            Err(broken(info, format!("{name} is not the weight of a linear layer, only those can be reparametrised")))
        }
        Selection::Reparam { tensors } => {
            if let Some(t) = tensors.iter().find(|t| t.name.is_empty() || t.shape.contains(&0)) {
                return Err(broken(info, format!("the extra tensor `{}` {:?} of {name} is empty", t.name, t.shape)));
            }
            let rows = &parameter.shape[..1];
            match tensors.iter().find(|t| t.init == Init::RowNorms && t.shape != rows) {
                Some(t) => {
                    let (extra, shape) = (&t.name, &t.shape);
                    Err(broken(
                        info,
                        format!("`{extra}` has the norms of the rows of {name}, so {rows:?}, got {shape:?}"),
                    ))
                }
                None => Ok(()),
            }
        }
    }
}

fn broken(info: &MethodInfo, what: String) -> Error {
    Error::Method(format!("method `{}` {} broke its contract: {what}", info.name, info.version))
}
