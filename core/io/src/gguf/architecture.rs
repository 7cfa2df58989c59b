//! GGUF's architectures and the supported families.

use super::metadata::Metadata;
use sparta_model::Family;

/// A family by its `model_type`, and how its files differ from the Hugging Face layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// The prefix of metadata keys.
    pub name: &'static str,
    pub model_type: &'static str,
    pub class: &'static str,
    /// Whether rows of q and k are in the order of [`sparta_model::Arrangement::RotatedPairs`].
    pub rotated_pairs: bool,
    /// Whether norms are stored as 1 + w.
    pub norms_plus_one: bool,
}

const fn plain(name: &'static str, model_type: &'static str, class: &'static str) -> Architecture {
    Architecture { name, model_type, class, rotated_pairs: false, norms_plus_one: false }
}

const ALL: [Architecture; 8] = [
    Architecture { rotated_pairs: true, ..plain("llama", "llama", "LlamaForCausalLM") },
    Architecture { rotated_pairs: true, ..plain("smollm3", "smollm3", "SmolLM3ForCausalLM") },
    Architecture { norms_plus_one: true, ..plain("gemma", "gemma", "GemmaForCausalLM") },
    Architecture { norms_plus_one: true, ..plain("gemma2", "gemma2", "Gemma2ForCausalLM") },
    Architecture { norms_plus_one: true, ..plain("gemma3", "gemma3_text", "Gemma3ForCausalLM") },
    plain("qwen2", "qwen2", "Qwen2ForCausalLM"),
    plain("qwen3", "qwen3", "Qwen3ForCausalLM"),
    plain("phi3", "phi3", "Phi3ForCausalLM"),
];

impl Architecture {
    /// The architecture to write for a family; Mistral's is Llama's.
    pub fn of_family(family: Family) -> Option<Architecture> {
        let model_type = if family == Family::Mistral { "llama" } else { family.model_type() };
        ALL.into_iter().find(|known| known.model_type == model_type)
    }

    /// The architectures whose files may have a classifier in llama.cpp, which refuses tensors that it does not expect.
    pub fn classifiers() -> Vec<&'static str> {
        ALL.iter().filter(|known| known.classifies()).map(|known| known.name).collect()
    }

    pub fn classifies(&self) -> bool {
        self.name == "qwen3"
    }

    /// Errors: no architecture; one that is not supported; a mixture of experts.
    pub fn of(metadata: &Metadata) -> Result<Architecture, String> {
        let Some(name) = metadata.text("general.architecture")? else {
            return Err("has no `general.architecture`: it is not a model".into());
        };
        let names = || ALL.map(|known| known.name).join(", ");
        let Some(known) = ALL.into_iter().find(|known| known.name == name) else {
            let what = match name {
                "clip" => ": this file is the image encoder; give the language model's file".to_owned(),
                _ if name.contains("moe") => ": mixtures of experts are not supported".to_owned(),
                _ => String::new(),
            };
            return Err(format!("`general.architecture` is {name:?}, expected one of {}{what}", names()));
        };
        if metadata.count(&format!("{name}.expert_count"))?.unwrap_or(0) > 0 {
            return Err(format!("`{name}.expert_count` is above 0: mixtures of experts are not supported"));
        }
        match metadata.text("general.type")? {
            None | Some("model") => Ok(known),
            Some(other) => Err(format!("`general.type` is {other:?}, expected a model")),
        }
    }
}
