//! Wrong arguments that clap does not see, since they depend on each other or on a file, and what clap says of
//! numbers in words of the library that reads them. All end with the same exit code.

use std::error::Error as _;
use std::fmt::Display;
use std::num::{IntErrorKind, ParseIntError};

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue};

/// The exit code of wrong arguments; clap's own.
pub(super) const WRONG_ARGUMENTS: u8 = 2;

/// The command was called in a way that cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongArguments(String);

/// An error that ends the command with [`WRONG_ARGUMENTS`].
pub(super) fn wrong(what: impl Display) -> anyhow::Error {
    WrongArguments(what.to_string()).into()
}

/// Whether an error is about the arguments.
pub(super) fn are_wrong(error: &anyhow::Error) -> bool {
    error.is::<WrongArguments>()
}

/// The same error without what only a programmer understands.
pub(super) fn plainly(error: clap::Error) -> clap::Error {
    let number = error.source().and_then(|source| source.downcast_ref::<ParseIntError>());
    let Some(tip) = number.map(|number| tip(number.kind())) else { return error };
    let mut told = clap::Error::new(error.kind()).with_cmd(&super::Cli::command());
    for (kind, value) in error.context() {
        told.insert(kind, value.clone());
    }
    told.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    told
}

const fn tip(kind: &IntErrorKind) -> &'static str {
    match kind {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "the number is too large",
        _ => "give a whole number, in digits alone",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn wrong_arguments_are_told_from_other_errors_also_under_a_context() {
        assert!(are_wrong(&wrong("--kill 9").context("cannot begin")));
        assert!(!are_wrong(&anyhow::anyhow!("--kill 9")));
    }

    #[test]
    fn a_number_that_is_none_is_told_without_words_of_the_library() {
        let told = |number: &str| {
            let error =
                super::super::Cli::try_parse_from(["ledgermq", "bench", "--size", number]).unwrap_err();
            plainly(error).to_string()
        };
        let said = told("ten");
        assert!(said.starts_with("error: invalid value 'ten' for '--size <B>'\n"), "{said}");
        assert!(said.contains("tip: give a whole number") && said.contains("--help"), "{said}");
        assert!(!said.contains("digit found"), "{said}");
        assert!(told(&"9".repeat(40)).contains("too large"));
    }
}
