//! Text to token ids.

mod chat_template;
mod prompt;
mod special;
mod tokenizer;

pub use chat_template::{ChatTemplate, Message};
pub use prompt::{Encoder, Instruct, PromptPlan, Verbalizer};
pub use tokenizer::Tokenizer;
