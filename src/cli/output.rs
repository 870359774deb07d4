//! Standard output, for people and for scripts.
//!
//! `println!` panics when the reader of a pipe has gone; these return an error instead.

use std::fmt::Display;
use std::io::{self, Write as _};

use anyhow::Context as _;
use serde::Serialize;

/// Writes a line for a person.
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{text}").context("cannot write to standard output")
}

/// Writes one JSON value for a script.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Whether all that went wrong is that nobody reads the output any more.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .or_else(|| error.chain().find_map(|cause| cause.downcast_ref()))
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
