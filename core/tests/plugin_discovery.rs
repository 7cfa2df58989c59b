//! Tests that plugins are found where they should be, that a plugin in C works against the header, and that a library
//! that is broken, foreign or unlike its manifest becomes a line of the report, never a crash.

use serde_json::json;
use sha2::{Digest, Sha256};
use sparta_core::plugin::*;
use sparta_graph::ops::{Accumulate, Layout, Linear};
use sparta_graph::{DType, Graph, Plan, Work};
use sparta_plugin::task::*;
use std::env::consts::DLL_SUFFIX;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Compiles a C file of `tests/plugins`; `None` if there is no C compiler.
fn compile(source: &str, case: u32, directory: &Path, name: &str) -> Option<PathBuf> {
    let library = directory.join(format!("{name}{DLL_SUFFIX}"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"])
        .arg(format!("-DCASE={case}"))
        .arg("-I")
        .arg(root.join("../plugins/sdk/include"))
        .arg("-o")
        .arg(&library)
        .arg(root.join("tests/plugins").join(source))
        .output();
    let Ok(output) = compiler else {
        println!("skipped: no C compiler `cc`");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(library)
}

fn compile_task(directory: &Path, name: &str) -> Option<PathBuf> {
    compile("task.c", 0, directory, name)
}

fn explicit(path: impl Into<PathBuf>) -> PluginSet {
    PluginSet::discover(&DiscoverOptions { explicit: vec![path.into()], ..Default::default() })
}

fn reason(found: &Found) -> &str {
    match &found.state {
        State::Refused { reason } => reason,
        other => panic!("{}: {other:?}", found.path.display()),
    }
}

#[track_caller]
fn refused(set: &PluginSet, parts: &[&str]) {
    assert_eq!(set.report().len(), 1, "{:?}", set.report());
    let reason = reason(&set.report()[0]);
    parts.iter().for_each(|part| assert!(reason.contains(part), "{reason}"));
}

fn write_manifest(library: &Path, change: impl FnOnce(&mut Manifest)) {
    let bytes = std::fs::read(library).unwrap();
    let mut manifest = Manifest {
        name: "c-sign".into(),
        kind: PluginKind::Task,
        abi: "sparta.task/1".into(),
        target: target(),
        sha256: Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect(),
    };
    change(&mut manifest);
    std::fs::write(Manifest::path(library), serde_json::to_vec(&manifest).unwrap()).unwrap();
}

#[test]
fn a_task_in_c() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = compile_task(dir.path(), "libany_name") else { return };
    let set = explicit(&library);
    let found = &set.report()[0];
    assert_eq!((found.name.as_str(), found.version.as_str()), ("c-sign", "1.2.3"));
    assert_eq!((found.kind, found.manifest, found.origin), (Some(PluginKind::Task), false, Origin::Explicit));
    assert_eq!(found.state, State::Loaded);

    let (task, info) = set.task("sign").unwrap();
    assert_eq!(info.labels, ["minus", "plus"]);
    let request = |task: &str, data: &str| OpenRequest::new(task, data);
    let dataset = task.open(&request("sign", "/data")).unwrap();
    let recipe = dataset.recipe();
    assert_eq!((recipe.train.take, recipe.dev.take), (Take::Rest { cap: None }, Take::Draw { count: 1 }));
    let examples: Vec<Example> = dataset.examples("train").unwrap().map(Result::unwrap).collect();
    assert_eq!(
        serde_json::to_value(examples).unwrap(),
        json!([{"text": "-1", "label": 0}, {"text": "+1", "label": 1}])
    );

    assert!(dataset.examples("dev").err().unwrap().0.starts_with("there is only the part train [plugin c-sign ("));
    let message = task.open(&request("sign", "/nowhere")).err().unwrap().0;
    assert!(message.starts_with("/nowhere: no train.txt there [plugin c-sign ("), "{message}");
    let message = task.open(&request("other", "/data")).err().unwrap().0;
    assert!(message.contains("no task `other`"), "{message}");
    let message = set.task("sgin").err().unwrap().to_string();
    assert!(message.contains("did you mean `sign`?"), "{message}");
}

/// Libraries built before functions were added to the table.
#[test]
fn backends_of_earlier_minor_versions_work() {
    let dir = tempfile::tempdir().unwrap();
    for minor in [0, 1] {
        let Some(library) = compile("backend.c", minor, dir.path(), &format!("minor{minor}")) else { return };
        let set = explicit(&library);
        assert_eq!(set.report()[0].state, State::Loaded);
        let plugin = &set.backends()[0];
        let info = plugin.devices().unwrap().remove(0);
        assert_eq!((info.activations, info.products), (vec![DType::F32], vec![]), "what every backend has");
        let mut backend = plugin.open("store").unwrap();
        assert_eq!(backend.memory_use(), None);

        let mut graph = Graph::new();
        let [x, y] = ["x", "y"].map(|name| graph.external(name, DType::F32, [2]));
        graph.apply(Accumulate {}.into(), &[x, y]).unwrap();
        let mut plan = Plan::build(&graph, false);
        let [arena, a, b] = [4, 2, 2].map(|len| backend.alloc(DType::F32, len, "tensor").unwrap());
        let id = backend.prepare(&plan, &[arena], &[a, b]).unwrap();
        backend.run(id).unwrap();
        match backend.run_profiled(id) {
            Ok(times) => assert_eq!((minor, times), (1, vec![Duration::from_nanos(7)])),
            Err(e) => assert!(minor == 0 && e.to_string().contains("no function `run_profiled`"), "{e}"),
        }
        backend.write(b, 1, &[1, 2, 3, 4]).unwrap();
        let mut out = [9; 8];
        backend.read(b, 0, &mut out).unwrap();
        assert_eq!(out, [0, 0, 0, 0, 1, 2, 3, 4]);

        // The host emulates the missing functions with the old ones.
        let work = [Work::Write { buffer: b, offset: 0, data: &[5; 4] }, Work::Run(id)];
        backend.submit(&work).unwrap();
        let read = backend.request(b, 0, 8).unwrap();
        backend.fetch(read, &mut out).unwrap();
        assert_eq!(out, [5, 5, 5, 5, 1, 2, 3, 4]);

        // Such a library would ignore what it does not know.
        plan.calls[0].op = Linear { output: Some(DType::BF16), ..Linear::plain(Layout::Nt) }.into();
        let message = backend.prepare(&plan, &[arena], &[a, b]).unwrap_err().to_string();
        assert!(message.contains("store: linear: the plugin store (") && message.contains("`output`"), "{message}");
        assert_eq!(backend.supports(&plan).unwrap_err().to_string(), message);
    }
}

#[test]
fn broken_libraries_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(u32, &[&str]); 8] = [
        (1, &["does not export sparta_plugin_entry"]),
        (2, &["returned nothing"]),
        (3, &["plugin ABI 2", "this host speaks 1", "update sparta-cli"]),
        (4, &["SpartaInterface has 8 bytes"]),
        (5, &["sparta.method/1", "null pointer"]),
        (6, &["sparta.method/2", "sparta.method/1", "update sparta-cli"]),
        (7, &["unknown interface `sparta.sampler/1`", "sparta.task/1"]),
        (8, &["no function `describe`"]),
    ];
    for (case, parts) in cases {
        let Some(library) = compile("broken.c", case, dir.path(), &format!("case{case}")) else { return };
        let set = explicit(library);
        refused(&set, parts);
        assert!(set.methods().is_empty());
    }
}

#[test]
fn damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = compile_task(dir.path(), "libtask") else { return };
    let bytes = std::fs::read(&library).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(format!("{name}{DLL_SUFFIX}"));
        std::fs::write(&path, bytes).unwrap();
        path
    };
    refused(&explicit(write("empty", b"")), &["not a readable shared library"]);
    refused(&explicit(write("text", b"#!/bin/sh\nexit 1\n")), &["not a readable shared library"]);
    for sixteenths in 1..16 {
        let set = explicit(write(&format!("cut{sixteenths}"), &bytes[..bytes.len() * sixteenths / 16]));
        reason(&set.report()[0]);
    }
    refused(&explicit(dir.path().join("absent.so")), &["no such file"]);
}

/// An ELF header says in byte 18 for which machine it is.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn a_library_for_a_different_machine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = compile_task(dir.path(), "libtask") else { return };
    let mut bytes = std::fs::read(&library).unwrap();
    bytes[18] = 183;
    std::fs::write(&library, bytes).unwrap();
    refused(&explicit(library), &["another machine: Aarch64", "x86_64-linux"]);
}

#[test]
fn a_manifest_is_checked_before_the_library_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = compile_task(dir.path(), "libtask") else { return };
    write_manifest(&library, |_| ());
    let set = explicit(&library);
    assert_eq!((set.report()[0].manifest, &set.report()[0].state), (true, &State::Loaded));

    write_manifest(&library, |m| m.sha256 = "0".repeat(64));
    refused(&explicit(&library), &["not the one that the manifest describes", "000"]);
    write_manifest(&library, |m| m.target = "pdp11-unix".into());
    refused(&explicit(&library), &["built for pdp11-unix", &target()]);
    write_manifest(&library, |m| m.abi = "sparta.task/2".into());
    refused(&explicit(&library), &["sparta.task/2", "sparta.task/1"]);
    write_manifest(&library, |m| m.name = "other".into());
    refused(&explicit(&library), &["calls it `other`", "`c-sign`"]);
    write_manifest(&library, |m| (m.kind, m.abi) = (PluginKind::Method, "sparta.method/1".into()));
    refused(&explicit(&library), &["calls it a method", "sparta.task/1"]);
    std::fs::write(Manifest::path(&library), "{").unwrap();
    refused(&explicit(&library), &["libtask.plugin.json", "not a plugin manifest"]);
}

#[test]
fn only_trusted_places_do_without_a_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = compile_task(dir.path(), "libsparta_task_sign") else { return };
    let place = || dir.path().to_owned();
    let with = |options: DiscoverOptions| PluginSet::discover(&options);
    let default = DiscoverOptions::default;
    for options in [
        DiscoverOptions { explicit: vec![place()], ..default() },
        DiscoverOptions { path_variable: Some(place().into()), ..default() },
        DiscoverOptions { beside: vec![place()], ..default() },
    ] {
        assert_eq!(with(options).report()[0].state, State::Loaded);
    }
    let guarded = || {
        [
            DiscoverOptions { configured: vec![place()], ..default() },
            DiscoverOptions { user: Some(place()), ..default() },
        ]
    };
    for options in guarded() {
        refused(&with(options), &["no manifest", "libsparta_task_sign.plugin.json"]);
    }
    write_manifest(&library, |_| ());
    for options in guarded() {
        assert_eq!(with(options).report()[0].state, State::Loaded);
    }
}

#[test]
fn the_first_place_wins() {
    let dir = tempfile::tempdir().unwrap();
    let Some(first) = compile_task(dir.path(), "libfirst") else { return };
    let beside = dir.path().join("beside");
    std::fs::create_dir(&beside).unwrap();
    let Some(second) = compile_task(&beside, "libsparta_task_sign") else { return };
    // Beside the executable only files named like plugins are considered.
    std::fs::write(beside.join(format!("libother{DLL_SUFFIX}")), "no library").unwrap();
    let set = PluginSet::discover(&DiscoverOptions {
        // The same library given twice is one line.
        explicit: vec![first.clone(), dir.path().to_owned()],
        beside: vec![beside],
        ..Default::default()
    });
    let lines: Vec<_> = set.report().iter().map(|found| (found.path.clone(), found.state.clone())).collect();
    let shadowed = State::Shadowed { by: first.clone() };
    assert_eq!(lines, [(first, State::Loaded), (second, shadowed)]);
    assert_eq!(set.tasks().len(), 1);
}

#[test]
fn the_current_directory_is_never_searched() {
    let set = PluginSet::discover(&DiscoverOptions {
        path_variable: Some(OsString::from("")),
        user: Some("/nowhere/plugins".into()),
        ..Default::default()
    });
    assert!(set.report().is_empty());
    for options in [
        DiscoverOptions { path_variable: Some(".".into()), ..Default::default() },
        DiscoverOptions { configured: vec!["plugins".into()], ..Default::default() },
    ] {
        refused(&PluginSet::discover(&options), &["current directory", "absolute"]);
    }
}
