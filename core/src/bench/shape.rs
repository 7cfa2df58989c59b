//! The shapes of the models measured, with random weights made in memory.

use half::bf16;
use serde_json::{Map, Value, json};
use sparta_graph::DType;
use sparta_model::method::philox;
use sparta_model::{Decoder, Error, HeadKind, Result, TensorView, WeightSource};
use sparta_plugin::method::Parameter;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The architecture of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// In the form that [`Shape::parse`] accepts.
    pub name: String,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
    /// Whether the layers are Gemma's; otherwise Llama's.
    gemma: bool,
}

/// Shapes with a name: hidden, layers, heads, kv heads, head dimension, intermediate, vocabulary.
const NAMED: [(&str, [usize; 7]); 6] = [
    ("15M", [288, 6, 6, 6, 48, 768, 32000]),
    ("SmolLM2-135M", [576, 30, 9, 3, 64, 1536, 49152]),
    ("110M", [768, 12, 12, 12, 64, 2048, 32000]),
    ("1.1B", [2048, 22, 32, 4, 64, 5632, 32000]),
    ("gemma-2b", [2048, 18, 8, 1, 256, 16384, 256000]),
    ("mistral-7b", [4096, 32, 32, 8, 128, 14336, 32000]),
];

impl Shape {
    /// A name of [`Shape::names`], or six numbers `hidden,layers,heads,kv_heads,intermediate,vocab`.
    pub fn parse(text: &str) -> Result<Shape> {
        if let Some((_, numbers)) = NAMED.iter().find(|(name, _)| *name == text) {
            return Ok(Shape { gemma: text.starts_with("gemma"), ..Shape::of(text, *numbers) });
        }
        let numbers: std::result::Result<Vec<usize>, _> = text.split(',').map(|n| n.trim().parse()).collect();
        match numbers.as_deref() {
            Ok(&[hidden, layers, heads, kv_heads, intermediate, vocab]) if heads > 0 => {
                Ok(Shape::of(text, [hidden, layers, heads, kv_heads, hidden / heads, intermediate, vocab]))
            }
            _ => {
                let names = Shape::names().collect::<Vec<_>>().join(", ");
                Err(Error::Usage(format!(
                    "`{text}` is not a shape; expected {names}, or hidden,layers,heads,kv_heads,intermediate,vocab"
                )))
            }
        }
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(name, _)| *name)
    }

    /// Llama's shape, with as many key-value heads as heads.
    pub fn llama(hidden: usize, layers: usize, heads: usize, intermediate: usize, vocab: usize) -> Shape {
        let name = format!("{hidden},{layers},{heads},{heads},{intermediate},{vocab}");
        Shape::of(&name, [hidden, layers, heads, heads, hidden / heads.max(1), intermediate, vocab])
    }

    fn of(name: &str, [hidden, layers, heads, kv_heads, head_dim, intermediate, vocab]: [usize; 7]) -> Shape {
        let name = name.to_owned();
        Shape { name, hidden, layers, heads, kv_heads, head_dim, intermediate, vocab, gemma: false }
    }

    /// The first `most` layers, or fewer if it has no more.
    pub fn first_layers(&self, most: usize) -> Shape {
        Shape { layers: self.layers.min(most), ..self.clone() }
    }

    /// The model's `config.json`, with weights of this type.
    pub fn config(&self, weights: DType) -> Map<String, Value> {
        let (architecture, family, activation) = match self.gemma {
            true => ("GemmaForCausalLM", "gemma", "gelu_pytorch_tanh"),
            false => ("LlamaForCausalLM", "llama", "silu"),
        };
        let dtype = if weights == DType::BF16 { "bfloat16" } else { "float32" };
        let config = json!({
            "architectures": [architecture],
            "model_type": family,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": 1 << 20,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": activation,
            "hidden_activation": activation,
            "tie_word_embeddings": true,
            "pad_token_id": 0,
            "torch_dtype": dtype,
        });
        if let Value::Object(map) = config { map } else { Map::new() }
    }

    /// Errors: numbers that are not a valid model.
    pub fn decoder(&self, weights: DType) -> Result<Decoder> {
        Decoder::parse(Path::new(&self.name), &self.config(weights))
    }

    /// The tensors of a checkpoint, which has no classification head.
    pub fn tensors(&self, weights: DType) -> Result<Vec<Parameter>> {
        Ok(self.decoder(weights)?.parameters(HeadKind::CausalLm))
    }

    /// Bytes of a range of a tensor's values: normal with standard deviation 0.02, from a different place in the noise
    /// for each tensor; norms are the identity.
    pub fn values(&self, parameter: &Parameter, noise: &Noise, place: usize) -> Vec<u8> {
        let n = parameter.numel() as usize;
        if parameter.shape.len() > 1 {
            return noise.bytes(parameter.dtype, place, n);
        }
        // Gemma's norms multiply by 1 + weight.
        let one = if self.gemma { 0f32 } else { 1f32 };
        match parameter.dtype {
            DType::BF16 => bf16::from_f32(one).to_le_bytes().repeat(n),
            _ => one.to_le_bytes().repeat(n),
        }
    }
}

/// Random numbers, drawn once and repeated: drawing billions would take longer than the measurement.
pub struct Noise(Vec<f32>);

impl Noise {
    const BLOCK: usize = 1 << 20;
    /// The distance between the starts of two tensors in the block.
    const STRIDE: usize = 7919;

    pub fn new() -> Noise {
        Noise(philox::normal(0, "noise", Self::BLOCK, 0.02))
    }

    fn bytes(&self, dtype: DType, place: usize, n: usize) -> Vec<u8> {
        let values = self.0.iter().cycle().skip(place * Self::STRIDE % Self::BLOCK).take(n);
        match dtype {
            DType::BF16 => values.flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

impl Default for Noise {
    fn default() -> Self {
        Noise::new()
    }
}

/// A model of random weights in memory. All matrices are views of the same numbers, so it takes no more memory than the
/// largest one.
pub struct RandomWeights {
    origin: String,
    dtype: DType,
    tensors: BTreeMap<String, Parameter>,
    matrices: Arc<Vec<u8>>,
    /// The values of the longest norm.
    norms: Arc<Vec<u8>>,
    /// The offset of each tensor's bytes.
    begin: BTreeMap<String, usize>,
}

impl RandomWeights {
    /// Makes weights of this type.
    pub fn new(shape: &Shape, dtype: DType) -> Result<RandomWeights> {
        let tensors = shape.tensors(dtype)?;
        let largest = tensors.iter().map(|p| p.numel() as usize).max().unwrap_or(0);
        let longest = tensors.iter().filter(|p| p.shape.len() == 1).max_by_key(|p| p.numel());
        let noise = Noise::new();
        let matrices = Arc::new(noise.bytes(dtype, 0, largest + Noise::BLOCK));
        let norms = Arc::new(longest.map(|p| shape.values(p, &noise, 0)).unwrap_or_default());
        RandomWeights::over(shape, dtype, matrices, norms)
    }

    /// Weights of a shape with the same tensors or fewer, over the same numbers.
    pub fn of(&self, shape: &Shape) -> Result<RandomWeights> {
        RandomWeights::over(shape, self.dtype, self.matrices.clone(), self.norms.clone())
    }

    fn over(shape: &Shape, dtype: DType, matrices: Arc<Vec<u8>>, norms: Arc<Vec<u8>>) -> Result<RandomWeights> {
        let tensors = shape.tensors(dtype)?;
        let begin = |(place, p): (usize, &Parameter)| {
            let elements = if p.shape.len() > 1 { place * Noise::STRIDE % Noise::BLOCK } else { 0 };
            (p.name.clone(), elements * dtype.size())
        };
        let begin = tensors.iter().enumerate().map(begin).collect();
        Ok(RandomWeights {
            origin: format!("random weights of the shape {}", shape.name),
            dtype,
            matrices,
            norms,
            tensors: tensors.into_iter().map(|p| (p.name.clone(), p)).collect(),
            begin,
        })
    }
}

impl WeightSource for RandomWeights {
    fn origin(&self) -> String {
        self.origin.clone()
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let (parameter, &begin) = (self.tensors.get(name)?, self.begin.get(name)?);
        let bytes = if parameter.shape.len() > 1 { &self.matrices } else { &self.norms };
        let len = parameter.numel() as usize * parameter.dtype.size();
        Some(TensorView::new(parameter.dtype, &parameter.shape, bytes.get(begin..begin + len)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_model::check_weights;

    #[test]
    fn every_named_shape_is_a_model_whose_weights_are_whole() {
        for name in Shape::names().filter(|name| ["15M", "SmolLM2-135M"].contains(name)) {
            let shape = Shape::parse(name).unwrap();
            let weights = RandomWeights::new(&shape, DType::BF16).unwrap();
            let head = HeadKind::Classification { classes: 2 };
            let found = check_weights(&shape.decoder(DType::BF16).unwrap(), &weights, head).unwrap();
            assert!(found.iter().all(|p| p.name == sparta_model::HEAD || weights.finite(&p.name).is_ok()), "{name}");
        }
        for name in Shape::names() {
            Shape::parse(name).unwrap().decoder(DType::BF16).unwrap();
        }
    }

    #[test]
    fn an_unknown_shape_is_refused_with_the_known_names() {
        for text in ["16M", "1,2,3", "64,2,0,2,128,512", ""] {
            let message = Shape::parse(text).unwrap_err().to_string();
            assert!(message.contains("gemma-2b"), "{message}");
        }
        let shape = Shape::parse("64,2,4,2,128,512").unwrap();
        assert_eq!((shape.head_dim, shape.kv_heads), (16, 2));
    }

    #[test]
    fn matrices_begin_at_different_places_of_the_noise() {
        let shape = Shape::llama(64, 2, 4, 128, 512);
        let weights = RandomWeights::new(&shape, DType::F32).unwrap();
        let bytes = |name: &str| weights.get(name).unwrap().raw()[..64].to_vec();
        assert_ne!(bytes("model.layers.0.self_attn.q_proj.weight"), bytes("model.layers.1.self_attn.q_proj.weight"));
        assert_eq!(bytes("model.norm.weight"), 1f32.to_le_bytes().repeat(16));
        let first = weights.of(&shape.first_layers(1)).unwrap();
        check_weights(
            &shape.first_layers(1).decoder(DType::F32).unwrap(),
            &first,
            HeadKind::Classification { classes: 2 },
        )
        .unwrap();
        let noise = Noise::new();
        let tensors = shape.tensors(DType::F32).unwrap();
        for (place, parameter) in tensors.iter().enumerate() {
            assert_eq!(weights.get(&parameter.name).unwrap().raw(), shape.values(parameter, &noise, place));
        }
    }
}
