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
    /// Errors: what the model is asked ends within a token of what it would learn, whatever the answer is.
    pub fn check(&self, tokenizer: &Tokenizer) -> Result<()> {
        let Some(chat) = self.chat.as_ref().filter(|_| self.train_on != TrainOn::All) else { return Ok(()) };
        let turns = ["user", ANSWERS].map(|role| Message { role, content: "Good." });
        // Templates that refuse these turns say so for those of the examples, too.
        let (Ok(asked), Ok(whole)) = (chat.render(&turns[..1]), chat.render_answered(&turns)) else { return Ok(()) };
        let begin = Beginning { chat, tokenizer, turn: 1, text: &asked };
        match begin.within(&whole, &tokenizer.encode_plain(&whole)?) {
            Ok((_, true)) => Err(chat.unfit(
                "is not prefix-stable: what the model is asked ends within a token of what it would learn, as with white \
                 space at the end; take --train-on all, or another template",
            )),
            _ => Ok(()),
        }
    }

    /// The turns in the chat template; without one the texts of the example one after the other, and eos.
    ///
    /// Errors: turns that have no other form where there is no template; what the template refuses; a template that writes
    /// the beginning of a conversation otherwise when more follows.
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
        let whole = chat.render_answered(&messages)?;
        let tokens = tokenizer.encode_plain(&whole)?;
        let (mut trained, mut joined) = (vec![self.train_on == TrainOn::All; tokens.len()], false);
        // Nothing asks for an answer that begins a conversation: it is read alone.
        let answers = turns.iter().enumerate().skip(1).filter(|(_, turn)| turn.role == ANSWERS && !turn.context);
        for turn in self.chosen(answers.map(|(turn, _)| turn).collect()) {
            let mut tokens_of = |text: String| -> Result<usize> {
                let (length, within) = Beginning { chat, tokenizer, turn, text: &text }.within(&whole, &tokens)?;
                joined |= within;
                Ok(length)
            };
            let begin = tokens_of(chat.render(&messages[..turn])?)?;
            let end = match turn + 1 == turns.len() {
                true => tokens.len(),
                false => tokens_of(chat.render_answered(&messages[..=turn])?)?,
            };
            match trained.get_mut(begin..end).filter(|answer| !answer.is_empty()) {
                Some(answer) => answer.fill(true),
                None => return Err(chat.unfit(&format!("writes nothing for the answer in turn {}", turn + 1))),
            }
        }
        Ok(Lesson { tokens, trained, joined })
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

/// The beginning of a conversation, up to or with the answer in `turn`.
struct Beginning<'a> {
    chat: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    turn: usize,
    text: &'a str,
}

impl Beginning<'_> {
    /// How many of the `tokens` of the `whole` conversation are its own, and whether it ends within the next one.
    ///
    /// Errors: the whole does not begin so.
    fn within(&self, whole: &str, tokens: &[u32]) -> Result<(usize, bool)> {
        let own = self.tokenizer.encode_plain(self.text)?;
        let at = common(&own, tokens);
        if at == own.len() || whole.starts_with(self.text) {
            return Ok((at, at < own.len()));
        }
        let shown = |tokens: &[u32]| match tokens.get(at) {
            Some(&token) => format!("{:?}", self.tokenizer.token(token).unwrap_or_default()),
            None => "its end".to_owned(),
        };
        Err(self.chat.unfit(&format!(
            "is not prefix-stable: it writes the beginning of a conversation otherwise when more follows. Around the answer \
             in turn {}, token {} is {} in the beginning and {} in the whole, so it is not known which tokens are the \
             answer; take --train-on last or all, data without such turns, or another template",
            self.turn + 1,
            at + 1,
            shown(&own),
            shown(tokens)
        )))
    }
}

#[cfg(test)]
mod tests;
