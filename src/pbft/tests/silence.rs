//! A replica that lost its log: silent until it cannot contradict itself.

use super::new_view::{bare_ones, new_view};
use super::view_change::bare;
use super::*;
use crate::ledger::Certificate;

const SECOND: Duration = Duration::from_secs(1);

fn without_log(executed: CheckpointContent) -> Bench {
    let keys = keys(4);
    let restored = Restored { lost_log: true, ..Restored::new(executed, START) };
    let replica = Replica::new(settings(&keys, 1), restored).unwrap();
    let now = Now { wall: START.plus_ms(1_000), monotonic: SECOND };
    Bench { keys, replica, now, wal: Vec::new() }
}

fn votes(effects: &[Effect]) -> usize {
    sent(effects).iter().filter(|content| content.view().is_some()).count()
}

fn claim(t: &mut Bench, from: usize, sequence: u64) {
    let _ = t.hear(from, Content::Checkpoint(result(sequence, sequence)));
}

fn synced(sequence: u64) -> Input {
    let certificate = Certificate { content: result(sequence, sequence), signatures: Vec::new() };
    Input::BlocksSynced { certificate, timestamp: START, requests: Vec::new() }
}

#[test]
fn it_votes_only_a_window_above_what_the_others_had_executed() {
    let mut t = without_log(result(5, 5));
    for from in [0, 2, 3] {
        claim(&mut t, from, 5);
    }
    let effects = t.wait(11 * SECOND);
    assert!(t.replica.status().silent && votes(&effects) == 0);
    assert_eq!(t.wal.iter().filter(|entry| matches!(entry, WalEntry::Silent(true))).count(), 1);
    let _ = t.step(synced(260));
    assert!(t.replica.status().silent, "it may have voted for up to 261");
    let _ = t.step(synced(261));
    assert!(!t.replica.status().silent);
    assert!(t.wal.contains(&WalEntry::Silent(false)));
    let _ = t.commit_batch(262);
    assert_eq!(t.replica.dispatched, SeqNum(262), "it takes part again");
}

#[test]
fn it_neither_votes_nor_changes_views_while_it_is_silent() {
    let mut t = without_log(result(0, 0));
    let _ = t.ask(2, 1);
    let batch = t.batch(&[t.request(2, 1)], 5);
    let mut effects = t.propose(1, &batch).effects;
    for from in [0, 2, 3] {
        effects.extend(t.hear(from, bare(1)).effects);
    }
    effects.extend(t.wait(20 * SECOND));
    assert_eq!(votes(&effects), 0);
    assert_eq!(t.replica.status().view, View(0), "only a NEW-VIEW leads elsewhere");
}

#[test]
fn it_stays_silent_over_a_restart() {
    let mut t = without_log(result(5, 5));
    let _ = t.wait(SECOND);
    let restored = Restored { entries: t.wal.clone(), ..Restored::new(result(5, 5), START) };
    let replica = Replica::new(t.replica.settings.clone(), restored).unwrap();
    assert!(replica.status().silent);
}

#[test]
fn a_replica_without_any_data_that_finds_the_others_far_ahead_keeps_silent_too() {
    let mut t = Bench::new(4, 1);
    for from in [0, 2] {
        claim(&mut t, from, 200);
    }
    assert!(!t.replica.status().silent, "only late");
    let mut t = Bench::new(4, 1);
    for from in [0, 2] {
        claim(&mut t, from, 300);
    }
    assert!(t.replica.status().silent);
}

#[test]
fn it_enters_a_view_whose_new_view_names_its_own_forgotten_view_change() {
    let mut t = without_log(result(5, 5));
    let from = bare_ones(2);
    let _ = t.hear(2, new_view(&t.keys, 2, &from, &[]));
    for (at, content) in from.iter().filter(|(at, _)| *at != 1) {
        let _ = t.hear(*at, content.clone());
    }
    assert_eq!(t.replica.status().view, View(0), "one that it names is missing");
    assert_eq!(rejected(&t.hear(1, bare(3))), Rejected::Own, "nobody names this one");
    let effects = t.hear(1, bare(2)).effects;
    let status = t.replica.status();
    assert_eq!((status.view, status.changing, status.silent), (View(2), false, true));
    assert_eq!(votes(&effects), 0);
    assert_eq!(rejected(&t.hear(1, bare(2))), Rejected::Own, "it has entered the view");
}
