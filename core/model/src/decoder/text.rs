//! The text part of a model that also reads images, as a model in its own right.

use super::keys::Keys;
use crate::Result;
use serde_json::{Map, Value};
use std::path::Path;

/// Name prefixes of the tensors for images, which a text model leaves out.
pub const IMAGES: [&str; 4] =
    ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];

/// Keys that transformers reads at the top of the file for the text part, too.
const OF_THE_WHOLE: [&str; 8] = [
    "dtype",
    "torch_dtype",
    "eos_token_id",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "tie_word_embeddings",
];

/// The `config.json` of Gemma 3's text part, as transformers writes it for a text model; `None` if `config` already is
/// that of a text model.
///
/// Errors: a text part or classes other than Gemma 3's.
pub fn text_config(path: &Path, config: &Map<String, Value>) -> Result<Option<Map<String, Value>>> {
    let keys = Keys::new(path, config);
    if keys.text("model_type")? != Some("gemma3") {
        return Ok(None);
    }
    let Some(text) = keys.object("text_config.")? else {
        return Err(keys.error("has no `text_config`, which describes the text part of a `gemma3` model"));
    };
    text.only("model_type", "gemma3_text".into())?;
    let mut own = text.map().clone();
    own.insert("model_type".into(), "gemma3_text".into());
    own.remove("architectures");
    if let Some(class) = class(&keys)? {
        own.insert("architectures".into(), Value::from(vec![class]));
    }
    for key in OF_THE_WHOLE {
        own.extend(keys.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    // Losing this key would hide that the model is quantized.
    own.extend(keys.get("quantization_config").map(|value| ("quantization_config".to_owned(), value.clone())));
    Ok(Some(own))
}

/// The transformers class for the text part alone.
fn class(keys: &Keys) -> Result<Option<&'static str>> {
    const CLASSES: [(&str, &str); 3] = [
        ("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"),
        ("Gemma3ForSequenceClassification", "Gemma3TextForSequenceClassification"),
        ("Gemma3Model", "Gemma3TextModel"),
    ];
    let Some(value) = keys.get("architectures") else { return Ok(None) };
    let named = value.as_array().and_then(|list| list.first()).and_then(Value::as_str);
    match CLASSES.into_iter().find(|(whole, _)| Some(*whole) == named) {
        Some((_, text)) => Ok(Some(text)),
        None => Err(keys.invalid("architectures", CLASSES.map(|(whole, _)| whole).join(", "))),
    }
}
