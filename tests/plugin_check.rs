//! `sparta-cli plugin check` on the CPU backend's shared library, as a third party would run it, and on libraries that
//! fail. Needs `cargo build --release` first.

use serde_json::Value as Json;
use sparta_backend_cpu::Reference;
use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Fill, Mul, Scale};
use sparta_plugin::method::{
    ExtraTensor, GraphBuilder, Init, Method, MethodInfo, Options, Parameter, Role, Selection, Site,
};
use sparta_plugin::testing::{Gradients, layers, sites};
use sparta_suites::list::tests;
use sparta_tests::command::{binary, command};
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::Command;

fn library(name: &str) -> PathBuf {
    let file = format!("{DLL_PREFIX}sparta_{name}{DLL_SUFFIX}");
    let path = binary().with_file_name(file);
    assert!(path.exists(), "{} is not there; run `cargo build --release` first", path.display());
    path
}

/// The exit code, the JSON result and stderr of a check.
fn check(library: &Path, more: &[&str]) -> (Option<i32>, Json, String) {
    let home = tempfile::tempdir().unwrap();
    let mut command = command(home.path(), &["plugin", "check", "--json"]);
    let output = command.arg(library).args(more).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let result = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    (output.status.code(), result, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Conformance and golden suites through the ABI.
#[test]
fn the_cpu_backend_passes() {
    let (code, result, text) = check(&library("backend_cpu"), &[]);
    assert_eq!(code, Some(0), "{text}");
    let results = result["results"].as_array().unwrap();
    assert_eq!(results.len(), tests().len());
    for result in results {
        let in_tf32 = result["name"].as_str().is_some_and(|name| name.starts_with("conformance tf32"));
        let said = if in_tf32 { "refused: cpu: products in TF32 are not supported" } else { "" };
        assert_eq!((&result["passed"], &result["details"]), (&Json::Bool(true), &Json::from(said)), "{result}");
    }
    assert_eq!((&result["plugins"][0]["kind"], &result["device"]), (&Json::from("backend"), &Json::from("cpu")));
}

#[test]
fn some_tests_can_be_chosen() {
    let (code, result, text) = check(&library("backend_cpu"), &["--test", "contract", "--test", "classifier qwen2"]);
    assert_eq!(code, Some(0), "{text}");
    // The contract, and the classifier in f32 and in bf16.
    assert_eq!(result["results"].as_array().unwrap().len(), 3);
    let (code, _, text) = check(&library("backend_cpu"), &["--test", "of courage"]);
    assert!(code == Some(2) && text.contains("no test has `of courage` in its name"), "{text}");
}

/// All tests of the built-in method that reparametrizes.
#[test]
fn lora_passes() {
    let (code, result, text) = check(&library("method_lora"), &[]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(result["plugins"][0]["name"], "lora");
    let results = result["results"].as_array().unwrap();
    let skipped =
        results.iter().filter(|result| result["skipped"] == true).map(|result| result["name"].as_str().unwrap());
    assert_eq!(skipped.collect::<Vec<_>>(), ["method lora: own operations", "method lora: between steps"]);
    assert_eq!(results.len(), 13);
}

/// Backends that compute nothing, crash or hang fail test by test; the command itself survives.
#[test]
fn bad_backends_fail() {
    let dir = tempfile::tempdir().unwrap();
    let compile = |case: u32| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let library = dir.path().join(format!("case{case}{DLL_SUFFIX}"));
        let compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(format!("-DCASE={case}"))
            .arg("-I")
            .arg(root.join("plugins/sdk/include"))
            .arg(root.join("core/tests/plugins/backend.c"))
            .output();
        compiler.is_ok_and(|output| output.status.success()).then_some(library)
    };
    let failure = |case: u32| {
        let library = compile(case)?;
        let (code, result, text) = check(&library, &["--test", "conformance f32: elementwise", "--limit", "10"]);
        assert_eq!(code, Some(1), "{text}");
        assert_eq!(result["results"][0]["passed"], false);
        Some(result["results"][0]["details"].as_str().unwrap().to_owned())
    };
    let Some(computes_nothing) = failure(1) else { return sparta_tests::skipped("no C compiler `cc`") };
    assert!(computes_nothing.contains("failures"), "{computes_nothing}");
    let dies = failure(9).unwrap();
    assert!(dies.contains("signal") && dies.contains(" at: "), "{dies}");
    let hangs = failure(8).unwrap();
    assert!(hangs.contains("did not end within 10 s"), "{hangs}");
}

#[test]
fn a_file_that_is_not_a_plugin_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("text{DLL_SUFFIX}"));
    std::fs::write(&path, "no library").unwrap();
    let (code, _, text) = check(&path, &[]);
    assert!(code == Some(1) && text.contains("not a readable shared library"), "{text}");
}

/// Scales norms, biases and the embedding, which have no `forward`, as its one field says.
struct Scales(&'static str);

impl Method for Scales {
    fn describe(&self) -> MethodInfo {
        let (name, version, summary) = ("scales".into(), "0".into(), String::new());
        MethodInfo { name, version, summary, options: vec![], default_lr: 1e-3 }
    }

    fn select(&self, parameters: &[Parameter], _: &Options) -> Result<Vec<Selection>, Error> {
        let scale =
            |p: &Parameter| ExtraTensor::new("scale", [*p.shape.last().unwrap()], Init::Constant { value: 1.0 });
        let choose = |p: &Parameter| match p.role {
            Role::Norm | Role::Bias | Role::Embedding => Selection::Reparam { tensors: vec![scale(p)] },
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }

    fn merge(&self, _: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        match self.0 {
            "doubles" => {
                let scaled = graph.one(Mul {}, &[w, extra[0]])?;
                graph.one(Scale { factor: 2.0 }, &[scaled])
            }
            "forgets" => Ok(w),
            "another shape" => graph.one(Fill { value: 1.0, shape: vec![3] }, &[]),
            _ => graph.one(Mul {}, &[w, extra[0]]),
        }
    }
}

/// What `plugin check` asks of parameters that are merged and have no `forward`.
#[test]
fn parameters_without_a_forward_are_tested_by_what_merge_returns() {
    let mut backend = Reference::new(None).unwrap();
    let options = Options::new();
    assert!(layers(&Scales("well"), &options).unwrap().is_empty());
    // Norms and biases of two layers, the last norm and the embedding.
    assert_eq!(sites(&Scales("well"), &options).unwrap().len(), 12);
    for site in sites(&Scales("well"), &options).unwrap() {
        assert_eq!(site.change_at_start(&mut backend).unwrap(), 0.0, "{}", site.name());
        assert_eq!(site.check_gradients(&mut backend).unwrap(), Gradients::Agree, "{}", site.name());
    }
    for site in sites(&Scales("doubles"), &options).unwrap() {
        assert_eq!(site.change_at_start(&mut backend).unwrap(), 1.0, "{}", site.name());
    }
    for site in sites(&Scales("forgets"), &options).unwrap() {
        let why = site.check_gradients(&mut backend).unwrap_err().0;
        assert!(why.contains("scale"), "{why}");
    }
    for site in sites(&Scales("another shape"), &options).unwrap() {
        let why = site.change_at_start(&mut backend).unwrap_err().0;
        assert!(why.contains("`merge` gave the shape [3], expected "), "{why}");
    }
}
