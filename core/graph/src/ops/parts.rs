//! Composite ops: an op expressed as calls of other ops on ranges of rows of its operands ([`Op::parts`]). A backend
//! that can run the parts can run the composite; it may also have its own kernel for it.

use super::{Op, TensorType};
use std::ops::Range;

/// One call of another op. The calls of a composite run in order.
#[derive(Clone, Debug, PartialEq)]
pub struct PartCall {
    pub op: Op,
    pub inputs: Vec<Rows>,
    pub outputs: Vec<Rows>,
}

/// An operand of the composite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Input(usize),
    Output(usize),
}

/// Rows of an operand: a range of its first dimension. Ranges start at a multiple of [`crate::graph::ALIGNMENT`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    pub slot: Slot,
    pub rows: Range<usize>,
}

impl Rows {
    /// The type of the rows of an operand of type `whole`.
    pub fn ty(&self, whole: &TensorType) -> TensorType {
        let mut ty = whole.clone();
        if let Some(first) = ty.shape.first_mut() {
            *first = self.rows.len();
        }
        ty
    }
}
