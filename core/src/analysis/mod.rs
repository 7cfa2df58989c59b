//! The paper's analysis of models besides accuracy: ranks of weight differences.

pub mod rank;
mod rank_table;
