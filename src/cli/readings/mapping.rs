//! Which column of a CSV file is what.

use std::collections::BTreeMap;
use std::str::FromStr;

use csv::StringRecord;
use jiff::civil::DateTime;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

use crate::device::body::Reading;
use crate::device::{Value, rfc3339};
use crate::types::Timestamp;

/// Names of the time column, tried in this order if none is given.
const TIME_COLUMNS: [&str; 5] = ["time", "timestamp", "eventTime", "datetime", "date"];

/// Cells that mean "not measured", besides those that the options name.
const MISSING: [&str; 5] = ["", "NaN", "nan", "NA", "null"];

/// A whole number below this counts maybe seconds: as milliseconds it would be a time before March 1973, and as
/// seconds one until the year 5138.
const MAYBE_SECONDS_MS: u64 = 100_000_000_000;

/// So many columns, and so much of the name of each, are told to who names one that is not there.
const MAX_NAMED: usize = 20;
const MAX_NAMED_CHARS: usize = 64;

/// What a whole number in the time column counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TimeUnit {
    /// Milliseconds since 1970.
    Ms,
    /// Seconds since 1970.
    S,
}

/// A column that becomes a data item: `COLUMN[=SERVICE[:NUM[:UNIT]]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemSpec {
    /// The column's name.
    pub column: String,
    /// `serviceId`; the column's name if absent.
    pub service: Option<String>,
    /// `num`; the place among the items, from 1, if absent.
    pub num: Option<u32>,
    /// `unit`
    pub unit: Option<String>,
}

impl FromStr for ItemSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (column, rest) = text.split_once('=').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let mut parts = rest.into_iter().flat_map(|rest| rest.splitn(3, ':'));
        let mut part = || parts.next().filter(|part| !part.is_empty());
        let (service, num, unit) = (part(), part(), part());
        if column.is_empty() {
            return Err("give COLUMN[=SERVICE[:NUM[:UNIT]]], such as temperature_c=temperature:1:Cel".into());
        }
        let num = num
            .map(|num| num.parse().map_err(|_| format!("{num:?} is no number from 0 to 4294967295")))
            .transpose()?;
        Ok(Self {
            column: column.into(),
            service: service.map(str::to_owned),
            num,
            unit: unit.map(str::to_owned),
        })
    }
}

/// How to read a CSV file.
#[derive(Debug, Clone, Default)]
pub struct CsvOptions {
    /// The time column; the first of `time`, `timestamp`, `eventTime`, `datetime`, `date` if absent.
    pub time_column: Option<String>,
    /// What a whole number in it counts.
    pub time_unit: Option<TimeUnit>,
    /// Where a time without a zone (`2025-01-01 00:00`) is the local one; an error if absent.
    pub zone: Option<TimeZone>,
    /// How times are written, in the language of strptime; RFC 3339 or a whole number if absent.
    pub time_format: Option<String>,
    /// `deviceId` of all items.
    pub device: String,
    /// The column that holds `deviceId` instead.
    pub device_column: Option<String>,
    /// The columns that become items; all others than time and device if empty.
    pub items: Vec<ItemSpec>,
    /// Cells that mean "not measured", besides blank cells, `NaN`, `nan`, `NA` and `null`.
    pub missing: Vec<String>,
    /// Read numbers with a decimal comma.
    pub decimal_comma: bool,
    /// What stands between two cells; a comma if absent.
    pub delimiter: Option<u8>,
    /// `msg` of all messages.
    pub msg: Option<String>,
}

/// The options, applied to the columns of one file.
#[derive(Debug, Clone)]
pub struct Mapping {
    time: usize,
    time_unit: Option<TimeUnit>,
    time_format: Option<String>,
    zone: Option<TimeZone>,
    device: Device,
    columns: Vec<Column>,
    missing: Vec<String>,
    decimal_comma: bool,
}

#[derive(Debug, Clone)]
enum Device {
    Named(String),
    InColumn(usize),
}

#[derive(Debug, Clone)]
struct Column {
    at: usize,
    name: String,
    service: String,
    num: u32,
    unit: Option<String>,
}

impl Mapping {
    /// Finds the columns that the options name.
    ///
    /// # Errors
    /// Which is missing, and which there are.
    pub fn new(headers: &StringRecord, options: &CsvOptions) -> Result<Self, String> {
        if headers.is_empty() {
            return Err("the file is empty; its first row names the columns, such as time,temperature".into());
        }
        let time = match &options.time_column {
            Some(name) => find(headers, name)?,
            None => TIME_COLUMNS
                .iter()
                .find_map(|name| find(headers, name).ok())
                .ok_or_else(|| format!("name the time column (--time-column); {}", there_are(headers)))?,
        };
        let device = match &options.device_column {
            Some(name) => Device::InColumn(find(headers, name)?),
            None => Device::Named(options.device.clone()),
        };
        let columns = if options.items.is_empty() {
            every_other(headers, time, &device)
        } else {
            (1..)
                .zip(&options.items)
                .map(|(num, spec)| named(headers, num, spec))
                .collect::<Result<_, _>>()?
        };
        if columns.is_empty() {
            return Err("there is no column besides time and device".into());
        }
        let mut items = BTreeMap::new();
        for column in &columns {
            if let Some(other) = items.insert((&column.service, column.num), &column.name) {
                return Err(format!(
                    "the columns {:?} and {:?} both become item {:?} number {}: give one another number, \
                     COLUMN=SERVICE:NUM",
                    shown(other),
                    shown(&column.name),
                    shown(&column.service),
                    column.num
                ));
            }
        }
        let missing = MISSING.map(str::to_owned).into_iter().chain(options.missing.iter().cloned()).collect();
        let CsvOptions { time_unit, time_format, zone, decimal_comma, .. } = options.clone();
        Ok(Self { time, time_unit, time_format, zone, device, columns, missing, decimal_comma })
    }

    /// The names of the columns that become items.
    pub(super) fn columns(&self) -> impl ExactSizeIterator<Item = &str> {
        self.columns.iter().map(|column| column.name.as_str())
    }

    /// Service and number of each of them.
    pub(super) fn items(&self) -> impl Iterator<Item = (&str, u32)> {
        self.columns.iter().map(|column| (column.service.as_str(), column.num))
    }

    /// The time and the items of a row; no items if nothing was measured.
    ///
    /// # Errors
    /// What is wrong with the row.
    pub fn readings(&self, row: &StringRecord) -> Result<(Timestamp, Vec<Reading>), String> {
        let time = self.time(row.get(self.time).unwrap_or_default())?;
        let device = match &self.device {
            Device::Named(name) => name.as_str(),
            Device::InColumn(at) => row.get(*at).unwrap_or_default(),
        };
        if device.is_empty() {
            return Err("the device column is empty".into());
        }
        let readings = self.columns.iter().filter_map(|column| {
            let cell = row.get(column.at).unwrap_or_default();
            Some(Reading {
                device_id: device.to_owned(),
                service_id: column.service.clone(),
                num: column.num,
                value: self.value(cell)?,
                unit: column.unit.clone(),
            })
        });
        Ok((time, readings.collect()))
    }

    fn value(&self, cell: &str) -> Option<Value> {
        if self.missing.iter().any(|missing| missing == cell) {
            return None;
        }
        // Numbers as JSON writes them; what JSON would not write so (`007`, `+5`) stays a text.
        let number = match with_decimal_point(cell).filter(|_| self.decimal_comma) {
            Some(number) => Value::from_json_number(&number).ok(),
            // 1.021 is a thousand or one: nobody knows.
            None if self.decimal_comma && cell.contains('.') => None,
            None => Value::from_json_number(cell).ok(),
        };
        Some(match (number, cell) {
            (Some(number), _) => number,
            (None, "true") => Value::Boolean(true),
            (None, "false") => Value::Boolean(false),
            (None, text) => Value::Text(text.to_owned()),
        })
    }

    fn time(&self, cell: &str) -> Result<Timestamp, String> {
        let time = match &self.time_format {
            Some(format) => self.time_as(format, cell)?,
            None => {
                rfc3339::parse(cell).or_else(|| self.counted(cell)).map_or_else(|| self.local(cell), Ok)?
            }
        };
        if time <= Timestamp::MAX { Ok(time) } else { Err(format!("the time {cell:?} is out of range")) }
    }

    /// A whole number.
    fn counted(&self, cell: &str) -> Option<Timestamp> {
        let number: u64 = cell.parse().ok()?;
        let ms = match self.time_unit {
            None => (number >= MAYBE_SECONDS_MS).then_some(number),
            Some(TimeUnit::Ms) => Some(number),
            Some(TimeUnit::S) => number.checked_mul(1000),
        };
        ms.map(Timestamp)
    }

    /// A time that is written as the user says.
    fn time_as(&self, format: &str, cell: &str) -> Result<Timestamp, String> {
        let read =
            strtime::parse(format, cell).map_err(|_| format!("{cell:?} is no time as {format:?} says"))?;
        if let Ok(time) = read.to_timestamp() {
            return after_1970(time).ok_or_else(|| format!("the time {cell:?} is out of range"));
        }
        let time = read.to_datetime().map_err(|_| format!("{cell:?} is no time as {format:?} says"))?;
        self.at_zone(cell, time)
    }

    /// A time without a zone.
    fn local(&self, cell: &str) -> Result<Timestamp, String> {
        match without_zone(cell) {
            Some(time) => self.at_zone(cell, time),
            None if self.time_unit.is_none() && cell.parse::<u64>().is_ok_and(|of| of < MAYBE_SECONDS_MS) => {
                Err(format!(
                    "say whether the time {cell:?} is in seconds (--time-unit s) or milliseconds (--time-unit ms)"
                ))
            }
            None => Err(format!(
                "{cell:?} is no time: give RFC 3339, such as 2026-01-01T00:00:00Z, or a whole number, or say how it \
                 is written (--time-format)"
            )),
        }
    }

    fn at_zone(&self, cell: &str, time: DateTime) -> Result<Timestamp, String> {
        let Some(zone) = &self.zone else {
            return Err(format!(
                "the time {cell:?} has no zone; say which it is (--time-zone Europe/Berlin, or --assume-utc)"
            ));
        };
        let exact = zone.to_ambiguous_timestamp(time).unambiguous().map_err(|_| {
            let zone = zone.iana_name().unwrap_or("this zone");
            format!("in {zone}, {cell:?} was twice or never, as clocks were changed: give it in UTC")
        })?;
        after_1970(exact).ok_or_else(|| format!("the time {cell:?} is out of range"))
    }
}

fn after_1970(time: jiff::Timestamp) -> Option<Timestamp> {
    u64::try_from(time.as_millisecond()).ok().map(Timestamp)
}

/// `1.021,5` as `1021.5`. Points are taken between thousands, and only before a comma.
fn with_decimal_point(cell: &str) -> Option<String> {
    let (whole, fraction) = cell.split_once(',')?;
    let mut groups = whole.trim_start_matches('-').split('.');
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_first = |first: &str| is_digits(first) && (first.len() <= 3 || !whole.contains('.'));
    let is_number = groups.next().is_some_and(is_first)
        && groups.all(|group| is_digits(group) && group.len() == 3)
        && is_digits(fraction);
    is_number.then(|| format!("{}.{fraction}", whole.replace('.', "")))
}

/// Whether a text is maybe a number with a decimal comma.
pub(super) fn has_decimal_comma(text: &str) -> bool {
    with_decimal_point(text).is_some_and(|number| Value::from_json_number(&number).is_ok())
}

fn every_other(headers: &StringRecord, time: usize, device: &Device) -> Vec<Column> {
    let others = headers.iter().enumerate().filter(|(at, _)| {
        let is_device = matches!(device, Device::InColumn(column) if column == at);
        *at != time && !is_device
    });
    (1..)
        .zip(others)
        .map(|(num, (at, name))| Column { at, name: name.into(), service: name.into(), num, unit: None })
        .collect()
}

fn named(headers: &StringRecord, num: u32, spec: &ItemSpec) -> Result<Column, String> {
    Ok(Column {
        at: find(headers, &spec.column)?,
        name: spec.column.clone(),
        service: spec.service.clone().unwrap_or_else(|| spec.column.clone()),
        num: spec.num.unwrap_or(num),
        unit: spec.unit.clone(),
    })
}

fn find(headers: &StringRecord, name: &str) -> Result<usize, String> {
    let mut found = headers.iter().enumerate().filter(|(_, header)| *header == name);
    match (found.next(), found.next()) {
        (Some((at, _)), None) => Ok(at),
        (Some(_), Some(_)) => Err(format!("there are two columns {name:?}")),
        (None, _) => Err(format!("there is no column {name:?}; {}", there_are(headers))),
    }
}

/// The beginning of what a file says.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(MAX_NAMED_CHARS).collect()
}

/// Which columns there are. What has but one is maybe no table, but a key that was given by mistake: it is not shown.
fn there_are(headers: &StringRecord) -> String {
    if let (1, Some(only)) = (headers.len(), headers.get(0)) {
        let other = [(';', "';'"), ('\t', "tab"), ('|', "'|'"), (',', "','")];
        let other = other.iter().find(|(other, _)| only.contains(*other));
        let tip = match other {
            Some((_, name)) => format!("does {name} stand between the cells? then give --delimiter {name}"),
            None => "are these readings, with commas between the columns?".to_owned(),
        };
        return format!("the first row names one column only: {tip}");
    }
    let more = if headers.len() > MAX_NAMED { ", …" } else { "" };
    let names: Vec<_> =
        headers.iter().take(MAX_NAMED).map(|name| shown(name).escape_debug().to_string()).collect();
    format!("there are {}{more}", names.join(", "))
}

/// A time without a zone.
fn without_zone(cell: &str) -> Option<DateTime> {
    // An offset would be passed over, and a leap second moved.
    let clock = cell.get(10..).unwrap_or_default();
    if clock.contains(['+', '-', 'Z', 'z', '[']) || clock.ends_with(":60") {
        return None;
    }
    cell.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(headers: &[&str], options: &CsvOptions) -> Result<Mapping, String> {
        Mapping::new(&StringRecord::from(headers.to_vec()), options)
    }

    fn options(items: &[&str]) -> CsvOptions {
        let items = items.iter().map(|item| item.parse().unwrap()).collect();
        CsvOptions { device: "th-01".into(), items, ..CsvOptions::default() }
    }

    fn values(cells: &[&str]) -> Vec<Value> {
        let headers: Vec<String> = (0..cells.len()).map(|at| at.to_string()).collect();
        let mut headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        headers.push("time");
        let mut row = cells.to_vec();
        row.push("1970-01-01T00:00:00Z");
        let (_, readings) =
            mapping(&headers, &options(&[])).unwrap().readings(&StringRecord::from(row)).unwrap();
        readings.into_iter().map(|reading| reading.value).collect()
    }

    fn time(cell: &str, options: &CsvOptions) -> Result<Timestamp, String> {
        mapping(&["time", "x"], options)?.readings(&StringRecord::from(vec![cell, "1"])).map(|(time, _)| time)
    }

    #[test]
    fn an_item_is_described_in_one_argument() {
        let parse = |text: &str| text.parse::<ItemSpec>();
        let full = parse("temperature_c=temperature:7:Cel").unwrap();
        assert_eq!(
            (full.service.as_deref(), full.num, full.unit.as_deref()),
            (Some("temperature"), Some(7), Some("Cel"))
        );
        assert_eq!(parse("a=b::m:s").unwrap().unit.as_deref(), Some("m:s"));
        assert_eq!(
            parse("a").unwrap(),
            ItemSpec { column: "a".into(), service: None, num: None, unit: None }
        );
        assert!(parse("=b").is_err() && parse("").is_err());
        assert!(parse("a=b:x").unwrap_err().contains("\"x\""));
        assert!(parse("a=b:4294967296").is_err());
    }

    #[test]
    fn without_items_every_other_column_is_one() {
        let row = StringRecord::from(vec!["20.5", "2026-01-01T00:00:00Z", "77"]);
        let (time, readings) =
            mapping(&["a", "timestamp", "b"], &options(&[])).unwrap().readings(&row).unwrap();
        assert_eq!(time, Timestamp(1_767_225_600_000));
        let found: Vec<_> = readings.iter().map(|of| (of.service_id.as_str(), of.num, &of.value)).collect();
        assert_eq!(found, [("a", 1, &Value::Float(20.5)), ("b", 2, &Value::Integer(77))]);
    }

    #[test]
    fn columns_that_are_not_there_are_named_with_those_that_are() {
        let error = mapping(&["when", "x"], &options(&[])).unwrap_err();
        assert!(error.contains("time column") && error.contains("when, x"), "{error}");
        let error = mapping(&["time", "x"], &options(&["y=z"])).unwrap_err();
        assert!(error.contains("\"y\"") && error.contains("time, x"), "{error}");
        assert!(mapping(&["time", "x", "x"], &options(&["x"])).unwrap_err().contains("two columns"));
        assert!(mapping(&["time"], &options(&[])).is_err());
    }

    #[test]
    fn two_columns_that_become_one_item_are_named_before_any_row_is_read() {
        let error = mapping(&["time", "x", "y"], &options(&["x=t:1", "y=t:1"])).unwrap_err();
        assert!(error.contains("\"x\" and \"y\"") && error.contains("\"t\" number 1"), "{error}");
        mapping(&["time", "x", "y"], &options(&["x=t:1", "y=t:2"])).unwrap();
        mapping(&["time", "x", "y"], &options(&["x=t", "y=t"])).unwrap();
    }

    #[test]
    fn what_is_no_table_of_readings_is_not_shown_and_nothing_in_it_steers_a_terminal() {
        let error = mapping(&["9d61b19deffd5a60"], &options(&[])).unwrap_err();
        assert!(error.contains("one column only") && !error.contains("9d61"), "{error}");
        let error = mapping(&["time;x"], &options(&[])).unwrap_err();
        assert!(error.contains("--delimiter ';'"), "{error}");
        let error = mapping(&["a\x1b[2J", &"b".repeat(10_000)], &options(&[])).unwrap_err();
        assert!(error.len() < 200 && !error.contains('\x1b'), "{error}");
        let many: Vec<String> = (0..1_000).map(|at| format!("column{at}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let error = mapping(&many, &options(&[])).unwrap_err();
        assert!(error.contains("column19, …") && !error.contains("column20"), "{error}");
    }

    #[test]
    fn cells_are_numbers_truth_values_texts_or_missing() {
        let text = |text: &str| Value::Text(text.into());
        assert_eq!(
            values(&["10.0", "-3", "1e3", "true", "false", "on", "007", "+5", "", "NaN", "null", "NA"]),
            [
                Value::Float(10.0),
                Value::Integer(-3),
                Value::Float(1000.0),
                Value::Boolean(true),
                Value::Boolean(false),
                text("on"),
                text("007"),
                text("+5"),
            ]
        );
    }

    #[test]
    fn times_have_a_zone_or_the_user_says_that_it_is_utc() {
        let plain = options(&[]);
        let utc = CsvOptions { zone: Some(TimeZone::UTC), ..options(&[]) };
        let seconds = CsvOptions { time_unit: Some(TimeUnit::S), ..options(&[]) };
        let new_year = Ok(Timestamp(1_767_225_600_000));
        assert_eq!(time("2026-01-01T01:00:00+01:00", &plain), new_year);
        assert_eq!(time("1767225600000", &plain), new_year);
        assert_eq!(time("1767225600", &seconds), new_year);
        assert!(time("1767225600", &plain).unwrap_err().contains("--time-unit s"));
        let milliseconds = CsvOptions { time_unit: Some(TimeUnit::Ms), ..options(&[]) };
        assert_eq!(time("1767225600", &milliseconds), Ok(Timestamp(1_767_225_600)));
        assert_eq!(time("2026-01-01 00:00", &utc), new_year);
        assert!(time("2026-01-01 00:00", &plain).unwrap_err().contains("no zone"));
        for offset in ["2025-01-01 00:00:00-05", "2025-01-01T00:00:00+0530", "2025-01-01 00:00:60"] {
            let told = time(offset, &utc).unwrap_err();
            assert!(told.contains("is no time"), "{told}");
        }
        for bad in ["", "noon", "-5", "99999999999999999", "18446744073709551615"] {
            assert!(time(bad, &plain).is_err() && time(bad, &seconds).is_err(), "{bad}");
        }
    }

    #[test]
    fn local_times_are_taken_where_they_were_and_not_when_they_were_twice() {
        let german = CsvOptions {
            zone: Some(TimeZone::get("Europe/Berlin").unwrap()),
            time_format: Some("%d.%m.%Y %H:%M".into()),
            ..options(&[])
        };
        let new_year = Ok(Timestamp(1_767_225_600_000));
        assert_eq!(time("01.01.2026 01:00", &german), new_year);
        assert_eq!(time("26.10.2025 01:59", &german), Ok(Timestamp(1_761_436_740_000)));
        for wrong in ["26.10.2025 02:30", "30.03.2025 02:30"] {
            assert!(time(wrong, &german).unwrap_err().contains("twice or never"), "{wrong}");
        }
        for wrong in
            ["2026-01-01 01:00", "01.13.2026 01:00", "01.01.2026", "01.01.2026 01:00 Uhr", "01.01.1969 01:00"]
        {
            time(wrong, &german).unwrap_err();
        }
        let format = |text: &str| CsvOptions { time_format: Some(text.into()), ..options(&[]) };
        assert!(time("01.01.2026 01:00", &format("%d.%m.%Y %H:%M")).unwrap_err().contains("no zone"));
        assert_eq!(time("20260101010000+0100", &format("%Y%m%d%H%M%S%z")), new_year);
        let iso = CsvOptions { time_format: None, ..german };
        assert_eq!(time("2026-01-01 01:00", &iso), new_year);
        assert_eq!(time("2026-01-01T00:00:00Z", &iso), new_year);
    }

    #[test]
    fn numbers_with_a_decimal_comma_are_such_when_the_user_says_so() {
        let value = |cell: &str, decimal_comma| {
            let options = CsvOptions { decimal_comma, ..options(&[]) };
            let row = StringRecord::from(vec!["2026-01-01T00:00:00Z", cell]);
            let (_, readings) = mapping(&["time", "x"], &options).unwrap().readings(&row).unwrap();
            readings.into_iter().next().map(|reading| reading.value)
        };
        for (cell, number) in [
            ("21,5", 21.5),
            ("-0,25", -0.25),
            ("1.021,5", 1021.5),
            ("1021,5", 1021.5),
            ("12.345.678,0", 12_345_678.0),
        ] {
            assert_eq!(value(cell, true), Some(Value::Float(number)), "{cell}");
            assert_eq!(value(cell, false), Some(Value::Text(cell.into())), "{cell}");
            assert!(has_decimal_comma(cell), "{cell}");
        }
        assert_eq!(value("21", true), Some(Value::Integer(21)));
        for text in [
            "1,2,3",
            "10.21,5",
            "1.0215,5",
            "1234.567,8",
            ",5",
            "5,",
            "--1,5",
            "1.,5",
            "007,5",
            "a,b",
            "1.021",
        ] {
            assert_eq!(value(text, true), Some(Value::Text(text.into())), "{text}");
            assert!(!has_decimal_comma(text), "{text}");
        }
    }

    #[test]
    fn the_device_can_stand_in_a_column() {
        let options = CsvOptions { device_column: Some("sensor".into()), ..options(&[]) };
        let mapping = mapping(&["time", "sensor", "x"], &options).unwrap();
        let (_, readings) =
            mapping.readings(&StringRecord::from(vec!["2026-01-01T00:00:00Z", "th-02", "1"])).unwrap();
        assert_eq!((readings.len(), readings[0].device_id.as_str()), (1, "th-02"));
        assert!(mapping.readings(&StringRecord::from(vec!["2026-01-01T00:00:00Z", "", "1"])).is_err());
    }
}
