//! What the paper measures of models besides accuracy: ranks of weight differences.

pub mod rank;
mod rank_table;
