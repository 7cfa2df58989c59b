//! Each family generates: with cached keys and values, the logits after every token are the golden ones, and greedy
//! text is that of transformers.

use super::data::{Layout, Source, model_directory};
use super::distance::{self, Distance};
use super::parity::{LM_LOGITS, worst};
use crate::{Precision, Subject};
use sparta_core::adapter::AppliedAdapter;
use sparta_core::job::PrecisionChoice;
use sparta_core::plugin::PluginSet;
use sparta_core::train::Session;
use sparta_core::weights::TensorFile;
use std::path::Path;

/// Made by `tests/golden/greedy.py`.
const GREEDY: &str = include_str!("../../../golden/greedy.json");

/// As many positions as every family's model can compute.
const CONTEXT: usize = 32;

const LANGUAGE_MODEL: Layout = Layout { lm: true, f32: false, version_4: false };

/// What is wrong with the logits of a family's model during generation.
pub fn check(subject: &mut Subject, source: &Source, family: &str, precision: Precision) -> Vec<String> {
    distance::check(subject, precision, |subject| measure(subject, source, family, precision))
}

fn measure(
    subject: &mut Subject,
    source: &Source,
    family: &str,
    precision: Precision,
) -> Result<Vec<Distance>, String> {
    let model = model_directory(source, family, LANGUAGE_MODEL);
    let mut session = open(subject, model.path(), precision)?;
    let vocabulary = session.setup().decoder.vocab_size;
    let batch = TensorFile::open(source.batch(family)).expect("the batch");
    let (shape, ids) = batch.integers("input_ids").expect("tokens");
    let mask = batch.integers("attention_mask").expect("the mask").1;
    let (mut logits, mut known) = (vec![0.0; ids.len() * vocabulary], vec![0; ids.len()]);
    for row in 0..shape[0] {
        let places: Vec<usize> = (row * shape[1]..(row + 1) * shape[1]).filter(|&i| mask[i] == 1).collect();
        // The first row token by token, others in steps of several.
        let mut past = 0;
        for chunk in places.chunks([1, 3, 7][row % 3]) {
            let tokens: Vec<u32> = chunk.iter().map(|&i| ids[i] as u32).collect();
            let found = session.decode(&tokens, past).map_err(|e| e.to_string())?;
            past += chunk.len();
            if let Some(&last) = chunk.last() {
                logits[last * vocabulary..][..vocabulary].copy_from_slice(&found);
                known[last] = 1;
            }
        }
    }
    let expected = &source.expected(family, true).expectations("logits")[0];
    let off = worst(expected, &logits, Some((&known, vocabulary)));
    Ok(vec![Distance::new("logits with keys and values that are kept", off, LM_LOGITS)])
}

/// Where greedy text of a family's model, in f32, differs from that of transformers.
pub fn check_greedy(subject: &mut Subject, source: &Source, family: &str) -> Vec<String> {
    let golden: serde_json::Value = serde_json::from_str(GREEDY).expect("JSON");
    let list = |key: &str| -> Vec<u32> {
        let list = golden[family][key].as_array().unwrap_or_else(|| panic!("no golden text of {family}"));
        list.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
    };
    let written = write(subject, source, family, &list("prompt"), list("tokens").len());
    match written {
        Ok(written) if written == list("tokens") => vec![],
        Ok(written) => vec![format!("greedy text {written:?}, expected {:?}", list("tokens"))],
        Err(error) => vec![error],
    }
}

fn write(
    subject: &mut Subject,
    source: &Source,
    family: &str,
    prompt: &[u32],
    count: usize,
) -> Result<Vec<u32>, String> {
    let model = model_directory(source, family, LANGUAGE_MODEL);
    let mut session = open(subject, model.path(), Precision::F32)?;
    let (mut past, mut next, mut written) = (0, prompt.to_vec(), vec![]);
    while written.len() < count {
        let logits = session.decode(&next, past).map_err(|e| e.to_string())?;
        past += next.len();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0) as u32;
        written.push(best);
        next = vec![best];
    }
    Ok(written)
}

fn open(subject: &mut Subject, model: &Path, precision: Precision) -> Result<Session, String> {
    let mut applied = AppliedAdapter::open(model, None, &PluginSet::default()).map_err(|e| e.to_string())?;
    applied.precision = match precision {
        Precision::F32 => PrecisionChoice::F32,
        Precision::Bf16 => PrecisionChoice::Bf16,
    };
    let device = subject.open().map_err(|e| e.to_string())?;
    applied.generation(device, CONTEXT).map_err(|e| e.to_string())
}
