//! The importance of triplets: the average sensitivity of their elements times its average uncertainty.

use sparta_plugin::Error;
use sparta_plugin::method::StepTensors;
use std::collections::BTreeMap;

pub const PARTS: [&str; 3] = ["lora_A", "lora_E", "lora_B"];

/// For each element of each added tensor, the averages of its sensitivity and uncertainty.
pub type Averages = BTreeMap<String, [Vec<f32>; 2]>;

/// What is kept between steps: averages and, after the last allocation, which singular values stay.
pub type State = (Averages, BTreeMap<String, Vec<bool>>);

/// Updates the averages of the sensitivity `|p g|` and its uncertainty.
pub fn follow(
    [sensitivity, uncertainty]: &mut [Vec<f32>; 2],
    values: &[f32],
    gradient: &[f32],
    [beta1, beta2]: [f32; 2],
) {
    for ((s, u), (p, g)) in sensitivity.iter_mut().zip(uncertainty).zip(values.iter().zip(gradient)) {
        let now = (p * g).abs();
        *s = beta1 * *s + (1.0 - beta1) * now;
        *u = beta2 * *u + (1.0 - beta2) * (now - *s).abs();
    }
}

/// Which triplets stay with a budget of `target` ranks per site plus `left` cubed of the rest.
pub fn allocate(sites: &[&String], averages: &Averages, target: u64, left: f64) -> BTreeMap<String, Vec<bool>> {
    let importance = |name: &&String| {
        let [a, e, b] = PARTS.map(|part| {
            let [s, u] = &averages[&name.replace("lora_E", part)];
            s.iter().zip(u).map(|(s, u)| s * u).collect::<Vec<f32>>()
        });
        let r = e.len();
        let mean = |values: &mut dyn Iterator<Item = &f32>, n: usize| values.sum::<f32>() * r as f32 / n as f32;
        let row = |i| a.iter().skip(i * a.len() / r).take(a.len() / r);
        let of = |i| e[i] + mean(&mut row(i), a.len()) + mean(&mut b.iter().skip(i).step_by(r), b.len());
        (name.to_string(), (0..r).map(of).collect::<Vec<f32>>())
    };
    let scores: BTreeMap<String, Vec<f32>> = sites.iter().map(importance).collect();
    let mut all: Vec<f32> = scores.values().flatten().copied().collect();
    all.sort_by(f32::total_cmp);
    let (ranks, target) = (all.len() as f64, (target * sites.len() as u64) as f64);
    let less = (ranks - ((ranks - target) * left.powi(3) + target).floor()) as usize;
    let threshold = less.checked_sub(1).map_or(f32::NEG_INFINITY, |at| all[at]);
    let stay = |scores: Vec<f32>| scores.iter().map(|&score| score > threshold).collect();
    scores.into_iter().map(|(name, scores)| (name, stay(scores))).collect()
}

/// Sets the singular values that do not stay to zero.
pub fn mask(tensors: &mut dyn StepTensors, kept: &BTreeMap<String, Vec<bool>>) -> Result<(), Error> {
    for (name, kept) in kept {
        let mut values = tensors.values(name)?;
        values.iter_mut().zip(kept).for_each(|(x, &kept)| *x *= f32::from(u8::from(kept)));
        tensors.set(name, &values)?;
    }
    Ok(())
}
