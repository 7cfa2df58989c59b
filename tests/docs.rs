//! Checks README and the pages of `docs/`: their commands run, their links resolve, and quoted messages exist. Needs
//! `cargo build --release` first.
//!
//! Code blocks of language `sh` are run, those of a page in one directory and in order; `sh skip` marks what
//! needs a network, a build or hardware.

use sparta_tests::chat::{self, WORDS, questions};
use sparta_tests::command::{binary, command};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The pages, and README.
fn pages() -> Vec<PathBuf> {
    let listed = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = listed.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    pages.chain([root().join("README.md")]).collect()
}

fn name(page: &Path) -> &str {
    page.file_name().unwrap().to_str().unwrap()
}

/// The code blocks of a page with the text after their opening fences.
fn blocks(text: &str) -> Vec<(&str, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(info), None) => open = Some((info, String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, code))) => *code += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a code block does not end");
    blocks
}

/// Creates the files that readers would have.
fn prepare(home: &Path) {
    chat::model(&home.join("path/to/model"), None);
    chat::model(&home.join("path/to/SmolLM2-135M-Instruct"), Some(WORDS));
    chat::rows(&home.join("chats.jsonl"), &questions(60));
    chat::rows(&home.join("prompts.jsonl"), &[serde_json::json!({"prompt": "the film was"})]);
    let text = |i: usize| format!("the {} was {}", ["film", "food", "room"][i % 3], ["good", "bad"][i % 2]);
    let label = |i: usize| ["positive", "negative"][i % 2];
    // Equal texts would stay in one split, so all differ.
    let table = |head: &str, row: &dyn Fn(usize) -> String| {
        (0..80).fold(format!("{head}\n"), |table, i| table + &row(i) + &format!(" number {i}") + "," + label(i) + "\n")
    };
    fs::write(home.join("labelled.csv"), table("text,label", &text)).unwrap();
    fs::write(home.join("reviews.csv"), table("Review body,Stars", &text)).unwrap();
    fs::write(home.join("new-reviews.csv"), "Review body\na good film\n").unwrap();
    fs::write(home.join("documents.txt"), (0..80).map(|i| text(i) + "\n").collect::<String>()).unwrap();
}

#[track_caller]
fn run(page: &str) {
    let home = tempfile::tempdir().unwrap();
    prepare(home.path());
    let path = if page == "README.md" { root().join(page) } else { root().join("docs").join(page) };
    let directory = binary().parent().unwrap().to_owned();
    let paths = std::env::join_paths([directory].into_iter().chain(std::env::split_paths(env!("PATH")))).unwrap();
    for (info, code) in blocks(&fs::read_to_string(path).unwrap()).into_iter().filter(|(info, _)| *info == "sh") {
        let mut shell = Command::new("bash");
        for (name, value) in command(home.path(), &[]).get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.args(["-euo", "pipefail", "-c", &code]).current_dir(home.path()).env("PATH", &paths);
        let output = shell.env("HF_HUB_OFFLINE", "1").stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{page}, {info}:\n{code}\n{said}");
    }
}

macro_rules! runs {
    ($($test:ident $page:literal,)*) => {
        $(#[test] fn $test() { run($page) })*

        #[test]
        fn every_page_with_commands_is_run() {
            let run = BTreeSet::from([$($page),*]);
            for page in pages() {
                let text = fs::read_to_string(&page).unwrap();
                let commands = blocks(&text).iter().any(|(info, _)| *info == "sh");
                assert!(!commands || run.contains(name(&page)), "{}: add it to this file", page.display());
            }
        }
    };
}

runs! {
    readme "README.md",
    first_run "first-run.md",
    model "model.md",
    tables "tables.md",
    sft "sft.md",
    generate "generate.md",
    devices "devices.md",
    memory "memory.md",
    resume "resume.md",
    merging "merging.md",
    paper "paper.md",
    troubleshooting "troubleshooting.md",
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let outside = link.contains("://") || link.is_empty();
            let target = page.parent().unwrap().join(link);
            assert!(outside || target.exists(), "{}: {link}", page.display());
        }
    }
}

#[test]
fn the_summary_has_every_page() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    for page in pages().iter().map(|page| name(page)).filter(|name| !matches!(*name, "SUMMARY.md" | "README.md")) {
        assert!(summary.contains(&format!("({page})")), "{page} is not in docs/SUMMARY.md");
    }
}

/// Troubleshooting quotes messages in quotation marks.
#[test]
fn quoted_messages_are_in_the_source() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let table: Vec<&str> = page.lines().filter(|line| line.starts_with("| \"")).collect();
    assert!(table.len() > 5, "{table:?}");
    let output = |quoted: &str| {
        let places = ["core", "cli/src", "plugins"].map(|place| root().join(place));
        Command::new("grep").args(["-rqF", "--include=*.rs", quoted]).args(places).status().unwrap()
    };
    for quoted in table.iter().filter_map(|line| line.split('"').nth(1)) {
        assert!(output(quoted).success(), "no message has: {quoted}");
    }
}
