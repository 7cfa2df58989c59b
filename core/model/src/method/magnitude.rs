//! Index sets by magnitude: of the weights, or of scores.

use super::IndexSet;
use crate::{Error, Result, WeightSource};
use sparta_plugin::method::{Magnitude, Order, Parameter, Scope};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// How many elements of `numel` are chosen.
pub fn count(share: f64, numel: u64) -> u64 {
    ((share * numel as f64).round() as u64).clamp(1, numel.max(1))
}

/// How many elements of a tensor of `numel` are chosen, if each tensor gets its share.
pub fn expected(Magnitude { share, scope, .. }: Magnitude, numel: u64) -> u64 {
    match scope {
        Scope::Group(size) if size > 0 => numel / size as u64 * count(share, size as u64),
        _ => count(share, numel),
    }
}

/// The values of a weight.
///
/// Errors: a tensor that the model does not have yet.
pub fn stored(weights: &dyn WeightSource, parameter: &Parameter) -> Result<Vec<f32>> {
    let name = &parameter.name;
    let view = weights.get(name).and_then(|view| view.to_f32());
    weights.forget(name);
    view.ok_or_else(|| Error::Method(format!("{name} is new: its elements have no magnitudes yet")))
}

/// The index set of each tensor; tensors are compared with each other if their scope is the model. `values` gives
/// the values of a tensor's elements, the same on every call.
///
/// Errors: those of `values`; groups that do not divide a row.
pub fn index_sets(
    mut values: impl FnMut(&Parameter) -> Result<Vec<f32>>,
    chosen: &[(&Parameter, Magnitude)],
) -> Result<Vec<IndexSet>> {
    let mut limits: BTreeMap<(u64, Order), Limit> = BTreeMap::new();
    for (_, magnitude) in chosen.iter().filter(|(_, magnitude)| magnitude.scope == Scope::Model) {
        let alike = || chosen.iter().filter(|(_, other)| other == magnitude).map(|(parameter, _)| *parameter);
        if let Entry::Vacant(place) = limits.entry((magnitude.share.to_bits(), magnitude.order)) {
            let total = alike().map(Parameter::numel).sum();
            let each = |see: &mut dyn FnMut(u32)| {
                alike().try_for_each(|parameter| {
                    ranks(values(parameter)?, magnitude.order).into_iter().for_each(&mut *see);
                    Ok(())
                })
            };
            place.insert(Limit::find(count(magnitude.share, total), each)?);
        }
    }
    let of_one = |(parameter, magnitude): &(&Parameter, Magnitude)| {
        let ranks = ranks(values(parameter)?, magnitude.order);
        let indices = match magnitude.scope {
            Scope::Model => {
                let limit = limits.get_mut(&(magnitude.share.to_bits(), magnitude.order));
                limit.map(|limit| limit.take(&ranks)).unwrap_or_default()
            }
            Scope::Tensor => whole(magnitude.share, &ranks)?,
            Scope::Group(size) => groups(parameter, size, magnitude.share, &ranks)?,
        };
        Ok(IndexSet { tensor: parameter.name.clone(), numel: parameter.numel(), indices })
    };
    chosen.iter().map(of_one).collect()
}

/// The rank of each element, smaller for those chosen first: the bits of |x|, or their complement.
fn ranks(values: Vec<f32>, order: Order) -> Vec<u32> {
    let rank = |value: f32| match order {
        Order::Smallest => value.abs().to_bits(),
        Order::Largest => !value.abs().to_bits(),
    };
    values.into_iter().map(rank).collect()
}

fn whole(share: f64, ranks: &[u32]) -> Result<Vec<u32>> {
    let mut limit = Limit::find(count(share, ranks.len() as u64), |see| {
        ranks.iter().copied().for_each(see);
        Ok(())
    })?;
    Ok(limit.take(ranks))
}

fn groups(parameter: &Parameter, size: usize, share: f64, ranks: &[u32]) -> Result<Vec<u32>> {
    let row = parameter.shape.last().copied().unwrap_or(0);
    if size == 0 || row % size != 0 {
        let name = &parameter.name;
        return Err(Error::Method(format!(
            "groups of {size} do not divide the rows of {name}, which have {row} elements"
        )));
    }
    let keep = count(share, size as u64) as usize;
    let mut indices = Vec::with_capacity(ranks.len() / size * keep);
    for (group, ranks) in ranks.chunks(size).enumerate() {
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by_key(|&i| (ranks[i], i));
        order.truncate(keep);
        order.sort_unstable();
        indices.extend(order.into_iter().map(|i| (group * size + i) as u32));
    }
    Ok(indices)
}

/// The rank up to which elements are chosen: all below it, and the first few of those that have it.
struct Limit {
    rank: u32,
    ties: u64,
}

impl Limit {
    /// Finds the limit for the `count` smallest ranks. `each` visits all ranks twice: to count upper halves, then lower
    /// ones.
    fn find(count: u64, mut each: impl FnMut(&mut dyn FnMut(u32)) -> Result<()>) -> Result<Limit> {
        let mut upper = vec![0u64; 1 << 16];
        each(&mut |rank| upper[(rank >> 16) as usize] += 1)?;
        let (high, left) = bucket(&upper, count);
        let mut lower = vec![0u64; 1 << 16];
        each(&mut |rank| {
            if rank >> 16 == high {
                lower[(rank & 0xffff) as usize] += 1;
            }
        })?;
        let (low, ties) = bucket(&lower, left);
        Ok(Limit { rank: high << 16 | low, ties })
    }

    /// The elements chosen among these ranks; uses up ties for later calls.
    fn take(&mut self, ranks: &[u32]) -> Vec<u32> {
        let mut chosen = Vec::new();
        for (i, &rank) in (0..).zip(ranks) {
            if rank < self.rank || (rank == self.rank && self.ties > 0) {
                self.ties -= u64::from(rank == self.rank);
                chosen.push(i);
            }
        }
        chosen
    }
}

/// The bucket with the `count`-th element, and how many elements of that bucket remain to be counted.
fn bucket(counts: &[u64], count: u64) -> (u32, u64) {
    let mut left = count;
    for (i, &n) in (0..).zip(counts) {
        if n >= left {
            return (i, left);
        }
        left -= n;
    }
    (u32::from(u16::MAX), left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorView;
    use sparta_graph::DType;
    use sparta_plugin::method::Role;

    /// Two tensors of 2 x 4 numbers, as bytes.
    struct Two([Vec<u8>; 2]);

    impl WeightSource for Two {
        fn origin(&self) -> String {
            "memory".into()
        }

        fn names(&self) -> Vec<&str> {
            vec!["a", "b"]
        }

        fn get(&self, name: &str) -> Option<TensorView<'_>> {
            let bytes = &self.0[["a", "b"].iter().position(|known| *known == name)?];
            Some(TensorView::new(DType::F32, &[2, 4], bytes))
        }
    }

    fn chosen(scope: Scope, order: Order, share: f64) -> Vec<Vec<u32>> {
        let numbers: [[f32; 8]; 2] =
            [[0.5, -3.0, 1.0, 2.0, -0.25, 1.0, 1.0, 8.0], [-0.125, 0.0, 1.0, -1.0, 16.0, 4.0, 0.75, 0.0]];
        let weights = Two(numbers.map(|numbers| numbers.iter().flat_map(|x| x.to_le_bytes()).collect()));
        let parameter = |name: &str| Parameter {
            name: name.into(),
            shape: vec![2, 4],
            dtype: DType::F32,
            role: Role::QProj,
            layer: None,
        };
        let (a, b) = (parameter("a"), parameter("b"));
        let magnitude = Magnitude { share, order, scope };
        let sets = index_sets(|p| stored(&weights, p), &[(&a, magnitude), (&b, magnitude)]).unwrap();
        sets.into_iter().map(|set| set.indices).collect()
    }

    #[test]
    fn elements_are_compared_within_their_scope() {
        use Order::*;
        assert_eq!(chosen(Scope::Tensor, Largest, 0.375), [vec![1, 3, 7], vec![2, 4, 5]]);
        assert_eq!(chosen(Scope::Tensor, Smallest, 0.25), [vec![0, 4], vec![1, 7]]);
        assert_eq!(chosen(Scope::Model, Largest, 0.25), [vec![1, 7], vec![4, 5]]);
        assert_eq!(chosen(Scope::Model, Largest, 0.4375), [vec![1, 2, 3, 5, 7], vec![4, 5]], "the first of equal ones");
        assert_eq!(chosen(Scope::Group(2), Largest, 0.5), [vec![1, 3, 5, 7], vec![0, 2, 4, 6]]);
        assert_eq!(chosen(Scope::Tensor, Largest, 1.0), [(0..8).collect::<Vec<u32>>(), (0..8).collect()]);
        assert_eq!(chosen(Scope::Tensor, Largest, 1e-9), [vec![7], vec![4]], "one at least");
    }
}
