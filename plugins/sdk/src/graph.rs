//! What `forward` and `merge` are built from. Each operation documents its inputs, their shapes and their types.

mod own;

use crate::Error;
use crate::method::GraphBuilder;
use sparta_graph::Graph;

pub use own::{CpuInput, CpuKernel, CpuOutput, Own};
pub use sparta_graph::{DType, Op, Value};

/// The operations a method can use. Every one has a gradient and runs on every backend.
pub mod ops {
    pub use sparta_graph::ops::{
        Activation, Add, Broadcast, Cast, ColumnSum, Detach, Div, Dropout, Fill, Function, GatedAct, Launch, Layout,
        Linear, Map, Mul, RmsNorm, RowSum, Scale, ScaleBy, Slice, SoftCap, Transpose, Unslice,
    };
}

/// A graph of this process, as a method builds on it.
pub struct Recorder<'g> {
    /// What is built.
    pub graph: &'g mut Graph,
    /// The random input; `None` while evaluating.
    pub rng: Option<Value>,
}

impl GraphBuilder for Recorder<'_> {
    fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>, Error> {
        if !op.writes().is_empty() {
            return Err(Error(format!("a method cannot use `{}`: it changes tensors in place", op.name())));
        }
        self.graph.apply(op, inputs).map_err(|e| Error(e.to_string()))
    }

    fn shape(&self, value: Value) -> Result<Vec<usize>, Error> {
        self.graph.shape(value).map(<[usize]>::to_vec).map_err(|e| Error(e.to_string()))
    }

    fn rng(&mut self) -> Result<Value, Error> {
        self.rng.ok_or_else(|| Error::new("an evaluation has no random input: leave dropout out"))
    }
}
