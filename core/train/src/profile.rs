//! Where the time of a step goes: each call of the plan compared with the best the device can do.

use crate::ceiling::Ceiling;
use crate::{Error, Result};
use serde::Serialize;
use sparta_graph::{Call, DType, Op, Plan};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// One call of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct CallTime {
    pub op: String,
    /// Its place in the model, such as `layers.3.mlp`.
    pub label: String,
    pub seconds: f64,
    /// The type of the first operand, which decides how a product is computed.
    pub activations: DType,
    pub flops: u64,
    /// The bytes of all operands, each counted once.
    pub bytes: u64,
}

/// The calls of one step, in order.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// The device's best rates, raised so that no call exceeds them.
    pub ceiling: Ceiling,
    pub calls: Vec<CallTime>,
}

impl Profile {
    /// `times` are those of the plan's calls, on a packed batch with segments of these lengths.
    ///
    /// Errors: the numbers of times and calls differ.
    pub fn new(plan: &Plan, lengths: &[usize], times: &[Duration], mut ceiling: Ceiling) -> Result<Profile> {
        if times.len() != plan.calls.len() {
            let (expected, got) = (plan.calls.len(), times.len());
            return Err(Error::Training(format!("the device timed {got} calls of a plan that has {expected}")));
        }
        let call = |(call, time): (&Call, &Duration)| CallTime {
            op: name(&call.op),
            label: call.label.clone(),
            seconds: time.as_secs_f64(),
            activations: call.inputs.first().map_or(DType::F32, |operand| operand.ty.dtype),
            flops: call.packed_flops(lengths),
            bytes: call.bytes(),
        };
        let calls: Vec<CallTime> = plan.calls.iter().zip(times).map(call).collect();
        for call in &calls {
            ceiling.raise(call.activations, call.flops, call.bytes, call.seconds);
        }
        Ok(Profile { ceiling, calls })
    }

    pub fn seconds(&self) -> f64 {
        self.calls.iter().map(|call| call.seconds).sum()
    }

    /// Seconds that the call would take if only the device's arithmetic or memory limited it. What a device does not
    /// time, such as copies, counts as nothing; otherwise sums of calls would exceed the ceiling.
    fn least_seconds(&self, call: &CallTime) -> f64 {
        self.ceiling.least_seconds(call.activations, call.flops, call.bytes).min(call.seconds)
    }

    /// The calls as a JSON timeline for `chrome://tracing` and Perfetto.
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

/// The op's name and, for a matrix product, which operands are transposed.
fn name(op: &Op) -> String {
    match op {
        Op::Linear(linear) => format!("linear {:?}", linear.layout).to_lowercase(),
        op => op.name().to_owned(),
    }
}

/// The rate, or 0 if no time was measured: a device may not time copies.
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
        let products = |dtype| self.ceiling.flops(dtype) * 1e-9;
        let (f32, bf16, memory) = (products(DType::F32), products(DType::BF16), self.ceiling.memory() * 1e-9);
        writeln!(f, "ceiling: {f32:.0} GFLOP/s in f32, {bf16:.0} in bf16, {memory:.1} GB/s")?;
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
    use crate::ceiling::Bandwidth;

    fn profile() -> Profile {
        let call = |op: &str, seconds, flops, bytes| CallTime {
            op: op.into(),
            label: "layers.0".into(),
            seconds,
            activations: DType::F32,
            flops,
            bytes,
        };
        Profile {
            ceiling: Ceiling {
                f32_flops: 100e9,
                bf16_flops: None,
                bandwidth: vec![Bandwidth { bytes: 1 << 30, rate: 10e9 }],
            },
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
    fn a_step_that_took_no_time_has_no_speed() {
        let mut profile = profile();
        profile.calls.truncate(1);
        profile.calls[0].seconds = 0.0;
        assert!(!profile.to_string().contains("NaN") && !profile.to_string().contains("inf"), "{profile}");
        assert!(!profile.trace().contains("null"));
    }

    /// A device may not time copies; a slow call of the same op does not lend them its time.
    #[test]
    fn no_share_exceeds_the_ceiling() {
        let mut profile = profile();
        profile.calls[1].seconds = 0.0;
        profile.calls[2].seconds = 0.015;
        for row in profile.to_string().lines().skip(2) {
            let share: f64 = row.split_whitespace().last().unwrap().trim_end_matches('%').parse().unwrap();
            assert!(share <= 100.0, "{profile}");
        }
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
    fn times_of_a_different_plan_are_refused() {
        let plan = Plan { arena: 0, segments: vec![], externals: vec![], calls: vec![], tf32: false };
        assert!(Profile::new(&plan, &[], &[Duration::ZERO], profile().ceiling).is_err());
    }
}
