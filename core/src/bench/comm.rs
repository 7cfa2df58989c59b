//! How a link between processes affects a training step: the step of one process is measured, the link is simulated.

use super::{Bencher, MethodCase, Workload, offered};
use crate::team::{Team, threads};
use serde::Serialize;
use sparta_graph::{DType, DeviceInfo};
use sparta_model::{Error, Precision, Result};
use sparta_plugin::communicator::{Communicator, Place};
use sparta_train::Peers;
use std::time::{Duration, Instant};

/// A link from each process to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Link {
    /// Seconds.
    pub latency: f64,
    /// Bytes per second.
    pub bandwidth: f64,
}

/// What is exchanged by how many processes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Exchanged {
    pub processes: usize,
    pub link: Link,
    /// Size of the gradients of a micro-batch.
    pub bytes: u64,
    /// Seconds that a process takes to compute a micro-batch.
    pub compute: f64,
}

/// A step with one micro-batch per process.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CommStep {
    pub cell: String,
    pub exchanged: Exchanged,
    /// Seconds per step: calculated, and simulated.
    pub expected: f64,
    pub simulated: f64,
    /// Speed relative to one process.
    pub speedup: f64,
}

impl Exchanged {
    /// Seconds per step: all compute, exchange their headers in rounds that double the group, and pass the gradients
    /// around the ring.
    pub fn expected(&self) -> f64 {
        self.compute + self.link.header(self.processes) + self.link.circle(self.processes, self.bytes as f64)
    }

    /// The median time of a few steps on threads that wait as long as the link would take, in seconds.
    ///
    /// Errors: a thread that failed.
    pub fn simulate(&self) -> Result<f64> {
        const STEPS: usize = 3;
        let gradients = vec![0f32; self.bytes as usize / 4];
        let one = |inner: Box<dyn Communicator>| -> Result<Vec<f64>> {
            let mut team = Team::meet(Box::new(Delayed { inner, link: self.link }));
            let step = |_| {
                let begin = Instant::now();
                pause(self.compute);
                team.gather(&gradients)?;
                Ok(begin.elapsed().as_secs_f64())
            };
            (0..STEPS).map(step).collect()
        };
        let mut seconds = std::thread::scope(|scope| {
            let one = &one;
            let begin = |inner: Box<dyn Communicator>| scope.spawn(move || one(inner));
            let all: Vec<_> = threads(self.processes).into_iter().map(begin).collect();
            let ended = all.into_iter().map(|thread| {
                thread.join().map_err(|_| Error::Training("a thread of the simulated step panicked".into()))?
            });
            Ok::<_, Error>(ended.collect::<Result<Vec<_>>>()?.concat())
        })?;
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().ok_or_else(|| Error::Training("no step was simulated".into()))
    }
}

impl Link {
    fn header(&self, processes: usize) -> f64 {
        self.latency * f64::from(processes.next_power_of_two().ilog2())
    }

    fn circle(&self, processes: usize, bytes: f64) -> f64 {
        (processes - 1) as f64 * (self.latency + bytes / self.bandwidth)
    }
}

fn pause(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// Threads that meet over a slow link.
struct Delayed {
    inner: Box<dyn Communicator>,
    link: Link,
}

impl Delayed {
    /// Bytes of a header, at most.
    const HEADER: usize = 64;

    fn delay(&self, bytes: usize) {
        let processes = self.inner.place().size;
        pause(match bytes {
            0..=Delayed::HEADER => self.link.header(processes),
            _ => self.link.circle(processes, bytes as f64),
        });
    }
}

type Done = std::result::Result<(), sparta_plugin::Error>;

impl Communicator for Delayed {
    fn place(&self) -> Place {
        self.inner.place()
    }

    fn barrier(&mut self) -> Done {
        self.inner.barrier()?;
        self.delay(0);
        Ok(())
    }

    fn broadcast(&mut self, root: usize, data: &mut [u8]) -> Done {
        self.inner.broadcast(root, data)?;
        self.delay(data.len());
        Ok(())
    }

    fn all_gather(&mut self, own: &[u8], all: &mut [u8]) -> Done {
        self.inner.all_gather(own, all)?;
        self.delay(own.len());
        Ok(())
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Done {
        self.inner.all_reduce(values)?;
        self.delay(4 * values.len());
        Ok(())
    }

    fn abort(&mut self, reason: &str) {
        self.inner.abort(reason);
    }
}

impl Bencher<'_> {
    /// A step of `processes` processes, each with the batch of the workload as its micro-batch. `precision` is the
    /// first that the device supports.
    ///
    /// Errors: a model that does not fit; a device that fails.
    pub fn comm(
        &self,
        work: &Workload,
        method: &MethodCase,
        info: &DeviceInfo,
        (processes, link): (usize, Link),
    ) -> Result<CommStep> {
        let precision = offered(info).first().copied().unwrap_or(Precision::F32);
        let case = work.case(method, precision);
        (self.progress)(&case.step().cell());
        let weights = super::RandomWeights::new(&work.shape, DType::BF16)?;
        let prepared = case.prepare(self.plugins, &weights, info)?;
        if !prepared.planned.fits(info) {
            let needed = sparta_graph::memory_size(prepared.planned.total());
            return Err(Error::Usage(format!("{}: it needs {needed} on the device", case.step().cell())));
        }
        let mut bench = case.open(prepared, &weights, self.open(info)?)?;
        let bytes = bench.session.setup().exchanged_bytes();
        let compute = bench.measure(Duration::from_millis(500), super::AT_LEAST)?.step_s;
        let exchanged = Exchanged { processes, link, bytes, compute };
        let (expected, simulated) = (exchanged.expected(), exchanged.simulate()?);
        let speedup = processes as f64 * compute / simulated;
        Ok(CommStep { cell: case.step().cell(), exchanged, expected, simulated, speedup })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_what_its_link_takes() {
        let link = Link { latency: 0.02, bandwidth: 6.25e6 };
        let exchanged = Exchanged { processes: 2, link, bytes: 5_000_000, compute: 1.0 };
        assert!((exchanged.expected() - (1.0 + 0.02 + 0.02 + 0.8)).abs() < 1e-12);
        assert!((Exchanged { processes: 5, ..exchanged }.expected() - (1.0 + 0.06 + 4.0 * 0.82)).abs() < 1e-12);
    }

    #[test]
    fn a_simulated_step_waits_as_long_as_it_should() {
        let link = Link { latency: 1e-3, bandwidth: 1e6 };
        let exchanged = Exchanged { processes: 3, link, bytes: 4000, compute: 2e-3 };
        assert!(exchanged.simulate().unwrap() >= exchanged.expected());
    }
}
