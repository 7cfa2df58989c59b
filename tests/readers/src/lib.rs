//! Every reader of files and plugin messages as a function of bytes, for `fuzz/` and the suite `fuzz`. Any bytes must
//! give a value or an error.

mod adapters;
mod data;
mod models;
mod place;
mod plugins;
mod runs;

use std::fs;
use std::path::Path;

/// A reader.
pub struct Reader {
    /// Its name, which is also that of its target in `fuzz/fuzz_targets/`.
    pub name: &'static str,
    /// Puts the bytes where the reader expects them and reads them; returns whether they were accepted.
    pub read: fn(&[u8]) -> bool,
    /// Inputs that must be accepted.
    pub good: fn() -> Vec<Vec<u8>>,
    /// The ending of its hostile files' names in `tests/bad`; empty if it has none.
    pub bad: &'static str,
}

/// All readers.
pub const READERS: &[Reader] = &[
    Reader { name: "safetensors", read: models::safetensors, good: models::good_safetensors, bad: ".safetensors" },
    Reader { name: "gguf", read: models::gguf, good: models::good_gguf, bad: ".gguf" },
    Reader { name: "safetensors_index", read: models::index, good: models::good_index, bad: ".index.json" },
    Reader { name: "config", read: models::config, good: models::good_config, bad: ".json" },
    Reader {
        name: "generation_config",
        read: models::generation_config,
        good: models::good_generation_config,
        bad: "",
    },
    Reader { name: "tokenizer", read: models::tokenizer, good: models::good_tokenizer, bad: ".json" },
    Reader {
        name: "tokenizer_config",
        read: models::tokenizer_config,
        good: models::good_tokenizer_config,
        bad: "tokenizer-config-nested.json",
    },
    Reader { name: "special_tokens", read: models::special_tokens, good: models::good_special_tokens, bad: "" },
    Reader { name: "chat_template", read: models::chat_template, good: models::good_chat_template, bad: "" },
    Reader { name: "inspect_batch", read: models::batch, good: models::good_batch, bad: ".safetensors" },
    Reader { name: "tsv", read: data::tsv, good: data::good_tsv, bad: ".tsv" },
    Reader { name: "jsonl", read: data::jsonl, good: data::good_jsonl, bad: ".jsonl" },
    Reader { name: "csv", read: data::csv, good: data::good_csv, bad: ".csv" },
    Reader { name: "json", read: data::json, good: data::good_json, bad: "" },
    Reader { name: "turns", read: data::turns, good: data::good_turns, bad: ".jsonl" },
    Reader { name: "parquet", read: data::parquet, good: data::good_parquet, bad: ".parquet" },
    Reader { name: "acl_imdb", read: data::acl_imdb, good: data::good_acl_imdb, bad: "" },
    Reader { name: "adapter_manifest", read: adapters::manifest, good: adapters::good_manifest, bad: ".json" },
    Reader { name: "adapter_values", read: adapters::values, good: adapters::good_values, bad: ".safetensors" },
    Reader { name: "peft_config", read: adapters::peft_config, good: adapters::good_peft_config, bad: ".json" },
    Reader { name: "peft_values", read: adapters::peft_values, good: adapters::good_peft_values, bad: ".safetensors" },
    Reader { name: "sparse_deltas", read: adapters::sparse_deltas, good: adapters::good_deltas, bad: ".safetensors" },
    Reader { name: "checkpoint_manifest", read: runs::manifest, good: runs::good_manifest, bad: ".json" },
    Reader { name: "checkpoint_state", read: runs::state, good: runs::good_state, bad: ".safetensors" },
    Reader { name: "run_config", read: runs::config, good: runs::good_config, bad: ".json" },
    Reader { name: "run_plan", read: runs::plan, good: runs::good_plan, bad: ".json" },
    Reader { name: "run_result", read: runs::result, good: runs::good_result, bad: ".json" },
    Reader { name: "run_metrics", read: runs::metrics, good: runs::good_metrics, bad: ".jsonl" },
    Reader { name: "plugin_manifest", read: plugins::manifest, good: plugins::good_manifest, bad: ".plugin.json" },
    Reader { name: "plugin_method", read: plugins::method, good: plugins::good_method, bad: "" },
    Reader { name: "plugin_task", read: plugins::task, good: plugins::good_task, bad: "" },
    Reader { name: "plugin_backend", read: plugins::backend, good: plugins::good_backend, bad: "" },
    Reader { name: "plugin_requests", read: plugins::requests, good: plugins::good_requests, bad: "" },
];

/// Feeds the reader of this name; returns false if there is none.
pub fn read(name: &str, bytes: &[u8]) -> bool {
    READERS.iter().find(|reader| reader.name == name).is_some_and(|reader| (reader.read)(bytes))
}

impl Reader {
    /// The good inputs and the hostile files in the directory `bad`.
    pub fn seeds(&self, bad: &Path) -> std::io::Result<Vec<Vec<u8>>> {
        let mut seeds = (self.good)();
        if !self.bad.is_empty() {
            let mut paths = fs::read_dir(bad)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
            paths.retain(|path| path.to_string_lossy().ends_with(self.bad));
            paths.sort();
            for path in paths {
                seeds.push(fs::read(path)?);
            }
        }
        Ok(seeds)
    }
}
