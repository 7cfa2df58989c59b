//! Llama-shaped models with random f32 weights.

use crate::Result;
use sparta_core::weights::{Dtype, TensorSpec, save_with};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub intermediate: usize,
    pub vocab: usize,
}

impl Shape {
    /// `15M`, `110M`, or six numbers `hidden,layers,heads,kv_heads,intermediate,vocab`.
    pub fn parse(text: &str) -> Result<Shape> {
        let of = |[hidden, layers, heads, kv_heads, intermediate, vocab]: [usize; 6]| Shape {
            hidden,
            layers,
            heads,
            kv_heads,
            intermediate,
            vocab,
        };
        match text {
            "15M" => return Ok(of([288, 6, 6, 6, 768, 32000])),
            "110M" => return Ok(of([768, 12, 12, 12, 2048, 32000])),
            _ => {}
        }
        let numbers: Vec<usize> = text.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
        let numbers: [usize; 6] = numbers.try_into().map_err(|_| {
            format!("`{text}` is no shape: 15M, 110M or hidden,layers,heads,kv_heads,intermediate,vocab")
        })?;
        Ok(of(numbers))
    }

    fn name(&self) -> String {
        let Shape { hidden, layers, heads, kv_heads, intermediate, vocab } = self;
        format!("{hidden},{layers},{heads},{kv_heads},{intermediate},{vocab}")
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
        let kv = d / self.heads.max(1) * self.kv_heads;
        let mut list = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, d]),
            ("model.norm.weight".to_owned(), vec![d]),
        ];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                list.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            add("self_attn.q_proj", &[d, d]);
            add("self_attn.k_proj", &[kv, d]);
            add("self_attn.v_proj", &[kv, d]);
            add("self_attn.o_proj", &[d, d]);
            add("mlp.gate_proj", &[f, d]);
            add("mlp.up_proj", &[f, d]);
            add("mlp.down_proj", &[d, f]);
            add("input_layernorm", &[d]);
            add("post_attention_layernorm", &[d]);
        }
        list
    }

    /// The directory of the model, beside this program; made when it is not there, by another process, so that the
    /// memory it takes is not this one's.
    pub fn directory(&self) -> Result<PathBuf> {
        let program = std::env::current_exe()?;
        let place = program.parent().and_then(Path::parent).ok_or("this program lies in no directory")?;
        let directory = place.join("bench-models").join(self.name().replace(',', "-"));
        if !directory.join("config.json").is_file() {
            let status = Command::new(program).args(["--write-model", &self.name()]).arg(&directory).status()?;
            if !status.success() {
                return Err(format!("the model could not be written to {}", directory.display()).into());
            }
        }
        Ok(directory)
    }

    fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        let shapes = self.tensors();
        let specs = shapes.iter().map(|(name, shape)| TensorSpec {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: shape.clone(),
        });
        let mut state = 1;
        save_with(&directory.join("model.safetensors"), specs.collect(), &BTreeMap::new(), |spec| {
            let std = if spec.shape.len() == 1 { 0.0 } else { 0.02 };
            let centre = if spec.shape.len() == 1 { 1.0 } else { 0.0 };
            let values = (0..numel(&spec.shape)).flat_map(|_| (centre + std * normal(&mut state)).to_le_bytes());
            Ok(Cow::Owned(values.collect()))
        })?;
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": 1 << 20,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
            "pad_token_id": 0,
            "torch_dtype": "float32",
        });
        // Last: with it the directory is complete.
        std::fs::write(directory.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        Ok(())
    }
}

/// Does what [`Shape::directory`] asks another process for; false if that is not what this process is for.
pub fn write_model_if_asked() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flag, shape, directory] = &arguments[..] else { return Ok(false) };
    if flag != "--write-model" {
        return Ok(false);
    }
    Shape::parse(shape)?.write(Path::new(directory))?;
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
