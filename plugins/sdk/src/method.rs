//! What a method plugin provides: what is trainable, and how it enters the forward pass. The host owns the optimizer,
//! checkpoints, resuming, merging, memory accounting and export.

use crate::Error;
use serde::{Deserialize, Serialize};
use sparta_graph::ops::Add;
use sparta_graph::{DType, Op, Value};

pub use crate::options::{Above, OptionInfo, OptionKind, Options};
pub use crate::step::{OwnForm, OwnTensor, StepInfo, StepTensors, Steps};

/// How a method describes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodInfo {
    /// What `--method` accepts, such as `lora`.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// One line for `--help`.
    pub summary: String,
    /// The method's options, declared with [`options!`](crate::options!).
    pub options: Vec<OptionInfo>,
    /// The learning rate when the user gives none.
    pub default_lr: f64,
}

/// What a tensor is for, named as in Hugging Face checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The token embeddings `[vocabulary, hidden]`.
    Embedding,
    /// Norm weights: of layers, of attention heads, and the final norm.
    Norm,
    /// The query projection of attention.
    QProj,
    /// The key projection of attention.
    KProj,
    /// The value projection of attention.
    VProj,
    /// The output projection of attention.
    OProj,
    /// The gate projection of the MLP.
    GateProj,
    /// The up projection of the MLP.
    UpProj,
    /// The down projection of the MLP.
    DownProj,
    /// Queries, keys and values as one layer, their rows stacked (Phi-3).
    QkvProj,
    /// Gate and up as one layer, their rows stacked (Phi-3).
    GateUpProj,
    /// Biases of the query, key and value projections.
    Bias,
    /// The vocabulary head of a causal model, if it is not tied to the embeddings.
    LmHead,
    /// The classification head `score.weight`.
    Head,
}

impl Role {
    /// Whether the tensor is the weight `[out, in]` of a linear layer inside the decoder.
    pub fn is_projection(self) -> bool {
        use Role::*;
        matches!(self, QProj | KProj | VProj | OProj | GateProj | UpProj | DownProj | QkvProj | GateUpProj)
    }
}

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name in the checkpoint, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Its dimensions: `[out, in]` for a linear layer.
    pub shape: Vec<usize>,
    /// The type it is stored in.
    pub dtype: DType,
    /// What it is for.
    pub role: Role,
    /// The decoder layer it belongs to, counted from 0.
    pub layer: Option<usize>,
}

impl Parameter {
    /// How many elements it has.
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// What a method does with one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Nothing is trained.
    Frozen,
    /// Every element is trained, from an f32 master.
    Dense,
    /// Each element is trained with this probability; the host draws which.
    Sparse {
        /// The probability, in (0, 1].
        probability: f64,
    },
    /// These elements are trained: flat, row-major, ascending. Since ABI minor version 3.
    Chosen {
        /// Positions in the flattened tensor.
        indices: Vec<u32>,
    },
    /// The elements with the largest or smallest magnitudes are trained; among equal ones, those that come first. Since
    /// ABI minor version 3.
    Magnitude(Magnitude),
    /// A linear layer with this weight computes [`Method::forward`], with these extra tensors. Any other parameter is
    /// replaced by what [`Method::merge`] returns, which is possible since ABI minor version 4.
    Reparam {
        /// The extra tensors, in the order `forward` and `merge` get them.
        tensors: Vec<ExtraTensor>,
    },
    /// The elements with the largest or smallest scores are trained; the host computes the scores before training.
    /// Since ABI minor version 4.
    Scored(Scored),
    /// A dense or sparse selection with its own learning rate or weight decay. Since ABI minor version 4.
    Rated {
        /// Learning rate and weight decay.
        #[serde(flatten)]
        rates: Rates,
        /// What is trained with them.
        selection: Box<Selection>,
    },
}

impl Selection {
    /// The same selection with these rates.
    pub fn rated(self, rates: Rates) -> Self {
        Selection::Rated { rates, selection: Box::new(self) }
    }
}

/// Learning rate and weight decay of a trained tensor, unless the user sets others with `--group`. Since ABI minor
/// version 4.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// The factor on the run's learning rate, above 0.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub lr_factor: f64,
    /// Weight decay; `None`: the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

impl Default for Rates {
    /// The run's own rates.
    fn default() -> Self {
        Rates { lr_factor: 1.0, weight_decay: None }
    }
}

fn one() -> f64 {
    1.0
}

fn is_one(factor: &f64) -> bool {
    *factor == 1.0
}

/// Which elements [`Selection::Magnitude`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Magnitude {
    /// The share of the elements, in (0, 1], rounded to a whole number of them, at least one.
    pub share: f64,
    /// Whether the largest or the smallest are taken.
    pub order: Order,
    /// What the elements are compared among.
    pub scope: Scope,
}

/// Which end of an order is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The largest.
    Largest,
    /// The smallest.
    Smallest,
}

/// What elements are compared among.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Elements of the same tensor.
    Tensor,
    /// Elements of all tensors with the same selection.
    Model,
    /// Groups of this many neighbours in a row, whose length it must divide: share 0.5 of groups of 4 is a 2:4 pattern.
    Group(usize),
}

/// Which elements [`Selection::Scored`] takes; the first three fields are those of [`Magnitude`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The share of the elements, in (0, 1].
    pub share: f64,
    /// Whether the largest or the smallest scores are taken.
    pub order: Order,
    /// What elements are compared among.
    pub scope: Scope,
    /// How an element is scored.
    pub score: Score,
}

impl Scored {
    /// The same choice by magnitude, to be applied to the scores.
    pub fn rule(self) -> Magnitude {
        let Scored { share, order, scope, .. } = self;
        Magnitude { share, order, scope }
    }
}

/// How an element is scored. The batches are those of the run's first optimizer steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// The sum of |g| over the batches, or of g^2 (the diagonal of the empirical Fisher information).
    Gradient {
        /// How many batches are summed over.
        batches: u32,
        /// Squares instead of magnitudes.
        #[serde(default)]
        squared: bool,
    },
    /// The sum of |w g| over the batches.
    WeightGradient {
        /// How many batches are summed over.
        batches: u32,
    },
    /// |w after - w before| over steps that train all elements of the scored tensors, with the run's optimizer and
    /// learning rate and everything else as the method says. The steps are undone afterwards.
    Change {
        /// How many steps are taken.
        steps: u32,
    },
}

impl Score {
    /// How many batches or steps the score takes.
    pub fn count(self) -> u32 {
        match self {
            Score::Gradient { batches, .. } | Score::WeightGradient { batches } => batches,
            Score::Change { steps } => steps,
        }
    }
}

/// A tensor that a reparametrization adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExtraTensor {
    /// Appended to the weight's name without `.weight`, such as `lora_A`; a shared tensor is named `shared.` and this.
    pub name: String,
    /// At least one dimension, none of them 0.
    pub shape: Vec<usize>,
    /// Its values when training starts.
    pub init: Init,
    /// Whether it is trained. If not, it follows from the seed or the model, and adapters do not store it. Since ABI
    /// minor version 3.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub trained: bool,
    /// Whether all weights that add a tensor of this name share one, which all must describe alike. Since ABI minor
    /// version 3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Its learning rate and weight decay. Since ABI minor version 4.
    #[serde(flatten)]
    pub rates: Rates,
}

fn yes() -> bool {
    true
}

fn is_true(on: &bool) -> bool {
    *on
}

impl ExtraTensor {
    /// A trained tensor that belongs to one weight.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, init: Init) -> Self {
        ExtraTensor {
            name: name.into(),
            shape: shape.into(),
            init,
            trained: true,
            shared: false,
            rates: Rates::default(),
        }
    }

    /// The same tensor, not trained: it keeps its initial values.
    pub fn frozen(self) -> Self {
        ExtraTensor { trained: false, ..self }
    }

    /// The same tensor, shared by all weights.
    pub fn shared(self) -> Self {
        ExtraTensor { shared: true, ..self }
    }

    /// The same tensor with these rates.
    pub fn rated(self, rates: Rates) -> Self {
        ExtraTensor { rates, ..self }
    }
}

/// The initial values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// All 0.
    Zeros,
    /// Uniform between -bound and bound.
    Uniform {
        /// The bound, at least 0.
        bound: f64,
    },
    /// Normal with mean 0, drawn with the run's seed.
    Normal {
        /// The standard deviation, at least 0.
        std: f64,
    },
    /// One value everywhere. Since ABI minor version 3.
    Constant {
        /// The value, a finite number.
        value: f64,
    },
    /// The Euclidean norms of the rows of the weight `[out, in]`: `out` numbers. Since ABI minor version 3.
    RowNorms,
}

/// The place where a reparametrized weight is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// The reparametrized weight.
    pub parameter: Parameter,
    /// The method's options.
    pub options: Options,
    /// False in an evaluation, which has no dropout.
    pub training: bool,
}

/// The host's graph, as a method sees it.
pub trait GraphBuilder {
    /// Adds one operation and returns its outputs. A wrong shape or type is an error that names what was expected and
    /// given.
    fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>, Error>;
    /// The dimensions of a value. Errors: a value that is not of this graph.
    fn shape(&self, value: Value) -> Result<Vec<usize>, Error>;
    /// The random counter that [`Op::Dropout`] takes as an input. Errors: an evaluation has none.
    fn rng(&mut self) -> Result<Value, Error>;
}

impl dyn GraphBuilder + '_ {
    /// [`GraphBuilder::apply`] of an operation with one output.
    pub fn one(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, Error> {
        let outputs = self.apply(op.into(), inputs)?;
        outputs.first().copied().ok_or_else(|| Error::new("the operation has no output"))
    }
}

/// A fine-tuning method.
pub trait Method: Send + Sync {
    /// Its name, version and options; the same on every call.
    fn describe(&self) -> MethodInfo;

    /// Decides what is trained: one selection per parameter, in order. `parameters` is the whole model, a new head
    /// last.
    ///
    /// Errors: options that do not fit this model, with a message that says what does.
    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error>;

    /// The output of a reparametrized linear layer of the decoder, or of the classification head: `x` is `[T, in]`, `w`
    /// `[out, in]`, the result `[T, out]`. `extra` are the tensors that `select` added, in order.
    fn forward(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let _ = (graph, x, w, extra);
        Err(Error::new(format!("this method does not reparametrize {}", site.parameter.name)))
    }

    /// [`Method::forward`] for a layer with a bias `[out]`, which the result includes. Since ABI minor version 4;
    /// without it, the bias is added to the result of `forward`.
    fn forward_with_bias(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        [w, bias]: [Value; 2],
        extra: &[Value],
    ) -> Result<Value, Error> {
        let y = self.forward(site, graph, x, w, extra)?;
        graph.one(Add {}, &[y, bias])
    }

    /// Whether a reparametrized weight can be merged. If not, the method can train, evaluate and predict, but give no
    /// merged model.
    fn mergeable(&self) -> bool {
        true
    }

    /// The parameter, f32 of its shape, with which the plain model computes what the reparametrized one does without
    /// dropout.
    /// `w` is f32 here, whatever its type in `forward`. Norms, biases, the embeddings and the vocabulary head have no
    /// `forward`: training, too, uses what this returns.
    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let _ = (graph, w, extra);
        Err(Error::new(format!("this method does not reparametrize {}", site.parameter.name)))
    }

    /// How often [`Method::on_step`] is called with these options; `None`: never. Since ABI minor version 4.
    fn steps(&self, options: &Options) -> Result<Option<Steps>, Error> {
        let _ = options;
        Ok(None)
    }

    /// Acts after an optimizer step that changed something: reads tensors, changes them, and returns what it needs to
    /// know at the next call. It may depend on nothing else, or a resumed run would differ. Since ABI minor version 4.
    fn on_step(&self, step: &StepInfo, tensors: &mut dyn StepTensors) -> Result<serde_json::Value, Error> {
        let _ = (step, tensors);
        Err(Error::new("this method does not act between steps"))
    }

    /// [`Method::merge`] for a layer with a bias, f32 `[out]`: returns weight and bias. Since ABI minor version 4;
    /// without it, the bias stays unchanged.
    fn merge_with_bias(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        [w, bias]: [Value; 2],
        extra: &[Value],
    ) -> Result<[Value; 2], Error> {
        Ok([self.merge(site, graph, w, extra)?, bias])
    }

    /// A term to add to the loss for a reparametrized parameter, f32 `[1]`, or none. It counts once per optimizer step,
    /// however many micro-batches that has, and never in an evaluation. `w` has the checkpoint's type or f32, `extra`
    /// are f32. Since ABI minor version 4.
    fn penalty(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        w: Value,
        extra: &[Value],
    ) -> Result<Option<Value>, Error> {
        let _ = (site, graph, w, extra);
        Ok(None)
    }

    /// The values the extra tensors take after an optimizer step, given those the optimizer computed, f32: one per
    /// tensor, of its shape. A value returned as it came stays unchanged, and so do all of them if a step is not
    /// finite. `lr` is the step's learning rate, f32 `[1]`. For a shared tensor, the first weight decides. Since ABI
    /// minor version 4.
    fn update(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        extra: &[Value],
        lr: Value,
    ) -> Result<Vec<Value>, Error> {
        let _ = (site, graph, lr);
        Ok(extra.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    // The header shows other languages the same JSON.
    #[test]
    fn selections_of_minor_version_4_as_json() {
        let rates = Rates { lr_factor: 0.1, weight_decay: Some(0.0) };
        let score = Score::Gradient { batches: 8, squared: true };
        let scored = Scored { share: 0.05, order: Order::Largest, scope: Scope::Group(4), score };
        let extra =
            ExtraTensor::new("lora_B", [2, 8], Init::Zeros).rated(Rates { lr_factor: 16.0, weight_decay: None });
        for (selection, expected) in [
            (
                Selection::Dense.rated(rates),
                json!({"rated": {"lr_factor": 0.1, "weight_decay": 0.0, "selection": "dense"}}),
            ),
            (
                Selection::Scored(scored),
                json!({"scored": {"share": 0.05, "order": "largest", "scope": {"group": 4},
                    "score": {"gradient": {"batches": 8, "squared": true}}}}),
            ),
            (
                Selection::Reparam { tensors: vec![extra] },
                json!({"reparam": {"tensors": [{"name": "lora_B", "shape": [2, 8], "init": "zeros", "lr_factor": 16.0}]}}),
            ),
        ] {
            assert_eq!(serde_json::to_value(&selection).unwrap(), expected);
            assert_eq!(serde_json::from_value::<Selection>(expected).unwrap(), selection);
        }
        let short =
            json!({"scored": {"share": 1.0, "order": "smallest", "scope": "model", "score": {"change": {"steps": 3}}}});
        assert!(matches!(
            serde_json::from_value(short).unwrap(),
            Selection::Scored(Scored { score: Score::Change { steps: 3 }, .. })
        ));
    }
}
