//! What serde and the readers of JSON and TOML say of a wrong file, in words of whoever wrote the file.
//!
//! They speak of integers of 16 bits, variants and maps; the file has numbers, values and tables.

use serde_json::error::Category;

/// What a kind of value is called here.
const KINDS: [(&str, &str); 9] = [
    ("string ", "the text "),
    ("integer ", "the number "),
    ("floating point ", "the number "),
    ("boolean ", ""),
    ("signed int ", "the number "),
    ("unsigned int ", "the number "),
    ("map", "a table"),
    ("sequence", "a list"),
    ("unit value", "nothing"),
];

/// A message of serde about a value, for a person.
pub fn of_serde(message: &str) -> String {
    let wrong = ["invalid type: ", "invalid value: "].iter().find_map(|start| message.strip_prefix(start));
    if let Some((found, expected)) = wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
        let found = found.strip_prefix("found ").unwrap_or(found);
        let kind = KINDS.iter().find_map(|(kind, word)| Some((word, found.strip_prefix(kind)?)));
        let found = kind.map_or_else(|| found.to_owned(), |(word, rest)| format!("{word}{rest}"));
        return format!("{found} stands where {} belongs", what(expected));
    }
    match message.strip_prefix("missing field ") {
        Some(field) => format!("{field} is missing"),
        None => message.replacen("unknown variant", "unknown value", 1),
    }
}

/// What belongs there.
fn what(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not below 0 and not too large",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a string" | "string" => "a text",
        "a boolean" | "a bool" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table with its fields",
        other => other,
    }
}

/// An error of JSON for a person, with its line.
pub fn of_json(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let message = error.to_string();
    let message = message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
    match error.classify() {
        Category::Eof => format!("it ends too early, in line {line}"),
        Category::Data => format!("line {line}: {}", of_serde(message)),
        Category::Syntax | Category::Io => format!("line {line}, column {column}, is no JSON: {message}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_stands_there_and_what_belongs_there_are_told() {
        for (serde, told) in [
            (
                "invalid type: string \"much\", expected f64",
                "the text \"much\" stands where a number belongs",
            ),
            (
                "invalid type: found string \"x\", expected a boolean",
                "the text \"x\" stands where true or false belongs",
            ),
            ("invalid type: map, expected a sequence", "a table stands where a list belongs"),
            (
                "invalid type: boolean `true`, expected struct Rule",
                "`true` stands where a table with its fields belongs",
            ),
            ("missing field `name`", "`name` is missing"),
            ("unknown variant `x`, expected `a` or `b`", "unknown value `x`, expected `a` or `b`"),
            ("a threshold is above 0", "a threshold is above 0"),
        ] {
            assert_eq!(of_serde(serde), told);
        }
        assert!(
            of_serde("invalid value: integer `-1`, expected u32")
                .starts_with("the number `-1` stands where a whole")
        );
    }

    #[test]
    fn an_error_of_json_has_its_line() {
        let told = |text: &str| of_json(&serde_json::from_str::<Vec<u16>>(text).unwrap_err());
        assert_eq!(told("[1,\n2"), "it ends too early, in line 2");
        assert_eq!(told("[1,\n2}"), "line 2, column 2, is no JSON: expected `,` or `]`");
        assert!(told("[1,\n\"a\"]").starts_with("line 2: the text \"a\" stands where a whole number"));
    }
}
