//! Devices that this machine lacks, for plans: `memory=8GiB,max-buffer=2GiB,max-binding=128MiB`.

use crate::{Error, Result};
use sparta_graph::{DType, DeviceInfo, DeviceKind};

/// A GPU with these limits. `memory` is required; `max-buffer` defaults to the memory, and without `max-binding` a
/// kernel can bind all of a buffer; `types=f32` excludes bf16; `kind` is gpu or cpu.
///
/// Errors: an unknown name, an invalid size, no memory.
pub fn device(text: &str) -> Result<DeviceInfo> {
    let mut info = DeviceInfo {
        id: "assumed".into(),
        name: format!("a device with {text}"),
        kind: DeviceKind::DiscreteGpu,
        card: None,
        driver: String::new(),
        memory: None,
        max_buffer: 0,
        max_binding: None,
        segments: true,
        in_place: true,
        activations: vec![DType::F32, DType::BF16],
        products: vec![DType::BF16],
        multiplier: None,
        rounds_in_attention: false,
        tf32: false,
        sampled_cost: None,
        own_kernels: vec![],
    };
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        match (name, value) {
            ("memory", size) => info.memory = Some(bytes(name, size)?),
            ("max-buffer", size) => info.max_buffer = bytes(name, size)?,
            ("max-binding", size) => info.max_binding = Some(bytes(name, size)?),
            ("kind", "gpu") => {}
            ("kind", "cpu") => info.kind = DeviceKind::Cpu,
            ("types", "f32") => (info.activations, info.products) = (vec![DType::F32], vec![]),
            ("types", "bf16") => {}
            _ => {
                return Err(Error::Usage(format!(
                    "--assume: `{part}` is not one of memory=SIZE, max-buffer=SIZE, max-binding=SIZE, kind=gpu|cpu, \
                     types=f32|bf16"
                )));
            }
        }
    }
    let Some(memory) = info.memory else {
        return Err(Error::Usage(format!("--assume: `{text}` has no memory=SIZE, for example memory=8GiB")));
    };
    if info.max_buffer == 0 {
        info.max_buffer = memory;
    }
    if info.max_binding.is_some_and(|binding| binding > info.max_buffer) {
        return Err(Error::Usage(format!("--assume: `{text}`: a binding cannot be larger than a buffer")));
    }
    Ok(info)
}

/// `8GiB`, `512MiB`, `16KiB`, `24GB` or a number of bytes. Errors: anything else, or 0.
fn bytes(name: &str, text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: Option<f64> = match &text[digits.len()..] {
        "" | "B" => Some(1.0),
        "KiB" => Some(1024.0),
        "MiB" => Some(1024f64.powi(2)),
        "GiB" => Some(1024f64.powi(3)),
        "TiB" => Some(1024f64.powi(4)),
        "MB" => Some(1e6),
        "GB" => Some(1e9),
        _ => None,
    };
    let number = digits.parse::<f64>().ok().zip(unit).map(|(number, unit)| number * unit);
    number
        .filter(|bytes| (1.0..1e18).contains(bytes))
        .map(|bytes| bytes as u64)
        .ok_or_else(|| Error::Usage(format!("--assume: {name}: expected a size such as 8GiB or 512MiB, got `{text}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_with_their_units() {
        let info = device("memory=8GiB,max-buffer=2GiB,max-binding=128MiB").unwrap();
        assert_eq!((info.memory, info.max_buffer, info.max_binding), (Some(8 << 30), 2 << 30, Some(128 << 20)));
        let info = device("memory=24GB, types=f32").unwrap();
        assert_eq!((info.max_buffer, info.max_binding), (24_000_000_000, None));
        assert_eq!(info.activations, [DType::F32]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("memory=8Gib", "8Gib"),
            ("memory=0", "memory"),
            ("memory=NaN", "NaN"),
            ("max-buffer=2GiB", "no memory"),
            ("memory=8GiB,max-buffers=2GiB", "max-buffers"),
            ("memory=8GiB,max-binding=9GiB", "binding"),
        ] {
            let message = device(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
