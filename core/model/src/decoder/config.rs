//! Reads the parts of `config.json` that all families share.

use super::keys::Keys;
use super::rope::RopeDefaults;
use super::{Decoder, Family, Rope, text_config};
use crate::{Error, Result};
use serde_json::{Map, Value};
use sparta_graph::DType;
use sparta_graph::ops::Activation;
use std::path::Path;

/// Limits far above any real model; below them every count of elements or bytes fits in 63 bits.
const MAX_VOCAB: usize = 1 << 26;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_POSITIONS: usize = 1 << 31;
const MAX_LABELS: usize = 1 << 16;

/// A family's defaults for missing keys.
pub(super) struct Defaults {
    /// `None`: the key is required.
    pub vocab_size: Option<usize>,
    /// `None`: the key is required.
    pub heads: Option<usize>,
    /// `None`: as many as query heads.
    pub kv_heads: Option<usize>,
    /// `None`: hidden size / query heads.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub tied_embeddings: bool,
    pub pad: Option<u32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub rms_norm_eps: f64,
    pub rope: RopeDefaults,
}

impl Defaults {
    /// The defaults of most families.
    pub const PLAIN: Defaults = Defaults {
        vocab_size: None,
        heads: None,
        kv_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        tied_embeddings: false,
        pad: None,
        bos: None,
        eos: None,
        rms_norm_eps: 1e-6,
        rope: RopeDefaults { theta: 10_000.0, local_theta: None, partial: false },
    };
}

impl Decoder {
    /// Reads the contents of a `config.json` in the layout of transformers 4 or 5; `path` is for messages. Missing keys
    /// get the value that transformers gives them for the family.
    ///
    /// Errors name file, key, value and what is supported: unknown architectures, sizes that contradict each other, and
    /// every setting that would change the computation in a way that is not implemented.
    pub fn parse(path: &Path, map: &Map<String, Value>) -> Result<Decoder> {
        let text = text_config(path, map)?;
        let keys = Keys::new(path, text.as_ref().unwrap_or(map));
        let Some(kind) = keys.text("model_type")? else {
            return Err(keys.error("has no `model_type`; is this the config.json of a transformers model?"));
        };
        let Some(family) = Family::of_model_type(kind) else { return Err(unknown_family(&keys)) };
        check_architectures(&keys, family)?;
        Ok(Decoder { reads_images: text.is_some(), ..family.decoder(&keys)? })
    }
}

/// Why a `model_type` is not supported, if the file shows it.
fn unknown_family(keys: &Keys) -> Error {
    let has = |parts: &[&str]| keys.map().keys().any(|key| parts.iter().any(|part| key.contains(part)));
    let what = if has(&["expert"]) {
        ": this is a mixture of experts, which is not supported"
    } else if has(&["vision", "audio", "img_", "image_"]) {
        ": this model also reads images or sound; of such models, only the text part of gemma3 is supported"
    } else {
        ""
    };
    keys.invalid("model_type", format_args!("one of {}{what}", Family::supported()))
}

/// The part of a decoder that is read the same way for all families, with the flags of a Llama.
pub(super) fn base(keys: &Keys, family: Family, defaults: &Defaults) -> Result<Decoder> {
    check_unsupported(keys)?;
    let hidden_size = keys.required_size("hidden_size", MAX_WIDTH)?;
    let heads = keys.size_or("num_attention_heads", MAX_HEADS, defaults.heads)?;
    let kv_heads = match keys.size("num_key_value_heads", MAX_HEADS)? {
        Some(n) => n,
        // An explicit null means as many as query heads in every family.
        None if keys.is_null("num_key_value_heads") => heads,
        None => defaults.kv_heads.unwrap_or(heads),
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(keys.error(format_args!(
            "`num_attention_heads` is {heads}, expected a multiple of `num_key_value_heads`, {kv_heads}"
        )));
    }
    let layers = keys.required_size("num_hidden_layers", MAX_LAYERS)?;
    let vocab_size = keys.size_or("vocab_size", MAX_VOCAB, defaults.vocab_size)?;
    let head_dim = head_dim(keys, hidden_size, heads, defaults)?;
    let max_position_embeddings =
        keys.size("max_position_embeddings", MAX_POSITIONS)?.unwrap_or(defaults.max_position_embeddings);
    let ropes = Rope::parse(keys, &defaults.rope, head_dim, max_position_embeddings)?;
    Ok(Decoder {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: keys.required_size("intermediate_size", MAX_WIDTH)?,
        layers,
        heads,
        kv_heads,
        head_dim,
        rms_norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps) as f32,
        activation: Activation::Silu,
        norm_plus_one: false,
        embed_scale: None,
        attention_scale: (head_dim as f64).powf(-0.5) as f32,
        attn_softcap: None,
        final_softcap: None,
        post_norms: false,
        qk_norm: false,
        qkv_bias: false,
        fused: false,
        rotations: vec![Some(0); layers],
        windows: vec![None; layers],
        tied_embeddings: keys.flag("tie_word_embeddings", defaults.tied_embeddings)?,
        pad_token_id: pad_token(keys, vocab_size, defaults.pad)?,
        bos_token_id: keys.token("bos_token_id", defaults.bos)?,
        eos_token_ids: keys.tokens("eos_token_id", defaults.eos)?,
        labels: labels(keys)?,
        problem_type: problem_type(keys)?,
        initializer_range: keys.positive("initializer_range")?.unwrap_or(0.02) as f32,
        max_position_embeddings: ropes.iter().filter_map(Rope::positions).fold(max_position_embeddings, usize::min),
        ropes,
        dtype: dtype(keys)?,
        reads_images: false,
    })
}

/// The activation under `key`. Plain `gelu` is the erf form, which is not supported.
pub(super) fn activation(keys: &Keys, key: &str, default: Activation) -> Result<Activation> {
    match keys.text(key)? {
        None => Ok(default),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some(_) => Err(keys.invalid(key, "silu or gelu_pytorch_tanh; other activations are not supported")),
    }
}

/// `layer_types` as one flag per layer: whether it has a sliding window.
pub(super) fn layer_types(keys: &Keys, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = keys.get("layer_types") else { return Ok(None) };
    let sliding = |value: &Value| match value.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    match value.as_array().map(|list| list.iter().map(sliding).collect::<Option<Vec<_>>>()) {
        Some(Some(types)) if types.len() == layers => Ok(Some(types)),
        _ => Err(keys.invalid(
            "layer_types",
            format_args!("{layers} entries (`num_hidden_layers`), each full_attention or sliding_attention"),
        )),
    }
}

/// The window size: `default` if the key is missing, none if it is `null`.
pub(super) fn sliding_window(keys: &Keys, default: Option<usize>) -> Result<Option<usize>> {
    if keys.is_null("sliding_window") {
        return Ok(None);
    }
    Ok(keys.size("sliding_window", MAX_POSITIONS)?.or(default))
}

/// The window of each layer that has one by `types`. Errors: such a layer, but no window size.
pub(super) fn windows(keys: &Keys, types: &[bool], window: Option<usize>) -> Result<Vec<Option<usize>>> {
    if window.is_none() && types.contains(&true) {
        return Err(keys.error("`layer_types` has sliding_attention layers, but no sliding window is set"));
    }
    Ok(types.iter().map(|&slides| if slides { window } else { None }).collect())
}

/// Layers of families without sliding windows must not ask for one.
pub(super) fn only_full_attention(keys: &Keys, layers: usize) -> Result<()> {
    match layer_types(keys, layers)? {
        Some(types) if types.contains(&true) => {
            Err(keys.invalid("layer_types", "only full_attention, as this family has no sliding window"))
        }
        _ => Ok(()),
    }
}

/// Settings that change what any family computes.
fn check_unsupported(keys: &Keys) -> Result<()> {
    if keys.get("quantization_config").is_some() {
        return Err(keys.invalid("quantization_config", "no such key: use the original, unquantized model"));
    }
    if keys.get("per_layer_config").is_some() {
        return Err(keys.invalid("per_layer_config", "no such key: all layers must have one shape"));
    }
    if let Some(key) =
        ["num_local_experts", "num_experts", "n_routed_experts"].into_iter().find(|key| keys.get(key).is_some())
    {
        return Err(keys.invalid(key, "no such key: mixtures of experts are not supported"));
    }
    // transformers 5 makes any decoder bidirectional by this key.
    keys.only("is_causal", Value::Bool(true))?;
    for key in ["attention_dropout", "resid_pdrop", "embd_pdrop"] {
        if keys.get(key).is_some_and(|p| p.as_f64() != Some(0.0)) {
            return Err(keys.invalid(key, "0: dropout is an option of the training run, not of the model"));
        }
    }
    Ok(())
}

/// The kinds of classification heads, as transformers names them.
pub const PROBLEM_TYPES: [&str; 3] = ["single_label_classification", "multi_label_classification", "regression"];

fn problem_type(keys: &Keys) -> Result<Option<String>> {
    match keys.text("problem_type")? {
        Some(other) if !PROBLEM_TYPES.contains(&other) => Err(keys.invalid("problem_type", PROBLEM_TYPES.join(", "))),
        known => Ok(known.map(str::to_owned)),
    }
}

/// Checks that `architectures` names classes of the family: with a vocabulary head, a classification head or none.
fn check_architectures(keys: &Keys, family: Family) -> Result<()> {
    let Some(value) = keys.get("architectures") else { return Ok(()) };
    let supported = family.classes();
    let known = |value: &Value| value.as_str().is_some_and(|name| supported.iter().any(|s| s == name));
    match value.as_array() {
        Some(list) if list.iter().all(known) => Ok(()),
        _ => Err(keys.invalid("architectures", format_args!("one of {}", supported.join(", ")))),
    }
}

fn head_dim(keys: &Keys, hidden_size: usize, heads: usize, defaults: &Defaults) -> Result<usize> {
    let head_dim = match keys.size("head_dim", MAX_HEAD_DIM)?.or(defaults.head_dim) {
        Some(n) => n,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(keys.error(format_args!(
                "`hidden_size` is {hidden_size}, expected a multiple of `num_attention_heads`, {heads}, as there is no \
                 `head_dim`"
            )));
        }
    };
    if head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(2) {
        return Err(keys.error(format_args!(
            "heads have {head_dim} elements (`head_dim`, or hidden_size / num_attention_heads), expected an even \
             number up to {MAX_HEAD_DIM}, as rotary embeddings rotate pairs"
        )));
    }
    Ok(head_dim)
}

fn pad_token(keys: &Keys, vocab_size: usize, default: Option<u32>) -> Result<Option<u32>> {
    let pad = keys.token("pad_token_id", default)?;
    match pad {
        Some(id) if id as usize >= vocab_size => {
            Err(keys.invalid("pad_token_id", format_args!("a token id below `vocab_size`, {vocab_size}")))
        }
        _ => Ok(pad),
    }
}

/// Names of the classes in order. Files leave out both keys for two classes named LABEL_0 and LABEL_1.
fn labels(keys: &Keys) -> Result<Vec<String>> {
    let Some(value) = keys.get("id2label") else {
        let count = keys.size("num_labels", MAX_LABELS)?.unwrap_or(2);
        return Ok((0..count).map(|i| format!("LABEL_{i}")).collect());
    };
    let invalid =
        || keys.invalid("id2label", r#"a name for each class from 0 without gaps, such as {"0": "no", "1": "yes"}"#);
    let map = value.as_object().filter(|map| !map.is_empty()).ok_or_else(invalid)?;
    (0..map.len())
        .map(|i| map.get(&i.to_string()).and_then(Value::as_str).map(str::to_string).ok_or_else(invalid))
        .collect()
}

fn dtype(keys: &Keys) -> Result<Option<DType>> {
    let key = if keys.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    match keys.text(key)? {
        None => Ok(None),
        Some("float32" | "torch.float32") => Ok(Some(DType::F32)),
        Some("bfloat16" | "torch.bfloat16") => Ok(Some(DType::BF16)),
        Some("float16" | "torch.float16") => Ok(Some(DType::F16)),
        Some(_) => Err(keys.invalid(key, "float32, bfloat16 or float16")),
    }
}
