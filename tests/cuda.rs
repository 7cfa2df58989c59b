//! The CUDA backend on a CPU: conformance and golden suites on its kernels compiled by g++, in several orders of
//! threads, with and without a library of products.

#[path = "cuda/card.rs"]
mod card;
#[path = "cuda/faults.rs"]
mod faults;
#[path = "cuda/machine.rs"]
mod machine;

use machine::{Emulated, Options};
use sparta_backend_cuda::CudaBackend;
use sparta_suites::conformance::{Area, Judged};
use sparta_suites::golden::trajectories::{self, Extent, Steps};
use sparta_suites::golden::{FAMILIES, Layout, Source, parity};
use sparta_suites::{Precision, Subject, contract};
use std::process::Command;

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// The emulated device; `None` with a message if there is no g++, which fails in CI.
fn subject(order: i32, products: bool) -> Option<Subject<'static>> {
    if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
        sparta_tests::skipped("kernels are emulated on Linux on x86-64 only");
        return None;
    }
    if Command::new("g++").arg("--version").output().is_err() {
        sparta_tests::skipped_unless_in_ci("no g++");
        return None;
    }
    let options = Options { order, products, fault: None };
    let open = move || CudaBackend::new(Box::new(Emulated::new(options)));
    Some(Subject::new(format!("{options:?}"), move || Ok(Box::new(open()?))))
}

/// Checks an area in both precisions, each in two orders of threads: with translated products, and with the library's. Cases
/// of very many rows run once. Where every access is checked, which takes five times as long, every third case runs in
/// bf16, which the kernels written by hand are for.
fn check_area(area: &Area) {
    let mut failures = vec![];
    let checked = machine::checks_accesses();
    let (precisions, step) = if checked { (&PRECISIONS[1..], 3) } else { (&PRECISIONS[..], 1) };
    for &precision in precisions {
        let cases: Vec<_> = (area.cases)().into_iter().step_by(step).collect();
        let judged = Judged::new(&cases, precision);
        failures.extend_from_slice(&judged.failures);
        let wide = precision == Precision::F32;
        let Some(mut translated) = subject(0, false) else { return };
        let outcome = if wide { judged.check(&mut translated) } else { judged.check_short(&mut translated) };
        failures.extend_from_slice(&outcome.failures);
        // In order 2, asynchronous copies come late; only kernels in bf16 have any.
        let Some(mut multiplied) = subject(if wide { 1 } else { 2 }, true) else { return };
        failures.extend_from_slice(&judged.check_short(&mut multiplied).failures);
        if wide {
            failures.extend_from_slice(&judged.check_tf32(&mut multiplied).failures);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

sparta_tests::area_tests!(check_area);

#[test]
fn the_contract_is_kept() {
    let Some(mut subject) = subject(0, true) else { return };
    let failures = contract::check(&mut subject);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn models_agree_with_pytorch() {
    let Some(mut subject) = subject(1, true) else { return };
    let mut failures = vec![];
    for precision in PRECISIONS {
        for (family, lm) in FAMILIES.into_iter().flat_map(|family| [(family, false), (family, true)]) {
            let layout = Layout { lm, f32: false, version_4: false };
            let found = parity::check(&mut subject, &Source::compact(), family, layout, precision);
            failures.extend(found.into_iter().map(|failure| format!("{family} in {precision}: {failure}")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// In both precisions at the same time, since this takes the longest.
fn check_training(precision: Precision) {
    let Some(mut subject) = subject(2, true) else { return };
    let plugins = sparta_tests::subjects::methods();
    let mut failures = vec![];
    let families = trajectories::FAMILIES.into_iter();
    for (family, method) in families.flat_map(|family| Extent::Crossed.methods(family).map(move |m| (family, m))) {
        let source = Source::compact();
        let found = trajectories::check(&mut subject, &source, &plugins, family, method, Steps::Whole, precision);
        failures.extend(found.into_iter().map(|failure| format!("{family} {}: {failure}", method.name)));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn training_agrees_with_pytorch_in_f32() {
    check_training(Precision::F32);
}

#[test]
fn training_agrees_with_pytorch_in_bf16() {
    check_training(Precision::Bf16);
}
