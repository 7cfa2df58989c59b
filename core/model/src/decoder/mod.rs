//! `config.json` to one description of the decoder, its parameters, and the graph of its forward pass.

mod config;
mod families;
pub mod forward;
mod keys;
mod parameters;
mod rope;
mod text;

pub use config::PROBLEM_TYPES;
pub use families::Family;
pub use parameters::{HEAD, HeadKind, check_weights};
pub use rope::{Rope, Scaling};
pub use text::{IMAGES, text_config};

use sparta_graph::DType;
use sparta_graph::ops::Activation;

/// A decoder-only transformer of one of the supported families, as flags: what its forward pass computes, without
/// weights. Every block is
///
/// ```text
/// h = h + [norm] o_proj(attention([rope] [norm] q_proj(n), [rope] [norm] k_proj(n), v_proj(n)))   n = norm(h)
/// h = h + [norm] down_proj(act(gate_proj(n)) * up_proj(n))                                      n = norm(h)
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Decoder {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    pub kv_heads: usize,
    /// Even. `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    pub rms_norm_eps: f32,
    pub activation: Activation,
    /// Norms multiply by `1 + w` (Gemma).
    pub norm_plus_one: bool,
    /// Embeddings are multiplied by this, sqrt(hidden) rounded to f32 (Gemma). A tied output matrix is not.
    pub embed_scale: Option<f32>,
    /// Factor of q.k before soft-cap and softmax.
    pub attention_scale: f32,
    /// `cap * tanh(s / cap)` on scaled scores (Gemma 2).
    pub attn_softcap: Option<f32>,
    /// The same on vocabulary logits, never on class logits (Gemma 2).
    pub final_softcap: Option<f32>,
    /// Norms after attention and MLP, before the residual sum; then four norms per layer (Gemma 2).
    pub post_norms: bool,
    /// RMS norm over each query and key head before RoPE (Qwen 3, Gemma 3).
    pub qk_norm: bool,
    /// Biases of q, k, v (Qwen 2).
    pub qkv_bias: bool,
    /// One layer computes q, k and v, another gate and up (Phi-3).
    pub fused: bool,
    /// The rotations that layers have, one or two.
    pub ropes: Vec<Rope>,
    /// The rotation of each layer, by its position in `ropes`; `None`: queries and keys are not rotated (SmolLM3).
    pub rotations: Vec<Option<usize>>,
    /// Sliding window of each layer: position i sees i - w + 1 ..= i. `None`: all positions up to its own.
    pub windows: Vec<Option<usize>>,
    /// The vocabulary head is the embedding matrix.
    pub tied_embeddings: bool,
    pub pad_token_id: Option<u32>,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
    /// Class names of a classifier, from `id2label`; two where the file has none, as in transformers.
    pub labels: Vec<String>,
    /// What transformers calls the kind of a classifier's head, where the file says so.
    pub problem_type: Option<String>,
    /// Standard deviation of new weights in pre-training.
    pub initializer_range: f32,
    /// Positions that can be computed: those of the file, with longrope those of pre-training.
    pub max_position_embeddings: usize,
    /// The dtype that the file states; the weights' own counts.
    pub dtype: Option<DType>,
    /// The text part of a model that also reads images, whose checkpoint has tensors for these, too ([`IMAGES`]).
    pub reads_images: bool,
}
