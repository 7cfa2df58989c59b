//! Where the time of a step goes: each call of the plan against what the device can do at best.

use crate::{Error, Result};
use serde::Serialize;
use sparta_graph::ops::{Accumulate, Layout, Linear, Store};
use sparta_graph::{Backend, BufferId, DType, Graph, Op, Plan};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What the device reached on a large matrix product and on a sum of long vectors.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceiling {
    /// Floating point operations per second.
    pub flops: f64,
    /// Bytes of memory per second, read and written together.
    pub bandwidth: f64,
}

/// One call of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct CallTime {
    pub op: String,
    /// Where in the model: `layers.3.mlp`.
    pub label: String,
    pub seconds: f64,
    pub flops: u64,
    /// Of all operands, each counted once.
    pub bytes: u64,
}

/// The calls of one step in order.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    pub ceiling: Ceiling,
    pub calls: Vec<CallTime>,
}

/// Side of the matrices, and elements of the vectors, of [`Ceiling::measure`].
const SIDE: usize = 1536;
const LONG: usize = 8 << 20;

impl Ceiling {
    /// Runs both on the device; takes 75 MiB there and some tenths of a second on a CPU.
    pub fn measure(device: &mut dyn Backend) -> Result<Ceiling> {
        let mut graph = Graph::new();
        let [a, b, c] = ["a", "b", "c"].map(|name| graph.external(name, DType::F32, [SIDE, SIDE]));
        let y = graph.one(Linear::plain(Layout::Nt), &[a, b])?;
        graph.apply(Store {}.into(), &[c, y])?;
        let product = Plan::build(&graph, true);
        let mut graph = Graph::new();
        let [x, y] = ["x", "y"].map(|name| graph.external(name, DType::F32, [LONG]));
        graph.apply(Accumulate {}.into(), &[x, y])?;
        let sum = Plan::build(&graph, true);
        Ok(Ceiling {
            flops: 2.0 * (SIDE as f64).powi(3) / best_time(device, &product)?,
            bandwidth: 3.0 * 4.0 * LONG as f64 / best_time(device, &sum)?,
        })
    }
}

/// Seconds of the fastest of a few runs.
fn best_time(device: &mut dyn Backend, plan: &Plan) -> Result<f64> {
    let mut buffers = Vec::new();
    for external in &plan.externals {
        buffers.push(device.alloc(external.ty.dtype, external.ty.numel(), &external.name)?);
    }
    let arena = device.alloc(DType::F32, plan.arena.div_ceil(4), "arena")?;
    let id = device.prepare(plan, &[arena], &buffers)?;
    let mut best = Duration::MAX;
    for _ in 0..6 {
        best = best.min(device.run_profiled(id)?.iter().sum());
    }
    device.release(id);
    buffers.into_iter().chain([arena]).for_each(|buffer: BufferId| device.free(buffer));
    Ok(best.as_secs_f64())
}

impl Profile {
    /// `times` are those of the plan's calls on a packed batch whose segments have these lengths.
    ///
    /// Errors: another number of times than of calls.
    pub fn new(plan: &Plan, lengths: &[usize], times: &[Duration], ceiling: Ceiling) -> Result<Profile> {
        if times.len() != plan.calls.len() {
            let (expected, got) = (plan.calls.len(), times.len());
            return Err(Error::Training(format!("the device timed {got} calls of a plan that has {expected}")));
        }
        let call = |(call, time): (&sparta_graph::Call, &Duration)| CallTime {
            op: name(&call.op),
            label: call.label.clone(),
            seconds: time.as_secs_f64(),
            flops: call.packed_flops(lengths),
            bytes: call.bytes(),
        };
        Ok(Profile { ceiling, calls: plan.calls.iter().zip(times).map(call).collect() })
    }

    pub fn seconds(&self) -> f64 {
        self.calls.iter().map(|call| call.seconds).sum()
    }

    /// Seconds that the call would take if it were bound by the device's arithmetic or memory alone.
    fn least_seconds(&self, call: &CallTime) -> f64 {
        (call.flops as f64 / self.ceiling.flops).max(call.bytes as f64 / self.ceiling.bandwidth)
    }

    /// The calls as a timeline for `chrome://tracing` and Perfetto, in JSON.
    pub fn trace(&self) -> String {
        let mut start = 0.0;
        let events: Vec<serde_json::Value> = self
            .calls
            .iter()
            .map(|call| {
                let (at, microseconds) = (start, call.seconds * 1e6);
                start += microseconds;
                serde_json::json!({
                    "name": call.op, "cat": call.label, "ph": "X", "pid": 1, "tid": 1, "ts": at, "dur": microseconds,
                    "args": {
                        "label": call.label, "flops": call.flops, "bytes": call.bytes,
                        "share_of_ceiling": ratio(self.least_seconds(call), call.seconds),
                    },
                })
            })
            .collect();
        serde_json::json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string()
    }
}

/// The op, and for a matrix product which operands are transposed.
fn name(op: &Op) -> String {
    match op {
        Op::Linear(linear) => format!("linear {:?}", linear.layout).to_lowercase(),
        op => op.name().to_owned(),
    }
}

/// Zero for what took no time: a device may not time copies.
fn ratio(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

#[derive(Default)]
struct Row {
    calls: usize,
    seconds: f64,
    least: f64,
    flops: f64,
    bytes: f64,
}

impl fmt::Display for Profile {
    /// A table by op, the slowest first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        let mut total = Row::default();
        for call in &self.calls {
            for row in [rows.entry(&call.op).or_default(), &mut total] {
                row.calls += 1;
                row.seconds += call.seconds;
                row.least += self.least_seconds(call);
                row.flops += call.flops as f64;
                row.bytes += call.bytes as f64;
            }
        }
        let mut rows: Vec<(&str, Row)> = rows.into_iter().collect();
        rows.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        rows.push(("all", total));
        let all = self.seconds();
        let Ceiling { flops, bandwidth } = self.ceiling;
        writeln!(f, "ceiling: {:.0} GFLOP/s, {:.1} GB/s", flops * 1e-9, bandwidth * 1e-9)?;
        writeln!(
            f,
            "{:<18} {:>5} {:>9} {:>7} {:>8} {:>7} {:>10}",
            "op", "calls", "ms", "share", "GFLOP/s", "GB/s", "of ceiling"
        )?;
        for (op, row) in rows {
            writeln!(
                f,
                "{op:<18} {:>5} {:>9.2} {:>6.1}% {:>8.1} {:>7.1} {:>9.0}%",
                row.calls,
                row.seconds * 1e3,
                100.0 * ratio(row.seconds, all),
                ratio(row.flops, row.seconds) * 1e-9,
                ratio(row.bytes, row.seconds) * 1e-9,
                100.0 * ratio(row.least, row.seconds)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        let call = |op: &str, seconds, flops, bytes| CallTime {
            op: op.into(),
            label: "layers.0".into(),
            seconds,
            flops,
            bytes,
        };
        Profile {
            ceiling: Ceiling { flops: 100e9, bandwidth: 10e9 },
            calls: vec![
                call("linear nt", 0.02, 1_000_000_000, 1000),
                call("add", 0.01, 10, 50_000_000),
                call("add", 0.03, 10, 150_000_000),
            ],
        }
    }

    #[test]
    fn the_table_sums_by_op_and_compares_with_the_nearer_ceiling() {
        let text = profile().to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[2], ["add", "2", "40.00", "66.7%", "0.0", "5.0", "50%"]);
        assert_eq!(lines[3], ["linear", "nt", "1", "20.00", "33.3%", "50.0", "0.0", "50%"]);
        assert_eq!(lines[4][..3], ["all", "3", "60.00"]);
    }

    #[test]
    fn what_took_no_time_has_no_speed() {
        let mut profile = profile();
        profile.calls.truncate(1);
        profile.calls[0].seconds = 0.0;
        assert!(!profile.to_string().contains("NaN") && !profile.to_string().contains("inf"), "{profile}");
        assert!(!profile.trace().contains("null"));
    }

    #[test]
    fn the_trace_is_a_timeline_without_gaps() {
        let json: serde_json::Value = serde_json::from_str(&profile().trace()).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        let at = |i: usize, key: &str| events[i][key].as_f64().unwrap();
        assert_eq!(events.len(), 3);
        assert!((at(1, "ts") - at(0, "dur")).abs() < 1e-6 && (at(2, "ts") - at(1, "ts") - at(1, "dur")).abs() < 1e-6);
        assert_eq!(events[0]["args"]["label"], "layers.0");
    }

    #[test]
    fn times_of_another_plan_are_refused() {
        let plan = Plan { arena: 0, segments: vec![], externals: vec![], calls: vec![] };
        assert!(Profile::new(&plan, &[], &[Duration::ZERO], profile().ceiling).is_err());
    }
}
