//! The small embedded model with a chat template, and conversations for it.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Marks turns with words from the model's training texts, since it cannot learn others without training embeddings.
pub const WORDS: &str = "{{ bos_token }}{% for m in messages %} {{ m.role }}, {{ m.content }}.{% endfor %}\
                         {% if add_generation_prompt %} assistant,{% endif %}";

/// Copies the embedded model to a directory, with this chat template or without one.
pub fn model(to: &Path, template: Option<&str>) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/model");
    fs::create_dir_all(to).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let text = fs::read_to_string(from.join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["chat_template"] = json!(template);
    fs::write(to.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Writes rows as JSONL, with the directories above the file.
pub fn rows(to: &Path, rows: &[Value]) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(to, lines).unwrap();
}

pub fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// Similar questions, each with one of two answers.
pub fn questions(count: usize) -> Vec<Value> {
    let things = ["film", "food", "room", "staff", "story", "view", "music", "price"];
    let row = |i: usize| {
        let answer = ["it was good and great", "it was bad and rude"][i % 2];
        let question = format!("how was the {}{}?", things[i % 8], " then".repeat(i / 8));
        json!({"messages": [turn("user", &question), turn("assistant", answer)]})
    };
    (0..count).map(row).collect()
}
