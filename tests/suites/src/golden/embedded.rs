//! The compact set, as part of the program.

use std::path::Path;
use std::{fs, io};

type File = (&'static str, &'static [u8]);

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../../golden/", $name)))),*]
    };
}

const FILES: &[File] = files![
    "gemma/batch.safetensors",
    "gemma/cls.safetensors",
    "gemma/config.json",
    "gemma/config.v4.json",
    "gemma/lm.safetensors",
    "gemma/model.safetensors",
    "gemma/train.json",
    "gemma/train.safetensors",
    "gemma2/batch.safetensors",
    "gemma2/cls.safetensors",
    "gemma2/config.json",
    "gemma2/config.v4.json",
    "gemma2/lm.safetensors",
    "gemma2/model.safetensors",
    "mistral/batch.safetensors",
    "mistral/cls.safetensors",
    "mistral/config.json",
    "mistral/config.v4.json",
    "mistral/lm.safetensors",
    "mistral/lm_head.safetensors",
    "mistral/model.safetensors",
    "mistral/train.json",
    "mistral/train.safetensors",
    "llama/batch.safetensors",
    "llama/cls.safetensors",
    "llama/config.json",
    "llama/config.v4.json",
    "llama/lm.safetensors",
    "llama/lm_head.safetensors",
    "llama/model.safetensors",
    "gemma3/batch.safetensors",
    "gemma3/cls.safetensors",
    "gemma3/config.json",
    "gemma3/config.v4.json",
    "gemma3/lm.safetensors",
    "gemma3/model.safetensors",
    "smollm3/batch.safetensors",
    "smollm3/cls.safetensors",
    "smollm3/config.json",
    "smollm3/config.v4.json",
    "smollm3/lm.safetensors",
    "smollm3/model.safetensors",
    "phi3/batch.safetensors",
    "phi3/cls.safetensors",
    "phi3/config.json",
    "phi3/config.v4.json",
    "phi3/lm.safetensors",
    "phi3/lm_head.safetensors",
    "phi3/model.safetensors",
    "phi3/train.json",
    "phi3/train.safetensors",
    "qwen2/batch.safetensors",
    "qwen2/cls.safetensors",
    "qwen2/config.json",
    "qwen2/config.v4.json",
    "qwen2/lm.safetensors",
    "qwen2/lm_head.safetensors",
    "qwen2/model.safetensors",
    "qwen3/batch.safetensors",
    "qwen3/cls.safetensors",
    "qwen3/config.json",
    "qwen3/config.v4.json",
    "qwen3/lm.safetensors",
    "qwen3/lm_head.safetensors",
    "qwen3/model.safetensors",
    "sft/tokenizer.json",
    "sft/tokenizer_config.json",
    "sft/train.jsonl",
    "sft/trl.json",
];

/// Writes the set into a directory.
pub fn unpack(directory: &Path) -> io::Result<()> {
    for (name, bytes) in FILES {
        let path = directory.join(name);
        if let Some(family) = path.parent() {
            fs::create_dir_all(family)?;
        }
        fs::write(path, bytes)?;
    }
    Ok(())
}
