//! Write a method, a task or a backend for `sparta-cli`: implement [`method::Method`], [`task::Task`] or
//! [`backend::BackendPlugin`], call [`export_method!`], [`export_task!`] or [`export_backend!`], and build the crate
//! as a `cdylib`.
//!
//! ```
//! use sparta_plugin::{Error, method::*};
//!
//! /// Trains the norm weights and the head.
//! struct Norms;
//!
//! impl Method for Norms {
//!     fn describe(&self) -> MethodInfo {
//!         MethodInfo {
//!             name: "norms".into(),
//!             version: env!("CARGO_PKG_VERSION").into(),
//!             summary: "trains the norms and the head".into(),
//!             options: vec![],
//!             default_lr: 1e-3,
//!         }
//!     }
//!
//!     fn select(&self, parameters: &[Parameter], _: &Options) -> Result<Vec<Selection>, Error> {
//!         let dense = |p: &Parameter| matches!(p.role, Role::Norm | Role::Head);
//!         let choose = |p| if dense(p) { Selection::Dense } else { Selection::Frozen };
//!         Ok(parameters.iter().map(choose).collect())
//!     }
//! }
//!
//! sparta_plugin::export_method!(Norms);
//! ```

pub mod abi;
pub mod backend;
pub mod error;
pub mod export;
mod host;
pub mod method;
pub mod task;

pub use error::Error;
pub use host::host_memory;
pub use sparta_graph as graph;
