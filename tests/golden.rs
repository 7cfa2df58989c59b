//! Logits, losses, gradients of all parameters and whole training runs agree with PyTorch and transformers.
//!
//! The compact set of golden data proves it on a fresh clone; the complete one is read where it lies beside the
//! repository.

use sparta_suites::Subject;
use sparta_suites::golden::trajectories::{self, METHODS, Steps};
use sparta_suites::golden::{FAMILIES, Layout, Source, parity};
use sparta_tests::subjects::{cpu, methods, wgpu};
use std::path::Path;

const CLASSIFIER: Layout = Layout { lm: false, f32: false, version_4: false };
const LANGUAGE_MODEL: Layout = Layout { lm: true, ..CLASSIFIER };

/// The sets that are present.
fn sources() -> Vec<Source> {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/oracle/golden");
    if full.is_dir() {
        return vec![Source::compact(), Source::full(full)];
    }
    sparta_tests::skipped("the complete golden data is not beside the repository; the compact set is used");
    vec![Source::compact()]
}

fn check_parity(subject: Option<Subject>, sources: &[Source], layout: Layout) {
    let Some(mut subject) = subject else { return };
    let mut failures = vec![];
    for source in sources {
        for family in FAMILIES {
            let found = parity::check(&mut subject, source, family, layout);
            failures.extend(found.into_iter().map(|failure| format!("{} data, {family}: {failure}", source.name)));
        }
    }
    assert!(failures.is_empty(), "{}:\n{}", subject.name, failures.join("\n"));
}

fn check_training(subject: Option<Subject>, sources: &[Source], steps: Steps) {
    let Some(mut subject) = subject else { return };
    let plugins = methods();
    let mut failures = vec![];
    for source in sources {
        for family in trajectories::FAMILIES {
            for method in &METHODS {
                let found = trajectories::check(&mut subject, source, &plugins, family, method, steps);
                let context = format!("{} data, {family} {}", source.name, method.name);
                failures.extend(found.into_iter().map(|failure| format!("{context}: {failure}")));
            }
        }
    }
    assert!(failures.is_empty(), "{}:\n{}", subject.name, failures.join("\n"));
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

/// The same weights in f32, with the configuration as transformers 4 writes it.
#[test]
fn f32_weights_and_old_configurations() {
    for layout in [CLASSIFIER, LANGUAGE_MODEL] {
        check_parity(Some(cpu(None)), &[Source::compact()], Layout { f32: true, version_4: true, ..layout });
    }
}

#[test]
fn training_on_cpu() {
    check_training(Some(cpu(None)), &sources(), Steps::Whole);
}

#[test]
fn training_in_micro_batches_on_cpu() {
    check_training(Some(cpu(None)), &sources(), Steps::Split);
}

#[test]
fn training_on_wgpu() {
    check_training(wgpu(), &[Source::compact()], Steps::Whole);
}

#[test]
fn training_in_micro_batches_on_wgpu() {
    check_training(wgpu(), &[Source::compact()], Steps::Split);
}
