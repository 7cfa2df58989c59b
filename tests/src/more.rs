//! The methods of `plugins/more`: their libraries, and their training runs in `tests/golden/more`.

use crate::command::binary;
use sparta_core::adapter::{MergeDtype, check_examples, check_merged, merged_tensor};
use sparta_core::train::{Encoded, Session};
use sparta_core::weights::{TensorFile, Weights};
use std::collections::BTreeMap;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const LR: f64 = 5e-3;
/// The tolerance for losses between 0.4 and 3 after ten steps of Adam, which PyTorch and this program both compute in
/// f32.
pub const LOSS: f64 = 1e-4;
/// The tolerance for values that moved by up to ten times the rate.
pub const VALUES: f32 = 2e-4;

/// Builds the libraries, which are not part of the default build, and returns their directory. With the whole workspace
/// and without what cargo tells this test of its own package, so that no dependency has different features, and no build
/// script that reads these variables runs again.
pub fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "--quiet", "--workspace", "--lib"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    let own = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(own)) {
        build.env_remove(name);
    }
    assert!(build.status().unwrap().success());
    binary().parent().unwrap().to_owned()
}

pub fn library(directory: &Path, method: &str) -> PathBuf {
    directory.join(format!("{DLL_PREFIX}sparta_method_{}{DLL_SUFFIX}", method.replace('-', "_")))
}

pub fn golden(file: &str) -> TensorFile {
    TensorFile::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/more").join(file)).unwrap()
}

/// The examples of each step.
pub fn batches(golden: &TensorFile) -> Vec<Vec<Encoded>> {
    let integers = |name: &str| golden.integers(name).unwrap().1;
    let (tokens, lengths, labels) = (integers("tokens"), integers("lengths"), integers("labels"));
    let example = |(i, tokens): (usize, &[i64])| {
        let tokens = tokens[..lengths[i] as usize].iter().map(|&token| token as u32).collect();
        Encoded::class(tokens, labels[i] as u32)
    };
    let all: Vec<Encoded> = tokens.chunks(16).enumerate().map(example).collect();
    all.chunks(4).map(<[Encoded]>::to_vec).collect()
}

/// The tensors of a part of a method's run: their names in the file, and ours.
pub fn names<'a>(golden: &'a TensorFile, method: &str, part: &str) -> impl Iterator<Item = (&'a str, String)> {
    let prefix = format!("{method}.{part}.");
    golden.names().filter_map(move |name| Some((name, name.strip_prefix(&prefix)?.to_owned())))
}

/// The values of a part of a method's run, by our names.
pub fn part(golden: &TensorFile, method: &str, part: &str) -> BTreeMap<String, Vec<f32>> {
    names(golden, method, part).map(|(name, own)| (own, golden.floats(name).unwrap().1)).collect()
}

/// Merged weights give the logits of the adapter.
pub fn merges(session: &mut Session, weights: &Weights, dev: &[Encoded]) {
    let values = session.trained_values().unwrap();
    let examples = check_examples(session.setup(), dev);
    let merged = |session: &mut Session, position: usize| {
        let dtype = MergeDtype::Keep.of(&session.setup().adaptation.parameters, position);
        Ok((dtype, merged_tensor(session, weights, &values, position, dtype)?))
    };
    let check = check_merged(session, [&examples; 2], 64, weights, merged).unwrap();
    assert!(check.agrees() && check.largest_difference < 1e-4, "{check}");
}
