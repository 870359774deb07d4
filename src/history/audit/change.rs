//! What a row says and what it should say: both values of each column that is not as it was.
//!
//! The signed header names body and items and repeats the columns, so that for most of them both values are known.

use super::report::Part;
use super::words;
use crate::crypto::blake3_plain;
use crate::device::{Header, Item, Value};
use crate::history::row::{StoredItem, StoredRow};

/// Changes of one row that are told.
const TOLD: usize = 4;

/// One value that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) part: Part,
    /// Which item, if it is of one.
    pub(super) item: Option<u32>,
    /// Both values, for a person.
    pub(super) text: String,
}

impl Change {
    pub(super) fn of(part: Part, text: impl Into<String>) -> Self {
        Self { part, item: None, text: text.into() }
    }

    fn of_column(part: Part, (table, signed): (&str, &str)) -> Self {
        Self::of(part, format!("{part}: table {table}, signed {signed}"))
    }

    fn of_item(index: usize, text: &str) -> Self {
        Self { part: Part::Items, item: u32::try_from(index).ok(), text: format!("item {index}, {text}") }
    }
}

/// Says of all of them what there is room for.
pub(super) fn told(changes: &[&Change]) -> String {
    let shown: Vec<&str> = changes.iter().take(TOLD).map(|change| change.text.as_str()).collect();
    match changes.len().saturating_sub(TOLD) {
        0 => shown.join("; "),
        more => format!("{}; and {} more", shown.join("; "), words::number(more as u64)),
    }
}

/// The columns that repeat the header.
pub(super) fn of_columns(row: &StoredRow, header: &Header) -> Vec<Change> {
    let number = |column: i64, value: u64| u64::try_from(column) == Ok(value);
    let hash = Header::hash_of(&row.header);
    let texts = |table: &str, signed: &str| (words::text(table), words::text(signed));
    let numbers = |table: i64, signed: u64| (table.to_string(), signed.to_string());
    let columns = [
        (
            Part::HeaderHash,
            row.header_hash == hash.as_bytes(),
            (words::bytes(&row.header_hash), words::bytes(hash.as_bytes())),
        ),
        (Part::Client, row.client == header.client.as_str(), texts(&row.client, header.client.as_str())),
        (Part::Seq, number(row.seq, header.seq.0), numbers(row.seq, header.seq.0)),
        (Part::Stream, row.stream == header.stream.as_str(), texts(&row.stream, header.stream.as_str())),
        (
            Part::EventTime,
            number(row.event_time, header.event_time.0),
            numbers(row.event_time, header.event_time.0),
        ),
    ];
    let changed = columns.into_iter().filter(|(_, fits, _)| !fits);
    changed.map(|(part, _, (table, signed))| Change::of_column(part, (&table, &signed))).collect()
}

/// A body that is not the one that the header names.
pub(super) fn of_body(row: &StoredRow, header: &Header) -> Change {
    let hash = blake3_plain(&row.body);
    if hash == header.body_hash {
        return Change::of(Part::Body, "body: it is as signed, and no body that a header names so");
    }
    let size = words::count(row.body.len() as u64, "byte", "bytes");
    let text = format!(
        "body: table {size} with hash {}, signed a body with hash {}",
        hash.short(),
        header.body_hash.short()
    );
    Change::of(Part::Body, text)
}

/// Rows of table `items` that are not as the body says.
pub(super) fn of_items(stored: &[StoredItem], signed: &[Item]) -> Vec<Change> {
    let mut changes = Vec::new();
    let of = |index: usize| stored.iter().find(|stored| usize::try_from(stored.item) == Ok(index));
    for (index, item) in signed.iter().enumerate() {
        match of(index) {
            Some(stored) => of_item(index, stored, item, &mut changes),
            None => changes.push(Change::of_item(
                index,
                &format!("{}: table nothing, signed {}", item.service, words::value(&item.value)),
            )),
        }
    }
    for stored in stored
        .iter()
        .filter(|stored| usize::try_from(stored.item).is_ok_and(|at| at >= signed.len()) || stored.item < 0)
    {
        let value = table_value(stored.value.as_ref());
        let text = format!("item {}: table {value}, and the message has no such item", stored.item);
        changes.push(Change { part: Part::Items, item: u32::try_from(stored.item).ok(), text });
    }
    changes
}

fn of_item(index: usize, stored: &StoredItem, item: &Item, changes: &mut Vec<Change>) {
    let text = |text: &str| words::text(text);
    let unit = |unit: Option<&str>| unit.map_or_else(|| "nothing".to_owned(), words::text);
    let value = (table_value(stored.value.as_ref()), words::value(&item.value));
    let columns = [
        ("", stored.value.as_ref() == Some(&item.value), value),
        (", device", stored.device == item.device, (text(&stored.device), text(&item.device))),
        (", service", stored.service == item.service, (text(&stored.service), text(&item.service))),
        (", num", stored.num == i64::from(item.num), (stored.num.to_string(), item.num.to_string())),
        (
            ", event_time",
            u64::try_from(stored.event_time) == Ok(item.event_time.0),
            (stored.event_time.to_string(), item.event_time.0.to_string()),
        ),
        (
            ", unit",
            stored.unit.as_deref() == item.unit.as_deref(),
            (unit(stored.unit.as_deref()), unit(item.unit.as_deref())),
        ),
    ];
    for (column, _, (table, signed)) in columns.into_iter().filter(|(_, fits, _)| !fits) {
        changes.push(Change::of_item(
            index,
            &format!("{}{column}: table {table}, signed {signed}", item.service),
        ));
    }
}

fn table_value(value: Option<&Value>) -> String {
    value.map_or_else(|| "no value, or several".to_owned(), words::value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    fn item(value: Value) -> Item {
        let (device, service, unit) = ("th-01".into(), "temperature".into(), None);
        let client = crate::types::ClientId::new("devices/c1").unwrap();
        Item { client, device, service, num: 1, event_time: Timestamp(5), value, unit }
    }

    fn stored(item: i64, value: Value) -> StoredItem {
        let (device, service, unit) = ("th-01".to_owned(), "temperature".to_owned(), None);
        StoredItem { item, device, service, num: 1, event_time: 5, value: Some(value), unit }
    }

    #[test]
    fn an_item_is_told_with_both_values() {
        let changes = of_items(&[stored(0, Value::Float(39.6))], &[item(Value::Float(35.6))]);
        assert_eq!(changes[0].text, "item 0, temperature: table 39.6, signed 35.6");
        assert_eq!((changes.len(), changes[0].item), (1, Some(0)));
    }

    #[test]
    fn items_that_are_gone_or_too_many_are_told_with_their_index() {
        let gone = of_items(&[stored(9, Value::Integer(1))], &[item(Value::Text("on".into()))]);
        let texts: Vec<_> = gone.iter().map(|change| change.text.as_str()).collect();
        let expected = [
            "item 0, temperature: table nothing, signed \"on\"",
            "item 9: table 1, and the message has no such item",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn many_changes_are_told_by_their_number() {
        let changes: Vec<_> = (0..9).map(|at| Change::of_item(at, "x")).collect();
        assert!(told(&changes.iter().collect::<Vec<_>>()).ends_with("; and 5 more"));
    }
}
