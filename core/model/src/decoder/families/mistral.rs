//! Mistral: Llama with grouped heads and, if one is set, a sliding window in every layer.

use super::super::config::{Defaults, activation, base, layer_types, sliding_window};
use super::super::keys::Keys;
use super::super::{Decoder, Family};
use crate::Result;
use sparta_graph::ops::Activation;

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(8), max_position_embeddings: 131_072, bos: Some(1), eos: Some(2), ..Defaults::PLAIN };

pub(super) fn decoder(keys: &Keys) -> Result<Decoder> {
    let mut decoder = base(keys, Family::Mistral, &DEFAULTS)?;
    decoder.activation = activation(keys, "hidden_act", Activation::Silu)?;
    let window = sliding_window(keys, Some(4096))?;
    decoder.windows = vec![window; decoder.layers];
    // transformers ignores `layer_types` here, so a file that means alternating layers is not this architecture.
    match layer_types(keys, decoder.layers)? {
        Some(types) if types.iter().any(|&slides| slides != window.is_some()) => Err(keys
            .invalid("layer_types", "the same for all layers and in agreement with `sliding_window`, or no such key")),
        _ => Ok(decoder),
    }
}
