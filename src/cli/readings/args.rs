//! The options that say what the columns of a CSV file are.

use std::path::Path;

use clap::Args;

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
    /// A cell that means "not measured" [default: blank, NaN, nan, NA, null]
    #[arg(long, value_name = "TEXT")]
    missing: Vec<String>,
}

impl ColumnArgs {
    /// The same for one file.
    pub fn options(&self, file: &Path) -> CsvOptions {
        let name = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        CsvOptions {
            time_column: self.time_column.clone(),
            time_unit: self.time_unit,
            assume_utc: self.assume_utc,
            device: self.device.clone().unwrap_or_else(name),
            device_column: self.device_column.clone(),
            items: self.item.clone(),
            missing: self.missing.clone(),
            delimiter: Some(self.delimiter),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delimiter_is_one_character_or_the_word_for_a_tab() {
        assert_eq!(delimiter(";"), Ok(b';'));
        assert_eq!((delimiter("tab"), delimiter("\t"), delimiter("\\t")), (Ok(b'\t'), Ok(b'\t'), Ok(b'\t')));
        for wrong in ["", ";;", "\"", "\n", "é"] {
            delimiter(wrong).unwrap_err();
        }
    }
}
