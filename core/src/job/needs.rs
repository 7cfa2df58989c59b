//! What a run was adapted to so that it fits its device, and what to do where it does not.

use super::memory_size;
use crate::train::{Fit, LargestBuffer, MemoryKind};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_graph::DeviceInfo;
use std::collections::BTreeMap;
use std::fmt;

/// The choices that memory decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Tokens per micro-batch.
    pub micro_batch_tokens: usize,
    pub largest: LargestBuffer,
    /// Bytes that the run would need with the fastest choices, and its largest buffer, where they do not fit.
    pub refused: Option<(u64, LargestBuffer)>,
}

impl Needs {
    pub fn new(fit: &Fit) -> Needs {
        Needs {
            micro_batch_tokens: fit.micro_batch_tokens,
            largest: fit.planned.largest.clone(),
            refused: fit.refused.as_ref().map(|planned| (planned.total(), planned.largest.clone())),
        }
    }

    /// Whether this fits the device.
    ///
    /// Errors: it does not, with three ways to make it fit.
    pub fn check(&self, memory: &BTreeMap<MemoryKind, u64>, device: &DeviceInfo, recompute: bool) -> Result<()> {
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
        if !recompute {
            ways.push("let activations be recomputed: --recompute auto".into());
        }
        ways.push(format!(
            "lower --micro-batch-tokens from {}, and --max-length where an example is longer (activations take {})",
            self.micro_batch_tokens,
            bytes(MemoryKind::Activations)
        ));
        ways.push(format!(
            "train less: --method lora, or sparta with a lower --density (optimizer state takes {})",
            bytes(MemoryKind::Optimizer)
        ));
        ways.push(format!("take a smaller model, or one stored in bf16 (weights take {})", bytes(MemoryKind::Weights)));
        ways.truncate(3);
        Err(Error::Usage(format!("{}: the run needs {what}. To make it fit: {}", device.name, ways.join("; "))))
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
