//! AdaLoRA (Zhang et al., 2023): `y = x W^T + (alpha / r) x (E A)^T B^T` with singular values E that are set to zero where the
//! importance of their triplets is small, until the run has its budget of ranks, as PEFT's `AdaLoraConfig` has it for q and v.
//! The penalty on A and B that are not orthogonal is left out (`orth_reg_weight` 0).

use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Add, Layout, Linear, Mul};
use sparta_plugin::method::*;
use std::collections::BTreeMap;

struct AdaLora;

sparta_plugin::export_method!(AdaLora);

/// What is kept between steps: of each element of each added tensor the averages of its sensitivity and uncertainty; and which
/// singular values stay, from the end of the allocation on.
type State = (BTreeMap<String, [Vec<f32>; 2]>, BTreeMap<String, Vec<bool>>);

const PARTS: [&str; 3] = ["lora_A", "lora_E", "lora_B"];

impl Method for AdaLora {
    fn describe(&self) -> MethodInfo {
        let int =
            |name, help, min, default: u64| OptionInfo::new(name, help, OptionKind::Int { min, max: 1 << 20 }, default);
        let beta = || OptionKind::Float { min: 0.0, max: 0.999_999, min_open: true };
        let alpha = OptionKind::Float { min: 0.0, max: 1e6, min_open: true };
        MethodInfo {
            name: "adalora".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "AdaLoRA: low-rank changes of q and v with a budget of ranks".into(),
            options: vec![
                int("init-r", "Rank of each layer at first", 1, 12),
                int("target-r", "Average rank at the end", 1, 8),
                OptionInfo::new("adalora-alpha", "Scale: additions count alpha / init-r", alpha, 16.0),
                int("tinit", "Steps before ranks are taken away", 0, 0),
                int("tfinal", "Steps of the end in which ranks stay", 0, 0),
                int("delta-t", "Steps between allocations", 1, 1),
                OptionInfo::new("ipt-beta1", "Decay of the average sensitivity", beta(), 0.85),
                OptionInfo::new("ipt-beta2", "Decay of the average uncertainty", beta(), 0.85),
            ],
            default_lr: 1e-3,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let r = number(options, "init-r")? as usize;
        if number(options, "target-r")? > r as f64 {
            return Err(Error::new("--target-r is larger than --init-r: ranks are only taken away"));
        }
        let normal = Init::Normal { std: 0.02 };
        let choose = |p: &Parameter| match (p.role, &p.shape[..]) {
            (Role::Head, _) => Selection::Dense,
            (Role::QProj | Role::VProj, &[out, input]) => Selection::Reparam {
                tensors: vec![
                    ExtraTensor::new("lora_A", [r, input], normal),
                    ExtraTensor::new("lora_E", [r, 1], Init::Zeros),
                    ExtraTensor::new("lora_B", [out, r], normal),
                ],
            },
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }

    fn forward(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let &[a, e, b] = extra else { return Err(Error::new("expected A, E and B")) };
        let y = graph.one(Linear::plain(Layout::Nt), &[x, w])?;
        let scaled = graph.one(Mul {}, &[a, e])?;
        let down = graph.one(Linear::plain(Layout::Nt), &[x, scaled])?;
        let change = graph.one(Linear { scale: scale(site)?, ..Linear::plain(Layout::Nt) }, &[down, b])?;
        graph.one(Add {}, &[y, change])
    }

    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let &[a, e, b] = extra else { return Err(Error::new("expected A, E and B")) };
        let scaled = graph.one(Mul {}, &[a, e])?;
        let change = graph.one(Linear { scale: scale(site)?, ..Linear::plain(Layout::Nn) }, &[b, scaled])?;
        graph.one(Add {}, &[change, w])
    }

    fn steps(&self, _: &Options) -> Result<Option<Steps>, Error> {
        Ok(Some(Steps { every: 1, gradients: true, whole_gradients: false }))
    }

    fn on_step(&self, step: &StepInfo, tensors: &mut dyn StepTensors) -> Result<serde_json::Value, Error> {
        let json = |e: serde_json::Error| Error::new(e.to_string());
        let whole = |name| number(&step.options, name).map(|n| n as u64);
        let (tinit, last) = (whole("tinit")?, step.total_steps.saturating_sub(whole("tfinal")?));
        let state: Option<State> = serde_json::from_value(step.state.clone()).map_err(json)?;
        let (mut averages, mut kept) = state.unwrap_or_default();
        let named = |end: &str| step.tensors.iter().map(|t| &t.name).filter(|n| n.ends_with(end)).collect::<Vec<_>>();
        if step.step < last {
            let betas = [number(&step.options, "ipt-beta1")? as f32, number(&step.options, "ipt-beta2")? as f32];
            for name in PARTS.into_iter().flat_map(named) {
                let (values, gradient) = (tensors.values(name)?, tensors.gradient(name)?);
                let zeros = || [vec![0.0; values.len()], vec![0.0; values.len()]];
                follow(averages.entry(name.clone()).or_insert_with(zeros), &values, &gradient, betas);
            }
        }
        let due = step.step > tinit && step.step < last && step.step.is_multiple_of(whole("delta-t")?);
        if due || step.step == last {
            let sites = named("lora_E");
            let [ranks, target] = [whole("init-r")?, whole("target-r")?].map(|r| (r * sites.len() as u64) as f64);
            let (done, span) = (step.step as f64 - tinit as f64, last as f64 - tinit as f64);
            let left = if span > 0.0 { (1.0 - done / span).powi(3) } else { 1.0 };
            kept = allocate(&sites, &averages, (ranks - ((ranks - target) * left + target).floor()) as usize);
        }
        for (name, kept) in &kept {
            let mut values = tensors.values(name)?;
            values.iter_mut().zip(kept).for_each(|(x, &kept)| *x *= f32::from(u8::from(kept)));
            tensors.set(name, &values)?;
        }
        let state: State = if step.step < last { (averages, BTreeMap::new()) } else { (BTreeMap::new(), kept) };
        serde_json::to_value(state).map_err(json)
    }
}

fn scale(site: &Site) -> Result<f32, Error> {
    Ok((number(&site.options, "adalora-alpha")? / (number(&site.options, "init-r")? + 1e-5)) as f32)
}

/// Averages sensitivity, `|p g|`, and how uncertain it is.
fn follow([sensitivity, uncertainty]: &mut [Vec<f32>; 2], values: &[f32], gradient: &[f32], [beta1, beta2]: [f32; 2]) {
    for ((s, u), (p, g)) in sensitivity.iter_mut().zip(uncertainty).zip(values.iter().zip(gradient)) {
        let now = (p * g).abs();
        *s = beta1 * *s + (1.0 - beta1) * now;
        *u = beta2 * *u + (1.0 - beta2) * (now - *s).abs();
    }
}

/// Which triplets stay when the `less` least important ones of all layers go.
fn allocate(sites: &[&String], averages: &BTreeMap<String, [Vec<f32>; 2]>, less: usize) -> BTreeMap<String, Vec<bool>> {
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
    let threshold = less.checked_sub(1).map_or(f32::NEG_INFINITY, |at| all[at]);
    let stay = |scores: Vec<f32>| scores.iter().map(|&score| score > threshold).collect();
    scores.into_iter().map(|(name, scores)| (name, stay(scores))).collect()
}
