//! Rows of a CSV file as messages.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use csv::{Reader, ReaderBuilder, StringRecord, Trim};

use super::mapping::shown;
use super::{CsvOptions, Mapping, Message, ReadingsError};
use crate::device::Value;
use crate::device::body::{self, Reading};

/// The messages of a CSV file whose first row names the columns.
pub struct CsvReadings<R> {
    path: PathBuf,
    rows: Reader<R>,
    mapping: Mapping,
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
        let mut rows = ReaderBuilder::new()
            .delimiter(options.delimiter.unwrap_or(b','))
            .trim(Trim::All)
            .from_reader(source);
        let headers = rows.headers().map_err(|error| failed(path, error))?;
        let mapping = Mapping::new(headers, options)
            .map_err(|problem| ReadingsError::Columns { path: path.to_owned(), problem })?;
        let kinds = vec![Kinds::default(); mapping.columns().len()];
        Ok(Self { path: path.to_owned(), rows, mapping, msg: options.msg.clone(), empty_rows: 0, kinds })
    }

    /// A column of the rows so far that has both numbers and texts, as a person is told it.
    pub fn mixed(&self) -> Option<String> {
        self.mapping.columns().zip(&self.kinds).find_map(|(name, kinds)| {
            let (line, text) = kinds.first_text.as_ref().filter(|_| kinds.numbers > 0)?;
            Some(format!(
                "column {:?} has numbers in {} and texts in {}, the first {text:?} in line {line}",
                shown(name),
                counted(kinds.numbers),
                counted(kinds.texts)
            ))
        })
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
                }
                _ => {}
            }
        }
    }

    fn message(&mut self, row: &StringRecord) -> Result<Option<Message>, ReadingsError> {
        let line = row.position().map_or(0, csv::Position::line);
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
        let mut row = StringRecord::new();
        loop {
            match self.rows.read_record(&mut row) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(failed(&self.path, error))),
            }
            match self.message(&row).transpose() {
                Some(message) => return Some(message),
                None => self.empty_rows += 1,
            }
        }
    }
}

fn counted(rows: u64) -> String {
    if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") }
}

fn failed(path: &Path, error: csv::Error) -> ReadingsError {
    let (path, problem) = (path.to_owned(), error.to_string());
    let line = error.position().map_or(0, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => ReadingsError::Read { path, source },
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => ReadingsError::Line {
            path,
            line,
            problem: format!("{len} cells, the first row has {expected_len}"),
        },
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
            rows.mixed()
        };
        assert_eq!(
            mixed("time,a,b\n1,on,5\n2,,6\n3,off,n/a\n4,on,fault\n").unwrap(),
            "column \"b\" has numbers in 2 rows and texts in 2 rows, the first \"n/a\" in line 4"
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
        assert_eq!(said[2], "x.csv, line 4: 3 cells, the first row has 2");
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
