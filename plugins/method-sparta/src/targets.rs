use regex::Regex;
use sparta_plugin::Error;
use sparta_plugin::method::{Parameter, Role};

/// The tensors that the option `targets` selects.
pub enum Targets {
    All,
    Attention,
    ValueOutput,
    Mlp,
    Names(Regex),
}

impl Targets {
    pub fn parse(text: &str) -> Result<Targets, Error> {
        Ok(match text {
            "all" => Targets::All,
            "attn" => Targets::Attention,
            "vo" => Targets::ValueOutput,
            "mlp" => Targets::Mlp,
            _ => Targets::Names(Regex::new(text).map_err(|e| {
                Error(format!("targets `{text}` are not all, attn, vo, mlp or a valid regular expression: {e}"))
            })?),
        })
    }

    /// Errors: the targets are fused with other tensors in this model.
    pub fn check(&self, parameters: &[Parameter]) -> Result<(), Error> {
        let joint = parameters.iter().find(|p| p.role == Role::QkvProj);
        match (self, joint) {
            (Targets::ValueOutput, Some(joint)) => Err(Error(format!(
                "targets `vo`: this model has q, k and v in one tensor, {}; choose attn, or `o_proj` alone",
                joint.name
            ))),
            _ => Ok(()),
        }
    }

    /// Whether a tensor of the decoder is a target; a bias belongs to its projection.
    pub fn contain(&self, parameter: &Parameter) -> bool {
        let role = parameter.role;
        let bias_of = |projections: &[&str]| {
            role == Role::Bias && projections.iter().any(|p| parameter.name.contains(&format!(".{p}_proj.")))
        };
        match self {
            Targets::All => true,
            Targets::Attention => {
                matches!(role, Role::QProj | Role::KProj | Role::VProj | Role::QkvProj | Role::OProj)
                    || bias_of(&["q", "k", "v", "o"])
            }
            Targets::ValueOutput => matches!(role, Role::VProj | Role::OProj) || bias_of(&["v", "o"]),
            Targets::Mlp => {
                matches!(role, Role::GateProj | Role::UpProj | Role::GateUpProj | Role::DownProj)
                    || bias_of(&["gate", "up", "down"])
            }
            Targets::Names(regex) => regex.is_match(&parameter.name),
        }
    }
}
