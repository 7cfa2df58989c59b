//! Training steps of several processes, measured over their real link.

use super::case::{Bench, median};
use super::{Bencher, Link, MethodCase, Workload, offered};
use crate::team::Team;
use serde::Serialize;
use sparta_graph::{DType, DeviceInfo};
use sparta_model::{Error, Precision, Result};
use sparta_train::{Batch, Peers, Session, Submitted, own_share};
use std::time::Instant;

/// Each way of doing a step is repeated `STEPS` times in a round, so that all ways face the same disturbances.
const ROUNDS: usize = 7;
const STEPS: usize = 4;
/// The link is measured with exchanges of headers, and of enough values to take a fast link a few milliseconds.
const HEADERS: usize = 64;
const GATHERS: usize = 8;
const VALUES: usize = 1 << 20;
/// By how much an exchange may exceed the time that the link's bandwidth allows for its bytes: a factor, and seconds.
const ALLOWED: (f64, f64) = (1.2, 1e-3);

/// A step on a batch that is divided among processes; medians of rounds, times in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Together {
    pub cell: String,
    pub processes: usize,
    pub link: Link,
    /// Bytes that a process receives in a step.
    pub bytes: f64,
    /// One process computes the whole batch, and the others wait.
    pub alone: f64,
    /// All compute their shares at the same time and exchange nothing.
    pub apart: f64,
    pub together: f64,
    /// In a step together: exchanges from when the last process is ready, and how long they may take over this link.
    pub exchange: f64,
    pub allowed: f64,
    /// In a step together: the mean wait for other processes.
    pub waiting: f64,
    /// How many times as fast as one process all are, and would be if exchanges took no time.
    pub speedup: f64,
    pub possible: f64,
}

/// Times of one process in a round, per step.
struct Round {
    alone: f64,
    apart: f64,
    together: f64,
    /// That of the last process to arrive, as it waits for no other.
    exchange: f64,
    waiting: f64,
    bytes: f64,
}

impl Bencher<'_> {
    /// Steps of the processes of a team, each of which has the workload's batch. `precision` is the first that the
    /// device supports. All processes call it with the same arguments.
    ///
    /// Errors: a model that does not fit; a device that fails; another process that has failed.
    pub fn together(
        &self,
        work: &Workload,
        method: &MethodCase,
        info: &DeviceInfo,
        link: Link,
        team: &mut Team,
    ) -> Result<Together> {
        let precision = offered(info).first().copied().unwrap_or(Precision::F32);
        let case = super::Case { processes: team.size(), ..work.case(method, precision) };
        let cell = case.step().cell();
        (self.progress)(&cell);
        let weights = super::RandomWeights::new(&work.shape, DType::BF16)?;
        let prepared = case.prepare(self.plugins, &weights, info)?;
        if !prepared.planned.fits(info) {
            let needed = sparta_graph::memory_size(prepared.planned.total());
            return Err(Error::Usage(format!("{cell}: it needs {needed} on the device")));
        }
        let mut bench = case.open(prepared, &weights, self.devices.open(info)?)?;
        // Plans are prepared and memory is touched before the first round.
        bench.round(team)?;
        let rounds = (0..ROUNDS).map(|_| bench.round(team)).collect::<Result<Vec<Round>>>()?;
        let of = |number: fn(&Round) -> f64| median(&rounds.iter().map(number).collect::<Vec<_>>());
        let bytes = of(|round| round.bytes);
        Ok(Together {
            cell,
            processes: team.size(),
            link,
            bytes,
            alone: of(|round| round.alone),
            apart: of(|round| round.apart),
            together: of(|round| round.together),
            exchange: of(|round| round.exchange),
            allowed: bytes / link.bandwidth * ALLOWED.0 + ALLOWED.1,
            waiting: of(|round| round.waiting),
            speedup: of(|round| round.alone / round.together),
            possible: of(|round| round.alone / round.apart),
        })
    }
}

impl Bench {
    fn round(&mut self, team: &mut Team) -> Result<Round> {
        let (whole, shares, lr) = (self.batches.clone(), self.shares.clone(), self.lr);
        let own: Vec<Batch> =
            own_share(shares.len(), team.rank(), team.size()).map(|share| shares[share].clone()).collect();
        team.assemble("steps of one process")?;
        let alone = match team.leads() {
            true => self.seconds(|session| session.submit_step(&whole, lr))?,
            false => 0.0,
        };
        team.assemble("steps without exchanges")?;
        let apart = self.seconds(|session| session.submit_step(&own, lr))?;
        team.assemble("steps together")?;
        let before = team.spent().unwrap_or_default();
        let together = self.seconds(|session| session.submit_shared(&shares, lr, team))?;
        let spent = team.spent().unwrap_or_default().since(&before);
        let step = |seconds: f64| seconds / STEPS as f64;
        let own = [alone, apart, together, spent.exchanging, spent.waiting];
        let all = team.gather(&own.map(|seconds| seconds as f32))?;
        let column = |i: usize| all.chunks(own.len()).map(move |of_one| f64::from(of_one[i]));
        let slowest = |i: usize| column(i).fold(0.0, f64::max);
        Ok(Round {
            alone: step(slowest(0)),
            apart: step(slowest(1)),
            together: step(slowest(2)),
            exchange: step(slowest(3) + column(4).fold(f64::INFINITY, f64::min)),
            waiting: step(column(4).sum::<f64>() / team.size() as f64),
            bytes: spent.bytes as f64 / STEPS as f64,
        })
    }

    /// Seconds of [`STEPS`] steps, each submitted before the results of the one before are read, as in a run.
    fn seconds(&mut self, mut submit: impl FnMut(&mut Session) -> Result<Submitted>) -> Result<f64> {
        let begin = Instant::now();
        let mut last = submit(&mut self.session)?;
        for _ in 1..STEPS {
            let next = submit(&mut self.session)?;
            self.session.settle(std::mem::replace(&mut last, next))?;
        }
        self.session.settle(last)?;
        Ok(begin.elapsed().as_secs_f64())
    }
}

impl Link {
    /// The link of these processes, the same in all of them; its figures include what the communicator adds.
    ///
    /// Errors: another process that has failed.
    pub fn measure(team: &mut Team) -> Result<Link> {
        let (mut headers, values) = (Vec::new(), vec![0f32; VALUES]);
        for _ in 0..HEADERS {
            let begin = Instant::now();
            team.assemble("a header")?;
            headers.push(begin.elapsed().as_secs_f64());
        }
        let mut fastest = f64::INFINITY;
        for _ in 0..GATHERS {
            let before = team.spent().unwrap_or_default();
            team.gather(&values)?;
            fastest = fastest.min(team.spent().unwrap_or_default().since(&before).exchanging);
        }
        let own = [median(&headers) as f32, fastest as f32];
        let all = team.gather(&own)?;
        let slowest = |i: usize| all.chunks(own.len()).map(|of_one| f64::from(of_one[i])).fold(0.0, f64::max);
        let (size, bytes) = (team.size(), 4 * VALUES * (team.size() - 1));
        let latency = slowest(0) / f64::from(size.next_power_of_two().ilog2());
        Ok(Link { latency, bandwidth: bytes as f64 / slowest(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::threads;

    #[test]
    fn all_threads_measure_the_same_link() {
        let one = |communicator| Link::measure(&mut Team::meet(communicator)).unwrap();
        let links: Vec<Link> = std::thread::scope(|scope| {
            let all: Vec<_> = threads(3).into_iter().map(|own| scope.spawn(move || one(own))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(links[0].latency > 0.0 && links[0].bandwidth.is_finite() && links.iter().all(|link| *link == links[0]));
    }
}
