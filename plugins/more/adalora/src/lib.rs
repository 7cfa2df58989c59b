//! AdaLoRA (Zhang et al., 2023): `y = x W^T + (alpha / r) x (E A)^T B^T` with singular values E that are set to zero
//! where the importance of their triplets is small, until the run is within its budget of ranks, as PEFT's
//! `AdaLoraConfig` does for q and v. Its `orth_reg_weight` is `--orth-weight` times the number of all A and B.

mod importance;
mod orthogonal;

use importance::{PARTS, State, allocate, follow, mask};
use orthogonal::distance;
use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Add, Layout, Linear, Mul, Scale};
use sparta_plugin::method::*;
use std::collections::BTreeMap;

struct AdaLora;

sparta_plugin::export_method!(AdaLora);

sparta_plugin::options! {
    struct Settings {
        /// Initial rank of each layer
        init_r: usize = 12, 1..=1 << 20;
        /// Average rank at the end
        target_r: usize = 8, 1..=1 << 20;
        /// Scale: additions are multiplied by alpha / init-r
        adalora_alpha: f64 = 16.0, Above(0.0, 1e6);
        /// Steps before ranks are reduced
        tinit: u64 = 0, 0..=1 << 20;
        /// Steps at the end in which ranks stay fixed
        tfinal: u64 = 0, 0..=1 << 20;
        /// Steps between allocations
        delta_t: u64 = 1, 1..=1 << 20;
        /// Decay of the average sensitivity
        ipt_beta1: f64 = 0.85, Above(0.0, 0.999_999);
        /// Decay of the average uncertainty
        ipt_beta2: f64 = 0.85, Above(0.0, 0.999_999);
        /// Weight of the penalty on A and B for not being orthogonal
        orth_weight: f64 = 0.0, 0.0..=1e3;
    }
}

impl Method for AdaLora {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "adalora".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "AdaLoRA: low-rank changes of q and v with a budget of ranks".into(),
            options: Settings::declared(),
            default_lr: 1e-3,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let Settings { init_r: r, target_r, .. } = Settings::read(options)?;
        if target_r > r {
            return Err(Error::new("--target-r is larger than --init-r: ranks are only reduced"));
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

    fn penalty(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        _: Value,
        extra: &[Value],
    ) -> Result<Option<Value>, Error> {
        let Settings { init_r, orth_weight, .. } = Settings::read(&site.options)?;
        let &[a, _, b] = extra else { return Err(Error::new("expected A, E and B")) };
        if orth_weight == 0.0 {
            return Ok(None);
        }
        let [of_a, of_b] = [(a, Layout::Nt), (b, Layout::Tn)].map(|(x, layout)| distance(graph, x, layout, init_r));
        let both = graph.one(Add {}, &[of_a?, of_b?])?;
        Ok(Some(graph.one(Scale { factor: orth_weight as f32 }, &[both])?))
    }

    fn steps(&self, _: &Options) -> Result<Option<Steps>, Error> {
        Ok(Some(Steps { every: 1, gradients: true, whole_gradients: false }))
    }

    fn on_step(&self, step: &StepInfo, tensors: &mut dyn StepTensors) -> Result<serde_json::Value, Error> {
        let json = |e: serde_json::Error| Error::new(e.to_string());
        let Settings { target_r, tinit, tfinal, delta_t, ipt_beta1, ipt_beta2, .. } = Settings::read(&step.options)?;
        let last = step.total_steps.saturating_sub(tfinal);
        let state: Option<State> = serde_json::from_value(step.state.clone()).map_err(json)?;
        let (mut averages, mut kept) = state.unwrap_or_default();
        let named = |end: &str| step.tensors.iter().map(|t| &t.name).filter(|n| n.ends_with(end)).collect::<Vec<_>>();
        if step.step < last {
            let betas = [ipt_beta1 as f32, ipt_beta2 as f32];
            for name in PARTS.into_iter().flat_map(named) {
                let (values, gradient) = (tensors.values(name)?, tensors.gradient(name)?);
                let zeros = || [vec![0.0; values.len()], vec![0.0; values.len()]];
                follow(averages.entry(name.clone()).or_insert_with(zeros), &values, &gradient, betas);
            }
        }
        let due = step.step > tinit && step.step < last && step.step.is_multiple_of(delta_t);
        if (due || step.step == last) && !averages.is_empty() {
            let (done, span) = (step.step as f64 - tinit as f64, last as f64 - tinit as f64);
            let left = if span > 0.0 { 1.0 - done / span } else { 1.0 };
            kept = allocate(&named("lora_E"), &averages, target_r as u64, left);
        }
        mask(tensors, &kept)?;
        let state: State = if step.step < last { (averages, BTreeMap::new()) } else { (BTreeMap::new(), kept) };
        serde_json::to_value(state).map_err(json)
    }
}

fn scale(site: &Site) -> Result<f32, Error> {
    let Settings { init_r, adalora_alpha, .. } = Settings::read(&site.options)?;
    Ok((adalora_alpha / (init_r as f64 + 1e-5)) as f32)
}
