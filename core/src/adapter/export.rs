use super::gguf_lora::GgufLora;
use super::native::{read_manifest, save_manifest, save_values};
use super::patch::Patch;
use super::peft::{Lora, LoraExport, LoraLayer, SparseExport};
use super::{AppliedAdapter, Head, Kind, Manifest, sparse_deltas};
use crate::method::TrainMode;
use crate::{Error, Result, files};
use std::collections::BTreeMap;
use std::path::Path;

/// An export format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// PEFT's directory: LoRA for LoRA, Super-Tuning for single elements.
    Peft,
    /// `sparse_deltas.safetensors` of peft-sparta.
    SparseDeltas,
    /// The new values where they differ, as TRL and vLLM read them.
    Patch,
    /// LoRA in a GGUF file, as llama.cpp's `--lora` reads it.
    Gguf,
    /// Our own format with the index sets stored, so that loading draws nothing.
    WithIndices,
}

/// Writes an adapter in another format into the new directory `out`.
///
/// Returns notes for the user. Errors: a format that cannot hold this adapter; `out` already exists.
pub fn export(applied: &AppliedAdapter, format: ExportFormat, out: &Path) -> Result<Vec<String>> {
    if files::exists(out) {
        return Err(Error::Usage(format!("{} already exists; give another --out, or remove it", out.display())));
    }
    let adapter = &applied.adapter;
    let one_head = || match &adapter.heads[..] {
        [head] => Ok(head),
        heads => Err(Error::Usage(format!("the adapter has {} heads, this format holds one", heads.len()))),
    };
    let mut notes = Vec::new();
    match format {
        ExportFormat::Peft => {
            let head = one_head()?;
            peft(applied, head, out)?;
            notes.extend(unsaid_in_peft(applied, head)?);
        }
        ExportFormat::SparseDeltas => {
            let (values, pad) = (&adapter.values, applied.pad()?);
            sparse_deltas::write(out, &applied.adaptation, values, &adapter.model, one_head()?, pad)?;
        }
        ExportFormat::Patch => {
            let (adaptation, values, weights) = (&applied.adaptation, &adapter.values, &applied.weights);
            Patch { adaptation, values, weights, head: one_head()? }.write(out)?;
        }
        ExportFormat::Gguf => {
            if !applied.adaptation.index_sets().is_empty() {
                return Err(Error::Usage(format!(
                    "{0}: llama.cpp's adapters hold LoRA layers, not single elements; merge it into a model: \
                     sparta-cli adapter merge {0} --out MODEL.gguf",
                    adapter.dir.display()
                )));
            }
            let lora = lora(applied)?;
            let AppliedAdapter { adapter, decoder, .. } = applied;
            GgufLora { lora: &lora, values: &adapter.values, head: one_head()?, decoder }.write(out)?;
        }
        ExportFormat::WithIndices => with_indices(applied, out)?,
    }
    Ok(notes)
}

fn peft(applied: &AppliedAdapter, head: &Head, out: &Path) -> Result<()> {
    let AppliedAdapter { adapter, adaptation, weights, decoder, .. } = applied;
    let (values, model) = (&adapter.values, &*adapter.model);
    if !adaptation.index_sets().is_empty() {
        return SparseExport { adaptation, values, weights, head, model, decoder }.write(out);
    }
    let lora = lora(applied)?;
    let dropout = match &adapter.kind {
        Kind::Native(manifest) => manifest.options.get("lora-dropout").and_then(|v| v.as_f64()),
        _ => None,
    };
    LoraExport { lora: &lora, values, head, model, decoder, dropout: dropout.unwrap_or(0.0) }.write(out)
}

/// Notes on what neither PEFT's directory nor the base model can store.
fn unsaid_in_peft(applied: &AppliedAdapter, head: &Head) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if let Some(pad) = applied.pad()?.filter(|_| applied.decoder.pad_token_id.is_none()) {
        notes.push(format!(
            "the format has no place for the padding token, and the config.json of the base model has none: set \
             `model.config.pad_token_id = {pad}` in Python, as the adapter was trained with it"
        ));
    }
    if !head.labels.is_empty() && !head.unnamed() && head.labels != applied.decoder.labels {
        let labels = serde_json::to_string(&head.labels).map_err(|e| Error::Weights(e.to_string()))?;
        notes.push(format!(
            "PEFT has no place for the names of the classes: load the base model with \
             `id2label=dict(enumerate({labels}))` in Python (sparta-cli reads them from the adapter)"
        ));
    }
    Ok(notes)
}

fn with_indices(applied: &AppliedAdapter, out: &Path) -> Result<()> {
    let adapter = &applied.adapter;
    if !matches!(adapter.kind, Kind::Native(_)) {
        return Err(Error::Usage(format!(
            "{} is not an adapter of our own format; every command reads it as it is, and any indices are already \
             stored in it",
            adapter.dir.display()
        )));
    }
    let sets = applied.adaptation.index_sets();
    if sets.is_empty() {
        return Err(Error::Usage(format!("{} trains no single elements, so it has no indices", adapter.dir.display())));
    }
    let indices = sets.into_iter().map(|(name, set)| (name.to_owned(), set.indices.clone())).collect();
    let shapes: BTreeMap<_, _> = applied.adaptation.stored().into_iter().map(|t| (t.name, t.shape)).collect();
    let mut manifest: Manifest = read_manifest(&adapter.dir)?;
    manifest.values_sha256 = save_values(out, &manifest.format, &adapter.values, &shapes, &indices)?;
    save_manifest(out, &manifest)
}

/// The adapter's layers, if it consists of LoRA layers and a head.
fn lora(applied: &AppliedAdapter) -> Result<Lora> {
    if let Kind::Peft(lora) = &applied.adapter.kind {
        return Ok(lora.clone());
    }
    let refuse = |what: String| {
        let dir = applied.adapter.dir.display();
        Error::Usage(format!("{dir}: {what}; PEFT's formats hold LoRA layers, or single elements of linear layers"))
    };
    let manifest = match &applied.adapter.kind {
        Kind::Native(manifest) if manifest.method == "lora" => manifest,
        _ => return Err(refuse("it trains neither LoRA layers nor single elements".into())),
    };
    let alpha = manifest.options.get("lora-alpha").and_then(|v| v.as_f64());
    let alpha = alpha.ok_or_else(|| refuse("its manifest has no `lora-alpha`".into()))?;
    let stabilised = manifest.options.get("lora-rs").and_then(|v| v.as_bool()) == Some(true);
    let mut layers = BTreeMap::new();
    for (parameter, part) in applied.adaptation.parameters.iter().zip(&applied.adaptation.modes) {
        let TrainMode::Reparam(tensors) = part else { continue };
        let shapes: Vec<(&str, &[usize])> = tensors.iter().map(|t| (&*t.name, &*t.shape)).collect();
        let [("lora_A", &[r, input]), ("lora_B", &[output, _])] = shapes[..] else {
            return Err(refuse(format!("{} has tensors other than lora_A and lora_B", parameter.name)));
        };
        // The stored layer's scale is alpha / r.
        let alpha = if stabilised { alpha * (r as f64).sqrt() } else { alpha };
        layers.insert(parameter.name.clone(), LoraLayer { r, alpha, input, output });
    }
    Ok(Lora { layers })
}
