//! The supported families, one file each: what their `config.json` may contain and what it means.

mod gemma;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

use super::Decoder;
use super::keys::Keys;
use crate::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Gemma,
    Gemma2,
    Gemma3,
    Mistral,
    Llama,
    SmolLm3,
    Phi3,
    Qwen2,
    Qwen3,
}

impl Family {
    pub const ALL: [Family; 9] = [
        Family::Gemma,
        Family::Gemma2,
        Family::Gemma3,
        Family::Mistral,
        Family::Llama,
        Family::SmolLm3,
        Family::Phi3,
        Family::Qwen2,
        Family::Qwen3,
    ];

    /// The `model_type` of config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Gemma => "gemma",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3_text",
            Family::Mistral => "mistral",
            Family::Llama => "llama",
            Family::SmolLm3 => "smollm3",
            Family::Phi3 => "phi3",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// The transformers classes with a vocabulary head, with a classification head and with neither.
    pub fn classes(self) -> [String; 3] {
        let name = match self {
            Family::Gemma => "Gemma",
            Family::Gemma2 => "Gemma2",
            Family::Gemma3 => {
                return ["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification", "Gemma3TextModel"]
                    .map(str::to_owned);
            }
            Family::Mistral => "Mistral",
            Family::Llama => "Llama",
            Family::SmolLm3 => "SmolLM3",
            Family::Phi3 => "Phi3",
            Family::Qwen2 => "Qwen2",
            Family::Qwen3 => "Qwen3",
        };
        ["ForCausalLM", "ForSequenceClassification", "Model"].map(|end| format!("{name}{end}"))
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
            Family::Gemma3 => gemma3::decoder(keys),
            Family::Mistral => mistral::decoder(keys),
            Family::Llama => llama::decoder(keys),
            Family::SmolLm3 => smollm3::decoder(keys),
            Family::Phi3 => phi3::decoder(keys),
            Family::Qwen2 => qwen2::decoder(keys),
            Family::Qwen3 => qwen3::decoder(keys),
        }
    }
}
