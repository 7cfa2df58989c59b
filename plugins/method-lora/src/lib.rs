//! LoRA (Hu et al., 2021): y = x W^T + (alpha / r) dropout(x) A^T B^T with trained A `[r, in]` and B `[out, r]`; LoRA+
//! (Hayou et al., 2024), which trains B at a higher rate, and rsLoRA (Kalajdzievski, 2023), which divides by sqrt(r).

use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Dropout, Layout, Linear};
use sparta_plugin::method::*;

struct Lora;

sparta_plugin::options! {
    struct Settings {
        /// Rank
        lora_r: usize = 8, 1..=1024;
        /// Scale: additions are multiplied by alpha / r
        lora_alpha: f64 = 16.0, Above(0.0, 1e6);
        /// Dropout of the additions' input
        lora_dropout: f64 = 0.0, 0.0..=0.99;
        /// Linear layers: a list of q, k, v, o, gate, up, down, or all-linear. If a model has q, k and v in one layer,
        /// each of them means that layer; gate and up likewise
        lora_targets: String = "q,v";
        /// LoRA+: ratio of the learning rate of B to that of A
        lora_plus_ratio: f64 = 1.0, Above(0.0, 1e6);
        /// rsLoRA: multiply additions by alpha / sqrt(r)
        lora_rs: bool = false;
    }
}

impl Settings {
    fn scale(&self) -> f32 {
        let r = self.lora_r as f64;
        (self.lora_alpha / if self.lora_rs { r.sqrt() } else { r }) as f32
    }
}

const TARGETS: [(&str, Role); 7] = [
    ("q", Role::QProj),
    ("k", Role::KProj),
    ("v", Role::VProj),
    ("o", Role::OProj),
    ("gate", Role::GateProj),
    ("up", Role::UpProj),
    ("down", Role::DownProj),
];

impl Method for Lora {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "lora".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "LoRA: trains low-rank additions to linear layers".into(),
            options: Settings::declared(),
            default_lr: 2e-4,
        }
    }

    /// Initial values are those of PEFT: A uniform in +-1 / sqrt(in), B zero.
    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let Settings { lora_r, lora_targets: targets, lora_plus_ratio, .. } = Settings::read(options)?;
        let roles = target_roles(&targets)?;
        if !parameters.iter().any(|p| roles.contains(&p.role)) {
            return Err(Error(format!("lora-targets `{targets}` match no linear layer of this model")));
        }
        let plus = Rates { lr_factor: lora_plus_ratio, ..Rates::default() };
        parameters.iter().map(|p| select_one(p, &roles, lora_r, plus)).collect()
    }

    fn forward(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let (a, b) = factors(extra)?;
        let settings = Settings::read(&site.options)?;
        let p = settings.lora_dropout as f32;
        let frozen = linear(graph, Layout::Nt, 1.0, &[x, w])?;
        let x = if site.training && p > 0.0 { dropout(graph, x, p, salt(&site.parameter))? } else { x };
        let low = linear(graph, Layout::Nt, 1.0, &[x, a])?;
        linear(graph, Layout::Nt, settings.scale(), &[low, b, frozen])
    }

    /// W + scale B A.
    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let (a, b) = factors(extra)?;
        linear(graph, Layout::Nn, Settings::read(&site.options)?.scale(), &[b, a, w])
    }
}

fn select_one(parameter: &Parameter, roles: &[Role], r: usize, plus: Rates) -> Result<Selection, Error> {
    match (parameter.role, parameter.shape.as_slice()) {
        (Role::Head, _) => Ok(Selection::Dense),
        (role, &[out, input]) if roles.contains(&role) => Ok(Selection::Reparam {
            tensors: vec![
                ExtraTensor::new("lora_A", [r, input], Init::Uniform { bound: 1.0 / (input as f64).sqrt() }),
                ExtraTensor::new("lora_B", [out, r], Init::Zeros).rated(plus),
            ],
        }),
        (role, shape) if roles.contains(&role) => {
            Err(Error(format!("{}: expected a matrix, got the shape {shape:?}", parameter.name)))
        }
        _ => Ok(Selection::Frozen),
    }
}

fn target_roles(targets: &str) -> Result<Vec<Role>, Error> {
    if targets.trim() == "all-linear" {
        return Ok(TARGETS.iter().flat_map(|(_, role)| layers_of(*role)).collect());
    }
    let role = |name: &str| {
        TARGETS.iter().find(|(target, _)| *target == name.trim()).map(|(_, role)| *role).ok_or_else(|| {
            let known = TARGETS.map(|(target, _)| target).join(", ");
            Error(format!("lora-targets: unknown target `{name}`; give a list of {known}, or all-linear"))
        })
    };
    let roles = targets.split(',').map(role).collect::<Result<Vec<_>, Error>>()?;
    Ok(roles.into_iter().flat_map(layers_of).collect())
}

/// The roles that a layer with this projection may have: the projection alone, or fused with others.
fn layers_of(role: Role) -> impl Iterator<Item = Role> {
    let joint = match role {
        Role::QProj | Role::KProj | Role::VProj => Some(Role::QkvProj),
        Role::GateProj | Role::UpProj => Some(Role::GateUpProj),
        _ => None,
    };
    [role].into_iter().chain(joint)
}

fn factors(extra: &[Value]) -> Result<(Value, Value), Error> {
    match extra {
        &[a, b] => Ok((a, b)),
        _ => Err(Error(format!("expected the tensors lora_A and lora_B, got {} tensors", extra.len()))),
    }
}

/// `scale * a b`, plus a residual if there is a third input.
fn linear(graph: &mut dyn GraphBuilder, layout: Layout, scale: f32, inputs: &[Value]) -> Result<Value, Error> {
    let op = Linear { scale, residual: inputs.len() == 3, ..Linear::plain(layout) };
    graph.one(op, inputs)
}

fn dropout(graph: &mut dyn GraphBuilder, x: Value, p: f32, salt: u32) -> Result<Value, Error> {
    let rng = graph.rng()?;
    graph.one(Dropout { p, salt }, &[x, rng])
}

/// Different for every linear layer, and in the upper half of the range, which the host does not use.
fn salt(parameter: &Parameter) -> u32 {
    let is_own = |(_, role): &(&str, Role)| layers_of(*role).any(|role| role == parameter.role);
    let target = TARGETS.iter().position(is_own).unwrap_or(TARGETS.len());
    let layer = parameter.layer.unwrap_or(0);
    1 << 31 | (layer as u32) << 3 | target as u32
}

sparta_plugin::export_method!(entry: Lora);

#[cfg(test)]
mod tests;
