//! Trained values in a few flat tensors ("buckets"), so that an update takes a few launches instead of several per
//! tensor.
//!
//! Gradients, optimizer slots and, with micro-batches, gradient sums are in tensors of the same layout. Trained tensors
//! are ranges of their bucket, which plans bind like separate tensors.

use crate::Result;
use crate::optimizer::{Optimization, RatesOf};
use crate::tensors::MemoryKind;
use sparta_graph::ops::Concat;
use sparta_graph::{Graph, Value};
use sparta_model::method::{Form, Trained};

/// The most elements of a bucket, unless a single tensor is larger: 64 MiB of f32, which is less than any device
/// can bind at once. It must not depend on the device, since random rounding draws by the position in the bucket.
pub(crate) const LARGEST: usize = 1 << 24;

/// A flat tensor of trained values.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    /// The number in its tensors' names.
    pub number: usize,
    pub kind: MemoryKind,
    /// Where the rates of all its tensors come from.
    pub rates: RatesOf,
    pub parts: Vec<BucketPart>,
    /// Elements, including gaps between the parts.
    pub len: usize,
    /// How many parts the buckets before this one have.
    pub first: usize,
}

/// A trained tensor and the element at which it begins in its bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct BucketPart {
    pub trained: Trained,
    pub begin: usize,
}

impl Bucket {
    pub fn values(&self) -> String {
        format!("bucket.{}", self.number)
    }

    pub fn slot(&self, slot: &str) -> String {
        format!("bucket.{}.{slot}", self.number)
    }

    pub fn gradient_sums(&self) -> String {
        format!("bucket.{}.gradient", self.number)
    }

    /// Receives the gradients of other processes.
    pub fn incoming_gradients(&self) -> String {
        format!("bucket.{}.incoming", self.number)
    }

    /// The name of the table of its parts, for [`sparta_graph::ops::SumOfSquares`].
    pub fn table(&self) -> String {
        format!("bucket.{}.parts", self.number)
    }

    /// Start and length of each part.
    pub fn ranges(&self) -> Vec<u32> {
        self.parts.iter().flat_map(|part| [part.begin as u32, part.trained.numel() as u32]).collect()
    }
}

/// Groups trained tensors into buckets by kind and source of rates, in their order.
pub fn buckets(trained: Vec<Trained>, optimization: &Optimization) -> Vec<Bucket> {
    let mut collected: Vec<(MemoryKind, RatesOf, Vec<Trained>)> = Vec::new();
    for tensor in trained {
        let kind = if tensor.form == Form::Dense { MemoryKind::Weights } else { MemoryKind::Adapter };
        let rates = optimization.group_of(&tensor);
        let size = |tensors: &[Trained]| Concat::layout(tensors.iter().map(Trained::numel)).1;
        let open = collected.iter_mut().rev().find(|(k, r, _)| (*k, *r) == (kind, rates));
        match open.filter(|(_, _, tensors)| size(tensors) + tensor.numel() <= LARGEST) {
            Some((_, _, tensors)) => tensors.push(tensor),
            None => collected.push((kind, rates, vec![tensor])),
        }
    }
    let mut first = 0;
    let laid_out = collected.into_iter().enumerate().map(|(number, (kind, rates, tensors))| {
        let (begins, len) = Concat::layout(tensors.iter().map(Trained::numel));
        let parts: Vec<BucketPart> =
            tensors.into_iter().zip(begins).map(|(trained, begin)| BucketPart { trained, begin }).collect();
        first += parts.len();
        Bucket { number, kind, rates, len, first: first - parts.len(), parts }
    });
    laid_out.collect()
}

/// The gradients of all parts, in their order, as one tensor per bucket.
pub(crate) fn join(graph: &mut Graph, buckets: &[Bucket], gradients: &[Value]) -> Result<Vec<Value>> {
    let of = |bucket: &Bucket| &gradients[bucket.first..bucket.first + bucket.parts.len()];
    buckets.iter().map(|bucket| Ok(graph.one(Concat {}, of(bucket))?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::Group;

    fn trained(name: &str, shape: &[usize], form: Form) -> Trained {
        Trained { name: name.into(), shape: shape.to_vec(), parameter: 0, form, rates: Default::default() }
    }

    #[test]
    fn tensors_of_a_kind_and_group_share_buckets() {
        let tensors = vec![
            trained("a", &[100], Form::Sparse),
            trained("norm.b", &[3], Form::Sparse),
            trained("c", &[64], Form::Sparse),
            trained("large", &[1 << 12, 1 << 12], Form::Sparse),
            trained("d", &[1], Form::Sparse),
            trained("head", &[2, 3], Form::Dense),
        ];
        let group = Group { pattern: "norm*".into(), lr_factor: 1.0, weight_decay: Some(0.0) };
        let buckets = buckets(tensors, &Optimization { groups: vec![group], ..Default::default() });
        let names: Vec<Vec<&str>> =
            buckets.iter().map(|b| b.parts.iter().map(|part| &*part.trained.name).collect()).collect();
        assert_eq!(names, [vec!["a", "c"], vec!["norm.b"], vec!["large"], vec!["d"], vec!["head"]]);
        assert_eq!(buckets[0].ranges(), [0, 100, 128, 64]);
        assert_eq!(buckets.iter().map(|b| b.len).collect::<Vec<_>>(), [192, 64, 1 << 24, 64, 64]);
        assert_eq!(buckets.iter().map(|b| b.first).collect::<Vec<_>>(), [0, 2, 3, 4, 5]);
        assert_eq!((buckets[1].rates, buckets[4].kind), (RatesOf::Group(0), MemoryKind::Weights));
    }
}
