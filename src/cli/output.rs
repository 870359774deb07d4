//! Standard output, for people and for scripts.
//!
//! `println!` panics when the reader of a pipe has gone; these return an error instead.

use std::fmt::Display;
use std::io::{self, Write as _};

use anyhow::Context as _;
use serde::Serialize;

use crate::history::audit::words::number;

/// Writes a line for a person.
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{text}").context("cannot write to standard output")
}

/// Writes one JSON value for a script.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// What somebody else says, without what could steer a terminal, begin a line of its own, or turn around
/// the order of what is read.
pub(super) fn plain(text: &str) -> String {
    let steers = |char: char| {
        char.is_control()
            || matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|char| if steers(char) { '?' } else { char }).collect()
}

/// A title as it stands after "error: ".
pub(super) fn in_sentence(text: &str) -> String {
    let mut chars = text.chars();
    // Not a short form, such as HTTP.
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

/// "1 message", "8,760 messages": `noun` is of one.
pub(super) fn counted(count: impl Into<u64>, noun: &str) -> String {
    let count = count.into();
    if count == 1 { format!("1 {noun}") } else { format!("{} {noun}s", number(count)) }
}

/// How many replicas may be faulty, after how many there are.
pub(super) fn may_be_faulty(f: usize) -> String {
    match f {
        0 => "none of which may be faulty".to_owned(),
        f => format!("of which {f} may be faulty"),
    }
}

/// Whether all that went wrong is that nobody reads the output any more.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .or_else(|| error.chain().find_map(|cause| cause.downcast_ref()))
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::{counted, in_sentence, may_be_faulty, plain};

    #[test]
    fn one_is_not_told_as_many() {
        let told = [0_u64, 1, 2, 8_760].map(|count| counted(count, "message"));
        assert_eq!(told, ["0 messages", "1 message", "2 messages", "8,760 messages"]);
        assert_eq!([0, 1].map(may_be_faulty), ["none of which may be faulty", "of which 1 may be faulty"]);
    }

    #[test]
    fn a_title_in_a_sentence_begins_with_a_small_letter() {
        let told = ["Not found: no", "The ledger", "HTTP is down", "Ärger", ""].map(in_sentence);
        assert_eq!(told, ["not found: no", "the ledger", "HTTP is down", "ärger", ""]);
    }

    #[test]
    fn what_steers_a_terminal_is_taken_out() {
        assert_eq!(plain("ok\u{1b}[2J\r\nThe network advances.\u{9b}1m"), "ok?[2J??The network advances.?1m");
        assert_eq!(plain("a\u{202e}b µ \u{2066}c"), "a?b µ ?c");
    }
}
