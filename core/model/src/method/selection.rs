//! Checks what a method selects for a parameter.

use super::magnitude;
use crate::{Error, Result};
use sparta_plugin::method::{ExtraTensor, Init, Magnitude, MethodInfo, Parameter, Rates, Scored, Selection};
use std::collections::{BTreeMap, BTreeSet};

type Checked = std::result::Result<(), String>;

/// Separates selections from their rates, which default to the run's.
///
/// Errors: those of [`check_selections`].
pub fn checked(
    info: &MethodInfo,
    parameters: &[Parameter],
    selections: Vec<Selection>,
) -> Result<Vec<(Selection, Rates)>> {
    check_selections(parameters, &selections).map_err(|why| broken(info, why))?;
    let with_rates = |selection| match selection {
        Selection::Rated { rates, selection } => (*selection, rates),
        selection => (selection, Rates::default()),
    };
    Ok(selections.into_iter().map(with_rates).collect())
}

/// Checks what a method selected for these parameters.
///
/// Errors: not one selection per parameter; a selection that breaks the rules of [`Selection`].
pub fn check_selections(parameters: &[Parameter], selections: &[Selection]) -> Checked {
    if selections.len() != parameters.len() {
        return Err(format!("`select` answered for {} of {} parameters", selections.len(), parameters.len()));
    }
    let mut shared: BTreeMap<&str, &ExtraTensor> = BTreeMap::new();
    for (parameter, selection) in parameters.iter().zip(selections) {
        check(parameter, selection).map_err(|why| format!("`select`: {}: {why}", parameter.name))?;
        if let Selection::Reparam { tensors } = selection {
            tensors.iter().filter(|tensor| tensor.shared).try_for_each(|tensor| check_shared(&mut shared, tensor))?;
        }
    }
    Ok(())
}

/// Whether the selection has an index set.
pub fn is_sparse(selection: &Selection) -> bool {
    use Selection::*;
    matches!(selection, Sparse { .. } | Chosen { .. } | Magnitude(_) | Scored(_))
}

/// How many of `numel` elements a sparse selection is expected to train; 0 for others.
pub fn expected(selection: &Selection, numel: u64) -> usize {
    match selection {
        Selection::Chosen { indices } => indices.len(),
        Selection::Magnitude(rule) => magnitude::expected(*rule, numel) as usize,
        Selection::Scored(scored) => magnitude::expected(scored.rule(), numel) as usize,
        Selection::Sparse { probability } => (numel as f64 * probability).round() as usize,
        Selection::Frozen | Selection::Dense | Selection::Reparam { .. } | Selection::Rated { .. } => 0,
    }
}

/// Errors: a shared tensor that another weight describes differently, or whose initial values depend on one weight.
fn check_shared<'a>(known: &mut BTreeMap<&'a str, &'a ExtraTensor>, tensor: &'a ExtraTensor) -> Checked {
    let first = known.entry(&tensor.name).or_insert(tensor);
    if *first != tensor {
        return Err(format!("the shared tensor `{}` is described as {first:?} and as {tensor:?}", tensor.name));
    }
    if tensor.init == Init::RowNorms {
        return Err(format!("the shared tensor `{}` has the row norms of one weight", tensor.name));
    }
    Ok(())
}

fn check(parameter: &Parameter, selection: &Selection) -> Checked {
    match selection {
        Selection::Frozen | Selection::Dense => Ok(()),
        Selection::Rated { rates, selection } => {
            check_rates(rates)?;
            match **selection {
                Selection::Rated { .. } => Err("it has rates within rates".into()),
                Selection::Frozen | Selection::Reparam { .. } if *rates != Rates::default() => {
                    Err("it has rates as a whole; only dense and sparse selections and added tensors have them".into())
                }
                ref selection => check(parameter, selection),
            }
        }
        Selection::Sparse { probability } if !(*probability > 0.0 && *probability <= 1.0) => {
            Err(format!("the probability {probability} is not in (0, 1]"))
        }
        Selection::Magnitude(Magnitude { share, .. }) | Selection::Scored(Scored { share, .. })
            if !(*share > 0.0 && *share <= 1.0) =>
        {
            Err(format!("the share {share} is not in (0, 1]"))
        }
        sparse if is_sparse(sparse) && parameter.numel() >= 1 << 32 => {
            Err(format!("it has {} elements, but an index has 32 bits", parameter.numel()))
        }
        Selection::Chosen { indices } => {
            if let Some(pair) = indices.windows(2).find(|pair| pair[0] >= pair[1]) {
                return Err(format!("expected ascending indices, got {} before {}", pair[0], pair[1]));
            }
            match indices.last() {
                Some(&last) if u64::from(last) >= parameter.numel() => {
                    Err(format!("expected indices below {}, its elements, got {last}", parameter.numel()))
                }
                _ => Ok(()),
            }
        }
        Selection::Scored(Scored { score, .. }) if score.count() == 0 => {
            Err("its elements are scored by 0 batches or steps, expected at least 1".into())
        }
        Selection::Sparse { .. } | Selection::Magnitude(_) | Selection::Scored(_) => Ok(()),
        Selection::Reparam { tensors } => {
            let mut names = BTreeSet::new();
            match tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
                Some(tensor) => Err(format!("it adds two tensors `{}`", tensor.name)),
                None => tensors.iter().try_for_each(|tensor| check_extra(parameter, tensor)),
            }
        }
    }
}

fn check_extra(parameter: &Parameter, tensor: &ExtraTensor) -> Checked {
    let ExtraTensor { name, shape, init, rates, .. } = tensor;
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("the name `{name}` of an added tensor is not a word"));
    }
    if shape.is_empty() || shape.contains(&0) {
        return Err(format!("the added tensor `{name}` has the shape {shape:?}"));
    }
    check_rates(rates).map_err(|why| format!("`{name}`: {why}"))?;
    let rows = &parameter.shape[..1];
    match *init {
        Init::RowNorms if shape != rows => {
            Err(format!("`{name}` holds the norms of rows, so its shape must be {rows:?}, got {shape:?}"))
        }
        Init::Constant { value } if !value.is_finite() => Err(format!("`{name}` has the initial value {value}")),
        Init::Uniform { bound: size } | Init::Normal { std: size } if !(size >= 0.0 && size.is_finite()) => {
            Err(format!("the initial values of `{name}` have the size {size}"))
        }
        _ => Ok(()),
    }
}

fn check_rates(rates: &Rates) -> Checked {
    let Rates { lr_factor, weight_decay } = *rates;
    if !((lr_factor as f32) > 0.0 && (lr_factor as f32).is_finite()) {
        return Err(format!("the learning rate's factor must be a number above 0, got {lr_factor}"));
    }
    match weight_decay {
        Some(decay) if !(decay >= 0.0 && (decay as f32).is_finite()) => {
            Err(format!("the weight decay must be a number of at least 0, got {decay}"))
        }
        _ => Ok(()),
    }
}

pub fn broken(info: &MethodInfo, what: String) -> Error {
    Error::Method(format!("method `{}` {} broke its contract: {what}", info.name, info.version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_graph::DType;
    use sparta_plugin::method::{Order, Role, Scope, Score};

    fn answer(selection: Selection) -> std::result::Result<(Selection, Rates), String> {
        let info = MethodInfo {
            name: "m".into(),
            version: "1".into(),
            summary: String::new(),
            options: vec![],
            default_lr: 1.0,
        };
        let (name, shape) = ("w".to_owned(), vec![4, 6]);
        let w = Parameter { name, shape, dtype: DType::F32, role: Role::QProj, layer: Some(0) };
        let mut all = checked(&info, &[w], vec![selection]).map_err(|e| e.to_string())?;
        Ok(all.remove(0))
    }

    #[test]
    fn rates_go_with_what_is_trained_as_a_whole() {
        let rates = Rates { lr_factor: 0.5, weight_decay: Some(0.0) };
        assert_eq!(answer(Selection::Dense.rated(rates)), Ok((Selection::Dense, rates)));
        assert_eq!(answer(Selection::Dense), Ok((Selection::Dense, Rates::default())));
        let extra = |rates| vec![ExtraTensor::new("a", [2], Init::Zeros).rated(rates)];
        let reparam = Selection::Reparam { tensors: extra(rates) };
        assert_eq!(answer(reparam.clone()), Ok((reparam.clone(), Rates::default())));
        let refused = |selection: Selection, why: &str| {
            let message = answer(selection).unwrap_err();
            assert!(message.contains(why), "{message}");
        };
        refused(reparam.rated(rates), "w: it has rates as a whole");
        refused(Selection::Frozen.rated(rates), "w: it has rates as a whole");
        refused(Selection::Dense.rated(rates).rated(rates), "rates within rates");
        for (lr_factor, weight_decay, why) in [
            (0.0, None, "a number above 0, got 0"),
            (1e-50, None, "a number above 0"),
            (f64::INFINITY, None, "got inf"),
            (1.0, Some(-0.5), "at least 0, got -0.5"),
        ] {
            let rates = Rates { lr_factor, weight_decay };
            refused(Selection::Dense.rated(rates), why);
            refused(Selection::Reparam { tensors: extra(rates) }, why);
        }
    }

    #[test]
    fn the_expected_number_of_elements_is_that_of_the_scope() {
        let score = Score::Gradient { batches: 1, squared: false };
        let scored = |share, scope| Selection::Scored(Scored { share, order: Order::Largest, scope, score });
        assert_eq!(expected(&scored(0.25, Scope::Tensor), 24), 6);
        assert_eq!(expected(&scored(0.3, Scope::Group(3)), 24), 8);
        assert!(answer(scored(0.0, Scope::Model)).unwrap_err().contains("w: the share 0 is"));
        let none = Score::Change { steps: 0 };
        let scored = Scored { share: 0.5, order: Order::Largest, scope: Scope::Tensor, score: none };
        assert!(answer(Selection::Scored(scored)).unwrap_err().contains("scored by 0 batches or steps"));
        let chosen = |indices: &[u32]| answer(Selection::Chosen { indices: indices.to_vec() });
        chosen(&[0, 23]).unwrap();
        assert!(chosen(&[5, 1]).unwrap_err().contains("expected ascending indices, got 5 before 1"));
        assert!(chosen(&[0, 24]).unwrap_err().contains("expected indices below 24, its elements, got 24"));
    }
}
