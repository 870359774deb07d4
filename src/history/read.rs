//! Reading a history back, in order and page by page: what an audit needs, with SQL access alone.
//!
//! Nothing that is read is believed. A row whose columns cannot be read as what they are (SQLite
//! takes any value in any column) is told as such and does not end the reading.

use std::collections::BTreeMap;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use super::insert::signed;
use super::row::{StoredDigest, StoredFate, StoredItem, StoredRow};
use super::schema::Dialect;
use crate::device::Value;
use crate::types::{Hash, NodeId};

/// A row that cannot be read: its columns hold something of another kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableRow {
    /// Whose history it is in.
    pub node: NodeId,
    /// Its place in that history.
    pub number: u64,
    /// The columns of `messages`, or `items` or `fates`, that hold something of another kind; none if not even
    /// that can be told.
    pub columns: Vec<&'static str>,
    /// The client and its number of the message, as columns say, if those can be read.
    pub message: Option<(String, i64)>,
    /// What the database says.
    pub what: String,
}

/// A row, or that it cannot be read.
pub type ReadRow = Result<StoredRow, UnreadableRow>;

const COLUMNS: &str = "SELECT m.number, m.client, m.seq, m.stream, m.event_time, m.header_hash, m.header, \
                       m.signature, m.client_key, m.body, m.decision, f.fate, f.height, f.items \
                       FROM messages m LEFT JOIN fates f ON f.node = m.node AND f.number = m.number ";

/// The nodes that have rows in the database, with their numbers in it. What has no number has 0, as no row has.
pub(super) async fn nodes(
    connection: &mut AnyConnection,
    dialect: Dialect,
) -> Result<Vec<(i64, String)>, sqlx::Error> {
    // SQLite takes anything in any column, also what is no text.
    let nodes = match dialect {
        Dialect::Sqlite => {
            "SELECT CASE typeof(id) WHEN 'integer' THEN id ELSE 0 END, hex(node) FROM nodes ORDER BY id"
        }
        Dialect::Postgres => "SELECT id, encode(convert_to(node, 'UTF8'), 'hex') FROM nodes ORDER BY id",
    };
    let rows = sqlx::query(nodes).fetch_all(connection).await?;
    let name = |hex: String| String::from_utf8_lossy(&hex::decode(hex).unwrap_or_default()).into_owned();
    rows.iter().map(|row| Ok((row.try_get(0)?, name(row.try_get(1)?)))).collect()
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
        sqlx::query("SELECT number FROM messages WHERE node = $1 AND number > $2 AND number = CAST(number AS BIGINT) ORDER BY number LIMIT $3")
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
                let what = error.to_string();
                let (columns, message) = unreadable(connection, id, signed(number)).await.unwrap_or_default();
                rows.push(Err(UnreadableRow { node, number, columns, message, what }));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

/// The columns of one row that hold something of another kind, and which message it says it is.
async fn unreadable(
    connection: &mut AnyConnection,
    id: i64,
    number: i64,
) -> Result<(Vec<&'static str>, Option<(String, i64)>), sqlx::Error> {
    let sql = const_format(COLUMNS, "WHERE m.node = $1 AND m.number = $2");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).bind(number).fetch_one(&mut *connection).await?;
    let text = |at: usize| row.try_get::<String, _>(at).is_err();
    let number_is_bad = |at: usize| row.try_get::<i64, _>(at).is_err();
    let bytes = |at: usize| row.try_get::<Vec<u8>, _>(at).is_err();
    let fate = row.try_get::<Option<String>, _>(11).is_err()
        || row.try_get::<Option<i64>, _>(12).is_err()
        || row.try_get::<Option<Vec<u8>>, _>(13).is_err();
    let columns = [
        ("client", text(1)),
        ("seq", number_is_bad(2)),
        ("stream", text(3)),
        ("event_time", number_is_bad(4)),
        ("header_hash", bytes(5)),
        ("header", bytes(6)),
        ("signature", bytes(7)),
        ("client_key", bytes(8)),
        ("body", bytes(9)),
        ("decision", bytes(10)),
        ("fates", fate),
        ("items", items(connection, id, number - 1, number).await.is_err()),
    ];
    let columns = columns.into_iter().filter(|(_, is_bad)| *is_bad).map(|(name, _)| name).collect();
    Ok((columns, row.try_get(1).ok().zip(row.try_get(2).ok())))
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
    let sql = const_format(
        COLUMNS,
        "WHERE m.node = $1 AND m.number > $2 AND m.number = CAST(m.number AS BIGINT) ORDER BY m.number LIMIT $3",
    );
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
         boolean_value, unit FROM items WHERE node = $1 AND number > $2 AND number <= $3 AND \
         number = CAST(number AS BIGINT) ORDER BY number, item",
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
    let is_boolean = row.try_get::<Option<i64>, _>(9)?.is_none_or(|value| matches!(value, 0 | 1));
    let mut values = values.into_iter().flatten();
    let value = values.next().filter(|_| is_boolean);
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
         WHERE s.node = $1 AND s.number = CAST(s.number AS BIGINT) AND NOT EXISTS \
         (SELECT 1 FROM messages m WHERE m.node = s.node AND m.number = s.number) ORDER BY s.number LIMIT $2",
    );
    let rows = rows.bind(id).bind(i64::from(limit)).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or_default())).collect()
}

/// The rows of a node that say they are of this message, `limit` at most.
pub(super) async fn rows_of(
    connection: &mut AnyConnection,
    (id, node): (i64, NodeId),
    (client, seq): (&str, u64),
    limit: u32,
) -> Result<Vec<ReadRow>, sqlx::Error> {
    let numbers = sqlx::query(
        "SELECT number FROM messages WHERE client = $1 AND seq = $2 AND node = $3 AND number > 0 ORDER BY number \
         LIMIT $4",
    );
    let numbers = numbers.bind(client.to_owned()).bind(signed(seq)).bind(id).bind(i64::from(limit));
    let numbers = numbers.fetch_all(&mut *connection).await?;
    let mut found = Vec::with_capacity(numbers.len());
    for number in numbers {
        let Ok(number) = number.try_get::<i64, _>(0) else { continue };
        let number = u64::try_from(number).unwrap_or_default();
        found.extend(rows(connection, (id, node), number.saturating_sub(1), 1).await?);
    }
    Ok(found)
}

const DIGESTS: &str = "SELECT number, first, count, content, row_hashes, height FROM digests WHERE node = $1 AND \
                       number > $2 AND number = CAST(number AS BIGINT) ORDER BY number LIMIT $3";

/// The digests of a node above `after`, ascending by number, `limit` at most.
pub(super) async fn digests(
    connection: &mut AnyConnection,
    (id, node): (i64, NodeId),
    after: u64,
    limit: u32,
) -> Result<Vec<StoredDigest>, sqlx::Error> {
    let page = sqlx::query(DIGESTS).bind(id).bind(signed(after)).bind(i64::from(limit));
    match page.fetch_all(&mut *connection).await {
        Err(error) if is_decoding(&error) => {}
        page => return page?.iter().map(|row| stored_digest(node, row)).collect(),
    }
    // One of them cannot be read at all: which one?
    let numbers =
        sqlx::query("SELECT number FROM digests WHERE node = $1 AND number > $2 AND number = CAST(number AS BIGINT) ORDER BY number LIMIT $3")
            .bind(id)
            .bind(signed(after))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
    let mut digests = Vec::with_capacity(numbers.len());
    for number in numbers {
        let number: i64 = number.try_get(0)?;
        let one = sqlx::query(DIGESTS).bind(id).bind(number.saturating_sub(1)).bind(1_i64);
        match one.fetch_all(&mut *connection).await {
            Ok(rows) => {
                for row in &rows {
                    digests.push(stored_digest(node, row)?);
                }
            }
            Err(error) if is_decoding(&error) => {
                digests.push(unreadable_digest(node, u64::try_from(number).unwrap_or_default()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(digests)
}

fn unreadable_digest(node: NodeId, number: u64) -> StoredDigest {
    let (content, row_hashes) = (Vec::new(), Vec::new());
    StoredDigest { node, number, first: 0, count: 0, content, row_hashes, height: None, is_whole: false }
}

/// A digest; what of it is not of its kind is left empty. Without a number there would be no going on: that is
/// an error, and only in a table that nobody's program made.
fn stored_digest(node: NodeId, row: &AnyRow) -> Result<StoredDigest, sqlx::Error> {
    row.try_get::<i64, _>(0)?;
    let number = |at: usize| row.try_get::<i64, _>(at).ok().and_then(|number| u64::try_from(number).ok());
    let bytes = |at: usize| row.try_get::<Vec<u8>, _>(at).ok();
    let height = row.try_get::<Option<i64>, _>(5).ok();
    let height =
        height.and_then(|height| height.map_or(Some(None), |height| u64::try_from(height).ok().map(Some)));
    let (content, hashes) = (bytes(3), bytes(4));
    let is_whole = [number(0), number(1), number(2)].iter().all(Option::is_some)
        && content.is_some()
        && hashes.as_ref().is_some_and(|hashes| hashes.len().is_multiple_of(32))
        && height.is_some();
    let hashes = hashes.unwrap_or_default();
    let (hashes, _rest) = hashes.as_chunks::<32>();
    Ok(StoredDigest {
        node,
        number: number(0).unwrap_or_default(),
        first: number(1).unwrap_or_default(),
        count: number(2).unwrap_or_default(),
        content: content.unwrap_or_default(),
        row_hashes: hashes.iter().map(|hash| Hash(*hash)).collect(),
        height: height.flatten(),
        is_whole,
    })
}

/// What is of no node, or at no place that a row can have: looked for table by table.
pub(super) async fn oddities(
    connection: &mut AnyConnection,
    dialect: Dialect,
    limit: u32,
) -> Result<Vec<String>, sqlx::Error> {
    let (kinds, place) = match dialect {
        Dialect::Sqlite => (
            "typeof(t.node) <> 'integer' OR typeof(t.number) <> 'integer' OR ",
            // Any bytes, as hex where they are no number.
            "CASE typeof(COLUMN) WHEN 'integer' THEN CAST(COLUMN AS TEXT) ELSE typeof(COLUMN) || ' ' || hex(COLUMN) END",
        ),
        Dialect::Postgres => ("", "CAST(COLUMN AS TEXT)"),
    };
    let (node, number) = (place.replace("COLUMN", "t.node"), place.replace("COLUMN", "t.number"));
    let mut found = Vec::new();
    for table in ["messages", "items", "fates", "digests"] {
        let sql = format!(
            "SELECT DISTINCT {node}, {number} FROM {table} t WHERE {kinds} t.number < 1 OR \
             t.node NOT IN (SELECT id FROM nodes) LIMIT $1"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(i64::from(limit));
        for row in rows.fetch_all(&mut *connection).await? {
            let (node, number): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            found.push(format!(
                "table {table} has something at node {node}, number {number}, where no row can be"
            ));
        }
    }
    Ok(found)
}
