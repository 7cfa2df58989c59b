//! Processes that train together over MPI.
//!
//! Building this needs nothing from MPI: the library is opened at run time, through the standard ABI of MPI 5.0 if it
//! has that, else through the older one of MPICH or Open MPI.

mod api;
mod engine;
mod launch;
mod library;
mod neighbours;
mod watch;

pub use launch::local_size;

use sparta_plugin::Error;
use sparta_plugin::communicator::{Communicator, CommunicatorPlugin, CommunicatorPluginInfo, Launch};

/// The plugin.
pub struct Mpi;

impl CommunicatorPlugin for Mpi {
    fn describe(&self) -> CommunicatorPluginInfo {
        CommunicatorPluginInfo { name: "mpi".into(), version: env!("CARGO_PKG_VERSION").into() }
    }

    fn launched(&self) -> Result<Option<Launch>, Error> {
        Ok(launch::launch(&|name| std::env::var(name).ok()))
    }

    fn join(&self) -> Result<Box<dyn Communicator>, Error> {
        let launch = self.launched()?.ok_or("this process was started alone, so there is nobody to join")?;
        library::join(&launch)
    }
}

sparta_plugin::export_communicator!(entry: Mpi);
