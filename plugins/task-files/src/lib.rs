//! Finds and reads files of texts, labelled or not: CSV, TSV, JSON, JSONL, parquet, lines and folders of text
//! files.
//!
//! [`Table`] is the only reader: it turns any file into records of names and values. A task with fixed files describes
//! its columns and labels ([`Schema`]) and the file names of its splits ([`Layout`]); [`find`] picks the files
//! under the user's directory, and a [`FileSet`] reads them row by row. In any other table, [`Named`] finds the
//! columns.

mod columns;
mod csv;
mod dataset;
mod find;
mod folders;
mod format;
mod input;
mod json;
mod jsonl;
mod layout;
mod lines;
#[cfg(feature = "parquet")]
mod pages;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(not(feature = "parquet"))]
#[path = "no_parquet.rs"]
mod parquet;
mod part;
mod schema;
mod table;
mod tables;
#[cfg(feature = "parquet")]
pub mod testing;
mod tsv;

pub use columns::{Columns, Named, label, scalar, text};
pub use dataset::FileSet;
pub use format::Format;
pub use input::Input;
pub use layout::{Found, Layout, Search, draw, find, names};
pub use lines::{Lines, MAX_LINE};
pub use part::Part;
pub use schema::{Schema, clip};
pub use table::{Reading, Record, Records, Table};
pub use tables::{Tables, find_tables};
