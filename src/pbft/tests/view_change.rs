//! Giving a primary up: when, when not, and what VIEW-CHANGE says.

use super::*;
use crate::ledger::ReplicaSetKeys;
use crate::pbft::certificates::{ProofError, ViewChange};
use crate::pbft::message::MessageError;
use crate::pbft::wal::Pin;

const SECOND: Duration = Duration::from_secs(1);

/// Replica `at` of four, with the usual timeouts.
pub(super) fn bench(at: usize) -> Bench {
    Bench::with(4, at, |settings| {
        settings.request_timeout = SECOND;
        settings.request_timeout_max = 32 * SECOND;
    })
}

pub(super) fn view_changes(effects: &[Effect]) -> Vec<ViewChange> {
    let own = |content| match content {
        Content::ViewChange(view_change) => Some(view_change),
        _ => None,
    };
    sent(effects).into_iter().filter_map(own).collect()
}

fn views(effects: &[Effect]) -> Vec<u64> {
    let mut views: Vec<u64> = view_changes(effects).iter().map(|view_change| view_change.view.0).collect();
    views.dedup();
    views
}

/// The VIEW-CHANGE of a replica that has nothing to tell.
pub(super) fn bare(view: u64) -> Content {
    Content::ViewChange(ViewChange { view: View(view), checkpoint: None, prepared: Vec::new() })
}

/// A backup (1) at which batch 1 is prepared.
pub(super) fn prepared() -> (Bench, Hash) {
    let mut t = bench(1);
    let _ = t.ask(2, 1);
    let batch = t.batch(&[t.request(2, 1)], 5);
    let _ = t.propose(1, &batch);
    let _ = t.hear(2, prepare(1, batch.digest()));
    let _ = t.hear(3, prepare(1, batch.digest()));
    (t, batch.digest())
}

#[test]
fn an_idle_replica_changes_no_view() {
    let mut t = bench(1);
    assert!(view_changes(&t.wait(600 * SECOND)).is_empty());
}

#[test]
fn a_silent_primary_is_given_up_after_the_timeout_and_not_before() {
    let mut t = bench(1);
    let _ = t.ask(2, 1);
    assert!(view_changes(&t.wait(SECOND * 99 / 100)).is_empty());
    assert_eq!(views(&t.wait(SECOND / 50)), [1]);
    assert!(t.replica.status().changing);
    assert!(matches!(t.wal.last(), Some(WalEntry::ViewChange(_))), "logged before it is sent");
}

#[test]
fn who_is_behind_has_more_patience_with_a_primary_that_others_execute_under() {
    let mut t = bench(1);
    let _ = t.ask(1, 1);
    for from in [2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(9, 9)));
    }
    // Nobody gives it the blocks.
    assert!(view_changes(&t.wait(SECOND * 39 / 10)).is_empty());
    assert_eq!(views(&t.wait(SECOND / 5)), [1], "but not for ever");
}

#[test]
fn what_a_primary_proposes_before_it_was_in_a_bundle_is_sent_with_the_proposal_and_again_when_it_is_deposed()
{
    let mut t = Bench::with(4, PRIMARY, |settings| settings.bundle_delay = SECOND / 2);
    let _ = t.ask(PRIMARY, 1);
    let bundles = |effects: &[Effect]| {
        effects.iter().filter(|effect| matches!(effect, Effect::SendRequests { .. })).count()
    };
    let effects = t.wait(SECOND / 5);
    assert_eq!((bundles(&effects), t.replica.status().accepted), (1, SeqNum(1)), "proposed at once");
    let before = |effect: &Effect| matches!(effect, Effect::SendRequests { .. } | Effect::Broadcast(_));
    assert!(matches!(effects.iter().find(|effect| before(effect)), Some(Effect::SendRequests { .. })));
    for from in [2, 3] {
        let _ = t.hear(from, bare(1));
    }
    assert_eq!(t.replica.status().view, View(1));
    assert!(bundles(&t.wait(SECOND)) > 0);
}

#[test]
fn what_waits_too_long_is_forwarded_to_the_primary_at_half_time() {
    let mut t = bench(1);
    let _ = t.ask(2, 1);
    let effects = t.wait(SECOND * 6 / 10);
    let forwarded: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::ForwardRequests { requests, to } => Some((requests.len(), *to)),
            _ => None,
        })
        .collect();
    assert_eq!(forwarded, [(1, t.keys[PRIMARY].node_id())]);
}

#[test]
fn no_node_has_so_much_to_forward_that_nothing_of_another_is_forwarded() {
    let mut t = bench(1);
    for number in 1..=700 {
        let _ = t.ask(2, number);
    }
    let _ = t.ask(3, 1);
    let forwarded: Vec<_> = t
        .wait(SECOND * 6 / 10)
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::ForwardRequests { requests, .. } => Some(requests),
            _ => None,
        })
        .collect();
    assert!(forwarded.iter().all(|requests| requests.len() <= 512));
    let other = t.keys[3].node_id();
    assert_eq!(forwarded.iter().flatten().filter(|request| request.node() == other).count(), 1);
}

#[test]
fn only_a_primary_takes_what_is_forwarded_so_that_nobody_fills_the_pools_of_others() {
    for (at, taken) in [(PRIMARY, true), (1, false)] {
        let mut t = bench(at);
        // In the name of another node, and of this one.
        for node in [2, at] {
            let request = t.request(node, 1);
            let source = Source::Forwarded { by: t.keys[3].node_id() };
            let output = t.step(Input::Request { request, source });
            assert_eq!(output.rejected, (!taken).then_some(Rejected::NotPrimary));
        }
    }
}

#[test]
fn a_primary_that_was_forwarded_a_request_orders_it_even_if_it_was_executed() {
    let mut t = bench(PRIMARY);
    let _ = t.ask(1, 1);
    let _ = t.wait(Duration::from_millis(10));
    let digest = t.replica.log.get(SeqNum(1), View(0)).unwrap().proposal.as_ref().unwrap().digest;
    for from in [1, 2] {
        let _ = t.hear(from, prepare(1, digest));
        let _ = t.hear(from, commit(1, digest));
    }
    let _ = t.step(Input::Executed(result(1, 1)));
    for from in [1, 2] {
        let _ = t.hear(from, Content::Checkpoint(result(1, 1)));
    }
    let request = t.request(1, 1);
    let bundle = t.step(Input::Request { request: Arc::clone(&request), source: Source::Bundle });
    assert_eq!(rejected(&bundle), Rejected::Duplicate);
    let source = Source::Forwarded { by: t.keys[1].node_id() };
    let _ = t.step(Input::Request { request, source });
    let _ = t.wait(Duration::from_millis(10));
    assert_eq!(t.replica.status().accepted, SeqNum(2));
}

#[test]
fn progress_restarts_the_timer_so_that_load_deposes_nobody() {
    let mut t = bench(1);
    let _ = t.ask(3, 99);
    for sequence in 1..=2 {
        let _ = t.commit_batch(sequence);
        assert!(view_changes(&t.wait(SECOND * 9 / 10)).is_empty(), "executing counts as moving");
        let _ = t.step(Input::Executed(result(sequence, sequence)));
        assert!(view_changes(&t.wait(SECOND * 9 / 10)).is_empty());
    }
}

#[test]
fn a_request_that_is_passed_over_while_others_are_executed_is_censored() {
    let mut t = bench(1);
    let _ = t.ask(3, 99);
    let mut changed = Vec::new();
    for sequence in 1..=10 {
        let _ = t.commit_batch(sequence);
        let _ = t.step(Input::Executed(result(sequence, sequence)));
        changed.extend(views(&t.wait(SECOND / 2)));
    }
    changed.dedup();
    assert_eq!(changed, [1], "four timeouts is enough");
}

#[test]
fn after_its_view_change_a_replica_signs_nothing_for_the_old_view() {
    let mut t = bench(1);
    let _ = t.ask(2, 1);
    let batch = t.batch(&[t.request(2, 1)], 5);
    let _ = t.wait(SECOND * 11 / 10);
    let _ = t.propose(1, &batch);
    for from in [2, 3] {
        let _ = t.hear(from, prepare(1, batch.digest()));
        let _ = t.hear(from, commit(1, batch.digest()));
    }
    let said = sent(&t.wait(10 * SECOND));
    assert!(!said.is_empty());
    assert!(said.iter().all(|content| matches!(content, Content::ViewChange(_))), "{said:?}");
}

#[test]
fn what_committed_is_executed_although_the_view_is_left() {
    let mut t = bench(1);
    let _ = t.commit_batch(1);
    let _ = t.commit_batch(2);
    let _ = t.hear(2, bare(1));
    let _ = t.hear(3, bare(1));
    assert_eq!(t.replica.status().view, View(1));
    assert_eq!(executions(&t.step(Input::Executed(result(1, 1))).effects), [2]);
}

#[test]
fn view_change_proves_what_was_prepared_and_its_proof_verifies() {
    let (mut t, digest) = prepared();
    let effects = t.wait(SECOND * 11 / 10);
    let [view_change] = &view_changes(&effects)[..] else { panic!("{effects:?}") };
    let [proof] = &view_change.prepared[..] else { panic!("{view_change:?}") };
    assert_eq!((proof.view, proof.sequence, proof.digest), (View(0), SeqNum(1), digest));

    let keys = ReplicaSetKeys::new(&t.replica.settings.replicas).unwrap();
    let verify = |content: ViewChange| {
        let signed = Verified::sign(&t.keys[1], &NETWORK, Content::ViewChange(content)).signed().clone();
        signed.verify(&keys, &NETWORK)
    };
    assert!(verify(view_change.clone()).is_ok());
    let mut bad = Vec::new();
    let changes: [fn(&mut ViewChange); 8] = [
        |change| change.prepared[0].digest = Hash([9; 32]),
        |change| change.prepared[0].sequence = SeqNum(2),
        |change| change.prepared[0].sequence = SeqNum(300),
        |change| change.prepared[0].view = View(1),
        |change| assert!(change.prepared[0].prepares.pop().is_some()),
        |change| {
            let first = change.prepared[0].prepares[0];
            change.prepared[0].prepares = vec![first, first];
        },
        |change| change.prepared[0].prepares[0].0 = 0,
        |change| change.prepared.push(change.prepared[0].clone()),
    ];
    for change in changes {
        let mut content = view_change.clone();
        change(&mut content);
        bad.push(verify(content).err());
    }
    use ProofError::{Backups, Numbers, PreparedLater, Signature};
    let (one, two) = (SeqNum(1), SeqNum(2));
    let expected = [
        Signature(one),
        Signature(two),
        Numbers,
        PreparedLater(one),
        Backups(one),
        Backups(one),
        Backups(one),
        Numbers,
    ];
    assert_eq!(bad, expected.map(|error| Some(MessageError::Proof(error))));
}

#[test]
fn a_view_change_is_sent_again_until_the_view_begins_and_its_timer_runs_only_with_a_quorum() {
    let mut t = bench(1);
    let _ = t.ask(2, 1);
    let again = view_changes(&t.wait(60 * SECOND));
    assert!(again.len() > 20, "{}", again.len());
    assert!(again.iter().all(|view_change| view_change.view == View(1)), "nobody follows: it waits");
    // Two others want view 2, whose primary does not speak up either.
    for from in [2, 3] {
        let _ = t.hear(from, bare(2));
    }
    assert_eq!(t.replica.status().view, View(2));
    let before = t.now.monotonic;
    let mut times = Vec::new();
    for view in 3..6 {
        while t.replica.status().view < View(view) {
            let _ = t.wait(SECOND / 10);
        }
        times.push((t.now.monotonic - before).as_millis() / 900);
        for from in [0, 2] {
            let _ = t.hear(from, bare(view));
        }
    }
    assert_eq!(times, [1, 3, 7], "1 s, 2 s, 4 s");
}

#[test]
fn a_replica_joins_the_highest_view_that_a_correct_one_is_on_the_way_to() {
    let mut t = bench(1);
    assert!(view_changes(&t.hear(3, bare(7)).effects).is_empty(), "one may be faulty");
    assert_eq!(views(&t.hear(2, bare(3)).effects), [3], "f+1 are at 3 or above");
    assert!(view_changes(&t.hear(2, bare(2)).effects).is_empty(), "no way back");
}

#[test]
fn one_slot_for_each_sender_holds_its_highest_view() {
    let mut t = bench(1);
    for view in 1..1_000 {
        let _ = t.hear(3, bare(view));
    }
    assert_eq!(rejected(&t.hear(3, bare(5))), Rejected::Duplicate);
    assert_eq!(t.replica.views.supporters(View(1)), 1);
}

#[test]
fn after_a_restart_the_same_view_change_is_sent_again_and_nothing_for_the_old_view() {
    let (mut t, _) = prepared();
    let first = view_changes(&t.wait(SECOND * 11 / 10));
    assert!(t.wal.iter().any(|entry| entry.pin() == Some(Pin::ViewChange)));
    let entries = t.wal.iter().map(|entry| WalEntry::decode(&NETWORK, &entry.encode()).unwrap()).collect();
    let restored = Restored { entries, ..Restored::new(genesis(), START) };
    let replica = Replica::new(t.replica.settings.clone(), restored).unwrap();
    let mut t = Bench { keys: t.keys.clone(), replica, now: t.now, wal: Vec::new() };
    let said = sent(&t.wait(5 * SECOND));
    assert!(said.iter().all(|content| *content == Content::ViewChange(first[0].clone())), "{said:?}");
    assert!(t.wal.is_empty(), "nothing is signed again");
}
