//! Qwen 2 and 2.5: Llama with query, key and value biases, and optional sliding windows in the upper layers.

use super::super::config::{Defaults, activation, base, layer_types, sliding_window, windows};
use super::super::keys::Keys;
use super::super::{Decoder, Family};
use crate::Result;
use sparta_graph::ops::Activation;

const DEFAULTS: Defaults = Defaults { kv_heads: Some(32), max_position_embeddings: 32_768, ..Defaults::PLAIN };

/// The biases are part of the architecture, without a key in the file.
pub(super) fn decoder(keys: &Keys) -> Result<Decoder> {
    let mut decoder = base(keys, Family::Qwen2, &DEFAULTS)?;
    decoder.activation = activation(keys, "hidden_act", Activation::Silu)?;
    decoder.qkv_bias = true;
    decoder.windows = upper_windows(keys, decoder.layers)?;
    Ok(decoder)
}

/// `sliding_window` counts only with `use_sliding_window`, and then from layer `max_window_layers` on, unless
/// `layer_types` says which layers have windows.
pub(super) fn upper_windows(keys: &Keys, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = if keys.flag("use_sliding_window", false)? { sliding_window(keys, Some(4096))? } else { None };
    let types = match layer_types(keys, layers)? {
        Some(types) => types,
        None => {
            let first = first_sliding_layer(keys)?;
            (0..layers).map(|layer| window.is_some() && layer >= first).collect()
        }
    };
    windows(keys, &types, window)
}

fn first_sliding_layer(keys: &Keys) -> Result<usize> {
    let Some(value) = keys.get("max_window_layers") else { return Ok(28) };
    let first = value.as_u64().and_then(|n| usize::try_from(n).ok());
    first.ok_or_else(|| keys.invalid("max_window_layers", "a number of layers"))
}
