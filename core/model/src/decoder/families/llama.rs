//! Llama 1 to 3 and models of the same architecture. `pretraining_tp` only slices the same products.

use super::super::config::{Defaults, activation, base, only_full_attention};
use super::super::keys::Keys;
use super::super::{Decoder, Family};
use crate::Result;
use sparta_graph::ops::Activation;

const DEFAULTS: Defaults = Defaults { bos: Some(1), eos: Some(2), ..Defaults::PLAIN };

pub(super) fn decoder(keys: &Keys) -> Result<Decoder> {
    keys.only("attention_bias", false.into())?;
    keys.only("mlp_bias", false.into())?;
    let mut decoder = base(keys, Family::Llama, &DEFAULTS)?;
    only_full_attention(keys, decoder.layers)?;
    decoder.activation = activation(keys, "hidden_act", Activation::Silu)?;
    Ok(decoder)
}
