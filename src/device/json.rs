//! A strict reader of JSON (RFC 8259) that builds no tree.
//!
//! Telemetry bodies are signed by one program and read by another, perhaps years later, so nothing
//! may be open to interpretation (docs/PROTOCOL.md section 6): a name twice in one object, U+0000
//! and lone surrogates are refused wherever they stand, also in parts that nobody reads; numbers
//! are handed over as text, since `6`, `6.0` and `-0` differ. What is skipped is checked all the
//! same. Nesting is bounded, and memory is a small multiple of the input.

use std::borrow::Cow;

/// How deep arrays and objects may nest.
pub const MAX_DEPTH: u32 = 64;

/// Why a text is not JSON as the protocol wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at} of the JSON body")]
pub struct JsonError {
    /// Where, in bytes from the start.
    pub at: usize,
    /// What was found or is missing.
    pub what: &'static str,
}

/// What kind of value comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    String,
    /// A digit or `-`.
    Number,
    /// `true` or `false`.
    Boolean,
    /// `null`
    Null,
}

/// Reads one JSON text from front to back.
#[derive(Debug)]
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl<'a> Scanner<'a> {
    /// At the start of `bytes`, which must be UTF-8.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, JsonError> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| JsonError { at: error.valid_up_to(), what: "not UTF-8" })?;
        Ok(Self { text, at: 0, depth: 0 })
    }

    /// An error at the present place.
    pub const fn error(&self, what: &'static str) -> JsonError {
        JsonError { at: self.at, what }
    }

    /// The kind of the next value.
    ///
    /// # Errors
    /// [`JsonError`] if no value begins here.
    pub fn peek(&mut self) -> Result<Kind, JsonError> {
        self.skip_whitespace();
        match self.byte() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::String),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b't' | b'f') => Ok(Kind::Boolean),
            Some(b'n') => Ok(Kind::Null),
            Some(_) => Err(self.error("expected a value")),
            None => Err(self.error("unexpected end")),
        }
    }

    /// Reads an object; `field` is called at each value with its name and must read that value.
    ///
    /// # Errors
    /// [`JsonError`]: of the object, of `field`, or a name that stands twice.
    pub fn object(
        &mut self,
        mut field: impl FnMut(&mut Self, &str) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        let start = self.at;
        let mut names: Vec<Cow<'a, str>> = Vec::new();
        self.sequence(b'{', b'}', "expected an object", |scanner| {
            let name = scanner.string()?;
            scanner.skip_whitespace();
            if !scanner.take(b':') {
                return Err(scanner.error("expected `:`"));
            }
            field(scanner, &name)?;
            names.push(name);
            Ok(())
        })?;
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(JsonError { at: start, what: "a name stands twice in the object" });
        }
        Ok(())
    }

    /// Reads an array; `element` is called at each element and must read it.
    ///
    /// # Errors
    /// [`JsonError`]: of the array or of `element`.
    pub fn array(
        &mut self,
        element: impl FnMut(&mut Self) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.sequence(b'[', b']', "expected an array", element)
    }

    /// Reads a string.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.skip_whitespace();
        if !self.take(b'"') {
            return Err(self.error("expected a string"));
        }
        let start = self.at;
        self.skip_plain()?;
        if self.take(b'"') {
            return Ok(Cow::Borrowed(&self.text[start..self.at - 1]));
        }
        let mut owned = self.text[start..self.at].to_owned();
        while !self.take(b'"') {
            self.at += 1; // the backslash at which `skip_plain` stopped
            owned.push(self.escape()?);
            let plain = self.at;
            self.skip_plain()?;
            owned.push_str(&self.text[plain..self.at]);
        }
        Ok(Cow::Owned(owned))
    }

    /// Reads a number and gives its text.
    ///
    /// # Errors
    /// [`JsonError`] if it has not the form of RFC 8259.
    pub fn number(&mut self) -> Result<&'a str, JsonError> {
        self.skip_whitespace();
        let start = self.at;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _sign = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    /// Reads `true` or `false`.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn boolean(&mut self) -> Result<bool, JsonError> {
        self.skip_whitespace();
        if self.take_word("true") {
            Ok(true)
        } else if self.take_word("false") {
            Ok(false)
        } else {
            Err(self.error("expected true or false"))
        }
    }

    /// Reads any value, checks it, and forgets it.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn skip(&mut self) -> Result<(), JsonError> {
        match self.peek()? {
            Kind::Object => self.object(|scanner, _| scanner.skip()),
            Kind::Array => self.array(Self::skip),
            Kind::String => self.string().map(|_| ()),
            Kind::Number => self.number().map(|_| ()),
            Kind::Boolean => self.boolean().map(|_| ()),
            Kind::Null if self.take_word("null") => Ok(()),
            Kind::Null => Err(self.error("expected a value")),
        }
    }

    /// Nothing but whitespace may be left.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn end(&mut self) -> Result<(), JsonError> {
        self.skip_whitespace();
        if self.at == self.text.len() { Ok(()) } else { Err(self.error("something follows the JSON value")) }
    }

    /// What arrays and objects share: brackets, commas, depth.
    fn sequence(
        &mut self,
        open: u8,
        close: u8,
        expected: &'static str,
        mut part: impl FnMut(&mut Self) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.skip_whitespace();
        if !self.take(open) {
            return Err(self.error(expected));
        }
        if self.depth == MAX_DEPTH {
            return Err(self.error("nested too deep"));
        }
        self.depth += 1;
        self.skip_whitespace();
        if !self.take(close) {
            loop {
                part(self)?;
                self.skip_whitespace();
                if self.take(close) {
                    break;
                }
                if !self.take(b',') {
                    return Err(self.error("expected `,` or the closing bracket"));
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Goes on to the next quote or backslash of a string.
    fn skip_plain(&mut self) -> Result<(), JsonError> {
        loop {
            match self.byte() {
                Some(b'"' | b'\\') => return Ok(()),
                Some(0..=0x1f) => return Err(self.error("a control character stands in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.error("unexpected end")),
            }
        }
    }

    /// Reads what follows a backslash.
    fn escape(&mut self) -> Result<char, JsonError> {
        let escaped = match self.byte() {
            Some(plain @ (b'"' | b'\\' | b'/')) => char::from(plain),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode_escape();
            }
            _ => return Err(self.error("no such escape")),
        };
        self.at += 1;
        Ok(escaped)
    }

    /// Reads the digits of `\u`, and the second half of a surrogate pair.
    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let first = self.hex4()?;
        let code = if (0xd800..0xdc00).contains(&first) {
            if !self.take_word("\\u") {
                return Err(self.error("a lone surrogate"));
            }
            let second = self.hex4()?;
            if !(0xdc00..0xe000).contains(&second) {
                return Err(self.error("a lone surrogate"));
            }
            0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
        } else {
            first
        };
        match char::from_u32(code) {
            Some('\0') => Err(self.error("U+0000")),
            Some(character) => Ok(character),
            None => Err(self.error("a lone surrogate")),
        }
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).ok_or(self.error("unexpected end"))?;
        let mut code = 0;
        for digit in digits {
            let digit = char::from(*digit).to_digit(16).ok_or(self.error("expected four hex digits"))?;
            code = code << 4 | digit;
        }
        self.at += 4;
        Ok(code)
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(self.error("expected a digit")) }
    }

    fn skip_whitespace(&mut self) {
        while matches!(self.byte(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.byte() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.text.as_bytes()[self.at..].starts_with(word.as_bytes());
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) -> Result<(), JsonError> {
        let mut scanner = Scanner::new(text.as_bytes())?;
        scanner.skip()?;
        scanner.end()
    }

    fn string(text: &str) -> Result<String, JsonError> {
        Scanner::new(text.as_bytes())?.string().map(Cow::into_owned)
    }

    #[test]
    fn strings_are_unescaped_as_in_rfc_8259() {
        assert_eq!(string(r#""plain ä""#).unwrap(), "plain ä");
        assert_eq!(string(r#""\"\\\/\b\f\n\r\t\u00e4\uD83D\ude00!""#).unwrap(), "\"\\/\u{8}\u{c}\n\r\tä😀!");
        for bad in [
            r#""\ud800""#,
            r#""\ud800\ud800""#,
            r#""\ud800x""#,
            r#""\udc00""#,
            r#""\u0000""#,
            r#""\u00""#,
            r#""\x""#,
            "\"\n\"",
            "\"\0\"",
            "\"",
            "\"\\",
            r#""\u+123""#,
        ] {
            assert!(string(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_skipped_is_checked_all_the_same() {
        for bad in [
            r#"{"x": {"a": 1, "a": 2}}"#,
            r#"[{"a": 1, "\u0061": 2}]"#,
            r#"{"x": ["\u0000"]}"#,
            r#"{"\u0000": 1}"#,
            r#"{"x": "\udc00"}"#,
            "[1,]",
            "[,1]",
            "{,}",
            "{\"a\":1,}",
            "[1 2]",
            "{\"a\" 1}",
            "{a:1}",
            "[01]",
            "[1.]",
            "[.5]",
            "[-]",
            "[1e]",
            "nul",
            "[tru]",
            "[NaN]",
            "",
            " ",
            "[]]",
            "[] x",
            "\u{feff}[]",
            "'a'",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert_eq!(
            check(r#" { "a" : [ 1 , -0.5e+3 , "x" , true , null , {} , [] ] , "A" : false } "#),
            Ok(())
        );
    }

    #[test]
    fn numbers_keep_their_text_and_have_no_limit() {
        let mut scanner = Scanner::new(b"  -0.50e+10 ").unwrap();
        assert_eq!(scanner.number().unwrap(), "-0.50e+10");
        assert_eq!(check("[1e999999, 123456789012345678901234567890]"), Ok(()));
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(check(&nested(MAX_DEPTH as usize)), Ok(()));
        assert!(check(&nested(MAX_DEPTH as usize + 1)).is_err());
        assert!(check(&"[".repeat(1 << 20)).is_err());
        assert!(check(&"{\"a\":".repeat(1 << 18)).is_err());
    }

    #[test]
    fn bytes_that_are_no_utf_8_are_refused() {
        assert!(Scanner::new(b"\"\xff\"").is_err());
        assert!(Scanner::new(b"\"\xed\xa0\x80\"").is_err(), "a surrogate in UTF-8");
    }

    fn json_like() -> impl Strategy<Value = String> {
        "([\\[\\]{},:]|\"a\"|\"b\\\\n\"|\"\\\\u00e4\"|1|-0|2\\.5e3|true|null| ){0,14}"
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(mut scanner) = Scanner::new(&bytes) {
                let _ = scanner.skip();
            }
        }

        #[test]
        fn what_is_taken_is_json_to_serde_too(text in prop_oneof![json_like(), "\\PC{0,30}"]) {
            let serde = serde_json::from_str::<serde_json::Value>(&text).map_err(|error| error.to_string());
            if check(&text).is_ok() {
                // The grammar has no largest number: `2.5e311` is refused where it is read as a value.
                let beyond = serde.as_ref().is_err_and(|error| error.starts_with("number out of range"));
                prop_assert!(serde.is_ok() || beyond);
            }
        }

        #[test]
        fn whatever_serde_writes_is_taken(text in "[^\0]{0,20}", number in any::<f64>(), integer in any::<i64>()) {
            let value = serde_json::json!({"t": text, "n": [number, integer, {"x": null}], "b": true});
            prop_assert_eq!(check(&value.to_string()), Ok(()));
            prop_assert_eq!(check(&serde_json::to_string_pretty(&value).unwrap()), Ok(()));
            let written = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(string(&written).unwrap(), text);
        }
    }
}
