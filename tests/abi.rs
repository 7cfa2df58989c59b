//! Libraries that were built for ABI 1.3, as they were built then (`abi/`): later hosts load them, train with them, and
//! give what the host of then gave.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use serde_json::Value;
use sparta_tests::command::{json, ran};
use std::path::{Path, PathBuf};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The options of a run of 12 steps; the libraries are named where they are needed.
fn train(out: &str, plugins: &str, more: &str) -> String {
    format!(
        "{plugins} run --model {} --task words13 --method abi13 --data . --device cpu --precision f32 --batch-size 8 --epochs 4 \
         --max-steps 12 --lr 0.01 --words-count 100 --abi-r 3 --json --out {out} {more}",
        at("../cli/assets/model").display()
    )
}

#[test]
fn a_method_and_a_task_of_abi_1_3_train_resume_and_merge() {
    let home = tempfile::tempdir().unwrap();
    let [method, task] = ["method", "task"].map(|kind| at(&format!("abi/{kind}-x86_64-linux.so")));
    let plugins = format!("--plugin {} --plugin {}", method.display(), task.display());
    let (_, said) = ran(home.path(), &train("run", &plugins, ""));
    assert!(said.contains("made up"), "{said}");
    let result: Value = json(home.path().join("run/result.json"));
    assert_eq!((&result["stopped"], &result["steps"]), (&"completed".into(), &12.into()));
    // Two words are told apart within 12 steps, or nothing was trained.
    assert!(result["dev"]["accuracy"].as_f64().unwrap() > 0.9, "{result}");
    let merge = |key: &str| result["merge_check"][key].as_f64().unwrap();
    assert!(merge("largest_difference") <= merge("bound"), "{}", result["merge_check"]);

    // Six steps and six more are twelve.
    ran(
        home.path(),
        &train("half", &plugins, "").replace("--max-steps 12", "--max-steps 6 --schedule constant --warmup 0"),
    );
    ran(home.path(), &train("whole", &plugins, "--schedule constant --warmup 0"));
    ran(home.path(), "run --resume half --max-steps 12 --device cpu");
    let adapter = |run: &str| std::fs::read(home.path().join(run).join("adapter/adapter.safetensors")).unwrap();
    assert!(adapter("half") == adapter("whole"), "the resumed run has another adapter");

    ran(home.path(), "eval run --split dev --device cpu --json");
    ran(home.path(), "adapter merge run --out merged");
    assert!(home.path().join("merged/model.safetensors").is_file());
}
