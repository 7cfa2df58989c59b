//! SmolLM3: Llama with grouped heads; every fourth layer does not rotate queries and keys.

use super::super::config::{Defaults, activation, base, layer_types, sliding_window, windows};
use super::super::keys::Keys;
use super::super::rope::RopeDefaults;
use super::super::{Decoder, Family};
use crate::Result;
use sparta_graph::ops::Activation;

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    max_position_embeddings: 32_768,
    tied_embeddings: true,
    pad: Some(128_004),
    bos: Some(128_000),
    eos: Some(128_001),
    rope: RopeDefaults { theta: 2_000_000.0, local_theta: None, partial: false },
    ..Defaults::PLAIN
};

pub(super) fn decoder(keys: &Keys) -> Result<Decoder> {
    keys.only("attention_bias", false.into())?;
    keys.only("mlp_bias", false.into())?;
    let mut decoder = base(keys, Family::SmolLm3, &DEFAULTS)?;
    decoder.activation = activation(keys, "hidden_act", Activation::Silu)?;
    let rotates = rotating_layers(keys, decoder.layers)?;
    let window = if keys.flag("use_sliding_window", false)? { sliding_window(keys, None)? } else { None };
    let types = match layer_types(keys, decoder.layers)? {
        Some(types) => types,
        None => rotates.iter().map(|&rotates| window.is_some() && !rotates).collect(),
    };
    decoder.windows = windows(keys, &types, window)?;
    decoder.rotations = rotates.into_iter().map(|rotates| rotates.then_some(0)).collect();
    Ok(decoder)
}

/// Despite its name, `no_rope_layers` has a 1 for each layer that rotates. It may be longer than the model.
fn rotating_layers(keys: &Keys, layers: usize) -> Result<Vec<bool>> {
    let Some(value) = keys.get("no_rope_layers") else {
        let interval = keys.size("no_rope_layer_interval", 1 << 12)?.unwrap_or(4);
        return Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    let flags = value.as_array().and_then(|list| list.iter().map(|flag| flag.as_u64()).collect::<Option<Vec<_>>>());
    match flags {
        Some(flags) if flags.len() >= layers && flags.iter().all(|&flag| flag <= 1) => {
            Ok(flags[..layers].iter().map(|&flag| flag == 1).collect())
        }
        _ => Err(keys.invalid("no_rope_layers", format_args!("{layers} numbers (`num_hidden_layers`), each 0 or 1"))),
    }
}
