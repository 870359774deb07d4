//! Words for what was found: counts, and values of a database that may hold anything, short and printable.

use crate::device::Value;

/// Characters of a value that are shown.
const SHOWN_CHARS: usize = 48;

/// Bytes of a hash or a key that are shown.
const SHOWN_BYTES: usize = 8;

/// A number for a person: `8,760`.
pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of something: `1 row`, `8,760 rows`.
pub(crate) fn count(of: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(of), if of == 1 { one } else { many })
}

/// A text that somebody may have put there.
pub(crate) fn text(text: &str) -> String {
    let steers = |char: char| {
        char.is_control()
            || matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let shown: String =
        text.chars().take(SHOWN_CHARS).map(|char| if steers(char) { '?' } else { char }).collect();
    if shown.len() < text.len() && text.chars().nth(SHOWN_CHARS).is_some() {
        format!("\"{shown}…\" of {}", count(text.len() as u64, "byte", "bytes"))
    } else {
        format!("\"{shown}\"")
    }
}

/// The beginning of bytes, and how many they are.
pub(super) fn bytes(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let shown = hex::encode(&bytes[..bytes.len().min(SHOWN_BYTES)]);
    let more = if bytes.len() > SHOWN_BYTES { "…" } else { "" };
    format!("{shown}{more} of {}", count(bytes.len() as u64, "byte", "bytes"))
}

/// The value of an item.
pub(super) fn value(value: &Value) -> String {
    match value {
        Value::Integer(value) => value.to_string(),
        // With a point, since a database tells 21.0 from 21; and short for huge ones.
        Value::Float(value) => format!("{value:?}"),
        Value::Text(value) => text(value),
        Value::Boolean(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_have_their_plural() {
        assert_eq!([0, 7, 999, 1_000, 1_234_567].map(number), ["0", "7", "999", "1,000", "1,234,567"]);
        assert_eq!(
            (count(1, "row", "rows"), count(2_000, "row", "rows")),
            ("1 row".into(), "2,000 rows".into())
        );
    }

    #[test]
    fn values_are_short_and_printable() {
        assert_eq!(text("a\u{1b}[2J\n\u{202e}b"), "\"a?[2J??b\"");
        assert!(text(&"ä".repeat(1 << 20)).len() < 200);
        assert_eq!(bytes(&[0xab; 3]), "ababab of 3 bytes");
        assert_eq!(bytes(&[0xab; 32]), "abababababababab… of 32 bytes");
        assert_eq!(
            [Value::Float(21.0), Value::Integer(21), Value::Float(1e300)].map(|of| value(&of)),
            ["21.0", "21", "1e300"]
        );
    }
}
