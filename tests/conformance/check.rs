//! How a case is judged.

use crate::case::{Case, Program, gradient_of};
use crate::devices;
use sparta_graph::{BackendError, DType, Plan};
use sparta_tests::device::Tensors;
use sparta_tests::{Device, Random, Session, Tensor};

/// A case with the outputs of the reference.
struct Judged<'a> {
    case: &'a Case,
    program: Program,
    reference: Tensors,
}

/// Checks cases on every backend and panics with all that failed.
pub fn check(cases: &[Case]) {
    let mut failures = vec![];
    let mut judged = vec![];
    for case in cases {
        // Shown when a kernel panics.
        println!("{}", case.name);
        let program = case.program(false, true);
        match against_formulas(case, &program) {
            Ok(reference) => {
                failures.extend(against_differences(case, &reference).err());
                judged.push(Judged { case, program, reference });
            }
            Err(failure) => failures.push(failure),
        }
    }
    let one = on_device("cpu with 1 thread", &mut devices::cpu(1), &judged, &mut failures);
    let three = on_device("cpu with 3 threads", &mut devices::cpu(3), &judged, &mut failures);
    for ((judged, one), three) in judged.iter().zip(&one).zip(&three) {
        let same = one.iter().try_for_each(|(name, x)| same_bits("1 and 3 threads", &three[name], x));
        failures.extend(same.err().map(|failure| format!("{}: {failure}", judged.case.name)));
    }
    devices::with_wgpu(|name, device| {
        on_device(name, device, &judged, &mut failures);
    });
    assert!(failures.is_empty(), "{} failures in {} cases\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// What a device computes in each case; nothing where it failed.
fn on_device(name: &str, device: &mut Device, judged: &[Judged], failures: &mut Vec<String>) -> Vec<Tensors> {
    let one = |judged: &Judged| {
        println!("{name}: {}", judged.case.name);
        against_reference(judged, device).unwrap_or_else(|failure| {
            if judged.program.refusable && devices::is_refusal(name, &failure) {
                return Tensors::new();
            }
            failures.push(format!("{}: {name}: {failure}", judged.case.name));
            Tensors::new()
        })
    };
    judged.iter().map(one).collect()
}

/// Runs the reference, compares it with the case's own formulas and returns what it computed.
fn against_formulas(case: &Case, program: &Program) -> Result<Tensors, String> {
    let plan = Plan::build(&program.graph, false);
    let outputs =
        Device::reference().run(&plan, &program.data).map_err(|e| format!("{}: reference: {e}", case.name))?;
    for (name, expected) in &program.expected {
        let context = format!("{}: reference against formula: {name}", case.name);
        let finite = expected.iter().filter(|x| x.is_finite());
        let scale = finite.fold(program.magnitude, |m, x| m.max(x.abs()));
        let exact = outputs[name].ty.dtype != DType::F32;
        let tolerance = |b: f64| if exact || b.is_infinite() { 0.0 } else { 1e-11 * scale };
        compare(&context, &outputs[name].values, expected, tolerance)?;
    }
    Ok(outputs)
}

/// Compares the reference's gradients with differences of its forward pass.
///
/// The five-point formula with step h is off by h^4 f'''''/30 + 1e-16 |f| / h: about 1e-12 for the values here.
fn against_differences(case: &Case, reference: &Tensors) -> Result<(), String> {
    let program = case.program(true, false);
    if program.wrt.is_empty() {
        return Ok(());
    }
    let fail = |e| format!("{}: reference: {e}", case.name);
    let plan = Plan::build(&program.graph, false);
    let mut device = Device::reference();
    let mut session = Session::open(&mut device, &plan).map_err(fail)?;
    session.upload(&program.data).map_err(fail)?;
    let mut random = Random::named(&case.name);
    for wrt in &program.wrt {
        let x = &program.data[&wrt.name];
        let all: Vec<usize> = (0..x.values.len()).collect();
        let chosen = wrt.chosen.as_ref().unwrap_or(&all);
        let grad = &reference[&gradient_of(&wrt.name)].values;
        let rms = (grad.iter().map(|g| g * g).sum::<f64>() / grad.len().max(1) as f64).sqrt();
        // One direction through all elements, and single ones.
        let mut directions = vec![random.normals(chosen.len())];
        for _ in 0..chosen.len().min(3) {
            let mut unit = vec![0.0; chosen.len()];
            unit[random.below(chosen.len())] = 1.0;
            directions.push(unit);
        }
        for direction in directions {
            let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
            let mut loss = |t: f64| -> Result<f64, String> {
                let mut moved = x.clone();
                chosen.iter().zip(&direction).for_each(|(&i, d)| moved.values[i] += t * d / length);
                session.write(&wrt.name, &moved).and_then(|()| session.run()).map_err(fail)?;
                Ok(seeded_loss(&program, &session.download().map_err(fail)?))
            };
            if chosen.is_empty() {
                continue;
            }
            let h = 1e-3;
            let numeric = (8.0 * (loss(h)? - loss(-h)?) - (loss(2.0 * h)? - loss(-2.0 * h)?)) / (12.0 * h);
            let analytic = grad.iter().zip(&direction).map(|(g, d)| g * d / length).sum::<f64>();
            let error = (numeric - analytic).abs();
            if error.is_nan() || error > 1e-6 * (analytic.abs() + rms) + 1e-9 * program.magnitude {
                return Err(format!(
                    "{}: gradient of {} {:?}: {analytic:e}, by differences {numeric:e}",
                    case.name, wrt.name, x.ty.shape
                ));
            }
        }
        session.write(&wrt.name, x).map_err(fail)?;
    }
    Ok(())
}

fn seeded_loss(program: &Program, outputs: &Tensors) -> f64 {
    let products = program.seeds.iter().map(|(output, upstream)| {
        let (y, g) = (&outputs[output].values, &program.data[upstream].values);
        y.iter().zip(g).map(|(y, g)| y * g).sum::<f64>()
    });
    products.sum()
}

/// Compares a backend with the reference, and with itself: a second run, and memory shared in place.
fn against_reference(judged: &Judged, device: &mut Device) -> Result<Tensors, String> {
    let Judged { program, reference, .. } = judged;
    let text = |e: BackendError| e.to_string();
    let plan = Plan::build(&program.graph, false);
    let mut session = Session::open(device, &plan).map_err(text)?;
    let mut run = || {
        session.upload(&program.data)?;
        session.run()?;
        session.download()
    };
    let (first, second) = (run().map_err(text)?, run().map_err(text)?);
    drop(session);
    let shared = match device.info().in_place {
        true => Some(device.run(&Plan::build(&program.graph, true), &program.data).map_err(text)?),
        false => None,
    };
    for (name, tensor) in &first {
        let context = format!("{name} {:?}", tensor.ty.shape);
        if !program.ignored.contains(name) {
            compare(&context, &tensor.values, &reference[name].values, |b| tolerance(program, tensor, b))?;
        }
        same_bits(&format!("{context}: second run"), &second[name], tensor)?;
        if let Some(shared) = &shared {
            same_bits(&format!("{context}: in place"), &shared[name], tensor)?;
        }
    }
    Ok(first)
}

/// The error that f32 arithmetic may make in an element whose true value is `b`.
///
/// A sum of k products of numbers near 1 is off by less than k roundings of 2^-24 each, however small the sum; k is at
/// most the longest side of any tensor here. The relative part allows for a few dozen roundings, and for `exp` and
/// `tanh` of graphics drivers. Stored types (bf16, f16, u32) hold values that are exact by construction of the cases.
fn tolerance(program: &Program, tensor: &Tensor, b: f64) -> f64 {
    if tensor.ty.dtype != DType::F32 || b.is_infinite() {
        return 0.0;
    }
    let sides = program.graph.values().iter().flat_map(|v| v.ty.shape.iter().copied());
    let terms = sides.max().unwrap_or(1).clamp(8, 512) as f64;
    2e-5 * b.abs() + 2f64.powi(-24) * terms * program.magnitude
}

fn compare(context: &str, got: &[f64], expected: &[f64], tolerance: impl Fn(f64) -> f64) -> Result<(), String> {
    if got.len() != expected.len() {
        return Err(format!("{context}: {} elements, expected {}", got.len(), expected.len()));
    }
    let off = |(_, (a, b)): &(usize, (&f64, &f64))| {
        let error = (*a - *b).abs();
        a != b && (error.is_nan() || error > tolerance(**b))
    };
    let mut wrong = got.iter().zip(expected).enumerate().filter(off);
    let Some((i, (a, b))) = wrong.next() else { return Ok(()) };
    let more = wrong.count();
    Err(format!(
        "{context}: element {i} is {a:e}, expected {b:e} within {:e}; {more} more of {}",
        tolerance(*b),
        got.len()
    ))
}

fn same_bits(context: &str, a: &Tensor, b: &Tensor) -> Result<(), String> {
    let different = a.values.iter().zip(&b.values).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    if different == 0 { Ok(()) } else { Err(format!("{context}: {different} elements have other bits")) }
}
