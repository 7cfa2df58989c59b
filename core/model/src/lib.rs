//! Decoder models: their `config.json`, the graph of their forward pass, and what a method turns them into.
//! Does not touch the file system: weights come from a [`WeightSource`].

mod convert;
pub mod decoder;
mod error;
pub mod method;
mod precision;
mod quantize;
mod shown;
mod weights;

pub use convert::{first_not_finite, from_f32, to_f32};
pub use decoder::{
    Decoder, Family, HEAD, HeadKind, IMAGES, PROBLEM_TYPES, Rope, Scaling, check_weights, forward, text_config,
};
pub use error::{Error, Result};
pub use precision::Precision;
pub use quantize::Quantize;
pub use shown::{shown, shown_lines};
pub use weights::{Arrangement, Storage, TensorView, WeightSource};
