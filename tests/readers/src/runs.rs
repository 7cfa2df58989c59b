//! Run directories: checkpoints, and what resuming and reports read.

use crate::place::{self, place, put, tensor};
use serde_json::{Value, json};
use sparta_core::checkpoint::{Checkpoints, seal};
use sparta_core::hash::hash_file;
use sparta_core::job::RunConfig;
use sparta_core::report;
use sparta_core::weights::Dtype;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const STEP: &str = "checkpoints/step-00000500";

fn state_file() -> Vec<u8> {
    let part = |name: &str| tensor(name, Dtype::F32, &[2], bytemuck::cast_slice(&[0.5f32, 1.0]));
    place::file(&[part("value.w"), part("m.w"), part("v.w")])
}

/// `checkpoint.json` of a run without anything that identifies it, for a state of this hash.
fn manifest_of(state_sha256: &str) -> String {
    let mut manifest: Value = serde_json::from_str(include_str!("../seeds/checkpoint.json")).expect("the seed is JSON");
    manifest["identity"] = json!({});
    manifest["files"] = json!({"state.safetensors": state_sha256});
    manifest.to_string()
}

fn checkpoint(dir: &Path) {
    fs::create_dir_all(dir.join(STEP)).expect("a directory in the one for temporary files");
    put(&dir.join(STEP), "state.safetensors", state_file());
}

/// A manifest with its hash.
fn put_manifest(step: &Path, bytes: &[u8]) {
    put(step, "checkpoint.json", bytes);
    put(step, "checkpoint.sha256", seal(bytes));
}

fn load_newest(dir: &Path) -> bool {
    Checkpoints::new(dir, 1, BTreeMap::new()).load_newest(|_| Ok(())).is_ok()
}

pub fn manifest(bytes: &[u8]) -> bool {
    let dir = place("checkpoint_manifest", checkpoint);
    put_manifest(&dir.join(STEP), bytes);
    load_newest(&dir)
}

pub fn good_manifest() -> Vec<Vec<u8>> {
    let dir = place("checkpoint_hash", checkpoint);
    let hash = hash_file(&dir.join(STEP).join("state.safetensors")).expect("it was written");
    vec![manifest_of(&hash).into()]
}

/// The state of a checkpoint whose manifest has its hash.
pub fn state(bytes: &[u8]) -> bool {
    let dir = place("checkpoint_state", checkpoint);
    let step = dir.join(STEP);
    put(&step, "state.safetensors", bytes);
    let hash = hash_file(&step.join("state.safetensors")).expect("it was written");
    put_manifest(&step, manifest_of(&hash).as_bytes());
    load_newest(&dir)
}

pub fn good_state() -> Vec<Vec<u8>> {
    vec![state_file()]
}

/// The files that a report is made of.
fn run(dir: &Path) {
    put(dir, "config.json", include_str!("../seeds/config.json"));
    put(dir, "plan.json", include_str!("../seeds/plan.json"));
    put(dir, "result.json", include_str!("../seeds/result.json"));
    put(dir, "metrics.jsonl", include_str!("../seeds/metrics.jsonl"));
}

fn reported(name: &'static str, file: &str, bytes: &[u8]) -> bool {
    let dir = place(name, run);
    put(&dir, file, bytes);
    report::write(std::slice::from_ref(&dir), &dir.join(report::FILE)).is_ok()
}

pub fn config(bytes: &[u8]) -> bool {
    let reported = reported("run_config", "config.json", bytes);
    RunConfig::of_run(&place("run_config", run)).is_ok() && reported
}

pub fn good_config() -> Vec<Vec<u8>> {
    vec![include_bytes!("../seeds/config.json").to_vec()]
}

pub fn plan(bytes: &[u8]) -> bool {
    reported("run_plan", "plan.json", bytes)
}

pub fn good_plan() -> Vec<Vec<u8>> {
    vec![include_bytes!("../seeds/plan.json").to_vec()]
}

pub fn result(bytes: &[u8]) -> bool {
    reported("run_result", "result.json", bytes)
}

pub fn good_result() -> Vec<Vec<u8>> {
    vec![include_bytes!("../seeds/result.json").to_vec()]
}

pub fn metrics(bytes: &[u8]) -> bool {
    reported("run_metrics", "metrics.jsonl", bytes)
}

pub fn good_metrics() -> Vec<Vec<u8>> {
    vec![include_bytes!("../seeds/metrics.jsonl").to_vec()]
}
