//! The host's side of methods: loaded plugins, their options, and the random numbers of index sets and initial values.

pub mod index_set;
mod loaded;
pub mod options;
pub mod philox;

pub use index_set::IndexSet;
pub use loaded::LoadedMethod;
