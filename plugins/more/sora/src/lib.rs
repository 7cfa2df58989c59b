//! SoRA (Ding et al., 2023): `y = x W^T + (alpha / r) (g * (x A^T)) B^T` with trained A `[r, in]`, B `[out, r]` and
//! gate g `[r]`. After each update the gate is soft-thresholded by lr * lambda, the proximal step of lambda |g|, so
//! that ranks end at exactly 0.

use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Add, Fill, Function, Layout, Linear, Map, Mul, Scale, ScaleBy};
use sparta_plugin::method::*;

struct Sora;

sparta_plugin::export_method!(Sora);

sparta_plugin::options! {
    struct Settings {
        /// Initial rank
        sora_r: usize = 8, 1..=1024;
        /// Scale: additions are multiplied by alpha / r
        sora_alpha: f64 = 16.0, Above(0.0, 1e6);
        // The authors' threshold, 3e-4 per step at a learning rate of 8e-4.
        /// Strength with which gates are pulled towards 0
        sora_lambda: f64 = 0.375, 0.0..=1e6;
    }
}

impl Method for Sora {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "sora".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "SoRA: trains low-rank additions to q and v, and drops ranks on the way".into(),
            options: Settings::declared(),
            default_lr: 8e-4,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let r = Settings::read(options)?.sora_r;
        let choose = |p: &Parameter| match (p.role, &p.shape[..]) {
            (Role::Head, _) => Selection::Dense,
            (Role::QProj | Role::VProj, &[out, input]) => Selection::Reparam {
                tensors: vec![
                    ExtraTensor::new("sora_A", [r, input], Init::Uniform { bound: 1.0 / (input as f64).sqrt() }),
                    ExtraTensor::new("sora_B", [out, r], Init::Zeros),
                    // Only the gates shrink, and those by the threshold.
                    ExtraTensor::new("sora_gate", [r], Init::Normal { std: 1.0 })
                        .rated(Rates { weight_decay: Some(0.0), ..Rates::default() }),
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
        let &[a, b, gate] = extra else { return Err(Error::new("expected A, B and gates")) };
        let product = Linear::plain(Layout::Nt);
        let y = graph.one(product.clone(), &[x, w])?;
        let down = graph.one(product.clone(), &[x, a])?;
        let gated = graph.one(Mul {}, &[down, gate])?;
        graph.one(Linear { scale: scale(site)?, residual: true, ..product }, &[gated, b, y])
    }

    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let &[a, b, gate] = extra else { return Err(Error::new("expected A, B and gates")) };
        let gated = graph.one(Mul {}, &[b, gate])?;
        let product = Linear { scale: scale(site)?, residual: true, ..Linear::plain(Layout::Nn) };
        graph.one(product, &[gated, a, w])
    }

    /// g becomes relu(g - t) - relu(-g - t).
    fn update(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        extra: &[Value],
        lr: Value,
    ) -> Result<Vec<Value>, Error> {
        let &[a, b, gate] = extra else { return Err(Error::new("expected A, B and gates")) };
        let lambda = Settings::read(&site.options)?.sora_lambda as f32;
        let minus = graph.one(Fill { value: -lambda, shape: graph.shape(gate)? }, &[])?;
        let minus = graph.one(ScaleBy {}, &[minus, lr])?;
        let mut beyond = |sign: f32| -> Result<Value, Error> {
            let x = graph.one(Scale { factor: sign }, &[gate])?;
            let x = graph.one(Add {}, &[x, minus])?;
            let x = graph.one(Map { function: Function::Relu }, &[x])?;
            graph.one(Scale { factor: sign }, &[x])
        };
        let (positive, negative) = (beyond(1.0)?, beyond(-1.0)?);
        Ok(vec![a, b, graph.one(Add {}, &[positive, negative])?])
    }
}

fn scale(site: &Site) -> Result<f32, Error> {
    let Settings { sora_r, sora_alpha, .. } = Settings::read(&site.options)?;
    Ok((sora_alpha / sora_r as f64) as f32)
}
