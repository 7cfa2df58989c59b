//! SpaRTA, sparse random parameter adaptation: trains a random subset of the model's own scalars, and the head in full.

mod targets;

use sparta_plugin::Error;
use sparta_plugin::method::{Above, Method, MethodInfo, Options, Parameter, Role, Selection};
use targets::Targets;

struct Sparta;

sparta_plugin::options! {
    struct Settings {
        /// Fraction of all model parameters to train, in addition to the head
        density: f64 = 0.05, Above(0.0, 1.0);
        /// Tensors to choose from: all, attn (q, k, v, o), vo, mlp, or a regular expression for tensor names;
        /// embeddings are never included
        targets: String = "all";
    }
}

impl Method for Sparta {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "sparta".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "SpaRTA: trains a random sparse subset of the model's own parameters".into(),
            options: Settings::declared(),
            default_lr: 1.5e-5,
        }
    }

    /// The density counts all parameters, embeddings and vocabulary head included, unless another head replaces that;
    /// these are not targets, so each scalar of a target is drawn with probability density * total / targets.
    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let Settings { density, targets } = Settings::read(options)?;
        let targets = targets.as_str();
        let classifies = parameters.iter().any(|p| p.role == Role::Head);
        let outside = |role| role == Role::Head || (classifies && role == Role::LmHead);
        let body: Vec<&Parameter> = parameters.iter().filter(|p| !outside(p.role)).collect();
        let vocabulary = |role| matches!(role, Role::Embedding | Role::LmHead);
        let candidates: Vec<&Parameter> = body.iter().copied().filter(|p| !vocabulary(p.role)).collect();
        let chosen = Targets::parse(targets)?;
        chosen.check(parameters)?;
        let target_count = count(candidates.iter().copied().filter(|p| chosen.contain(p)));
        if target_count == 0 {
            return Err(no_targets(targets, &candidates));
        }
        let probability = probability(density, count(body.iter().copied()), target_count, targets)?;
        let choose = |p: &Parameter| match p.role {
            Role::Head => Selection::Dense,
            Role::Embedding | Role::LmHead => Selection::Frozen,
            _ if chosen.contain(p) => Selection::Sparse { probability },
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }
}

/// The number of scalars without the heads, which do not count for the density.
fn count<'a>(parameters: impl Iterator<Item = &'a Parameter>) -> u64 {
    parameters.map(Parameter::numel).sum()
}

fn probability(density: f64, total: u64, target_count: u64, targets: &str) -> Result<f64, Error> {
    // Written so that NaN is rejected.
    if !(density > 0.0 && density <= 1.0) {
        return Err(Error(format!("density: expected a number in (0, 1], got {density}")));
    }
    let largest = target_count as f64 / total as f64;
    if density > largest {
        // Rounded down, so that the value in the message is accepted.
        let shown = (largest * 1e6).floor() / 1e6;
        return Err(Error(format!(
            "density {density} cannot be reached with targets `{targets}`: they are {target_count} of the model's {total} \
             parameters, so the density can be at most {shown}"
        )));
    }
    Ok((density * total as f64 / target_count as f64).min(1.0))
}

fn no_targets(targets: &str, candidates: &[&Parameter]) -> Error {
    let examples: Vec<&str> = candidates.iter().step_by((candidates.len() / 5).max(1)).map(|p| &*p.name).collect();
    Error(format!(
        "targets `{targets}` match no tensor of this model. Choose all, attn, vo, mlp, or a regular expression that \
         matches tensor names such as {}",
        examples.join(", ")
    ))
}

sparta_plugin::export_method!(entry: Sparta);

#[cfg(test)]
mod tests;
