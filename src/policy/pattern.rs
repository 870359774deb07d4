//! Patterns over names: `*` stands for any text, also an empty one.

use std::fmt;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// The longest pattern, in bytes of UTF-8.
pub const MAX_PATTERN_BYTES: usize = 256;

/// The most `*` in one pattern: matching takes a step for each, and some.
const MAX_STARS: usize = 8;

/// Which names a rule is for. `*` stands for any text, all else for itself; upper and lower case
/// differ.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Empty or too long.
    #[error("a pattern has 1 to {MAX_PATTERN_BYTES} bytes; `*` stands for any name")]
    Length,
    /// Too many `*`.
    #[error("a pattern has at most {MAX_STARS} `*`")]
    Stars,
    /// Has characters that no name has.
    #[error("a pattern has no control characters")]
    Control,
}

impl Pattern {
    /// A pattern.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() || text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError::Length);
        }
        if text.chars().any(char::is_control) {
            return Err(PatternError::Control);
        }
        if text.matches('*').count() > MAX_STARS {
            return Err(PatternError::Stars);
        }
        Ok(Self(text.to_owned()))
    }

    /// The pattern that every name matches.
    pub fn any() -> Self {
        Self("*".to_owned())
    }

    /// The pattern's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a name matches.
    pub fn matches(&self, name: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut name) = name.strip_prefix(head) else { return false };
        // Each part between two stars is found as early as possible, so that the last has the most
        // room.
        let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
        for part in middle.split('*') {
            match name.find(part) {
                Some(at) => name = name.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        name.ends_with(tail)
    }
}

impl Default for Pattern {
    fn default() -> Self {
        Self::any()
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl<Context> Decode<Context> for Pattern {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let text = String::decode(decoder)?;
        Self::new(&text).map_err(|_| bincode::error::DecodeError::Other("not a pattern"))
    }
}

bincode::impl_borrow_decode!(Pattern);

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
