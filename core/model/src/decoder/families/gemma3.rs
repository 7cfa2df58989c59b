//! Gemma 3, text only: Gemma 2 without caps but with norms of query and key heads; most layers have sliding windows and
//! their own rotation angles.

use super::super::config::{Defaults, activation, base, layer_types, sliding_window, windows};
use super::super::keys::Keys;
use super::super::rope::RopeDefaults;
use super::super::{Decoder, Family};
use crate::Result;
use sparta_graph::ops::Activation;

/// Published files of the models that also read images leave out keys with these values.
const DEFAULTS: Defaults = Defaults {
    vocab_size: Some(262_208),
    heads: Some(8),
    kv_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 131_072,
    tied_embeddings: true,
    pad: Some(0),
    bos: Some(2),
    eos: Some(1),
    rope: RopeDefaults { theta: 1_000_000.0, local_theta: Some(10_000.0), partial: false },
    ..Defaults::PLAIN
};

pub(super) fn decoder(keys: &Keys) -> Result<Decoder> {
    keys.only("attention_bias", false.into())?;
    keys.only("use_bidirectional_attention", false.into())?;
    let mut decoder = base(keys, Family::Gemma3, &DEFAULTS)?;
    decoder.activation = activation(keys, "hidden_activation", Activation::GeluTanh)?;
    decoder.norm_plus_one = true;
    decoder.embed_scale = Some((decoder.hidden_size as f64).sqrt() as f32);
    decoder.post_norms = true;
    decoder.qk_norm = true;
    decoder.attention_scale = keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32;
    // transformers reads the key, but its attention applies no cap.
    keys.only("attn_logit_softcapping", serde_json::Value::Null)?;
    decoder.final_softcap = keys.positive("final_logit_softcapping")?.map(|cap| cap as f32);
    let types = match layer_types(keys, decoder.layers)? {
        Some(types) => types,
        None => {
            let pattern = keys.size("sliding_window_pattern", 1 << 12)?.unwrap_or(6);
            (1..=decoder.layers).map(|layer| !layer.is_multiple_of(pattern)).collect()
        }
    };
    decoder.windows = windows(keys, &types, sliding_window(keys, Some(4096))?)?;
    decoder.rotations = types.iter().map(|&slides| Some(usize::from(slides))).collect();
    Ok(decoder)
}
