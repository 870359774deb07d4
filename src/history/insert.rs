//! Inserts of many rows with few statements.
//!
//! Each statement is a way to the database and back. Rows go in groups of a few fixed sizes, so that
//! the database prepares each statement once.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use sqlx::any::AnyArguments;
use sqlx::error::BoxDynError;
use sqlx::{AnyConnection, Arguments as _, AssertSqlSafe, Connection as _, Row as _};

use super::error::NoNumber;
use super::open::{Undo, begin, undo_from};
use super::row::{HistoryRow, MessageKey, RowFate};
use super::schema::Dialect;
use crate::codec;
use crate::device::{Item, Value};
use crate::ledger::index_set::IndexSet;
use crate::types::Hash;

/// How many rows go together, the most that fit first.
const GROUPS: [usize; 4] = [128, 32, 8, 1];

const MESSAGES: Table = Table {
    into: "messages (node, number, client, seq, stream, event_time, header_hash, header, signature, client_key, \
           body, decision)",
    columns: 12,
    // A number that is taken is an error: the transaction is repeated with the next one.
    on_conflict: "",
};

const ITEMS: Table = Table {
    into: "items (node, number, item, device, service, num, event_time, integer_value, float_value, text_value, \
           boolean_value, unit)",
    columns: 12,
    on_conflict: NOTHING,
};

const FATES: Table =
    Table { into: "fates (node, number, fate, height, items)", columns: 5, on_conflict: NOTHING };

/// What is there stays. Items without a message, which somebody put there, keep no message out.
const NOTHING: &str = " ON CONFLICT DO NOTHING";

struct Table {
    into: &'static str,
    columns: usize,
    on_conflict: &'static str,
}

/// A number as databases have them: with a sign.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// `($1, $2), ($3, $4), …`, and `(?, ?), (?, ?), …` for SQLite, which would look for each numbered one
/// among all of them.
fn placeholders(dialect: Dialect, rows: usize, columns: usize, sql: &mut String) {
    let mut at = 0;
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            at += 1;
            let comma = if column == 0 { "" } else { ", " };
            sql.push_str(comma);
            placeholder(dialect, at, sql);
        }
        sql.push(')');
    }
}

fn placeholder(dialect: Dialect, at: usize, sql: &mut String) {
    match dialect {
        Dialect::Sqlite => sql.push('?'),
        Dialect::Postgres => {
            let _into_memory = write!(sql, "${at}");
        }
    }
}

/// Splits rows into groups of the fixed sizes.
fn groups<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = GROUPS.into_iter().find(|size| *size <= rows.len())?;
        let (group, rest) = rows.split_at(size);
        rows = rest;
        Some(group)
    })
}

async fn insert<T>(
    connection: &mut AnyConnection,
    dialect: Dialect,
    table: &Table,
    rows: &[T],
    bind: impl Fn(&T, &mut AnyArguments) -> Result<(), BoxDynError>,
) -> Result<usize, sqlx::Error> {
    let mut written = 0;
    for group in groups(rows) {
        let mut sql = format!("INSERT INTO {} VALUES ", table.into);
        placeholders(dialect, group.len(), table.columns, &mut sql);
        sql.push_str(table.on_conflict);
        let mut arguments = AnyArguments::default();
        for row in group {
            bind(row, &mut arguments).map_err(sqlx::Error::Encode)?;
        }
        let done = sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut *connection).await?;
        written += usize::try_from(done.rows_affected()).unwrap_or(usize::MAX);
    }
    Ok(written)
}

/// A trigger can leave rows out without an error.
fn left_out(table: &str) -> sqlx::Error {
    let what = format!(
        "rows of table {table} were not written, and no error was given: is there a trigger or a rule?"
    );
    sqlx::Error::Encode(what.into())
}

/// Fewer rows were written than were given. That is right if the others were there before: looks whether
/// each of these `numbers` has so many rows.
async fn check_all_there(
    connection: &mut AnyConnection,
    table: &str,
    node: i64,
    numbers: impl Iterator<Item = (i64, usize)>,
) -> Result<(), sqlx::Error> {
    for (number, rows) in numbers {
        let sql = format!("SELECT COUNT(*) FROM {table} WHERE node = $1 AND number = $2");
        let count =
            sqlx::query(AssertSqlSafe(sql)).bind(node).bind(number).fetch_one(&mut *connection).await?;
        let count: i64 = count.try_get(0)?;
        if usize::try_from(count).is_ok_and(|count| count < rows) {
            return Err(left_out(table));
        }
    }
    Ok(())
}

/// The numbers of those of `keys` that the node has rows of.
pub(super) async fn numbers_of<'a>(
    connection: &mut AnyConnection,
    dialect: Dialect,
    node: i64,
    keys: impl Iterator<Item = &'a MessageKey>,
) -> Result<HashMap<MessageKey, i64>, sqlx::Error> {
    let mut found = HashMap::new();
    let keys: Vec<_> = keys.collect();
    for group in groups(&keys) {
        let mut sql = String::from("WITH asked (client, seq) AS (VALUES ");
        placeholders(dialect, group.len(), 2, &mut sql);
        sql.push_str(
            ") SELECT m.client, m.seq, m.header_hash, m.number FROM asked CROSS JOIN messages m WHERE \
             m.client = asked.client AND m.seq = asked.seq AND m.node = ",
        );
        placeholder(dialect, 2 * group.len() + 1, &mut sql);
        let mut arguments = AnyArguments::default();
        for (client, seq, _) in group {
            arguments.add(client.as_str().to_owned()).map_err(sqlx::Error::Encode)?;
            arguments.add(signed(seq.0)).map_err(sqlx::Error::Encode)?;
        }
        arguments.add(node).map_err(sqlx::Error::Encode)?;
        let rows = sqlx::query_with(AssertSqlSafe(sql), arguments).fetch_all(&mut *connection).await?;
        for row in rows {
            let (client, seq): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            let (hash, number): (Vec<u8>, i64) = (row.try_get(2)?, row.try_get(3)?);
            let same = |key: &&&MessageKey| {
                key.0.as_str() == client && signed(key.1.0) == seq && key.2.as_bytes().as_slice() == hash
            };
            if let Some(key) = group.iter().find(same) {
                found.insert((*key).clone(), number);
            }
        }
    }
    Ok(found)
}

/// Writes the rows that are not there yet, after the last one and above `above`, in order. Says for each of `rows` which
/// number it was given; none if it was there.
pub(super) async fn append(
    connection: &mut AnyConnection,
    dialect: Dialect,
    node: i64,
    above: u64,
    rows: &[HistoryRow],
) -> Result<Vec<Option<u64>>, sqlx::Error> {
    let mut transaction = connection.begin_with(begin(dialect)).await?;
    let keys: Vec<MessageKey> = rows.iter().map(HistoryRow::key).collect();
    let there = numbers_of(&mut transaction, dialect, node, keys.iter()).await?;
    let last = sqlx::query("SELECT MAX(number) FROM messages WHERE node = $1").bind(node);
    let last: Option<i64> = last.fetch_one(&mut *transaction).await?.try_get(0)?;
    let mut next = last.unwrap_or(0).max(signed(above));
    let (mut new, mut numbers, mut seen) = (Vec::new(), Vec::with_capacity(rows.len()), HashSet::new());
    for (row, key) in rows.iter().zip(&keys) {
        let is_new = !there.contains_key(key) && seen.insert(key);
        if is_new {
            next = next.checked_add(1).ok_or_else(|| sqlx::Error::Encode(NoNumber { last: next }.into()))?;
            new.push((next, row));
        }
        numbers.push(is_new.then(|| u64::try_from(next).unwrap_or_default()));
    }
    let written = insert(&mut transaction, dialect, &MESSAGES, &new, |(number, row), to| {
        bind_message(node, *number, row, to)
    })
    .await?;
    if written < new.len() {
        return Err(left_out("messages"));
    }
    let items: Vec<(i64, i64, &Item)> = new
        .iter()
        .flat_map(|(number, row)| (0..).zip(row.message.items()).map(|(at, item)| (*number, at, item)))
        .collect();
    let written =
        insert(&mut transaction, dialect, &ITEMS, &items, |item, to| bind_item(node, item, to)).await?;
    if written < items.len() {
        let numbers = new.iter().map(|(number, row)| (*number, row.message.items().len()));
        check_all_there(&mut transaction, "items", node, numbers).await?;
    }
    transaction.commit().await?;
    Ok(numbers)
}

fn bind_message(node: i64, number: i64, row: &HistoryRow, to: &mut AnyArguments) -> Result<(), BoxDynError> {
    let signed_header = row.message.signed();
    let header = signed_header.header();
    to.add(node)?;
    to.add(number)?;
    to.add(header.client.as_str().to_owned())?;
    to.add(signed(header.seq.0))?;
    to.add(header.stream.as_str().to_owned())?;
    to.add(signed(header.event_time.0))?;
    to.add(signed_header.hash().as_bytes().to_vec())?;
    to.add(signed_header.bytes().to_vec())?;
    to.add(signed_header.signature().as_bytes().to_vec())?;
    to.add(signed_header.client_key().as_bytes().to_vec())?;
    to.add(row.message.body().to_vec())?;
    to.add(row.decision.clone())
}

fn bind_item(
    node: i64,
    (number, at, item): &(i64, i64, &Item),
    to: &mut AnyArguments,
) -> Result<(), BoxDynError> {
    to.add(node)?;
    to.add(*number)?;
    to.add(*at)?;
    to.add(item.device.to_string())?;
    to.add(item.service.to_string())?;
    to.add(i64::from(item.num))?;
    to.add(signed(item.event_time.0))?;
    let (mut integer, mut float, mut text, mut boolean) = (None, None::<f64>, None, None);
    match &item.value {
        Value::Integer(value) => integer = Some(*value),
        Value::Float(value) => float = Some(*value),
        Value::Text(value) => text = Some(value.clone()),
        Value::Boolean(value) => boolean = Some(i64::from(*value)),
    }
    to.add(integer)?;
    match float {
        Some(float) => to.add(float)?,
        // sqlx 0.9.0 gives PostgreSQL a NULL of f64 as one of f32, and the other way round; a parameter of
        // a prepared statement has one type.
        None => to.add(Option::<f32>::None)?,
    }
    to.add(text)?;
    to.add(boolean)?;
    to.add(item.unit.as_ref().map(ToString::to_string))
}

/// Notes what became of messages that have rows; of others nothing is noted.
pub(super) async fn put_fates(
    connection: &mut AnyConnection,
    dialect: Dialect,
    node: i64,
    fates: &[(MessageKey, RowFate)],
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with(begin(dialect)).await?;
    let numbers = numbers_of(&mut transaction, dialect, node, fates.iter().map(|(key, _)| key)).await?;
    let known: Vec<_> = fates.iter().filter_map(|(key, fate)| Some((*numbers.get(key)?, fate))).collect();
    let written = insert(&mut transaction, dialect, &FATES, &known, |(number, fate), to| {
        to.add(node)?;
        to.add(*number)?;
        let (fate, height, items) = match fate {
            RowFate::Written { height, items } => {
                let items: IndexSet = items.iter().copied().collect();
                ("written".to_owned(), Some(signed(height.0)), Some(codec::encode(&items)))
            }
            RowFate::Rejected(reason) => (reason.clone(), None, None),
        };
        to.add(fate)?;
        to.add(height)?;
        to.add(items)
    })
    .await?;
    if written < known.len() {
        let numbers = known.iter().map(|(number, _)| (*number, 1));
        check_all_there(&mut transaction, "fates", node, numbers).await?;
    }
    transaction.commit().await
}

/// A digest to be kept: its number, its first row and how many, its canonical bytes, the hashes of its rows.
pub(super) struct DigestRow<'a> {
    pub(super) number: u64,
    pub(super) first: u64,
    pub(super) content: Vec<u8>,
    pub(super) row_hashes: &'a [Hash],
}

pub(super) async fn put_digest(
    connection: &mut AnyConnection,
    node: i64,
    digest: DigestRow<'_>,
) -> Result<(), sqlx::Error> {
    let insert = sqlx::query(
        "INSERT INTO digests (node, number, first, count, content, row_hashes) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT DO NOTHING",
    );
    let hashes: Vec<u8> = digest.row_hashes.iter().flat_map(|hash| hash.0).collect();
    let bound = insert.bind(node).bind(signed(digest.number)).bind(signed(digest.first));
    let bound = bound.bind(signed(digest.row_hashes.len() as u64)).bind(digest.content.clone()).bind(hashes);
    if bound.execute(&mut *connection).await?.rows_affected() > 0 {
        return Ok(());
    }
    // It was there, if the answer to an earlier try was lost.
    let kept = sqlx::query("SELECT content FROM digests WHERE node = $1 AND number = $2");
    let kept = kept.bind(node).bind(signed(digest.number)).fetch_optional(connection).await?;
    let content: Option<Vec<u8>> = kept.map(|row| row.try_get(0)).transpose()?;
    if content == Some(digest.content) { Ok(()) } else { Err(left_out("digests")) }
}

/// Forgets the digests of the rows from `first` on, and gives these rows numbers above `above`. Numbers go
/// by way of negative ones, so that none meets another.
pub(super) async fn start_over(
    connection: &mut AnyConnection,
    dialect: Dialect,
    node: i64,
    first: u64,
    above: u64,
) -> Result<(), sqlx::Error> {
    // It may be all rows of a history that somebody put there.
    undo_from(connection, dialect, Undo::File).await?;
    let done = renumber(connection, dialect, node, first, above).await;
    let back = undo_from(connection, dialect, Undo::Memory).await;
    done.and(back)
}

async fn renumber(
    connection: &mut AnyConnection,
    dialect: Dialect,
    node: i64,
    first: u64,
    above: u64,
) -> Result<(), sqlx::Error> {
    let by = signed(above.saturating_add(1).saturating_sub(first));
    let mut transaction = connection.begin_with(begin(dialect)).await?;
    let last = sqlx::query("SELECT MAX(number) FROM messages WHERE node = $1 AND number >= $2");
    let last = last.bind(node).bind(signed(first)).fetch_one(&mut *transaction).await?;
    let last: Option<i64> = last.try_get(0)?;
    if let Some(last) = last.filter(|last| last.checked_add(by).is_none()) {
        return Err(sqlx::Error::Encode(NoNumber { last }.into()));
    }
    let forget = sqlx::query("DELETE FROM digests WHERE node = $1 AND first >= $2");
    forget.bind(node).bind(signed(first)).execute(&mut *transaction).await?;
    let tables: &[&str] = if by > 0 { &["messages", "items", "fates"] } else { &[] };
    for table in tables {
        let sql = format!("UPDATE {table} SET number = -(number + $1) WHERE node = $2 AND number >= $3");
        let away = sqlx::query(AssertSqlSafe(sql)).bind(by).bind(node).bind(signed(first));
        away.execute(&mut *transaction).await?;
        let sql = format!("UPDATE {table} SET number = -number WHERE node = $1 AND number < 0");
        sqlx::query(AssertSqlSafe(sql)).bind(node).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_every_row_once_in_order_and_have_few_sizes() {
        for count in [0_usize, 1, 7, 8, 9, 127, 128, 300, 1000] {
            let rows: Vec<usize> = (0..count).collect();
            assert_eq!(groups(&rows).flatten().copied().collect::<Vec<_>>(), rows);
            assert!(groups(&rows).all(|group| GROUPS.contains(&group.len())));
        }
    }

    #[test]
    fn placeholders_are_numbered_over_all_rows() {
        let mut sql = String::new();
        placeholders(Dialect::Postgres, 2, 3, &mut sql);
        assert_eq!(sql, "($1, $2, $3), ($4, $5, $6)");
        sql.clear();
        placeholders(Dialect::Sqlite, 2, 2, &mut sql);
        assert_eq!(sql, "(?, ?), (?, ?)");
    }
}
