//! What is learned of a conversation, or of texts that follow each other: the tokens, and which of them are trained on.

use super::{ChatTemplate, Message, Tokenizer};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_plugin::task::{self, Example, Segment};

/// The role whose turns are answers.
const ANSWERS: &str = "assistant";

/// Which tokens are trained on. The first one of an example never is: nothing comes before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// Those of the answers, each with what ends its turn.
    #[default]
    Answers,
    All,
    /// Those of the last answer.
    Last,
}

/// An example as it is learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Lesson {
    pub tokens: Vec<u32>,
    /// Of each token whether it is trained on.
    pub trained: Vec<bool>,
    /// Whether a token has the end of one text and the beginning of the next in it.
    pub joined: bool,
}

impl Lesson {
    /// All of a text.
    pub fn whole(tokens: Vec<u32>) -> Lesson {
        let trained = (0..tokens.len()).map(|token| token > 0).collect();
        Lesson { tokens, trained, joined: false }
    }
}

/// How conversations become lessons.
#[derive(Debug)]
pub struct Conversations {
    /// That of the model, unless texts are laid one after the other.
    pub chat: Option<ChatTemplate>,
    pub train_on: TrainOn,
    /// Ends what is laid one after the other.
    pub eos: Option<u32>,
}

impl Conversations {
    /// The turns in the chat template; without one the texts of the example one after the other, and eos.
    ///
    /// Errors: turns that have no other form where there is no template; what the template refuses; a template that does
    /// not write the beginning of a conversation as it writes the whole one.
    pub fn lesson(&self, tokenizer: &Tokenizer, example: &Example) -> Result<Lesson> {
        let mut lesson = match &self.chat {
            Some(chat) if !example.messages.is_empty() => self.rendered(chat, tokenizer, &example.messages)?,
            _ if !example.segments.is_empty() => self.laid_out(tokenizer, &example.segments)?,
            _ => {
                return Err(Error::Usage(format!(
                    "a conversation of {} turns needs the model's chat template: leave out --instruct false, or, where the \
                     model has none, take another model or data of prompts and answers",
                    example.messages.len()
                )));
            }
        };
        lesson.trained.iter_mut().take(1).for_each(|first| *first = false);
        Ok(lesson)
    }

    fn rendered(&self, chat: &ChatTemplate, tokenizer: &Tokenizer, turns: &[task::Message]) -> Result<Lesson> {
        let messages: Vec<Message> =
            turns.iter().map(|turn| Message { role: &turn.role, content: &turn.content }).collect();
        let tokens = tokenizer.encode_plain(&chat.render_answered(&messages)?)?;
        let mut trained = vec![self.train_on == TrainOn::All; tokens.len()];
        let answers = turns.iter().enumerate().filter(|(_, turn)| turn.role == ANSWERS && !turn.context);
        for turn in self.chosen(answers.map(|(turn, _)| turn).collect()) {
            // Asked for the answer, the model has seen exactly the tokens before it.
            let asked = tokenizer.encode_plain(&chat.render(&messages[..turn])?)?;
            let begin = prefix(chat, tokenizer, turn, &asked, &tokens)?;
            let end = match turn + 1 == turns.len() {
                true => tokens.len(),
                false => {
                    let answered = tokenizer.encode_plain(&chat.render_answered(&messages[..=turn])?)?;
                    prefix(chat, tokenizer, turn, &answered, &tokens)?
                }
            };
            match trained.get_mut(begin..end).filter(|answer| !answer.is_empty()) {
                Some(answer) => answer.fill(true),
                None => return Err(chat.unfit(&format!("writes nothing for the answer in turn {}", turn + 1))),
            }
        }
        Ok(Lesson { tokens, trained, joined: false })
    }

    fn laid_out(&self, tokenizer: &Tokenizer, segments: &[Segment]) -> Result<Lesson> {
        let Some(eos) = self.eos else {
            return Err(Error::Tokenizer(
                "the model has no token for the end of a text: name it as `eos_token` in tokenizer_config.json, or as \
                 `eos_token_id` in config.json"
                    .into(),
            ));
        };
        let text: String = segments.iter().map(|segment| segment.text.as_str()).collect();
        let mut tokens = tokenizer.encode(&text, None)?;
        if tokens.last() != Some(&eos) {
            tokens.push(eos);
        }
        let mut trained = vec![self.train_on == TrainOn::All; tokens.len()];
        let (mut ends, mut bytes, mut joined) = (vec![0], 0, false);
        for segment in segments.iter().take(segments.len().saturating_sub(1)) {
            bytes += segment.text.len();
            let mut before = tokenizer.encode(&text[..bytes], None)?;
            before.pop_if(|last| *last == eos);
            let common = common(&before, &tokens);
            joined |= common < before.len();
            ends.push(common);
        }
        ends.push(tokens.len());
        let learned = segments.iter().enumerate().filter(|(_, segment)| segment.trained);
        for segment in self.chosen(learned.map(|(segment, _)| segment).collect()) {
            // One that lies within a token has none of its own.
            if let Some(own) = trained.get_mut(ends[segment]..ends[segment + 1]) {
                own.fill(true);
            }
        }
        Ok(Lesson { tokens, trained, joined })
    }

    /// The answers that are trained on, of all; none where all tokens are.
    fn chosen(&self, mut answers: Vec<usize>) -> Vec<usize> {
        match self.train_on {
            TrainOn::Answers => answers,
            TrainOn::All => Vec::new(),
            TrainOn::Last => answers.pop().into_iter().collect(),
        }
    }
}

/// Tokens that two texts have in common at their beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The number of tokens in a beginning of a conversation, up to or with the answer in `turn`.
///
/// Errors: the conversation does not begin so.
fn prefix(chat: &ChatTemplate, tokenizer: &Tokenizer, turn: usize, part: &[u32], whole: &[u32]) -> Result<usize> {
    let at = common(part, whole);
    if at == part.len() {
        return Ok(at);
    }
    let shown = |tokens: &[u32]| match tokens.get(at) {
        Some(&token) => format!("{:?}", tokenizer.token(token).unwrap_or_default()),
        None => "its end".to_owned(),
    };
    Err(chat.unfit(&format!(
        "does not write the beginning of a conversation as it writes the whole one: around the answer in turn {}, token {} \
         is {} in the beginning and {} in the whole, so it is not known which tokens are the answer; take --train-on all, \
         data without this, or another template",
        turn + 1,
        at + 1,
        shown(part),
        shown(whole)
    )))
}

#[cfg(test)]
mod tests;
