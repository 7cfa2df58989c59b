//! Phi-3, 3.5 and 4 (mini): Llama with fused projections, a sliding window, and longrope on part or all of a head.

use super::super::config::{Defaults, activation, base, sliding_window};
use super::super::keys::Keys;
use super::super::rope::RopeDefaults;
use super::super::{Decoder, Family};
use crate::Result;
use sparta_graph::ops::Activation;

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 4096,
    pad: Some(32_000),
    bos: Some(1),
    eos: Some(32_000),
    rms_norm_eps: 1e-5,
    rope: RopeDefaults { theta: 10_000.0, local_theta: None, partial: true },
    ..Defaults::PLAIN
};

pub(super) fn decoder(keys: &Keys) -> Result<Decoder> {
    for key in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        keys.only(key, false.into())?;
    }
    let mut decoder = base(keys, Family::Phi3, &DEFAULTS)?;
    decoder.activation = activation(keys, "hidden_act", Activation::Silu)?;
    decoder.fused = true;
    if !decoder.intermediate_size.is_multiple_of(2) {
        return Err(keys.invalid("intermediate_size", "an even number, as gate and up are halves of one layer"));
    }
    decoder.windows = vec![sliding_window(keys, None)?; decoder.layers];
    Ok(decoder)
}
