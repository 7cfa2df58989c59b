//! What a communicator plugin provides: the processes that a launcher has started together, and exchanges between them.

use crate::Error;
use serde::{Deserialize, Serialize};

/// How a communicator plugin describes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommunicatorPluginInfo {
    /// `mpi`.
    pub name: String,
    /// The plugin's version.
    pub version: String,
}

/// What a launcher has told this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// `mpirun`, `srun`: for messages.
    pub launcher: String,
    /// The number of this process, from 0 on.
    pub rank: usize,
    /// How many processes there are.
    pub size: usize,
}

/// This process among those that train together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The number of this process, from 0 on.
    pub rank: usize,
    /// How many processes there are.
    pub size: usize,
    /// The number of this process among those on its machine.
    pub local_rank: usize,
    /// The name of its machine.
    pub host: String,
    /// What carries the data: `MPICH Version: 5.0.2 (libmpi_abi.so.1)`.
    pub library: String,
}

/// A kind of communication.
pub trait CommunicatorPlugin: Send + Sync {
    /// Its name and version.
    fn describe(&self) -> CommunicatorPluginInfo;

    /// The launch that this process belongs to; `None` if it was started alone. Only looks at the environment.
    fn launched(&self) -> Result<Option<Launch>, Error>;

    /// Connects to the other processes of the launch. Called once.
    fn join(&self) -> Result<Box<dyn Communicator>, Error>;
}

/// The processes that train together. All of them call the same functions in the same order, with matching lengths;
/// each function waits for the others as long as they are alive. A lost process ends all others: its name is reported,
/// and functions that wait for it do not return.
pub trait Communicator: Send {
    /// This process among them.
    fn place(&self) -> Place;

    /// Returns once all processes have called it.
    fn barrier(&mut self) -> Result<(), Error>;

    /// Sends the data of the process `root` to all.
    fn broadcast(&mut self, root: usize, data: &mut [u8]) -> Result<(), Error>;

    /// Gives every process the `own` of all, in the order of ranks: `all` is as long as `size` times `own`.
    fn all_gather(&mut self, own: &[u8], all: &mut [u8]) -> Result<(), Error>;

    /// Adds values of all processes, in an order that the implementation chooses: the sums may differ in their last
    /// bits from those of a different number of processes, never between processes.
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), Error>;

    /// Ends all processes, for this reason. Does not return if it ends this process, too.
    fn abort(&mut self, reason: &str);
}
