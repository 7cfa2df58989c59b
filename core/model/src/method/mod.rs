//! The host's side of methods: their options, what they turn a model into, and random numbers for index sets and
//! initial values.

pub mod adaptation;
pub mod index_set;
pub mod layers;
mod magnitude;
pub mod options;
pub mod philox;
mod selection;
mod unadapted;

pub use adaptation::{Adaptation, Form, TrainMode, Trained};
pub use index_set::IndexSet;
pub use layers::AdaptedLayers;
pub use selection::check_selections;
