//! What `forward` and `merge` are built of. Each operation names its inputs, their shapes and types in its documentation.

pub use sparta_graph::{DType, Op, Value};

/// The operations that a method can use; all of them have gradients, on every backend.
pub mod ops {
    pub use sparta_graph::ops::{
        Activation, Add, Broadcast, Cast, ColumnSum, Detach, Div, Dropout, Fill, Function, GatedAct, Layout, Linear,
        Map, Mul, RmsNorm, RowSum, Scale, ScaleBy, Slice, SoftCap, Transpose, Unslice,
    };
}
