//! The layers of ARCHITECTURE.md: a crate depends only on crates below it, and no two modules of a core crate import
//! each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates from bottom to top; those on one line do not depend on each other.
const LAYERS: &[&[&str]] = &[
    &["sparta-graph", "sparta-files", "sparta-test-data"],
    &["sparta-plugin"],
    &["sparta-kernels", "sparta-model", "sparta-backend-cpu", "sparta-task-files"],
    &[
        "sparta-wgpu",
        "sparta-backend-cuda",
        "sparta-communicator-mpi",
        "sparta-train",
        "sparta-task-classify",
        "sparta-task-glue",
        "sparta-task-imdb",
        "sparta-task-text",
        "sparta-task-sft",
    ],
    &["sparta-method-sparta", "sparta-method-lora", "sparta-method-full", "sparta-method-head"],
    &["sparta-io"],
    &["sparta-core"],
    &["sparta-suites", "sparta-readers"],
    &["sparta-cli"],
    &["sparta-tests", "sparta-benches"],
];

/// Directories of the core crates.
const CORE: &[&str] = &["core/files", "core/graph", "core/kernels", "core/model", "core/train", "core/io", "core"];

/// Where the code may ask whether it runs in a browser: what waits for a device, and which library splits texts.
/// Everything else is the same on every platform.
const ASK_FOR_WASM: &[&str] = &["core/wgpu/", "core/io/Cargo.toml", "core/io/src/text/tokenizer.rs"];

/// An op is a node of the graph, and its rules build graphs, so these modules define each other.
const ALLOWED: &[(&str, &str)] = &[("autodiff", "ops"), ("graph", "ops")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn manifest(path: &Path) -> toml::Table {
    read(&path.join("Cargo.toml")).parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn arrows_point_down() {
    let layer = |name: &str| {
        let found = LAYERS.iter().position(|layer| layer.contains(&name));
        found.unwrap_or_else(|| panic!("{name} has no layer: name it in LAYERS and in ARCHITECTURE.md"))
    };
    let workspace = manifest(&root());
    let mut wrong = Vec::new();
    for member in workspace["workspace"]["members"].as_array().unwrap() {
        // Entry points of the built-in plugins, and examples, which nothing depends on.
        if matches!(member.as_str(), Some("plugins/libraries/*" | "plugins/more/*")) {
            continue;
        }
        let manifest = manifest(&root().join(member.as_str().unwrap()));
        let name = manifest["package"]["name"].as_str().unwrap();
        let none = toml::Table::new();
        let dependencies = manifest.get("dependencies").map_or(&none, |table| table.as_table().unwrap());
        for dependency in dependencies.keys().filter(|key| key.starts_with("sparta-")) {
            if layer(dependency) >= layer(name) {
                wrong.push(format!("{name} depends on {dependency}, which is not below it"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_two_modules_import_each_other() {
    let mut pairs = Vec::new();
    for directory in CORE {
        let src = root().join(directory).join("src");
        let root = code(&src.join("lib.rs"));
        let exports = exports(&root);
        let modules = modules(&src);
        let imports: BTreeMap<&str, BTreeSet<&str>> = modules
            .iter()
            .map(|(module, text)| {
                let names = names_after(text, "crate::").into_iter();
                let targets = names.map(|name| exports.get(name).map_or(name, String::as_str));
                (module.as_str(), targets.filter(|target| target != module && modules.contains_key(*target)).collect())
            })
            .collect();
        for (a, targets) in &imports {
            for b in targets.iter().filter(|b| a < *b && imports[**b].contains(a)) {
                if !ALLOWED.contains(&(a, b)) {
                    pairs.push(format!("{directory}: `{a}` and `{b}` import each other"));
                }
            }
        }
    }
    assert!(pairs.is_empty(), "{}", pairs.join("\n"));
}

#[test]
fn a_browser_is_known_only_below() {
    let mut asking = Vec::new();
    for directory in ["core", "plugins", "cli"] {
        ask_for_wasm(Path::new(directory), &mut asking);
    }
    assert!(asking.iter().any(|path| path.starts_with(ASK_FOR_WASM[0])), "nothing asks: {asking:?}");
    asking.retain(|path| !ASK_FOR_WASM.iter().any(|allowed| path.starts_with(allowed)));
    assert!(asking.is_empty(), "these ask whether they run in a browser: {asking:?}");
}

/// The sources and manifests below `directory` that ask for the platform of browsers.
fn ask_for_wasm(directory: &Path, asking: &mut Vec<String>) {
    for entry in fs::read_dir(root().join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = directory.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            ask_for_wasm(&path, asking);
        } else if path.extension().is_some_and(|end| end == "rs" || end == "toml") {
            let text = read(&root().join(&path));
            if ["wasm32", "target_family = \"wasm\""].iter().any(|word| text.contains(word)) {
                asking.push(path.to_string_lossy().replace('\\', "/"));
            }
        }
    }
}

/// The top-level modules of a crate with all of their code.
fn modules(src: &Path) -> BTreeMap<String, String> {
    let mut modules: BTreeMap<String, String> = BTreeMap::new();
    for entry in fs::read_dir(src).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name != "lib" {
            // What a file at the top calls `super` is the crate.
            let text = if path.is_dir() { all_code(&path) } else { code(&path).replace("super::", "crate::") };
            modules.entry(name).or_default().push_str(&text);
        }
    }
    modules
}

fn all_code(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &all_code(&path);
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            text += &code(&path);
        }
    }
    text
}

/// A file without comments and unit tests.
fn code(path: &Path) -> String {
    let text = read(path);
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Which module an item that the crate's root re-exports is from.
fn exports(root: &str) -> BTreeMap<&str, String> {
    let mut exports = BTreeMap::new();
    for statement in root.split("use ").skip(1) {
        let statement = statement.split(';').next().unwrap_or_default();
        let Some((module, items)) = statement.split_once("::") else { continue };
        for item in items.split(['{', '}', ',']).map(str::trim).filter(|item| !item.is_empty()) {
            exports.insert(item, module.trim().to_owned());
        }
    }
    exports
}

/// The first names of all paths that follow `prefix`, those in braces included.
fn names_after<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let mut names = Vec::new();
    for rest in text.split(prefix).skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => names.extend(first_names(list)),
            None => names.push(identifier(rest)),
        }
    }
    names
}

/// The names at depth 0 of a list that ends with its closing brace.
fn first_names(list: &str) -> Vec<&str> {
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(identifier(list[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    &text[..end]
}
