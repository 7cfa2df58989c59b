//! Where weights come from: the one thing that models and training need of files.

use crate::convert::first_not_finite;
use crate::{Error, Result};
use sparta_graph::DType;

/// A weight as stored: row-major, little-endian, of any alignment.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    pub dtype: DType,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// The tensors of a model by their Hugging Face names; those of the backbone begin with `model.`.
pub trait WeightSource {
    /// Where the weights are, for messages: a directory, an address.
    fn origin(&self) -> String;

    fn names(&self) -> Vec<&str>;

    fn get(&self, name: &str) -> Option<TensorView<'_>>;

    /// Gives back the memory that reading a tensor took; it is read again when needed.
    fn forget(&self, _name: &str) {}

    /// As [`WeightSource::get`], with all values checked.
    ///
    /// Errors: no such tensor; NaN or infinity.
    fn get_finite(&self, name: &str) -> Result<TensorView<'_>> {
        let origin = self.origin();
        let view = self.get(name).ok_or_else(|| Error::Weights(format!("{origin}: the tensor `{name}` is missing")))?;
        match first_not_finite(view.dtype, view.bytes) {
            None => Ok(view),
            Some(at) => Err(Error::Weights(format!(
                "{origin}: the weight {name} holds NaN or infinity at {at}; the model is damaged: fetch it again"
            ))),
        }
    }
}
