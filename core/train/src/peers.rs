//! The processes that train one model together, as a session sees them.

use crate::Result;

/// All processes call the same functions in the same order, with lengths that agree.
pub trait Peers {
    /// The rank of this process, counted from 0.
    fn rank(&self) -> usize;

    fn size(&self) -> usize;

    /// Whether the gradients of micro-batches are added in their order, each on its own, so that the sums have the bits of
    /// a single process; otherwise they are added as [`Peers::add`] does.
    fn exact(&self) -> bool;

    /// Every process's data, in the order of ranks.
    fn gather(&mut self, own: &[f32]) -> Result<Vec<f32>>;

    /// Replaces values by their sums over all processes, in an unspecified order.
    fn add(&mut self, values: &mut [f32]) -> Result<()>;
}

/// A process without others.
pub struct Alone;

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exact(&self) -> bool {
        true
    }

    fn gather(&mut self, own: &[f32]) -> Result<Vec<f32>> {
        Ok(own.to_vec())
    }

    fn add(&mut self, _values: &mut [f32]) -> Result<()> {
        Ok(())
    }
}
