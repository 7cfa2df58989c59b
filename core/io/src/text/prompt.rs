//! How examples are presented to the model: as they are, or, for instruction models, in a prompt that asks for one of a
//! few words, inside the tokenizer's chat template (section 6.3 of the SpaRTA paper).

use super::conversation::{Conversations, Lesson, TrainOn};
use super::{ChatTemplate, Message, Tokenizer};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sparta_plugin::task::{Example, TaskInfo};
use std::path::Path;
use web_time::{SystemTime, UNIX_EPOCH};

const TEXT: &str = "{text}";
const PAIR: &str = "{pair}";

/// Asks for the answer if there is no chat template.
const ANSWER: &str = "\nAnswer:";

/// The prompt of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruct {
    /// With `{text}`, and `{pair}` for pairs of texts; `None`: the task's.
    pub prompt: Option<String>,
    /// A word for each label, in their order; `None`: the task's.
    pub verbalizers: Option<Vec<String>>,
    /// The time for chat templates that show a date, in seconds since 1970: stored, so that a trained model is later
    /// prompted as in training.
    pub now: i64,
}

impl Instruct {
    /// A prompt and words, or the task's own, with the current time.
    pub fn new(prompt: Option<String>, verbalizers: Option<Vec<String>>) -> Instruct {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        Instruct { prompt, verbalizers, now }
    }

    /// Fills in the task's own prompt and words. Errors: the task has none; words that do not match its labels.
    fn resolve(&self, task: &TaskInfo, chat: bool) -> Result<(String, Vec<String>)> {
        let own = task.prompt.as_ref();
        let none = |what: &str| Error::Usage(format!("task {} has no {what} of its own; give --{what}", task.id));
        let prompt = match (&self.prompt, own) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(own)) if chat => own.template.clone(),
            (None, Some(own)) => format!("{}{ANSWER}", own.template),
            (None, None) => return Err(none("prompt")),
        };
        let verbalizers = self.verbalizers.as_ref().or(own.map(|own| &own.verbalizers));
        let verbalizers = verbalizers.ok_or_else(|| none("verbalizers"))?.clone();
        if prompt.matches(TEXT).count() != 1 || prompt.matches(PAIR).count() != usize::from(task.pair) {
            let places = if task.pair { "{text} and {pair}" } else { "{text} (and no {pair})" };
            return Err(Error::Usage(format!("--prompt for task {} needs {places} once, got {prompt:?}", task.id)));
        }
        if verbalizers.len() != task.labels.len() {
            return Err(Error::Usage(format!(
                "task {} has the labels {}; expected a verbalizer for each, in this order, got {verbalizers:?}",
                task.id,
                task.labels.join(", ")
            )));
        }
        Ok((prompt, verbalizers))
    }
}

/// The padding token. A text is read up to its last other token, as in transformers' `ForSequenceClassification`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// This token, or none.
    Is(Option<u32>),
    /// The one named in the tokenizer's files.
    OfTokenizer,
}

impl Padding {
    /// The one in `config.json`, if any; else the tokenizer's, which a merged model's configuration then gets.
    pub fn of_adapter(config: Option<u32>) -> Padding {
        config.map_or(Padding::OfTokenizer, |id| Padding::Is(Some(id)))
    }
}

/// Removes the padding at the end of a text, on which nothing before depends. A text of nothing but padding keeps its
/// first token, which is the one that transformers reads.
pub fn without_padding(tokens: &mut Vec<u32>, pad: Option<u32>) {
    let last = tokens.iter().rposition(|&token| Some(token) != pad).unwrap_or(0);
    tokens.truncate(last + 1);
}

/// The tokenizer with the prompt around each example.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    pad: Option<u32>,
    instruct: Option<Instruct>,
    prompt: Option<Prompt>,
    /// For tasks that learn tokens.
    conversations: Option<Conversations>,
}

#[derive(Debug)]
struct Prompt {
    text: String,
    chat: Option<ChatTemplate>,
    /// Number of tokens that follow the example, whatever it is.
    tail: usize,
    verbalizers: Vec<Verbalizer>,
}

/// The prompt of an instruction model, for the plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PromptPlan {
    /// An example as passed to the tokenizer.
    pub example: String,
    pub words: Vec<Verbalizer>,
}

/// A word that stands for a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verbalizer {
    pub label: String,
    /// The word as it follows the prompt.
    pub text: String,
    pub token: u32,
}

impl Encoder {
    /// Opens the tokenizer of a model directory for a task, with the prompt of `instruct`.
    ///
    /// Errors: those of tokenizer and chat template; a prompt or verbalizers that do not suit the task; a verbalizer of
    /// several tokens, or two with the same token.
    pub fn open(dir: &Path, padding: Padding, task: &TaskInfo, instruct: Option<&Instruct>) -> Result<Encoder> {
        let Some(given) = instruct else { return Self::stored(dir, padding, None) };
        let chat = ChatTemplate::open(dir, given.now)?;
        let now = chat.as_ref().filter(|chat| chat.shows_date()).map_or(0, |_| given.now);
        let (prompt, words) = given.resolve(task, chat.is_some())?;
        let resolved = Instruct { prompt: Some(prompt), verbalizers: Some(words.clone()), now };
        let mut encoder = Self::stored(dir, padding, Some(&resolved))?;
        let verbalizers = encoder.find_verbalizers(task, &words)?;
        if let Some(prompt) = &mut encoder.prompt {
            prompt.verbalizers = verbalizers;
        }
        Ok(encoder)
    }

    /// Opens the tokenizer of a model directory with the stored prompt of a run; its words are no longer needed.
    pub fn stored(dir: &Path, padding: Padding, instruct: Option<&Instruct>) -> Result<Encoder> {
        let tokenizer = Tokenizer::open(dir)?;
        let pad = match padding {
            Padding::Is(pad) => pad,
            Padding::OfTokenizer => tokenizer.pad_id(),
        };
        let mut encoder = Encoder { tokenizer, pad, instruct: instruct.cloned(), prompt: None, conversations: None };
        if let Some(Instruct { prompt: Some(text), now, .. }) = instruct {
            let chat = ChatTemplate::open(dir, *now)?;
            chat.as_ref().map_or(Ok(()), ChatTemplate::check)?;
            encoder.prompt = Some(Prompt { text: text.clone(), chat, tail: 0, verbalizers: Vec::new() });
            let tail = encoder.common_tail(text.contains(PAIR))?;
            encoder.prompt.iter_mut().for_each(|prompt| prompt.tail = tail);
        }
        Ok(encoder)
    }

    /// Opens the tokenizer of a model directory for a task that learns tokens, with the model's chat template if
    /// `instruct` asks for it. `eos` ends a text, unless the tokenizer's files name another token.
    ///
    /// Errors: those of tokenizer and chat template; no template; those of [`Conversations::check`].
    pub fn of_lessons(dir: &Path, instruct: Option<&Instruct>, train_on: TrainOn, eos: Option<u32>) -> Result<Encoder> {
        let tokenizer = Tokenizer::open(dir)?;
        let (mut chat, mut stored) = (None, None);
        if let Some(given) = instruct {
            let template = ChatTemplate::open(dir, given.now)?.ok_or_else(|| {
                let dir = dir.display();
                Error::Usage(format!("{dir}: --instruct needs a chat template, but the model has none; leave it out"))
            })?;
            let now = if template.shows_date() { given.now } else { 0 };
            (chat, stored) = (Some(template), Some(Instruct { now, ..given.clone() }));
        }
        let eos = tokenizer.eos_id().or(eos);
        let conversations = Conversations { chat, train_on, eos };
        conversations.check(&tokenizer)?;
        let conversations = Some(conversations);
        Ok(Encoder { tokenizer, pad: None, instruct: stored, prompt: None, conversations })
    }

    /// The resolved prompt, as it is stored.
    pub fn instruct(&self) -> Option<&Instruct> {
        self.instruct.as_ref()
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The words for the labels; empty without a prompt.
    pub fn verbalizers(&self) -> &[Verbalizer] {
        self.prompt.as_ref().map_or(&[], |prompt| &prompt.verbalizers)
    }

    /// This example in its prompt, for the plan. `None` without a prompt.
    pub fn plan(&self, example: &Example) -> Result<Option<PromptPlan>> {
        let Some(prompt) = &self.prompt else { return Ok(None) };
        let example = prompt.render(&example.text, example.pair.as_deref())?;
        Ok(Some(PromptPlan { example, words: prompt.verbalizers.clone() }))
    }

    /// Token ids of an example up to the one that is read. Special tokens written by the chat template, such as
    /// `<bos>`, are not added again.
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<Vec<u32>> {
        let mut tokens = match &self.prompt {
            None => self.tokenizer.encode(text, pair)?,
            Some(prompt) => self.encode_rendered(prompt, &prompt.render(text, pair)?)?,
        };
        without_padding(&mut tokens, self.pad);
        Ok(tokens)
    }

    /// As [`Encoder::lesson`], for many examples in parallel; keeps their order.
    pub fn lessons(&self, examples: &[&Example]) -> Vec<Result<Lesson>> {
        examples.par_iter().map(|example| self.lesson(example)).collect()
    }

    /// The tokens of an example, with those to learn: all of a text, or the selected part of a conversation.
    ///
    /// Errors: those of [`Conversations::lesson`].
    pub fn lesson(&self, example: &Example) -> Result<Lesson> {
        match &self.conversations {
            Some(conversations) if !example.messages.is_empty() || !example.segments.is_empty() => {
                conversations.lesson(&self.tokenizer, example)
            }
            _ => Ok(Lesson::whole(self.encode(&example.text, example.pair.as_deref())?)),
        }
    }

    /// Truncates an example to `length` tokens: at its end, or before the end of the prompt, which asks for the answer.
    pub fn cut(&self, tokens: &mut Vec<u32>, length: usize) {
        let excess = tokens.len().saturating_sub(length);
        let tail = self.prompt.as_ref().map_or(0, |prompt| prompt.tail).min(length);
        let end = tokens.len() - tail;
        tokens.drain(end - excess..end);
        without_padding(tokens, self.pad);
    }

    fn encode_rendered(&self, prompt: &Prompt, text: &str) -> Result<Vec<u32>> {
        match prompt.chat {
            Some(_) => self.tokenizer.encode_plain(text),
            None => self.tokenizer.encode(text, None),
        }
    }

    /// The length of the suffix that two different examples have in common.
    fn common_tail(&self, pair: bool) -> Result<usize> {
        let [first, second] = ["Good.", "why not"].map(|text| self.encode(text, pair.then_some(text)));
        let (first, second) = (first?, second?);
        Ok(first.iter().rev().zip(second.iter().rev()).take_while(|(a, b)| a == b).count())
    }

    /// The token of each verbalizer as it follows the prompt.
    fn find_verbalizers(&self, task: &TaskInfo, words: &[String]) -> Result<Vec<Verbalizer>> {
        let Some(prompt) = &self.prompt else { return Ok(Vec::new()) };
        let context = prompt.render("Good.", task.pair.then_some("Good."))?;
        let before = self.encode_rendered(prompt, &context)?;
        let mut found: Vec<Verbalizer> = Vec::new();
        for (label, word) in task.labels.iter().zip(words) {
            let text = prompt.answer(task, &context, word)?;
            let after = self.encode_rendered(prompt, &format!("{context}{text}"))?;
            let token = match after.strip_prefix(before.as_slice()) {
                Some(&[token]) => token,
                added => {
                    if let (Some([]), Some(chat)) = (added, &prompt.chat)
                        && !word.is_empty()
                    {
                        return Err(
                            chat.unfit(&format!("leaves no place for an answer: {text:?} after it is not a token"))
                        );
                    }
                    let ids = added.unwrap_or(&after[after.len().min(before.len().saturating_sub(1))..]);
                    let where_ = if added.is_some() { "" } else { " (the first of them joins the end of the prompt)" };
                    return Err(Error::Usage(format!(
                        "verbalizer {text:?} of label {label} must be one token after the prompt, it is {}{where_}; \
                         choose a shorter or more common word with --verbalizers",
                        self.shown(ids)
                    )));
                }
            };
            if let Some(other) = found.iter().find(|other| other.token == token) {
                return Err(Error::Usage(format!(
                    "verbalizers {:?} of label {} and {text:?} of label {label} are the same token {}; choose words \
                     that differ with --verbalizers",
                    other.text,
                    other.label,
                    self.shown(&[token])
                )));
            }
            if self.tokenizer.is_unknown(token) {
                return Err(Error::Usage(format!(
                    "verbalizer {text:?} of label {label} is not in the vocabulary; choose another with --verbalizers"
                )));
            }
            found.push(Verbalizer { label: label.clone(), text, token });
        }
        Ok(found)
    }

    /// `[5 "▁Yes", 7 "!"]`
    fn shown(&self, ids: &[u32]) -> String {
        let shown = ids.iter().map(|&id| format!("{id} {:?}", self.tokenizer.token(id).unwrap_or_default()));
        format!("[{}]", shown.collect::<Vec<_>>().join(", "))
    }
}

impl Prompt {
    /// A word as it follows the prompt: after the white space that the chat template puts before an answer, or after a
    /// space without a template. The word alone if the template writes anything else before an answer, such as a place
    /// for thoughts, or ignores answers.
    fn answer(&self, task: &TaskInfo, context: &str, word: &str) -> Result<String> {
        let Some(chat) = &self.chat else {
            let spaced = word.starts_with(char::is_whitespace) || context.ends_with(char::is_whitespace);
            return Ok(if spaced { word.to_owned() } else { format!(" {word}") });
        };
        let content = fill(&self.text, "Good.", if task.pair { "Good." } else { "" });
        let turns = [Message { role: "user", content: &content }, Message { role: "assistant", content: word }];
        let answered = chat.render_answered(&turns)?;
        let rest = answered.strip_prefix(context).unwrap_or_default();
        let space = rest.len() - rest.trim_start().len();
        match rest[space..].starts_with(word.trim()) {
            true => Ok(rest[..space + word.trim().len()].to_owned()),
            false => Ok(word.to_owned()),
        }
    }

    fn render(&self, text: &str, pair: Option<&str>) -> Result<String> {
        let content = fill(&self.text, text, pair.unwrap_or_default());
        match &self.chat {
            Some(chat) => chat.render(&[Message { role: "user", content: &content }]),
            None => Ok(content),
        }
    }
}

/// Substitutes the texts for their placeholders; placeholders inside the texts stay.
fn fill(template: &str, text: &str, pair: &str) -> String {
    let mut out = String::with_capacity(template.len() + text.len() + pair.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let (place, value) = match from {
            from if from.starts_with(TEXT) => (TEXT, text),
            from if from.starts_with(PAIR) => (PAIR, pair),
            _ => ("{", "{"),
        };
        out.push_str(value);
        rest = &from[place.len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests;
