//! Text generation with a language model: continuing prompts, and chat.

mod sampler;
mod stops;

pub use sampler::{Sampling, most_probable};

use crate::adapter::AppliedAdapter;
use crate::model::Decoder;
use crate::text::{ChatTemplate, Message, TextStream, Tokenizer};
use crate::train::Session;
use crate::{Error, Result, decoder};
use sampler::Sampler;
use serde::{Deserialize, Serialize};
use sparta_graph::Backend;
use std::ops::ControlFlow;
use stops::Stops;

/// The default limit of the context length; models may support more.
const CONTEXT: usize = 4096;

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user` or `assistant`
    pub role: String,
    pub content: String,
}

/// A prompt to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text, to which the tokenizer adds its initial special tokens.
    Text(String),
    /// A conversation, formatted by the model's chat template.
    Turns(Vec<Turn>),
}

/// How texts are generated.
#[derive(Clone, Debug)]
pub struct Writing {
    pub sampling: Sampling,
    pub max_tokens: usize,
    /// Texts that end generation, and are not part of the result. None may be empty.
    pub stop: Vec<String>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended it, or a stop text occurred.
    Stop,
    /// It reached the requested number of tokens.
    Length,
    /// Prompt and text fill the context.
    Context,
    /// Whoever asked for it wants no more.
    Interrupted,
}

/// A generated text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Generated {
    pub text: String,
    pub tokens: usize,
    pub finish: Finish,
    pub prompt_tokens: usize,
}

/// A language model on a device.
pub struct Generator {
    session: Session,
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    /// Tokens that end a text, and tokens that end an answer.
    ends: Vec<u32>,
    answer_ends: Vec<u32>,
    context: usize,
    /// The tokens whose keys and values are on the device.
    kept: Vec<u32>,
    /// Texts started so far.
    texts: u64,
    name: String,
}

impl Generator {
    /// Loads a model, with or without an adapter, onto a device. `now` is the time for chat templates that show a date,
    /// in seconds since 1970; `context` is the context length, by default the model's, up to 4096.
    ///
    /// Errors: a model that is not a language model; a context that is too long for it; a tokenizer or chat template
    /// that cannot be read; a device without enough memory.
    pub fn open(
        applied: &AppliedAdapter,
        device: Box<dyn Backend>,
        context: Option<usize>,
        now: i64,
    ) -> Result<Generator> {
        let model = &applied.adapter.model;
        let positions = positions(&applied.decoder);
        let context = context.unwrap_or(positions.min(CONTEXT));
        if context > positions {
            let name = model.display();
            return Err(Error::Usage(format!("--context {context}: {name} takes up to {positions} tokens")));
        }
        let tokenizer = Tokenizer::open(model)?;
        tokenizer.check_vocab(applied.decoder.vocab_size)?;
        let chat = ChatTemplate::open(model, now)?;
        let ends = decoder::end_tokens(model, &applied.decoder)?;
        let mut answer_ends = ends.clone();
        answer_ends.extend(chat.as_ref().map_or(Ok(None), |chat| end_of_answer(chat, &tokenizer))?);
        let session = applied.generation(device, context)?;
        let (kept, texts, name) = (Vec::new(), 0, applied.adapter.dir.display().to_string());
        Ok(Generator { session, tokenizer, chat, ends, answer_ends, context, kept, texts, name })
    }

    /// Whether the model has a chat template.
    pub fn chats(&self) -> bool {
        self.chat.is_some()
    }

    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Continues a prompt, and streams the text to `show`, which may end it.
    ///
    /// Errors: a conversation without a chat template; a prompt without tokens, or with more than the context; logits
    /// that are not finite; those of `show`.
    pub fn write(
        &mut self,
        prompt: &Prompt,
        writing: &Writing,
        show: impl FnMut(&str) -> Result<ControlFlow<()>>,
    ) -> Result<Generated> {
        // A prefix kept from another text would change the grouping of sums, and so the last bits.
        self.kept.clear();
        self.go_on(prompt, writing, show)
    }

    /// As [`Generator::write`], for a prompt that continues the previous one and its answer, which are not read again.
    pub fn go_on(
        &mut self,
        prompt: &Prompt,
        writing: &Writing,
        mut show: impl FnMut(&str) -> Result<ControlFlow<()>>,
    ) -> Result<Generated> {
        let tokens = self.tokens(prompt)?;
        let mut logits = self.read(&tokens)?;
        let ends = if matches!(prompt, Prompt::Turns(_)) { &self.answer_ends } else { &self.ends }.clone();
        let mut sampler = Sampler::new(&writing.sampling, self.texts);
        self.texts += 1;
        let (session, kept) = (&mut self.session, &mut self.kept);
        let mut stream = TextStream::after(&self.tokenizer, &tokens);
        let mut stops = Stops::new(&writing.stop);
        let (mut text, mut count) = (String::new(), 0);
        let mut give = |piece: &str| {
            text.push_str(piece);
            if piece.is_empty() { Ok(ControlFlow::Continue(())) } else { show(piece) }
        };
        let finish = loop {
            if count == writing.max_tokens {
                break Finish::Length;
            }
            let token = sampler.choose(&logits);
            if ends.contains(&token) {
                break Finish::Stop;
            }
            count += 1;
            let (piece, stopped) = stops.push(&stream.push(token)?);
            let wanted = give(&piece)?;
            if stopped || wanted.is_break() {
                let finish = if stopped { Finish::Stop } else { Finish::Interrupted };
                return Ok(Generated { text, tokens: count, finish, prompt_tokens: tokens.len() });
            }
            if kept.len() == self.context {
                break Finish::Context;
            }
            if count < writing.max_tokens {
                logits = decode(session, kept, &[token], &self.name)?;
            }
        };
        let (piece, stopped) = stops.push(&stream.finish()?);
        let _ = give(&piece)?;
        if !stopped {
            let _ = give(&stops.finish())?;
        }
        Ok(Generated { text, tokens: count, finish, prompt_tokens: tokens.len() })
    }

    /// The tokens of a prompt.
    fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokens = match prompt {
            Prompt::Text(text) => self.tokenizer.encode(text, None)?,
            Prompt::Turns(turns) => {
                let chat = self.chat.as_ref().ok_or_else(|| {
                    Error::Usage(format!(
                        "{}: the model has no chat template, so it cannot chat; give plain prompts",
                        self.name
                    ))
                })?;
                let turns = turns.iter().map(|turn| Message { role: &turn.role, content: &turn.content });
                self.tokenizer.encode_plain(&chat.render(&turns.collect::<Vec<_>>())?)?
            }
        };
        match tokens.len() {
            0 => Err(Error::Data("the prompt has no tokens; give a text".into())),
            n if n > self.context => Err(Error::Data(format!(
                "the context is full: the prompt has {n} tokens, but there is room for {}; shorten it, or give a \
                 longer --context, up to the model's {}",
                self.context,
                self.session.setup().decoder.max_position_embeddings
            ))),
            _ => Ok(tokens),
        }
    }

    /// Reads the part of a prompt that is not kept yet; returns the logits after it.
    fn read(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let same = self.kept.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        // The last token is always read, for its logits.
        self.kept.truncate(same.min(tokens.len() - 1));
        let rest = &tokens[self.kept.len()..];
        decode(&mut self.session, &mut self.kept, rest, &self.name)
    }
}

/// Reads tokens after those that are kept; returns the logits after them.
fn decode(session: &mut Session, kept: &mut Vec<u32>, tokens: &[u32], name: &str) -> Result<Vec<f32>> {
    let logits = session.decode(tokens, kept.len())?;
    if let Some(at) = logits.iter().position(|z| !z.is_finite()) {
        return Err(Error::Training(format!(
            "{name}: the logit of token {at} is {} after {} tokens; try --precision f32, and check the model's weights",
            logits[at],
            kept.len() + tokens.len()
        )));
    }
    kept.extend(tokens);
    Ok(logits)
}

/// The longest text that a model supports, in tokens.
pub fn positions(decoder: &Decoder) -> usize {
    let rotated = decoder.ropes.iter().filter_map(|rope| rope.positions()).min();
    decoder.max_position_embeddings.min(rotated.unwrap_or(usize::MAX))
}

/// The special token that the chat template puts after an answer, if any.
fn end_of_answer(chat: &ChatTemplate, tokenizer: &Tokenizer) -> Result<Option<u32>> {
    // A template without answers is reported when it is used for a conversation.
    let Ok(rest) = chat.after_answer() else { return Ok(None) };
    let first = tokenizer.encode_plain(rest.trim_start())?.first().copied();
    Ok(first.filter(|&id| tokenizer.is_special(id)))
}
