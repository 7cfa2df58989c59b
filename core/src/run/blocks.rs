//! Which weights of a run are in blocks on the device.

use crate::method::Adaptation;
use crate::model::Quantize;
use crate::weights::Weights;
use sparta_graph::{Blocks, memory_size};
use sparta_plugin::method::{Parameter, Role};
use std::collections::BTreeMap;

/// The blocks of a parameter: those that it is stored in, or else those that quantizing rounds it to.
pub fn blocks_of(parameter: &Parameter, quantize: Option<Quantize>, stored: Option<&Weights>) -> Option<Blocks> {
    let own = stored.and_then(|weights| weights.get(&parameter.name)?.blocks());
    own.or_else(|| quantize?.of(&parameter.name, &parameter.shape))
}

/// Marks the parameters that will be in blocks, for a model whose weights are not read: those that `stored`, if given,
/// has in blocks, and those that will be quantized.
pub fn expect_blocks(adaptation: &mut Adaptation, quantize: Option<Quantize>, stored: Option<&Weights>) {
    let decoded = adaptation.precision.activations;
    let blocks = |parameter: &Parameter| blocks_of(parameter, quantize, stored);
    let of_blocks = adaptation.parameters.iter_mut().filter(|parameter| blocks(parameter).is_some());
    of_blocks.for_each(|parameter| parameter.dtype = decoded);
    adaptation.keep_blocks(blocks);
}

/// Which weights are quantized, what they take on the device, and which are decoded anyway.
pub fn quantized_note(adaptation: &Adaptation) -> Option<String> {
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut stored, mut decoded, mut largest) = (0, 0, 0);
    // Otherwise the embedding is the vocabulary head, too.
    let has_head = adaptation.parameters.iter().any(|p| matches!(p.role, Role::Head | Role::LmHead));
    for (position, parameter) in adaptation.parameters.iter().enumerate() {
        let Some(blocks) = adaptation.blocks_of(position) else { continue };
        *kept.entry(blocks.name()).or_default() += 1;
        let values = parameter.numel() * adaptation.device_dtype(position).size() as u64;
        stored += adaptation.device_type(position).bytes() as u64;
        decoded += values;
        largest = largest.max(if parameter.role == Role::Embedding && has_head { 0 } else { values });
    }
    let others = adaptation.formats.len() - kept.values().sum::<usize>();
    let types: Vec<String> = kept.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let mut note = format!(
        "quantized weights stay quantized on the device: {}, {} instead of {}; products decode one matrix at a time, \
         of up to {}",
        types.join(", "),
        memory_size(stored),
        memory_size(decoded),
        memory_size(largest)
    );
    if kept.is_empty() {
        note = "quantized weights are decoded on the device".to_owned();
    }
    if others > 0 {
        note += &format!("; {others} are kept decoded, as what is trained in them requires");
    }
    (!adaptation.formats.is_empty()).then_some(note)
}
