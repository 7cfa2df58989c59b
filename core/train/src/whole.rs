//! Gradients of whole weights, for methods that read them between steps. They are computed for one group of weights at
//! a time, which limits both the memory and the number of passes.

use crate::buckets::LARGEST;
use sparta_graph::ops::Concat;
use sparta_model::method::{Adaptation, TrainMode};

/// Weights whose gradients are computed together, and where each begins in the memory for them.
#[derive(Debug, PartialEq)]
pub struct WholeGroup {
    /// The position of each parameter, and its first element.
    pub parts: Vec<(usize, usize)>,
    /// Elements, including gaps.
    pub len: usize,
}

/// The weights whose gradients the method may read, in the order of the model: those with trained elements, and those
/// that it reparametrizes.
pub fn whole_groups(adaptation: &Adaptation) -> Vec<WholeGroup> {
    let mut groups: Vec<WholeGroup> = Vec::new();
    if !adaptation.steps.is_some_and(|steps| steps.whole_gradients) {
        return groups;
    }
    for (position, part) in adaptation.modes.iter().enumerate() {
        if !matches!(part, TrainMode::Sparse(_) | TrainMode::Reparam(_)) {
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
