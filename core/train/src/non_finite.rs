//! Finds the first tensor of a step that is not finite.

use crate::Result;
use crate::batch::{Batch, Size};
use crate::graphs::{Purpose, names};
use crate::session::Session;
use crate::tensors::MemoryKind;
use sparta_graph::ops::PARTIALS;
use sparta_graph::{DType, Probe, probe};
use std::fmt;

/// The op whose result was the first not to be finite.
#[derive(Clone, Debug, PartialEq)]
pub struct NonFinite {
    probe: Probe,
    /// The weights and trained tensors that it reads.
    tensors: Vec<String>,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pass = if self.probe.backward { "backward" } else { "forward" };
        write!(f, "the first to overflow is op `{}` of {} in the {pass} pass", self.probe.op, self.probe.label)?;
        if self.tensors.is_empty() { Ok(()) } else { write!(f, ", which reads {}", self.tensors.join(", ")) }
    }
}

/// The tensor that the probes write to.
const NORMS: &str = "probe.norms";

impl Session {
    /// Repeats the micro-batches of the last step, or only their hidden states, without an update, and finds
    /// the first tensor that is not finite; `None` if all are.
    pub fn find_non_finite(
        &mut self,
        micro_batches: &[Batch],
        purpose: fn(Size) -> Purpose,
    ) -> Result<Option<NonFinite>> {
        for (i, batch) in micro_batches.iter().enumerate() {
            let size = self.size_of(batch)?;
            self.queue_batch(batch)?;
            self.queue_rng(i)?;
            if let Some(found) = self.find_non_finite_in(purpose(size))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Like [`Session::find_non_finite`], for a graph whose inputs are already on the device.
    pub fn find_non_finite_in(&mut self, purpose: Purpose) -> Result<Option<NonFinite>> {
        let graph = self.setup().graphs().build(purpose)?;
        let (probed, probes) = probe(&graph, NORMS)?;
        self.reserve_arena(&probed)?;
        self.tensors().alloc(NORMS, DType::F32, probes.len() * PARTIALS, MemoryKind::Buffers)?;
        let sums = self.run_graph(&probed).and_then(|()| self.tensors().read_f32(NORMS, probes.len() * PARTIALS));
        self.tensors().free(NORMS);
        let sums = sums?;
        let bad = sums.chunks(PARTIALS).position(|row| row.iter().any(|x| !x.is_finite()));
        let Some(probe) = bad.and_then(|at| probes.into_iter().nth(at)) else { return Ok(None) };
        let known = |name: &String| {
            let adaptation = &self.setup().adaptation;
            adaptation.parameters.iter().any(|p| p.name == *name)
                || adaptation.trained().iter().any(|t| t.name == *name)
                || name == names::FEATURES
        };
        let tensors = probe.externals.iter().filter(|name| known(name)).cloned().collect();
        Ok(Some(NonFinite { probe, tensors }))
    }
}
