//! Rotary position embeddings: inverse frequencies as transformers computes them, and the table of cosines and sines.

use super::keys::Keys;
use crate::Result;
use serde_json::Value;
use std::f64::consts::PI;

/// Rotation of the first `width` elements of each head, in half-split pairs (i, i + width/2) by `position *
/// inv_freq[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Rotated elements of a head, an even number.
    pub width: usize,
    pub theta: f64,
    pub scaling: Scaling,
}

/// How frequencies change for contexts longer than in pretraining.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// All frequencies divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: wavelengths above `original / low` are divided by `factor`, those below `original / high` kept, and
    /// those in between interpolated.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    /// LongRoPE: each frequency is divided by its own factor, and cosines and sines are multiplied by a common one.
    /// These are the factors for texts of up to `original` positions; longer texts use others at every position, and
    /// are rejected.
    Long {
        short_factor: Vec<f64>,
        attention_factor: f64,
        original_max_position_embeddings: usize,
    },
}

/// A family's defaults, and what it supports.
pub(super) struct RopeDefaults {
    pub theta: f64,
    /// The theta of layers with sliding windows, in families where these rotate by different angles.
    pub local_theta: Option<f64>,
    /// Whether the rotation may cover only part of a head.
    pub partial: bool,
}

impl Rope {
    /// Reads the keys of transformers 5 (`rope_parameters`) or 4 (`rope_theta`, `rope_scaling`). If theta is in both
    /// places, the inner one counts. In families where layers with sliding windows rotate differently, theirs is the
    /// second.
    pub(super) fn parse(
        keys: &Keys,
        defaults: &RopeDefaults,
        head_dim: usize,
        max_position_embeddings: usize,
    ) -> Result<Vec<Rope>> {
        let reader = Reader { keys, defaults, head_dim, max_position_embeddings };
        let inner = parameters(keys)?;
        let of_types =
            |inner: &Keys| ["full_attention", "sliding_attention"].into_iter().find(|t| inner.get(t).is_some());
        let named = inner.as_ref().and_then(of_types);
        let global = keys.positive("rope_theta")?.unwrap_or(defaults.theta);
        let Some(local) = defaults.local_theta else {
            return match (inner, named) {
                (Some(inner), Some(key)) => Err(inner.invalid(key, "one set of parameters for all layers")),
                (inner, _) => Ok(vec![reader.rope(inner, global)?]),
            };
        };
        let local = keys.positive("rope_local_base_freq")?.unwrap_or(local);
        match (inner, named) {
            (Some(inner), Some(_)) => {
                let full = inner.object("rope_parameters.full_attention.")?;
                let sliding = inner.object("rope_parameters.sliding_attention.")?;
                Ok(vec![reader.rope(full, global)?, reader.rope(sliding, local)?])
            }
            // transformers 4 scales only the rotation of layers with full attention.
            (inner, _) if keys.get("rope_parameters").is_none() => {
                Ok(vec![reader.rope(inner, global)?, reader.rope(None, local)?])
            }
            _ => Err(keys.invalid("rope_parameters", "parameters for full_attention and for sliding_attention")),
        }
    }

    /// How many positions can be computed, if the rotation sets a limit.
    pub fn positions(&self) -> Option<usize> {
        match self.scaling {
            Scaling::Long { original_max_position_embeddings, .. } => Some(original_max_position_embeddings),
            _ => None,
        }
    }

    /// Inverse frequencies `[width / 2]`, rounded to f32 at each step like transformers does.
    pub fn inv_freq(&self) -> Vec<f32> {
        let power = |i: usize| {
            let exponent = (2 * i) as f32 / self.width as f32;
            f64::from(self.theta as f32).powf(exponent.into()) as f32
        };
        let powers = (0..self.width / 2).map(power);
        let default = powers.clone().map(|power| 1.0 / power);
        match &self.scaling {
            Scaling::None => default.collect(),
            Scaling::Linear { factor } => default.map(|f| f / *factor as f32).collect(),
            Scaling::Long { short_factor, .. } => {
                powers.zip(short_factor).map(|(power, factor)| 1.0 / (*factor as f32 * power)).collect()
            }
            &Scaling::Llama3 {
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

    /// The table `[positions, width]`, row-major: cosines of a position in the first half of its row, sines in the
    /// second. Angles are f32 products, as in transformers; their cosine and sine are rounded once.
    pub fn table(&self, positions: usize) -> Vec<f32> {
        let inv_freq = self.inv_freq();
        let factor = match self.scaling {
            Scaling::Long { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        };
        let mut table = Vec::with_capacity(positions * self.width);
        for position in 0..positions {
            let angles = || inv_freq.iter().map(|f| f64::from(position as f32 * f));
            table.extend(angles().map(|a| a.cos() as f32 * factor));
            table.extend(angles().map(|a| a.sin() as f32 * factor));
        }
        table
    }
}

/// Reads one rotation.
struct Reader<'a> {
    keys: &'a Keys<'a>,
    defaults: &'a RopeDefaults,
    head_dim: usize,
    max_position_embeddings: usize,
}

impl Reader<'_> {
    /// Reads `inner`, the object with its parameters; `theta` is the default.
    fn rope(&self, inner: Option<Keys>, theta: f64) -> Result<Rope> {
        let width = self.width(inner.as_ref())?;
        let Some(inner) = inner else { return Ok(Rope { width, theta, scaling: Scaling::None }) };
        let theta = inner.positive("rope_theta")?.unwrap_or(theta);
        // Before transformers 4.43 the key was `type`.
        let kind = match inner.text("rope_type")? {
            Some(kind) => kind,
            None => inner.text("type")?.unwrap_or("default"),
        };
        let scaling = match kind {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: number(&inner, "factor")? },
            "llama3" => self.llama3(&inner)?,
            // The first files of Phi-3 say `su`.
            "longrope" | "su" => self.long(&inner, width)?,
            _ => {
                let key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
                return Err(inner.invalid(key, "default, linear, llama3 or longrope; other kinds are not supported"));
            }
        };
        Ok(Rope { width, theta, scaling })
    }

    /// The number of rotated elements of a head.
    fn width(&self, inner: Option<&Keys>) -> Result<usize> {
        const KEY: &str = "partial_rotary_factor";
        let holder = inner.filter(|inner| inner.get(KEY).is_some()).unwrap_or(self.keys);
        if !self.defaults.partial {
            holder.only(KEY, Value::from(1.0))?;
            return Ok(self.head_dim);
        }
        let width = (self.head_dim as f64 * holder.positive(KEY)?.unwrap_or(1.0)) as usize;
        if width == 0 || width > self.head_dim || !width.is_multiple_of(2) {
            return Err(holder.invalid(
                KEY,
                format_args!("a fraction that gives an even number of the {} elements of a head", self.head_dim),
            ));
        }
        Ok(width)
    }

    fn llama3(&self, inner: &Keys) -> Result<Scaling> {
        let (low, high) = (number(inner, "low_freq_factor")?, number(inner, "high_freq_factor")?);
        if high <= low {
            return Err(inner.invalid("high_freq_factor", format_args!("more than low_freq_factor, {low}")));
        }
        Ok(Scaling::Llama3 {
            factor: number(inner, "factor")?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: self.original(inner)?.unwrap_or(self.max_position_embeddings),
        })
    }

    /// The model's own key takes precedence over the one in the parameters.
    fn original(&self, inner: &Keys) -> Result<Option<usize>> {
        const KEY: &str = "original_max_position_embeddings";
        const MOST: usize = 1 << 30;
        Ok(self.keys.size(KEY, MOST)?.or(inner.size(KEY, MOST)?))
    }

    fn long(&self, inner: &Keys, width: usize) -> Result<Scaling> {
        let Some(original) = self.original(inner)? else {
            return Err(self.keys.invalid("original_max_position_embeddings", "the positions of pretraining"));
        };
        let factors = inner.get("short_factor").and_then(Value::as_array);
        let positive = |value: &Value| value.as_f64().filter(|&x| x as f32 > 0.0 && (x as f32).is_finite());
        let short_factor = factors.and_then(|list| list.iter().map(positive).collect::<Option<Vec<_>>>());
        let short_factor = short_factor
            .filter(|list| list.len() == width / 2)
            .ok_or_else(|| inner.invalid("short_factor", format_args!("a list of {} numbers above 0", width / 2)))?;
        let grown = self.max_position_embeddings as f64 / original as f64;
        let factor = inner.positive("factor")?.unwrap_or(grown);
        let attention_factor = match inner.positive("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        };
        if !(attention_factor as f32).is_finite() {
            return Err(self
                .keys
                .invalid("original_max_position_embeddings", "the positions of pretraining, at least 2"));
        }
        Ok(Scaling::Long { short_factor, attention_factor, original_max_position_embeddings: original })
    }
}

fn number(inner: &Keys, key: &str) -> Result<f64> {
    inner.positive(key)?.ok_or_else(|| inner.invalid(key, "a number above 0"))
}

/// The object with the parameters other than a top-level theta, if any.
fn parameters<'a>(keys: &Keys<'a>) -> Result<Option<Keys<'a>>> {
    let old = keys.object("rope_scaling.")?.filter(|o| !o.is_empty());
    let new = keys.object("rope_parameters.")?.filter(|o| !o.is_empty());
    if old.is_some() && new.is_some() && keys.get("rope_scaling") != keys.get("rope_parameters") {
        return Err(keys.error("has both `rope_scaling` and `rope_parameters`, and they differ; remove one of them"));
    }
    Ok(new.or(old))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(rope: Rope, expected: &[f64]) {
        let got = rope.inv_freq();
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert_eq!(*got, *expected as f32);
        }
    }

    // The numbers below are those of transformers 5.23.
    #[test]
    fn default_frequencies_equal_transformers() {
        let rope = |theta| Rope { width: 16, theta, scaling: Scaling::None };
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
        close(rope(1e4), &expected);
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
        close(rope(1e6), &expected);
    }

    #[test]
    fn scaled_frequencies_equal_transformers() {
        let linear = Rope { width: 16, theta: 1e4, scaling: Scaling::Linear { factor: 4.0 } };
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
        close(linear, &expected);
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
        close(Rope { width: 16, theta: 5e5, scaling }, &expected);
    }

    #[test]
    fn a_table_row_is_cosines_then_sines() {
        let table = Rope { width: 4, theta: 1e4, scaling: Scaling::None }.table(3);
        assert_eq!(table.len(), 12);
        assert_eq!(table[..4], [1.0, 1.0, 0.0, 0.0]);
        let angle = f64::from(2.0 * (1.0 / 100.0f32));
        let expected = [2f64.cos() as f32, angle.cos() as f32, 2f64.sin() as f32, angle.sin() as f32];
        assert_eq!(table[8..], expected);
    }
}
