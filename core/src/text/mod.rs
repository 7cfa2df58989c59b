//! Text to token ids.

mod special;
mod tokenizer;

pub use tokenizer::Tokenizer;
