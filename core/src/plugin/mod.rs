//! Plugins: where they are searched for, how a library is checked before it is opened, and the host's side of the C ABI
//! in [`sparta_plugin::abi`].
//!
//! Libraries are never unloaded, as pointers into them may live as long as the process.

mod backend;
#[cfg(feature = "libraries")]
mod binary;
mod communicator;
mod discover;
mod earlier;
mod host;
mod install;
mod library;
#[cfg(feature = "libraries")]
mod loader;
#[cfg(not(feature = "libraries"))]
#[path = "no_loader.rs"]
mod loader;
mod manifest;
mod method;
mod names;
pub mod running;
mod set;
mod task;
mod task_check;
mod used;

pub use backend::LoadedBackendPlugin;
pub use communicator::LoadedCommunicatorPlugin;
pub use discover::{DiscoverOptions, Origin, user_directory};
pub use install::{Installed, install, remove};
pub use library::Entry;
pub use manifest::{Manifest, target};
pub use method::LoadedMethod;
pub use set::{Found, PluginKind, PluginSet, State};
pub use task::LoadedTask;
pub use task_check::{check_example, check_pair};
pub use used::{Recorded, UsedPlugin};

#[cfg(test)]
mod tests;
