//! A method in single layers, in f64, and its answers to what a user may request.

use super::{Ending, OpenDevices, Outcome, check_message, check_no_panic, defaults, failed, passed, settings, steps};
use sparta_backend_cpu::{Cpu, Reference};
use sparta_core::method::options::{Given, check};
use sparta_core::plugin::LoadedMethod;
use sparta_graph::graph::TensorType;
use sparta_graph::ops::OwnKernel;
use sparta_graph::{Backend, DType};
use sparta_plugin::graph::Value;
use sparta_plugin::method::{GraphBuilder, Method, Options, Parameter, Role, Selection, Site};
use sparta_plugin::testing::{self, Gradients, OwnCase, Tensor, evaluate, layers, model, own_operations, sites};
use std::collections::BTreeMap;

type Check = fn(&LoadedMethod, OpenDevices) -> Outcome;

pub const TESTS: &[(&str, Check)] = &[
    ("options", |method, _| options(method)),
    ("selection", |method, _| selection(method)),
    ("at the start", |method, _| start(method)),
    ("gradients", |method, _| gradients(method)),
    ("own operations", own),
    ("merged layers", |method, _| merged(method)),
    ("layers with a bias", |method, _| with_bias(method)),
    ("penalties and updates", |method, _| penalties(method)),
    ("between steps", |method, _| steps::between(method)),
    ("wrong requests", |method, _| wrong_requests(method)),
];

fn reference() -> Result<Reference, String> {
    Reference::new(None).map_err(|e| e.to_string())
}

/// Each option at the ends of its range is accepted or refused with a message; one that is not declared is refused.
fn options(method: &LoadedMethod) -> Outcome {
    let (info, mut refused) = (method.info(), Vec::new());
    let unknown = BTreeMap::from([("no-such-option".to_owned(), Given::Text("1".into()))]);
    if check("", &info.options, &unknown).is_ok() {
        return failed("the option `no-such-option`, which is not declared, is accepted");
    }
    for options in settings(&info.options) {
        if let Err(error) = method.select(&model(), &options) {
            check_no_panic(&format!("`select` with {options:?}"), &error)?;
            refused.push(error.0);
        }
    }
    let known = settings(&info.options).len();
    match refused.len() {
        n if n == known => failed(format!("`select` refuses every setting, even the defaults: {}", refused[0])),
        0 => passed(),
        n => Ok(format!("{n} of {known} settings at the ends of ranges are refused: {}", refused[0])),
    }
}

/// The same request gets the same answer, a new head is not left out, and a model without one gets an answer, too.
fn selection(method: &LoadedMethod) -> Outcome {
    let (options, parameters) = (defaults(&method.info().options), model());
    let first = method.select(&parameters, &options)?;
    if method.select(&parameters, &options)? != first {
        return failed("`select` gives different answers to the same request: no run could be resumed");
    }
    let left_out = |(parameter, selection): (&Parameter, &Selection)| {
        parameter.role == Role::Head && *selection == Selection::Frozen
    };
    if parameters.iter().zip(&first).any(left_out) {
        return failed("`select` freezes the classification head, which begins as random numbers");
    }
    if first.iter().all(|selection| *selection == Selection::Frozen) {
        return failed("`select` freezes everything");
    }
    let causal: Vec<Parameter> = parameters.into_iter().filter(|parameter| parameter.role != Role::Head).collect();
    match method.select(&causal, &options) {
        Ok(_) => passed(),
        Err(error) => {
            check_no_panic("`select` for a model without a classification head", &error)?;
            Ok(format!("a model without a classification head is refused: {error}"))
        }
    }
}

/// All parameters that it reparametrizes, or why the test does not apply.
fn all_sites(method: &LoadedMethod) -> Result<Vec<testing::Layer<'_>>, Ending> {
    let sites = sites(method, &defaults(&method.info().options))?;
    if sites.is_empty() {
        return Err(Ending::Skipped("it reparametrizes nothing".into()));
    }
    Ok(sites)
}

/// The layers that it reparametrizes, or why the test does not apply.
fn reparametrized(method: &LoadedMethod) -> Result<Vec<testing::Layer<'_>>, Ending> {
    let layers = layers(method, &defaults(&method.info().options))?;
    if layers.is_empty() {
        return Err(Ending::Skipped("it reparametrizes no linear layer".into()));
    }
    Ok(layers)
}

/// Whether training begins with what the model computes.
fn start(method: &LoadedMethod) -> Outcome {
    let sites = all_sites(method)?;
    let (mut backend, mut largest) = (reference()?, (0.0, ""));
    for site in &sites {
        let change = site.change_at_start(&mut backend)?;
        if !change.is_finite() {
            return failed(format!("{}: it is not finite before anything is trained", site.name()));
        }
        largest = if change > largest.0 { (change, site.name()) } else { largest };
    }
    // Rounding from a different order of the same operations, computed in f64 and read as f32.
    match largest {
        (change, _) if change < 1e-6 => Ok("training begins with what the model computes".into()),
        (change, name) => {
            Ok(format!("the untrained method changes the model, {name} by {change:.1e} of the largest number"))
        }
    }
}

fn gradients(method: &LoadedMethod) -> Outcome {
    let sites = all_sites(method)?;
    let mut backend = reference()?;
    for site in &sites {
        if site.check_gradients(&mut backend)? == Gradients::Detached {
            return Err(Ending::Skipped("it stops gradients on purpose (detach), so differences must disagree".into()));
        }
    }
    passed()
}

fn merged(method: &LoadedMethod) -> Outcome {
    let layers = reparametrized(method)?;
    if !method.mergeable() {
        return Err(Ending::Skipped("it says that it cannot be merged".into()));
    }
    let mut backend = reference()?;
    layers.iter().try_for_each(|layer| layer.check_merge(&mut backend))?;
    passed()
}

/// Kernels are valid on every device and compute what the subgraphs do, on the CPU and on the devices present; gradient
/// rules agree with differences.
fn own(method: &LoadedMethod, devices: OpenDevices) -> Outcome {
    let mut reference = reference()?;
    let cases = own_operations(method, &defaults(&method.info().options), &mut reference)?;
    if cases.is_empty() {
        return Err(Ending::Skipped("it has no operations of its own".into()));
    }
    for case in &cases {
        println!("{} of {}", case.op.name, case.place);
        sparta_kernels::check_own(&case.op, &ranks(case)?)?;
        case.check_gradient(&mut reference)?;
    }
    let cpu: Box<dyn Backend> = Box::new(Cpu::new(None).map_err(|e| e.to_string())?);
    let mut compared = Vec::new();
    for mut backend in devices().into_iter().chain([cpu]) {
        for case in &cases {
            println!("{} of {} on {}", case.op.name, case.place, backend.info().id);
            compared.extend(case.check_kernels(&mut *backend)?);
        }
    }
    let alone = |kernel, what: &str| {
        let brought = cases.iter().any(|case| case.op.runs(kernel, &[]));
        (brought && !compared.contains(&kernel)).then(|| format!("; no device here runs {what}"))
    };
    let missing = alone(OwnKernel::Wgsl, "WGSL").unwrap_or_default();
    let mut names: Vec<&str> = cases.iter().map(|case| case.op.name.as_str()).collect();
    names.dedup();
    Ok(format!("{}: {} kernels compared with their subgraphs{missing}", names.join(", "), compared.len()))
}

/// The dimensions of the operands.
fn ranks(case: &OwnCase) -> Result<Vec<usize>, String> {
    let inputs: Vec<TensorType> = case.inputs.iter().map(|t| TensorType::new(DType::F32, t.shape.clone())).collect();
    let outputs = case.op.body.infer(&inputs.iter().collect::<Vec<_>>())?;
    Ok(inputs.iter().chain(&outputs).map(|ty| ty.shape.len()).collect())
}

/// A layer with a bias merges into one that computes the same result.
fn with_bias(method: &LoadedMethod) -> Outcome {
    let layers = reparametrized(method)?;
    if !method.mergeable() {
        return Err(Ending::Skipped("it says that it cannot be merged".into()));
    }
    let mut backend = reference()?;
    layers.iter().try_for_each(|layer| layer.check_bias(&mut backend))?;
    passed()
}

/// Terms of the loss are numbers, and updated tensors keep their shapes.
fn penalties(method: &LoadedMethod) -> Outcome {
    let sites = all_sites(method)?;
    let (mut backend, mut terms, mut updated) = (reference()?, 0, Vec::new());
    for site in &sites {
        terms += usize::from(site.penalty(&mut backend)?.is_some());
        updated.extend(site.updated(&mut backend)?);
    }
    updated.sort_unstable();
    updated.dedup();
    let terms = if terms == 0 { String::new() } else { format!("{terms} terms of the loss") };
    let updated = if updated.is_empty() { String::new() } else { format!("updates {}", updated.join(", ")) };
    let said: Vec<String> = [terms, updated].into_iter().filter(|said| !said.is_empty()).collect();
    Ok(said.join("; "))
}

/// Requests that no host makes end in an error or an answer, not in a crash: this process continues.
fn wrong_requests(method: &LoadedMethod) -> Outcome {
    let options = defaults(&method.info().options);
    let answer = |what: &str, outcome: Result<(), sparta_plugin::Error>| {
        println!("{what}");
        outcome.map_or_else(|error| check_message(what, &error), Ok)
    };
    answer("`select` without parameters", method.select(&[], &options).map(drop))?;
    answer("`select` without options", method.select(&model(), &Options::new()).map(drop))?;
    let odd = Parameter { shape: vec![], ..model().remove(2) };
    answer("`select` of a weight without a shape", method.select(&[odd], &options).map(drop))?;
    let parameter = model().remove(2);
    for (what, count, options) in
        [("no tensors", 0, &options), ("nine tensors", 9, &options), ("no options", 2, &Options::new())]
    {
        let site = Site { parameter: parameter.clone(), options: options.clone(), training: false };
        let inputs: Vec<Tensor> = (0..2 + count).map(|seed| Tensor::normal(&[3, 3], seed)).collect();
        let forward = |graph: &mut dyn GraphBuilder, v: &[Value]| {
            method.forward(&site, graph, v[0], v[1], &v[2..]).map(|y| vec![y])
        };
        answer(&format!("`forward` with {what}"), evaluate(&mut reference()?, &inputs, forward).map(drop))?;
        let merge = |graph: &mut dyn GraphBuilder, v: &[Value]| {
            method.merge(&site, graph, v[1], &v[2..]).map(|merged| vec![merged])
        };
        answer(&format!("`merge` with {what}"), evaluate(&mut reference()?, &inputs, merge).map(drop))?;
    }
    passed()
}
