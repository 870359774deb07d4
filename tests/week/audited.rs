//! The audit of what a week left.

use std::path::{Path, PathBuf};

use ledgermq::history::audit::{
    AuditOptions, AuditReport, AuditVerdict, AuditedLedger, Finding, FindingKind, audit,
};
use ledgermq::history::{Location, SqlReader};
use ledgermq::ledger::CertifiedBlock;
use ledgermq::types::NodeId;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, Executor as _, Row as _};

use crate::node::history_location;
use crate::sites::Remains;

/// The ledger, from its blocks above those that it has.
pub fn follow(ledger: &mut AuditedLedger, blocks: &[CertifiedBlock]) {
    let known = usize::try_from(ledger.height().0).unwrap();
    for block in &blocks[known..] {
        ledger.add(block.block(), Some(block.certificate())).unwrap();
    }
}

/// Audits the history in a node's directory.
pub async fn audit_of(ledger: &AuditedLedger, dir: &Path, options: &AuditOptions) -> AuditReport {
    let reader = SqlReader::open(history_location(dir), &ledger.network()).await.unwrap();
    audit(ledger, &reader, options).await.unwrap()
}

/// Audits every history: nothing is found, and nothing is left unchecked but what is known to be lost.
pub async fn no_false_alarm(sites: &[(NodeId, PathBuf, bool)], ledger: &AuditedLedger) -> Vec<AuditReport> {
    let mut reports = Vec::new();
    for (node, dir, has_lost) in sites {
        let mut report = audit_of(ledger, dir, &AuditOptions::default()).await;
        let lost = report.nodes.first().map(|node| node.lost.clone()).unwrap_or_default();
        if *has_lost && !lost.is_empty() {
            assert_eq!(
                (report.findings, report.verdict),
                (Vec::new(), AuditVerdict::Unchecked),
                "{node} lost rows"
            );
            assert_eq!((lost.len(), lost[0].first), (1, 1), "{lost:?}");
            report =
                audit_of(ledger, dir, &AuditOptions { known_lost: lost, ..AuditOptions::default() }).await;
        }
        let first: Vec<_> = report.findings.iter().take(5).collect();
        assert_eq!(report.findings.len(), 0, "{node}: {first:?}");
        // One that was begun anew at the week's end may have no digest yet, and is not said to be clean.
        let is_new = report.rows > 0 && report.not_yet_proven == report.rows;
        let expected = if is_new { AuditVerdict::Unchecked } else { AuditVerdict::Clean };
        let why = &report.unchecked;
        assert_eq!((report.verdict, why.len()), (expected, usize::from(is_new)), "{node}: {why:?}");
        reports.push(report);
    }
    reports
}

/// Does something to a copy of a node's history with SQL, and audits that.
async fn tampered(ledger: &AuditedLedger, dir: &Path, sql: &str) -> AuditReport {
    let copy = tempfile::tempdir().unwrap();
    let (Location::Sqlite(from), Location::Sqlite(to)) =
        (history_location(dir), history_location(copy.path()))
    else {
        panic!("not a file")
    };
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    let text = |path: &PathBuf, suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    for suffix in ["", "-wal"] {
        if text(&from, suffix).exists() {
            std::fs::copy(text(&from, suffix), text(&to, suffix)).unwrap();
        }
    }
    let options = SqliteConnectOptions::new().filename(&to);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let changed = connection.execute(sqlx::AssertSqlSafe(sql.to_owned())).await.unwrap().rows_affected();
    assert!(changed > 0, "nothing was changed by: {sql}");
    connection.close().await.unwrap();
    audit_of(ledger, copy.path(), &AuditOptions::default()).await
}

/// A row that the ledger has a digest of, with two items or more, one of which is written; and the next one.
async fn a_covered_row(dir: &Path) -> (i64, i64) {
    let Location::Sqlite(path) = history_location(dir) else { panic!("not a file") };
    let mut connection =
        sqlx::SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&path)).await.unwrap();
    let row = sqlx::query(
        "SELECT f.number, f.node FROM fates f JOIN digests d ON d.node = f.node AND f.number > d.first \
         AND f.number + 2 < d.first + d.count WHERE d.height IS NOT NULL AND f.fate = 'written' AND d.number > 3 \
         AND (SELECT COUNT(*) FROM items i WHERE i.node = f.node AND i.number = f.number) > 1 LIMIT 1",
    );
    let row = row.fetch_one(&mut connection).await.unwrap();
    (row.get(0), row.get(1))
}

/// A handful of ways to tamper with a history that is otherwise as the week left it: each is found, and the
/// row is named.
pub async fn tampering_is_found(remains: &Remains) {
    let (ledger, dir) = (&remains.ledger, &remains.sites[0].1);
    let (row, node) = a_covered_row(dir).await;
    let next = row + 1;
    let of = format!("node = {node} AND number = {row}");
    let swap = format!(
        "UPDATE messages SET number = -number WHERE node = {node} AND number IN ({row}, {next}); \
         UPDATE messages SET number = CASE number WHEN -{row} THEN {next} ELSE {row} END WHERE number < 0"
    );
    let copied = "client, seq + 1000000, stream, event_time, header_hash, header, signature, client_key, body, decision";
    let ways: [(&str, String, FindingKind); 10] = [
        (
            "a value",
            format!("UPDATE items SET text_value = 'x' WHERE {of} AND item = 0"),
            FindingKind::Altered,
        ),
        (
            "a body",
            format!("UPDATE messages SET body = CAST(body || ' ' AS BLOB) WHERE {of}"),
            FindingKind::Altered,
        ),
        (
            "a time",
            format!("UPDATE messages SET event_time = event_time + 1 WHERE {of}"),
            FindingKind::Altered,
        ),
        (
            "a signature",
            format!("UPDATE messages SET signature = zeroblob(64) WHERE {of}"),
            FindingKind::Altered,
        ),
        (
            "a fate",
            format!("UPDATE fates SET fate = 'the client was revoked' WHERE {of}"),
            FindingKind::Altered,
        ),
        ("an item that is gone", format!("DELETE FROM items WHERE {of} AND item = 1"), FindingKind::Altered),
        ("a row that is gone", format!("DELETE FROM messages WHERE {of}"), FindingKind::Deleted),
        (
            "a row that was put there",
            format!(
                "INSERT INTO messages SELECT node, (SELECT MAX(number) + 1 FROM messages WHERE node = {node}), {copied} \
                 FROM messages WHERE {of}"
            ),
            FindingKind::Added,
        ),
        ("two rows that are swapped", swap, FindingKind::Reordered),
        (
            "a digest that is gone",
            format!("DELETE FROM digests WHERE node = {node} AND number = 2"),
            FindingKind::Digest,
        ),
    ];
    for (what, sql, kind) in ways {
        let report = tampered(ledger, dir, &sql).await;
        println!("{what}: {:?}", report.findings);
        assert_eq!(report.verdict, AuditVerdict::Tampering, "{what}");
        assert!(
            report.findings.len() <= 4,
            "{what}: what is not touched is not named: {:?}",
            report.findings
        );
        let found = report.findings.iter().any(|finding| finding.kind == kind);
        assert!(found, "{what}: {:?}", report.findings);
        let row = u64::try_from(row).unwrap_or_default();
        let is_named = |finding: &&Finding| {
            finding.row.is_some_and(|first| (first..=finding.last_row.unwrap_or(first)).contains(&row))
        };
        let has_row = !matches!(what, "a digest that is gone" | "a row that was put there");
        assert!(!has_row || report.findings.iter().any(|finding| is_named(&finding)), "{what}");
    }
}
