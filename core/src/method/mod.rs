//! The host's side of methods: loaded plugins, their options, and the random numbers of index sets and initial values.

pub mod adaptation;
pub mod index_set;
pub mod layers;
mod loaded;
pub mod options;
pub mod philox;

pub use adaptation::{Adaptation, Form, Part, Trained};
pub use index_set::IndexSet;
pub use layers::AdaptedLayers;
pub use loaded::LoadedMethod;
