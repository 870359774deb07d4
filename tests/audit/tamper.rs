//! Each thing that somebody with SQL can do to a history is found, and named with row and kind.
//!
//! `World::ordinary` has rows 1 to 6 under digest 1, 7 to 12 under digest 2, and 13 and 14 under none. Odd rows
//! are of client 1 (a temperature, a noise), even ones of client 2 (a temperature, a boolean, a text).

use ledgermq::history::audit::{AuditReport, AuditVerdict, FindingKind, Part};

use crate::world::{World, all_told, client};

type Told = Vec<(FindingKind, Option<u64>, Vec<Part>)>;

/// Does it to a history, and gives what is found.
async fn report(sql: &str) -> AuditReport {
    let world = World::ordinary().await;
    world.tamper(0, sql).await;
    let report = world.audit(0).await;
    assert_eq!(report.verdict, AuditVerdict::Tampering, "{sql}: {report:#?}");
    report
}

async fn found(sql: &str) -> Told {
    all_told(&report(sql).await)
}

fn altered(row: u64, part: Part) -> Told {
    vec![(FindingKind::Altered, Some(row), vec![part])]
}

#[tokio::test]
async fn each_column_of_a_message_is_named_when_it_is_altered() {
    let message = [
        ("client = 'devices/c2'", Part::Client),
        ("seq = 77", Part::Seq),
        ("stream = 'other'", Part::Stream),
        ("event_time = event_time + 1", Part::EventTime),
        ("header_hash = zeroblob(32)", Part::HeaderHash),
        ("header = (SELECT header FROM messages WHERE number = 6)", Part::Header),
        ("header = zeroblob(9)", Part::Header),
        ("signature = zeroblob(64)", Part::Signature),
        ("signature = x'00'", Part::Signature),
        ("client_key = (SELECT client_key FROM messages WHERE number = 6)", Part::ClientKey),
        ("client_key = zeroblob(32)", Part::ClientKey),
        ("body = body || x'20'", Part::Body),
        ("body = CAST(replace(CAST(body AS TEXT), '21', '22') AS BLOB)", Part::Body),
        ("decision = (SELECT decision FROM messages WHERE number = 7)", Part::Decision),
        ("decision = x'00'", Part::Decision),
        ("body = 7", Part::Body),
        ("client = x'ff'", Part::Client),
        ("event_time = 'soon'", Part::EventTime),
        ("stream = CAST(x'ff' AS TEXT)", Part::Unreadable),
    ];
    for (assignment, part) in message {
        let sql = format!("UPDATE messages SET {assignment} WHERE number = 5");
        assert_eq!(found(&sql).await, altered(5, part), "{sql}");
    }
}

#[tokio::test]
async fn an_altered_row_without_a_digest_is_named_by_its_signature() {
    for (assignment, part) in [
        ("header = (SELECT header FROM messages WHERE number = 14)", Part::Header),
        ("signature = zeroblob(64)", Part::Signature),
        ("body = zeroblob(7)", Part::Body),
        ("client_key = (SELECT client_key FROM messages WHERE number = 14)", Part::ClientKey),
    ] {
        let sql = format!("UPDATE messages SET {assignment} WHERE number = 13");
        assert_eq!(found(&sql).await, altered(13, part), "{sql}");
    }
}

#[tokio::test]
async fn each_column_of_an_item_is_named_when_it_is_altered() {
    for assignment in [
        "device = 'th-02'",
        "service = 'noise'",
        "num = 9",
        "event_time = 1",
        "integer_value = 99",
        "float_value = 1.5",
        "text_value = ''",
        "boolean_value = 0",
        "unit = NULL",
        "unit = 'K'",
        "item = 7",
        "number = 6, item = 9",
        "integer_value = NULL, float_value = 21.0",
        "integer_value = 'high'",
    ] {
        let sql = format!("UPDATE items SET {assignment} WHERE number = 5 AND item = 0");
        let found = found(&sql).await;
        assert!(found.contains(&(FindingKind::Altered, Some(5), vec![Part::Items])), "{sql}: {found:?}");
    }
    assert_eq!(
        found("UPDATE items SET boolean_value = 7 WHERE number = 6 AND item = 1").await,
        altered(6, Part::Items)
    );
    assert_eq!(found("DELETE FROM items WHERE number = 6 AND item = 2").await, altered(6, Part::Items));
    let added = "INSERT INTO items SELECT node, number, 3, device, service, 9, event_time, integer_value, float_value, \
                 text_value, boolean_value, unit FROM items WHERE number = 6 AND item = 2";
    assert_eq!(found(added).await, altered(6, Part::Items));
}

#[tokio::test]
async fn an_altered_fate_is_named() {
    for assignment in [
        "fate = 'the client is not registered'",
        "fate = 'the client was revoked after seq 1'",
        "fate = 'the message is not signed with the client''s registered key'",
        "fate = 'another message with this seq is on the ledger'",
        "fate = 'the seq is too far below 6, the highest on the ledger'",
        "fate = 'lost'",
        "fate = 'another message with this seq is on the ledger', height = NULL, items = NULL",
        "height = height + 1",
        "height = NULL",
        "height = 999999",
        "items = x'00000000000000017f'",
        "items = NULL",
        "items = 'all'",
    ] {
        let sql = format!("UPDATE fates SET {assignment} WHERE number = 6");
        assert_eq!(found(&sql).await, altered(6, Part::Fate), "{sql}");
    }
    let refused = "INSERT INTO fates VALUES (1, 15, 'lost', NULL, NULL)";
    assert_eq!(found(refused).await, [(FindingKind::Added, Some(15), vec![Part::Place])]);
}

const ALL_TABLES: [&str; 3] = ["messages", "items", "fates"];

/// The same statement for each table that a row is in.
fn everywhere(statement: &str) -> String {
    ALL_TABLES.map(|table| statement.replace("TABLE", table)).join("; ")
}

#[tokio::test]
async fn a_deleted_row_is_named_with_its_message() {
    let report = report(&everywhere("DELETE FROM TABLE WHERE number = 6")).await;
    assert_eq!(all_told(&report), [(FindingKind::Deleted, Some(6), vec![])]);
    let finding = &report.findings[0];
    assert_eq!((finding.client.as_ref(), finding.seq, finding.digest), (Some(&client(2)), Some(3), Some(1)));
    // What it leaves behind is no other finding.
    let left = found("DELETE FROM messages WHERE number = 6").await;
    assert_eq!(left, [(FindingKind::Deleted, Some(6), vec![])]);
    let several = found(&everywhere("DELETE FROM TABLE WHERE number IN (2, 3, 11)")).await;
    assert_eq!(
        several,
        [2, 11].map(|row| (FindingKind::Deleted, Some(row), vec![])),
        "2 and 3 are told at once"
    );
}

#[tokio::test]
async fn all_rows_of_a_digest_are_named_when_they_are_deleted() {
    let sql = everywhere("DELETE FROM TABLE WHERE number BETWEEN 7 AND 12");
    let report = report(&sql).await;
    let finding = &report.findings[0];
    assert_eq!((finding.kind, finding.row, finding.last_row), (FindingKind::Deleted, Some(7), Some(12)));
    assert_eq!(report.findings.len(), 1);
}

const COPY: &str = "INSERT INTO messages SELECT node, NEW, client, seq, stream, event_time, zeroblob(32), header, \
                    signature, client_key, body, decision FROM messages WHERE number = OLD";

#[tokio::test]
async fn an_added_row_is_named() {
    let copied = |old: &str, new: &str| COPY.replace("OLD", old).replace("NEW", new);
    let first = |told: Told| (told.len(), told[0].0, told[0].1);
    assert_eq!(first(found(&copied("5", "99")).await), (1, FindingKind::Added, Some(99)));
    // In the place of a row that was taken away.
    let replaced = |with: &str| format!("DELETE FROM messages WHERE number = 5; {}", copied(with, "5"));
    let told = found(&replaced("14")).await;
    assert!(told.iter().any(|told| (told.0, told.1) == (FindingKind::Added, Some(5))), "{told:?}");
    let told = found(&replaced("6")).await;
    assert!(told.iter().any(|told| (told.0, told.1) == (FindingKind::Added, Some(5))), "{told:?}");
    assert!(told.iter().any(|told| (told.0, told.1) == (FindingKind::Deleted, Some(5))), "{told:?}");
    let told = found("UPDATE messages SET number = -3 WHERE number = 14").await;
    assert_eq!(told.last().unwrap(), &(FindingKind::Added, None, vec![Part::Place]), "{told:?}");
}

#[tokio::test]
async fn a_forged_row_is_named_by_its_signature() {
    let forged = "INSERT INTO messages SELECT node, 15, client, 8, stream, event_time, header_hash, header, \
                  zeroblob(64), client_key, body, decision FROM messages WHERE number = 13";
    let told = found(forged).await;
    assert_eq!((told[0].0, told[0].1), (FindingKind::Added, Some(15)), "{told:?}");
    assert!(told[0].2.contains(&Part::Signature));
}

fn swapped(one: u64, other: u64) -> String {
    let moved =
        |from: i64, to: i64| everywhere(&format!("UPDATE TABLE SET number = {to} WHERE number = {from}"));
    let (one, other) = (i64::try_from(one).unwrap(), i64::try_from(other).unwrap());
    [moved(one, -1), moved(other, one), moved(-1, other)].join("; ")
}

#[tokio::test]
async fn two_rows_that_were_swapped_are_both_named() {
    let reordered = |rows: [u64; 2]| rows.map(|row| (FindingKind::Reordered, Some(row), vec![]));
    assert_eq!(found(&swapped(3, 6)).await, reordered([3, 6]));
    assert_eq!(found(&swapped(3, 9)).await, reordered([3, 9]), "rows of two digests");
}

#[tokio::test]
async fn rows_that_moved_up_are_named_and_so_is_the_one_that_is_gone() {
    let up = [
        everywhere("DELETE FROM TABLE WHERE number = 4"),
        everywhere("UPDATE TABLE SET number = number - 1 WHERE number IN (5, 6)"),
    ];
    let mut told = found(&up.join("; ")).await;
    told.sort();
    let expected = [(FindingKind::Deleted, Some(4), vec![]), (FindingKind::Reordered, Some(4), vec![])];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn an_altered_value_is_told_with_its_item_and_both_values() {
    let told = async |sql: &str| {
        let report = report(sql).await;
        assert_eq!(report.findings.len(), 1, "{sql}: {report:#?}");
        (report.findings[0].item, report.findings[0].detail.clone())
    };
    let item = told("UPDATE items SET float_value = 39.6 WHERE number = 6 AND item = 0").await;
    assert_eq!(item, (Some(0), "item 0, temperature: table 39.6, signed 21.5".to_owned()));
    let unit = told("UPDATE items SET unit = 'K' WHERE number = 6 AND item = 2").await;
    assert_eq!(unit, (Some(2), "item 2, state, unit: table \"K\", signed \"Cel\"".to_owned()));
    let gone = told("DELETE FROM items WHERE number = 6 AND item = 2").await;
    assert_eq!(gone, (Some(2), "item 2, state: table nothing, signed \"on\"".to_owned()));
    let column = |text: &str| (None, text.to_owned());
    let sql = |assignment: &str| format!("UPDATE messages SET {assignment} WHERE number = 5");
    assert_eq!(told(&sql("seq = 77")).await, column("seq: table 77, signed 3"));
    let client = told(&sql("client = 'devices/c2'")).await;
    assert_eq!(client, column("client: table \"devices/c2\", signed \"devices/c1\""));
    let fate = told("UPDATE fates SET height = height + 1 WHERE number = 6").await.1;
    assert!(
        fate == "fate: table items 1, 2 written up to block 5, ledger items 1, 2 up to block 4",
        "{fate}"
    );
    for assignment in [
        "body = zeroblob(7)",
        "signature = zeroblob(64)",
        "client_key = zeroblob(32)",
        "header_hash = x'00'",
        "decision = x'00'",
        "body = 7",
        "stream = printf('%.*c', 100000, 'x')",
        "stream = x'1b5b324a'",
    ] {
        let (_, detail) = told(&sql(assignment)).await;
        let is_plain = !detail.contains("Some(") && !detail.contains("Vec<") && !detail.contains("Rust");
        assert!(is_plain && detail.len() < 300 && !detail.contains('\u{1b}'), "{assignment}: {detail}");
        assert!(detail.contains(assignment.split(' ').next().unwrap()), "{assignment}: {detail}");
    }
}

#[tokio::test]
async fn rows_that_stand_one_after_the_other_are_told_at_once() {
    let told = |report: &AuditReport| -> Vec<_> {
        report.findings.iter().map(|finding| (finding.kind, finding.row, finding.last_row)).collect()
    };
    // Of two digests.
    let deleted = report(&everywhere("DELETE FROM TABLE WHERE number BETWEEN 4 AND 9")).await;
    assert_eq!(told(&deleted), [(FindingKind::Deleted, Some(4), Some(9))]);
    assert!(deleted.findings[0].detail.starts_with("6 rows: "), "{deleted:#?}");
    assert_eq!((deleted.findings[0].digest, deleted.findings[0].seq), (None, None));
    let copies: Vec<String> =
        (20..25).map(|new| COPY.replace("OLD", "5").replace("NEW", &new.to_string())).collect();
    let added = report(&copies.join("; ").replace("zeroblob(32)", "randomblob(32)")).await;
    assert_eq!(told(&added), [(FindingKind::Added, Some(20), Some(24))]);
    let up = [
        everywhere("DELETE FROM TABLE WHERE number = 2"),
        everywhere("UPDATE TABLE SET number = number - 1 WHERE number IN (3, 4, 5, 6)"),
    ];
    let mut moved = told(&report(&up.join("; ")).await);
    moved.sort();
    assert_eq!(moved, [(FindingKind::Deleted, Some(2), None), (FindingKind::Reordered, Some(2), Some(5))]);
}

#[tokio::test]
async fn a_node_that_is_gone_from_its_table_is_one_finding() {
    let report = report("DELETE FROM nodes").await;
    let details: Vec<_> = report.findings.iter().map(|finding| finding.detail.as_str()).collect();
    assert_eq!(details, ["table nodes has no node 1; 14 rows stand under it"]);
}

#[tokio::test]
async fn rows_that_were_tampered_with_are_not_counted_as_waiting_for_a_digest() {
    let counts = async |sql: &str| {
        let node = report(sql).await.nodes.remove(0);
        (node.rows, node.covered, node.unproven, node.not_covered)
    };
    assert_eq!(counts("UPDATE messages SET decision = x'00' WHERE number < 4").await, (14, 9, 3, 2));
    assert_eq!(counts("UPDATE messages SET body = x'00' WHERE number IN (4, 13)").await, (14, 11, 1, 2));
    assert_eq!(counts(&swapped(3, 9)).await, (14, 10, 2, 2));
    assert_eq!(counts("UPDATE items SET num = 9 WHERE number = 5").await, (14, 11, 1, 2));
}

fn digest(part: Part) -> (FindingKind, Option<u64>, Vec<Part>) {
    (FindingKind::Digest, None, vec![part])
}

#[tokio::test]
async fn each_column_of_a_digest_is_named_when_it_is_altered() {
    for (assignment, part) in [
        ("content = zeroblob(200)", Part::Content),
        ("content = (SELECT content FROM digests WHERE number = 1)", Part::Content),
        ("first = 8", Part::Count),
        ("count = 5", Part::Count),
        ("row_hashes = zeroblob(192)", Part::RowHashes),
        ("row_hashes = (SELECT row_hashes FROM digests WHERE number = 1)", Part::RowHashes),
        ("height = 1", Part::Height),
        ("height = 999999", Part::Height),
    ] {
        let sql = format!("UPDATE digests SET {assignment} WHERE number = 2");
        assert_eq!(found(&sql).await, [digest(part)], "{sql}");
    }
    for assignment in [
        "content = 'text'",
        "row_hashes = NULL || x'00'",
        "height = 'high'",
        "first = 'one'",
        "row_hashes = row_hashes || 'x'",
    ] {
        let sql = format!("UPDATE OR IGNORE digests SET {assignment} WHERE number = 2");
        let world = World::ordinary().await;
        if world.tamper(0, &sql).await > 0 {
            let told = all_told(&world.audit(0).await);
            assert!(told.len() == 1 && told[0].0 == FindingKind::Digest, "{sql}: {told:?}");
        }
    }
    let other = found("UPDATE digests SET number = 7 WHERE number = 2").await;
    assert!(other.iter().all(|told| told.0 == FindingKind::Digest) && !other.is_empty(), "{other:?}");
}

#[tokio::test]
async fn a_deleted_digest_is_named_and_its_rows_are_proven_all_the_same() {
    let report = report("DELETE FROM digests WHERE number = 1").await;
    assert_eq!(all_told(&report), [(FindingKind::Digest, Some(1), vec![Part::Digest])]);
    assert_eq!((report.findings[0].digest, report.nodes[0].covered), (Some(1), 12));
}

#[tokio::test]
async fn a_digest_that_was_made_after_the_history_was_copied_is_no_finding_if_its_rows_are_there() {
    let world = World::ordinary().await;
    world.tamper(0, "DELETE FROM digests WHERE number = 2").await;
    let copied = world.audit(0).await;
    assert_eq!((all_told(&copied), copied.verdict), (vec![], AuditVerdict::Clean));
    assert_eq!((copied.nodes[0].newer_digests, copied.nodes[0].covered), (1, 12));
    let sql = everywhere("DELETE FROM TABLE WHERE number = 12");
    let lacking = report(&format!("DELETE FROM digests WHERE number = 2; {sql}")).await;
    assert_eq!((lacking.nodes[0].newer_digests, lacking.verdict), (0, AuditVerdict::Tampering));
}

#[tokio::test]
async fn without_the_hashes_of_its_rows_a_digest_still_names_what_it_can() {
    let spoilt = "UPDATE digests SET row_hashes = zeroblob(192) WHERE number = 1";
    let told = found(&format!("{spoilt}; {}", everywhere("DELETE FROM TABLE WHERE number = 4"))).await;
    assert_eq!(told, [digest(Part::RowHashes), (FindingKind::Deleted, Some(4), vec![])]);
    let told =
        found(&format!("{spoilt}; UPDATE messages SET signature = zeroblob(64) WHERE number = 4")).await;
    assert_eq!(told[1], (FindingKind::Altered, Some(4), vec![Part::Signature]));
    // A decision that the policies do not say.
    let told = found(&format!("{spoilt}; UPDATE messages SET decision = (SELECT decision FROM messages WHERE number = 1) WHERE number = 3")).await;
    assert!(
        told.contains(&(FindingKind::Altered, Some(1), vec![Part::Row])),
        "the rows of the digest: {told:?}"
    );
    let told = found(&format!("{spoilt}; {}", swapped(2, 4))).await;
    assert_eq!(told, [digest(Part::RowHashes), (FindingKind::Altered, Some(1), vec![Part::Row])]);
}

#[tokio::test]
async fn a_nodes_name_and_number_are_found_when_they_are_altered() {
    for sql in [
        "UPDATE nodes SET node = 'nobody'",
        "UPDATE nodes SET id = 7",
        "UPDATE nodes SET id = 0",
        "UPDATE messages SET node = 9 WHERE number = 3",
        "UPDATE items SET node = 9 WHERE number = 3",
        "UPDATE fates SET node = 9 WHERE number = 4",
        "UPDATE digests SET node = 9 WHERE number = 1",
    ] {
        let told = found(sql).await;
        assert!(told.contains(&(FindingKind::Added, None, vec![Part::Place])), "{sql}: {told:?}");
    }
    let id = "0".repeat(63);
    let told = found(&format!("UPDATE nodes SET node = '{id}1'")).await;
    assert!(told.contains(&digest(Part::Digest)), "{told:?}");
}

#[tokio::test]
async fn a_message_of_the_ledger_that_was_taken_away_before_it_had_a_digest_is_missing() {
    let mut world = World::new(1);
    world.register(1);
    world.commit().await;
    world.publish(0, 1, 1, &[("temperature", "20")]).await;
    world.commit().await;
    world.take_away(0, 1).await;
    world.publish(0, 1, 2, &[("temperature", "21")]).await;
    world.commit().await;
    world.digest(0).await;
    world.commit().await;
    assert_eq!(world.audit(0).await.verdict, AuditVerdict::Clean, "it may be on its way");
    world.publish(0, 1, 258, &[("temperature", "21")]).await;
    world.commit().await;
    world.digest(0).await;
    world.commit().await;
    let report = world.audit(0).await;
    assert_eq!(all_told(&report), [(FindingKind::Missing, None, vec![])]);
    assert_eq!((report.findings[0].client.clone(), report.findings[0].seq), (Some(client(1)), Some(1)));
}

#[tokio::test]
async fn a_node_that_breaks_the_policies_is_named_with_the_item() {
    let mut world = World::ordinary().await;
    // It says that 29 degrees after 30 are no change, and signs that.
    let message = world.message(1, 8, 8000, &[("noise", "2"), ("temperature", "28")]);
    let mut decision = world.decide(0, &message);
    assert!(decision.items[1].verdict.writes());
    let same = world.message(1, 9, 9000, &[("noise", "2"), ("temperature", "30")]);
    world.append(0, &message, &decision).await;
    world.submit(0, &message, &decision);
    world.commit().await;
    let unwritten = world.message(1, 10, 10_000, &[("noise", "2"), ("temperature", "40")]);
    decision = world.decide(0, &same);
    decision.items[1].verdict = ledgermq::policy::Verdict::Quiet;
    world.append(0, &unwritten, &decision).await;
    world.digest(0).await;
    world.commit().await;
    let report = world.audit(0).await;
    let broken = &report.findings[0];
    assert_eq!((report.findings.len(), broken.kind), (1, FindingKind::PolicyBroken), "{report:#?}");
    assert_eq!((broken.row, broken.item, broken.seq), (Some(16), Some(1), Some(10)));
    assert!(broken.detail.contains("was to be written and was not"), "{}", broken.detail);
}

#[tokio::test]
async fn a_row_of_a_client_that_the_ledger_does_not_know_is_not_taken_for_good() {
    let mut world = World::ordinary().await;
    let message = world.message(9, 1, 1000, &[("temperature", "99")]);
    let decision = world.decide(0, &message);
    world.append(0, &message, &decision).await;
    let report = world.audit(0).await;
    assert_eq!((report.verdict, report.findings.len()), (AuditVerdict::Unchecked, 0), "{report:#?}");
    world.digest(0).await;
    world.commit().await;
    let told = all_told(&world.audit(0).await);
    assert_eq!(told, altered(15, Part::ClientKey), "the node signed it all the same");
}

#[tokio::test]
async fn rows_under_the_name_of_no_replica_are_a_finding() {
    let sql = format!("UPDATE nodes SET node = '{}'; DELETE FROM digests", "ab".repeat(32));
    assert_eq!(found(&sql).await, [(FindingKind::Added, None, vec![Part::Place])]);
}

#[tokio::test]
async fn rows_under_another_replicas_name_are_not_taken_for_its_own() {
    let mut world = World::new(2);
    world.register(1);
    world.commit().await;
    for seq in 1..=300 {
        world.publish(0, 1, seq, &[("temperature", &format!("{seq}"))]).await;
        if seq % 50 == 0 {
            world.commit().await;
        }
    }
    assert_eq!(world.audit(0).await.unchecked.len(), 1, "none of them has a digest yet");
    let (own, other) = (world.nodes[0].id(), world.nodes[1].id());
    world.tamper(0, &format!("UPDATE nodes SET node = '{other}' WHERE node = '{own}'")).await;
    let report = world.audit(0).await;
    assert_eq!((report.verdict, report.nodes[0].brought_by_others), (AuditVerdict::Unchecked, 300));
    assert!(report.unchecked.iter().any(|why| why.contains("are these this node's rows")), "{report:#?}");
}
