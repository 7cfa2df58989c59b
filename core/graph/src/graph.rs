use crate::{DType, Op};
use serde::{Deserialize, Serialize};

/// A handle of a tensor in a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Value(pub u32);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GraphError {
    #[error("{label}: {op}: {reason}")]
    Op { label: String, op: &'static str, reason: String },
    #[error("value {0} is not in this graph")]
    UnknownValue(u32),
    #[error("no gradient reaches `{0}`: it does not influence the loss")]
    NoGradient(String),
    #[error("{op} has no gradient with respect to input {input}")]
    NotDifferentiable { op: &'static str, input: usize },
}

/// Shape and element type of a tensor, row-major.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl TensorType {
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Self {
        TensorType { dtype, shape: shape.into() }
    }

    pub fn f32(shape: impl Into<Vec<usize>>) -> Self {
        Self::new(DType::F32, shape)
    }

    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn bytes(&self) -> usize {
        self.numel() * self.dtype.size()
    }
}

#[derive(Clone, Debug)]
pub struct ValueInfo {
    pub ty: TensorType,
    /// The name of an external tensor; `None` for what a node makes.
    pub external: Option<String>,
}

/// One operation. Nodes stand in execution order.
#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    /// Where in the model it stands: `layers.3.mlp`. Errors and profiles name it.
    pub label: String,
}

/// Tensors in SSA form and the operations on them. External tensors (weights, inputs, optimizer state) live outside;
/// only ops with [`Op::writes`] change them, in node order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    values: Vec<ValueInfo>,
    nodes: Vec<Node>,
    label: String,
}

impl Graph {
    pub fn new() -> Self {
        Self::default()
    }

    /// Nodes added from now on carry this label.
    pub fn set_label(&mut self, label: impl Into<String>) {
        self.label = label.into();
    }

    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn external(&mut self, name: impl Into<String>, dtype: DType, shape: impl Into<Vec<usize>>) -> Value {
        self.push(TensorType::new(dtype, shape), Some(name.into()))
    }

    fn push(&mut self, ty: TensorType, external: Option<String>) -> Value {
        self.values.push(ValueInfo { ty, external });
        Value(self.values.len() as u32 - 1)
    }

    /// Adds a node and returns its outputs.
    ///
    /// Errors: a handle of another graph; a shape, dtype or attribute that the op's rule refuses.
    pub fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let types = inputs.iter().map(|&v| self.ty(v)).collect::<Result<Vec<_>, _>>()?;
        let outputs =
            op.infer(&types).map_err(|reason| GraphError::Op { label: self.label.clone(), op: op.name(), reason })?;
        let outputs: Vec<Value> = outputs.into_iter().map(|ty| self.push(ty, None)).collect();
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone(), label: self.label.clone() });
        Ok(outputs)
    }

    /// [`Graph::apply`] for an op with exactly one output, or its first output.
    pub fn one(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, GraphError> {
        let op = op.into();
        let name = op.name();
        let outputs = self.apply(op, inputs)?;
        outputs.first().copied().ok_or_else(|| GraphError::Op {
            label: self.label.clone(),
            op: name,
            reason: "has no output".into(),
        })
    }

    pub fn ty(&self, value: Value) -> Result<&TensorType, GraphError> {
        self.values.get(value.0 as usize).map(|v| &v.ty).ok_or(GraphError::UnknownValue(value.0))
    }

    pub fn shape(&self, value: Value) -> Result<&[usize], GraphError> {
        Ok(&self.ty(value)?.shape)
    }

    pub fn values(&self) -> &[ValueInfo] {
        &self.values
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Elements of a value by handle; panics on a foreign handle, which [`Graph::apply`] never lets in.
    pub(crate) fn info(&self, value: Value) -> &ValueInfo {
        &self.values[value.0 as usize]
    }
}
