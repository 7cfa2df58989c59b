//! From `config.json` to a description of the decoder, its parameters and the graph of its forward pass.

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

/// A decoder-only transformer of a supported family, as flags that say what its forward pass computes, without
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
    /// Elements of a head, an even number. `heads * head_dim` need not equal `hidden_size`.
    pub head_dim: usize,
    pub rms_norm_eps: f32,
    pub activation: Activation,
    /// Norms multiply by `1 + w` (Gemma).
    pub norm_plus_one: bool,
    /// Embeddings are multiplied by this, sqrt(hidden) rounded to f32 (Gemma); a tied vocabulary head is not.
    pub embed_scale: Option<f32>,
    /// The factor on q.k before soft-cap and softmax.
    pub attention_scale: f32,
    /// `cap * tanh(s / cap)` on scaled scores (Gemma 2).
    pub attn_softcap: Option<f32>,
    /// The same for vocabulary logits, never for class logits (Gemma 2).
    pub final_softcap: Option<f32>,
    /// Also norms after attention and MLP, before the residual sum: four per layer (Gemma 2).
    pub post_norms: bool,
    /// RMS norm over each query and key head before RoPE (Qwen 3, Gemma 3).
    pub qk_norm: bool,
    /// Query, key and value projections have biases (Qwen 2).
    pub qkv_bias: bool,
    /// One layer computes queries, keys and values, and another gate and up (Phi-3).
    pub fused: bool,
    /// The rotations of the layers, one or two.
    pub ropes: Vec<Rope>,
    /// The rotation of each layer, by its position in `ropes`; `None`: queries and keys are not rotated (SmolLM3).
    pub rotations: Vec<Option<usize>>,
    /// The sliding window w of each layer: position i sees i - w + 1 ..= i. `None`: all positions up to i.
    pub windows: Vec<Option<usize>>,
    /// The vocabulary head is the embedding matrix.
    pub tied_embeddings: bool,
    pub pad_token_id: Option<u32>,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
    /// Class names of a classifier, from `id2label`; two if the file has none, as in transformers.
    pub labels: Vec<String>,
    /// The kind of classification head, as transformers names it, if the file says so.
    pub problem_type: Option<String>,
    /// The standard deviation of new weights.
    pub initializer_range: f32,
    /// How many positions can be computed: as in the file or, with longrope, as in pretraining.
    pub max_position_embeddings: usize,
    /// The type that the file states; the weights' own types take precedence.
    pub dtype: Option<DType>,
    /// Whether this is the text part of a model that also reads images, whose checkpoint has more tensors ([`IMAGES`]).
    pub reads_images: bool,
}
