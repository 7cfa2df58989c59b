//! `sparta-cli generate`.

use crate::args::GenerateArgs;
use crate::output::{self, Output};
use crate::texts::{Incoming, Shape};
use crate::{devices, hub};
use serde_json::Value;
use sparta_core::adapter::AppliedAdapter;
use sparta_core::plugin::PluginSet;
use sparta_core::run::{Finish, Generator, Prompt, Sampling, Turn, Writing};
use sparta_core::{Error, Result};
use sparta_task_files::Record;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

pub fn generate(args: GenerateArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let mut generator = open(&args, plugins)?;
    let writing = Writing {
        sampling: Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed },
        max_tokens: args.max_tokens,
        stop: args.stop,
    };
    let asked = Asked { chat: args.chat, system: args.system };
    let terminal = io::stdin().is_terminal();
    match (args.prompt, args.input) {
        (Some(prompt), _) => one(&mut generator, &asked.prompt(Prompt::Text(prompt)), &writing, output),
        (None, None) if args.chat || terminal && generator.chats() => {
            converse(&mut generator, &asked, &writing, output, terminal)
        }
        (None, None) if terminal => Err(Error::Usage(
            "the model has no chat template, so there can be no conversation: give --prompt TEXT, or prompts in a FILE"
                .into(),
        )),
        (None, input) => each(&mut generator, input, &asked, &writing),
    }
}

fn open(args: &GenerateArgs, plugins: &PluginSet) -> Result<Generator> {
    let path = hub::run_or_model(args.run.clone())?;
    let mut applied = AppliedAdapter::open(&path, hub::optional_model(args.model.clone())?.as_deref(), plugins)?;
    applied.recorded.accepted.iter().for_each(output::warn);
    if let Some(precision) = args.precision {
        applied.precision = precision;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    Generator::open(&applied, devices::open(&args.device.device, plugins)?, args.context, now)
}

/// How prompts are presented to the model.
struct Asked {
    chat: bool,
    system: Option<String>,
}

impl Asked {
    /// The turns that open a conversation.
    fn first(&self) -> Vec<Turn> {
        self.system.iter().map(|text| turn("system", text)).collect()
    }

    fn prompt(&self, prompt: Prompt) -> Prompt {
        let turns = match prompt {
            Prompt::Text(text) if self.chat => vec![turn("user", &text)],
            Prompt::Turns(turns) => turns,
            text => return text,
        };
        Prompt::Turns(self.first().into_iter().chain(turns).collect())
    }
}

fn turn(role: &str, content: &str) -> Turn {
    Turn { role: role.to_owned(), content: content.to_owned() }
}

/// Streams one text.
fn one(generator: &mut Generator, prompt: &Prompt, writing: &Writing, output: Output) -> Result<()> {
    let generated = generator.write(prompt, writing, |piece| output.piece(piece).map(ControlFlow::Continue))?;
    output.piece("\n")?;
    output.result(&generated)
}

/// Prints a JSON object for each prompt.
fn each(generator: &mut Generator, input: Option<PathBuf>, asked: &Asked, writing: &Writing) -> Result<()> {
    let incoming = Incoming::open(input.as_deref(), Prompts)?;
    let mut number = 0;
    loop {
        let (prompts, outcome) = incoming.some();
        let end = prompts.is_empty();
        for prompt in prompts {
            number += 1;
            let generated = generator.write(&asked.prompt(prompt), writing, |_| Ok(ControlFlow::Continue(())));
            output::json_line(&generated.map_err(|error| match error {
                Error::Data(what) => Error::Data(format!("prompt {number}: {what}")),
                other => other,
            })?)?;
        }
        outcome?;
        if end {
            return Ok(());
        }
    }
}

/// Chats: each line of input is the user's turn.
fn converse(generator: &mut Generator, asked: &Asked, writing: &Writing, output: Output, terminal: bool) -> Result<()> {
    let mut turns = asked.first();
    loop {
        if terminal {
            output.piece("> ")?;
        }
        let mut line = String::new();
        if io::stdin().read_line(&mut line).map_err(Error::io("standard input"))? == 0 {
            return if terminal { output.piece("\n") } else { Ok(()) };
        }
        if line.trim().is_empty() {
            continue;
        }
        turns.push(turn("user", line.trim_end_matches(['\n', '\r'])));
        let prompt = Prompt::Turns(turns.clone());
        let answer = generator.go_on(&prompt, writing, |piece| output.piece(piece).map(ControlFlow::Continue))?;
        output.piece("\n")?;
        output.result(&answer)?;
        match answer.finish {
            Finish::Stop | Finish::Interrupted => {}
            Finish::Length => output::aside(format!("(ended after {} tokens, see --max-tokens)", answer.tokens)),
            Finish::Context => {
                output::aside("(the context is full: the conversation ends here, see --context)");
                return Ok(());
            }
        }
        turns.push(turn("assistant", &answer.text));
    }
}

/// Prompts as lines, or as records with `prompt` (or `text`) or `messages`.
struct Prompts;

const KEYS: [&str; 3] = ["prompt", "text", "messages"];

impl Shape for Prompts {
    type Entry = Prompt;

    fn wants(&self, column: &str) -> bool {
        KEYS.contains(&column)
    }

    fn check(&self, columns: &[&str]) -> std::result::Result<(), String> {
        match columns.iter().any(|column| self.wants(column)) {
            true => Ok(()),
            false => Err(wrong(columns)),
        }
    }

    fn entry(&self, record: Record) -> std::result::Result<Prompt, String> {
        let found: Vec<(&str, &Value)> =
            KEYS.into_iter().filter_map(|key| Some((key, record.values.get(key)?))).collect();
        match found[..] {
            [("prompt" | "text", Value::String(text))] => Ok(Prompt::Text(text.clone())),
            [("messages", Value::Array(messages))] if !messages.is_empty() => messages
                .iter()
                .enumerate()
                .map(|(i, message)| turn_of(i + 1, message))
                .collect::<std::result::Result<_, _>>()
                .map(Prompt::Turns),
            _ => Err(wrong(&record.values.keys().map(String::as_str).collect::<Vec<_>>())),
        }
    }
}

fn wrong(columns: &[&str]) -> String {
    let got = columns.join(", ");
    format!("expected the key `prompt` with a text, or `messages` with a list of turns, got {got}")
}

fn turn_of(number: usize, message: &Value) -> std::result::Result<Turn, String> {
    let text = |key: &str| match message.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => {
            let got = other.map_or("nothing".into(), Value::to_string);
            Err(format!("message {number}: expected a string for `{key}`, got {got}"))
        }
    };
    Ok(Turn { role: text("role")?, content: text("content")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_texts_or_conversations() {
        let read = |line: &str| Prompts.entry(Record { number: 1, values: serde_json::from_str(line).unwrap() });
        assert_eq!(read(r#"{"prompt": "a"}"#).unwrap(), Prompt::Text("a".into()));
        let turns = read(r#"{"messages": [{"role": "user", "content": "a"}], "id": 1}"#).unwrap();
        assert_eq!(turns, Prompt::Turns(vec![turn("user", "a")]));
        assert!(read(r#"{"txt": "a"}"#).unwrap_err().contains("expected the key `prompt`"));
        assert!(read(r#"{"messages": []}"#).is_err() && read(r#"{"prompt": "a", "messages": []}"#).is_err());
        let parts = read(r#"{"messages": [{"role": "user", "content": [{"type": "text"}]}]}"#).unwrap_err();
        assert!(parts.starts_with("message 1: expected a string for `content`, got ["), "{parts}");
    }

    #[test]
    fn a_system_message_begins_conversations() {
        let asked = Asked { chat: true, system: Some("s".into()) };
        let begun = Prompt::Turns(vec![turn("system", "s"), turn("user", "a")]);
        assert_eq!(asked.prompt(Prompt::Text("a".into())), begun);
        assert_eq!(asked.prompt(Prompt::Turns(vec![turn("user", "a")])), begun);
        let plain = Asked { chat: false, system: None };
        assert_eq!(plain.prompt(Prompt::Text("a".into())), Prompt::Text("a".into()));
    }
}
