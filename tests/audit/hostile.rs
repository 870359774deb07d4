//! Histories that were made to keep an audit, or the node that writes them, busy, mistaken or down.

use std::os::unix::fs::symlink;
use std::time::Duration;

use ledgermq::codec;
use ledgermq::history::audit::{AuditOptions, AuditReport, AuditVerdict, FindingKind, Part, audit};
use ledgermq::history::{HistoryError, HistoryRow, HistoryStore as _, Location, SqlReader};
use ledgermq::types::MessageSeq;

use crate::world::{World, all_told, location};

/// Audits node 0 in a moment, or not at all.
async fn soon(world: &World) -> Result<AuditReport, HistoryError> {
    let reader = SqlReader::open(location(&world.nodes[0].dir), &world.network).await?;
    let (ledger, options) = (world.ledger(), AuditOptions::default());
    tokio::time::timeout(Duration::from_secs(60), audit(&ledger, &reader, &options)).await.expect("it ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_was_made_to_name_endless_messages_is_not_believed() {
    let mut world = World::ordinary().await;
    world.publish(0, 1, 8, &[("temperature", "40")]).await;
    let mut digest = world.digest(0).await;
    world.commit().await;
    // The root is as it was; what is altered leads to nothing that the ledger has.
    for (_, runs) in &mut digest.ranges {
        *runs = vec![(MessageSeq(1), MessageSeq(1 << 32))];
    }
    let content = hex::encode(codec::encode(&digest));
    world.tamper(0, &format!("UPDATE digests SET content = x'{content}' WHERE number = 3")).await;
    world.tamper(0, "DELETE FROM messages WHERE number = 13").await;
    let report = soon(&world).await.unwrap();
    let kinds: Vec<_> = report.findings.iter().map(|finding| (finding.kind, finding.row)).collect();
    assert_eq!(kinds, [(FindingKind::Digest, None), (FindingKind::Deleted, Some(13))], "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_digests_whose_numbers_are_texts_ends_the_audit() {
    let world = World::ordinary().await;
    let sql = "ALTER TABLE digests RENAME TO old; CREATE TABLE digests (node, number, first, count, content, \
               row_hashes, height); INSERT INTO digests SELECT node, CAST(number AS TEXT), first, count, content, \
               row_hashes, height FROM old";
    world.tamper(0, sql).await;
    let audited = soon(&world).await;
    assert!(!audited.is_ok_and(|report| report.verdict == AuditVerdict::Clean));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_a_table_of_a_node_is_refused_before_it_is_read() {
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT";
    let view = |table: &str, columns: &str| {
        format!("ALTER TABLE {table} RENAME TO real; CREATE VIEW {table} AS {endless} {columns} FROM n")
    };
    let generated = "CREATE TABLE copy AS SELECT * FROM fates; DROP TABLE fates; CREATE TABLE fates (node INTEGER, number \
                     INTEGER, fate TEXT, height INTEGER, items BLOB AS (zeroblob(1000000000))); INSERT INTO fates \
                     (node, number, fate, height) SELECT node, number, fate, height FROM copy";
    for (sql, words) in [
        (view("messages", "*"), "messages is a view and no table"),
        (view("nodes", "x AS id, 'a' AS node"), "nodes is a view"),
        (view("ledgermq", "'schema' AS name, '1' AS value"), "not a history of LedgerMQ"),
        (
            "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM fates; END".to_owned(),
            "items has a trigger, \"t\"",
        ),
        (generated.to_owned(), "table fates is not as a node makes it"),
        ("ALTER TABLE digests ADD COLUMN more TEXT".to_owned(), "table digests is not as a node makes it"),
        (
            "DROP TABLE fates; CREATE VIRTUAL TABLE fates USING fts5(node, number, fate, height, items)"
                .to_owned(),
            "a virtual table",
        ),
        ("DROP TABLE items".to_owned(), "table items is not there"),
    ] {
        let world = World::ordinary().await;
        world.tamper(0, &sql).await;
        let opened = SqlReader::open(location(&world.nodes[0].dir), &world.network);
        let opened = tokio::time::timeout(Duration::from_secs(20), opened).await.expect("it is not read");
        let refused = opened.map(drop).unwrap_err().to_string();
        assert!(refused.contains(words), "{sql}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_that_is_too_large_is_told_and_never_read() {
    let world = World::ordinary().await;
    let large = "zeroblob(40000000)";
    for sql in [
        format!("UPDATE messages SET decision = {large} WHERE number = 3"),
        format!("UPDATE messages SET seq = {large} WHERE number = 4"),
        "UPDATE items SET unit = zeroblob(210000000) WHERE number = 5 AND item = 0".to_owned(),
        format!("UPDATE fates SET items = {large} WHERE number = 6"),
        format!("UPDATE digests SET row_hashes = {large} WHERE number = 2"),
        format!("INSERT INTO nodes VALUES (7, {large})"),
    ] {
        world.tamper(0, &sql).await;
    }
    let report = soon(&world).await.unwrap();
    let told: Vec<_> =
        report.findings.iter().map(|finding| (finding.kind, finding.row, finding.what.clone())).collect();
    let altered = |row, part| (FindingKind::Altered, Some(row), vec![part]);
    for expected in
        [altered(3, Part::Decision), altered(4, Part::Seq), altered(5, Part::Items), altered(6, Part::Fate)]
    {
        assert!(told.contains(&expected), "{expected:?}: {report:#?}");
    }
    assert!(told.iter().any(|told| told.0 == FindingKind::Digest), "{report:#?}");
    assert!(report.findings.iter().all(|finding| finding.detail.len() < 400), "{report:#?}");
    assert!(
        report.findings.iter().any(|finding| finding.detail.contains("more than any message")),
        "{report:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_views_and_indexes_of_others_are_nobodys_business() {
    let world = World::ordinary().await;
    let sql = "CREATE INDEX items_by_device ON items (device, service, num, event_time); CREATE TABLE notes (a); \
               CREATE VIEW hot AS SELECT * FROM notes; ALTER TABLE fates RENAME TO away; \
               ALTER TABLE away RENAME TO fates; VACUUM";
    world.tamper(0, sql).await;
    assert_eq!(soon(&world).await.unwrap().verdict, AuditVerdict::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_behind_a_symbolic_link_is_read_with_its_write_ahead_log() {
    let world = World::ordinary().await;
    let history = world.nodes[0].dir.join("history/history.sqlite");
    assert!(history.with_file_name("history.sqlite-wal").exists(), "it is open");
    let link = world.dir.path().join("link.sqlite");
    symlink(&history, &link).unwrap();
    let reader = SqlReader::open(Location::Sqlite(link), &world.network).await.unwrap();
    let report = audit(&world.ledger(), &reader, &AuditOptions::default()).await.unwrap();
    assert_eq!((report.verdict, report.nodes[0].rows), (AuditVerdict::Clean, 14), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_the_highest_number_keeps_others_out_and_is_told() {
    let mut world = World::ordinary().await;
    for table in ["messages", "items", "fates"] {
        world.tamper(0, &format!("UPDATE {table} SET number = 9223372036854775807 WHERE number = 14")).await;
    }
    let message = world.message(1, 9, 9000, &[("temperature", "40")]);
    let decision = world.decide(0, &message).bytes();
    let row = HistoryRow { message, decision };
    let refused = world.nodes[0].store.append(0, std::slice::from_ref(&row)).await.unwrap_err();
    assert!(
        matches!(refused, HistoryError::NoNumber { last: i64::MAX, .. })
            && ["row 9223372036854775807", "take away", "copy"]
                .iter()
                .all(|word| refused.to_string().contains(word)),
        "{refused}"
    );
    // It is a row that its client signed, and no digest is to have it yet.
    let told = all_told(&world.audit(0).await);
    assert_eq!(told, [(FindingKind::Added, Some(9_223_372_036_854_775_807), vec![Part::Place])]);
    // Mended, all goes on.
    for table in ["messages", "items", "fates"] {
        world.tamper(0, &format!("UPDATE {table} SET number = 14 WHERE number > 14")).await;
    }
    assert_eq!(world.nodes[0].store.append(0, &[row]).await.unwrap(), [Some(15)]);
}
