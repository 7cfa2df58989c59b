//! Gradients of whole weights, for methods that read them between steps: computed for groups of weights, so that neither the
//! passes nor the memory are as many as the weights.

use crate::buckets::LARGEST;
use sparta_graph::ops::Concat;
use sparta_model::method::{Adaptation, Part};

/// Weights whose gradients are computed at once, and where each begins in the memory for them.
#[derive(Debug, PartialEq)]
pub struct WholeGroup {
    /// Position of a parameter, and its first element.
    pub parts: Vec<(usize, usize)>,
    /// Elements, gaps included.
    pub len: usize,
}

/// The weights whose gradients the method may read, in the order of the model: those of which it trains elements, and those that
/// it reparametrises.
pub fn whole_groups(adaptation: &Adaptation) -> Vec<WholeGroup> {
    let mut groups: Vec<WholeGroup> = Vec::new();
    if !adaptation.steps.is_some_and(|steps| steps.whole_gradients) {
        return groups;
    }
    for (position, part) in adaptation.parts.iter().enumerate() {
        if !matches!(part, Part::Sparse(_) | Part::Reparam(_)) {
            continue;
        }
        let (_, size) = Concat::layout([adaptation.parameters[position].numel() as usize]);
        match groups.last_mut() {
            Some(group) if group.len + size <= LARGEST => {
                group.parts.push((position, group.len));
                group.len += size;
            }
            _ => groups.push(WholeGroup { parts: vec![(position, 0)], len: size }),
        }
    }
    groups
}
