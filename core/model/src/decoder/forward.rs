//! The forward pass of a decoder as a graph. One function for all families: the flags of [`Decoder`] say what differs.

use super::Decoder;
use crate::{Error, Precision, Result};
use sparta_graph::ops::{
    Add, Attention, AttentionCached, Cast, Embed, GatedAct, Layout, Linear, RmsNorm, Rope, SelectRows, SoftCap,
    SplitColumns, StoreRows,
};
use sparta_graph::{DType, Graph, Value};

/// Gives the graph the model's tensors and linear layers, which a fine-tuning method may change.
pub trait Layers {
    fn precision(&self) -> Precision;

    /// The parameter `name` as a graph value.
    fn tensor(&mut self, graph: &mut Graph, name: &str) -> Result<Value>;

    /// The rows of the parameter `name` that `op` looks up for `tokens`: f32 `[T, width]`.
    fn lookup(&mut self, graph: &mut Graph, name: &str, tokens: Value, op: Embed) -> Result<Value>;

    /// The parameter `name` as matrix products read it: itself or its rounded copy.
    fn factor(&mut self, graph: &mut Graph, name: &str) -> Result<Value>;

    /// `x W^T (+ bias) (+ residual)`, where `W` is the parameter `{module}.weight` and the bias `{module}.bias`, in the
    /// type of the residual or else of x.
    fn linear(
        &mut self,
        graph: &mut Graph,
        module: &str,
        x: Value,
        bias: bool,
        residual: Option<Value>,
    ) -> Result<Value>;
}

/// A packed batch as graph values.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Token ids: u32 `[T]`.
    pub tokens: Value,
    /// The start and end row of each row's segment: u32 `[T, 2]`.
    pub spans: Value,
    /// For each of [`Decoder::ropes`], its [`super::Rope::table`]: f32 `[P, width]`.
    pub ropes: Vec<Value>,
    /// The rows to compute after the last attention: u32 `[N]`. `None`: all rows.
    pub rows: Option<Value>,
    /// The probability of attention dropout, and the random counter.
    pub dropout: Option<(f32, Value)>,
    /// The cache of keys and values for later rows; excludes dropout.
    pub cache: Option<Cache>,
}

/// The cache of keys and values: attention stores those of its rows and reads all that its rows see.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// The rows of each tensor of the cache, [`cache_names`].
    pub len: usize,
    /// The cache row that each row's key and value go to: u32 `[T]`.
    pub rows: Value,
    /// The range of cache rows that each row sees, its own the last: u32 `[T, 2]`.
    pub seen: Value,
}

/// The cached keys and values of a layer, in the type of activations: `[len, kv_heads * head_dim]`.
pub fn cache_names(layer: usize) -> [String; 2] {
    ["keys", "values"].map(|what| format!("{what}.{layer}"))
}

impl Cache {
    fn attend(&self, graph: &mut Graph, op: Attention, layer: usize, [q, k, v]: [Value; 3]) -> Result<Value> {
        let mut keep = |name: String, new: Value| -> Result<Value> {
            let ty = graph.ty(new)?;
            let (dtype, width) = (ty.dtype, op.kv_heads * op.head_dim);
            let kept = graph.external(name, dtype, [self.len, width]);
            graph.apply(StoreRows {}.into(), &[kept, new, self.rows])?;
            Ok(kept)
        };
        let [keys, values] = cache_names(layer);
        let (keys, values) = (keep(keys, k)?, keep(values, v)?);
        Ok(graph.one(AttentionCached(op), &[q, keys, values, self.seen])?)
    }
}

/// The hidden states after the final norm: f32 `[N, hidden]` for `inputs.rows`, otherwise `[T, hidden]`.
pub fn hidden_states(decoder: &Decoder, graph: &mut Graph, layers: &mut dyn Layers, inputs: &Inputs) -> Result<Value> {
    graph.set_label("embed_tokens");
    let embed = Embed { scale: decoder.embed_scale.unwrap_or(1.0), padding: decoder.pad_token_id };
    let mut x = layers.lookup(graph, "model.embed_tokens.weight", inputs.tokens, embed)?;
    for layer in 0..decoder.layers {
        let last = layer + 1 == decoder.layers;
        let rows = inputs.rows.filter(|_| last);
        // The backward pass starts with the last layer, so recomputing that one would save nothing.
        graph.set_segment((!last).then_some(layer as u32));
        x = attention_block(decoder, graph, layers, inputs, layer, x, rows)?;
        x = mlp_block(decoder, graph, layers, layer, x)?;
    }
    graph.set_segment(None);
    graph.set_label("norm");
    norm(decoder, graph, layers, "model.norm", x, DType::F32)
}

/// Class logits, f32 `[N, classes]`: the head without bias on the pooled rows, and no soft-cap even for Gemma 2.
pub fn class_logits(graph: &mut Graph, layers: &mut dyn Layers, pooled: Value) -> Result<Value> {
    graph.set_label("score");
    layers.linear(graph, "score", pooled, false, None)
}

/// The factors of the vocabulary head's product: the hidden states `[T, hidden]` and the head's weight `[vocab,
/// hidden]`, which is the embeddings' weight if tied.
pub fn vocabulary_factors(
    decoder: &Decoder,
    graph: &mut Graph,
    layers: &mut dyn Layers,
    hidden: Value,
) -> Result<[Value; 2]> {
    Ok([narrow(graph, layers, hidden)?, layers.factor(graph, decoder.vocabulary_head())?])
}

/// Vocabulary logits, f32 `[T, vocab]`, with the model's final soft-cap if it has one.
pub fn vocabulary_logits(
    decoder: &Decoder,
    graph: &mut Graph,
    layers: &mut dyn Layers,
    hidden: Value,
) -> Result<Value> {
    graph.set_label("lm_head");
    let [hidden, weight] = vocabulary_factors(decoder, graph, layers, hidden)?;
    let op = Linear { output: Some(DType::F32), ..Linear::plain(Layout::Nt) };
    let logits = graph.one(op, &[hidden, weight])?;
    match decoder.final_softcap {
        Some(cap) => Ok(graph.one(SoftCap { cap }, &[logits])?),
        None => Ok(logits),
    }
}

/// Casts an f32 value to the type of activations.
fn narrow(graph: &mut Graph, layers: &dyn Layers, x: Value) -> Result<Value> {
    match layers.precision().activations {
        DType::F32 => Ok(x),
        to => Ok(graph.one(Cast { to }, &[x])?),
    }
}

fn attention_block(
    decoder: &Decoder,
    graph: &mut Graph,
    layers: &mut dyn Layers,
    inputs: &Inputs,
    layer: usize,
    x: Value,
    rows: Option<Value>,
) -> Result<Value> {
    let prefix = format!("model.layers.{layer}");
    graph.set_label(format!("layers.{layer}.attention"));
    let inside = layers.precision().activations;
    let h = norm(decoder, graph, layers, &format!("{prefix}.input_layernorm"), x, inside)?;
    let attention = format!("{prefix}.self_attn");
    let widths = [decoder.heads, decoder.kv_heads, decoder.kv_heads].map(|heads| heads * decoder.head_dim);
    let parts = ["q", "k", "v"].into_iter().zip(widths);
    let [q, k, v] = project(decoder, graph, layers, &attention, ("qkv", parts), h)?;
    let mut heads = |graph: &mut Graph, name: &str, mut y: Value| -> Result<Value> {
        if decoder.qk_norm {
            let w = layers.tensor(graph, &format!("{attention}.{name}_norm.weight"))?;
            let (eps, plus_one) = (decoder.rms_norm_eps, decoder.norm_plus_one);
            y = graph.one(RmsNorm { eps, plus_one, output: None, rate: false }, &[y, w])?;
        }
        let Some(rotation) = decoder.rotations[layer] else { return Ok(y) };
        let (head_dim, width) = (decoder.head_dim, decoder.ropes[rotation].width);
        let rope = Rope { head_dim, inverse: false, rotated: Some(width).filter(|&width| width < head_dim) };
        Ok(graph.one(rope, &[y, inputs.spans, inputs.ropes[rotation]])?)
    };
    let (q, k) = (heads(graph, "q", q)?, heads(graph, "k", k)?);
    let op = Attention {
        heads: decoder.heads,
        kv_heads: decoder.kv_heads,
        head_dim: decoder.head_dim,
        scale: decoder.attention_scale,
        window: decoder.windows[layer],
        soft_cap: decoder.attn_softcap,
        dropout: inputs.dropout.map_or(0.0, |(p, _)| p),
        salt: layer as u32,
    };
    let mut o = match &inputs.cache {
        Some(cache) => cache.attend(graph, op, layer, [q, k, v])?,
        None => {
            let rng = inputs.dropout.map(|(_, rng)| rng);
            graph.one(op, &[q, k, v, inputs.spans].into_iter().chain(rng).collect::<Vec<_>>())?
        }
    };
    let mut x = x;
    if let Some(rows) = rows {
        o = graph.one(SelectRows {}, &[o, rows])?;
        x = graph.one(SelectRows {}, &[x, rows])?;
    }
    let o_proj = format!("{attention}.o_proj");
    if !decoder.post_norms {
        return layers.linear(graph, &o_proj, o, false, Some(x));
    }
    let y = layers.linear(graph, &o_proj, o, false, None)?;
    let y = norm(decoder, graph, layers, &format!("{prefix}.post_attention_layernorm"), y, inside)?;
    Ok(graph.one(Add {}, &[x, y])?)
}

/// Projections of the same rows, `parts` by name and width: each its own layer, or all of them blocks of the output
/// of one layer `fused`.
fn project<const N: usize>(
    decoder: &Decoder,
    graph: &mut Graph,
    layers: &mut dyn Layers,
    block: &str,
    (fused, parts): (&str, impl Iterator<Item = (&'static str, usize)>),
    x: Value,
) -> Result<[Value; N]> {
    let bias = decoder.qkv_bias && fused == "qkv";
    let outputs = if decoder.fused {
        let y = layers.linear(graph, &format!("{block}.{fused}_proj"), x, bias, None)?;
        graph.apply(SplitColumns { widths: parts.map(|(_, width)| width).collect() }.into(), &[y])?
    } else {
        let layer = |(name, _)| layers.linear(graph, &format!("{block}.{name}_proj"), x, bias, None);
        parts.map(layer).collect::<Result<Vec<_>>>()?
    };
    let wrong = |outputs: Vec<Value>| Error::Config(format!("{block} has {} projections, expected {N}", outputs.len()));
    outputs.try_into().map_err(wrong)
}

fn mlp_block(decoder: &Decoder, graph: &mut Graph, layers: &mut dyn Layers, layer: usize, x: Value) -> Result<Value> {
    let prefix = format!("model.layers.{layer}");
    graph.set_label(format!("layers.{layer}.mlp"));
    let inside = layers.precision().activations;
    let before = if decoder.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
    let h = norm(decoder, graph, layers, &format!("{prefix}.{before}"), x, inside)?;
    let parts = ["gate", "up"].into_iter().zip([decoder.intermediate_size; 2]);
    let [gate, up] = project(decoder, graph, layers, &format!("{prefix}.mlp"), ("gate_up", parts), h)?;
    let y = graph.one(GatedAct { act: decoder.activation }, &[gate, up])?;
    let down = format!("{prefix}.mlp.down_proj");
    if !decoder.post_norms {
        return layers.linear(graph, &down, y, false, Some(x));
    }
    let y = layers.linear(graph, &down, y, false, None)?;
    let y = norm(decoder, graph, layers, &format!("{prefix}.post_feedforward_layernorm"), y, inside)?;
    Ok(graph.one(Add {}, &[x, y])?)
}

fn norm(
    decoder: &Decoder,
    graph: &mut Graph,
    layers: &mut dyn Layers,
    module: &str,
    x: Value,
    output: DType,
) -> Result<Value> {
    let w = layers.tensor(graph, &format!("{module}.weight"))?;
    let (eps, plus_one) = (decoder.rms_norm_eps, decoder.norm_plus_one);
    Ok(graph.one(RmsNorm { eps, plus_one, output: Some(output), rate: false }, &[x, w])?)
}

/// A plain linear layer on the tensors of [`Layers::factor`] and [`Layers::tensor`], for implementations of
/// [`Layers::linear`].
pub fn plain_linear(
    graph: &mut Graph,
    x: Value,
    weight: Value,
    bias: Option<Value>,
    residual: Option<Value>,
) -> Result<Value> {
    let output = residual.map(|residual| graph.ty(residual).map(|ty| ty.dtype)).transpose()?;
    let op = Linear { bias: bias.is_some(), residual: residual.is_some(), output, ..Linear::plain(Layout::Nt) };
    let operands: Vec<Value> = [Some(x), Some(weight), bias, residual].into_iter().flatten().collect();
    Ok(graph.one(op, &operands)?)
}
