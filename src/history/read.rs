//! Reading a history back, in order and page by page: what an audit needs, with SQL access alone.
//!
//! Nothing that is read is believed. A row whose columns cannot be read as what they are (SQLite
//! takes any value in any column) is told as such and does not end the reading.

use std::collections::BTreeMap;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use super::audit::words;
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
    /// Why they cannot be read, for a person.
    pub what: String,
}

/// A row, or that it cannot be read.
pub type ReadRow = Result<StoredRow, UnreadableRow>;

const COLUMNS: &str = "SELECT m.number, m.client, m.seq, m.stream, m.event_time, m.header_hash, m.header, \
                       m.signature, m.client_key, m.body, m.decision, f.fate, f.height, f.items \
                       FROM messages m LEFT JOIN fates f ON f.node = m.node AND f.number = m.number ";

/// Nodes that are read: more than a network can have. With one more, the table is not a network's.
pub(super) const MAX_NODES: usize = 4096;

/// The nodes that have rows in the database, [`MAX_NODES`] and one more at most, with their numbers in it. What has no number has 0, as no row has.
pub(super) async fn nodes(
    connection: &mut AnyConnection,
    dialect: Dialect,
) -> Result<Vec<(i64, String)>, sqlx::Error> {
    // SQLite takes anything in any column, also what is no text.
    let nodes = match dialect {
        Dialect::Sqlite => {
            "SELECT CASE typeof(id) WHEN 'integer' THEN id ELSE 0 END, \
             CASE WHEN octet_length(node) > 256 THEN '' ELSE hex(node) END FROM nodes ORDER BY id LIMIT 4097"
        }
        Dialect::Postgres => {
            "SELECT id, CASE WHEN octet_length(node) > 256 THEN '' ELSE encode(convert_to(node, 'UTF8'), 'hex') END \
             FROM nodes ORDER BY id LIMIT 4097"
        }
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
    let limit = match weigh(connection, id, after, limit).await? {
        Weighed::Rows(limit) => limit,
        Weighed::TooLarge { number, columns, bytes } => {
            let number = u64::try_from(number).unwrap_or_default();
            let size = words::count(bytes, "byte", "bytes");
            let what = format!("the row has {size}, more than any message, and is not read");
            return Ok(vec![Err(UnreadableRow { node, number, columns, message: None, what })]);
        }
    };
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
                let what = "it holds something of another kind than belongs there".to_owned();
                let (columns, message) = unreadable(connection, id, signed(number)).await.unwrap_or_default();
                rows.push(Err(UnreadableRow { node, number, columns, message, what }));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

/// Bytes that the parts of a row may have: more than those of any message, whatever `mqtt.max_body_bytes` is. What
/// is larger was put there, and is not read.
const MAX_BODY_BYTES: i64 = 256 << 20;
const MAX_ITEMS_BYTES: i64 = 192 << 20;
const MAX_DECISION_BYTES: i64 = 16 << 20;
const MAX_CELL_BYTES: i64 = 1 << 20;

/// Bytes of rows that are read at once, unless one alone has more.
const MAX_PAGE_BYTES: i64 = 32 << 20;

/// Bytes of an item besides its texts.
const ITEM_BYTES: i64 = 256;

/// How many of the next rows can be read at once.
enum Weighed {
    /// So many.
    Rows(u32),
    /// Not even the first: these columns are too large.
    TooLarge { number: i64, columns: Vec<&'static str>, bytes: u64 },
}

/// Weighs the next rows without reading them: a cell may have a gigabyte, and a message any number of items.
async fn weigh(
    connection: &mut AnyConnection,
    id: i64,
    after: u64,
    limit: u32,
) -> Result<Weighed, sqlx::Error> {
    let weights = weights(connection);
    let sums: Vec<String> =
        weights.iter().map(|(_, _, weight)| format!("CAST({weight} AS BIGINT)")).collect();
    let sql = format!(
        "SELECT m.number, {} FROM messages m WHERE m.node = $1 AND m.number > $2 AND \
         m.number = CAST(m.number AS BIGINT) ORDER BY m.number LIMIT $3",
        sums.join(", ")
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).bind(signed(after)).bind(i64::from(limit));
    let (mut count, mut total) = (0, 0_i64);
    for row in rows.fetch_all(connection).await? {
        let (mut columns, mut bytes) = (Vec::new(), 0_i64);
        for (at, (column, most, _)) in weights.iter().enumerate() {
            let weight: i64 = row.try_get(at + 1)?;
            bytes = bytes.saturating_add(weight);
            if weight > *most {
                columns.push(*column);
            }
        }
        total = total.saturating_add(bytes);
        if count == 0 && !columns.is_empty() {
            return Ok(Weighed::TooLarge { number: row.try_get(0)?, columns, bytes: bytes.unsigned_abs() });
        }
        if !columns.is_empty() || (count > 0 && total > MAX_PAGE_BYTES) {
            break;
        }
        count += 1;
    }
    Ok(Weighed::Rows(count))
}

/// Each column of a message, its items and its fate: the bytes that it may have, and SQL of those that it has.
fn weights(connection: &AnyConnection) -> Vec<(&'static str, i64, String)> {
    // SQLite takes a text of any length where a number belongs.
    let any_kind = connection.backend_name() == "SQLite";
    let bytes = |columns: &[&str], of: &str| {
        let each: Vec<_> =
            columns.iter().map(|column| format!("COALESCE(octet_length({of}.{column}), 0)")).collect();
        each.join(" + ")
    };
    let mut columns = vec!["client", "stream", "header_hash", "header", "signature", "client_key"];
    let mut item = vec!["device", "service", "text_value", "unit"];
    let mut fate = vec!["fate", "items"];
    if any_kind {
        columns.extend(["seq", "event_time"]);
        item.extend(["item", "num", "event_time", "integer_value", "float_value", "boolean_value"]);
        fate.push("height");
    }
    let of = |table: &str, bytes: &str| {
        format!(
            "(SELECT COALESCE(SUM({bytes}), 0) FROM {table} t WHERE t.node = m.node AND t.number = m.number)"
        )
    };
    let mut weights = vec![
        ("body", MAX_BODY_BYTES, bytes(&["body"], "m")),
        ("decision", MAX_DECISION_BYTES, bytes(&["decision"], "m")),
        ("items", MAX_ITEMS_BYTES, of("items", &format!("{ITEM_BYTES} + {}", bytes(&item, "t")))),
        ("fates", MAX_CELL_BYTES, of("fates", &bytes(&fate, "t"))),
    ];
    weights.extend(columns.into_iter().map(|column| (column, MAX_CELL_BYTES, bytes(&[column], "m"))));
    weights
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

/// Bytes of a digest, or of the hashes that are kept of its rows: more than there are. What is larger is not read.
const MAX_DIGEST_BYTES: usize = 8 << 20;

fn digests_sql(connection: &AnyConnection) -> String {
    let bytes = |column: &str| {
        format!("CASE WHEN octet_length({column}) > {MAX_DIGEST_BYTES} THEN NULL ELSE {column} END")
    };
    let number = |column: &str| match connection.backend_name() {
        // A number of another kind is as bad as a long text, and short.
        "SQLite" => format!("CASE WHEN octet_length({column}) > 32 THEN 0.5 ELSE {column} END"),
        _ => column.to_owned(),
    };
    format!(
        "SELECT number, {}, {}, {}, {}, {} FROM digests WHERE node = $1 AND number > $2 AND \
         number = CAST(number AS BIGINT) ORDER BY number LIMIT $3",
        number("first"),
        number("count"),
        bytes("content"),
        bytes("row_hashes"),
        number("height")
    )
}

/// The digests of a node above `after`, ascending by number, `limit` at most.
pub(super) async fn digests(
    connection: &mut AnyConnection,
    (id, node): (i64, NodeId),
    after: u64,
    limit: u32,
) -> Result<Vec<StoredDigest>, sqlx::Error> {
    let sql = digests_sql(connection);
    let page =
        sqlx::query(sqlx::AssertSqlSafe(sql.clone())).bind(id).bind(signed(after)).bind(i64::from(limit));
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
        let one =
            sqlx::query(sqlx::AssertSqlSafe(sql.clone())).bind(id).bind(number.saturating_sub(1)).bind(1_i64);
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

/// The tables whose rows are a node's.
const TABLES: [&str; 4] = ["messages", "items", "fates", "digests"];

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
            "CASE typeof(COLUMN) WHEN 'integer' THEN CAST(COLUMN AS TEXT) ELSE typeof(COLUMN) || ' ' || \
             CASE WHEN octet_length(COLUMN) > 64 THEN 'too long to be shown' ELSE hex(COLUMN) END END",
        ),
        Dialect::Postgres => ("", "CAST(COLUMN AS TEXT)"),
    };
    let (node, number) = (place.replace("COLUMN", "t.node"), place.replace("COLUMN", "t.number"));
    let mut found = strangers(connection, dialect, limit).await?;
    for table in TABLES {
        let sql =
            format!("SELECT DISTINCT {node}, {number} FROM {table} t WHERE {kinds} t.number < 1 LIMIT $1");
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

/// Rows of nodes that table `nodes` does not have: one sentence for each of those.
async fn strangers(
    connection: &mut AnyConnection,
    dialect: Dialect,
    limit: u32,
) -> Result<Vec<String>, sqlx::Error> {
    let is_number = match dialect {
        Dialect::Sqlite => "typeof(t.node) = 'integer' AND ",
        Dialect::Postgres => "",
    };
    let mut nodes: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for table in TABLES {
        let sql = format!(
            "SELECT t.node, COUNT(*) FROM {table} t WHERE {is_number} t.node NOT IN (SELECT id FROM nodes) \
             GROUP BY t.node ORDER BY t.node LIMIT $1"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(i64::from(limit));
        for row in rows.fetch_all(&mut *connection).await? {
            let (node, rows): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            let rows = words::count(u64::try_from(rows).unwrap_or_default(), "row", "rows");
            let of = nodes.entry(node).or_default();
            match (table, of.is_empty()) {
                ("messages", _) => of.push(rows),
                (_, true) => of.push(format!("{rows} of table {table}")),
                // Those of its messages.
                (_, false) => {}
            }
        }
    }
    let told = |(node, rows): (i64, Vec<String>)| {
        let rows = rows.concat();
        let stand = if rows.starts_with("1 ") { "stands" } else { "stand" };
        format!("table nodes has no node {node}; {rows} {stand} under it")
    };
    Ok(nodes.into_iter().map(told).take(limit as usize).collect())
}
