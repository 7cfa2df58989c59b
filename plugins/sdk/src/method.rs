//! What a method plugin provides: what is trainable and how it enters the forward pass. The host owns optimizer,
//! checkpoint, resume, merge, memory accounting and export.

use crate::Error;
use serde::{Deserialize, Serialize};
use sparta_graph::ops::Add;
use sparta_graph::{DType, Op, Value};

pub use crate::options::{Above, OptionInfo, OptionKind, Options};
pub use crate::step::{OwnForm, OwnTensor, StepInfo, StepTensors, Steps};

/// What a method says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodInfo {
    /// What `--method` accepts: `lora`.
    pub name: String,
    /// Of the plugin.
    pub version: String,
    /// One line for `--help`.
    pub summary: String,
    /// Declared with [`options!`](crate::options!).
    pub options: Vec<OptionInfo>,
    /// Learning rate when the user gives none.
    pub default_lr: f64,
}

/// What a tensor is for. Names are those of the Hugging Face checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The token embeddings `[vocabulary, hidden]`.
    Embedding,
    /// Norm weights, of layers, heads and the final one.
    Norm,
    /// Queries of attention.
    QProj,
    /// Keys of attention.
    KProj,
    /// Values of attention.
    VProj,
    /// Output of attention.
    OProj,
    /// Gate of the MLP.
    GateProj,
    /// First layer of the MLP.
    UpProj,
    /// Last layer of the MLP.
    DownProj,
    /// Q, k and v as one layer, their rows below each other (Phi-3).
    QkvProj,
    /// Gate and up as one layer, their rows below each other (Phi-3).
    GateUpProj,
    /// Biases of q, k, v.
    Bias,
    /// The vocabulary head of a causal model where untied.
    LmHead,
    /// The classification head `score.weight`.
    Head,
}

impl Role {
    /// Whether the tensor is the weight `[out, in]` of a linear layer of the body.
    pub fn is_projection(self) -> bool {
        use Role::*;
        matches!(self, QProj | KProj | VProj | OProj | GateProj | UpProj | DownProj | QkvProj | GateUpProj)
    }
}

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// As the checkpoint calls it: `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// `[out, in]` for a linear layer.
    pub shape: Vec<usize>,
    /// As it is stored.
    pub dtype: DType,
    /// What it is for.
    pub role: Role,
    /// The layer of the decoder that it belongs to, from 0.
    pub layer: Option<usize>,
}

impl Parameter {
    /// How many numbers it has.
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// What a method does with one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// It is not trained.
    Frozen,
    /// Every element is trained, from an f32 master.
    Dense,
    /// Each element is trained with this probability; the host draws the index set.
    Sparse {
        /// In (0, 1].
        probability: f64,
    },
    /// These elements are trained: flat, row-major, ascending. Since ABI minor version 3.
    Chosen {
        /// Positions in the tensor as one row.
        indices: Vec<u32>,
    },
    /// The elements with the largest or the smallest magnitudes are trained; of equal ones those that come first. Since ABI
    /// minor version 3.
    Magnitude(Magnitude),
    /// A linear layer with this weight computes [`Method::forward`], with these extra tensors. Any other parameter is used as
    /// [`Method::merge`] gives it, which is possible since ABI minor version 4.
    Reparam {
        /// As `forward` and `merge` get them.
        tensors: Vec<ExtraTensor>,
    },
    /// The elements with the largest or the smallest scores are trained, which the host computes before the training. Since
    /// ABI minor version 4.
    Scored(Scored),
    /// A dense or sparse selection whose updates have rates of their own. Since ABI minor version 4.
    Rated {
        /// Learning rate and weight decay.
        #[serde(flatten)]
        rates: Rates,
        /// What is trained with them.
        selection: Box<Selection>,
    },
}

impl Selection {
    /// The same elements with these rates.
    pub fn rated(self, rates: Rates) -> Self {
        Selection::Rated { rates, selection: Box::new(self) }
    }
}

/// Learning rate and weight decay of a trained tensor, unless the user gives it others with `--group`. Since ABI minor
/// version 4.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// What the run's learning rate is multiplied by, above 0.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub lr_factor: f64,
    /// `None`: the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

impl Default for Rates {
    /// Those of the run.
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
    /// The share of the elements, in (0, 1], rounded to a whole number of them, one at least.
    pub share: f64,
    /// Which end of the order is taken.
    pub order: Order,
    /// Among what the elements are compared.
    pub scope: Scope,
}

/// Which magnitudes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The largest.
    Largest,
    /// The smallest.
    Smallest,
}

/// Among what the elements are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The tensor.
    Tensor,
    /// All tensors that are selected in the same way.
    Model,
    /// Groups of this many neighbours in a row, whose length it divides: share 0.5 of 4 is a 2:4 pattern.
    Group(usize),
}

/// Which elements [`Selection::Scored`] takes; the first three as in [`Magnitude`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The share of the elements, in (0, 1].
    pub share: f64,
    /// Which end of the scores is taken.
    pub order: Order,
    /// Among what elements are compared.
    pub scope: Scope,
    /// What an element is worth.
    pub score: Score,
}

impl Scored {
    /// How elements are taken by their scores.
    pub fn rule(self) -> Magnitude {
        let Scored { share, order, scope, .. } = self;
        Magnitude { share, order, scope }
    }
}

/// What an element is worth. Each batch is that of an optimizer step, the first ones of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// The sum of |g| over these batches, or of g^2 (the diagonal of the empirical Fisher information).
    Gradient {
        /// How many batches are summed over.
        batches: u32,
        /// Squares in place of magnitudes.
        #[serde(default)]
        squared: bool,
    },
    /// The sum of |w g| over these batches.
    WeightGradient {
        /// How many batches are summed over.
        batches: u32,
    },
    /// |w after - w before| of steps that train all elements of the scored tensors, with the run's optimizer and
    /// learning rate, and everything else as the method says. They are taken back.
    Change {
        /// How many steps are taken.
        steps: u32,
    },
}

impl Score {
    /// The batches or steps that it takes.
    pub fn count(self) -> u32 {
        match self {
            Score::Gradient { batches, .. } | Score::WeightGradient { batches } => batches,
            Score::Change { steps } => steps,
        }
    }
}

/// A tensor that a reparametrisation adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExtraTensor {
    /// Appended to the weight's name without `.weight`: `lora_A`. A shared tensor is called `shared.` and this.
    pub name: String,
    /// One dimension or more, none of them 0.
    pub shape: Vec<usize>,
    /// Its values when training begins.
    pub init: Init,
    /// Whether it is trained. One that is not follows from the seed or the model, so no adapter stores it. Since ABI minor
    /// version 3.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub trained: bool,
    /// Whether all weights that add a tensor of this name mean the same one, which all describe alike. Since ABI minor version 3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Since ABI minor version 4.
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
    /// A trained tensor of one weight.
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

    /// It keeps its initial values.
    pub fn frozen(self) -> Self {
        ExtraTensor { trained: false, ..self }
    }

    /// It is one for all weights.
    pub fn shared(self) -> Self {
        ExtraTensor { shared: true, ..self }
    }

    /// Its updates have these rates.
    pub fn rated(self, rates: Rates) -> Self {
        ExtraTensor { rates, ..self }
    }
}

/// Values that a tensor begins with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// All 0.
    Zeros,
    /// Uniform in +-bound.
    Uniform {
        /// 0 or more.
        bound: f64,
    },
    /// Normal with mean 0, drawn by the run's seed.
    Normal {
        /// Standard deviation, 0 or more.
        std: f64,
    },
    /// All of one value. Since ABI minor version 3.
    Constant {
        /// A finite number.
        value: f64,
    },
    /// The Euclidean norms of the rows of the weight `[out, in]`: `out` numbers. Since ABI minor version 3.
    RowNorms,
}

/// The place where a reparametrised weight is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// The weight.
    pub parameter: Parameter,
    /// Of the method.
    pub options: Options,
    /// False while evaluating: no dropout then.
    pub training: bool,
}

/// The host's graph, as a method sees it.
pub trait GraphBuilder {
    /// Adds one operation and returns its outputs. A wrong shape or dtype is an error that names both.
    fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>, Error>;
    /// The dimensions of a value. Errors: a value that is not of this graph.
    fn shape(&self, value: Value) -> Result<Vec<usize>, Error>;
    /// The random counter input that [`Op::Dropout`] takes. Errors: while evaluating there is none.
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
    /// Its name, version and options; the same whenever it is asked for.
    fn describe(&self) -> MethodInfo;

    /// One selection per parameter, in order. `parameters` is the whole model, the new head last.
    ///
    /// Errors: options that this model cannot have, with what it can.
    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error>;

    /// The output rows of a reparametrised linear layer of the body, or of the classification head: `x` is `[T, in]`, `w`
    /// `[out, in]`, the result `[T, out]`. `extra` are the tensors asked for in `select`, in order.
    fn forward(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let _ = (graph, x, w, extra);
        Err(Error::new(format!("this method does not reparametrise {}", site.parameter.name)))
    }

    /// [`Method::forward`] of a layer that has a bias `[out]`, which the result includes. Since ABI minor version 4; without
    /// it the bias is added to what `forward` gives.
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

    /// Whether a reparametrised weight can be merged. Where it cannot, there is training, evaluation and prediction, but no
    /// merged model.
    fn mergeable(&self) -> bool {
        true
    }

    /// The parameter, f32 of its shape, with which the plain model computes what the reparametrised one does without dropout.
    /// `w` is in f32 here, whatever its type in `forward`. Norms, biases, the embedding and the vocabulary head have no
    /// `forward`: they are used in training, too, as this gives them.
    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let _ = (graph, w, extra);
        Err(Error::new(format!("this method does not reparametrise {}", site.parameter.name)))
    }

    /// When [`Method::on_step`] is called with these options; `None`: never. Since ABI minor version 4.
    fn steps(&self, options: &Options) -> Result<Option<Steps>, Error> {
        let _ = options;
        Ok(None)
    }

    /// Acts after an optimizer step that changed something: reads tensors, changes them, and returns what it wants to know at
    /// the next call. What it does may depend on nothing else, or a resumed run is another one. Since ABI minor version 4.
    fn on_step(&self, step: &StepInfo, tensors: &mut dyn StepTensors) -> Result<serde_json::Value, Error> {
        let _ = (step, tensors);
        Err(Error::new("this method does not act between steps"))
    }

    /// [`Method::merge`] of a layer that has a bias, f32 `[out]`: weight and bias. Since ABI minor version 4; without it the
    /// bias stays as it is.
    fn merge_with_bias(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        [w, bias]: [Value; 2],
        extra: &[Value],
    ) -> Result<[Value; 2], Error> {
        Ok([self.merge(site, graph, w, extra)?, bias])
    }

    /// A term of the loss for a reparametrised parameter, f32 `[1]`, or none. It counts once in each optimizer step, however
    /// many micro-batches that has, and never in an evaluation. `w` has the type of the checkpoint or f32, `extra` are f32.
    /// Since ABI minor version 4.
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

    /// The values that the extra tensors have after an optimizer step, given those that the optimizer made, f32: one each, of
    /// its shape. A value that is returned as it is stays so; so do all of them where a step is not finite. `lr` is the
    /// step's learning rate, f32 `[1]`. Of a shared tensor the first weight decides. Since ABI minor version 4.
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

    /// As the header shows them to other languages.
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
