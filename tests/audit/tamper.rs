//! Each thing that somebody with SQL can do to a history is found, and named with row and kind.

use ledgermq::history::audit::{AuditVerdict, FindingKind, Part};

use crate::world::{World, all_told};

/// Does it to row 5 (message 3 of client 1, covered by digest 1) of a history and tells what is found.
async fn found(sql: &str) -> Vec<(FindingKind, Option<u64>, Vec<Part>)> {
    let world = World::ordinary().await;
    assert!(world.tamper(0, sql).await > 0, "{sql} changed nothing");
    let report = world.audit(0).await;
    assert_eq!(report.verdict, AuditVerdict::Tampering, "{sql}: {report:#?}");
    all_told(&report)
}

async fn altered(assignment: &str, part: Part) {
    let sql = format!("UPDATE messages SET {assignment} WHERE number = 5");
    assert_eq!(found(&sql).await, [(FindingKind::Altered, Some(5), vec![part])], "{sql}");
}

#[tokio::test]
async fn each_column_of_a_message_is_found_when_it_is_altered() {
    altered("client = 'devices/c2'", Part::Client).await;
    altered("seq = 77", Part::Seq).await;
    altered("stream = 'other'", Part::Stream).await;
    altered("event_time = event_time + 1", Part::EventTime).await;
    altered("header_hash = zeroblob(32)", Part::HeaderHash).await;
    altered("header = (SELECT header FROM messages WHERE number = 6)", Part::Header).await;
    altered("header = zeroblob(9)", Part::Header).await;
    altered("signature = zeroblob(64)", Part::Signature).await;
    altered("signature = x'00'", Part::Signature).await;
    altered("client_key = (SELECT client_key FROM messages WHERE number = 6)", Part::ClientKey).await;
    altered("client_key = zeroblob(32)", Part::ClientKey).await;
    altered("body = body || x'20'", Part::Body).await;
    altered("body = CAST(replace(CAST(body AS TEXT), '21', '22') AS BLOB)", Part::Body).await;
    altered("decision = (SELECT decision FROM messages WHERE number = 7)", Part::Decision).await;
    altered("decision = x'00'", Part::Decision).await;
    altered("body = 7", Part::Unreadable).await;
}
