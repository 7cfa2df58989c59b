//! Rotary position embeddings: inverse frequencies as transformers computes them, and the table of cosines and sines.

use super::keys::Keys;
use crate::Result;
use serde_json::Value;
use std::f64::consts::PI;

/// Rotation of half-split pairs (i, i + head_dim/2) by `position * inv_freq[i]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: Scaling,
}

/// How frequencies are changed for contexts longer than those of pre-training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// All frequencies divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: wavelengths above `original / low` are divided by `factor`, those below `original / high` kept, those
    /// between interpolated.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// From the keys of transformers 5 (`rope_parameters`) or 4 (`rope_theta`, `rope_scaling`). Where theta is in both
    /// places the inner one counts; where it is in neither it is 10000, for every family.
    pub(super) fn parse(keys: &Keys, max_position_embeddings: usize) -> Result<Rope> {
        let inner = parameters(keys)?;
        keys.only("partial_rotary_factor", Value::from(1.0))?;
        let outer_theta = keys.positive("rope_theta")?;
        let Some(inner) = inner else {
            return Ok(Rope { theta: outer_theta.unwrap_or(10_000.0), scaling: Scaling::None });
        };
        inner.only("partial_rotary_factor", Value::from(1.0))?;
        let theta = inner.positive("rope_theta")?.or(outer_theta).unwrap_or(10_000.0);
        // Files before transformers 4.43 call it `type`.
        let kind = match inner.text("rope_type")? {
            Some(kind) => kind,
            None => inner.text("type")?.unwrap_or("default"),
        };
        let number = |key: &str| inner.positive(key)?.ok_or_else(|| inner.invalid(key, "a number above 0"));
        let scaling = match kind {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: number("factor")? },
            "llama3" => {
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                if high <= low {
                    return Err(inner.invalid("high_freq_factor", format_args!("more than low_freq_factor, {low}")));
                }
                let original = "original_max_position_embeddings";
                let original = match keys.size(original, 1 << 40)? {
                    Some(n) => n,
                    None => inner.size(original, 1 << 40)?.unwrap_or(max_position_embeddings),
                };
                Scaling::Llama3 {
                    factor: number("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: original,
                }
            }
            _ => {
                let key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
                return Err(inner.invalid(key, "default, linear or llama3; other kinds are not supported"));
            }
        };
        Ok(Rope { theta, scaling })
    }

    /// Inverse frequencies `[head_dim / 2]`, in f32 steps as transformers takes them.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let default = (0..head_dim).step_by(2).map(|i| {
            let exponent = i as f32 / head_dim as f32;
            1.0 / f64::from(self.theta as f32).powf(exponent.into()) as f32
        });
        match self.scaling {
            Scaling::None => default.collect(),
            Scaling::Linear { factor } => default.map(|f| f / factor as f32).collect(),
            Scaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => {
                let original = original as f64;
                let scale = |freq: f32| {
                    let wavelength = (2.0 * PI) as f32 / freq;
                    if wavelength < (original / high) as f32 {
                        freq
                    } else if wavelength > (original / low) as f32 {
                        freq / factor as f32
                    } else {
                        let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
                        (1.0 - smooth) * freq / factor as f32 + smooth * freq
                    }
                };
                default.map(scale).collect()
            }
        }
    }

    /// The table `[positions, head_dim]`, row-major: cosines of a position in the first half of its row, sines in the
    /// second. Angles are f32 products, as in transformers; their cosine and sine are rounded once.
    pub fn table(&self, head_dim: usize, positions: usize) -> Vec<f32> {
        let inv_freq = self.inv_freq(head_dim);
        let mut table = Vec::with_capacity(positions * head_dim);
        for position in 0..positions {
            let angles = || inv_freq.iter().map(|f| f64::from(position as f32 * f));
            table.extend(angles().map(|a| a.cos() as f32));
            table.extend(angles().map(|a| a.sin() as f32));
        }
        table
    }
}

/// The object that holds the parameters besides a top-level theta, or `None`.
fn parameters<'a>(keys: &Keys<'a>) -> Result<Option<Keys<'a>>> {
    let old = keys.object("rope_scaling.")?.filter(|o| !o.is_empty());
    let new = keys.object("rope_parameters.")?.filter(|o| !o.is_empty());
    if old.is_some() && new.is_some() && keys.get("rope_scaling") != keys.get("rope_parameters") {
        return Err(keys.error("has both `rope_scaling` and `rope_parameters`, and they differ; remove one of them"));
    }
    let Some(inner) = new.or(old) else { return Ok(None) };
    for layer_type in ["full_attention", "sliding_attention"] {
        if inner.get(layer_type).is_some() {
            return Err(inner.invalid(layer_type, "one set of parameters for all layers"));
        }
    }
    Ok(Some(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(rope: Rope, head_dim: usize, expected: &[f64]) {
        let got = rope.inv_freq(head_dim);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert_eq!(*got, *expected as f32);
        }
    }

    // The numbers below are those of transformers 5.23.
    #[test]
    fn default_frequencies_equal_transformers() {
        let rope = |theta| Rope { theta, scaling: Scaling::None };
        let expected = [
            1.0,
            0.3162277638912201,
            0.10000000149011612,
            0.03162277862429619,
            0.009999999776482582,
            0.003162277862429619,
            0.0010000000474974513,
            0.0003162277862429619,
        ];
        close(rope(1e4), 16, &expected);
        let expected = [
            1.0,
            0.17782793939113617,
            0.03162277862429619,
            0.005623413249850273,
            0.0010000000474974513,
            0.00017782794020604342,
            3.162277425872162e-05,
            5.62341347176698e-06,
        ];
        close(rope(1e6), 16, &expected);
    }

    #[test]
    fn scaled_frequencies_equal_transformers() {
        let linear = Rope { theta: 1e4, scaling: Scaling::Linear { factor: 4.0 } };
        let expected = [
            0.25,
            0.07905694097280502,
            0.02500000037252903,
            0.007905694656074047,
            0.0024999999441206455,
            0.0007905694656074047,
            0.0002500000118743628,
            7.905694656074047e-05,
        ];
        close(linear, 16, &expected);
        let scaling = Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let expected = [
            1.0,
            0.193922758102417,
            0.03760603070259094,
            0.00729266507551074,
            0.0005248460220173001,
            3.428102354519069e-05,
            6.647869668086059e-06,
            1.289173155782919e-06,
        ];
        close(Rope { theta: 5e5, scaling }, 16, &expected);
    }

    #[test]
    fn a_table_row_is_cosines_then_sines() {
        let table = Rope { theta: 1e4, scaling: Scaling::None }.table(4, 3);
        assert_eq!(table.len(), 12);
        assert_eq!(table[..4], [1.0, 1.0, 0.0, 0.0]);
        let angle = f64::from(2.0 * (1.0 / 100.0f32));
        let expected = [2f64.cos() as f32, angle.cos() as f32, 2f64.sin() as f32, angle.sin() as f32];
        assert_eq!(table[8..], expected);
    }
}
