//! Divides a part into splits, stratified by label, with equal texts kept together.

use super::permutation;
use sparta_plugin::task::Example;
use std::collections::HashMap;

/// Strata of a regression's numbers.
const NUMBERS: usize = 10;

/// For each example, the place of its group in the order to be divided, from 0 to 1.
///
/// Examples with equal texts form one group. Each label's groups are spread evenly over the order, in an order drawn by
/// seed, so that any share of the order has about that share of each label; the only group of a label is in the middle.
pub fn places(examples: &[Example], seed: u64, name: &str) -> Vec<f64> {
    let groups = groups(examples);
    let strata = strata(examples, &groups);
    let order = permutation(seed, "share", name, groups.len());
    let mut by_label: HashMap<&[u32], Vec<usize>> = HashMap::new();
    order.iter().for_each(|&group| by_label.entry(&strata[group]).or_default().push(group));
    let mut keys = vec![0.0; groups.len()];
    for members in by_label.values() {
        spread(members, &groups, |group, key| keys[group] = key);
    }
    // Groups at equal places keep the drawn order, as sorting is stable.
    let mut sorted = order;
    sorted.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]));
    let mut places = vec![0.0; examples.len()];
    spread(&sorted, &groups, |group, place| groups[group].iter().for_each(|&example| places[example] = place));
    places
}

/// Places each group at the middle of its share of all examples.
fn spread(order: &[usize], groups: &[Vec<usize>], mut set: impl FnMut(usize, f64)) {
    let total: usize = order.iter().map(|&group| groups[group].len()).sum();
    let mut before = 0;
    for &group in order {
        let size = groups[group].len();
        set(group, (before as f64 + size as f64 / 2.0) / total as f64);
        before += size;
    }
}

/// Groups the examples with equal texts, in order.
fn groups(examples: &[Example]) -> Vec<Vec<usize>> {
    let mut known: HashMap<Vec<&str>, usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, example) in examples.iter().enumerate() {
        let group = *known.entry(example.texts().collect()).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    groups
}

/// The stratum of each group: the label of its first example, or for a number the decile it is in.
fn strata(examples: &[Example], groups: &[Vec<usize>]) -> Vec<Vec<u32>> {
    let first = |group: &Vec<usize>| &examples[group[0]];
    let mut numbers: Vec<f64> = groups.iter().filter_map(|group| first(group).number).collect();
    numbers.sort_by(f64::total_cmp);
    let tenth = |number: f64| numbers.partition_point(|&other| other < number) * NUMBERS / numbers.len().max(1);
    let stratum = |group| match first(group) {
        Example { number: Some(number), .. } => vec![tenth(*number) as u32],
        Example { label, labels, .. } => [&[*label][..], labels].concat(),
    };
    groups.iter().map(stratum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(text: &str, label: u32) -> Example {
        Example { text: text.into(), label, ..Example::default() }
    }

    fn share(examples: &[Example], seed: u64, from: f64, to: f64) -> Vec<&Example> {
        let places = places(examples, seed, "f");
        examples.iter().zip(places).filter(|(_, place)| (from..to).contains(place)).map(|(e, _)| e).collect()
    }

    #[test]
    fn each_label_has_its_share_in_each_split() {
        let all: Vec<Example> = (0..1000).map(|i| example(&i.to_string(), u32::from(i % 10 == 0))).collect();
        let parts = [(0.0, 0.8, 800, 80), (0.8, 0.9, 100, 10), (0.9, 1.0, 100, 10)];
        for (from, to, size, rare) in parts {
            let part = share(&all, 7, from, to);
            assert_eq!(part.len(), size);
            assert_eq!(part.iter().filter(|e| e.label == 1).count(), rare);
        }
        assert_ne!(share(&all, 7, 0.8, 0.9), share(&all, 8, 0.8, 0.9), "another seed, another split");
        assert_eq!(share(&all, 7, 0.8, 0.9), share(&all, 7, 0.8, 0.9));
    }

    #[test]
    fn labels_of_few_examples_are_in_training() {
        let mut all: Vec<Example> = (0..200).map(|i| example(&i.to_string(), i % 40)).collect();
        all.push(example("alone", 77));
        let train = share(&all, 1, 0.0, 0.8);
        assert!((0..40).chain([77]).all(|label| train.iter().any(|e| e.label == label)));
        assert_eq!(share(&all, 1, 0.8, 0.9).len() + share(&all, 1, 0.9, 1.0).len(), 40);
    }

    #[test]
    fn equal_texts_stay_together() {
        let all: Vec<Example> = (0..300).map(|i| example(&(i % 100).to_string(), i % 2)).collect();
        let (train, test) = (share(&all, 3, 0.0, 0.8), share(&all, 3, 0.8, 1.0));
        assert_eq!((train.len(), test.len()), (240, 60));
        assert!(test.iter().all(|e| train.iter().all(|other| other.text != e.text)));
    }

    #[test]
    fn numbers_are_spread_by_size() {
        let number = |i: u32| Example { number: Some(f64::from(i)), ..example(&i.to_string(), 0) };
        let all: Vec<Example> = (0..100).map(number).collect();
        let test = share(&all, 3, 0.9, 1.0);
        let tenths: Vec<u32> = test.iter().filter_map(|e| e.number).map(|n| n as u32 / 10).collect();
        assert_eq!(tenths, (0..10).collect::<Vec<_>>());
    }
}
