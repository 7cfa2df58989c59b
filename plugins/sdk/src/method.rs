//! What a method plugin provides: what is trainable and how it enters the forward pass. The host owns optimizer,
//! checkpoint, resume, merge, memory accounting and export.

use crate::Error;
use serde::{Deserialize, Serialize};
use sparta_graph::{DType, Op, Value};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodInfo {
    pub name: String,
    pub version: String,
    /// One line for `--help`.
    pub summary: String,
    pub options: Vec<OptionInfo>,
    /// Learning rate when the user gives none.
    pub default_lr: f64,
}

/// An option of a method: it becomes a command line option and a configuration key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptionInfo {
    /// In kebab case, without dashes: `lora-alpha`, `density`.
    pub name: String,
    pub help: String,
    pub kind: OptionKind,
    /// `None`: the user must give it.
    pub default: Option<serde_json::Value>,
}

/// Types and ranges; the host checks them before the plugin sees a value. NaN is never in range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum OptionKind {
    /// `min_open`: the minimum itself is excluded.
    Float {
        min: f64,
        max: f64,
        #[serde(default)]
        min_open: bool,
    },
    Int {
        min: i64,
        max: i64,
    },
    Bool,
    Text,
}

/// Checked values of every option of the method, defaults filled in.
pub type Options = BTreeMap<String, serde_json::Value>;

/// What a tensor is for. Names are those of the Hugging Face checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Embedding,
    /// Norm weights, of layers, heads and the final one.
    Norm,
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
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
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub role: Role,
    pub layer: Option<usize>,
}

impl Parameter {
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// What a method does with one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    Frozen,
    /// Every element is trained, from an f32 master.
    Dense,
    /// Each element is trained with this probability; the host draws the index set.
    Sparse {
        probability: f64,
    },
    /// The linear layer of this weight is replaced by [`Method::forward`], with these extra trained tensors.
    Reparam {
        tensors: Vec<ExtraTensor>,
    },
}

/// A tensor that a reparametrisation adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExtraTensor {
    /// Appended to the weight's name without `.weight`: `lora_A`.
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    Zeros,
    /// Uniform in +-bound.
    Uniform {
        bound: f64,
    },
    Normal {
        std: f64,
    },
}

/// The place where a reparametrised weight is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    pub parameter: Parameter,
    pub options: Options,
    /// False while evaluating: no dropout then.
    pub training: bool,
}

/// The host's graph, as a method sees it.
pub trait GraphBuilder {
    /// Adds one operation and returns its outputs. A wrong shape or dtype is an error that names both.
    fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>, Error>;
    fn shape(&self, value: Value) -> Result<Vec<usize>, Error>;
    /// The random counter input that [`Op::Dropout`] takes.
    fn rng(&mut self) -> Result<Value, Error>;
}

/// A fine-tuning method.
pub trait Method: Send + Sync {
    fn describe(&self) -> MethodInfo;

    /// One selection per parameter, in order. `parameters` is the whole model, the new head last.
    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error>;

    /// The output rows of a reparametrised linear layer: `x` is `[T, in]`, `w` `[out, in]`, the result `[T, out]`.
    /// `extra` are the tensors asked for in `select`, in order. A bias is added by the host.
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

    /// Whether a reparametrised weight can be merged. Where it cannot, there is training, evaluation and prediction, but no
    /// merged model.
    fn mergeable(&self) -> bool {
        true
    }

    /// The weight, f32 `[out, in]`, with which a plain linear layer gives what `forward` gives without dropout. `w` is in
    /// f32 here, whatever its type in `forward`.
    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let _ = (graph, w, extra);
        Err(Error::new(format!("this method does not reparametrise {}", site.parameter.name)))
    }
}
