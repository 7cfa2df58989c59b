//! The tensors of a decoder, and a check that a checkpoint has exactly these.

use super::{Decoder, IMAGES};
use crate::weights::WeightSource;
use crate::{Error, Result};
use sparta_graph::DType;
use sparta_plugin::method::{Parameter, Role};
use std::collections::BTreeSet;

/// What reads the last hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// The classification head `score.weight` `[classes, hidden]`, without bias.
    Classification { classes: usize },
    /// The vocabulary head `lm_head.weight` `[vocab, hidden]`, or the embeddings if tied.
    CausalLm,
}

/// The tensor of the classification head; it stacks the heads of several tasks.
pub const HEAD: &str = "score.weight";

/// How many names a message lists; the rest are counted.
const SHOWN: usize = 5;

impl Decoder {
    /// Every tensor of the model with its Hugging Face name and shape: embedding, layers, final norm, and the head
    /// last. The dtype is the one that `config.json` states, else f32; [`check_weights`] gives the stored ones.
    pub fn parameters(&self, head: HeadKind) -> Vec<Parameter> {
        let dtype = self.dtype.unwrap_or(DType::F32);
        let (vocab, hidden) = (self.vocab_size, self.hidden_size);
        let tensor = |name: &str, shape: &[usize], role| Parameter {
            name: name.to_string(),
            shape: shape.to_vec(),
            dtype,
            role,
            layer: None,
        };
        let mut list = vec![tensor("model.embed_tokens.weight", &[vocab, hidden], Role::Embedding)];
        let layer = self.layer_tensors();
        for i in 0..self.layers {
            list.extend(layer.iter().map(|(name, shape, role)| Parameter {
                layer: Some(i),
                ..tensor(&format!("model.layers.{i}.{name}"), shape, *role)
            }));
        }
        list.push(tensor("model.norm.weight", &[hidden], Role::Norm));
        match head {
            HeadKind::Classification { classes } => {
                list.push(tensor(HEAD, &[classes, hidden], Role::Head));
            }
            HeadKind::CausalLm if !self.tied_embeddings => {
                list.push(tensor("lm_head.weight", &[vocab, hidden], Role::LmHead));
            }
            HeadKind::CausalLm => {}
        }
        list
    }

    /// Name without `model.layers.N.`, shape and role of one layer's tensors, in the order of the computation.
    fn layer_tensors(&self) -> Vec<(&'static str, Vec<usize>, Role)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let norm = |name| (name, vec![hidden], Role::Norm);

        let mut list = vec![norm("input_layernorm.weight")];
        if self.fused {
            list.push(("self_attn.qkv_proj.weight", vec![queries + 2 * keys, hidden], Role::QkvProj));
        }
        for (weight, bias, rows, role) in [
            ("self_attn.q_proj.weight", "self_attn.q_proj.bias", queries, Role::QProj),
            ("self_attn.k_proj.weight", "self_attn.k_proj.bias", keys, Role::KProj),
            ("self_attn.v_proj.weight", "self_attn.v_proj.bias", keys, Role::VProj),
        ]
        .into_iter()
        .filter(|_| !self.fused)
        {
            list.push((weight, vec![rows, hidden], role));
            if self.qkv_bias {
                list.push((bias, vec![rows], Role::Bias));
            }
        }
        if self.qk_norm {
            list.push(("self_attn.q_norm.weight", vec![self.head_dim], Role::Norm));
            list.push(("self_attn.k_norm.weight", vec![self.head_dim], Role::Norm));
        }
        list.push(("self_attn.o_proj.weight", vec![hidden, queries], Role::OProj));
        list.push(norm("post_attention_layernorm.weight"));
        if self.post_norms {
            list.push(norm("pre_feedforward_layernorm.weight"));
        }
        if self.fused {
            list.push(("mlp.gate_up_proj.weight", vec![2 * inner, hidden], Role::GateUpProj));
        } else {
            list.push(("mlp.gate_proj.weight", vec![inner, hidden], Role::GateProj));
            list.push(("mlp.up_proj.weight", vec![inner, hidden], Role::UpProj));
        }
        list.push(("mlp.down_proj.weight", vec![hidden, inner], Role::DownProj));
        if self.post_norms {
            list.push(norm("post_feedforward_layernorm.weight"));
        }
        list
    }

    /// The tensor of the vocabulary head: the embeddings if tied.
    pub fn vocabulary_head(&self) -> &'static str {
        if self.tied_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// Number of parameters of the language model, a tied embedding counted once.
    pub fn numel(&self) -> u64 {
        self.parameters(HeadKind::CausalLm).iter().map(Parameter::numel).sum()
    }
}

/// The parameters of `decoder` with the types they have in `weights`. A missing classification head counts as
/// new and f32.
///
/// Errors name the origin and the first few tensors: missing ones, ones not in the architecture (except
/// an unused head and stored rotary frequencies), wrong shapes, a tied head with different values.
pub fn check_weights(decoder: &Decoder, weights: &dyn WeightSource, head: HeadKind) -> Result<Vec<Parameter>> {
    let mut parameters = decoder.parameters(head);
    let (mut missing, mut wrong) = (Vec::new(), Vec::new());
    for parameter in &mut parameters {
        match weights.get(&parameter.name) {
            Some(view) => {
                if view.shape != parameter.shape {
                    let (name, expected) = (&parameter.name, &parameter.shape);
                    wrong.push(format!("{name} is {:?}, expected {expected:?}", view.shape));
                }
                parameter.dtype = view.dtype;
            }
            None if parameter.role == Role::Head => parameter.dtype = DType::F32,
            None => missing.push(parameter.name.clone()),
        }
    }
    let known: BTreeSet<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
    let stored = weights.names().into_iter();
    let extra: Vec<String> =
        stored.filter(|name| !known.contains(name) && !may_be_unused(decoder, name)).map(str::to_string).collect();

    let mut problems = Vec::new();
    for (what, names) in [("missing", missing), ("not part of this architecture", extra), ("of wrong shape", wrong)] {
        if !names.is_empty() {
            problems.push(format!("{} tensors {what}: {}", names.len(), first_few(&names)));
        }
    }
    if !problems.is_empty() {
        return Err(Error::Weights(format!(
            "{}: the weights do not fit config.json ({} with {} layers): {}",
            weights.origin(),
            decoder.family.model_type(),
            decoder.layers,
            problems.join("; ")
        )));
    }
    if head == HeadKind::CausalLm && decoder.tied_embeddings {
        check_tied(weights)?;
    }
    Ok(parameters)
}

/// Tensors that a checkpoint may have although the model does not read them: the head of another task, frequencies that
/// old versions stored, and the part that reads images.
fn may_be_unused(decoder: &Decoder, name: &str) -> bool {
    let of_images = decoder.reads_images && IMAGES.iter().any(|prefix| name.starts_with(prefix));
    of_images || matches!(name, "lm_head.weight" | HEAD) || name.ends_with(".rotary_emb.inv_freq")
}

/// A stored `lm_head.weight` must equal the embedding that replaces it.
fn check_tied(weights: &dyn WeightSource) -> Result<()> {
    let (Some(head), Some(embedding)) = (weights.get("lm_head.weight"), weights.get("model.embed_tokens.weight"))
    else {
        return Ok(());
    };
    if head.dtype == embedding.dtype && head.bytes() == embedding.bytes() {
        return Ok(());
    }
    Err(Error::Weights(format!(
        "{}: config.json ties the vocabulary head to the embedding, but lm_head.weight has different values; set \
         `tie_word_embeddings` to false, or remove the tensor",
        weights.origin()
    )))
}

fn first_few(names: &[String]) -> String {
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}
