//! PREPARE, COMMIT and CHECKPOINT: what counts, and what follows.

use super::*;
use crate::ledger::ReplicaSetKeys;

/// A backup of four that has agreed to batch 1.
fn agreed() -> (Bench, Hash) {
    let mut t = Bench::new(4, 1);
    let _ = t.ask(2, 1);
    let batch = t.batch(&[t.request(2, 1)], 5);
    let _ = t.propose(1, &batch);
    let digest = batch.digest();
    (t, digest)
}

#[test]
fn prepared_takes_the_proposal_and_q_minus_one_prepares_of_backups() {
    let (mut t, digest) = agreed();
    assert_eq!(rejected(&t.hear(PRIMARY, prepare(1, digest))), Rejected::NotBackup);
    assert!(sent(&t.hear(2, prepare(1, Hash([9; 32]))).effects).is_empty());
    let output = t.hear(3, prepare(1, digest));
    assert_eq!(sent(&output.effects), [commit(1, digest)]);
    let [WalEntry::Prepared(prepared), WalEntry::Sent(_)] = &output.wal[..] else { panic!("{output:?}") };
    assert_eq!(
        (prepared.digest, prepared.prepares.len()),
        (digest, 2),
        "its proof is logged before it is sent"
    );
}

#[test]
fn votes_that_come_before_the_proposal_count() {
    let mut t = Bench::new(4, 1);
    let _ = t.ask(2, 1);
    let batch = t.batch(&[t.request(2, 1)], 5);
    let digest = batch.digest();
    for from in [2, 3] {
        assert!(t.hear(from, prepare(1, digest)).is_empty());
        assert!(t.hear(from, commit(1, digest)).is_empty());
    }
    let output = t.propose(1, &batch);
    assert_eq!(sent(&output.effects), [prepare(1, digest), commit(1, digest)]);
    assert_eq!(executions(&output.effects), [1]);
}

#[test]
fn committed_takes_q_commits_and_is_logged_before_execution() {
    let (mut t, digest) = agreed();
    let _ = t.hear(2, prepare(1, digest));
    assert!(t.hear(2, commit(1, digest)).is_empty());
    assert_eq!(rejected(&t.hear(2, commit(1, digest))), Rejected::Duplicate);
    let output = t.hear(3, commit(1, digest));
    assert!(matches!(&output.wal[..], [WalEntry::Committed { sequence: SeqNum(1), .. }]));
    assert_eq!(executions(&output.effects), [1]);
}

#[test]
fn a_replica_that_votes_twice_is_counted_once_and_shown() {
    let (mut t, digest) = agreed();
    let _ = t.hear(3, prepare(1, Hash([9; 32])));
    let output = t.hear(3, prepare(1, digest));
    assert_eq!(rejected(&output), Rejected::Equivocation);
    assert!(matches!(&output.effects[..], [Effect::Evidence(_)]));
    assert!(t.hear(3, prepare(1, digest)).effects.is_empty(), "told once");
}

#[test]
fn execution_is_in_order_and_one_at_a_time() {
    let mut t = Bench::new(4, 1);
    let mut digests = Vec::new();
    for sequence in 1..=3 {
        let _ = t.ask(2, sequence);
        let batch = t.batch(&[t.request(2, sequence)], 5 + sequence);
        let _ = t.propose(sequence, &batch);
        digests.push((sequence, batch.digest()));
    }
    let mut executed = Vec::new();
    for (sequence, digest) in digests.iter().rev() {
        let _ = t.hear(2, prepare(*sequence, *digest));
        let _ = t.hear(2, commit(*sequence, *digest));
        executed.extend(executions(&t.hear(3, commit(*sequence, *digest)).effects));
    }
    assert_eq!(executed, [1]);
    assert_eq!(executions(&t.step(Input::Executed(result(1, 1))).effects), [2]);
    let again = t.step(Input::Executed(result(1, 1)));
    assert_eq!(rejected(&again), Rejected::OutOfOrder { expected: SeqNum(2) });
    assert_eq!(executions(&t.step(Input::Executed(result(2, 2))).effects), [3]);
}

#[test]
fn a_quorum_of_equal_checkpoints_makes_a_certificate_that_verifies() {
    let mut t = Bench::new(4, 1);
    let _ = t.commit_batch(1);
    let content = result(1, 1);
    let _ = t.hear(2, Content::Checkpoint(content));
    let _ = t.hear(3, Content::Checkpoint(result(1, 2)));
    let _ = t.step(Input::Executed(content));
    let output = t.hear(PRIMARY, Content::Checkpoint(content));
    let [Effect::Certified(certificate)] = &output.effects[..] else { panic!("{output:?}") };
    let replicas = &t.replica.settings.replicas;
    certificate.verify(&NETWORK, &ReplicaSetKeys::new(replicas).unwrap()).unwrap();
    assert_eq!(certificate.signatures.len(), 3);
    assert!(matches!(&output.wal[..], [WalEntry::Certified(_)]));
    assert_eq!(t.replica.status().stable, SeqNum(1));
    assert_eq!(t.replica.status().inflight_bytes, 0, "what is stable is forgotten");
}

#[test]
fn a_quorum_with_another_result_is_told() {
    let mut t = Bench::new(4, 1);
    let _ = t.commit_batch(1);
    for from in [0, 2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(1, 1)));
    }
    let output = t.step(Input::Executed(result(1, 2)));
    assert!(output.effects.contains(&Effect::Diverged { own: result(1, 2), other: result(1, 1) }));
}

#[test]
fn votes_are_repeated_as_new_gossip_until_stable_and_then_no_more() {
    let (mut t, digest) = agreed();
    let repeated = t.wait(Duration::from_secs(2));
    let attempts: Vec<u32> = repeated
        .iter()
        .filter_map(|effect| match effect {
            Effect::Broadcast(envelope) if envelope.signed.content == prepare(1, digest) => {
                Some(envelope.attempt)
            }
            _ => None,
        })
        .collect();
    let distinct: std::collections::BTreeSet<_> = attempts.iter().collect();
    assert!((3..6).contains(&attempts.len()) && distinct.len() == attempts.len(), "{attempts:?}");
    let _ = t.hear(2, prepare(1, digest));
    for from in [2, 3] {
        let _ = t.hear(from, commit(1, digest));
    }
    let _ = t.step(Input::Executed(result(1, 1)));
    for from in [2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(1, 1)));
    }
    let later = sent(&t.wait(Duration::from_secs(10)));
    assert!((9..=11).contains(&later.len()), "only the status, once a second: {later:?}");
    assert!(later.iter().all(|content| *content == Content::Checkpoint(result(1, 1))));
}

#[test]
fn a_replica_that_still_repeats_an_old_checkpoint_is_answered() {
    let mut t = Bench::new(4, 1);
    for sequence in 1..=2 {
        let _ = t.commit_batch(sequence);
        let _ = t.step(Input::Executed(result(sequence, sequence)));
        for from in [0, 2] {
            let _ = t.hear(from, Content::Checkpoint(result(sequence, sequence)));
        }
    }
    let late = t.hear(3, Content::Checkpoint(result(1, 1)));
    assert!(sent(&late.effects).is_empty(), "it may only be late");
    let _ = t.wait(Duration::from_millis(300));
    let repeated = t.hear(3, Content::Checkpoint(result(1, 1)));
    assert_eq!(sent(&repeated.effects), [Content::Checkpoint(result(1, 1))]);
    assert!(sent(&t.hear(3, Content::Checkpoint(result(1, 1))).effects).is_empty(), "not at any rate");
}

#[test]
fn one_replica_alone_orders_executes_and_certifies() {
    let mut t = Bench::with(1, 0, |settings| settings.batch_max_requests = 1);
    let output = t.ask(0, 1);
    assert_eq!(executions(&output.effects), [1]);
    let output = t.step(Input::Executed(result(1, 1)));
    assert!(matches!(&output.effects[..], [Effect::Certified(_)]));
    assert!(t.wait(Duration::from_secs(10)).is_empty(), "and has nobody to tell");
}
