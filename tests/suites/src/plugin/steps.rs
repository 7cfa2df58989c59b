//! A method between steps, on tensors that stand for those of a run.

use super::{Ending, Outcome, check_message, defaults, failed};
use serde_json::Value as Json;
use sparta_core::plugin::LoadedMethod;
use sparta_plugin::Error;
use sparta_plugin::method::{Method, Options, OwnForm, OwnTensor, Parameter, Selection, StepInfo, StepTensors, Steps};
use sparta_plugin::testing::{Tensor, model};
use std::collections::BTreeMap;

/// How many calls are made: enough that stored state and exchanged elements come back.
const CALLS: u64 = 4;

/// It acts on what it is given, the same way each time, within the rules; its state survives being stored.
pub fn between(method: &LoadedMethod) -> Outcome {
    let options = defaults(&method.info().options);
    let Some(steps) = method.steps(&options)? else {
        return Err(Ending::Skipped("it does not act between steps".into()));
    };
    if steps.every == 0 {
        return failed("it wants to be called after every 0 steps");
    }
    let (first, second) = (Acted::by(method, &options, steps)?, Acted::by(method, &options, steps)?);
    if first != second {
        return failed("`on_step` gives different answers to the same request: no run could be resumed");
    }
    let sets = first.tensors.values().filter(|held| held.exchanged).count();
    let set = first.tensors.values().filter(|held| held.set).count();
    let state = serde_json::to_vec(&first.state).map_or(0, |state| state.len());
    Ok(format!(
        "in {CALLS} calls it set values of {set} tensors and exchanged elements of {sets}; its state has {state} bytes"
    ))
}

/// The results of a few calls.
#[derive(PartialEq)]
struct Acted {
    tensors: BTreeMap<String, Held>,
    state: Json,
}

/// A tensor of the method's own.
#[derive(PartialEq)]
struct Held {
    own: OwnTensor,
    values: Vec<f32>,
    indices: Vec<u32>,
    set: bool,
    exchanged: bool,
}

impl Acted {
    fn by(method: &LoadedMethod, options: &Options, steps: Steps) -> Result<Acted, Ending> {
        let mut acted = Acted { tensors: own(method, options)?, state: Json::Null };
        for call in 1..=CALLS {
            let step = call * steps.every;
            let infos = acted.tensors.values().map(|held| held.own.clone()).collect();
            let options = options.clone();
            let info = StepInfo { step, total_steps: CALLS * steps.every, options, state: acted.state, tensors: infos };
            println!("`on_step` after step {step}");
            let mut access = Access { tensors: &mut acted.tensors, steps, step };
            let answer = method.on_step(&info, &mut access);
            let state = answer.inspect_err(|error| drop(check_message("`on_step`", error)))?;
            let text = serde_json::to_string(&state).map_err(|e| e.to_string())?;
            acted.state = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        }
        Ok(acted)
    }
}

/// The tensors that the method has in [`model`], with values that follow from their names.
fn own(method: &LoadedMethod, options: &Options) -> Result<BTreeMap<String, Held>, Ending> {
    let parameters = model();
    let selections = method.select(&parameters, options)?;
    let mut all = BTreeMap::new();
    let mut hold = |name: String, form, shape: Vec<usize>, parameter: &Parameter, indices| {
        let values = Tensor::normal(&shape, seed(&name)).values;
        let own = OwnTensor { name: name.clone(), form, shape, parameter: parameter.clone() };
        all.entry(name).or_insert(Held { own, values, indices, set: false, exchanged: false });
    };
    for (parameter, selection) in parameters.iter().zip(selections) {
        let selection = match selection {
            Selection::Rated { selection, .. } => *selection,
            selection => selection,
        };
        let name = parameter.name.clone();
        let sparse = |share: f64| {
            let count = (parameter.numel() as f64 * share).round().max(1.0) as u32;
            (0..count).map(|i| (u64::from(i) * parameter.numel() / u64::from(count)) as u32).collect::<Vec<u32>>()
        };
        let indices = match selection {
            Selection::Frozen | Selection::Rated { .. } => continue,
            Selection::Dense => {
                hold(name, OwnForm::Dense, parameter.shape.clone(), parameter, vec![]);
                continue;
            }
            Selection::Reparam { tensors } => {
                for tensor in tensors {
                    let module = parameter.name.strip_suffix(".weight").unwrap_or(&parameter.name);
                    let before = if tensor.shared { "shared" } else { module };
                    let form = if tensor.trained { OwnForm::Extra } else { OwnForm::Frozen };
                    hold(format!("{before}.{}", tensor.name), form, tensor.shape, parameter, vec![]);
                }
                continue;
            }
            Selection::Sparse { probability } => sparse(probability),
            Selection::Chosen { indices } => indices,
            Selection::Magnitude(magnitude) => sparse(magnitude.share),
            Selection::Scored(scored) => sparse(scored.share),
        };
        hold(name, OwnForm::Sparse, vec![indices.len()], parameter, indices);
    }
    Ok(all)
}

fn seed(name: &str) -> u32 {
    name.bytes().fold(7, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()))
}

struct Access<'a> {
    tensors: &'a mut BTreeMap<String, Held>,
    steps: Steps,
    step: u64,
}

impl Access<'_> {
    fn held(&mut self, name: &str) -> Result<&mut Held, Error> {
        self.tensors.get_mut(name).ok_or_else(|| Error(format!("it has no tensor `{name}`")))
    }

    /// Numbers of a shape that follow from what is read, and when.
    fn drawn(&self, what: &str, name: &str, shape: &[usize]) -> Vec<f32> {
        Tensor::normal(shape, seed(&format!("{what} {name} {}", self.step))).values
    }
}

impl StepTensors for Access<'_> {
    fn read(&mut self, what: &str, name: &str) -> Result<Vec<f32>, Error> {
        if matches!(what, "weight" | "whole_gradient") {
            let own = self.tensors.values().find(|held| held.own.parameter.name == name);
            let shape = own.map(|held| held.own.parameter.shape.clone());
            let shape = shape.ok_or_else(|| Error(format!("`{name}` is not a parameter that it changes")))?;
            if what == "whole_gradient" && !self.steps.whole_gradients {
                return Err(Error::new("it reads gradients of whole weights without declaring it in `steps`"));
            }
            return Ok(self.drawn(what, name, &shape));
        }
        let gradients = self.steps.gradients;
        let Held { own, values, .. } = self.held(name)?;
        let (values, shape, trained) = (values.clone(), own.shape.clone(), own.form != OwnForm::Frozen);
        match what {
            "values" => Ok(values),
            _ if !trained => Err(Error(format!("`{name}` is not trained, so it has no `{what}`"))),
            "gradient" if !gradients => Err(Error::new("it reads gradients without declaring it in `steps`")),
            "gradient" | "m" => Ok(self.drawn(what, name, &shape)),
            "v" => Ok(self.drawn(what, name, &shape).into_iter().map(|x| x * x).collect()),
            _ => Err(Error(format!("there is no `{what}` to read with AdamW"))),
        }
    }

    fn indices(&mut self, name: &str) -> Result<Vec<u32>, Error> {
        let held = self.held(name)?;
        match held.own.form {
            OwnForm::Sparse => Ok(held.indices.clone()),
            _ => Err(Error(format!("`{name}` is not trained by elements, so it has no `indices`"))),
        }
    }

    fn set(&mut self, name: &str, values: &[f32]) -> Result<(), Error> {
        let held = self.held(name)?;
        if held.values.len() != values.len() || values.iter().any(|x| !x.is_finite()) {
            let (expected, got) = (held.values.len(), values.len());
            return Err(Error(format!("`{name}`: expected {expected} finite values, got {got}")));
        }
        (held.values, held.set) = (values.to_vec(), true);
        Ok(())
    }

    fn replace(&mut self, name: &str, indices: &[u32]) -> Result<(), Error> {
        self.indices(name)?;
        let held = self.held(name)?;
        let numel = held.own.parameter.numel();
        let ascending = indices.windows(2).all(|pair| pair[0] < pair[1]);
        if indices.len() != held.indices.len() || !ascending || indices.last().is_some_and(|&i| u64::from(i) >= numel) {
            let count = held.indices.len();
            return Err(Error(format!("`{name}`: expected {count} ascending indices below {numel}")));
        }
        held.exchanged |= held.indices != indices;
        let before: BTreeMap<u32, f32> = held.indices.iter().copied().zip(held.values.iter().copied()).collect();
        held.values = indices.iter().map(|i| before.get(i).copied().unwrap_or(0.0)).collect();
        held.indices = indices.to_vec();
        Ok(())
    }
}
