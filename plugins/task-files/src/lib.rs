//! Finds and reads the files that labelled texts come in: TSV, parquet, folders of text files, JSONL.
//!
//! A task plugin says what its columns and labels are called ([`Schema`]) and which file names make up its splits
//! ([`Layout`]); [`find`] picks the files under the user's directory, and a [`FileSet`] reads them row by row.

mod dataset;
mod find;
mod folders;
mod jsonl;
mod layout;
mod lines;
mod pages;
mod parquet;
mod part;
mod schema;
pub mod testing;
mod tsv;

pub use dataset::FileSet;
pub use layout::{Found, Layout, Search, draw, find, names};
pub use lines::Lines;
pub use part::{Format, Part};
pub use schema::Schema;
