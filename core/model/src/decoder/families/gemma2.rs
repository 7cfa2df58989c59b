//! Gemma 2: Gemma plus norms after attention and MLP, soft-caps, sliding windows in every other layer, its own query
//! scale.

use super::super::config::{Defaults, activation, base, layer_types, sliding_window, windows};
use super::super::keys::Keys;
use super::super::{Decoder, Family};
use crate::Result;
use sparta_graph::ops::Activation;

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
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
    let mut decoder = base(keys, Family::Gemma2, &DEFAULTS)?;
    // transformers does not read `hidden_act`, which the official files have too.
    decoder.activation = activation(keys, "hidden_activation", Activation::GeluTanh)?;
    decoder.norm_plus_one = true;
    decoder.embed_scale = Some((decoder.hidden_size as f64).sqrt() as f32);
    decoder.post_norms = true;
    decoder.attention_scale = keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32;
    decoder.attn_softcap = cap(keys, "attn_logit_softcapping", 50.0)?;
    decoder.final_softcap = cap(keys, "final_logit_softcapping", 30.0)?;
    let types = match layer_types(keys, decoder.layers)? {
        Some(types) => types,
        None => (0..decoder.layers).map(|layer| layer % 2 == 0).collect(),
    };
    decoder.windows = windows(keys, &types, sliding_window(keys, Some(4096))?)?;
    Ok(decoder)
}

/// `null` means no cap; a missing key means the family's.
fn cap(keys: &Keys, key: &str, default: f32) -> Result<Option<f32>> {
    if keys.is_null(key) {
        return Ok(None);
    }
    Ok(Some(keys.positive(key)?.map_or(default, |cap| cap as f32)))
}
