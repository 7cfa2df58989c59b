//! Limits the work of one submission, so that no watchdog resets the device (which may happen after seconds on an
//! integrated GPU) and a desktop on the same GPU stays responsive.
//!
//! Work is the larger of a call's operations and [`PER_BYTE`] times its bytes; how much of it the device does
//! per second is learned from finished submissions. Splitting a plan does not change its results.

use crate::backend::WgpuBackend;
use crate::prepared::{PreparedStep, encode};
use crate::profile::both_dispatch;
use crate::wait::Submitted;
use sparta_graph::{BackendError, Call, DeviceKind};
use std::collections::VecDeque;
use std::time::Duration;
use web_time::Instant;

/// The target time of a submission, which may double when the device slows down.
const TARGET: Duration = Duration::from_millis(50);
/// The most submissions in flight; the host waits for the oldest before it adds another.
const AHEAD: usize = 3;
/// How many operations take as long as moving one byte; 10 to 40 on GPUs.
const PER_BYTE: u64 = 16;
/// If the host waited at least this share of the measured time, the device decided how long it took.
const WAITED: f64 = 0.1;

/// The work of a call.
pub(crate) fn work(call: &Call) -> f64 {
    call.flops().max(PER_BYTE.saturating_mul(call.bytes())) as f64
}

/// What is known about a device's speed, and what was submitted to it.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Work per second.
    rate: f64,
    /// Work encoded but not submitted yet.
    pending: f64,
    flying: VecDeque<Flying>,
    /// When the last submission known to be finished ended.
    done: Instant,
    /// The number of submissions so far.
    pub(crate) count: u64,
}

#[derive(Debug)]
struct Flying {
    submitted: Submitted,
    number: u64,
    work: f64,
    since: Instant,
}

impl Pace {
    /// The rate starts low: a fast device soon gets more, but a slow one that got too much would by then have been
    /// reset by its watchdog.
    pub(crate) fn new(kind: DeviceKind) -> Pace {
        let rate = match kind {
            DeviceKind::DiscreteGpu => 1e12,
            DeviceKind::SoftwareGpu | DeviceKind::Cpu => 1e10,
            DeviceKind::IntegratedGpu | DeviceKind::VirtualGpu | DeviceKind::Other => 1e11,
        };
        Pace { rate, pending: 0.0, flying: VecDeque::new(), done: Instant::now(), count: 0 }
    }

    /// Whether this work no longer fits the submission that is being encoded.
    fn is_too_much(&self, work: f64) -> bool {
        self.pending > 0.0 && self.pending + work > self.rate * TARGET.as_secs_f64()
    }

    /// Learns the rate from finished work, which may have ended earlier unless the host `waited` for it.
    fn learn(&mut self, work: f64, took: Duration, waited: Duration) {
        if work <= 0.0 || took.is_zero() {
            return;
        }
        let seen = work / took.as_secs_f64();
        if waited.as_secs_f64() >= WAITED * took.as_secs_f64() || seen > self.rate {
            self.rate = seen;
        }
    }

    /// Records that all submissions up to this number are finished.
    fn finished(&mut self, number: u64, waited: Duration) {
        let Some(first) = self.flying.front().filter(|flying| flying.number <= number) else { return };
        let (now, start) = (Instant::now(), first.since.max(self.done));
        let mut work = 0.0;
        while let Some(flying) = self.flying.front().filter(|flying| flying.number <= number) {
            work += flying.work;
            self.flying.pop_front();
        }
        self.learn(work, now.saturating_duration_since(start), waited);
        self.done = now;
    }
}

impl WgpuBackend {
    /// Encodes steps, where `work[i]` is that of `steps[i]`, and submits whenever enough work is encoded.
    pub(crate) fn encode_paced(
        &self,
        mut encoder: wgpu::CommandEncoder,
        steps: &[PreparedStep],
        work: &[f64],
    ) -> Result<wgpu::CommandEncoder, BackendError> {
        let mut begin = 0;
        for run in steps.chunk_by(both_dispatch) {
            let end = begin + run.len();
            while begin < end {
                let taken = self.take(&work[begin..end]);
                if taken == 0 {
                    self.submit_encoded(encoder)?;
                    encoder = self.device.create_command_encoder(&Default::default());
                    continue;
                }
                encode(&mut encoder, &steps[begin..begin + taken], None);
                begin += taken;
            }
        }
        Ok(encoder)
    }

    /// How many steps fit the current submission, at least one if it is empty.
    fn take(&self, work: &[f64]) -> usize {
        let mut pace = self.pace.borrow_mut();
        let mut taken = 0;
        while let Some(&more) = work.get(taken).filter(|&&more| !pace.is_too_much(more)) {
            pace.pending += more;
            taken += 1;
        }
        taken
    }

    /// Submits, and waits while too much is in flight.
    pub(crate) fn submit_encoded(&self, encoder: wgpu::CommandEncoder) -> Result<(), BackendError> {
        let submitted = Submitted::new(&self.queue, self.queue.submit([encoder.finish()]));
        let oldest = {
            let mut pace = self.pace.borrow_mut();
            pace.count += 1;
            let (number, work) = (pace.count, std::mem::take(&mut pace.pending));
            pace.flying.push_back(Flying { submitted, number, work, since: Instant::now() });
            let full = pace.flying.len() > AHEAD;
            pace.flying.front().filter(|_| full).map(|oldest| (oldest.submitted.clone(), oldest.number))
        };
        if let Some((submitted, number)) = oldest {
            self.wait_for(submitted, number, "submit")?;
        }
        Ok(())
    }

    /// Waits for the submission with this number, and for nothing after it.
    pub(crate) fn wait_for(&self, submitted: Submitted, number: u64, what: &str) -> Result<(), BackendError> {
        let start = Instant::now();
        let waited = submitted.wait(&self.device);
        self.told(waited, what)?;
        self.pace.borrow_mut().finished(number, start.elapsed());
        Ok(())
    }

    /// The number of the last submission.
    pub(crate) fn submitted(&self) -> u64 {
        self.pace.borrow().count
    }
}

#[cfg(test)]
impl Pace {
    pub(crate) fn set_rate(&mut self, rate: f64) {
        self.rate = rate;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_at_once_and_falls_only_when_the_device_was_waited_for() {
        let mut pace = Pace::new(DeviceKind::IntegratedGpu);
        let second = Duration::from_secs(1);
        pace.learn(3e11, second, Duration::ZERO);
        assert_eq!(pace.rate, 3e11);
        pace.learn(1e11, second, Duration::from_millis(50));
        assert_eq!(pace.rate, 3e11);
        pace.learn(1e11, second, Duration::from_millis(500));
        assert_eq!(pace.rate, 1e11);
        pace.learn(0.0, second, second);
        pace.learn(1.0, Duration::ZERO, second);
        assert_eq!(pace.rate, 1e11);
    }

    #[test]
    fn a_submission_holds_one_step_or_as_much_as_fits_its_time() {
        let mut pace = Pace::new(DeviceKind::IntegratedGpu);
        assert!(!pace.is_too_much(1e15));
        pace.pending = 4e9;
        assert!(!pace.is_too_much(1e9) && pace.is_too_much(1.1e9));
    }
}
