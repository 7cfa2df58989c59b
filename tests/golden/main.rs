//! Logits, losses, gradients of all parameters and whole training runs agree with PyTorch and transformers.
//!
//! The numbers are those of an independent implementation on tiny models of six families (see `make.py`). The compact
//! set in this folder proves parity on a fresh clone; the complete one is read where it lies beside the repository.
//! Tolerances are those that its README derives from the distance between f32 and f64.

mod data;
mod devices;
mod parity;
mod trajectories;

use data::{Layout, Source};
use devices::On;
use trajectories::Steps;

const CLASSIFIER: Layout = Layout { lm: false, f32: false, version_4: false };
const LANGUAGE_MODEL: Layout = Layout { lm: true, ..CLASSIFIER };

#[test]
fn classifiers_on_cpu() {
    Source::present().into_iter().for_each(|source| parity::check(On::Cpu, source, CLASSIFIER));
}

#[test]
fn classifiers_on_wgpu() {
    Source::present().into_iter().for_each(|source| parity::check(On::Wgpu, source, CLASSIFIER));
}

#[test]
fn language_models_on_cpu() {
    Source::present().into_iter().for_each(|source| parity::check(On::Cpu, source, LANGUAGE_MODEL));
}

#[test]
fn language_models_on_wgpu() {
    Source::present().into_iter().for_each(|source| parity::check(On::Wgpu, source, LANGUAGE_MODEL));
}

/// The same weights in f32, with the configuration as transformers 4 writes it.
#[test]
fn f32_weights_and_old_configurations() {
    for layout in [CLASSIFIER, LANGUAGE_MODEL] {
        parity::check(On::Cpu, Source::Compact, Layout { f32: true, version_4: true, ..layout });
    }
}

#[test]
fn training_on_cpu() {
    Source::present().into_iter().for_each(|source| trajectories::check(On::Cpu, source, Steps::Whole));
}

#[test]
fn training_in_micro_batches_on_cpu() {
    Source::present().into_iter().for_each(|source| trajectories::check(On::Cpu, source, Steps::Split));
}

#[test]
fn training_on_wgpu() {
    trajectories::check(On::Wgpu, Source::Compact, Steps::Whole);
}

#[test]
fn training_in_micro_batches_on_wgpu() {
    trajectories::check(On::Wgpu, Source::Compact, Steps::Split);
}
