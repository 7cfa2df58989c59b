//! Selects the files of a repository that a model or a task needs.

use super::Files;
use super::client::Failure;
use crate::files;
use crate::gguf::{self, Gguf};
use crate::weights::TensorFile;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Folders of data sets without subsets.
const NO_TASK: [&str; 4] = ["", "data", "default", "plain_text"];
const OPTIONAL: [&str; 4] =
    ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json"];

/// The files to download first, among those listed. Errors: what is missing, and what is there instead.
pub(super) fn choose(files: &Files, listing: &[String]) -> Result<Vec<String>, String> {
    match files {
        Files::Model => choose_model(listing),
        Files::Task(task) => choose_task(task, listing),
    }
}

fn choose_model(listing: &[String]) -> Result<Vec<String>, String> {
    let has = |name: &str| listing.iter().any(|file| file == name);
    if ![WEIGHTS, INDEX].into_iter().any(has)
        && let Some(chosen) = choose_gguf(listing)
    {
        return chosen;
    }
    if let Some(missing) = NEEDED.iter().find(|name| !has(name)) {
        let instead = match *missing {
            "tokenizer.json" if has("tokenizer.model") => {
                "; there is tokenizer.model, which is not supported. Convert it: in Python, \
                 `AutoTokenizer.from_pretrained(name).save_pretrained(dir)`, and give the directory with the model's files"
            }
            _ => "; is it a language model in the Hugging Face layout?",
        };
        return Err(format!("there is no {missing}{instead}"));
    }
    let weights = [WEIGHTS, INDEX].into_iter().find(|name| has(name)).ok_or_else(|| {
        let pickle =
            listing.iter().find(|name| name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth"));
        let instead = match pickle {
            Some(name) => format!("; there is {name}, a pickle, which can run code when read and is never opened"),
            None => format!("; there are {}", some(listing)),
        };
        format!("there is no {WEIGHTS} and no {INDEX}{instead}")
    })?;
    let names = NEEDED.into_iter().chain(OPTIONAL.into_iter().filter(|name| has(name))).chain([weights]);
    Ok(names.map(str::to_owned).collect())
}

/// The files of the only GGUF model; `None` if there is none. It needs no other files.
fn choose_gguf(listing: &[String]) -> Option<Result<Vec<String>, String>> {
    let is_model =
        |name: &&String| !name.contains('/') && name.to_lowercase().ends_with(".gguf") && !gguf::is_projector(name);
    let mut models: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for name in listing.iter().filter(is_model) {
        models.entry(gguf::part(name).map_or(name, |(base, _, _)| base)).or_default().push(name.clone());
    }
    if models.len() > 1 {
        let all: Vec<String> = models.into_values().flatten().collect();
        return Some(Err(format!(
            "there are several models in GGUF files: {}; download one of them, and give its file with --model",
            some(&all)
        )));
    }
    models.into_values().next().map(Ok)
}

/// The parquet files of the task's folder, or of the only folder if it is not named after a task; splits other than
/// train, dev and test are left out.
fn choose_task(task: &str, listing: &[String]) -> Result<Vec<String>, String> {
    let plain = |name: &str| name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    let is_split = |name: &str| ["train", "validation", "dev", "test"].iter().any(|split| name.starts_with(split));
    let parquet = listing.iter().filter_map(|path| {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        (name.ends_with(".parquet") && is_split(name)).then_some((folder, path))
    });
    let parquet: Vec<(&str, &String)> = parquet.collect();
    let folders: BTreeSet<&str> = parquet.iter().map(|(folder, _)| *folder).collect();
    let named = |folder: &&str| folder.split('/').any(|part| plain(part) == plain(task));
    let own = folders.iter().find(|folder| named(folder));
    let only = folders.first().filter(|folder| folders.len() == 1 && NO_TASK.contains(folder));
    let Some(folder) = own.or(only) else {
        if folders.is_empty() {
            return Err(format!("there is no parquet file of a split; there are {}", some(listing)));
        }
        let folders: Vec<&str> = folders.into_iter().collect();
        return Err(format!("no folder is named after task {task}; there are {}", folders.join(", ")));
    };
    Ok(parquet.iter().filter(|(own, _)| own == folder).map(|(_, path)| (*path).clone()).collect())
}

fn some(listing: &[String]) -> String {
    let shown: Vec<&str> = listing.iter().take(8).map(String::as_str).collect();
    let more = listing.len() - shown.len();
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// The shards named by the index in `snapshot` that are not `chosen` yet.
pub(super) fn missing_shards(files: &Files, snapshot: &Path, chosen: &[String]) -> Result<Vec<String>, Failure> {
    let path = snapshot.join(INDEX);
    if matches!(files, Files::Task(_)) || !chosen.iter().any(|name| name == INDEX) {
        return Ok(Vec::new());
    }
    let shards = shards(&path).ok_or_else(|| {
        Failure::Refused(format!("{}: not an index of safetensors files in the same directory", path.display()))
    })?;
    Ok(shards.into_iter().filter(|name| !chosen.contains(name)).collect())
}

fn shards(index: &Path) -> Option<BTreeSet<String>> {
    let index: serde_json::Value = serde_json::from_slice(&files::read(index, files::CONFIGURATION).ok()?).ok()?;
    let names = index.get("weight_map")?.as_object()?.values();
    let names: Option<BTreeSet<String>> = names.map(|name| Some(name.as_str()?.to_owned())).collect();
    names.filter(|names| names.iter().all(|name| is_plain_path(name) && name.ends_with(".safetensors")))
}

/// Whether a path stays inside its directory.
pub(super) fn is_plain_path(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\\')
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a snapshot has all wanted files, as far as can be told without the hub.
pub(super) fn is_complete(files: &Files, snapshot: &Path) -> bool {
    let has = |name: &str| {
        let path = snapshot.join(name);
        // A weight file states its own length.
        path.is_file() && (!name.ends_with(".safetensors") || TensorFile::open(&path).is_ok())
    };
    match files {
        Files::Model => {
            let sharded = || shards(&snapshot.join(INDEX)).is_some_and(|names| names.iter().all(|name| has(name)));
            let in_layout = || NEEDED.iter().all(|name| has(name)) && (has(WEIGHTS) || sharded());
            match gguf::locate(snapshot) {
                Ok(Some(file)) => Gguf::open(&file).is_ok(),
                _ => in_layout(),
            }
        }
        Files::Task(task) => {
            let mut listing = Vec::new();
            list(snapshot, "", &mut listing);
            let chosen = choose_task(task, &listing).unwrap_or_default();
            let of = |name: &str| name.split_once("-of-")?.1.get(..5)?.parse::<usize>().ok();
            let split = |name: &str| name.split_once("-0").map(|(split, _)| split.to_owned());
            let whole = |name: &String| of(name) == Some(chosen.iter().filter(|n| split(n) == split(name)).count());
            // A single split may be left by an interrupted download.
            chosen.iter().map(|name| split(name)).collect::<BTreeSet<_>>().len() > 1 && chosen.iter().all(whole)
        }
    }
}

/// Paths of the files below `dir`, up to three folders deep.
fn list(dir: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if path.is_file() {
            found.push(name);
        } else if path.is_dir() && name.split('/').count() < 4 {
            list(&path, &format!("{name}/"), found);
        }
    }
    found.sort();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_model_is_configuration_tokenizer_and_safetensors() {
        let listing = owned(&[
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "README.md",
            "pytorch_model.bin",
            "model.safetensors",
            "gemma.gguf",
            INDEX,
        ]);
        let chosen = choose_model(&listing).unwrap();
        assert_eq!(chosen, ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]);
        let parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        let listing = owned(&["README.md", "config.json", "mmproj-m.gguf", parts[0], parts[1]]);
        assert_eq!(choose_model(&listing).unwrap(), parts);
        let several = choose_model(&owned(&["README.md", "m.Q4_0.gguf", "m.Q8_0.gguf"])).unwrap_err();
        assert!(several.contains("several models in GGUF files: m.Q4_0.gguf, m.Q8_0.gguf"), "{several}");
        let pickle = choose_model(&owned(&["config.json", "tokenizer.json", "pytorch_model.bin"])).unwrap_err();
        assert!(pickle.contains("pytorch_model.bin, a pickle"), "{pickle}");
        let slow = choose_model(&owned(&["config.json", "tokenizer.model"])).unwrap_err();
        assert!(slow.contains("no tokenizer.json") && slow.contains("save_pretrained"), "{slow}");
    }

    #[test]
    fn a_task_is_the_parquet_files_of_its_folder() {
        let glue = owned(&[
            "README.md",
            "sst2/train-00000-of-00001.parquet",
            "sst2/validation-00000-of-00001.parquet",
            "mnli/train-00000-of-00001.parquet",
            "mnli_matched/validation-00000-of-00001.parquet",
        ]);
        assert_eq!(choose_task("sst2", &glue).unwrap(), glue[1..3]);
        let message = choose_task("imdb", &glue).unwrap_err();
        assert!(message.contains("mnli, mnli_matched, sst2"), "{message}");
        let imdb = owned(&[
            "plain_text/test-00000-of-00001.parquet",
            "plain_text/train-00000-of-00001.parquet",
            "plain_text/unsupervised-00000-of-00001.parquet",
        ]);
        assert_eq!(choose_task("imdb", &imdb).unwrap(), imdb[..2]);
        assert!(choose_task("imdb", &owned(&["a.csv"])).unwrap_err().contains("a.csv"));
    }

    #[test]
    fn a_task_is_complete_with_all_shards_of_two_splits() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::Task("imdb".into());
        fs::create_dir(dir.path().join("plain_text")).unwrap();
        for (name, complete) in [
            ("train-00000-of-00002.parquet", false),
            ("test-00000-of-00001.parquet", false),
            ("train-00001-of-00002.parquet", true),
        ] {
            fs::write(dir.path().join("plain_text").join(name), "").unwrap();
            assert_eq!(is_complete(&files, dir.path()), complete, "{name}");
        }
    }

    #[test]
    fn paths_stay_inside() {
        for name in ["", "../a", "/a", "a/../../b", "a\\b", "."] {
            assert!(!is_plain_path(name), "{name}");
        }
        assert!(is_plain_path("sst2/train.parquet"));
    }
}
