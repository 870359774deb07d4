//! Reading a history back, in order and page by page: what an audit needs, with SQL access alone.
//!
//! Nothing that is read is believed. A row whose columns cannot be read as what they are (SQLite
//! takes any value in any column) is told as such and does not end the reading.

use std::collections::BTreeMap;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use super::insert::signed;
use super::row::{StoredDigest, StoredFate, StoredItem, StoredRow};
use crate::device::Value;
use crate::types::{Hash, NodeId};

/// A row that cannot be read: its columns hold something of another kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableRow {
    /// Whose history it is in.
    pub node: NodeId,
    /// Its place in that history.
    pub number: u64,
    /// What the database says.
    pub what: String,
}

/// A row, or that it cannot be read.
pub type ReadRow = Result<StoredRow, UnreadableRow>;

const COLUMNS: &str = "SELECT m.number, m.client, m.seq, m.stream, m.event_time, m.header_hash, m.header, \
                       m.signature, m.client_key, m.body, m.decision, f.fate, f.height, f.items \
                       FROM messages m LEFT JOIN fates f ON f.node = m.node AND f.number = m.number ";

/// The nodes that have rows in the database, with their numbers in it.
pub(super) async fn nodes(connection: &mut AnyConnection) -> Result<Vec<(i64, String)>, sqlx::Error> {
    let rows = sqlx::query("SELECT id, node FROM nodes ORDER BY id").fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The rows of a node above `after`, ascending by number, `limit` at most.
pub(super) async fn rows(
    connection: &mut AnyConnection,
    (id, node): (i64, NodeId),
    after: u64,
    limit: u32,
) -> Result<Vec<ReadRow>, sqlx::Error> {
    match page(connection, (id, node), after, limit).await {
        Err(error) if is_decoding(&error) => {}
        page => return Ok(page?.into_iter().map(Ok).collect()),
    }
    // One of them cannot be read: which one?
    let numbers =
        sqlx::query("SELECT number FROM messages WHERE node = $1 AND number > $2 ORDER BY number LIMIT $3")
            .bind(id)
            .bind(signed(after))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
    let mut rows = Vec::with_capacity(numbers.len());
    for number in numbers {
        let number: i64 = number.try_get(0)?;
        let number = u64::try_from(number).unwrap_or_default();
        match page(connection, (id, node), number.saturating_sub(1), 1).await {
            Ok(page) => rows.extend(page.into_iter().map(Ok)),
            Err(error) if is_decoding(&error) => {
                rows.push(Err(UnreadableRow { node, number, what: error.to_string() }));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

const fn is_decoding(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::AnyDriverError(_)
    )
}

async fn page(
    connection: &mut AnyConnection,
    (id, node): (i64, NodeId),
    after: u64,
    limit: u32,
) -> Result<Vec<StoredRow>, sqlx::Error> {
    let sql = const_format(COLUMNS, "WHERE m.node = $1 AND m.number > $2 ORDER BY m.number LIMIT $3");
    let messages = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(id)
        .bind(signed(after))
        .bind(i64::from(limit))
        .fetch_all(&mut *connection)
        .await?;
    let Some(last) = messages.last() else { return Ok(Vec::new()) };
    let last: i64 = last.try_get(0)?;
    let mut items = items(connection, id, signed(after), last).await?;
    messages.iter().map(|row| stored_row(node, row, &mut items)).collect()
}

fn const_format(columns: &str, rest: &str) -> String {
    [columns, rest].concat()
}

async fn items(
    connection: &mut AnyConnection,
    id: i64,
    after: i64,
    last: i64,
) -> Result<BTreeMap<i64, Vec<StoredItem>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT number, item, device, service, num, event_time, integer_value, float_value, text_value, \
         boolean_value, unit FROM items WHERE node = $1 AND number > $2 AND number <= $3 ORDER BY number, item",
    );
    let rows = rows.bind(id).bind(after).bind(last).fetch_all(connection).await?;
    let mut items: BTreeMap<i64, Vec<StoredItem>> = BTreeMap::new();
    for row in rows {
        items.entry(row.try_get(0)?).or_default().push(stored_item(&row)?);
    }
    Ok(items)
}

fn stored_item(row: &AnyRow) -> Result<StoredItem, sqlx::Error> {
    let values = [
        row.try_get::<Option<i64>, _>(6)?.map(Value::Integer),
        row.try_get::<Option<f64>, _>(7)?.map(Value::Float),
        row.try_get::<Option<String>, _>(8)?.map(Value::Text),
        row.try_get::<Option<i64>, _>(9)?.map(|value| Value::Boolean(value != 0)),
    ];
    let mut values = values.into_iter().flatten();
    let value = values.next();
    Ok(StoredItem {
        item: row.try_get(1)?,
        device: row.try_get(2)?,
        service: row.try_get(3)?,
        num: row.try_get(4)?,
        event_time: row.try_get(5)?,
        value: if values.next().is_some() { None } else { value },
        unit: row.try_get(10)?,
    })
}

fn stored_row(
    node: NodeId,
    row: &AnyRow,
    items: &mut BTreeMap<i64, Vec<StoredItem>>,
) -> Result<StoredRow, sqlx::Error> {
    let number: i64 = row.try_get(0)?;
    let fate: Option<String> = row.try_get(11)?;
    let (height, written) = (row.try_get(12)?, row.try_get(13)?);
    Ok(StoredRow {
        node,
        number: u64::try_from(number).unwrap_or_default(),
        client: row.try_get(1)?,
        seq: row.try_get(2)?,
        stream: row.try_get(3)?,
        event_time: row.try_get(4)?,
        header_hash: row.try_get(5)?,
        header: row.try_get(6)?,
        signature: row.try_get(7)?,
        client_key: row.try_get(8)?,
        body: row.try_get(9)?,
        decision: row.try_get(10)?,
        items: items.remove(&number).unwrap_or_default(),
        fate: fate.map(|fate| StoredFate { fate, height, items: written }),
    })
}

/// The numbers of items and fates without a message: somebody put them there, or took the message.
pub(super) async fn strays(
    connection: &mut AnyConnection,
    id: i64,
    limit: u32,
) -> Result<Vec<u64>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT DISTINCT s.number FROM (SELECT node, number FROM items UNION SELECT node, number FROM fates) s \
         WHERE s.node = $1 AND NOT EXISTS \
         (SELECT 1 FROM messages m WHERE m.node = s.node AND m.number = s.number) ORDER BY s.number LIMIT $2",
    );
    let rows = rows.bind(id).bind(i64::from(limit)).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or_default())).collect()
}

/// The digests of a node above `after`, ascending by number, `limit` at most.
pub(super) async fn digests(
    connection: &mut AnyConnection,
    (id, node): (i64, NodeId),
    after: u64,
    limit: u32,
) -> Result<Vec<StoredDigest>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT number, first, content, row_hashes, height FROM digests WHERE node = $1 AND number > $2 \
         ORDER BY number LIMIT $3",
    );
    let rows = rows.bind(id).bind(signed(after)).bind(i64::from(limit)).fetch_all(connection).await?;
    rows.iter().map(|row| stored_digest(node, row)).collect()
}

fn stored_digest(node: NodeId, row: &AnyRow) -> Result<StoredDigest, sqlx::Error> {
    let number =
        |at: usize| Ok::<_, sqlx::Error>(u64::try_from(row.try_get::<i64, _>(at)?).unwrap_or_default());
    let hashes: Vec<u8> = row.try_get(3)?;
    let (hashes, _rest) = hashes.as_chunks::<32>();
    let height: Option<i64> = row.try_get(4)?;
    Ok(StoredDigest {
        node,
        number: number(0)?,
        first: number(1)?,
        content: row.try_get(2)?,
        row_hashes: hashes.iter().map(|hash| Hash(*hash)).collect(),
        height: height.and_then(|height| u64::try_from(height).ok()),
    })
}
