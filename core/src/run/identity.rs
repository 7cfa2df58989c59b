//! The identity of a run: a resumed run must have the same.

use super::prepare::Prepared;
use crate::Result;
use crate::hash::{fingerprint, hex};
use crate::method::index_set;
use crate::train::{Encoded, Target};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Names and values of everything that determines the course of a run.
pub fn identity(run: &Prepared) -> Result<BTreeMap<String, String>> {
    let fixed = run.config.fixed()?.into_iter();
    let mut identity: BTreeMap<String, String> = fixed.map(|(key, value)| (key, value.to_string())).collect();
    let adaptation = &run.setup.adaptation;
    for (name, value) in &adaptation.options {
        identity.insert(format!("option {name}"), value.to_string());
    }
    for (name, value) in &run.task_options {
        identity.insert(format!("task option {name}"), value.to_string());
    }
    let sets = adaptation.index_sets().into_values();
    identity.insert("chosen elements (SHA-256)".into(), index_set::fingerprint(sets));
    identity.insert("model weights (SHA-256)".into(), fingerprint(&run.weights));
    for (name, split) in [("train", &run.train), ("dev", &run.dev), ("test", &run.test)] {
        identity.insert(format!("{name} data (SHA-256)"), hash_examples(split));
    }
    Ok(identity)
}

fn hash_examples(examples: &[Encoded]) -> String {
    let mut hash = Sha256::new();
    for example in examples {
        hash.update((example.tokens.len() as u64).to_le_bytes());
        match &example.target {
            Target::Class(class) => hash.update(class.to_le_bytes()),
            Target::Numbers(numbers) => hash.update(bytemuck::cast_slice::<f32, u8>(numbers)),
            Target::Tokens(trained) => trained.iter().flatten().for_each(|&trained| hash.update([u8::from(trained)])),
        }
        hash.update(bytemuck::cast_slice::<u32, u8>(&example.tokens));
    }
    hex(&hash.finalize())
}
