//! What serde and the readers of JSON and TOML say of a wrong file, in words of whoever wrote the file.
//!
//! They speak of integers of 16 bits, variants and maps; the file has numbers, values and tables.

use serde_json::error::Category;

/// What a kind of value is called here.
const KINDS: [(&str, &str); 11] = [
    ("string ", "the text "),
    ("integer ", "the number "),
    ("floating point ", "the number "),
    ("boolean ", ""),
    ("bool ", ""),
    ("float ", "the number "),
    ("signed int ", "the number "),
    ("unsigned int ", "the number "),
    ("map", "a table"),
    ("sequence", "a list"),
    ("unit value", "nothing"),
];

/// A message of serde about a value, for a person.
pub fn of_serde(message: &str) -> String {
    let starts = ["invalid type: ", "invalid value: ", "invalid value "];
    let wrong = starts.iter().find_map(|start| message.strip_prefix(start));
    if let Some((found, expected)) = wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
        let found = found.strip_prefix("found ").unwrap_or(found);
        let kind = KINDS.iter().find_map(|(kind, word)| Some((word, found.strip_prefix(kind)?)));
        let found = kind.map_or_else(|| found.to_owned(), |(word, rest)| format!("{word}{rest}"));
        return format!("{found} stands where {} belongs", what(expected));
    }
    if let Some((name, known)) = message.strip_prefix("unknown field ").and_then(|rest| rest.split_once(", "))
    {
        let names = known.split('`').skip(1).step_by(2);
        let nearest = nearest(name.trim_matches('`'), names);
        let tip = nearest.map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default();
        return format!("unknown field {name}, {known}{tip}");
    }
    if message.contains("digit found in string") || message.contains("from empty string") {
        return "a whole number, in digits alone, belongs there".to_owned();
    }
    if message.starts_with("number too large to fit") {
        return "the number is too large".to_owned();
    }
    if message.starts_with("invalid length ") && message.contains(", expected struct ") {
        return "a list stands where a table with its fields belongs".to_owned();
    }
    match message.strip_prefix("missing field ") {
        Some(field) => format!("{field} is missing"),
        None => message
            .replacen("unknown variant: found", "unknown value", 1)
            .replacen("unknown variant", "unknown value", 1)
            .replace("``", "`")
            .replacen("duplicate field", "twice the same:", 1)
            .replace(
                "invalid socket address syntax",
                "an address and a port belong there, such as 127.0.0.1:8080",
            ),
    }
}

/// The known name that somebody may have meant by another one.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = |known: &&str| distance(name, known);
    // More than a third of it wrong is another word.
    known.min_by_key(far).filter(|found| 3 * distance(name, found) <= found.len().max(3))
}

/// How many letters were left out, put in, exchanged or moved by one between two short names.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, letter) in a.iter().enumerate() {
        let mut next = vec![at + 1];
        for (to, other) in b.iter().enumerate() {
            let mut least = (row[to] + usize::from(letter != other)).min(row[to + 1] + 1).min(next[to] + 1);
            if at > 0 && to > 0 && *letter == b[to - 1] && a[at - 1] == *other {
                least = least.min(before[to - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
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
        "path string" => "a path, as a text,",
        "socket address" => "an address and a port, such as \"127.0.0.1:8080\",",
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
        Category::Syntax | Category::Io => {
            format!("line {line}, column {column}, is no JSON: {}", syntax(message))
        }
    }
}

/// What the reader of JSON says of its syntax.
fn syntax(message: &str) -> &str {
    match message {
        "expected ident" => "a word stands there that is not true, false or null",
        "expected value" => "no value stands where one belongs",
        "key must be a string" => "a name stands there without its quotes",
        "trailing comma" => "a comma stands there and nothing follows it",
        "trailing characters" => "more stands behind its end",
        "invalid escape" => "`\\` stands before a letter that it means nothing with",
        "recursion limit exceeded" => "lists and tables stand in each other too deep",
        message if message.starts_with("control character") => {
            "a text has a line break or another control character; write \\n"
        }
        message => message,
    }
}

/// An error of TOML for a person, with its line.
pub fn of_toml(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start);
    let line = text.get(..start).unwrap_or(text).matches('\n').count() + 1;
    let message = of_serde(error.message()).replace('\n', ": ");
    format!("line {line}: {message}")
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
            (
                "invalid value signed int `-1`, expected u32",
                "the number `-1` stands where a whole number that is not below 0 and not too large belongs",
            ),
            (
                "invalid type: found unsigned int `5`, expected path string",
                "the number `5` stands where a path, as a text, belongs",
            ),
            (
                "unknown variant: found `txt`, expected ``text` or `json``",
                "unknown value `txt`, expected `text` or `json`",
            ),
            ("invalid digit found in string", "a whole number, in digits alone, belongs there"),
            (
                "invalid length 1, expected struct Genesis with 5 elements",
                "a list stands where a table with its fields belongs",
            ),
            (
                "unknown field `treshold`, expected one of `name`, `threshold`",
                "unknown field `treshold`, expected one of `name`, `threshold`; did you mean `threshold`?",
            ),
            (
                "unknown field `x`, expected `name` or `write`",
                "unknown field `x`, expected `name` or `write`",
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
    fn the_nearest_name_is_one_that_somebody_may_have_meant() {
        let known = ["listen", "announce", "max_packet_bytes", "max_body_bytes"];
        let near = |name| nearest(name, known.into_iter());
        assert_eq!(near("listem"), Some("listen"));
        assert_eq!(near("ilsten"), Some("listen"));
        assert_eq!(near("max_packet_byte"), Some("max_packet_bytes"));
        assert_eq!((near("port"), near(""), nearest("x", [].into_iter())), (None, None, None));
    }

    #[test]
    fn an_error_of_toml_has_its_line() {
        let told = |text: &str| of_toml(text, &toml::from_str::<toml::Table>(text).unwrap_err());
        assert!(told("a = 1\n[b\n").starts_with("line 2: "), "{}", told("a = 1\n[b\n"));
        assert!(!told("a = b").contains(['\n', '|']), "{}", told("a = b"));
    }

    #[test]
    fn an_error_of_json_has_its_line() {
        let told = |text: &str| of_json(&serde_json::from_str::<Vec<u16>>(text).unwrap_err());
        assert_eq!(told("[1,\n2"), "it ends too early, in line 2");
        assert_eq!(told("[1,\n2}"), "line 2, column 2, is no JSON: expected `,` or `]`");
        assert!(told("nil").ends_with("not true, false or null") && told("[x]").contains("no value stands"));
        assert!(told("[1,\n\"a\"]").starts_with("line 2: the text \"a\" stands where a whole number"));
    }
}
