//! Optimizer steps whose micro-batches are divided among processes.
//!
//! Each process computes the gradients of every n-th micro-batch. They are exchanged, and every process adds them up on
//! its device in the order of the micro-batches, as a single process does, so all have the same sums, bit for bit, and
//! make the same update. A step has one exchange, unless its gradients exceed what the host holds.

use crate::Result;
use crate::batch::Batch;
use crate::buckets::LARGEST;
use crate::graphs::{Purpose, StepNumbers, names};
use crate::peers::Peers;
use crate::session::Session;
use crate::setup::Setup;
use crate::step::{Submitted, check_targets};
use crate::tensors::Requested;
use sparta_graph::ops::step as step_input;

/// A tensor of gradients that is exchanged, with the plan that adds the received ones to the sum.
struct Exchanged {
    incoming: String,
    sum: String,
    len: usize,
    add: Purpose,
}

/// The flat gradients of all buckets and the loss, in groups that are exchanged at once.
fn exchanged(setup: &Setup) -> Vec<Vec<Exchanged>> {
    let buckets = setup.buckets();
    let loss = Exchanged {
        incoming: names::LOSS_INCOMING.into(),
        sum: names::LOSS_SUM.into(),
        len: 1,
        add: Purpose::AddIncoming(buckets.len()),
    };
    let gradients = buckets.iter().map(|bucket| Exchanged {
        incoming: bucket.incoming_gradients(),
        sum: bucket.gradient_sums(),
        len: bucket.len,
        add: Purpose::AddIncoming(bucket.number),
    });
    let mut groups: Vec<Vec<Exchanged>> = vec![vec![loss]];
    for tensor in gradients {
        match groups.last_mut() {
            Some(group) if elements(group) + tensor.len <= LARGEST => group.push(tensor),
            _ => groups.push(vec![tensor]),
        }
    }
    groups
}

fn elements(group: &[Exchanged]) -> usize {
    group.iter().map(|tensor| tensor.len).sum()
}

/// Rounds of micro-batches, one of each process, that are exchanged at once: as many as fit [`LARGEST`] elements, and
/// at least one.
fn rounds_at_once(groups: &[Vec<Exchanged>], size: usize) -> usize {
    let round = size * groups.iter().map(|group| elements(group)).sum::<usize>();
    (LARGEST / round.max(1)).max(1)
}

impl Setup {
    /// Bytes that a process sends for each micro-batch.
    pub fn exchanged_bytes(&self) -> u64 {
        4 * exchanged(self).iter().map(|group| elements(group) as u64).sum::<u64>()
    }
}

/// The micro-batches of a step that a process computes.
pub fn own_share(count: usize, rank: usize, size: usize) -> impl Iterator<Item = usize> {
    (rank..count).step_by(size)
}

impl Session {
    /// [`Session::submit_step`] for all processes together: each gets all micro-batches. If there is only one, all
    /// compute it, and nothing is exchanged. Needs [`crate::SessionLimits::shared`].
    pub fn submit_shared(&mut self, micro_batches: &[Batch], lr: f64, peers: &mut dyn Peers) -> Result<Submitted> {
        if peers.size() == 1 || micro_batches.len() == 1 {
            return self.submit_step(micro_batches, lr);
        }
        let targets = micro_batches.iter().map(Batch::targets).sum();
        check_targets(targets)?;
        let groups = exchanged(self.setup());
        // All plans are prepared first: one that needs a larger arena would invalidate those already queued.
        for i in own_share(micro_batches.len(), peers.rank(), peers.size()) {
            self.prepared(self.apart(micro_batches, i)?)?;
        }
        for tensor in groups.iter().flatten() {
            self.prepared(tensor.add)?;
        }
        self.prepared(Purpose::Update)?;
        let numbers = self.step_numbers(0.0, targets);
        match peers.exact() {
            true => self.sum_in_order(micro_batches, numbers, &groups, peers)?,
            false => self.sum_in_any_order(micro_batches, numbers, &groups, peers)?,
        }
        // An update with stochastic rounding draws with the key of the last micro-batch.
        self.queue_rng(micro_batches.len() - 1)?;
        (self.accumulated, self.targets) = (micro_batches.len(), targets);
        self.apply(lr)
    }

    /// A round has a micro-batch of each process.
    fn sum_in_order(
        &mut self,
        micro_batches: &[Batch],
        numbers: StepNumbers,
        groups: &[Vec<Exchanged>],
        peers: &mut dyn Peers,
    ) -> Result<()> {
        let (rank, size, count) = (peers.rank(), peers.size(), micro_batches.len());
        let at_once = size * rounds_at_once(groups, size);
        for first in (0..count).step_by(at_once) {
            let end = count.min(first + at_once);
            let rounds = (end - first).div_ceil(size);
            for (number, group) in groups.iter().enumerate() {
                let (len, mut requested) = (elements(group), Vec::new());
                for i in (first + rank..end).step_by(size) {
                    // Where there are several groups, a round is exchanged at a time.
                    if number == 0 {
                        self.differentiate(micro_batches, i, numbers)?;
                    }
                    requested.extend(self.request(group)?);
                }
                let mut gradients = Vec::with_capacity(rounds * len);
                for part in requested {
                    gradients.extend(self.tensors().fetch_f32(part)?);
                }
                gradients.resize(rounds * len, 0.0);
                let all = peers.gather(&gradients)?;
                for i in first..end {
                    let (round, owner) = ((i - first) / size, (i - first) % size);
                    self.add_up(group, &all[(owner * rounds + round) * len..][..len], i == 0)?;
                }
                self.tensors().submit()?;
            }
        }
        Ok(())
    }

    fn sum_in_any_order(
        &mut self,
        micro_batches: &[Batch],
        numbers: StepNumbers,
        groups: &[Vec<Exchanged>],
        peers: &mut dyn Peers,
    ) -> Result<()> {
        let mut sums: Vec<Vec<f32>> = groups.iter().map(|group| vec![0.0; elements(group)]).collect();
        for i in own_share(micro_batches.len(), peers.rank(), peers.size()) {
            self.differentiate(micro_batches, i, numbers)?;
            for (group, sum) in groups.iter().zip(&mut sums) {
                let requested = self.request(group)?;
                let mut sum = sum.iter_mut();
                for part in requested {
                    let gradients = self.tensors().fetch_f32(part)?;
                    sum.by_ref().zip(gradients).for_each(|(sum, gradient)| *sum += gradient);
                }
            }
        }
        for (group, sum) in groups.iter().zip(&mut sums) {
            peers.add(sum)?;
            self.add_up(group, sum, true)?;
        }
        self.tensors().submit()
    }

    /// The plan that computes the gradients of a micro-batch separately.
    fn apart(&self, micro_batches: &[Batch], i: usize) -> Result<Purpose> {
        Ok(Purpose::Apart { size: self.size_of(&micro_batches[i])?, first: i == 0 })
    }

    /// Queues the gradients of a micro-batch, which go to the receive buffers.
    fn differentiate(&mut self, micro_batches: &[Batch], i: usize, mut numbers: StepNumbers) -> Result<()> {
        let (batch, purpose) = (&micro_batches[i], self.apart(micro_batches, i)?);
        numbers[step_input::LOSS_WEIGHT] *= batch.weight;
        self.tensors().queue_write(names::STEP, &numbers)?;
        self.queue_rng(i)?;
        self.queue_batch(batch)?;
        let plan = self.prepared(purpose)?;
        self.tensors().queue_run(plan);
        Ok(())
    }

    /// Requests the gradients that were computed last, without waiting for them.
    fn request(&mut self, group: &[Exchanged]) -> Result<Vec<Requested>> {
        group.iter().map(|tensor| self.tensors().request_f32(&tensor.incoming, tensor.len)).collect()
    }

    /// Queues the addition of gradients to the sums, or their first values.
    fn add_up(&mut self, group: &[Exchanged], mut gradients: &[f32], first: bool) -> Result<()> {
        for tensor in group {
            let (values, rest) = gradients.split_at(tensor.len);
            gradients = rest;
            if first {
                self.tensors().queue_write(&tensor.sum, values)?;
                continue;
            }
            self.tensors().queue_write(&tensor.incoming, values)?;
            let plan = self.prepared(tensor.add)?;
            self.tensors().queue_run(plan);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_rounds_are_exchanged_as_a_buffer_holds() {
        let tensor =
            |len: usize| Exchanged { incoming: String::new(), sum: String::new(), len, add: Purpose::AddIncoming(0) };
        assert_eq!(rounds_at_once(&[vec![tensor(1), tensor(LARGEST / 8 - 1)]], 2), 4);
        assert_eq!(rounds_at_once(&[vec![tensor(LARGEST / 2)]], 4), 1);
        // What needs several groups is exchanged a round at a time.
        assert_eq!(rounds_at_once(&[vec![tensor(1)], vec![tensor(LARGEST)]], 2), 1);
    }
}
