//! Times single calls by timestamps that the device writes before and after each, or else by the host's clock.

use crate::backend::WgpuBackend;
use crate::prepared::{PreparedStep, encode};
use crate::wait::Submitted;
use sparta_graph::BackendError;
use std::time::Duration;
use web_time::Instant;

/// What measurements are called in errors.
pub(crate) const MEASUREMENT: &str = "a measurement";
/// How many calls fit a query set, with two timestamps each.
const CALLS: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
const TIMESTAMP_BYTES: usize = wgpu::QUERY_SIZE as usize;

impl WgpuBackend {
    /// Runs the steps of each call and returns their times. Copies have no timestamps, so a call that consists
    /// only of copies counts as 0. A device without timestamps runs each call `repeated` times for the clock.
    pub(crate) fn time_calls<'a>(
        &self,
        calls: impl Iterator<Item = &'a [PreparedStep]>,
        repeated: u32,
    ) -> Result<Vec<Duration>, BackendError> {
        if !self.adapter().features.timestamp_query {
            return calls.map(|steps| self.time_by_clock(steps, repeated)).collect();
        }
        let calls: Vec<&[PreparedStep]> = calls.collect();
        let mut times = Vec::with_capacity(calls.len());
        for calls in calls.chunks(CALLS) {
            times.extend(self.time_some(calls)?);
        }
        Ok(times)
    }

    fn time_some(&self, calls: &[&[PreparedStep]]) -> Result<Vec<Duration>, BackendError> {
        let count = 2 * calls.len().max(1);
        let queries = self.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("times"),
            ty: wgpu::QueryType::Timestamp,
            count: count as u32,
        });
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let buffer = self.create((count * TIMESTAMP_BYTES) as u64, usage, "times")?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut used = 0;
        let first_query: Vec<Option<u32>> = calls
            .iter()
            .map(|steps| {
                let passes = steps.chunk_by(both_dispatch).filter(|run| is_dispatch(&run[0])).count();
                let first = (passes > 0).then_some(used);
                let mut pass = 0;
                for run in steps.chunk_by(both_dispatch) {
                    let writes = is_dispatch(&run[0]).then(|| {
                        pass += 1;
                        wgpu::ComputePassTimestampWrites {
                            query_set: &queries,
                            beginning_of_pass_write_index: (pass == 1).then_some(used),
                            end_of_pass_write_index: (pass == passes).then_some(used + 1),
                        }
                    });
                    encode(&mut encoder, run, writes);
                }
                used += if passes > 0 { 2 } else { 0 };
                first
            })
            .collect();
        if used > 0 {
            encoder.resolve_query_set(&queries, 0..used, &buffer, 0);
        }
        self.queue.submit([encoder.finish()]);
        let mut bytes = vec![0; used as usize * TIMESTAMP_BYTES];
        self.read_bytes(&buffer, "times", 0, &mut bytes)?;
        let ticks: Vec<u64> = bytes.as_chunks().0.iter().map(|&tick| u64::from_le_bytes(tick)).collect();
        let period = f64::from(self.queue.get_timestamp_period());
        let time = |first: &Option<u32>| {
            let ticks = first.and_then(|first| ticks.get(first as usize..first as usize + 2));
            // If the counter wraps in between, the time counts as 0.
            let elapsed = ticks.map_or(0, |ticks| ticks[1].saturating_sub(ticks[0]));
            Duration::from_nanos((elapsed as f64 * period) as u64)
        };
        Ok(first_query.iter().map(time).collect())
    }

    /// The time of the steps on a device without timestamps, from submission to the end.
    fn time_by_clock(&self, steps: &[PreparedStep], repeated: u32) -> Result<Duration, BackendError> {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for _ in 0..repeated {
            steps.chunk_by(both_dispatch).for_each(|run| encode(&mut encoder, run, None));
        }
        let commands = encoder.finish();
        self.wait(MEASUREMENT)?;
        let start = Instant::now();
        let waited = Submitted::new(&self.queue, self.queue.submit([commands])).wait(&self.device);
        self.told(waited, MEASUREMENT)?;
        Ok(start.elapsed() / repeated)
    }
}

fn is_dispatch(step: &PreparedStep) -> bool {
    matches!(step, PreparedStep::Dispatch { .. })
}

/// Whether the second step can go into the same pass as the first.
pub(crate) fn both_dispatch(first: &PreparedStep, second: &PreparedStep) -> bool {
    is_dispatch(first) && is_dispatch(second)
}
