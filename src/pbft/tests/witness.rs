//! A replica that gave its view up, and the others did not.

use super::view_change::bench;
use super::*;
use crate::pbft::certificates::ViewChange;

const SECOND: Duration = Duration::from_secs(1);

/// A backup (1) that alone gave view 0 up, with a request of its own.
fn alone() -> Bench {
    let mut t = bench(1);
    let _ = t.ask(1, 1);
    let _ = t.wait(SECOND * 11 / 10);
    assert!(t.replica.status().changing);
    t
}

fn own_batch(t: &Bench) -> Batch {
    t.batch(&[t.request(1, 1)], 5)
}

#[test]
fn it_executes_what_a_quorum_commits_and_signs_nothing_for_it() {
    let mut t = alone();
    let batch = own_batch(&t);
    let digest = batch.digest();
    let mut effects = t.propose(1, &batch).effects;
    for from in [0, 2] {
        effects.extend(t.hear(from, commit(1, digest)).effects);
    }
    assert!(executions(&effects).is_empty(), "two of three");
    let last = t.hear(3, commit(1, digest));
    assert_eq!(executions(&last.effects), [1]);
    assert!(matches!(last.wal.last(), Some(WalEntry::Committed { .. })), "first to the log");
    effects.extend(last.effects);
    effects.extend(t.step(Input::Executed(result(1, 1))).effects);
    let votes = |content: &Content| matches!(content, Content::Prepare(_) | Content::Commit(_));
    assert!(!sent(&effects).iter().any(votes));
    assert_eq!(t.replica.status().pending, 0, "its own request is done with");
}

#[test]
fn what_it_witnessed_is_executed_after_a_crash() {
    let mut t = alone();
    let batch = own_batch(&t);
    let _ = t.propose(1, &batch);
    for from in [0, 2, 3] {
        let _ = t.hear(from, commit(1, batch.digest()));
    }
    let entries = t.wal.iter().map(|entry| WalEntry::decode(&NETWORK, &entry.encode()).unwrap()).collect();
    let restored = Restored { entries, ..Restored::new(genesis(), START) };
    let mut replica = Replica::new(t.replica.settings.clone(), restored).unwrap();
    let output = replica.step(t.now, Input::Tick);
    assert_eq!(executions(&output.effects), [1]);
    assert!(replica.status().changing);
}

#[test]
fn votes_from_before_it_gave_up_count() {
    let mut t = bench(1);
    let _ = t.ask(1, 1);
    let batch = own_batch(&t);
    let _ = t.propose(1, &batch);
    let _ = t.hear(0, commit(1, batch.digest()));
    let _ = t.hear(2, commit(1, batch.digest()));
    let _ = t.wait(SECOND * 11 / 10);
    assert!(t.replica.status().changing);
    assert_eq!(executions(&t.hear(3, commit(1, batch.digest())).effects), [1]);
}

#[test]
fn commits_for_another_batch_than_the_primary_showed_it_prove_nothing_about_that() {
    let mut t = alone();
    let _ = t.ask(2, 1);
    let other = t.batch(&[t.request(2, 1)], 6);
    let _ = t.propose(1, &own_batch(&t));
    for from in [0, 2, 3] {
        assert!(executions(&t.hear(from, commit(1, other.digest())).effects).is_empty());
    }
    let proposal = t.propose(1, &other);
    assert_eq!(rejected(&proposal), Rejected::Equivocation);
    assert!(executions(&proposal.effects).is_empty());
}

#[test]
fn only_the_window_above_what_is_executed_is_listened_for() {
    let mut t = alone();
    let far = t.hear(2, commit(257, Hash([1; 32])));
    assert_eq!(rejected(&far), Rejected::AboveWatermark { high: SeqNum(256) });
    for sequence in 1..=256 {
        for from in [0, 2, 3] {
            let _ = t.hear(from, commit(sequence, Hash([1; 32])));
        }
    }
    assert_eq!(t.replica.footprint().archived, 256);
    assert_eq!(t.replica.footprint().votes, 0);
}

#[test]
fn what_still_waits_goes_to_the_primary_of_the_view_that_others_are_in() {
    let mut t = alone();
    let forwarded = |effect: &Effect| match effect {
        Effect::ForwardRequests { to, .. } => Some(*to),
        _ => None,
    };
    let to: Vec<_> = t.wait(2 * SECOND).iter().filter_map(forwarded).collect();
    assert!(!to.is_empty() && to.iter().all(|to| *to == t.keys[PRIMARY].node_id()), "{to:?}");
}

#[test]
fn the_view_that_begins_ends_it() {
    let mut t = alone();
    for from in [2, 3] {
        let bare = ViewChange { view: View(1), checkpoint: None, prepared: Vec::new() };
        let _ = t.hear(from, Content::ViewChange(bare));
    }
    assert!(!t.replica.status().changing, "it is the primary of view 1");
    let batch = own_batch(&t);
    let _ = t.propose(1, &batch);
    for from in [0, 2, 3] {
        let late = t.hear(from, commit(1, batch.digest()));
        assert_eq!(rejected(&late), Rejected::OtherView { view: View(1) });
    }
}
