//! Text to token ids.

mod chat_template;
mod conversation;
mod growth;
mod jinja;
mod prompt;
mod renderer;
mod special;
mod tokenizer;

pub use chat_template::{ChatTemplate, Message};
pub use conversation::{Lesson, TrainOn};
pub use prompt::{Encoder, Instruct, Padding, PromptPlan, Verbalizer, without_padding};
pub use renderer::{RENDERER, render_apart, serve};
pub use tokenizer::Tokenizer;
