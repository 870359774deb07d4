//! What somebody can do who has a node's history database: alter, delete and add rows, with nothing
//! but SQL.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, Row as _, SqliteConnection};

/// How long the node's own writes may keep us waiting.
const BUSY: Duration = Duration::from_secs(10);

/// By how much a temperature is altered.
const WARMER: f64 = 4.0;

/// What was done to a history.
#[derive(Debug, Clone)]
pub(super) struct Tampered {
    /// The row in which a temperature was altered.
    pub(super) altered: u64,
    /// What it was, and what it is now.
    pub(super) temperature: (f64, f64),
    /// The row that was deleted.
    pub(super) deleted: u64,
    /// The row that was added.
    pub(super) added: u64,
}

/// How far a node's digests go, as its own database says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coverage {
    /// The last row.
    pub(super) rows: u64,
    /// The last row that has a digest on the ledger.
    pub(super) covered: u64,
}

async fn open(path: &Path) -> anyhow::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY);
    SqliteConnection::connect_with(&options).await.with_context(|| format!("cannot open {}", path.display()))
}

/// Asks a history how far its digests go.
pub(super) async fn coverage(path: &Path) -> anyhow::Result<Coverage> {
    let mut history = open(path).await?;
    let row = sqlx::query(
        "SELECT (SELECT COALESCE(MAX(number), 0) FROM messages), \
         (SELECT COALESCE(MAX(first + count - 1), 0) FROM digests WHERE height IS NOT NULL)",
    )
    .fetch_one(&mut history)
    .await?;
    let number = |at: usize| Ok::<_, anyhow::Error>(u64::try_from(row.try_get::<i64, _>(at)?)?);
    let coverage = Coverage { rows: number(0)?, covered: number(1)? };
    history.close().await?;
    Ok(coverage)
}

/// Alters the highest temperature in a history, deletes the row in its middle, and adds one that nobody
/// measured.
pub(super) async fn tamper(path: &Path) -> anyhow::Result<Tampered> {
    let mut history = open(path).await?;
    let mut change = history.begin().await?;
    let hottest = sqlx::query(
        "SELECT number, float_value FROM items WHERE service = 'temperature' AND float_value IS NOT NULL \
         ORDER BY float_value DESC, number LIMIT 1",
    );
    let hottest = hottest.fetch_one(&mut *change).await.context("the history has no temperature")?;
    let (altered, was): (i64, f64) = (hottest.try_get(0)?, hottest.try_get(1)?);
    let is = was + WARMER;
    let update = "UPDATE items SET float_value = $1 WHERE number = $2 AND service = 'temperature'";
    sqlx::query(update).bind(is).bind(altered).execute(&mut *change).await?;

    let middle = "SELECT number FROM messages WHERE number <> $1 ORDER BY number LIMIT 1 \
                  OFFSET (SELECT (COUNT(*) - 1) / 2 FROM messages)";
    let deleted: i64 = sqlx::query(middle).bind(altered).fetch_one(&mut *change).await?.try_get(0)?;
    for delete in [
        "DELETE FROM items WHERE number = $1",
        "DELETE FROM fates WHERE number = $1",
        "DELETE FROM messages WHERE number = $1",
    ] {
        sqlx::query(delete).bind(deleted).execute(&mut *change).await?;
    }

    let added: i64 =
        sqlx::query("SELECT MAX(number) + 1 FROM messages").fetch_one(&mut *change).await?.try_get(0)?;
    for insert in [
        "INSERT INTO messages SELECT node, $1, client, seq + 1000000, stream, event_time + 60000, \
         randomblob(32), header, signature, client_key, body, decision FROM messages WHERE number = $2",
        "INSERT INTO items SELECT node, $1, item, device, service, num, event_time + 60000, integer_value, \
         float_value, text_value, boolean_value, unit FROM items WHERE number = $2",
    ] {
        let inserted = sqlx::query(insert).bind(added).bind(altered).execute(&mut *change).await?;
        ensure!(inserted.rows_affected() > 0, "no row was added");
    }
    change.commit().await?;
    history.close().await?;
    let [altered, deleted, added] = [altered, deleted, added].map(i64::unsigned_abs);
    Ok(Tampered { altered, temperature: (was, is), deleted, added })
}
