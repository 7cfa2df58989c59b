//! How a case is judged.

use super::case::{Case, Program, gradient_of};
use super::narrow;
use crate::device::Tensors;
use crate::{BoundPlan, Device, Precision, Random, Subject, Tensor};
use sparta_graph::{BackendError, DType, Op, Plan};
use std::fmt;

/// The most rows or columns of a short case: below the 65,535 workgroups that a grid has in one dimension.
const LONG: usize = 20_000;

/// Cases with what the reference computes in each of them.
pub struct Judged {
    precision: Precision,
    cases: Vec<JudgedCase>,
    /// Where the reference disagrees with the case's own formulas or with differences.
    pub failures: Vec<String>,
}

struct JudgedCase {
    name: String,
    program: Program,
    reference: Tensors,
}

/// What a backend did in the cases.
pub struct Outcome {
    backend: String,
    /// What it computed, by case; empty if it failed.
    outputs: Vec<Tensors>,
    pub failures: Vec<String>,
    /// Cases that the backend says it cannot run, and may refuse.
    pub refused: Vec<String>,
}

impl Outcome {
    fn of(subject: &Subject) -> Outcome {
        Outcome { backend: subject.name.clone(), outputs: vec![], failures: vec![], refused: vec![] }
    }

    /// Opens the device; if that fails, it is a failure of the outcome.
    fn open(&mut self, subject: &mut Subject) -> Option<Device> {
        let opened = subject.device();
        self.failures.extend(opened.as_ref().err().map(|e| format!("{}: {e}", subject.name)));
        opened.ok()
    }
}

pub(super) enum Failure {
    Device(BackendError),
    Wrong(String),
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Failure {
        Failure::Device(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Device(error) => error.fmt(f),
            Failure::Wrong(text) => f.write_str(text),
        }
    }
}

impl Judged {
    /// Runs the reference on the cases and checks it.
    pub fn new(cases: &[Case], precision: Precision) -> Judged {
        let mut judged = Judged { precision, cases: vec![], failures: vec![] };
        for case in cases {
            // Shown when a kernel panics.
            println!("{}", case.name);
            let checked = match precision {
                Precision::F32 => JudgedCase::new(case).map(Some),
                Precision::Bf16 => JudgedCase::narrowed(case),
            };
            match checked {
                Ok(case) => judged.cases.extend(case),
                Err(failure) => judged.failures.push(failure),
            }
        }
        judged
    }

    /// Runs a backend on the cases and compares it with the reference.
    pub fn check(&self, subject: &mut Subject) -> Outcome {
        self.check_those(subject, |_| true)
    }

    /// The same without the cases of very many rows or columns: they test how grids are divided, not what threads do.
    pub fn check_short(&self, subject: &mut Subject) -> Outcome {
        let is_short = |program: &Program| program.graph.values().iter().all(|v| v.ty.shape.iter().all(|&n| n <= LONG));
        self.check_those(subject, is_short)
    }

    fn check_those(&self, subject: &mut Subject, wanted: impl Fn(&Program) -> bool) -> Outcome {
        let mut outcome = Outcome::of(subject);
        let Some(mut device) = outcome.open(subject) else { return outcome };
        let offered = device.info().activations;
        if self.precision == Precision::Bf16 && !offered.contains(&DType::BF16) {
            outcome.refused.push(format!("{}: activations in bf16 are not supported", subject.name));
            return outcome;
        }
        for case in &self.cases {
            if !wanted(&case.program) {
                outcome.outputs.push(Tensors::new());
                continue;
            }
            println!("{}: {}", subject.name, case.name);
            let failure = match against_reference(case, &mut device) {
                Ok(outputs) => {
                    outcome.outputs.push(outputs);
                    continue;
                }
                Err(failure) => failure,
            };
            outcome.outputs.push(Tensors::new());
            let text = format!("{}: {}: {failure}", case.name, subject.name);
            match failure {
                Failure::Device(error) if case.program.refusable && subject.is_refusal(&error) => {
                    outcome.refused.push(text);
                }
                _ => outcome.failures.push(text),
            }
        }
        outcome
    }

    /// Judges a backend that rounds f32 factors to TF32, op by op, in the cases that have products.
    pub fn check_tf32(&self, subject: &mut Subject) -> Outcome {
        let mut outcome = Outcome::of(subject);
        let Some(mut device) = outcome.open(subject) else { return outcome };
        if !device.info().tf32 {
            outcome.refused.push(format!("{}: products in TF32 are not supported", subject.name));
            return outcome;
        }
        let multiplies = |op: &Op| matches!(op, Op::Linear(_) | Op::SampledGrad(_));
        for JudgedCase { name, program, .. } in &self.cases {
            let multiplies = program.graph.nodes().iter().any(|node| multiplies(&node.op));
            if !multiplies || !narrow::is_pure(&program.graph) || !narrow::is_small(program) {
                continue;
            }
            println!("{}: {name} in TF32", subject.name);
            let judged = narrow::judge(program, &mut device, true, |b| tolerance(program, DType::F32, b));
            outcome.failures.extend(judged.err().map(|failure| format!("{name} in TF32: {}: {failure}", subject.name)));
        }
        outcome
    }

    /// Where two backends computed different bits.
    pub fn differences(&self, a: &Outcome, b: &Outcome) -> Vec<String> {
        let mut failures = vec![];
        for ((case, a_out), b_out) in self.cases.iter().zip(&a.outputs).zip(&b.outputs) {
            let both = a_out.iter().filter_map(|(name, x)| Some((name, x, b_out.get(name)?)));
            for (name, x, y) in both {
                let context = format!("{}: {name}: {} and {}", case.name, a.backend, b.backend);
                failures.extend(same_bits(&context, x, y).err());
            }
        }
        failures
    }
}

impl JudgedCase {
    fn new(case: &Case) -> Result<JudgedCase, String> {
        let program = case.program(Precision::F32, false, true);
        let reference = against_formulas(case, &program)?;
        against_differences(case, &reference)?;
        Ok(JudgedCase { name: case.name.clone(), program, reference })
    }

    /// The case in bf16; `None` if that is the same, or too large. Without rounding, its graph, gradients included,
    /// computes what the f32 one does.
    fn narrowed(case: &Case) -> Result<Option<JudgedCase>, String> {
        let program = case.program(Precision::Bf16, false, true);
        if !program.narrowed || !narrow::is_small(&program) {
            return Ok(None);
        }
        let fail = |e: BackendError| format!("{}: reference: {e}", case.name);
        let wide = case.program(Precision::F32, false, true);
        let expected = Device::reference().run(&Plan::build(&wide.graph, false), &wide.data).map_err(fail)?;
        let unrounded = narrow::unrounded(&program.graph).map_err(|e| format!("{}: {e}", case.name))?;
        let data = narrow::widened(&program.data);
        let got = Device::reference().run(&Plan::build(&unrounded, false), &data).map_err(fail)?;
        for (name, expected) in expected.iter().filter(|(name, _)| !program.ignored.contains(name)) {
            let context = format!("{}: the graph for bf16 without rounding: {name}", case.name);
            let largest =
                expected.values.iter().filter(|x| x.is_finite()).fold(program.magnitude, |m, x| m.max(x.abs()));
            compare(&context, &got[name].values, &expected.values, |_| 1e-11 * largest)?;
        }
        let reference = Device::reference().run(&Plan::build(&program.graph, false), &program.data).map_err(fail)?;
        if narrow::is_pure(&program.graph) {
            // The reference rounds where the graph says bf16, and nowhere else.
            narrow::judge(&program, &mut Device::reference(), false, |x| 1e-12 * (x.abs() + program.magnitude))
                .map_err(|failure| format!("{}: reference: {failure}", case.name))?;
        }
        Ok(Some(JudgedCase { name: case.name.clone(), program, reference }))
    }
}

/// Runs the reference, compares it with the case's own formulas and returns what it computed.
fn against_formulas(case: &Case, program: &Program) -> Result<Tensors, String> {
    let mut device = Device::reference();
    let plan = device.plan(&program.graph, false);
    let outputs = device.run(&plan, &program.data).map_err(|e| format!("{}: reference: {e}", case.name))?;
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
    let program = case.program(Precision::F32, true, false);
    if program.wrt.is_empty() {
        return Ok(());
    }
    let fail = |e| format!("{}: reference: {e}", case.name);
    let mut device = Device::reference();
    let plan = device.plan(&program.graph, false);
    let mut bound = BoundPlan::open(&mut device, &plan).map_err(fail)?;
    bound.upload(&program.data).map_err(fail)?;
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
                bound.write(&wrt.name, &moved).and_then(|()| bound.run()).map_err(fail)?;
                Ok(seeded_loss(&program, &bound.download().map_err(fail)?))
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
        bound.write(&wrt.name, x).map_err(fail)?;
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
fn against_reference(case: &JudgedCase, device: &mut Device) -> Result<Tensors, Failure> {
    let JudgedCase { program, reference, .. } = case;
    let plan = device.plan(&program.graph, false);
    let mut bound = BoundPlan::open(device, &plan)?;
    let mut run = || {
        bound.upload(&program.data)?;
        bound.run()?;
        bound.download()
    };
    let (first, second) = (run()?, run()?);
    drop(bound);
    let shared = match device.info().in_place {
        true => {
            let plan = device.plan(&program.graph, true);
            Some(device.run(&plan, &program.data)?)
        }
        false => None,
    };
    // With intermediate roundings, each op is judged by what it was given.
    let alone = program.narrowed && narrow::is_pure(&program.graph);
    if alone {
        narrow::judge(program, device, false, |b| tolerance(program, DType::F32, b))?;
    }
    for (name, tensor) in &first {
        let context = format!("{name} {:?}", tensor.ty.shape);
        let same = same_bits(&format!("{context}: second run"), &second[name], tensor).and_then(|()| match &shared {
            Some(shared) => same_bits(&format!("{context}: in place"), &shared[name], tensor),
            None => Ok(()),
        });
        let close = match alone || program.ignored.contains(name) {
            true => Ok(()),
            false => {
                let dtype = tensor.ty.dtype;
                compare(&context, &tensor.values, &reference[name].values, |b| tolerance(program, dtype, b))
            }
        };
        close.and(same).map_err(Failure::Wrong)?;
    }
    Ok(first)
}

/// The error that f32 arithmetic may make in an element whose true value is `b`.
///
/// A sum of k products of numbers near 1 is off by less than k roundings of 2^-24 each, however small the sum; k is at
/// most the longest side of any tensor here. The relative part allows for a few dozen roundings, and for `exp` and
/// `tanh` of graphics drivers. Stored types (bf16, f16, u32) hold values that are exact by construction of the cases.
fn tolerance(program: &Program, dtype: DType, b: f64) -> f64 {
    if dtype != DType::F32 || b.is_infinite() {
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
        a != b && !(a.is_nan() && b.is_nan()) && (error.is_nan() || error > tolerance(**b))
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
    if different == 0 { Ok(()) } else { Err(format!("{context}: {different} elements have different bits")) }
}
