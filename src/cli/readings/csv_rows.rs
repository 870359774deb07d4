//! Rows of a CSV file as messages.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use csv::{ByteRecord, Reader, ReaderBuilder, StringRecord, Trim};

use super::mapping::{has_decimal_comma, shown};
use super::{CsvOptions, Mapping, Message, ReadingsError};
use crate::device::Value;
use crate::device::body::{self, Reading};

/// The messages of a CSV file whose first row names the columns.
pub struct CsvReadings<R> {
    path: PathBuf,
    rows: Reader<LastRead<R>>,
    mapping: Mapping,
    delimiter: u8,
    cells: usize,
    msg: Option<String>,
    /// Rows in which nothing was measured: no message is made of them.
    pub empty_rows: u64,
    /// What each column held so far, in the order of the mapping's.
    kinds: Vec<Kinds>,
}

/// What the cells of a column are.
#[derive(Debug, Clone, Default)]
struct Kinds {
    numbers: u64,
    texts: u64,
    /// Line and text.
    first_text: Option<(u64, String)>,
    /// The same of one that is maybe a number with a decimal comma.
    first_comma: Option<(u64, String)>,
}

/// A source that remembers what was read last, so that the end of a row can be looked at.
#[derive(Debug)]
struct LastRead<R> {
    source: R,
    /// The byte before the chunk, and the chunk.
    bytes: Vec<u8>,
    /// How many bytes there were before them.
    before: u64,
}

impl<R: Read> Read for LastRead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.source.read(buffer)?;
        let kept = self.bytes.len().saturating_sub(1);
        self.before += kept as u64;
        self.bytes.drain(..kept);
        self.bytes.extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

impl<R> LastRead<R> {
    /// The byte at an offset; none if it was read longer ago.
    fn byte_at(&self, offset: u64) -> Option<u8> {
        let at = usize::try_from(offset.checked_sub(self.before)?).ok()?;
        self.bytes.get(at).copied()
    }
}

impl CsvReadings<File> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`ReadingsError`]: it cannot be read, or has not the columns that the options name.
    pub fn open(path: &Path, options: &CsvOptions) -> Result<Self, ReadingsError> {
        let file =
            File::open(path).map_err(|source| ReadingsError::Read { path: path.to_owned(), source })?;
        Self::new(path, file, options)
    }
}

impl<R: Read> CsvReadings<R> {
    /// Reads from `source`; `path` names it in errors.
    ///
    /// # Errors
    /// [`ReadingsError`]: it cannot be read, or has not the columns that the options name.
    pub fn new(path: &Path, source: R, options: &CsvOptions) -> Result<Self, ReadingsError> {
        let delimiter = options.delimiter.unwrap_or(b',');
        let source = LastRead { source, bytes: Vec::new(), before: 0 };
        let mut rows =
            ReaderBuilder::new().delimiter(delimiter).trim(Trim::Headers).flexible(true).from_reader(source);
        let headers = rows.headers().map_err(|error| failed(path, error))?;
        let cells = headers.len();
        let mapping = Mapping::new(headers, options)
            .map_err(|problem| ReadingsError::Columns { path: path.to_owned(), problem })?;
        let kinds = vec![Kinds::default(); mapping.columns().len()];
        let (path, msg) = (path.to_owned(), options.msg.clone());
        Ok(Self { path, rows, mapping, delimiter, cells, msg, empty_rows: 0, kinds })
    }

    /// What of the rows so far is most often not meant as it stands, as a person is told it: a column that has both
    /// numbers and texts, or texts that are maybe numbers with a decimal comma.
    pub fn doubt(&self) -> Option<String> {
        let mut columns = self.mapping.columns().zip(&self.kinds);
        columns.find_map(|(name, kinds)| self.doubt_about(name, kinds))
    }

    fn doubt_about(&self, name: &str, kinds: &Kinds) -> Option<String> {
        let name = shown(name);
        if let Some((line, text)) = &kinds.first_comma {
            return Some(format!(
                "column {name:?} has {text:?} in line {line}: if that is a number with a decimal comma, say \
                 --decimal-comma"
            ));
        }
        let (line, text) = kinds.first_text.as_ref().filter(|_| kinds.numbers > 0)?;
        let (numbers, texts) = (counted(kinds.numbers), counted(kinds.texts));
        Some(format!(
            "column {name:?} has numbers in {numbers} and texts in {texts}, the first {text:?} in line {line}: if it \
             means that nothing was measured, name it with --missing"
        ))
    }

    /// Reads the next row; gives the line that it begins on.
    fn read(&mut self) -> Result<Option<(u64, StringRecord)>, ReadingsError> {
        let mut row = ByteRecord::new();
        match self.rows.read_byte_record(&mut row) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(failed(&self.path, error)),
        }
        // Where the row began is not known: blank lines and a second byte of the line's end before it count as its.
        let end = self.rows.position();
        let last = end.byte().checked_sub(1).and_then(|last| self.rows.get_ref().byte_at(last));
        let breaks = row.as_slice().iter().filter(|byte| **byte == b'\n').count() as u64;
        // Of a cell that is open to the file's end the last line break is its own.
        let ended = last == Some(b'\n') && !row.as_slice().ends_with(b"\n");
        let line = end.line() - breaks - u64::from(ended);
        let wrong = |problem| Err(ReadingsError::Line { path: self.path.clone(), line, problem });
        if breaks > 0 {
            return wrong("a cell goes on over several lines: is a quotation mark not closed?".to_owned());
        }
        if row.len() != self.cells {
            let comma = if self.delimiter == b',' && row.len() > self.cells {
                "; is there a decimal comma? then another character has to stand between the cells (--delimiter)"
            } else {
                ""
            };
            return wrong(format!("{} cells, the first row has {}{comma}", row.len(), self.cells));
        }
        let Ok(mut row) = StringRecord::from_byte_record(row) else { return wrong(NO_UTF8.to_owned()) };
        row.trim();
        Ok(Some((line, row)))
    }

    fn note_kinds(&mut self, line: u64, readings: &[Reading]) {
        let mut rest = readings.iter().peekable();
        for ((service, num), kinds) in self.mapping.items().zip(&mut self.kinds) {
            // What was not measured is not among the readings.
            let is_next = |of: &&Reading| of.service_id == service && of.num == num;
            match rest.next_if(is_next).map(|reading| &reading.value) {
                Some(Value::Integer(_) | Value::Float(_)) => kinds.numbers += 1,
                Some(Value::Text(text)) => {
                    kinds.texts += 1;
                    kinds.first_text.get_or_insert_with(|| (line, shown(text)));
                    if kinds.first_comma.is_none() && has_decimal_comma(text) {
                        kinds.first_comma = Some((line, shown(text)));
                    }
                }
                _ => {}
            }
        }
    }

    fn message(&mut self, line: u64, row: &StringRecord) -> Result<Option<Message>, ReadingsError> {
        let path = self.path.clone();
        let wrong = |problem| ReadingsError::Line { path: path.clone(), line, problem };
        let (time, readings) = self.mapping.readings(row).map_err(wrong)?;
        self.note_kinds(line, &readings);
        if readings.is_empty() {
            return Ok(None);
        }
        let body =
            body::write(time, self.msg.as_deref(), &readings).map_err(|error| wrong(error.to_string()))?;
        Ok(Some(Message { line, items: readings.len(), body }))
    }
}

impl<R: Read> Iterator for CsvReadings<R> {
    type Item = Result<Message, ReadingsError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let message = match self.read() {
                Ok(Some((line, row))) => self.message(line, &row),
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            };
            match message.transpose() {
                Some(message) => return Some(message),
                None => self.empty_rows += 1,
            }
        }
    }
}

fn counted(rows: u64) -> String {
    if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") }
}

/// What is said of bytes that are no text.
const NO_UTF8: &str = "no UTF-8: save it as UTF-8, such as with `iconv -f latin1 -t utf8`";

fn failed(path: &Path, error: csv::Error) -> ReadingsError {
    let (path, problem) = (path.to_owned(), error.to_string());
    let line = error.position().map_or(1, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => ReadingsError::Read { path, source },
        csv::ErrorKind::Utf8 { .. } => ReadingsError::Line { path, line, problem: NO_UTF8.to_owned() },
        _ => ReadingsError::Line { path, line, problem },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::body::Body;
    use crate::types::{ClientId, Timestamp};

    fn options(items: &[&str]) -> CsvOptions {
        let items = items.iter().map(|item| item.parse().unwrap()).collect();
        let time_unit = Some(super::super::TimeUnit::Ms);
        CsvOptions { device: "th-01".into(), items, time_unit, ..CsvOptions::default() }
    }

    fn read(text: &str, options: &CsvOptions) -> Vec<Result<Message, ReadingsError>> {
        CsvReadings::new(Path::new("x.csv"), text.as_bytes(), options).unwrap().collect()
    }

    #[test]
    fn every_row_becomes_a_body_that_a_node_takes() {
        let options =
            options(&["temperature_c=temperature:1:Cel", "relative_humidity_percent=humidity:2:%RH"]);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/greensboro-tmy3.csv");
        let messages: Vec<Message> =
            CsvReadings::open(&path, &options).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(messages.len(), 8760);
        let client = ClientId::new("devices/iot").unwrap();
        for message in &messages {
            assert_eq!(Body::parse(&client, &message.body).unwrap().items.len(), 2);
        }
        let first = Body::parse(&client, &messages[0].body).unwrap();
        assert_eq!((messages[0].line, first.event_time), (2, Timestamp(1_735_689_600_000)));
        let temperature = &first.items[0];
        assert_eq!((temperature.device.as_str(), temperature.service.as_str()), ("th-01", "temperature"));
        assert_eq!((&temperature.value, temperature.unit.as_deref()), (&Value::Float(10.0), Some("Cel")));
    }

    #[test]
    fn cells_are_cut_where_the_user_says() {
        let options = CsvOptions { delimiter: Some(b';'), ..options(&[]) };
        let rows = read("time;a;b\n1;5;\"x;y\"\n", &options);
        assert_eq!(rows[0].as_ref().unwrap().items, 2);
    }

    #[test]
    fn a_row_in_which_nothing_was_measured_is_counted_and_not_sent() {
        let text = "time,a,b\n1,,NaN\n2,5,\n";
        let mut rows = CsvReadings::new(Path::new("x.csv"), text.as_bytes(), &options(&[])).unwrap();
        let message = rows.next().unwrap().unwrap();
        assert_eq!((message.line, message.items), (3, 1));
        assert!(rows.next().is_none());
        assert_eq!(rows.empty_rows, 1);
    }

    #[test]
    fn a_column_with_numbers_and_texts_is_told_with_the_first_text() {
        let mixed = |text: &str| {
            let mut rows = CsvReadings::new(Path::new("x.csv"), text.as_bytes(), &options(&[])).unwrap();
            rows.by_ref().for_each(drop);
            rows.doubt()
        };
        assert_eq!(
            mixed("time,a,b\n1,on,5\n2,,6\n3,off,n/a\n4,on,fault\n").unwrap(),
            "column \"b\" has numbers in 2 rows and texts in 2 rows, the first \"n/a\" in line 4: if it \
             means that nothing was measured, name it with --missing"
        );
        assert_eq!(mixed("time,a,b\n1,on,5\n2,off,NaN\n"), None);
        let long = mixed(&format!("time,a\n1,5\n2,{}\n", "x\x1b".repeat(1_000))).unwrap();
        assert!(long.len() < 400 && !long.contains('\x1b'), "{long}");
    }

    #[test]
    fn an_error_names_file_and_line_and_the_rows_after_it_are_still_there() {
        let rows = read("time,a\n1,5\nnoon,5\n3,5,6\n4,5\n", &options(&[]));
        let said: Vec<String> = rows
            .iter()
            .map(|row| row.as_ref().map_or_else(ToString::to_string, |message| message.line.to_string()))
            .collect();
        assert_eq!((said[0].as_str(), said[3].as_str()), ("2", "5"));
        assert!(said[1].starts_with("x.csv, line 3: \"noon\" is no time"), "{}", said[1]);
        assert!(said[2].starts_with("x.csv, line 4: 3 cells, the first row has 2"), "{}", said[2]);
    }

    #[test]
    fn lines_are_those_that_an_editor_shows() {
        let lines = |text: &str| -> Vec<u64> {
            let rows = read(text, &options(&[]));
            let line = |error: &ReadingsError| match error {
                ReadingsError::Line { line, problem, .. } if problem.contains("quotation mark") => *line,
                other => panic!("{other}"),
            };
            rows.iter().map(|row| row.as_ref().map_or_else(line, |message| message.line)).collect()
        };
        assert_eq!(lines("time,a\n1,5\n2,6\n3,7"), [2, 3, 4]);
        assert_eq!(lines("time,a\r\n1,5\r\n2,6\r\n3,7\r\n"), [2, 3, 4]);
        assert_eq!(lines("time,a\r\n\r\n1,5\r\n\r\n\r\n2,6"), [3, 6]);
        assert_eq!(lines("\n\ntime,a\n\n1,5\n\n\n2,6\n\n"), [5, 8]);
        assert_eq!(lines("time,a\n1,\"x\ny\"\n2,6\r\n3,\"x\r\n\r\ny\"\r\n4,5\n"), [2, 4, 5, 8]);
        assert_eq!(lines("time,a\n1,\"5\n2,6\n"), [2], "not closed");
        let rows: String = (0..20_000).map(|at| format!("{at},5\r\n")).collect();
        let long = "x".repeat(30_000);
        let text = format!("time,a\r\n{rows}1,{long}\r\n2,{long}\r\n3,1\r\n");
        assert!(lines(&text).into_iter().eq(2..20_005), "wherever a chunk ends");
    }

    #[test]
    fn texts_that_are_maybe_numbers_are_told() {
        let doubt = |text: &str, decimal_comma| {
            let options = CsvOptions { delimiter: Some(b';'), decimal_comma, ..options(&[]) };
            let mut rows = CsvReadings::new(Path::new("x.csv"), text.as_bytes(), &options).unwrap();
            rows.by_ref().for_each(drop);
            rows.doubt()
        };
        let all = "time;a\n1;110,20\n2;111,5\n";
        assert!(doubt(all, false).unwrap().contains("\"110,20\" in line 2"));
        assert_eq!(doubt(all, true), None);
        assert!(doubt("time;a\n1;50\n2;50,1\n", false).unwrap().contains("--decimal-comma"));
        assert!(doubt("time;a\n1;50,1\n2;1.021\n", true).unwrap().contains("\"1.021\" in line 3"));
        assert_eq!(doubt("time;a\n1;on\n2;a,b\n", false), None);
        let latin1 = b"time;a\n1;5\n2;\xb0C\n3;6\n";
        let options = CsvOptions { delimiter: Some(b';'), ..options(&[]) };
        let rows: Vec<_> = CsvReadings::new(Path::new("x.csv"), &latin1[..], &options).unwrap().collect();
        assert!(rows[1].as_ref().unwrap_err().to_string().starts_with("x.csv, line 3: no UTF-8"));
        assert_eq!(rows.len(), 3);
    }

    #[test]
    fn whatever_is_no_csv_is_an_error() {
        let open = |bytes: &[u8]| CsvReadings::new(Path::new("x.csv"), bytes, &options(&[])).map(|_| ());
        assert!(open(b"").unwrap_err().to_string().contains("the file is empty"));
        assert!(matches!(open(&[0xff; 100]), Err(ReadingsError::Line { .. })));
        let missing = CsvReadings::open(Path::new("/nowhere.csv"), &options(&[]));
        assert!(matches!(missing.map(|_| ()), Err(ReadingsError::Read { .. })));
    }
}
