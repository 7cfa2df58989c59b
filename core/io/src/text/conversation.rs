//! Turns a conversation, or a sequence of texts, into tokens, and marks those that are trained on.

use super::{ChatTemplate, Message, Tokenizer};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_plugin::task::{self, Example, Segment};

/// The role of answers.
const ANSWERS: &str = "assistant";

/// Which tokens are trained on. The first token of an example never is, as nothing precedes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// Those of the answers, each with the end of its turn.
    #[default]
    Answers,
    All,
    /// Those of the last answer.
    Last,
}

/// An example in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Lesson {
    pub tokens: Vec<u32>,
    /// Whether each token is trained on.
    pub trained: Vec<bool>,
    /// Whether a token spans the end of one text and the start of the next.
    pub joined: bool,
}

impl Lesson {
    /// A text learned whole.
    pub fn whole(tokens: Vec<u32>) -> Lesson {
        let trained = (0..tokens.len()).map(|token| token > 0).collect();
        Lesson { tokens, trained, joined: false }
    }
}

/// How conversations become lessons.
#[derive(Debug)]
pub struct Conversations {
    /// The model's chat template, unless texts are concatenated.
    pub chat: Option<ChatTemplate>,
    pub train_on: TrainOn,
    /// The token that ends concatenated texts.
    pub eos: Option<u32>,
}

impl Conversations {
    /// Errors: whatever the answer is, the prompt ends within one of its tokens.
    pub fn check(&self, tokenizer: &Tokenizer) -> Result<()> {
        let Some(chat) = self.chat.as_ref().filter(|_| self.train_on != TrainOn::All) else { return Ok(()) };
        let turns = ["user", ANSWERS].map(|role| Message { role, content: "Good." });
        // A template that refuses these turns will report it for the examples, too.
        let (Ok(asked), Ok(whole)) = (chat.render(&turns[..1]), chat.render_answered(&turns)) else { return Ok(()) };
        let begin = Beginning { chat, tokenizer, turn: 1, text: &asked };
        match begin.within(&whole, &tokenizer.encode_plain(&whole)?) {
            Ok((_, true)) => Err(chat.unfit(
                "is not prefix-stable: the prompt ends within a token of the answer, as with trailing white space; use \
                 --train-on all, or another template",
            )),
            _ => Ok(()),
        }
    }

    /// The turns in the chat template, or without one the example's texts one after the other, then eos.
    ///
    /// Errors: turns that cannot do without a template; anything the template refuses; a template that writes the start
    /// of a conversation differently when more follows.
    pub fn lesson(&self, tokenizer: &Tokenizer, example: &Example) -> Result<Lesson> {
        let mut lesson = match &self.chat {
            Some(chat) if !example.messages.is_empty() => self.rendered(chat, tokenizer, &example.messages)?,
            _ if !example.segments.is_empty() => self.laid_out(tokenizer, &example.segments)?,
            _ => {
                return Err(Error::Usage(format!(
                    "a conversation of {} turns needs the model's chat template: leave out --instruct false, or, if \
                     the model has none, use another model, or data with prompts and answers",
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
        // An answer that begins a conversation has no prompt: it is only read.
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
                "the model has no end-of-text token: name one as `eos_token` in tokenizer_config.json, or as \
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
            // A segment within a single token has no token of its own.
            if let Some(own) = trained.get_mut(ends[segment]..ends[segment + 1]) {
                own.fill(true);
            }
        }
        Ok(Lesson { tokens, trained, joined })
    }

    /// The answers to train on; none if all tokens are trained on.
    fn chosen(&self, mut answers: Vec<usize>) -> Vec<usize> {
        match self.train_on {
            TrainOn::Answers => answers,
            TrainOn::All => Vec::new(),
            TrainOn::Last => answers.pop().into_iter().collect(),
        }
    }
}

/// Length of the common prefix of two token sequences.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The start of a conversation, up to or including the answer in `turn`.
struct Beginning<'a> {
    chat: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    turn: usize,
    text: &'a str,
}

impl Beginning<'_> {
    /// How many of the `tokens` of the `whole` conversation belong to it, and whether it ends within the next one.
    ///
    /// Errors: the whole does not start like this.
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
            "is not prefix-stable: it writes the start of a conversation differently when more follows. Around the \
             answer in turn {}, token {} is {} at the start and {} in the whole conversation, so the answer's tokens \
             cannot be determined; use --train-on last or all, data without such turns, or another template",
            self.turn + 1,
            at + 1,
            shown(&own),
            shown(tokens)
        )))
    }
}

#[cfg(test)]
mod tests;
