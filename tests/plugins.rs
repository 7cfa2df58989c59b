//! From a scaffold to an installed plugin: what `plugin new` creates builds and passes `plugin check`, in Rust, C
//! and C++; installing, listing and removing; the method in docs/plugins.md. Needs `cargo build --release` first.

use serde_json::Value as Json;
use sparta_tests::command::{binary, command, output, ran, refused};
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The output of cargo in this workspace.
#[track_caller]
fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(args).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Builds a crate outside this workspace with the workspace's lock file and target directory. Not optimised, since its
/// dependencies have fewer features than the workspace's and so are all compiled for it.
fn cargo_build(directory: &Path) -> PathBuf {
    fs::copy(root().join("Cargo.lock"), directory.join("Cargo.lock")).unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = binary().ancestors().nth(2).unwrap().to_owned();
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--offline", "--quiet"]).current_dir(directory);
    build.envs([("CARGO_TARGET_DIR", target.as_os_str()), ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0".as_ref())]);
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let name = directory.file_name().unwrap().to_str().unwrap().replace('-', "_");
    let library = target.join("release").join(format!("{DLL_PREFIX}{name}{DLL_SUFFIX}"));
    // Another test may build the same name.
    let own = directory.join(library.file_name().unwrap());
    fs::copy(library, &own).unwrap();
    own
}

fn scaffold(home: &Path, name: &str, more: &str) -> PathBuf {
    ran(home, &format!("plugin new {name} {more}"));
    home.join(name)
}

/// The results of a check that passes, by name.
#[track_caller]
fn passes(home: &Path, library: &Path, more: &str) -> Vec<Json> {
    let output = output(home, &format!("plugin check {} --json {more}", library.display()));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    report["results"].as_array().unwrap().clone()
}

fn skipped(results: &[Json]) -> Vec<&str> {
    results.iter().filter(|result| result["skipped"] == true).map(|result| result["name"].as_str().unwrap()).collect()
}

fn sdk() -> String {
    format!("--sdk {}", root().join("plugins/sdk").display())
}

#[test]
fn new_crates_build_and_pass() {
    let home = tempfile::tempdir().unwrap();
    let method = cargo_build(&scaffold(home.path(), "new-method", &format!("--kind method {}", sdk())));
    let results = passes(home.path(), &method, "");
    let absent = ["method new-method: own operations", "method new-method: between steps"];
    assert_eq!((results.len(), skipped(&results)), (13, absent.to_vec()), "{results:?}");

    let directory = scaffold(home.path(), "new-task", &format!("--kind task {}", sdk()));
    let task = cargo_build(&directory);
    let data = format!("--data {}", directory.join("data").display());
    let results = passes(home.path(), &task, &data);
    assert_eq!((results.len(), skipped(&results)), (7, vec!["task new-task: options"]), "{results:?}");
    // One of several tasks; without data there is little to test.
    let one = passes(home.path(), &library("task_glue"), "--task sst2");
    assert_eq!((one.len(), skipped(&one).len()), (7, 6));
    assert_eq!(skipped(&passes(home.path(), &task, "")).len(), 6);
}

#[test]
fn a_new_backend_builds_and_computes() {
    let home = tempfile::tempdir().unwrap();
    let backend = cargo_build(&scaffold(home.path(), "new-backend", &format!("--kind backend {}", sdk())));
    let results = passes(home.path(), &backend, "--test contract --test elementwise --test llama");
    assert!(results.len() > 4 && skipped(&results).is_empty(), "{results:?}");
    assert!(results.iter().all(|result| !result["details"].as_str().unwrap().contains("refused")), "{results:?}");
}

#[test]
fn a_scaffold_is_made_whole_or_not_at_all() {
    let home = tempfile::tempdir().unwrap();
    refused(home.path(), "plugin new My_Method --kind method", &["cannot be the name of a plugin", "my-method"]);
    refused(home.path(), "plugin new x --kind method --sdk .", &["is not a crate", "plugins/sdk"]);
    refused(home.path(), "plugin new x --kind backend --lang c", &["--lang rust"]);
    refused(home.path(), "plugin new x --kind backend", &["sparta-backend-cpu", "not published", "give --sdk PATH"]);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    let there = scaffold(home.path(), "a/b", "--kind method");
    assert!(fs::read_to_string(there.join("Cargo.toml")).unwrap().contains("sparta-plugin = \"0.1\""));
    refused(home.path(), "plugin new a/b --kind task", &["it already exists"]);
    assert_eq!(fs::read_dir(home.path().join("a")).unwrap().count(), 1);
}

/// `make` in a directory in C.
fn make(directory: &Path) -> Option<PathBuf> {
    let made = Command::new("make").arg("CFLAGS=-O1 -Werror").current_dir(directory).output();
    let Ok(made) = made else {
        sparta_tests::skipped("no `make`");
        return None;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let name = directory.file_name().unwrap().to_str().unwrap().replace('-', "_");
    Some(directory.join(format!("{name}{DLL_SUFFIX}")))
}

#[cfg(unix)]
#[test]
fn plugins_in_c_build_and_pass() {
    let home = tempfile::tempdir().unwrap();
    let Some(method) = make(&scaffold(home.path(), "c-method", "--kind method --lang c")) else { return };
    let absent = ["method c-method: own operations", "method c-method: between steps"];
    assert_eq!(skipped(&passes(home.path(), &method, "")), absent);
    let directory = scaffold(home.path(), "c-task", "--kind task --lang c");
    let task = make(&directory).unwrap();
    let data = format!("--data {}", directory.join("data").display());
    assert_eq!(skipped(&passes(home.path(), &task, &data)), ["task c-task: options"]);
}

#[cfg(unix)]
#[test]
fn a_plugin_in_cpp_builds_and_passes() {
    let home = tempfile::tempdir().unwrap();
    let library = home.path().join(format!("shift{DLL_SUFFIX}"));
    let compiler = Command::new("c++")
        .args(["-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg("-I")
        .arg(root().join("plugins/sdk/include"))
        .arg(root().join("plugins/examples/shift.cpp"))
        .output();
    let Ok(compiled) = compiler else { return sparta_tests::skipped("no C++ compiler `c++`") };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let results = passes(home.path(), &library, "");
    let absent = ["own operations", "merged layers", "layers with a bias", "between steps"];
    assert_eq!(skipped(&results), absent.map(|test| format!("method shift: {test}")));
}

#[test]
fn failures_are_described() {
    let home = tempfile::tempdir().unwrap();
    let compile = |case: u32| {
        let library = home.path().join(format!("case{case}{DLL_SUFFIX}"));
        let compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(format!("-DCASE={case}"))
            .arg("-I")
            .arg(root().join("plugins/sdk/include"))
            .arg(root().join("tests/hostile/method.c"))
            .output();
        compiler.is_ok_and(|output| output.status.success()).then_some(library)
    };
    let failures = |library: &Path| {
        let arguments =
            format!("plugin check {} --json --test options --test gradients --test training", library.display());
        let output = output(home.path(), &arguments);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Json = serde_json::from_slice(&output.stdout).unwrap();
        let results = report["results"].as_array().unwrap().clone();
        results.iter().filter(|result| result["passed"] == false).map(Json::to_string).collect::<Vec<_>>()
    };
    // Cases of hostile/method.c: one that ends the process, one that fails, one of a different type.
    let Some(ends) = compile(3) else { return sparta_tests::skipped("no C compiler `cc`") };
    assert!(failures(&ends).iter().all(|result| result.contains("the process was ended during a call")));
    let fails = failures(&compile(14).unwrap());
    assert!(fails.iter().any(|result| result.contains("the moon is not full")), "{fails:?}");
    assert!(!failures(&compile(13).unwrap()).is_empty());
}

fn library(name: &str) -> PathBuf {
    binary().with_file_name(format!("{DLL_PREFIX}sparta_{name}{DLL_SUFFIX}"))
}

#[test]
fn installed_plugins_are_found_replaced_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let listed = || -> Vec<Json> {
        let (out, _) = ran(home.path(), "plugin list --json");
        let all: Vec<Json> = serde_json::from_str(&out).unwrap();
        all.into_iter().filter(|found| found["origin"] == "user").collect()
    };
    let (said, _) = ran(home.path(), &format!("plugin install {}", library("method_lora").display()));
    let found = listed();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (&found[0]["name"], &found[0]["kind"], &found[0]["state"]),
        (&"lora".into(), &"method".into(), &"loaded".into())
    );
    let path = PathBuf::from(found[0]["path"].as_str().unwrap());
    assert!(said.contains(path.to_str().unwrap()) && said.contains(found[0]["sha256"].as_str().unwrap()), "{said}");
    // The same command again changes nothing; a configuration can name the library.
    ran(home.path(), &format!("plugin install {}", library("method_lora").display()));
    assert_eq!(listed(), found);
    fs::write(home.path().join("run.toml"), format!("plugin = [{path:?}]\nmethod = \"lora\"\n")).unwrap();
    let (_, plan) = ran(home.path(), "plan --config run.toml --device cpu --json");
    assert!(plan.contains("the method plugin lora"), "{plan}");

    // Another build replaces it: bytes after the end of a library do not matter.
    let other = home.path().join(format!("other{DLL_SUFFIX}"));
    let mut bytes = fs::read(library("method_lora")).unwrap();
    bytes.extend([0; 16]);
    fs::write(&other, bytes).unwrap();
    ran(home.path(), &format!("plugin install {}", other.display()));
    let replaced = listed();
    assert_eq!(replaced.len(), 1);
    assert_ne!(replaced[0]["sha256"], found[0]["sha256"]);
    assert!(!path.exists());

    // A damaged library is rejected, and the listing says why; others are not affected.
    ran(home.path(), &format!("plugin install {}", library("task_glue").display()));
    let path = PathBuf::from(replaced[0]["path"].as_str().unwrap());
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (table, _) = ran(home.path(), "plugin list");
    assert!(table.contains("refused: the file is not the one that the manifest describes"), "{table}");

    ran(home.path(), "plugin remove lora");
    assert_eq!(listed().len(), 1);
    refused(home.path(), "plugin remove lora", &["no plugin `lora` is installed; there are: task glue"]);
    ran(home.path(), "plugin remove glue --kind task");
    let left = path.parent().unwrap();
    assert_eq!(fs::read_dir(left).unwrap().count(), 0);
    let text = home.path().join("text.so");
    fs::write(&text, "no library").unwrap();
    refused(home.path(), "plugin install text.so", &["not a readable shared library"]);
    assert_eq!(fs::read_dir(left).unwrap().count(), 0);
}

/// The SDK and its dependency are complete packages, with header and page.
#[test]
fn the_sdk_is_packaged() {
    let target = tempfile::tempdir().unwrap();
    let directory = target.path().to_str().unwrap();
    let package = ["package", "--offline", "--allow-dirty", "--no-verify", "--target-dir", directory];
    cargo(&[&package[..], &["-p", "sparta-graph", "-p", "sparta-plugin"]].concat());
    let packages = fs::read_dir(target.path().join("package")).unwrap();
    let names: Vec<String> = packages.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for name in ["sparta-graph-", "sparta-plugin-"] {
        assert!(names.iter().any(|file| file.starts_with(name) && file.ends_with(".crate")), "{name}: {names:?}");
    }
    let listed = cargo(&["package", "--list", "--offline", "--allow-dirty", "-p", "sparta-plugin"]);
    assert!(
        ["README.md", "include/sparta_plugin.h"].iter().all(|file| listed.lines().any(|line| line == *file)),
        "{listed}"
    );
}

/// The complete method in docs/plugins.md.
#[test]
fn the_method_of_the_page_builds_and_trains() {
    let home = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(root().join("docs/plugins.md")).unwrap();
    let (_, rest) = page.split_once("```rust\n").unwrap();
    let (method, _) = rest.split_once("```").unwrap();
    let directory = scaffold(home.path(), "last-layers", &format!("--kind method {}", sdk()));
    fs::write(directory.join("src/lib.rs"), method).unwrap();
    let library = cargo_build(&directory);
    passes(home.path(), &library, "--test options --test selection");
    let run =
        "run --method last-layers --last 2 --device cpu --max-steps 4 --max-dev 8 --max-test 8 --json --out first";
    ran(home.path(), &format!("--plugin {} {run}", library.display()));
    let mut command = command(home.path(), &["--plugin"]);
    let refused = command.arg(&library).args(["plan", "--method", "last-layers", "--last", "9", "--device", "cpu"]);
    let said = refused.output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("expected at most the model's 3 layers, got 9"));
}
