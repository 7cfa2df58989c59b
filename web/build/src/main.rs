//! `sparta-web-build WASM FOLDER`: what the command wasm-bindgen does, and beside its output the page and the embedded job. It
//! prints the sizes of what a visitor loads.

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use wasm_bindgen_cli_support::Bindgen;

const JOB: [&str; 7] = [
    "data/dev.jsonl",
    "data/test.jsonl",
    "data/train.jsonl",
    "model/config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [wasm, folder] = arguments.as_slice() else { return Err("usage: sparta-web-build WASM FOLDER".into()) };
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Bindgen::new()
        .input_path(wasm)
        .out_name("program")
        .typescript(false)
        .remove_name_section(true)
        .web(true)?
        .generate(folder)?;
    for entry in fs::read_dir(web.join("page"))? {
        let path = entry?.path();
        fs::copy(&path, folder.join(path.file_name().unwrap_or_default()))?;
    }
    job(&web.join("../cli/assets"), &folder.join("job"))?;
    for (name, limit) in [("program_bg.wasm", 6 << 20), ("job/model/model.safetensors", 1 << 20)] {
        let bytes = fs::read(folder.join(name))?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&bytes)?;
        let compressed = encoder.finish()?.len();
        println!("{name}: {} bytes, {compressed} compressed", bytes.len());
        if compressed > limit {
            return Err(format!(
                "{name}: {compressed} bytes are more than the {limit} that a visitor should have to load"
            )
            .into());
        }
    }
    Ok(())
}

/// The embedded job: its files, and its options as JSON.
fn job(assets: &Path, folder: &Path) -> Result<(), Box<dyn Error>> {
    for name in JOB {
        let to = folder.join(name);
        fs::create_dir_all(to.parent().unwrap_or(folder))?;
        fs::copy(assets.join(name), to)?;
    }
    let mut options: toml::Table = fs::read_to_string(assets.join("default.toml"))?.parse()?;
    let (task, methods) = (options.remove("task"), options.remove("method"));
    let text = json!({ "files": JOB, "task": task, "options": options, "methods": methods }).to_string();
    Ok(fs::write(folder.join("job.json"), text)?)
}
