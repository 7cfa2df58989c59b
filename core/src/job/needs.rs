//! How a run was made to fit its device, and what to do if it does not.

use super::thousands;
use crate::train::{Fit, LargestBuffer, MICRO_BATCH_TOKENS, MemoryKind, Recompute};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_graph::{DeviceInfo, memory_size};
use std::collections::BTreeMap;
use std::fmt;

/// The choices that the device's limits decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Tokens per micro-batch.
    pub micro_batch_tokens: usize,
    /// Whether that number was requested.
    pub fixed: bool,
    /// Whether recomputation was turned off.
    pub kept: bool,
    /// Whether recomputation was chosen.
    #[serde(default)]
    pub recompute: bool,
    pub largest: LargestBuffer,
    /// A kernel that the device cannot run because of the size of a binding, and why.
    #[serde(default)]
    pub unbound: Option<String>,
    /// Bytes that the run would need with the fastest choices, and its largest buffer, if they do not fit.
    pub refused: Option<(u64, LargestBuffer)>,
    /// What a kernel would then have to bind, and the device cannot.
    #[serde(default)]
    pub refused_unbound: Option<String>,
}

impl Needs {
    /// `tokens` and `recompute` are the requested values.
    pub fn new(fit: &Fit, tokens: Option<usize>, recompute: Recompute) -> Needs {
        let refused = fit.refused.as_ref();
        Needs {
            micro_batch_tokens: fit.micro_batch_tokens,
            fixed: tokens.is_some(),
            kept: recompute == Recompute::Off,
            recompute: fit.recompute && recompute == Recompute::Auto,
            largest: fit.planned.largest.clone(),
            unbound: fit.planned.unbound.clone(),
            refused: refused.map(|planned| (planned.total(), planned.largest.clone())),
            refused_unbound: refused.and_then(|planned| planned.unbound.clone()),
        }
    }

    /// Checks that the run fits the device.
    ///
    /// Errors: it does not, with three ways to make it fit.
    pub fn check(&self, memory: &BTreeMap<MemoryKind, u64>, device: &DeviceInfo) -> Result<()> {
        let needed: u64 = memory.values().sum();
        let mut ways = Vec::new();
        let what = match (device.memory, &self.unbound) {
            (Some(most), _) if needed > most => {
                format!("the run needs {}, but the device has {}", memory_size(needed), memory_size(most))
            }
            _ if self.largest.bytes > device.max_buffer => {
                let (bytes, most) = (memory_size(self.largest.bytes), memory_size(device.max_buffer));
                ways.push("use a device with larger buffers, such as --device cpu".to_owned());
                let name = &self.largest.name;
                format!("the run needs a buffer of {bytes} for {name}, but the device's buffers hold at most {most}")
            }
            (_, Some(unbound)) => {
                ways.push("use a device that binds more at once, such as --device cpu".to_owned());
                unbound.clone()
            }
            _ => return Ok(()),
        };
        let bytes = |kind| memory_size(memory.get(&kind).copied().unwrap_or(0));
        if self.kept {
            ways.push("allow activations to be recomputed: --recompute auto".into());
        }
        let activations = bytes(MemoryKind::Activations);
        ways.push(match self.fixed {
            true => {
                format!("leave out --micro-batch-tokens, so that fewer are chosen (activations take {activations})")
            }
            false => format!("leave out long examples: lower --max-length (activations take {activations})"),
        });
        ways.push(format!(
            "train less: --method lora, or sparta with a lower --density (optimizer state takes {})",
            bytes(MemoryKind::Optimizer)
        ));
        ways.push(format!("use a smaller model, or one stored in bf16 (weights take {})", bytes(MemoryKind::Weights)));
        ways.truncate(3);
        Err(Error::Training(format!("{}: {what}. To make it fit: {}", device.name, ways.join("; "))))
    }
}

/// The line of a plan on what was chosen and why; empty if the fastest choices fit, or nothing could be chosen.
impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((bytes, largest)) = &self.refused else { return Ok(()) };
        let fewer = !self.fixed && self.micro_batch_tokens < MICRO_BATCH_TOKENS;
        let tokens = fewer.then(|| format!("{} tokens per micro-batch", thousands(self.micro_batch_tokens as u64)));
        let recompute = self.recompute.then(|| "activation checkpointing".to_owned());
        let chosen = [tokens, recompute].into_iter().flatten().collect::<Vec<_>>().join(" and ");
        if chosen.is_empty() {
            return Ok(());
        }
        let (bytes, buffer) = (memory_size(*bytes), memory_size(largest.bytes));
        let unbound = self.refused_unbound.iter().map(|unbound| format!("; {unbound}")).collect::<String>();
        writeln!(
            f,
            "  note     {chosen}, chosen for the device's memory: with the fastest settings the run needs {bytes}, in \
             buffers of up to {buffer}{unbound}"
        )
    }
}
