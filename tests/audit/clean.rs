//! What is as it was is no finding, whatever happened on the way.

use std::sync::Arc;

use ledgermq::history::audit::{
    AuditOptions, AuditReport, AuditVerdict, FindingKind, LostRows, NodeReport, audit,
};
use ledgermq::history::{HistoryRow, HistoryStore as _, SqlReader};
use ledgermq::policy::Verdict;

use crate::world::{RULES, World, all_told, client, location};

async fn clean(world: &World, node: usize) -> NodeReport {
    let report = world.audit(node).await;
    assert_eq!(report.verdict, AuditVerdict::Clean, "{report:#?}");
    report.nodes[0].clone()
}

/// Two clients and the rules.
async fn world(nodes: usize) -> World {
    let mut world = World::new(nodes);
    world.register(1);
    world.register(2);
    world.set_policies(RULES);
    world.commit().await;
    world
}

async fn digested(world: &mut World, node: usize) {
    world.digest(node).await;
    world.commit().await;
}

#[tokio::test]
async fn an_ordinary_history_is_clean_and_counted() {
    let world = World::ordinary().await;
    let report = world.audit(0).await;
    assert_eq!(report.verdict, AuditVerdict::Clean, "{report:#?}");
    let node = &report.nodes[0];
    assert_eq!((node.rows, node.covered, node.not_covered), (14, 12, 2));
    assert_eq!((node.digests, node.items, node.decisions), (2, 33, 33));
    assert_eq!((node.not_final, node.unjudged), (0, 0));
    assert_eq!(report.ledger.height.0, world.blocks.len() as u64);
    assert!(report.gaps.is_empty());
}

#[tokio::test]
async fn what_is_submitted_and_not_final_is_counted() {
    let mut world = world(1).await;
    world.publish(0, 1, 1, &[("temperature", "20")]).await;
    digested(&mut world, 0).await;
    // Not in a block, and the next is judged against it.
    world.publish(0, 1, 2, &[("temperature", "30")]).await;
    world.publish(0, 1, 3, &[("temperature", "30.5")]).await;
    let report = clean(&world, 0).await;
    assert_eq!((report.rows, report.covered, report.not_final, report.unjudged), (3, 1, 1, 0));
}

#[tokio::test]
async fn a_digest_that_is_signed_and_not_on_the_ledger_is_no_finding() {
    let mut world = world(1).await;
    world.publish(0, 1, 1, &[("temperature", "20")]).await;
    digested(&mut world, 0).await;
    world.publish(0, 1, 2, &[("temperature", "30")]).await;
    world.commit().await;
    world.seal(0).await;
    let report = clean(&world, 0).await;
    assert_eq!((report.covered, report.not_covered, report.pending_digests), (1, 1, 1));
    // It is held against its rows all the same.
    world.tamper(0, "UPDATE messages SET decision = decision || x'00' WHERE number = 2").await;
    assert_eq!(all_told(&world.audit(0).await).len(), 1);
}

#[tokio::test]
async fn a_message_that_two_nodes_have_is_clean_in_both() {
    let mut world = world(2).await;
    let message = world.message(1, 1, 1000, &[("temperature", "20"), ("door", "true"), ("noise", "3")]);
    // Both judge it before they know of the other.
    let decisions = [world.decide(0, &message), world.decide(1, &message)];
    for (node, decision) in decisions.iter().enumerate() {
        world.append(node, &message, decision).await;
        world.submit(node, &message, decision);
    }
    world.commit().await;
    // The client moves back and forth.
    for seq in 2..=5 {
        let node = usize::from(seq % 2 == 0);
        world.publish(node, 1, seq, &[("temperature", &format!("{}", 20 + seq))]).await;
        world.commit().await;
    }
    digested(&mut world, 0).await;
    digested(&mut world, 1).await;
    for node in 0..2 {
        let report = clean(&world, node).await;
        assert_eq!((report.covered, report.rows), (3, 3));
    }
}

#[tokio::test]
async fn parts_of_a_message_that_several_nodes_wrote_are_each_a_true_fate() {
    let mut world = world(2).await;
    world.publish(1, 1, 1, &[("door", "true"), ("temperature", "20")]).await;
    world.commit().await;
    let message = world.message(1, 2, 2000, &[("door", "true"), ("temperature", "25")]);
    let mut partly = world.decide(0, &message);
    // This node has judged the temperature against a value that only it knows.
    let before = world.message(1, 3, 1500, &[("noise", "1"), ("temperature", "24.5")]);
    let known = world.decide(0, &before);
    world.append(0, &before, &known).await;
    world.submit(0, &before, &known);
    partly.items[1] = world.decide(0, &message).items[1];
    assert_eq!(partly.items[1].verdict, Verdict::Quiet);
    world.append(0, &message, &partly).await;
    world.submit(0, &message, &partly);
    let whole = world.decide(1, &message);
    world.append(1, &message, &whole).await;
    world.submit(1, &message, &whole);
    world.commit().await;
    digested(&mut world, 0).await;
    digested(&mut world, 1).await;
    clean(&world, 0).await;
    clean(&world, 1).await;
}

#[tokio::test]
async fn what_was_judged_against_a_message_that_was_refused_later_is_clean() {
    let mut world = world(2).await;
    // The client used seq 1 twice: the ledger has the one of node 1.
    world.publish_at(1, 1, 1, 900, &[("temperature", "50")]).await;
    let twice = world.message(1, 1, 1000, &[("temperature", "20")]);
    let decision = world.decide(0, &twice);
    world.append(0, &twice, &decision).await;
    world.submit(0, &twice, &decision);
    world.publish_at(0, 1, 2, 2000, &[("temperature", "20.5")]).await;
    world.commit().await;
    digested(&mut world, 0).await;
    digested(&mut world, 1).await;
    let report = clean(&world, 0).await;
    assert_eq!((report.rows, report.not_final), (2, 0), "the refusal is its fate");
    clean(&world, 1).await;
}

#[tokio::test]
async fn late_data_is_clean() {
    let mut world = world(1).await;
    for (seq, time, value) in
        [(1, 9000, "20"), (3, 11_000, "22"), (2, 10_000, "21.9"), (4, 500, "0"), (5, 11_500, "22.1")]
    {
        world.publish_at(0, 1, seq, time, &[("temperature", value)]).await;
        world.commit().await;
    }
    digested(&mut world, 0).await;
    clean(&world, 0).await;
}

#[tokio::test]
async fn policies_that_change_at_the_moment_of_judging_are_no_finding() {
    let mut world = world(1).await;
    let message = world.message(1, 1, 1000, &[("temperature", "20"), ("noise", "1")]);
    let before = world.decide(0, &message);
    world.set_policies(r#"{"rules": [{"name": "all", "write": "periodic", "interval_ms": 5000}]}"#);
    world.commit().await;
    // Appended, submitted and digested after the change.
    world.append(0, &message, &before).await;
    world.submit(0, &message, &before);
    world.commit().await;
    for seq in 2..=9 {
        world.publish(0, 1, seq, &[("temperature", "20"), ("noise", "1")]).await;
        world.commit().await;
    }
    digested(&mut world, 0).await;
    clean(&world, 0).await;
}

#[tokio::test]
async fn messages_of_a_client_that_is_revoked_meanwhile_are_counted() {
    let mut world = world(1).await;
    world.publish(0, 1, 1, &[("temperature", "20")]).await;
    world.commit().await;
    world.revoke(1, 1);
    world.publish(0, 1, 2, &[("temperature", "30")]).await;
    world.commit().await;
    digested(&mut world, 0).await;
    let report = clean(&world, 0).await;
    assert_eq!((report.after_revocation, report.covered), (1, 2));
}

#[tokio::test]
async fn messages_that_are_too_old_or_refused_before_a_row_are_no_finding() {
    let mut world = world(1).await;
    world.publish(0, 1, 600, &[("temperature", "20")]).await;
    world.commit().await;
    world.publish(0, 1, 100, &[("temperature", "30")]).await;
    world.commit().await;
    digested(&mut world, 0).await;
    let report = world.audit(0).await;
    assert_eq!(report.verdict, AuditVerdict::Clean, "{report:#?}");
    let gaps: Vec<_> = report.gaps.iter().map(|gap| (gap.client.clone(), gap.first, gap.last)).collect();
    assert_eq!(gaps, [(client(1), 1, 99), (client(1), 101, 343)], "what may be on its way is not named");
}

#[tokio::test]
async fn a_message_that_was_sent_again_has_one_row() {
    let mut world = world(1).await;
    let message = world.message(1, 1, 1000, &[("temperature", "20")]);
    world.accept(0, Arc::clone(&message)).await;
    world.commit().await;
    let decision = world.decide(0, &message);
    let row = HistoryRow { message: Arc::clone(&message), decision: decision.bytes() };
    assert_eq!(world.nodes[0].store.append(0, &[row]).await.unwrap(), [None]);
    digested(&mut world, 0).await;
    assert_eq!(clean(&world, 0).await.rows, 1);
}

/// Three rows in two digests are lost; two more come.
async fn begun_anew() -> World {
    let mut world = world(1).await;
    for seq in 1..=3 {
        world.publish(0, 1, seq, &[("temperature", &format!("{}", 20 + seq))]).await;
        world.commit().await;
        if seq > 1 {
            digested(&mut world, 0).await;
        }
    }
    world.lose_history(0);
    for seq in 4..=5 {
        world.publish(0, 1, seq, &[("temperature", "24.1"), ("noise", "1")]).await;
        world.commit().await;
    }
    world
}

fn known_lost(world: &World, last: u64) -> AuditOptions {
    let lost = LostRows { node: world.nodes[0].id(), first: 1, last };
    AuditOptions { known_lost: vec![lost], ..AuditOptions::default() }
}

#[tokio::test]
async fn a_history_that_was_begun_anew_is_not_checked_as_a_whole_and_no_tampering() {
    let mut world = begun_anew().await;
    for digests in 0..2 {
        let report = world.audit(0).await;
        assert_eq!(report.verdict, AuditVerdict::Unchecked, "{report:#?}");
        assert_eq!(report.findings, []);
        let lost = LostRows { node: world.nodes[0].id(), first: 1, last: 3 };
        assert_eq!((report.nodes[0].covered, &report.nodes[0].lost[..]), (2 * digests, &[lost][..]));
        assert!(report.unchecked[0].contains(":1-3"), "{:?}", report.unchecked);
        let known = world.audit_with(0, &known_lost(&world, 3)).await;
        // What came since has no digest in the first round: nothing of this history is proven.
        let verdict = if digests == 0 { AuditVerdict::Unchecked } else { AuditVerdict::Clean };
        assert_eq!((known.verdict, known.rows_gone), (verdict, 0), "{known:#?}");
        assert_eq!((report.rows_gone, known.not_yet_proven), (3, 2 - 2 * digests));
        let less = world.audit_with(0, &known_lost(&world, 2)).await;
        assert_eq!(less.verdict, AuditVerdict::Unchecked);
        digested_once(&mut world, digests).await;
    }
}

#[tokio::test]
async fn a_history_of_which_nothing_can_be_proven_yet_is_not_checked() {
    let mut world = world(1).await;
    for seq in 1..=2 {
        world.publish(0, 1, seq, &[("temperature", &format!("{}", 20 + seq))]).await;
    }
    world.commit().await;
    let report = world.audit(0).await;
    assert_eq!((report.verdict, report.rows, report.not_yet_proven), (AuditVerdict::Unchecked, 2, 2));
    assert!(
        report.findings.is_empty() && report.unchecked[0].contains("any of the 2 rows yet"),
        "{report:#?}"
    );
    digested(&mut world, 0).await;
    world.publish(0, 1, 3, &[("temperature", "40")]).await;
    let report = world.audit(0).await;
    assert_eq!((report.verdict, report.rows, report.not_yet_proven), (AuditVerdict::Clean, 3, 1));
}

#[tokio::test]
async fn a_history_that_was_emptied_before_its_first_digest_is_not_clean() {
    let mut world = world(2).await;
    world.publish(0, 1, 1, &[("temperature", "20")]).await;
    world.publish(1, 2, 1, &[("temperature", "20")]).await;
    world.commit().await;
    for table in ["messages", "items", "fates"] {
        world.tamper(0, &format!("DELETE FROM {table}")).await;
    }
    let report = world.audit(0).await;
    assert_eq!(
        (report.verdict, report.rows, report.rows_gone),
        (AuditVerdict::Unchecked, 0, 0),
        "{report:#?}"
    );
    assert!(
        report.unchecked[0].contains("the ledger has 1 message that this node brought there"),
        "{report:#?}"
    );
    let known = world.audit_with(0, &known_lost(&world, 1)).await;
    assert_eq!(known.verdict, AuditVerdict::Clean, "{known:#?}");
}

#[tokio::test]
async fn a_history_that_was_emptied_is_told_as_empty_and_what_the_ledger_knows_of_it() {
    let world = World::ordinary().await;
    for table in ["messages", "items", "fates", "digests"] {
        world.tamper(0, &format!("DELETE FROM {table}")).await;
    }
    let report = world.audit(0).await;
    assert_eq!(
        (report.verdict, report.rows, report.rows_gone),
        (AuditVerdict::Unchecked, 0, 12),
        "{report:#?}"
    );
    assert!(
        report.unchecked[0].contains("the history is empty. It was lost, or somebody took them away"),
        "{report:#?}"
    );
    // Its name as well.
    world.tamper(0, "DELETE FROM nodes").await;
    let report = world.audit(0).await;
    assert_eq!((report.verdict, report.nodes.len()), (AuditVerdict::Unchecked, 0));
    assert!(report.unchecked[0].contains("The ledger has digests of the rows of 1 node"), "{report:#?}");
}

async fn digested_once(world: &mut World, round: u64) {
    if round == 0 {
        digested(world, 0).await;
    }
}

#[tokio::test]
async fn a_history_restored_from_a_backup_is_clean_when_that_is_known() {
    let mut world = world(1).await;
    for seq in 1..=6 {
        world.publish(0, 1, seq, &[("temperature", &format!("{}", 20 + seq))]).await;
        world.commit().await;
    }
    digested(&mut world, 0).await;
    for table in ["messages", "items", "fates"] {
        world.tamper(0, &format!("DELETE FROM {table} WHERE number IN (4, 5, 6)")).await;
    }
    let kinds: Vec<_> = world.audit(0).await.findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [FindingKind::Deleted]);
    let known = world.audit_with(0, &known_lost(&world, 6)).await;
    assert_eq!((known.verdict, known.nodes[0].covered), (AuditVerdict::Clean, 3), "{known:#?}");
}

#[tokio::test]
async fn a_ledger_that_ends_before_the_history_is_said_to_and_no_tampering() {
    let world = World::ordinary().await;
    let reader = SqlReader::open(location(&world.nodes[0].dir), &world.network).await.unwrap();
    for blocks in 0..world.blocks.len() {
        let ledger = world.ledger_up_to(blocks);
        let report: AuditReport = audit(&ledger, &reader, &AuditOptions::default()).await.unwrap();
        assert_eq!(report.findings, [], "{blocks} blocks");
        assert_eq!(report.verdict, AuditVerdict::Unchecked, "{blocks} blocks");
        assert!(report.unchecked.iter().any(|why| why.contains("give a newer ledger")), "{report:#?}");
    }
}

#[tokio::test]
async fn one_client_can_be_audited_alone() {
    let world = World::ordinary().await;
    let options = AuditOptions { client: Some(client(2)), ..AuditOptions::default() };
    let ledger_of = |world: &World| {
        let mut ledger =
            ledgermq::history::audit::AuditedLedger::new(&world.genesis).unwrap().only(Some(client(2)));
        world.blocks.iter().for_each(|(block, certificate)| ledger.add(block, Some(certificate)).unwrap());
        ledger
    };
    let audited = async || {
        let reader = SqlReader::open(location(&world.nodes[0].dir), &world.network).await.unwrap();
        audit(&ledger_of(&world), &reader, &options).await.unwrap()
    };
    let report = audited().await;
    assert_eq!((report.verdict, report.nodes[0].covered), (AuditVerdict::Clean, 12), "{report:#?}");
    world.tamper(0, "UPDATE messages SET body = zeroblob(3) WHERE number = 5").await;
    assert_eq!(audited().await.verdict, AuditVerdict::Clean, "it is another client's");
    world.tamper(0, "UPDATE messages SET body = zeroblob(3) WHERE number = 6").await;
    assert_eq!(audited().await.verdict, AuditVerdict::Tampering);
}

#[tokio::test]
async fn a_block_without_a_certificate_counts_when_a_later_one_has_one() {
    let world = World::ordinary().await;
    let mut ledger = ledgermq::history::audit::AuditedLedger::new(&world.genesis).unwrap();
    let last = world.blocks.len() - 1;
    for (at, (block, certificate)) in world.blocks.iter().enumerate() {
        ledger.add(block, Some(certificate).filter(|_| at == last || at == 2)).unwrap();
        let proven = if at == last {
            at + 1
        } else if at >= 2 {
            3
        } else {
            0
        };
        assert_eq!(ledger.certified_height().0, proven as u64);
    }
    assert_eq!(ledger.summary(), world.ledger().summary());
}

#[tokio::test]
async fn a_ledger_with_anything_altered_is_refused() {
    let world = World::ordinary().await;
    let mut other = ledgermq::history::audit::AuditedLedger::new(&world.genesis).unwrap();
    let (block, certificate) = &world.blocks[0];
    let mut altered = block.clone();
    altered.header.timestamp = altered.header.timestamp.plus_ms(1);
    assert!(other.add(&altered, Some(certificate)).is_err());
    let mut fewer = certificate.clone();
    fewer.signatures.pop();
    assert!(other.add(block, Some(&fewer)).is_err());
    assert!(other.add(&world.blocks[1].0, Some(&world.blocks[1].1)).is_err(), "not the first");
    let mut genesis = world.genesis.clone();
    genesis.name = "other".into();
    let mut other = ledgermq::history::audit::AuditedLedger::new(&genesis).unwrap();
    assert!(other.add(block, Some(certificate)).is_err());
}
