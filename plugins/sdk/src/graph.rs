//! What `forward` and `merge` are built from. Each operation documents its inputs, their shapes and their types.

pub use sparta_graph::{DType, Op, Value};

/// The operations a method can use. Every one has a gradient and runs on every backend.
pub mod ops {
    pub use sparta_graph::ops::{
        Activation, Add, Broadcast, Cast, ColumnSum, Detach, Div, Dropout, Fill, Function, GatedAct, Layout, Linear,
        Map, Mul, RmsNorm, RowSum, Scale, ScaleBy, Slice, SoftCap, Transpose, Unslice,
    };
}
