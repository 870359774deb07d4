//! Lines of a file as messages: each is the JSON body of one message and is sent as it is.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::{Message, ReadingsError};
use crate::device::body::Body;
use crate::types::ClientId;

/// The longest line: the longest body that nodes take by default.
pub const MAX_LINE_BYTES: u64 = 16 << 20;

/// The messages of a file with one body a line. Blank lines are skipped.
pub struct JsonLines<R> {
    path: PathBuf,
    source: R,
    client: ClientId,
    line: u64,
    ended: bool,
}

impl JsonLines<BufReader<File>> {
    /// Opens a file with messages of `client`.
    ///
    /// # Errors
    /// [`ReadingsError::Read`].
    pub fn open(path: &Path, client: ClientId) -> Result<Self, ReadingsError> {
        let file =
            File::open(path).map_err(|source| ReadingsError::Read { path: path.to_owned(), source })?;
        Ok(Self::new(path, BufReader::new(file), client))
    }
}

impl<R: BufRead> JsonLines<R> {
    /// Reads from `source`; `path` names it in errors.
    pub fn new(path: &Path, source: R, client: ClientId) -> Self {
        Self { path: path.to_owned(), source, client, line: 0, ended: false }
    }

    fn read_line(&mut self) -> Result<Vec<u8>, ReadingsError> {
        let mut line = Vec::new();
        self.source
            .by_ref()
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut line)
            .map_err(|source| ReadingsError::Read { path: self.path.clone(), source })?;
        self.line += 1;
        if line.len() as u64 > MAX_LINE_BYTES {
            return Err(self.wrong(format!("longer than {MAX_LINE_BYTES} bytes")));
        }
        Ok(line)
    }

    fn wrong(&self, problem: String) -> ReadingsError {
        ReadingsError::Line { path: self.path.clone(), line: self.line, problem }
    }

    fn message(&self, text: &[u8]) -> Result<Message, ReadingsError> {
        let body = Body::parse(&self.client, text).map_err(|error| self.wrong(error.to_string()))?;
        Ok(Message { line: self.line, items: body.items.len(), body: text.to_vec() })
    }
}

impl<R: BufRead> Iterator for JsonLines<R> {
    type Item = Result<Message, ReadingsError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let line = match self.read_line() {
                Ok(line) => line,
                Err(error) => {
                    // Where the next line begins is not known.
                    self.ended = true;
                    return Some(Err(error));
                }
            };
            self.ended = line.is_empty();
            let text = line.trim_ascii();
            if !text.is_empty() {
                return Some(self.message(text));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str =
        r#"{"count":1,"eventTime":5,"data":[{"deviceId":"d","serviceId":"s","num":1,"value":1.50}]}"#;

    fn read(text: &[u8]) -> Vec<Result<Message, ReadingsError>> {
        JsonLines::new(Path::new("x.jsonl"), text, ClientId::new("devices/iot").unwrap()).collect()
    }

    #[test]
    fn a_line_is_sent_as_it_is() {
        let messages = read(format!("{BODY}\r\n\n  \n{BODY}").as_bytes());
        let messages: Vec<Message> = messages.into_iter().collect::<Result<_, _>>().unwrap();
        assert_eq!(messages.iter().map(|message| message.line).collect::<Vec<_>>(), [1, 4]);
        assert!(messages.iter().all(|message| message.body == BODY.as_bytes() && message.items == 1));
    }

    #[test]
    fn what_a_node_would_refuse_is_refused_here_by_line() {
        let rows = read(format!("{BODY}\n{{\"count\":2}}\nnonsense\n\u{ff}\n{BODY}\n").as_bytes());
        assert_eq!(rows.len(), 5);
        assert!(rows[0].is_ok() && rows[4].is_ok());
        for (at, row) in rows[1..4].iter().enumerate() {
            let error = row.as_ref().unwrap_err().to_string();
            assert!(error.starts_with(&format!("x.jsonl, line {}: ", at + 2)), "{error}");
        }
    }

    #[test]
    fn a_line_without_end_is_not_read_whole() {
        let mut rows = JsonLines::new(
            Path::new("x.jsonl"),
            BufReader::new(std::io::repeat(b' ')),
            ClientId::new("devices/iot").unwrap(),
        );
        assert!(rows.next().unwrap().unwrap_err().to_string().contains("line 1: longer than"));
        assert!(rows.next().is_none());
    }
}
