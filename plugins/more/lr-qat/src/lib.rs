//! LR-QAT (Bondarenko et al., 2024): `y = x (s q(W / s + (alpha / r) B A))^T`, where q rounds to the whole numbers of a
//! few bits, so that the merged weights are a quantized model. The gradient passes through q, except outside of its
//! range. The step s of a row follows from its norm and stays fixed.

use sparta_plugin::Error;
use sparta_plugin::graph::ops::{
    Add, Broadcast, Div, Fill, Function, Launch, Layout, Linear, Map, Mul, Scale, Transpose,
};
use sparta_plugin::graph::{CpuInput, CpuKernel, CpuOutput, Own, Value};
use sparta_plugin::method::*;

struct LrQat;

sparta_plugin::export_method!(LrQat);

sparta_plugin::options! {
    struct Settings {
        /// Rank
        qat_r: usize = 8, 1..=1024;
        /// Scale: changes count alpha / r steps
        qat_alpha: f64 = 8.0, Above(0.0, 1e6);
        /// Bits of a weight
        qat_bits: u32 = 4, 2..=8;
        /// Largest weight that is not cut off, in standard deviations of its row
        qat_clip: f64 = 2.7, Above(0.0, 100.0);
    }
}

impl Settings {
    /// The largest whole number.
    fn limit(&self) -> f32 {
        ((1 << (self.qat_bits - 1)) - 1) as f32
    }
}

impl Method for LrQat {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "lr-qat".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "LR-QAT: low-rank changes of all layers, whose weights are rounded to a few bits".into(),
            options: Settings::declared(),
            default_lr: 1e-3,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let r = Settings::read(options)?.qat_r;
        let choose = |p: &Parameter| match (p.role, &p.shape[..]) {
            (Role::Head, _) => Selection::Dense,
            (role, &[out, input]) if role.is_projection() => Selection::Reparam {
                tensors: vec![
                    ExtraTensor::new("qat_A", [r, input], Init::Uniform { bound: 1.0 / (input as f64).sqrt() }),
                    ExtraTensor::new("qat_B", [out, r], Init::Zeros),
                    ExtraTensor::new("qat_norm", [out], Init::RowNorms).frozen(),
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
        let (numbers, steps) = quantized(site, graph, w, extra)?;
        let y = graph.one(Linear::plain(Layout::Nt), &[x, numbers])?;
        graph.one(Mul {}, &[y, steps])
    }

    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let (numbers, steps) = quantized(site, graph, w, extra)?;
        let steps = column(graph, steps)?;
        graph.one(Mul {}, &[numbers, steps])
    }
}

/// The whole numbers `[out, in]`, and the step of each row `[out]`.
fn quantized(site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<(Value, Value), Error> {
    let &[a, b, norm] = extra else { return Err(Error::new("expected A, B and norms")) };
    let settings = Settings::read(&site.options)?;
    let limit = settings.limit();
    let [_, input] = site.parameter.shape[..] else { return Err(Error::new("expected a matrix")) };
    let step = settings.qat_clip / (f64::from(limit) * (input as f64).sqrt());
    let steps = graph.one(Scale { factor: step as f32 }, &[norm])?;
    let columns = column(graph, steps)?;
    let scale = (settings.qat_alpha / settings.qat_r as f64) as f32;
    let change = graph.one(Linear { scale, ..Linear::plain(Layout::Nn) }, &[b, a])?;
    let change = graph.one(Mul {}, &[change, columns])?;
    let changed = graph.one(Add {}, &[change, w])?;
    let in_steps = graph.one(Div {}, &[changed, columns])?;
    let limits = graph.one(Fill { value: limit, shape: vec![input] }, &[])?;
    let quantize = quantize(graph, in_steps, limit)?;
    Ok((graph.one(quantize, &[in_steps, limits])?, steps))
}

/// A row `[n]` as a column `[n, 1]`.
fn column(graph: &mut dyn GraphBuilder, row: Value) -> Result<Value, Error> {
    let n = graph.shape(row)?.iter().product();
    let row = graph.one(Broadcast { shape: [1, n] }, &[row])?;
    graph.one(Transpose {}, &[row])
}

/// `q = round(v)` within `limits`, a row of one number; the gradient passes where v is rounded and stops where it is
/// cut off.
fn quantize(graph: &dyn GraphBuilder, v: Value, limit: f32) -> Result<Own, Error> {
    let shape = graph.shape(v)?;
    let row = vec![shape[1]];
    let op = Own::new("quantize", [("v", shape), ("limits", row.clone())], ["q"], |graph, [v, limits]| {
        let whole = graph.one(Map { function: Function::Round }, &[v])?;
        let low = graph.one(Scale { factor: -1.0 }, &[limits])?;
        // These are sums of whole numbers, and so exact.
        let [above, beyond] = [limits, low].map(|limit| {
            let sum = graph.one(Add {}, &[whole, limit])?;
            graph.one(Map { function: Function::Relu }, &[sum])
        });
        let beyond = graph.one(Scale { factor: -1.0 }, &[beyond?])?;
        let cut = graph.one(Add {}, &[above?, beyond])?;
        Ok([graph.one(Add {}, &[cut, low])?])
    })?
    .straight_through(["v"], |graph, inputs, _, dq| {
        let size = graph.one(Map { function: Function::Abs }, &inputs[..1])?;
        let size = graph.one(Scale { factor: -1.0 }, &[size])?;
        let edge = graph.one(Fill { value: limit + 0.5, shape: row.clone() }, &[])?;
        let left = graph.one(Add {}, &[size, edge])?;
        let inside = graph.one(Map { function: Function::Step }, &[left])?;
        Ok([graph.one(Mul {}, &[dq[0], inside])?])
    })?;
    Ok(op.wgsl(Launch::Elements, WGSL).lanes(256).cpu::<Quantise>())
}

const WGSL: &str = "fn kernel(i: u32) { q[i] = clamp(round(v[i]), -limits[0], limits[0]); }";

struct Quantise;

impl CpuKernel for Quantise {
    fn run(inputs: &[CpuInput], outputs: &mut [CpuOutput]) {
        let limit = inputs[1].values[0];
        for (q, v) in outputs[0].values.iter_mut().zip(inputs[0].values) {
            *q = v.round_ties_even().clamp(-limit, limit);
        }
    }
}
