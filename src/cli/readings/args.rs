//! The options that say what the columns of a CSV file are.

use std::path::Path;

use clap::Args;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

use super::{CsvOptions, ItemSpec, TimeUnit};

/// What the columns of a CSV file are
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "CSV")]
pub struct ColumnArgs {
    /// The time column [default: time, timestamp, eventTime, datetime or date]
    #[arg(long, value_name = "COLUMN")]
    time_column: Option<String>,
    /// What a whole number in the time column counts since 1970 [default: ms, from 1973 on]
    #[arg(long, value_enum)]
    time_unit: Option<TimeUnit>,
    /// Take times without a zone as UTC
    #[arg(long)]
    assume_utc: bool,
    /// Take times without a zone as local times there: Europe/Berlin
    #[arg(long, value_name = "NAME", conflicts_with = "assume_utc", value_parser = zone)]
    time_zone: Option<TimeZone>,
    /// How times are written, if not as RFC 3339: '%d.%m.%Y %H:%M'
    #[arg(long, value_name = "FORMAT", conflicts_with = "time_unit", value_parser = format)]
    time_format: Option<String>,
    /// deviceId of all items [default: the file's name without its ending]
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// The column that holds deviceId
    #[arg(long, value_name = "COLUMN", conflicts_with = "device")]
    device_column: Option<String>,
    /// A column that becomes a data item: COLUMN[=SERVICE[:NUM[:UNIT]]]
    #[arg(long, value_name = "ITEM")]
    item: Vec<ItemSpec>,
    /// What stands between two cells: one character, or tab
    #[arg(long, value_name = "CHAR", default_value = ",", value_parser = delimiter)]
    delimiter: u8,
    /// Read 21,5 and 1.021,5 as numbers
    #[arg(long)]
    decimal_comma: bool,
    /// A cell that means "not measured", besides blank, NaN, nan, NA and null; give several
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    missing: Vec<String>,
}

impl ColumnArgs {
    /// The same for one file.
    pub fn options(&self, file: &Path) -> CsvOptions {
        let name = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        CsvOptions {
            time_column: self.time_column.clone(),
            time_unit: self.time_unit,
            zone: if self.assume_utc { Some(TimeZone::UTC) } else { self.time_zone.clone() },
            time_format: self.time_format.clone(),
            device: self.device.clone().unwrap_or_else(name),
            device_column: self.device_column.clone(),
            items: self.item.clone(),
            missing: self.missing.clone(),
            delimiter: Some(self.delimiter),
            decimal_comma: self.decimal_comma,
            msg: None,
        }
    }
}

/// Reads what stands between cells.
fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [one] if (one.is_ascii_graphic() || matches!(one, b' ' | b'\t')) && *one != b'"' => Ok(*one),
        _ => Err("give one character, such as ';', or tab".into()),
    }
}

/// Reads the name of a time zone.
fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| "give a name of the IANA database, such as Europe/Berlin or UTC".into())
}

/// A format is one that can read what it writes, and has a date and a time of day.
fn format(text: &str) -> Result<String, String> {
    let time = jiff::civil::date(2026, 12, 31).at(23, 59, 0, 0);
    let read = strtime::format(text, time).and_then(|written| strtime::parse(text, written)?.to_datetime());
    let is_exact = read.is_ok_and(|read| read.date() == time.date() && read.hour() == time.hour());
    if is_exact || read_with_zone(text) {
        Ok(text.to_owned())
    } else {
        Err("give day and time as strptime does, such as '%d.%m.%Y %H:%M:%S' or '%m/%d/%Y %I:%M %p'".into())
    }
}

/// Whether the format has an offset or a zone.
fn read_with_zone(text: &str) -> bool {
    let time = jiff::Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    strtime::format(text, &time).and_then(|written| strtime::parse(text, written)?.to_timestamp()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_have_names_and_formats_a_day_and_a_time() {
        assert_eq!(zone("Europe/Berlin").unwrap().iana_name(), Some("Europe/Berlin"));
        for wrong in ["", "Berlin", "+01:00", "MESZ"] {
            assert!(zone(wrong).unwrap_err().contains("Europe/Berlin"), "{wrong}");
        }
        for good in ["%d.%m.%Y %H:%M", "%d.%m.%y %H:%M:%S", "%m/%d/%Y %I:%M %p", "%Y%m%d%H%M%S%z"] {
            assert_eq!(format(good), Ok(good.to_owned()));
        }
        for wrong in ["", "noon", "%d.%m.%Y", "%H:%M", "%Q", "%d.%m. %H:%M"] {
            assert!(format(wrong).unwrap_err().contains("strptime"), "{wrong}");
        }
    }

    #[test]
    fn a_delimiter_is_one_character_or_the_word_for_a_tab() {
        assert_eq!(delimiter(";"), Ok(b';'));
        assert_eq!((delimiter("tab"), delimiter("\t"), delimiter("\\t")), (Ok(b'\t'), Ok(b'\t'), Ok(b'\t')));
        for wrong in ["", ";;", "\"", "\n", "é"] {
            delimiter(wrong).unwrap_err();
        }
    }
}
