//! Writes a merged model as a GGUF file.

use super::merge::{MergeDtype, merged_tensor};
use super::{AppliedAdapter, Head};
use crate::gguf::{self, Architecture, Field, Fields, Gguf, Heads, TensorOut, fields};
use crate::model::{Arrangement, Decoder, Storage, from_f32};
use crate::text::Tokenizer;
use crate::train::Session;
use crate::weights::atomic_write;
use crate::{Error, Result, decoder};
use sparta_graph::{Blocks, DType, blocks};
use std::collections::BTreeMap;
use std::path::Path;

/// llama.cpp's pooling type for a classifier: the outputs of `cls.output` at the last token.
const RANK: u32 = 4;

/// Where a tensor of the file comes from.
enum Source {
    Parameter(usize, Arrangement),
    /// Values copied from the base model's file.
    Bytes(Vec<u8>),
}

/// Writes the file; returns 1 and the bytes of all tensors. Vectors are f32, as in llama.cpp's own files.
///
/// Errors: a family or a head that GGUF does not support; kept types that cannot be written; a value that the type
/// cannot hold.
pub fn write(
    applied: &AppliedAdapter,
    session: &mut Session,
    (head, pad): (&Head, Option<u32>),
    dtype: MergeDtype,
    path: &Path,
) -> Result<(usize, u64)> {
    let (decoder, base) = (&applied.decoder, &applied.adapter.model);
    let Some(architecture) = Architecture::of_family(decoder.family) else {
        return Err(Error::Usage(format!("writing GGUF files of {} is not supported", decoder.family.model_type())));
    };
    let mut metadata = fields(base, decoder)?;
    describe_head(&mut metadata, &architecture, head, pad)?;
    let heads = Heads { queries: decoder.heads as u64, keys: decoder.kv_heads as u64 };
    let (mut tensors, mut sources) = (Vec::new(), BTreeMap::new());
    for (position, parameter) in applied.adaptation.parameters.iter().enumerate() {
        let rows = parameter.shape.first().copied().unwrap_or_default();
        let named = gguf::to_gguf(&architecture, &parameter.name, rows, &heads);
        let (name, arrangement) = named.ok_or_else(|| {
            Error::Usage(format!("{} has no name in GGUF files of {}", parameter.name, architecture.name))
        })?;
        let base = applied.weights.get(&parameter.name).and_then(|view| view.blocks());
        let stored = match base.filter(|_| dtype == MergeDtype::Own) {
            Some(blocks) => Storage::Blocks(blocks),
            None => stored(dtype, dtype.of(&applied.adaptation.parameters, position), &parameter.shape),
        };
        sources.insert(name.clone(), Source::Parameter(position, arrangement));
        tensors.push(TensorOut { name, stored, shape: parameter.shape.clone() });
    }
    for (tensor, bytes) in rotations(base, decoder)? {
        sources.insert(tensor.name.clone(), Source::Bytes(bytes));
        tensors.push(tensor);
    }
    let total = tensors.iter().filter_map(|t| t.stored.bytes(t.shape.iter().product())).map(|n| n as u64).sum();
    let values = |tensor: &TensorOut| match sources.get(&tensor.name) {
        Some(Source::Bytes(bytes)) => Ok(bytes.clone()),
        Some(&Source::Parameter(position, arrangement)) => {
            let bytes = merged_tensor(session, &applied.weights, &applied.adapter.values, position, DType::F32)?;
            let values: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let columns = tensor.shape.last().copied().unwrap_or(1);
            match (dtype, tensor.stored) {
                (MergeDtype::Own, Storage::Blocks(blocks)) => {
                    let base = applied.weights.get(&applied.adaptation.parameters[position].name);
                    let changed = base.and_then(|base| base.changed_to(&values)).unwrap_or_default();
                    Ok(arrangement.arrange(blocks.bytes_of(columns).unwrap_or_default(), &changed))
                }
                _ => encode(tensor, &arrangement.apply(columns, &values)),
            }
        }
        None => Err(Error::Weights(format!("{} is missing", tensor.name))),
    };
    atomic_write(path, |out| gguf::save(out, path, &metadata, &tensors, values))?;
    check_described(applied, path)?;
    Ok((1, total))
}

/// What llama.cpp does not support in the file.
pub fn note(applied: &AppliedAdapter) -> Option<String> {
    let architecture = Architecture::of_family(applied.decoder.family)?;
    (applied.objective.pools() && !architecture.classifies()).then(|| {
        format!(
            "llama.cpp supports classifiers of {} only, not of {}; sparta-cli reads the file",
            Architecture::classifiers().join(", "),
            architecture.name
        )
    })
}

/// Reads back the model's description in the file, on which other programs rely.
///
/// Errors: a different architecture, or different tokens.
fn check_described(applied: &AppliedAdapter, path: &Path) -> Result<()> {
    let base = &applied.adapter.model;
    let unsaid = |what: &str| {
        Error::Usage(format!("GGUF has no place for {what} of {}; write a directory instead", base.display()))
    };
    let read = decoder::open(path)?;
    // These do not change what a language model computes.
    let Decoder { family, pad_token_id, bos_token_id, .. } = read;
    let expected = Decoder {
        family,
        pad_token_id,
        bos_token_id,
        eos_token_ids: read.eos_token_ids.clone(),
        labels: read.labels.clone(),
        problem_type: read.problem_type.clone(),
        initializer_range: read.initializer_range,
        dtype: read.dtype,
        reads_images: read.reads_images,
        // A classifier's file has no vocabulary head.
        tied_embeddings: if applied.objective.pools() { read.tied_embeddings } else { applied.decoder.tied_embeddings },
        ..applied.decoder.clone()
    };
    if read != expected {
        return Err(unsaid("a setting"));
    }
    let (ours, theirs) = (Tokenizer::open(path)?, Tokenizer::open(base)?);
    for text in TEXTS {
        if ours.encode(text, None)? != theirs.encode(text, None)? {
            return Err(unsaid("the tokenizer"));
        }
    }
    Ok(())
}

/// Texts on which tokenizers tend to differ.
const TEXTS: [&str; 4] = [
    "It's 2024, isn't it? I'd say SO.",
    " two  spaces,\n\n\tlines and\ttabs   ",
    "1234567 caf\u{e9} \u{4f60}\u{597d} \u{1f600} \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442}",
    "fn main() { println!(\"{:?}\", x_1 != 2.5e-3); } // https://a.b/c?d=e",
];

fn stored(dtype: MergeDtype, plain: DType, shape: &[usize]) -> Storage {
    let whole = shape.last().is_some_and(|columns| columns.is_multiple_of(Blocks::Q8_0.elements()));
    match dtype {
        _ if shape.len() < 2 => Storage::Plain(DType::F32),
        MergeDtype::Q8_0 if whole => Storage::Blocks(Blocks::Q8_0),
        MergeDtype::Q8_0 => Storage::Plain(DType::F16),
        _ => Storage::Plain(plain),
    }
}

fn encode(tensor: &TensorOut, values: &[f32]) -> Result<Vec<u8>> {
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    // The scale of a block is f16, too.
    let most = match tensor.stored {
        Storage::Plain(DType::F16) => 65504.0,
        Storage::Blocks(_) => 127.0 * 65504.0,
        Storage::Plain(_) => f32::MAX,
    };
    if largest > most {
        return Err(Error::Usage(format!(
            "{} has a value of {largest}, which f16 cannot hold; use --dtype bf16",
            tensor.name
        )));
    }
    match tensor.stored {
        Storage::Blocks(_) => Ok(blocks::encode_q8_0(values)),
        Storage::Plain(dtype) => {
            from_f32(dtype, values).ok_or_else(|| Error::Weights(format!("{} is not a float tensor", tensor.name)))
        }
    }
}

/// Describes a classifier. Errors: several labels per text, or numbers, which llama.cpp does not support.
fn describe_head(fields: &mut Fields, architecture: &Architecture, head: &Head, pad: Option<u32>) -> Result<()> {
    if !head.objective()?.pools() {
        return Ok(());
    }
    if head.objective != "classification" {
        return Err(Error::Usage(format!("GGUF has no place for a head of {}: write a directory", head.objective)));
    }
    let mut set = |key: String, field: Field| {
        fields.retain(|(known, _)| *known != key);
        fields.push((key, field));
    };
    set(format!("{}.pooling_type", architecture.name), Field::U32(RANK));
    set(format!("{}.classifier.output_labels", architecture.name), Field::Texts(head.labels.clone()));
    if let Some(pad) = pad {
        set("tokenizer.ggml.padding_token_id".into(), Field::U32(pad));
    }
    Ok(())
}

/// Frequency factors, from the base model's file or its configuration.
fn rotations(base: &Path, decoder: &Decoder) -> Result<Vec<(TensorOut, Vec<u8>)>> {
    let tensor =
        |name: &str, shape: Vec<usize>| TensorOut { name: name.into(), stored: Storage::Plain(DType::F32), shape };
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    if let Some(file) = gguf::locate(base)? {
        let gguf = Gguf::open(&file)?;
        let copied = gguf.rotations().map(|(name, view)| {
            let values = view.to_f32().unwrap_or_default();
            (tensor(name, view.shape.to_vec()), bytes(&values))
        });
        return Ok(copied.collect());
    }
    let Some(factors) = gguf::frequency_factors(decoder) else { return Ok(vec![]) };
    Ok(vec![(tensor("rope_freqs.weight", vec![factors.len()]), bytes(&factors))])
}
