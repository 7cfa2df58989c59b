//! Qwen 3: Llama with RMS norms of query and key heads, and Qwen 2's windows.

use super::super::config::{Defaults, activation, base};
use super::super::keys::Keys;
use super::super::{Decoder, Family};
use super::qwen2::upper_windows;
use crate::Result;
use sparta_graph::ops::Activation;

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(32), head_dim: Some(128), max_position_embeddings: 32_768, ..Defaults::PLAIN };

pub(super) fn decoder(keys: &Keys) -> Result<Decoder> {
    keys.only("attention_bias", false.into())?;
    let mut decoder = base(keys, Family::Qwen3, &DEFAULTS)?;
    decoder.activation = activation(keys, "hidden_act", Activation::Silu)?;
    decoder.qk_norm = true;
    decoder.windows = upper_windows(keys, decoder.layers)?;
    Ok(decoder)
}
