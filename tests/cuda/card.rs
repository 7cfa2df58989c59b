//! The whole backend, as it uses a card, on stand-ins for NVIDIA's libraries: NVRTC that compiles for the CPU, a driver
//! that runs such kernels, and a cuBLASLt that checks what the real one asks for. Needs `cargo build --release` first.

use serde_json::Value as Json;
use sparta_tests::command::command;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The stand-ins with these definitions in a directory; `None` with a message where they cannot be made.
fn libraries(definitions: &[&str]) -> Option<tempfile::TempDir> {
    super::subject(0, true)?;
    let dir = tempfile::tempdir().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let driver = dir.path().join("libcuda.so.1");
    let shim = format!("-DSHIM=\"{}\"", folder.join("shim.h").display());
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O2", "-fno-math-errno", "-o"]).arg(&driver).arg(folder.join("libraries.c"));
    let Ok(done) = compiler.arg(shim).args(definitions).args(["-lm", "-ldl"]).output() else {
        sparta_tests::skipped_unless_in_ci("no C compiler `cc`");
        return None;
    };
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for name in ["libnvrtc.so.13", "libcublasLt.so.13"] {
        std::fs::hard_link(&driver, dir.path().join(name)).unwrap();
    }
    Some(dir)
}

/// Where compiled kernels are kept between runs, as long as the stand-ins stay the same.
fn cache() -> PathBuf {
    let mut hash = DefaultHasher::new();
    (include_str!("libraries.c"), include_str!("shim.h")).hash(&mut hash);
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("card{:016x}", hash.finish()))
}

/// What the command does in this home where the stand-ins are the only libraries, with these variables.
fn run(dir: &tempfile::TempDir, home: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = command(home, arguments);
    command.env("SPARTA_CUDA_PATH", dir.path()).env("XDG_CACHE_HOME", cache()).envs(variables.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The tests of `plugin check` with these names pass, and none of their cases is left out.
fn passes(dir: &tempfile::TempDir, names: &[&str], variables: &[(&str, &str)]) {
    let mut arguments = vec!["plugin", "check", "--json", "--device", "cuda:0", "--limit", "900"];
    arguments.extend(names.iter().flat_map(|name| ["--test", name]));
    let home = tempfile::tempdir().unwrap();
    let output = run(dir, home.path(), &arguments, variables);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let report: Json = serde_json::from_str(stdout.lines().last().unwrap_or_default()).unwrap_or_default();
    let results = report["results"].as_array().unwrap_or_else(|| panic!("{stdout}{stderr}"));
    assert!(results.len() >= names.len(), "{report}");
    for result in results {
        assert_eq!((&result["passed"], &result["details"]), (&Json::Bool(true), &Json::from("")), "{result}");
    }
}

#[test]
fn products_on_a_card_are_right() {
    let Some(dir) = libraries(&[]) else { return };
    passes(&dir, &["contract", "conformance bf16: matrix products", "conformance tf32"], &[]);
    // The first algorithm is refused for every product, and the second one is measured to be the best.
    let Some(dir) = libraries(&["-DREFUSED=1"]) else { return };
    passes(&dir, &["conformance bf16: chosen elements"], &[("SPARTA_CUDA_TUNE", "1")]);
}

/// Recorded plans give the same bits as plans that run launch by launch. If recording fails, plans run that way, with a
/// warning.
#[test]
fn training_on_a_card_is_the_same_recorded_or_not() {
    let line = "run --device cuda:0 --precision tf32 --method lora --max-steps 4 --batch-size 2 --max-train 16 \
                --max-dev 4 --max-test 4 --out out";
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let trained = |definitions: &[&str]| {
        let (dir, home) = (libraries(definitions)?, tempfile::tempdir().unwrap());
        let output = run(&dir, home.path(), &arguments, &[]);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{}{said}", text(&output.stdout));
        Some((std::fs::read_to_string(home.path().join("out/metrics.jsonl")).unwrap(), said))
    };
    let Some((metrics, said)) = trained(&[]) else { return };
    assert!(metrics.lines().count() >= 4 && !said.contains("cannot be recorded"), "{metrics}{said}");
    let failing = ["-DFAIL=\"cuGraphInstantiateWithFlags\"", "-DCODE=1"];
    let Some((same, said)) = trained(&failing) else { return };
    assert_eq!(same, metrics);
    assert_eq!(said.matches("plans run launch by launch, since they cannot be recorded").count(), 1, "{said}");
}

/// A run is planned for the memory that other processes leave, with a warning that says why it is so little.
#[test]
fn memory_that_others_use_on_a_card_is_left_to_them() {
    let Some(dir) = libraries(&["-DCARDS=2", "-DUSED=(2047ull<<20)"]) else { return };
    let home = tempfile::tempdir().unwrap();
    let output = run(&dir, home.path(), &["run", "--device", "cuda:1", "--max-steps", "1", "--out", "out"], &[]);
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{}{said}", text(&output.stdout));
    let warning = "warning: cuda:1: others use the card: 1.0 MiB of 1.50 GiB is free";
    assert!(said.contains(warning) && said.contains("but the device has 1.0 MiB. To make it fit"), "{said}");
}
