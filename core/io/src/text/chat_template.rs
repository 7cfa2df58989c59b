//! The chat template of a tokenizer: a Jinja template that puts the turns of a conversation between the model's marks.
//!
//! Templates come with downloaded models, so they are untrusted programs: they see only the conversation and the
//! special tokens, load nothing, and are rendered in a separate process ([`super::renderer`]).

use super::renderer::Renderer;
use super::special::{self, SpecialTokens};
use crate::{Error, Result, files};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// One turn.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Message<'a> {
    /// `system`, `user` or `assistant`
    pub role: &'a str,
    pub content: &'a str,
}

#[derive(Debug)]
pub struct ChatTemplate {
    renderer: Renderer,
    /// The file, for messages.
    source: String,
    shows_date: bool,
}

impl ChatTemplate {
    /// The template of a model directory, found as in transformers: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json`, where `default` is used if there are several; or that of a GGUF file. `None` if there
    /// is none. `now` is the time for `strftime_now`, in seconds since 1970.
    ///
    /// Errors: a file that cannot be read, several templates without a default, a syntax error.
    pub fn open(dir: &Path, now: i64) -> Result<Option<ChatTemplate>> {
        let Some((path, template)) = template_of(dir)? else { return Ok(None) };
        let (source, shows_date) = (path.display().to_string(), template.contains("strftime_now"));
        let renderer = Renderer::new(&template, SpecialTokens::open(dir)?.named, now);
        let renderer = renderer.map_err(|what| failed(&source, &what))?;
        Ok(Some(ChatTemplate { renderer, source, shows_date }))
    }

    /// Whether a model directory has a template. Errors: those of [`ChatTemplate::open`] before the template is read.
    pub fn is_in(dir: &Path) -> Result<bool> {
        Ok(template_of(dir)?.is_some())
    }

    /// Whether the text depends on the given time.
    pub fn shows_date(&self) -> bool {
        self.shows_date
    }

    /// The conversation as the model expects it before its answer, as `apply_chat_template(messages,
    /// add_generation_prompt=True, tokenize=False)` gives it.
    ///
    /// Errors: anything the template refuses; a template that takes too much time or memory.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        self.rendered(messages, true)
    }

    /// The conversation with the model's answer as its last turn, without `add_generation_prompt`.
    pub fn render_answered(&self, messages: &[Message]) -> Result<String> {
        self.rendered(messages, false)
    }

    /// What the template writes after an answer, such as an end marker.
    ///
    /// Errors: those of [`ChatTemplate::render`].
    pub fn after_answer(&self) -> Result<String> {
        let [question, answer] = ["why not", "Good."];
        let turns = [Message { role: "user", content: question }, Message { role: "assistant", content: answer }];
        let text = self.render_answered(&turns)?;
        Ok(text.rsplit_once(answer).map_or(String::new(), |(_, rest)| rest.to_owned()))
    }

    fn rendered(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.renderer.render(messages, add_generation_prompt).map_err(|what| failed(&self.source, &what))
    }

    /// Checks that the template uses the user's text.
    ///
    /// Errors: those of [`ChatTemplate::render`]; it does not.
    pub fn check(&self) -> Result<()> {
        let [one, other] = ["Good.", "why not"].map(|content| self.render(&[Message { role: "user", content }]));
        match one? == other? {
            true => Err(self.unfit("leaves out the user's text; it does not belong to this model")),
            false => Ok(()),
        }
    }

    /// The error for a template that does `what` it should not; names its file.
    pub fn unfit(&self, what: &str) -> Error {
        failed(&self.source, what)
    }
}

/// The template, and its file.
pub(super) fn template_of(dir: &Path) -> Result<Option<(PathBuf, String)>> {
    let file = dir.join("chat_template.jinja");
    if files::is_dir(dir) {
        match files::read_text(&file, files::CONFIGURATION) {
            Ok(text) => return Ok(Some((file, text))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(file)(e)),
        }
    }
    let (path, config) = special::stated(dir)?;
    let template = of_config(config.get("chat_template"))
        .map_err(|what| Error::Tokenizer(format!("{}: chat_template: {what}", path.display())))?;
    Ok(template.map(|template| (path, template)))
}

fn failed(source: &str, what: &str) -> Error {
    Error::Tokenizer(format!("{source}: the chat template {what}"))
}

/// The key `chat_template`: a template, or a list or an object of named ones.
fn of_config(value: Option<&serde_json::Value>) -> std::result::Result<Option<String>, String> {
    use serde_json::Value as Json;
    let named: Vec<(String, Option<&str>)> = match value {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::String(template)) => return Ok(Some(template.clone())),
        Some(Json::Array(list)) => {
            let name = |item: &Json| item.get("name").and_then(Json::as_str).unwrap_or_default().to_owned();
            list.iter().map(|item| (name(item), item.get("template").and_then(Json::as_str))).collect()
        }
        Some(Json::Object(map)) => map.iter().map(|(name, template)| (name.clone(), template.as_str())).collect(),
        Some(other) => return Err(format!("expected a template or a list of named ones, got {other}")),
    };
    match named.iter().find(|(name, _)| name == "default") {
        Some((_, Some(template))) => Ok(Some(template.to_string())),
        Some((_, None)) => Err("the template named `default` is not a text".into()),
        None => {
            let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
            Err(format!("none of the templates is named `default`: {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_template_is_found_as_transformers_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = || ChatTemplate::open(dir.path(), 0);
        let render = || open().unwrap().unwrap().render(&[Message { role: "user", content: "x" }]).unwrap();
        assert!(open().unwrap().is_none());
        let config = |template: serde_json::Value| {
            let config = serde_json::json!({"bos_token": {"content": "<b>"}, "chat_template": template});
            fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        };
        config(serde_json::Value::Null);
        assert!(open().unwrap().is_none());
        config("{{ bos_token }}1".into());
        assert_eq!(render(), "<b>1");
        config(serde_json::json!([{"name": "rag", "template": "2"}, {"name": "default", "template": "3"}]));
        assert_eq!(render(), "3");
        config(serde_json::json!([{"name": "rag", "template": "2"}, {"name": "tool_use", "template": "3"}]));
        let text = open().unwrap_err().to_string();
        assert!(text.contains("named `default`: rag, tool_use"), "{text}");
        config(serde_json::json!(3));
        assert!(open().unwrap_err().to_string().contains("tokenizer_config.json: chat_template: expected a template"));
        fs::write(dir.path().join("chat_template.jinja"), "4\n").unwrap();
        assert_eq!(render(), "4");
        fs::write(dir.path().join("chat_template.jinja"), "{% if %}").unwrap();
        assert!(open().unwrap_err().to_string().contains("chat_template.jinja: the chat template is not understood"));
    }

    #[test]
    fn a_template_without_a_place_for_the_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let check = |template: &str| {
            fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
            ChatTemplate::open(dir.path(), 0).unwrap().unwrap().check()
        };
        check("<{{ messages[0].content }}>").unwrap();
        let text = check("{{ 1 + 1 }}").unwrap_err().to_string();
        assert!(text.contains("chat_template.jinja: the chat template leaves out the user's text"), "{text}");
    }

    #[test]
    fn the_end_of_an_answer_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}";
        fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        assert_eq!(ChatTemplate::open(dir.path(), 0).unwrap().unwrap().after_answer().unwrap(), "<end>\n");
    }

    #[test]
    fn a_date_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let shows_date = |template: &str| {
            fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
            ChatTemplate::open(dir.path(), 0).unwrap().unwrap().shows_date()
        };
        assert!(shows_date("{{ strftime_now('%d') }}") && !shows_date("x"));
    }
}
