//! Libraries that were built for ABI 1.3 and 1.4, as they were built then (`abi/`): later hosts load them, train with
//! them, and get the results that hosts got then.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use serde_json::Value;
use sparta_tests::command::{json, ran};
use std::path::{Path, PathBuf};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Trains for 12 steps, at once and as six and six more, evaluates and merges. `method` names it, with its options,
/// `plugins` are the libraries. Returns the result of the run.
fn train_resume_and_merge(home: &Path, method: &str, plugins: &str) -> Value {
    let train = |out: &str, more: &str| {
        format!(
            "{plugins} run --model {} --task words13 --method {method} --data . --device cpu --precision f32 --batch-size 8 \
             --epochs 4 --lr 0.01 --words-count 100 --json --out {out} {more}",
            at("../cli/assets/model").display()
        )
    };
    let (_, said) = ran(home, &train("run", "--max-steps 12"));
    assert!(said.contains("made up"), "{said}");
    let result: Value = json(home.join("run/result.json"));
    assert_eq!((&result["stopped"], &result["steps"]), (&"completed".into(), &12.into()));
    // Two words are told apart within 12 steps, or nothing was trained.
    assert!(result["dev"]["accuracy"].as_f64().unwrap() > 0.9, "{result}");
    let merge = |key: &str| result["merge_check"][key].as_f64().unwrap();
    assert!(merge("largest_difference") <= merge("bound"), "{}", result["merge_check"]);

    let constant = "--schedule constant --warmup 0";
    ran(home, &train("half", &format!("--max-steps 6 {constant}")));
    ran(home, &train("whole", &format!("--max-steps 12 {constant}")));
    ran(home, "run --resume half --max-steps 12 --device cpu");
    let adapter = |run: &str| std::fs::read(home.join(run).join("adapter/adapter.safetensors")).unwrap();
    assert!(adapter("half") == adapter("whole"), "the resumed run has a different adapter");

    ran(home, "eval run --split dev --device cpu --json");
    ran(home, "adapter merge run --out merged");
    assert!(home.join("merged/model.safetensors").is_file());
    result
}

fn plugins(method: &str) -> String {
    let [method, task] = [method, "abi/task-x86_64-linux.so"].map(at);
    format!("--plugin {} --plugin {}", method.display(), task.display())
}

#[test]
fn a_method_and_a_task_of_abi_1_3_train_resume_and_merge() {
    let home = tempfile::tempdir().unwrap();
    train_resume_and_merge(home.path(), "abi13 --abi-r 3", &plugins("abi/method-x86_64-linux.so"));
}

/// With scores, rates, a penalty, an update, and a state between steps.
#[test]
fn a_method_of_abi_1_4_trains_resumes_and_merges() {
    let home = tempfile::tempdir().unwrap();
    train_resume_and_merge(home.path(), "abi14", &plugins("abi/1.4/method-x86_64-linux.so"));
    let chosen = std::fs::metadata(home.path().join("run/chosen.safetensors")).unwrap();
    assert!(chosen.len() > 0, "elements by their scores");
}
