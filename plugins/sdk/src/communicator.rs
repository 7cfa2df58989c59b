//! What a communicator plugin provides: the processes that a launcher has started together, and exchanges between them.

use crate::Error;
use serde::{Deserialize, Serialize};

/// What the plugin says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommunicatorPluginInfo {
    /// `mpi`.
    pub name: String,
    /// Of the plugin.
    pub version: String,
}

/// What a launcher has told this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// `mpirun`, `srun`: for people.
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
    /// What carries the messages: `MPICH Version: 5.0.2 (libmpi_abi.so.1)`.
    pub library: String,
}

/// A kind of communication.
pub trait CommunicatorPlugin: Send + Sync {
    /// Its name and version.
    fn describe(&self) -> CommunicatorPluginInfo;

    /// What a launcher has told this process; `None` where it was started alone. Looks at the environment, no more.
    fn launched(&self) -> Result<Option<Launch>, Error>;

    /// Meets the other processes of the launch. Called once.
    fn join(&self) -> Result<Box<dyn Communicator>, Error>;
}

/// The processes that train together. All of them call the same functions in the same order, with lengths that agree;
/// each function waits for the others as long as they live. A process that is gone ends all: its name is said, and what
/// waits for it does not return.
pub trait Communicator: Send {
    /// This process among them.
    fn place(&self) -> Place;

    /// Returns once all processes have called it.
    fn barrier(&mut self) -> Result<(), Error>;

    /// Gives everybody the data of the process `root`.
    fn broadcast(&mut self, root: usize, data: &mut [u8]) -> Result<(), Error>;

    /// Gives everybody what each process has, in the order of ranks: `all` is as long as `size` times `own`.
    fn all_gather(&mut self, own: &[u8], all: &mut [u8]) -> Result<(), Error>;

    /// Adds values of all processes, in an order that the implementation chooses: the sums may differ in their last bits
    /// from those of another number of processes, never from one process to the other.
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), Error>;

    /// Ends all processes, for this reason. What ends this process, too, does not return.
    fn abort(&mut self, reason: &str);
}
