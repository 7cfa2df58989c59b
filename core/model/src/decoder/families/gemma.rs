//! Gemma: norms multiply by 1 + w, embeddings by sqrt(hidden), the gate is tanh-GELU, embeddings are tied.

use super::super::config::{Defaults, activation, base, only_full_attention};
use super::super::keys::Keys;
use super::super::{Decoder, Family};
use crate::Result;
use sparta_graph::ops::Activation;

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(16),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    tied_embeddings: true,
    pad: Some(0),
    bos: Some(2),
    eos: Some(1),
    ..Defaults::PLAIN
};

pub(super) fn decoder(keys: &Keys) -> Result<Decoder> {
    keys.only("attention_bias", false.into())?;
    keys.only("use_bidirectional_attention", false.into())?;
    let mut decoder = base(keys, Family::Gemma, &DEFAULTS)?;
    only_full_attention(keys, decoder.layers)?;
    decoder.activation = gate(keys)?;
    decoder.norm_plus_one = true;
    decoder.embed_scale = Some((decoder.hidden_size as f64).sqrt() as f32);
    Ok(decoder)
}

/// The first official files say "gelu" and mean the tanh form. Some versions of transformers read `hidden_activation`
/// instead, so the two must agree.
fn gate(keys: &Keys) -> Result<Activation> {
    let act = match keys.text("hidden_act")? {
        Some("gelu") => Activation::GeluTanh,
        _ => activation(keys, "hidden_act", Activation::GeluTanh)?,
    };
    if activation(keys, "hidden_activation", act)? != act {
        return Err(keys.invalid("hidden_activation", "the same as `hidden_act`, or null"));
    }
    Ok(act)
}
