//! The supported families, one file each: what their `config.json` may say and what it means.

mod gemma;
mod gemma2;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use super::Decoder;
use super::keys::Keys;
use crate::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Gemma,
    Gemma2,
    Mistral,
    Llama,
    Qwen2,
    Qwen3,
}

impl Family {
    pub const ALL: [Family; 6] =
        [Family::Gemma, Family::Gemma2, Family::Mistral, Family::Llama, Family::Qwen2, Family::Qwen3];

    /// The `model_type` of config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Gemma => "gemma",
            Family::Gemma2 => "gemma2",
            Family::Mistral => "mistral",
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// What transformers' class names begin with.
    pub fn class(self) -> &'static str {
        match self {
            Family::Gemma => "Gemma",
            Family::Gemma2 => "Gemma2",
            Family::Mistral => "Mistral",
            Family::Llama => "Llama",
            Family::Qwen2 => "Qwen2",
            Family::Qwen3 => "Qwen3",
        }
    }

    pub(super) fn of_model_type(name: &str) -> Option<Family> {
        Self::ALL.into_iter().find(|family| family.model_type() == name)
    }

    /// All model types, for messages.
    pub(super) fn supported() -> String {
        Self::ALL.map(Self::model_type).join(", ")
    }

    pub(super) fn decoder(self, keys: &Keys) -> Result<Decoder> {
        match self {
            Family::Gemma => gemma::decoder(keys),
            Family::Gemma2 => gemma2::decoder(keys),
            Family::Mistral => mistral::decoder(keys),
            Family::Llama => llama::decoder(keys),
            Family::Qwen2 => qwen2::decoder(keys),
            Family::Qwen3 => qwen3::decoder(keys),
        }
    }
}
