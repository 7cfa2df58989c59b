//! What the paper measures of models and methods besides accuracy: ranks of weight differences, memory.

pub mod memory;
pub mod rank;
mod rank_table;
