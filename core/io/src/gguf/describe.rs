//! The metadata of a file to write: from the base model's own file, or made from its configuration.

use super::architecture::Architecture;
use super::write::{Field, Fields};
use super::{Gguf, describe_tokenizer, locate};
use crate::{Error, Result};
use sparta_model::{Decoder, Rope, Scaling};
use std::path::Path;

/// Keys that apply only to one file.
const OWN: [&str; 5] =
    ["split.no", "split.count", "split.tensors.count", "general.file_type", "general.quantization_version"];

/// The metadata of a model with the configuration and tokenizer of `base`.
///
/// Errors: a family or a tokenizer that GGUF does not support.
pub fn fields(base: &Path, decoder: &Decoder) -> Result<Fields> {
    let mut fields = match locate(base)? {
        Some(file) => {
            let gguf = Gguf::open(&file)?;
            let keys = gguf.metadata().keys().filter(|key| !OWN.contains(key));
            keys.filter_map(|key| Some((key.to_owned(), Field::Encoded(gguf.metadata().encoded(key)?)))).collect()
        }
        None => {
            let mut fields = of_decoder(decoder)?;
            fields.extend(describe_tokenizer::fields(base, decoder)?);
            fields
        }
    };
    fields.push(("general.quantization_version".into(), Field::U32(2)));
    Ok(fields)
}

fn of_decoder(decoder: &Decoder) -> Result<Fields> {
    let Some(architecture) = Architecture::of_family(decoder.family) else {
        return Err(Error::Usage(format!("writing GGUF files of {} is not supported", decoder.family.model_type())));
    };
    let number = |n: usize| Field::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let mut fields: Fields = vec![
        ("general.architecture".into(), Field::Text(architecture.name.into())),
        ("general.type".into(), Field::Text("model".into())),
    ];
    let mut add = |key: &str, field: Field| fields.push((format!("{}.{key}", architecture.name), field));
    add("context_length", number(decoder.max_position_embeddings));
    add("embedding_length", number(decoder.hidden_size));
    add("block_count", number(decoder.layers));
    add("feed_forward_length", number(decoder.intermediate_size));
    add("attention.head_count", number(decoder.heads));
    add("attention.head_count_kv", number(decoder.kv_heads));
    add("attention.key_length", number(decoder.head_dim));
    add("attention.value_length", number(decoder.head_dim));
    add("attention.layer_norm_rms_epsilon", Field::F32(decoder.rms_norm_eps));
    add("vocab_size", number(decoder.vocab_size));
    if let Some(window) = decoder.windows.iter().flatten().next() {
        add("attention.sliding_window", number(*window));
    }
    if let Some(cap) = decoder.attn_softcap {
        add("attn_logit_softcapping", Field::F32(cap));
    }
    if let Some(cap) = decoder.final_softcap {
        add("final_logit_softcapping", Field::F32(cap));
    }
    if let Some(rope) = decoder.ropes.first() {
        add("rope.dimension_count", number(rope.width));
        add("rope.freq_base", Field::F32(rope.theta as f32));
        if let Scaling::Linear { factor } = rope.scaling {
            add("rope.scaling.type", Field::Text("linear".into()));
            add("rope.scaling.factor", Field::F32(factor as f32));
        }
    }
    if let Some(local) = decoder.ropes.get(1) {
        add("rope.freq_base_swa", Field::F32(local.theta as f32));
    }
    Ok(fields)
}

/// The divisor of each frequency, if GGUF has no setting for it: in Llama 3.1 and later.
pub fn frequency_factors(decoder: &Decoder) -> Option<Vec<f32>> {
    let rope = decoder.ropes.first().filter(|rope| matches!(rope.scaling, Scaling::Llama3 { .. }))?;
    let plain = Rope { scaling: Scaling::None, ..rope.clone() }.inv_freq();
    Some(plain.iter().zip(rope.inv_freq()).map(|(plain, scaled)| plain / scaled).collect())
}
