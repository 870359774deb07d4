//! Measurements in files, as bodies of telemetry messages.
//!
//! ```text
//! CSV   time,temperature_c,humidity        ──▶ one message a row, one data item a column
//!       2025-01-01T00:00:00Z,10.0,77
//! JSON  {"count":1,"eventTime":…,"data":[…]}  ──▶ one message a line, sent as it is
//! lines
//! ```
//!
//! Both are iterators: a file of any length is read row by row. An error names the line.

mod args;
mod csv_rows;
mod json_lines;
mod mapping;

use std::path::PathBuf;

pub use args::ColumnArgs;
pub use csv_rows::CsvReadings;
pub use json_lines::{JsonLines, MAX_LINE_BYTES};
pub use mapping::{CsvOptions, ItemSpec, Mapping, TimeUnit};

/// A message that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The line that it stands on, from 1.
    pub line: u64,
    /// Its number of data items.
    pub items: usize,
    /// Its JSON body.
    pub body: Vec<u8>,
}

/// Why measurements cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadingsError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The options do not fit the columns that the file has.
    #[error("in {path}: {problem}")]
    Columns {
        /// The file.
        path: PathBuf,
        /// What is wrong, and which columns there are.
        problem: String,
    },
    /// One line is not a measurement.
    #[error("{path}, line {line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}
