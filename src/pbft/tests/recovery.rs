//! RECOVERY: an idle cluster helps a replica that lost its log, and only so far.

use super::view_change::{bare, bench};
use super::*;
use crate::ledger::Certificate;
use crate::pbft::message::Recovery;

const SECOND: Duration = Duration::from_secs(1);

fn recovery(until: u64) -> Content {
    Content::Recovery(Recovery { until: SeqNum(until) })
}

fn proposals(effects: &[Effect]) -> Vec<(u64, bool)> {
    let proposal = |content| match content {
        Content::PrePrepare(proposed) => Some((proposed.sequence.0, proposed.batch == Batch::null())),
        _ => None,
    };
    sent(effects).into_iter().filter_map(proposal).collect()
}

/// The null batch of `sequence` commits and its checkpoint becomes stable.
fn finish_null(t: &mut Bench, sequence: u64) {
    let digest = Batch::null().digest();
    for from in [1, 2] {
        let _ = t.hear(from, prepare(sequence, digest));
        let _ = t.hear(from, commit(sequence, digest));
    }
    let _ = t.step(Input::Executed(result(sequence, 0)));
    for from in [1, 2] {
        let _ = t.hear(from, Content::Checkpoint(result(sequence, 0)));
    }
    assert_eq!(t.replica.status().stable, SeqNum(sequence));
}

#[test]
fn an_idle_primary_proposes_null_batches_one_by_one_until_the_checkpoint_is_there() {
    let mut t = bench(PRIMARY);
    assert!(proposals(&t.wait(SECOND)).is_empty());
    let first = t.hear(3, recovery(3)).effects;
    assert_eq!(proposals(&first), [(1, true)]);
    assert!(proposals(&t.wait(SECOND / 5)).is_empty(), "the first is not executed");
    for sequence in 1..3 {
        finish_null(&mut t, sequence);
        let _ = t.wait(SECOND / 5);
        assert_eq!(t.replica.status().accepted, SeqNum(sequence + 1));
    }
    finish_null(&mut t, 3);
    let _ = t.wait(60 * SECOND);
    assert_eq!(t.replica.status().accepted, SeqNum(3));
}

#[test]
fn real_requests_come_first() {
    let mut t = bench(PRIMARY);
    let _ = t.ask(1, 1);
    let _ = t.hear(3, recovery(3));
    assert_eq!(proposals(&t.wait(SECOND / 10)), [(1, false)]);
}

#[test]
fn one_that_waits_for_ever_is_helped_only_so_far() {
    let mut t = bench(PRIMARY);
    let mut made = 0;
    for sequence in 1..2_000 {
        let _ = t.hear(3, recovery(t.replica.status().stable.0 + 512));
        let _ = t.wait(SECOND / 20);
        if t.replica.status().accepted == SeqNum(sequence) {
            made += 1;
            finish_null(&mut t, sequence);
        } else {
            break;
        }
    }
    assert_eq!(made, 512, "two windows in ten minutes");
}

#[test]
fn what_lies_too_far_ahead_or_behind_is_not_waited_for() {
    let mut t = bench(PRIMARY);
    assert_eq!(rejected(&t.hear(3, recovery(513))), Rejected::AboveWatermark { high: SeqNum(512) });
    assert_eq!(rejected(&t.hear(3, recovery(0))), Rejected::BelowWatermark { low: SeqNum(0) });
    assert!(proposals(&t.wait(SECOND)).is_empty());
}

#[test]
fn a_backup_votes_for_null_batches_at_its_own_pace() {
    let mut t = bench(1);
    let prepared = |effects: &[Effect]| sent_by(&keys(4)[1], effects).len();
    assert_eq!(prepared(&t.propose(1, &Batch::null()).effects), 1);
    let mut effects = Vec::new();
    for sequence in 2..=100 {
        effects.extend(t.propose(sequence, &Batch::null()).effects);
    }
    effects.extend(t.wait(Duration::from_millis(100)));
    assert_eq!(prepared(&effects), 10, "one every 10 ms");
}

#[test]
fn a_primary_that_lost_its_log_is_replaced_even_if_nothing_waits() {
    let mut t = bench(1);
    let _ = t.hear(3, recovery(9));
    let _ = t.wait(10 * SECOND);
    assert_eq!(t.replica.status().view, View(0), "only the primary must be able to propose");
    let _ = t.hear(PRIMARY, recovery(9));
    let _ = t.wait(SECOND * 39 / 10);
    assert_eq!(t.replica.status().view, View(0));
    let _ = t.wait(SECOND / 5);
    assert_eq!(t.replica.status().view, View(1));
}

#[test]
fn what_a_primary_said_of_a_loss_that_is_over_makes_nobody_who_is_behind_suspect_it() {
    let mut t = bench(1);
    // Somebody repeats it to one that was away, which hears a moment later that it is behind.
    let _ = t.hear(PRIMARY, recovery(9));
    let _ = t.wait(2 * SECOND);
    for from in [2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(20, 20)));
    }
    for _ in 0..20 {
        let _ = t.hear(PRIMARY, recovery(9));
        let _ = t.wait(SECOND);
    }
    let certificate = Certificate { content: result(20, 20), signatures: Vec::new() };
    let _ = t.step(Input::BlocksSynced { certificate, timestamp: START, requests: Vec::new() });
    assert_eq!(rejected(&t.hear(PRIMARY, recovery(9))), Rejected::BelowWatermark { low: SeqNum(20) });
    let _ = t.wait(60 * SECOND);
    assert_eq!(t.replica.status().view, View(0));
}

#[test]
fn a_primary_under_which_something_is_executed_is_not_silent() {
    let mut t = bench(1);
    let _ = t.hear(PRIMARY, recovery(9));
    for sequence in 1..=4 {
        let _ = t.wait(3 * SECOND);
        let _ = t.commit_batch(sequence);
        let _ = t.step(Input::Executed(result(sequence, sequence)));
        for from in [0, 2, 3] {
            let _ = t.hear(from, Content::Checkpoint(result(sequence, sequence)));
        }
    }
    assert_eq!(t.replica.status().view, View(0));
}

/// A replica (1) that lost its log, when it may vote again: from checkpoint 256 on.
fn speaking() -> Bench {
    let keys = keys(4);
    let restored = Restored { lost_log: true, ..Restored::new(genesis(), START) };
    let replica = Replica::new(settings(&keys, 1), restored).unwrap();
    let now = Now { wall: START.plus_ms(1_000), monotonic: SECOND };
    let mut t = Bench { keys, replica, now, wal: Vec::new() };
    for from in [0, 2, 3] {
        let _ = t.hear(from, Content::Checkpoint(genesis()));
    }
    let effects = t.wait(12 * SECOND);
    assert!(sent(&effects).contains(&recovery(256)), "it says what it waits for");
    let certificate = Certificate { content: result(256, 256), signatures: Vec::new() };
    let _ = t.step(Input::BlocksSynced { certificate, timestamp: START, requests: Vec::new() });
    assert!(!t.replica.status().silent);
    t
}

fn begins_view_1(t: &mut Bench) -> bool {
    let mut effects = Vec::new();
    for from in [0, 2, 3] {
        effects.extend(t.hear(from, bare(1)).effects);
    }
    sent(&effects).iter().any(|content| matches!(content, Content::NewView(_)))
}

#[test]
fn it_begins_no_view_before_a_batch_committed_with_its_vote() {
    let mut t = speaking();
    assert!(!begins_view_1(&mut t), "it may have begun this one before");
    let mut t = speaking();
    let _ = t.commit_batch(257);
    assert!(t.wal.contains(&WalEntry::Proven));
    assert!(begins_view_1(&mut t));
}

#[test]
fn what_the_log_says_about_silence_moves_along_so_that_the_log_can_be_cut() {
    let mut t = speaking();
    let _ = t.commit_batch(257);
    let before = t.wal.len();
    let certificate = Certificate { content: result(600, 600), signatures: Vec::new() };
    let _ = t.step(Input::BlocksSynced { certificate, timestamp: START, requests: Vec::new() });
    assert!(t.wal[before..].contains(&WalEntry::Proven));
    let restored = Restored { entries: t.wal.clone(), ..Restored::new(result(600, 600), START) };
    let replica = Replica::new(t.replica.settings.clone(), restored).unwrap();
    assert!(!replica.status().silent && !replica.may_have_begun_views());
}

#[test]
fn who_keeps_silent_forwards_what_waits_and_judges_nobody_for_that_time_afterwards() {
    let keys = keys(4);
    let restored = Restored { lost_log: true, ..Restored::new(genesis(), START) };
    let mut settings = settings(&keys, 1);
    (settings.request_timeout, settings.request_timeout_max) = (SECOND, 32 * SECOND);
    let replica = Replica::new(settings, restored).unwrap();
    let now = Now { wall: START.plus_ms(1_000), monotonic: SECOND };
    let mut t = Bench { keys, replica, now, wal: Vec::new() };
    let _ = t.ask(1, 1);
    for from in [0, 2, 3] {
        let _ = t.hear(from, Content::Checkpoint(genesis()));
    }
    let effects = t.wait(12 * SECOND);
    let forwarded = |effect: &Effect| matches!(effect, Effect::ForwardRequests { .. });
    assert!(t.replica.status().silent && effects.iter().any(forwarded));
    let certificate = Certificate { content: result(256, 256), signatures: Vec::new() };
    let _ = t.step(Input::BlocksSynced { certificate, timestamp: START, requests: Vec::new() });
    let _ = t.step(Input::Tick);
    let _ = t.wait(SECOND * 9 / 10);
    assert_eq!((t.replica.status().silent, t.replica.status().view), (false, View(0)));
    let _ = t.wait(SECOND / 5);
    assert_eq!(t.replica.status().view, View(1));
}
