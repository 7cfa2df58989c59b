//! Metadata as `config.json`: the same keys as in the Hugging Face layout, so that one reader checks both.

use super::Gguf;
use super::architecture::Architecture;
use super::metadata::Metadata;
use super::names::Heads;
use super::{rope, tokenizer};
use serde_json::{Map, Value, json};
use sparta_graph::DType;
use sparta_model::Storage;

type Result<T> = std::result::Result<T, String>;

/// The keys of an architecture.
pub(super) struct Keys<'a> {
    metadata: &'a Metadata,
    name: &'static str,
}

impl Keys<'_> {
    pub fn count(&self, key: &str) -> Result<Option<u64>> {
        self.metadata.count(&format!("{}.{key}", self.name))
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.number(&format!("{}.{key}", self.name))
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.metadata.text(&format!("{}.{key}", self.name))
    }

    fn required(&self, key: &str) -> Result<u64> {
        self.count(key)?.ok_or_else(|| format!("has no `{}.{key}`: the file is incomplete", self.name))
    }
}

pub(super) fn heads(metadata: &Metadata, architecture: &Architecture) -> Result<Heads> {
    let keys = Keys { metadata, name: architecture.name };
    let queries = keys.required("attention.head_count")?;
    Ok(Heads { queries, keys: keys.count("attention.head_count_kv")?.unwrap_or(queries) })
}

pub(super) fn config(gguf: &Gguf) -> Result<Map<String, Value>> {
    let architecture = &gguf.architecture;
    let keys = Keys { metadata: gguf.metadata(), name: architecture.name };
    let heads = heads(gguf.metadata(), architecture)?;
    let embedding = gguf.get("model.embed_tokens.weight").ok_or("has no tensor `token_embd.weight`")?;
    let hidden = keys.required("embedding_length")?;
    let head_dim = match keys.count("attention.key_length")? {
        Some(length) => length,
        // Phi-3 rotates part of a head.
        None if architecture.model_type == "phi3" => hidden / heads.queries.max(1),
        None => keys.count("rope.dimension_count")?.unwrap_or(hidden / heads.queries.max(1)),
    };
    if let Some(length) = keys.count("attention.value_length")?.filter(|&length| length != head_dim) {
        return Err(format!(
            "has value heads of {length} elements and key heads of {head_dim}; only equal ones are supported"
        ));
    }
    let config = json!({
        "architectures": [architecture.class],
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape.first(),
        "hidden_size": hidden,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_hidden_layers": keys.required("block_count")?,
        "num_attention_heads": heads.queries,
        "num_key_value_heads": heads.keys,
        "head_dim": head_dim,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon")?,
        "max_position_embeddings": keys.required("context_length")?,
        "tie_word_embeddings": gguf.get("lm_head.weight").is_none(),
        "torch_dtype": dtype(gguf),
    });
    let Value::Object(mut config) = config else { return Err("has no configuration".into()) };
    config.extend(tokenizer::special_ids(gguf.metadata())?);
    config.extend(rope::parameters(gguf, &keys, head_dim)?);
    config.extend(of_family(architecture, &keys, hidden, heads.queries, head_dim)?);
    if let Some(labels) = gguf.metadata().texts(&format!("{}.classifier.output_labels", architecture.name))? {
        let labels = labels.into_iter().enumerate().map(|(i, label)| (i.to_string(), Value::from(label)));
        config.insert("id2label".into(), Value::Object(labels.collect()));
    }
    Ok(config)
}

/// transformers' name of the type of most values: that of a projection.
fn dtype(gguf: &Gguf) -> &'static str {
    let projection = ["self_attn.o_proj", "mlp.down_proj"].iter().find_map(|name| {
        let (name, _) = gguf.place(&format!("model.layers.0.{name}.weight"))?;
        gguf.files.iter().find_map(|file| file.get(name)).map(|(entry, _)| entry.stored)
    });
    match projection {
        Some(Storage::Plain(DType::F16)) => "float16",
        Some(Storage::Plain(DType::BF16)) => "bfloat16",
        _ => "float32",
    }
}

/// Settings specific to a family.
fn of_family(
    architecture: &Architecture,
    keys: &Keys,
    hidden: u64,
    heads: u64,
    head_dim: u64,
) -> Result<Map<String, Value>> {
    let window = keys.count("attention.sliding_window")?.filter(|&window| window > 0);
    let layers = keys.required("block_count")?;
    // The largest Gemma of each generation scales by the width of a head of the hidden state, which no key states.
    let scalar = |largest: u64| if layers == largest { hidden / heads.max(1) } else { head_dim };
    let mut more = Map::new();
    let mut add = |key: &str, value: Value| drop(more.insert(key.to_owned(), value));
    match architecture.model_type {
        "gemma2" => {
            add("sliding_window", json!(window));
            add("query_pre_attn_scalar", scalar(46).into());
            add("attn_logit_softcapping", json!(keys.number("attn_logit_softcapping")?));
            add("final_logit_softcapping", json!(keys.number("final_logit_softcapping")?));
        }
        "gemma3_text" => {
            add("sliding_window", json!(window));
            add("query_pre_attn_scalar", scalar(62).into());
            add("final_logit_softcapping", json!(keys.number("final_logit_softcapping")?));
            if let Some(pattern) = keys.count("attention.sliding_window_pattern").ok().flatten() {
                add("sliding_window_pattern", pattern.into());
            }
        }
        "phi3" => add("sliding_window", json!(window)),
        _ => {}
    }
    Ok(more)
}
