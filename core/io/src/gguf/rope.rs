//! Rotations. The scaling of frequencies is a setting, except for Llama 3.1 and later, whose files have only the
//! factors.

use super::Gguf;
use super::config::Keys;
use serde_json::{Map, Value, json};
use std::f64::consts::PI;

type Result<T> = std::result::Result<T, String>;

const THETA: f64 = 10_000.0;

/// The keys of `config.json` that describe rotations.
pub(super) fn parameters(gguf: &Gguf, keys: &Keys, head_dim: u64) -> Result<Map<String, Value>> {
    let theta = keys.number("rope.freq_base")?.unwrap_or(THETA);
    let mut found = Map::from_iter([("rope_theta".to_owned(), json!(theta))]);
    if let Some(local) = keys.number("rope.freq_base_swa")? {
        found.insert("rope_local_base_freq".into(), json!(local));
    }
    let width = keys.count("rope.dimension_count")?.unwrap_or(head_dim);
    if width != head_dim {
        found.insert("partial_rotary_factor".into(), json!(width as f64 / head_dim.max(1) as f64));
    }
    let original = keys.count("rope.scaling.original_context_length")?;
    let old_factor = keys.number("rope.scale_linear")?.filter(|&factor| factor != 1.0);
    let factor = keys.number("rope.scaling.factor")?.or(old_factor);
    let short = gguf.raw("rope_factors_short.weight").and_then(|view| view.to_f32());
    let scaling = match keys.text("rope.scaling.type")? {
        _ if short.is_some() => {
            if let Some(original) = original {
                found.insert("original_max_position_embeddings".into(), original.into());
            }
            let attention = keys.number("rope.scaling.attn_factor")?;
            Some(json!({"rope_type": "longrope", "short_factor": short, "attention_factor": attention}))
        }
        None | Some("none") if old_factor.is_none() => match gguf.raw("rope_freqs.weight").and_then(|v| v.to_f32()) {
            Some(factors) => llama3(&factors, theta, width)?,
            None => None,
        },
        None | Some("none" | "linear") => Some(json!({"rope_type": "linear", "factor": factor})),
        Some(other) => Some(json!({"rope_type": other, "factor": factor})),
    };
    if let Some(scaling) = scaling {
        found.insert("rope_scaling".into(), scaling);
    }
    Ok(found)
}

/// The settings of Llama 3.1 to 3.3 whose factors these are, the divisors of each frequency; `None` if all are 1.
fn llama3(factors: &[f32], theta: f64, width: u64) -> Result<Option<Value>> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const ORIGINAL: f64 = 8192.0;
    if factors.iter().all(|&factor| factor == 1.0) {
        return Ok(None);
    }
    let factor = f64::from(factors.iter().copied().fold(0.0, f32::max));
    let expected = |i: usize| -> f64 {
        let wavelength = 2.0 * PI * theta.powf(2.0 * i as f64 / width as f64);
        let smooth = ((ORIGINAL / wavelength - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let same = |(i, &got): (usize, &f32)| (f64::from(got) / expected(i) - 1.0).abs() < 1e-4;
    if factors.len() as u64 != width / 2 || !factors.iter().enumerate().all(same) {
        return Err(
            "`rope_freqs.weight` does not scale frequencies by the factors of Llama 3.1 to 3.3; only those are \
             supported"
                .into(),
        );
    }
    Ok(Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": ORIGINAL as u64,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factors_of_llama_3_are_known_again() {
        // As llama.cpp's converter computes them for Llama 3.2: theta 500,000, heads of 64, factor 32.
        let factor = |i: usize| {
            let freq = 1.0 / 500_000f64.powf(2.0 * i as f64 / 64.0);
            let wavelength = 2.0 * PI / freq;
            if wavelength < 8192.0 / 4.0 {
                1.0
            } else if wavelength > 8192.0 {
                32.0
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                1.0 / ((1.0 - smooth) / 32.0 + smooth)
            }
        };
        let mut factors: Vec<f32> = (0..32).map(|i| factor(i) as f32).collect();
        let found = llama3(&factors, 500_000.0, 64).unwrap().unwrap();
        assert_eq!(found["factor"], 32.0);
        assert_eq!(found["original_max_position_embeddings"], 8192);
        assert!(llama3(&[1.0; 32], 500_000.0, 64).unwrap().is_none());
        factors[20] *= 1.01;
        assert!(llama3(&factors, 500_000.0, 64).is_err());
        assert!(llama3(&factors[..31], 500_000.0, 64).is_err());
    }
}
