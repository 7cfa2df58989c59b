//! Models of any size with random weights, in the shape of Llama or Gemma.

use crate::Result;
use half::bf16;
use sparta_core::weights::{Dtype, TensorSpec, save_with};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// As [`Shape::parse`] takes it.
    name: String,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
    gemma: bool,
}

/// Shapes with a name, all with tied embeddings: hidden, layers, heads, kv heads, head dimension, intermediate, vocabulary.
const NAMED: [(&str, [usize; 7]); 4] = [
    ("15M", [288, 6, 6, 6, 48, 768, 32000]),
    ("110M", [768, 12, 12, 12, 64, 2048, 32000]),
    ("SmolLM2-135M", [576, 30, 9, 3, 64, 1536, 49152]),
    ("gemma-2b", [2048, 18, 8, 1, 256, 16384, 256000]),
];

impl Shape {
    /// `15M`, `110M`, `SmolLM2-135M`, `gemma-2b`, or six numbers `hidden,layers,heads,kv_heads,intermediate,vocab`.
    pub fn parse(text: &str) -> Result<Shape> {
        if let Some((_, numbers)) = NAMED.iter().find(|(name, _)| *name == text) {
            return Ok(Shape { gemma: text == "gemma-2b", ..Shape::of(text, *numbers) });
        }
        let numbers: Vec<usize> = text.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
        let numbers: [usize; 6] = numbers.try_into().map_err(|_| {
            let names = NAMED.map(|(name, _)| name).join(", ");
            format!("`{text}` is no shape: {names} or hidden,layers,heads,kv_heads,intermediate,vocab")
        })?;
        let [hidden, layers, heads, kv_heads, intermediate, vocab] = numbers;
        Ok(Shape::of(text, [hidden, layers, heads, kv_heads, hidden / heads.max(1), intermediate, vocab]))
    }

    /// In the shape of Llama, with as many key-value heads as heads.
    pub fn llama(hidden: usize, layers: usize, heads: usize, intermediate: usize, vocab: usize) -> Shape {
        let name = format!("{hidden},{layers},{heads},{heads},{intermediate},{vocab}");
        Shape::of(&name, [hidden, layers, heads, heads, hidden / heads.max(1), intermediate, vocab])
    }

    fn of(name: &str, [hidden, layers, heads, kv_heads, head_dim, intermediate, vocab]: [usize; 7]) -> Shape {
        let name = name.to_owned();
        Shape { name, hidden, layers, heads, kv_heads, head_dim, intermediate, vocab, gemma: false }
    }

    /// Scalars of the layers and norms: what SpaRTA chooses from.
    pub fn layer_scalars(&self) -> usize {
        self.tensors().iter().filter(|(name, _)| !name.contains("embed_tokens")).map(|(_, n)| numel(n)).sum()
    }

    /// Scalars without a head.
    pub fn scalars(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| numel(shape)).sum()
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.hidden, self.intermediate);
        let [q, kv] = [self.heads, self.kv_heads].map(|heads| heads * self.head_dim);
        let mut list = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, d]),
            ("model.norm.weight".to_owned(), vec![d]),
        ];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                list.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            add("self_attn.q_proj", &[q, d]);
            add("self_attn.k_proj", &[kv, d]);
            add("self_attn.v_proj", &[kv, d]);
            add("self_attn.o_proj", &[d, q]);
            add("mlp.gate_proj", &[f, d]);
            add("mlp.up_proj", &[f, d]);
            add("mlp.down_proj", &[d, f]);
            add("input_layernorm", &[d]);
            add("post_attention_layernorm", &[d]);
        }
        list
    }

    /// The directory of the model with weights of a type, below `SPARTA_BENCH_DIR` or where cargo has built this program;
    /// made when it is not there, by another process, so that the memory it takes is not this one's.
    pub fn directory(&self, weights: Weights) -> Result<PathBuf> {
        let program = std::env::current_exe()?;
        let built = program.parent().and_then(Path::parent).map(Path::to_owned);
        let place = std::env::var_os("SPARTA_BENCH_DIR").map(PathBuf::from).or(built);
        let name = format!("{}-{}", self.name.replace(',', "-"), weights.name());
        let directory = place.ok_or("this program lies in no directory")?.join("bench-models").join(name);
        if !directory.join("config.json").is_file() {
            let status =
                Command::new(program).args(["--write-model", &self.name, weights.name()]).arg(&directory).status()?;
            if !status.success() {
                return Err(format!("the model could not be written to {}", directory.display()).into());
            }
        }
        Ok(directory)
    }

    fn write(&self, weights: Weights, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        let shapes = self.tensors();
        let dtype = if weights == Weights::Bf16 { Dtype::BF16 } else { Dtype::F32 };
        let specs = shapes.iter().map(|(name, shape)| TensorSpec { name: name.clone(), dtype, shape: shape.clone() });
        let mut state = 1;
        let block: Vec<f32> = (0..BLOCK).map(|_| normal(&mut state)).collect();
        let mut start = 0;
        save_with(&directory.join("model.safetensors"), specs.collect(), &BTreeMap::new(), |spec| {
            // Gemma's norms multiply by 1 + weight.
            let (std, centre) =
                if spec.shape.len() == 1 { (0.0, if self.gemma { 0.0 } else { 1.0 }) } else { (0.02, 0.0) };
            // Each tensor begins elsewhere in the block.
            start += 7919;
            let values = block.iter().cycle().skip(start % BLOCK).take(numel(&spec.shape)).map(|x| centre + std * x);
            Ok(Cow::Owned(match weights {
                Weights::F32 => values.flat_map(f32::to_le_bytes).collect(),
                Weights::Bf16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            }))
        })?;
        let (architecture, family, activation) = match self.gemma {
            true => ("GemmaForCausalLM", "gemma", "gelu_pytorch_tanh"),
            false => ("LlamaForCausalLM", "llama", "silu"),
        };
        let config = serde_json::json!({
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
            "torch_dtype": if weights == Weights::Bf16 { "bfloat16" } else { "float32" },
        });
        // Last: with it the directory is complete.
        std::fs::write(directory.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        Ok(())
    }
}

/// The type of a model's weights on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Weights {
    F32,
    Bf16,
}

impl Weights {
    fn name(self) -> &'static str {
        match self {
            Weights::F32 => "f32",
            Weights::Bf16 => "bf16",
        }
    }
}

/// Random numbers that are drawn once and repeated: drawing billions would take longer than the measurement.
const BLOCK: usize = 1 << 20;

/// Does what [`Shape::directory`] asks another process for; false if that is not what this process is for.
pub fn write_model_if_asked() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flag, shape, weights, directory] = &arguments[..] else { return Ok(false) };
    if flag != "--write-model" {
        return Ok(false);
    }
    let weights = if weights == Weights::Bf16.name() { Weights::Bf16 } else { Weights::F32 };
    Shape::parse(shape)?.write(weights, Path::new(directory))?;
    Ok(true)
}

fn numel(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// About standard normal: the sum of four uniform 16-bit numbers of SplitMix64.
fn normal(state: &mut u64) -> f32 {
    let mut x = random(state);
    let mut sum = 0.0;
    for _ in 0..4 {
        sum += (x & 0xffff) as f32 / 65536.0 - 0.5;
        x >>= 16;
    }
    sum * 3f32.sqrt()
}

/// SplitMix64.
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
