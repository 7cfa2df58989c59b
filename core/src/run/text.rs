//! Text, of which each next token is learned.

use super::prepare::{Source, Splits, split_plan};
use crate::job::{DataPlan, RunConfig, TextConfig};
use crate::model::Decoder;
use crate::text::Tokenizer;
use crate::train::objective::NextToken;
use crate::train::{Encoded, HeadInit, Target};
use crate::{Error, Result};
use sparta_plugin::task::TaskInfo;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Reads the documents of a run, one a line; those of more than `max_length` tokens are cut.
///
/// Errors: a tokenizer that does not fit the model; a file without a document of two tokens or more.
pub(super) fn read(config: &RunConfig, text: &TextConfig, decoder: &Decoder) -> Result<Source> {
    let tokenizer = Tokenizer::open(&config.model)?;
    tokenizer.check_vocab(decoder.vocab_size)?;
    let positions = decoder.max_position_embeddings;
    let max_length = config.max_length.map_or(positions, |n| n.min(positions));
    let (train, mut cut) = documents(&config.data, &tokenizer, max_length)?;
    let dev = match &text.dev {
        Some(path) => {
            let (dev, dev_cut) = documents(path, &tokenizer, max_length)?;
            cut += dev_cut;
            dev
        }
        None => vec![],
    };
    let origin = |path: Option<&Path>| path.map_or("none".into(), |path| format!("the lines of {}", path.display()));
    let mut notes = vec![];
    if cut > 0 {
        notes.push(format!("{cut} documents are cut to {max_length} tokens"));
    }
    let plan = DataPlan {
        train: split_plan(origin(Some(&config.data)), &train),
        dev: split_plan(origin(text.dev.as_deref()), &dev),
        test: split_plan(origin(None), &[]),
        max_length,
        too_long: 0,
        cut: 0,
        notes,
    };
    Ok(Source {
        task: TaskInfo {
            id: config.task.clone(),
            title: "Text".into(),
            labels: vec![],
            metrics: vec![],
            primary: String::new(),
            pair: false,
            prompt: None,
        },
        objective: Arc::new(NextToken {}),
        head_init: HeadInit::Normal { std: 0.0 },
        instruct: None,
        prompt: None,
        note: None,
        data: Splits { train, dev, test: vec![], plan },
    })
}

/// The documents of a file, and how many of them were cut.
fn documents(path: &Path, tokenizer: &Tokenizer, max_length: usize) -> Result<(Vec<Encoded>, usize)> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let lines: Vec<(&str, Option<&str>)> =
        text.lines().filter(|line| !line.trim().is_empty()).map(|line| (line, None)).collect();
    let mut documents = tokenizer.encode_batch(&lines)?;
    let cut = documents.iter().filter(|tokens| tokens.len() > max_length).count();
    documents.iter_mut().for_each(|tokens| tokens.truncate(max_length));
    documents.retain(|tokens| tokens.len() > 1);
    if documents.is_empty() {
        return Err(Error::Data(format!(
            "{}: there is no document of two tokens or more; one document per line",
            path.display()
        )));
    }
    let encoded = |tokens| Encoded { tokens, target: Target::Tokens(None) };
    Ok((documents.into_iter().map(encoded).collect(), cut))
}
