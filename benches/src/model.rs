//! Models of any size with random weights, as directories.

use crate::Result;
use sparta_core::bench::{Noise, Shape};
use sparta_core::weights::{Dtype, TensorSpec, save_with};
use sparta_graph::DType;
use sparta_plugin::method::{Parameter, Role};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

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

    pub fn dtype(self) -> DType {
        match self {
            Weights::F32 => DType::F32,
            Weights::Bf16 => DType::BF16,
        }
    }
}

/// The share of a model's scalars in layers and norms, from which SpaRTA chooses.
pub fn share_of_layers(shape: &Shape) -> Result<f64> {
    let tensors = shape.tensors(DType::F32)?;
    let count = |of: &dyn Fn(&Parameter) -> bool| tensors.iter().filter(|p| of(p)).map(Parameter::numel).sum::<u64>();
    Ok(count(&|p| p.role != Role::Embedding) as f64 / count(&|_| true) as f64)
}

/// The directory of a model with weights of this type, below `SPARTA_BENCH_DIR` or where cargo built this program. If
/// missing, it is written by another process, so that the memory this takes does not count here.
pub fn directory(shape: &Shape, weights: Weights) -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let built = program.parent().and_then(Path::parent).map(Path::to_owned);
    let place = std::env::var_os("SPARTA_BENCH_DIR").map(PathBuf::from).or(built);
    let name = format!("{}-{}", shape.name.replace(',', "-"), weights.name());
    let directory = place.ok_or("the directory of this program is unknown")?.join("bench-models").join(name);
    if !directory.join("config.json").is_file() {
        let status =
            Command::new(program).args(["--write-model", &shape.name, weights.name()]).arg(&directory).status()?;
        if !status.success() {
            return Err(format!("the model could not be written to {}", directory.display()).into());
        }
    }
    Ok(directory)
}

/// In the process that [`directory`] starts, writes the model; returns false in any other.
pub fn write_model_if_asked() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flag, shape, weights, directory] = &arguments[..] else { return Ok(false) };
    if flag != "--write-model" {
        return Ok(false);
    }
    let weights = if weights == Weights::Bf16.name() { Weights::Bf16 } else { Weights::F32 };
    write(&Shape::parse(shape)?, weights, Path::new(directory))?;
    Ok(true)
}

fn write(shape: &Shape, weights: Weights, directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let tensors = shape.tensors(weights.dtype())?;
    let dtype = if weights == Weights::Bf16 { Dtype::BF16 } else { Dtype::F32 };
    let specs = tensors.iter().map(|p| TensorSpec { name: p.name.clone(), dtype, shape: p.shape.clone() });
    let noise = Noise::new();
    save_with(&directory.join("model.safetensors"), specs.collect(), &BTreeMap::new(), |spec| {
        let found = tensors.iter().enumerate().find(|(_, p)| p.name == spec.name);
        Ok(Cow::Owned(found.map(|(place, p)| shape.values(p, &noise, place)).unwrap_or_default()))
    })?;
    // Written last: it marks the directory as complete.
    let config = serde_json::to_vec_pretty(&shape.config(weights.dtype()))?;
    std::fs::write(directory.join("config.json"), config)?;
    Ok(())
}
