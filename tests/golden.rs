//! Logits, losses, gradients of all parameters, whole training runs and generated texts agree with PyTorch and
//! transformers.
//!
//! The repository has a compact set of golden data; a complete one is used, too, if it is among the optional test data.

use sparta_suites::golden::trajectories::{self, Extent, Steps};
use sparta_suites::golden::{FAMILIES, Layout, Source, answers, generation, parity};
use sparta_suites::{Precision, Subject};
use sparta_tests::subjects::{cpu, methods, wgpu, wgpu_limited};

const CLASSIFIER: Layout = Layout { lm: false, f32: false, version_4: false };
const LANGUAGE_MODEL: Layout = Layout { lm: true, ..CLASSIFIER };

/// The largest buffer, in bytes, of a device with low limits: about all trained values, but less than an arena.
const BUFFER: u64 = 480 << 10;

/// The sets that are present.
fn sources() -> Vec<Source> {
    let full = sparta_test_data::find("oracle/golden").map(Source::full);
    [Source::compact()].into_iter().chain(full).collect()
}

fn has(source: &Source, family: &str) -> bool {
    let has = source.has(family);
    if !has {
        sparta_tests::skipped(&format!("the {} golden data has no {family}", source.name));
    }
    has
}

/// In f32, and in bf16 if the backend supports it.
fn check_parity(subject: Option<Subject>, sources: &[Source], layout: Layout) {
    let Some(mut subject) = subject else { return };
    for precision in [Precision::F32, Precision::Bf16] {
        if subject.offers(precision) {
            check_parity_in(precision, &mut subject, sources, layout);
        }
    }
}

fn check_parity_in(precision: Precision, subject: &mut Subject, sources: &[Source], layout: Layout) {
    let mut failures = vec![];
    for source in sources {
        for family in FAMILIES.into_iter().filter(|family| has(source, family)) {
            let found = parity::check(subject, source, family, layout, precision);
            failures.extend(found.into_iter().map(|failure| format!("{} data, {family}: {failure}", source.name)));
        }
    }
    assert!(failures.is_empty(), "{} in {precision}:\n{}", subject.name, failures.join("\n"));
}

/// In f32, and in bf16 if the backend supports it.
fn check_training(subject: Option<Subject>, sources: &[Source], extent: Extent, steps: Steps) {
    let Some(mut subject) = subject else { return };
    for precision in [Precision::F32, Precision::Bf16] {
        if subject.offers(precision) {
            check_training_in(precision, &mut subject, sources, extent, steps);
        }
    }
}

fn check_training_in(precision: Precision, subject: &mut Subject, sources: &[Source], extent: Extent, steps: Steps) {
    let plugins = methods();
    let mut failures = vec![];
    for source in sources {
        let trained = |family: &&str| extent.methods(family).next().is_some() && has(source, family);
        for family in trajectories::FAMILIES.into_iter().filter(trained) {
            for method in extent.methods(family) {
                let found = trajectories::check(subject, source, &plugins, family, method, steps, precision);
                let context = format!("{} data, {family} {}", source.name, method.name);
                failures.extend(found.into_iter().map(|failure| format!("{context}: {failure}")));
            }
        }
    }
    assert!(failures.is_empty(), "{} in {precision}:\n{}", subject.name, failures.join("\n"));
}

/// Token by token: logits in f32, and in bf16 if the backend supports it; greedy text in f32.
fn check_generation(subject: Option<Subject>, sources: &[Source]) {
    let Some(mut subject) = subject else { return };
    let mut failures = vec![];
    let all = sources.iter().flat_map(|source| FAMILIES.map(|family| (source, family)));
    for (source, family) in all.filter(|(source, family)| has(source, family)) {
        let mut found = generation::check_greedy(&mut subject, source, family);
        for precision in [Precision::F32, Precision::Bf16] {
            if subject.offers(precision) {
                found.extend(generation::check(&mut subject, source, family, precision));
            }
        }
        failures.extend(found.into_iter().map(|failure| format!("{} data, {family}: {failure}", source.name)));
    }
    assert!(failures.is_empty(), "{}:\n{}", subject.name, failures.join("\n"));
}

#[test]
fn generation_on_cpu() {
    check_generation(Some(cpu(None)), &sources());
}

#[test]
fn generation_on_wgpu() {
    check_generation(wgpu(), &[Source::compact()]);
}

#[test]
fn generation_on_wgpu_with_low_limits() {
    check_generation(wgpu_limited(BUFFER), &[Source::compact()]);
}

#[test]
fn classifiers_on_cpu() {
    check_parity(Some(cpu(None)), &sources(), CLASSIFIER);
}

#[test]
fn classifiers_on_wgpu() {
    check_parity(wgpu(), &sources(), CLASSIFIER);
}

#[test]
fn language_models_on_cpu() {
    check_parity(Some(cpu(None)), &sources(), LANGUAGE_MODEL);
}

#[test]
fn language_models_on_wgpu() {
    check_parity(wgpu(), &sources(), LANGUAGE_MODEL);
}

/// The same weights in f32, with a configuration in the layout of transformers 4.
#[test]
fn f32_weights_and_old_configurations() {
    for layout in [CLASSIFIER, LANGUAGE_MODEL] {
        check_parity(Some(cpu(None)), &[Source::compact()], Layout { f32: true, version_4: true, ..layout });
    }
}

#[test]
fn training_on_cpu() {
    check_training(Some(cpu(None)), &sources(), Extent::Full, Steps::Whole);
}

#[test]
fn training_in_micro_batches_on_cpu() {
    check_training(Some(cpu(None)), &sources(), Extent::Full, Steps::Split);
}

#[test]
fn training_on_wgpu() {
    check_training(wgpu(), &[Source::compact()], Extent::Crossed, Steps::Whole);
}

#[test]
fn classifiers_on_wgpu_with_low_limits() {
    check_parity(wgpu_limited(BUFFER), &[Source::compact()], CLASSIFIER);
}

#[test]
fn training_on_wgpu_with_low_limits() {
    check_training(wgpu_limited(BUFFER), &[Source::compact()], Extent::OneFamily, Steps::Whole);
}

#[test]
fn training_in_micro_batches_on_wgpu() {
    check_training(wgpu(), &[Source::compact()], Extent::OneFamily, Steps::Split);
}

fn check_answers(subject: Option<Subject>) {
    let Some(mut subject) = subject else { return };
    let failures = answers::check(&mut subject, &Source::compact());
    assert!(failures.is_empty(), "{}:\n{}", subject.name, failures.join("\n"));
}

#[test]
fn prompts_and_answers_on_cpu() {
    check_answers(Some(cpu(None)));
}

#[test]
fn prompts_and_answers_on_wgpu() {
    check_answers(wgpu());
}
