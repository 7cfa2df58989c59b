//! Exports LoRA layers as a GGUF file for llama.cpp.

use super::Head;
use super::peft::Lora;
use crate::gguf::{self, Architecture, Field, Fields, GgufFile, Heads, TensorOut};
use crate::method::adaptation::extra_name;
use crate::model::{Arrangement, Decoder, Storage};
use crate::weights::atomic_write;
use crate::{Error, Result, files};
use sparta_graph::DType;
use std::collections::BTreeMap;
use std::path::Path;

/// The contents of the file.
pub struct GgufLora<'a> {
    pub lora: &'a Lora,
    pub values: &'a BTreeMap<String, Vec<f32>>,
    pub head: &'a Head,
    pub decoder: &'a Decoder,
}

/// A tensor with its encoded values.
type Layer = (TensorOut, Vec<u8>);

impl GgufLora<'_> {
    /// Writes the file and reads it back.
    ///
    /// Errors: an adapter with a head, for which the format has no place; a family that llama.cpp does not support; a
    /// file that reads back differently.
    pub fn write(&self, out: &Path) -> Result<()> {
        if !self.head.labels.is_empty() || self.head.objective()?.pools() {
            return Err(Error::Usage(
                "llama.cpp's adapters have no place for a head: only adapters of language models can be exported"
                    .into(),
            ));
        }
        let family = self.decoder.family;
        let architecture = Architecture::of_family(family)
            .ok_or_else(|| Error::Usage(format!("writing GGUF files of {} is not supported", family.model_type())))?;
        // The file has one alpha: layers with a different scale have it folded into B.
        let alpha = self.lora.layers.values().map(|layer| layer.alpha).find(|&alpha| alpha != 0.0).unwrap_or(1.0);
        let layers = self.layers(&architecture, alpha)?;
        let text = |text: &str| Field::Text(text.into());
        let fields: Fields = vec![
            ("general.architecture".into(), text(architecture.name)),
            ("general.type".into(), text("adapter")),
            ("adapter.type".into(), text("lora")),
            ("adapter.lora.alpha".into(), Field::F32(alpha as f32)),
        ];
        let tensors: Vec<TensorOut> = layers.iter().map(|(tensor, _)| tensor.clone()).collect();
        let bytes: BTreeMap<&str, &Vec<u8>> = layers.iter().map(|(t, bytes)| (t.name.as_str(), bytes)).collect();
        let of = |tensor: &TensorOut| {
            let found = bytes.get(tensor.name.as_str()).map(|bytes| (*bytes).clone());
            found.ok_or_else(|| Error::Weights(format!("{} is missing", tensor.name)))
        };
        if let Some(parent) = out.parent() {
            files::create_dirs(parent).map_err(Error::io(parent))?;
        }
        atomic_write(out, |file| gguf::save(file, out, &fields, &tensors, of))?;
        check(out, &layers)
    }

    fn layers(&self, architecture: &Architecture, alpha: f64) -> Result<Vec<Layer>> {
        let heads = Heads { queries: self.decoder.heads as u64, keys: self.decoder.kv_heads as u64 };
        let mut found = Vec::new();
        for (parameter, layer) in &self.lora.layers {
            let (name, arrangement) =
                gguf::to_gguf(architecture, parameter, layer.output, &heads).ok_or_else(|| {
                    Error::Usage(format!("{parameter} has no name in GGUF files of {}", architecture.name))
                })?;
            if parameter.contains("embed_tokens") {
                return Err(Error::Usage(
                    "GGUF lays out LoRA of embeddings differently, which is not supported".into(),
                ));
            }
            for (tensor, (end, arrangement, factor)) in layer
                .tensors()
                .into_iter()
                .zip([("lora_a", Arrangement::None, 1.0), ("lora_b", arrangement, layer.alpha / alpha)])
            {
                let own = extra_name(parameter, &tensor);
                let values = self.values.get(&own).ok_or_else(|| Error::Weights(format!("{own} is missing")))?;
                let columns = tensor.shape.last().copied().unwrap_or(1);
                let mut values = arrangement.apply(columns, values);
                values.iter_mut().for_each(|value| *value *= factor as f32);
                let stored = Storage::Plain(DType::F32);
                let out = TensorOut { name: format!("{name}.{end}"), stored, shape: tensor.shape };
                found.push((out, values.iter().flat_map(|value| value.to_le_bytes()).collect()));
            }
        }
        Ok(found)
    }
}

/// Errors: the file does not hold these tensors.
fn check(path: &Path, layers: &[Layer]) -> Result<()> {
    let file = GgufFile::open(path)?;
    for (tensor, bytes) in layers {
        let same = file.get(&tensor.name).is_some_and(|(entry, read)| {
            (entry.stored, &entry.shape, read) == (tensor.stored, &tensor.shape, &bytes[..])
        });
        if !same {
            return Err(Error::Weights(format!(
                "{}: `{}` does not read back as written; the disk may be damaged",
                path.display(),
                tensor.name
            )));
        }
    }
    Ok(())
}
