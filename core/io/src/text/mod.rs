//! Text to token ids.

mod chat_template;
mod prompt;
mod special;
mod tokenizer;

pub use chat_template::{ChatTemplate, Message};
pub use prompt::{Encoder, Instruct, Padding, PromptPlan, Verbalizer, without_padding};
pub use tokenizer::Tokenizer;
