use crate::{DType, Op};
use serde::{Deserialize, Serialize};

/// Alignment of tensors in the arena in bytes: the largest that WebGPU requires of a binding.
pub const ALIGNMENT: usize = 256;

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
    #[error("{op}: its output {output} cannot be differentiated, but influences the loss")]
    OutputNotDifferentiable { op: &'static str, output: usize },
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
    /// The name of an external tensor; `None` for a node's output.
    pub external: Option<String>,
    /// The tensor of which this one is a rounded copy ([`Graph::shadow`]), or from which it is decoded ([`Op::decodes`]).
    pub master: Option<Value>,
}

/// One operation. Nodes are in execution order.
#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    /// Its place in the model, such as `layers.3.mlp`, for errors and profiles.
    pub label: String,
    /// Its segment for [`crate::recompute()`].
    pub segment: Option<u32>,
}

/// Tensors in SSA form and the operations on them. External tensors (weights, inputs, optimizer state) live outside;
/// only ops with [`Op::writes`] change them, in node order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    values: Vec<ValueInfo>,
    pub(crate) nodes: Vec<Node>,
    label: String,
    segment: Option<u32>,
}

impl Graph {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the label of nodes added from now on.
    pub fn set_label(&mut self, label: impl Into<String>) {
        self.label = label.into();
    }

    pub fn label(&self) -> &str {
        &self.label
    }

    /// Sets the segment of nodes added from now on: a layer.
    pub fn set_segment(&mut self, segment: Option<u32>) {
        self.segment = segment;
    }

    pub fn external(&mut self, name: impl Into<String>, dtype: DType, shape: impl Into<Vec<usize>>) -> Value {
        self.push(TensorType::new(dtype, shape), Some(name.into()))
    }

    /// An external tensor that holds the values of `master` rounded to `dtype`, for products with a trained weight. Its
    /// gradient counts for its master. The caller must keep the copy up to date, with [`crate::ops::Store`].
    ///
    /// Errors: a handle of another graph.
    pub fn shadow(&mut self, name: impl Into<String>, dtype: DType, master: Value) -> Result<Value, GraphError> {
        let ty = TensorType::new(dtype, self.shape(master)?);
        let shadow = self.push(ty, Some(name.into()));
        self.values[shadow.0 as usize].master = Some(master);
        Ok(shadow)
    }

    pub(crate) fn push(&mut self, ty: TensorType, external: Option<String>) -> Value {
        self.values.push(ValueInfo { ty, external, master: None });
        Value(self.values.len() as u32 - 1)
    }

    /// Adds a node and returns its outputs.
    ///
    /// Errors: a handle of another graph; a shape, dtype or attribute that the op refuses.
    pub fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let types = inputs.iter().map(|&v| self.ty(v)).collect::<Result<Vec<_>, _>>()?;
        let outputs =
            op.infer(&types).map_err(|reason| GraphError::Op { label: self.label.clone(), op: op.name(), reason })?;
        let outputs: Vec<Value> = outputs.into_iter().map(|ty| self.push(ty, None)).collect();
        if op.decodes() {
            outputs.iter().for_each(|v| self.values[v.0 as usize].master = inputs.first().copied());
        }
        self.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            label: self.label.clone(),
            segment: self.segment,
        });
        Ok(outputs)
    }

    /// Replaces the op of node `i`. Its first `kept` outputs, of the same types as before, keep their handles; returns
    /// the others.
    pub(crate) fn replace(
        &mut self,
        i: usize,
        op: Op,
        inputs: Vec<Value>,
        kept: usize,
    ) -> Result<Vec<Value>, GraphError> {
        let types = inputs.iter().map(|&v| self.ty(v)).collect::<Result<Vec<_>, _>>()?;
        let label = self.nodes[i].label.clone();
        let outputs = op.infer(&types).map_err(|reason| GraphError::Op { label, op: op.name(), reason })?;
        let made: Vec<Value> = outputs.into_iter().skip(kept).map(|ty| self.push(ty, None)).collect();
        let node = &mut self.nodes[i];
        node.outputs.truncate(kept);
        node.outputs.extend(&made);
        (node.op, node.inputs) = (op, inputs);
        Ok(made)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::*;

    fn refusal(graph: &mut Graph, op: impl Into<Op>, inputs: &[Value]) -> String {
        graph.apply(op.into(), inputs).expect_err("must be refused").to_string()
    }

    #[test]
    fn outputs_have_the_inferred_types() {
        let mut graph = Graph::new();
        let q = graph.external("q", DType::F32, [5, 24]);
        let kv = graph.external("kv", DType::F32, [5, 8]);
        let spans = graph.external("spans", DType::U32, [5, 2]);
        let attention = Attention {
            heads: 3,
            kv_heads: 1,
            head_dim: 8,
            scale: 1.0,
            window: None,
            soft_cap: None,
            dropout: 0.0,
            salt: 0,
        };
        let outputs = graph.apply(attention.into(), &[q, kv, kv, spans]).unwrap();
        assert_eq!(graph.shape(outputs[0]).unwrap(), [5, 24]);
        assert_eq!(graph.ty(outputs[1]).unwrap(), &TensorType::f32([5, 3]));
    }

    #[test]
    fn refusals_name_the_label_the_op_and_the_reason() {
        let mut graph = Graph::new();
        graph.set_label("layers.3.mlp");
        let a = graph.external("a", DType::F32, [3, 5]);
        let b = graph.external("b", DType::F16, [7, 6]);
        let reason = refusal(&mut graph, Linear::plain(Layout::Nt), &[a, b]);
        assert_eq!(reason, "layers.3.mlp: linear: inner dimensions differ in Nt: a [3, 5], b [7, 6]");
        assert!(refusal(&mut graph, Linear::plain(Layout::Tn), &[a, b]).contains("b must be f32 or bf16, got f16"));
        assert!(refusal(&mut graph, Add {}, &[a]).contains("expected 2 inputs, got 1"));
        assert!(
            refusal(&mut graph, Rope { head_dim: 3, inverse: false, rotated: None }, &[a, a, a])
                .contains("even divisor of 5")
        );
        assert!(refusal(&mut graph, Dropout { p: 1.0, salt: 0 }, &[a, a]).contains("[0, 1)"));
        assert!(refusal(&mut graph, Dropout { p: f32::NAN, salt: 0 }, &[a, a]).contains("[0, 1)"));
        assert!(refusal(&mut graph, Cast { to: DType::U32 }, &[a]).contains("cannot cast to u32"));
        assert!(refusal(&mut graph, SumOfSquares { slot: 3 }, &[a, a]).contains("norms"));
    }

    #[test]
    fn a_refused_op_leaves_the_graph_as_it_was() {
        let mut graph = Graph::new();
        let a = graph.external("a", DType::F32, [3, 5]);
        refusal(&mut graph, Add {}, &[a]);
        assert_eq!((graph.nodes().len(), graph.values().len()), (0, 1));
    }

    #[test]
    fn a_foreign_handle_is_refused() {
        let mut graph = Graph::new();
        let unknown = Value(9);
        assert_eq!(graph.apply(Scale { factor: 1.0 }.into(), &[unknown]), Err(GraphError::UnknownValue(9)));
        assert!(graph.ty(unknown).is_err());
    }

    #[test]
    fn one_needs_an_output() {
        let mut graph = Graph::new();
        let a = graph.external("a", DType::F32, [3]);
        assert!(graph.one(Store {}, &[a, a]).is_err());
    }
}
