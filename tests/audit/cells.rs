//! Any single change to any cell of the database is found, or is one of the few that docs/AUDIT.md
//! lists as not protected.

use std::path::Path;

use ledgermq::history::SqlReader;
use ledgermq::history::audit::{AuditOptions, AuditVerdict, audit};
use proptest::prelude::*;
use sqlx::{Connection as _, Row as _};

use crate::world::{World, location};

/// Table, columns, and which columns may be null.
const TABLES: [(&str, &[&str]); 6] = [
    (
        "messages",
        &[
            "node",
            "number",
            "client",
            "seq",
            "stream",
            "event_time",
            "header_hash",
            "header",
            "signature",
            "client_key",
            "body",
            "decision",
        ],
    ),
    (
        "items",
        &[
            "node",
            "number",
            "item",
            "device",
            "service",
            "num",
            "event_time",
            "integer_value",
            "float_value",
            "text_value",
            "boolean_value",
            "unit",
        ],
    ),
    ("fates", &["node", "number", "fate", "height", "items"]),
    ("digests", &["node", "number", "first", "count", "content", "row_hashes", "height"]),
    ("nodes", &["id", "node"]),
    ("ledgermq", &["name", "value"]),
];

/// What is put into a cell.
const CHANGES: [&str; 12] = [
    "CELL + 1",
    "CELL - 1",
    "CELL + 1000000",
    "-CELL",
    "NULL",
    "'x'",
    "x'00'",
    "CELL || 'x'",
    "CAST(CELL || x'07' AS BLOB)",
    "CAST(x'ff' || substr(CELL, 2) AS BLOB)",
    "2.5",
    "zeroblob(length(CELL))",
];

async fn connect(dir: &Path) -> sqlx::SqliteConnection {
    let path = dir.join("history/history.sqlite");
    sqlx::SqliteConnection::connect_with(&sqlx::sqlite::SqliteConnectOptions::new().filename(path))
        .await
        .unwrap()
}

/// Whether a change is one that an audit cannot find. docs/AUDIT.md has the same list.
fn is_unprotected(table: &str, column: &str, change: &str) -> bool {
    // A digest's height is noted after the digest: without it, it is not known to be final, which is no lie.
    table == "digests" && column == "height" && change == "NULL"
}

/// What becomes of an audit where the decision of row 13 or 14, which no digest covers, names policies that
/// the ledger does not have: it says that it needs a newer one.
fn needs_newer_ledger(table: &str, column: &str, row: i64) -> bool {
    table == "messages" && column == "decision" && row > 12
}

/// Changes one cell; false if the database took no change.
async fn change(dir: &Path, table: &str, column: &str, row: i64, change: &str) -> bool {
    let mut connection = connect(dir).await;
    // By place: rowids are not in all tables.
    let key = match table {
        "messages" | "fates" | "digests" => "node, number",
        "items" => "node, number, item",
        "nodes" => "id",
        _ => "name",
    };
    let sql = format!(
        "UPDATE OR IGNORE {table} SET {column} = {} WHERE ({key}) = (SELECT {key} FROM {table} ORDER BY {key} LIMIT 1 \
         OFFSET {row})",
        change.replace("CELL", column)
    );
    let done = sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await;
    connection.close().await.unwrap();
    done.is_ok_and(|done| done.rows_affected() > 0)
}

/// Everything that the database has, to tell whether a change changed anything.
async fn dump(dir: &Path) -> Vec<String> {
    let mut connection = connect(dir).await;
    let mut all = Vec::new();
    for (table, columns) in TABLES {
        let quoted: Vec<String> =
            columns.iter().map(|column| format!("typeof({column}) || hex({column})")).collect();
        let sql = format!("SELECT {} FROM {table} ORDER BY 1", quoted.join(" || ',' || "));
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
        all.extend(rows.iter().map(|row| row.get::<String, _>(0)));
    }
    connection.close().await.unwrap();
    all
}

struct Original {
    world: World,
    rows: Vec<String>,
}

async fn original() -> Original {
    let world = World::ordinary().await;
    world.tamper(0, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    let rows = dump(&world.nodes[0].dir).await;
    Original { world, rows }
}

impl Original {
    /// Does it to a copy, and says what the audit does not find.
    async fn unfound(&self, table: &str, column: &str, row: i64, what: &str) -> Option<String> {
        let copy = tempfile::tempdir().unwrap();
        let history = copy.path().join("history");
        std::fs::create_dir(&history).unwrap();
        std::fs::copy(self.world.nodes[0].dir.join("history/history.sqlite"), history.join("history.sqlite"))
            .unwrap();
        if !change(copy.path(), table, column, row, what).await || dump(copy.path()).await == self.rows {
            return None;
        }
        let told = format!("{table}.{column} of row {}: {what}", row + 1);
        let reader = match SqlReader::open(location(copy.path()), &self.world.network).await {
            Err(_) if table == "ledgermq" => return None,
            reader => reader.unwrap(),
        };
        let report = match audit(&self.world.ledger(), &reader, &AuditOptions::default()).await {
            Err(error) => return Some(format!("{told}: {error}")),
            Ok(report) => report,
        };
        let is_found = match report.verdict {
            AuditVerdict::Tampering => true,
            AuditVerdict::Unchecked => needs_newer_ledger(table, column, row + 1),
            AuditVerdict::Clean => is_unprotected(table, column, what),
        };
        (!is_found).then_some(told)
    }
}

#[tokio::test]
async fn each_column_of_each_table_is_protected_against_each_kind_of_change() {
    let original = original().await;
    let mut unfound = Vec::new();
    for (table, columns) in TABLES {
        for column in columns {
            for (at, what) in CHANGES.iter().enumerate() {
                // Rows under a digest, one after the other.
                let row = if matches!(table, "messages" | "fates" | "items") {
                    i64::try_from(at).unwrap()
                } else {
                    0
                };
                unfound.extend(original.unfound(table, column, row, what).await);
            }
        }
    }
    assert!(unfound.is_empty(), "{} were not found:\n{}", unfound.len(), unfound.join("\n"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 0, ..ProptestConfig::default() })]
    #[test]
    fn any_change_to_any_cell_is_found(
        cells in proptest::collection::vec((0..TABLES.len(), any::<prop::sample::Index>(), 0_i64..40, 0..CHANGES.len()), 40),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let original = original().await;
            for (table, column, row, what) in cells {
                let (table, columns) = TABLES[table];
                let unfound = original.unfound(table, columns[column.index(columns.len())], row, CHANGES[what]).await;
                prop_assert_eq!(unfound, None);
            }
            Ok(())
        })?;
    }
}
