//! What a run was adapted to so that it fits its device, and what to do where it does not.

use crate::train::{Fit, LargestBuffer, MemoryKind, Recompute};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_graph::{DeviceInfo, memory_size};
use std::collections::BTreeMap;
use std::fmt;

/// The choices that memory decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Tokens per micro-batch.
    pub micro_batch_tokens: usize,
    /// Whether that number was asked for.
    pub fixed: bool,
    /// Whether recomputation was ruled out.
    pub kept: bool,
    pub largest: LargestBuffer,
    /// Bytes that the run would need with the fastest choices, and its largest buffer, where they do not fit.
    pub refused: Option<(u64, LargestBuffer)>,
}

impl Needs {
    /// `tokens` and `recompute` are what was asked for.
    pub fn new(fit: &Fit, tokens: Option<usize>, recompute: Recompute) -> Needs {
        Needs {
            micro_batch_tokens: fit.micro_batch_tokens,
            fixed: tokens.is_some(),
            kept: recompute == Recompute::Off,
            largest: fit.planned.largest.clone(),
            refused: fit.refused.as_ref().map(|planned| (planned.total(), planned.largest.clone())),
        }
    }

    /// Whether this fits the device.
    ///
    /// Errors: it does not, with three ways to make it fit.
    pub fn check(&self, memory: &BTreeMap<MemoryKind, u64>, device: &DeviceInfo) -> Result<()> {
        let needed: u64 = memory.values().sum();
        let mut ways = Vec::new();
        let what = match device.memory {
            Some(most) if needed > most => {
                format!("{}, and the device has {}", memory_size(needed), memory_size(most))
            }
            _ if self.largest.bytes > device.max_buffer => {
                let (bytes, most) = (memory_size(self.largest.bytes), memory_size(device.max_buffer));
                ways.push("take a device with larger buffers, such as --device cpu".to_owned());
                format!("a buffer of {bytes} for {}, and those of the device have at most {most}", self.largest.name)
            }
            _ => return Ok(()),
        };
        let bytes = |kind| memory_size(memory.get(&kind).copied().unwrap_or(0));
        if self.kept {
            ways.push("let activations be recomputed: --recompute auto".into());
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
        ways.push(format!("take a smaller model, or one stored in bf16 (weights take {})", bytes(MemoryKind::Weights)));
        ways.truncate(3);
        Err(Error::Training(format!("{}: the run needs {what}. To make it fit: {}", device.name, ways.join("; "))))
    }
}

/// A line of a plan about what was chosen and why; nothing where the fastest choices fit.
impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((bytes, largest)) = &self.refused else { return Ok(()) };
        let (bytes, buffer) = (memory_size(*bytes), memory_size(largest.bytes));
        writeln!(
            f,
            "  note     {} tokens per micro-batch, chosen for the device's memory: with the fastest settings the run needs \
             {bytes}, in buffers of up to {buffer}",
            self.micro_batch_tokens
        )
    }
}
