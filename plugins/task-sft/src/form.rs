//! The forms that prompts and answers come in, recognized by their keys, and how a row becomes an example.

use serde_json::{Map, Value};
use sparta_plugin::task::{Example, Message, Segment};
use sparta_task_files::clip;

pub(crate) type Row = Map<String, Value>;

/// The form of a row. Forms are tried in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The turns of a conversation, as in OpenAI's and ShareGPT's files.
    Turns(&'static str),
    /// A prompt and an answer, each a text or turns.
    Prompt { answer: &'static str },
    /// An instruction with or without an input, as in Alpaca's and Dolly's files.
    Instruction { input: &'static str, answer: &'static str },
    /// A text that is learned as a whole.
    Text,
}

const USER: &str = "user";
const ASSISTANT: &str = "assistant";
const SYSTEM: &str = "system";
const TOOLS: &str = "tools";

/// Other names of roles.
const ROLES: &[(&str, &str)] =
    &[("human", USER), ("gpt", ASSISTANT), ("chatgpt", ASSISTANT), ("bot", ASSISTANT), ("model", ASSISTANT)];

/// Alpaca's prompts, for base models, which have no chat template.
const ASK: &str =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";
const ASK_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further \
                              context. Write a response that appropriately completes the request.";

/// All keys that are read.
pub(crate) const KEYS: [&str; 12] = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "context",
    "output",
    "response",
    "text",
    SYSTEM,
    TOOLS,
];

impl Form {
    /// Errors: none of the forms fits; the message lists the `keys` that were found.
    pub fn of(row: &Row, keys: &[&str]) -> Result<Form, String> {
        let has = |key: &str| row.get(key).is_some_and(|value| !value.is_null());
        let one = |keys: [&'static str; 2]| keys.into_iter().find(|key| has(key));
        if let Some(key) = one(["messages", "conversations"]) {
            return Ok(Form::Turns(key));
        }
        if let (true, Some(answer)) = (has("prompt"), one(["completion", "response"])) {
            return Ok(Form::Prompt { answer });
        }
        if let (true, Some(answer)) = (has("instruction"), one(["output", "response"])) {
            return Ok(Form::Instruction { input: one(["input", "context"]).unwrap_or("input"), answer });
        }
        if has("text") {
            return Ok(Form::Text);
        }
        Err(format!(
            "expected `messages`, `conversations`, `prompt` and `completion`, `instruction` and `output` (with `input`), or \
             `text`; got {}",
            if keys.is_empty() { "nothing".to_owned() } else { clip(&keys.join(", ")) }
        ))
    }

    /// The example of a row of this form.
    ///
    /// Errors: a value is missing or has the wrong type; a conversation without turns; tools.
    pub fn example(self, row: &Row) -> Result<Example, String> {
        if row.get(TOOLS).is_some_and(|tools| !empty(tools)) {
            return Err("it has `tools`, which cannot be trained: leave such rows out".into());
        }
        let system = optional(row, SYSTEM)?;
        let mut example = match self {
            Form::Turns(key) => of_turns(turns(value(row, key)?, key)?),
            Form::Prompt { answer } => prompt(row, answer, system)?,
            Form::Instruction { input, answer } => instruction(row, input, answer)?,
            Form::Text => {
                let text = text(row, "text")?.to_owned();
                Example { segments: vec![Segment { text, trained: true }], ..Example::default() }
            }
        };
        let begins = example.messages.first().is_some_and(|first| first.role == SYSTEM);
        if let Some(system) = system.filter(|_| !begins && !example.messages.is_empty()) {
            example.messages.insert(0, turn(SYSTEM, system));
        }
        Ok(example)
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.trim().is_empty() || text == "[]",
        _ => false,
    }
}

fn turn(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into(), context: false }
}

fn of_turns(messages: Vec<Message>) -> Example {
    Example { messages, ..Example::default() }
}

/// A prompt and its answer: texts, which are concatenated if there is no template, or turns.
fn prompt(row: &Row, answer: &str, system: Option<&str>) -> Result<Example, String> {
    let (before, after) = (value(row, "prompt")?, value(row, answer)?);
    if let (Value::String(before), Value::String(after)) = (before, after) {
        let messages = vec![turn(USER, before), turn(ASSISTANT, after)];
        let before = system.map_or(before.clone(), |system| format!("{system}\n\n{before}"));
        return Ok(Example { messages, segments: laid_out(before, after), ..Example::default() });
    }
    let either = |value: &Value, key: &str, role: &str| match value {
        Value::String(text) => Ok(vec![turn(role, text)]),
        list => turns(list, key),
    };
    // An earlier answer belongs to the prompt.
    let shown = either(before, "prompt", USER)?.into_iter().map(|turn| Message { context: true, ..turn });
    Ok(of_turns(shown.chain(either(after, answer, ASSISTANT)?).collect()))
}

fn instruction(row: &Row, input: &str, answer: &str) -> Result<Example, String> {
    let (asked, answer) = (text(row, "instruction")?, text(row, answer)?);
    let (content, plain) = match optional(row, input)? {
        None => (asked.to_owned(), format!("{ASK}\n\n### Instruction:\n{asked}\n\n### Response:\n")),
        Some(input) => (
            format!("{asked}\n\n{input}"),
            format!("{ASK_WITH_INPUT}\n\n### Instruction:\n{asked}\n\n### Input:\n{input}\n\n### Response:\n"),
        ),
    };
    let messages = vec![turn(USER, &content), turn(ASSISTANT, answer)];
    Ok(Example { messages, segments: laid_out(plain, answer), ..Example::default() })
}

fn laid_out(before: String, answer: &str) -> Vec<Segment> {
    vec![Segment { text: before, trained: false }, Segment { text: answer.to_owned(), trained: true }]
}

fn turns(value: &Value, key: &str) -> Result<Vec<Message>, String> {
    let wrong =
        || format!("expected a list of turns in `{key}`, each with `role` and `content`, or `from` and `value`");
    let list = value.as_array().filter(|list| !list.is_empty()).ok_or_else(wrong)?;
    let read = |(i, item): (usize, &Value)| {
        let item = item.as_object().ok_or_else(wrong)?;
        message(item).map_err(|what| format!("`{key}`, turn {}: {what}", i + 1))
    };
    list.iter().enumerate().map(read).collect()
}

fn message(item: &Row) -> Result<Message, String> {
    let either = |keys: [&str; 2]| keys.into_iter().find_map(|key| item.get(key));
    let role = match either(["role", "from"]) {
        Some(Value::String(role)) if !role.trim().is_empty() => role.trim(),
        other => return Err(format!("expected a text for `role` or `from`, got {}", shown(other))),
    };
    if item.get("tool_calls").is_some_and(|calls| !empty(calls)) {
        return Err("it calls tools, which cannot be trained: leave such conversations out".into());
    }
    let content = match either(["content", "value"]) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().map(part).collect::<Result<String, String>>()?,
        other => return Err(format!("expected a text for `content` or `value`, got {}", shown(other))),
    };
    let role = ROLES.iter().find(|(other, _)| *other == role).map_or(role, |(_, role)| role);
    // OpenAI's files give answers that must not be learned a weight of 0.
    let context = item.get("weight").and_then(Value::as_f64) == Some(0.0);
    Ok(Message { context, ..turn(role, &content) })
}

/// One part of a message content that is a list of parts.
fn part(part: &Value) -> Result<String, String> {
    match (part, part.get("text")) {
        (Value::String(text), _) | (_, Some(Value::String(text))) => Ok(text.clone()),
        _ => Err(format!("expected parts with a `text`, got {}; only text can be trained", shown(Some(part)))),
    }
}

fn value<'a>(row: &'a Row, key: &str) -> Result<&'a Value, String> {
    row.get(key).filter(|value| !value.is_null()).ok_or_else(|| {
        let keys: Vec<&str> = row.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str()).collect();
        format!("expected `{key}`, as in the rows before, got {}", keys.join(", "))
    })
}

fn text<'a>(row: &'a Row, key: &str) -> Result<&'a str, String> {
    let value = value(row, key)?;
    value.as_str().ok_or_else(|| format!("expected a text for `{key}`, got {}", shown(Some(value))))
}

/// The text of a key; `None` if it is empty or missing.
fn optional<'a>(row: &'a Row, key: &str) -> Result<Option<&'a str>, String> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => Ok(Some(text(row, key)?).filter(|text| !text.is_empty())),
    }
}

/// A value of the user's file, clipped.
fn shown(value: Option<&Value>) -> String {
    value.map_or("nothing".to_owned(), |value| format!("`{}`", clip(&value.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(value: Value) -> Row {
        value.as_object().unwrap().clone()
    }

    fn read(value: Value) -> Result<Example, String> {
        let row = row(value);
        let keys: Vec<&str> = row.keys().map(String::as_str).collect();
        Form::of(&row, &keys)?.example(&row)
    }

    /// `role: content`, with a dash before turns that are only read.
    fn turns_of(value: Value) -> Vec<String> {
        let mark = |turn: &Message| if turn.context { "-" } else { "" };
        read(value)
            .unwrap()
            .messages
            .iter()
            .map(|turn| format!("{}{}: {}", mark(turn), turn.role, turn.content))
            .collect()
    }

    fn segments_of(value: Value) -> Vec<(String, bool)> {
        read(value).unwrap().segments.into_iter().map(|segment| (segment.text, segment.trained)).collect()
    }

    #[test]
    fn turns_have_roles_and_contents_under_either_name() {
        let openai = json!({"messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
            {"role": "assistant", "content": "c", "weight": 0}, {"role": "user", "content": ""},
            {"role": "assistant", "content": " d\n", "weight": 1, "tool_calls": null}], "prompt": "x", "completion": "y"});
        assert_eq!(turns_of(openai), ["system: s", "user: ab", "-assistant: c", "user: ", "assistant:  d\n"]);
        let sharegpt = json!({"system": "s", "conversations": [
            {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "tool", "value": "c"}]});
        assert_eq!(turns_of(sharegpt), ["system: s", "user: a", "assistant: b", "tool: c"]);
    }

    #[test]
    fn a_prompt_is_a_turn_or_a_text_and_what_it_holds_is_not_learned() {
        let texts = json!({"prompt": "p ", "completion": "c", "messages": null});
        assert_eq!(turns_of(texts.clone()), ["user: p ", "assistant: c"]);
        assert_eq!(segments_of(texts), [("p ".into(), false), ("c".into(), true)]);
        let system = json!({"system": "s", "prompt": "p", "response": "c"});
        assert_eq!(turns_of(system.clone()), ["system: s", "user: p", "assistant: c"]);
        assert_eq!(segments_of(system)[0].0, "s\n\np");
        let turns = json!({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]});
        assert_eq!(turns_of(turns.clone()), ["-user: a", "-assistant: b", "-user: c", "assistant: d"]);
        assert!(segments_of(turns).is_empty());
        let mixed = json!({"prompt": [{"role": "user", "content": "a"}], "completion": "b"});
        assert_eq!(turns_of(mixed), ["-user: a", "assistant: b"]);
    }

    #[test]
    fn an_instruction_is_a_turn_with_its_input_or_the_prompt_of_alpaca() {
        let with = json!({"instruction": "Add.", "input": "1 2", "output": "3", "text": "all"});
        assert_eq!(turns_of(with.clone()), ["user: Add.\n\n1 2", "assistant: 3"]);
        let segments = segments_of(with);
        assert!(segments[0].0.ends_with("\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"));
        assert_eq!(segments[1], ("3".into(), true));
        let without = segments_of(json!({"instruction": "Sing.", "context": "", "response": "La."}));
        assert!(without[0].0.ends_with("request.\n\n### Instruction:\nSing.\n\n### Response:\n"), "{without:?}");
        let dolly = json!({"instruction": "Add.", "context": "1 2", "response": "3", "category": "sum"});
        assert_eq!(turns_of(dolly), ["user: Add.\n\n1 2", "assistant: 3"]);
    }

    #[test]
    fn a_text_is_all_learned() {
        assert_eq!(segments_of(json!({"text": "a b", "id": 3})), [("a b".into(), true)]);
        assert!(turns_of(json!({"text": "a b"})).is_empty());
    }

    #[test]
    fn errors_describe_what_was_found() {
        for (value, parts) in [
            (json!({"question": "q", "reply": 1}), ["expected `messages`", "got question, reply"]),
            (json!({"messages": []}), ["a list of turns in `messages`", "`from`"]),
            (json!({"messages": "hi"}), ["a list of turns in `messages`", "`role`"]),
            (json!({"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}), ["turn 2", "`role` or `from`"]),
            (
                json!({"conversations": [{"from": "gpt"}]}),
                ["`conversations`, turn 1", "`content` or `value`, got nothing"],
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
                ["turn 1", "only text can be trained"],
            ),
            (json!({"messages": [{"role": "assistant", "tool_calls": [{}]}]}), ["turn 1", "tools"]),
            (
                json!({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}),
                ["`tools`", "leave such rows out"],
            ),
            (json!({"prompt": "p", "completion": 3}), ["a list of turns in `completion`", ""]),
            (json!({"instruction": ["p"], "output": "o"}), ["a text for `instruction`, got `[\"p\"]`", ""]),
            (json!({"text": 5}), ["a text for `text`, got `5`", ""]),
        ] {
            let error = read(value).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let other = Form::Text.example(&row(json!({"prompt": "p", "completion": "c"}))).unwrap_err();
        assert!(
            other.starts_with("expected `text`, as in the rows before, got ") && other.contains("prompt"),
            "{other}"
        );
    }
}
