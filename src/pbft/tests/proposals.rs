//! PRE-PREPARE: what a primary proposes and what a backup agrees to.

use super::*;
use crate::pbft::settings::{MAX_BATCH_REQUESTS, WINDOW};

#[test]
fn a_primary_proposes_once_the_oldest_request_has_waited() {
    let mut t = Bench::new(4, PRIMARY);
    assert!(sent(&t.ask(1, 1).effects).is_empty());
    assert!(sent(&t.wait(Duration::from_millis(4)).clone()).is_empty());
    let _ = t.ask(2, 1);
    let effects = t.wait(Duration::from_millis(1));
    let [Content::PrePrepare(proposal)] = &sent(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((proposal.sequence, proposal.batch.requests.len()), (SeqNum(1), 2));
    assert!(t.replica.next_deadline().is_some_and(|due| due > t.now.monotonic));
}

#[test]
fn a_full_batch_is_proposed_at_once() {
    let mut t = Bench::with(4, PRIMARY, |settings| settings.batch_max_requests = 3);
    assert!(sent(&t.ask(1, 1).effects).is_empty() && sent(&t.ask(1, 2).effects).is_empty());
    assert_eq!(sent(&t.ask(1, 3).effects).len(), 1);
}

#[test]
fn nothing_to_order_means_nothing_proposed() {
    let mut t = Bench::new(4, PRIMARY);
    assert!(t.wait(Duration::from_secs(60)).iter().all(|effect| matches!(effect, Effect::FetchView { .. })));
}

#[test]
fn proposals_are_pipelined_up_to_the_high_watermark() {
    let mut t = Bench::with(4, PRIMARY, |settings| {
        settings.batch_max_requests = 1;
        settings.in_flight_batches = 2 * WINDOW;
    });
    for number in 1..=WINDOW + 10 {
        let _ = t.ask(1, number);
    }
    assert_eq!(t.replica.status().accepted, SeqNum(WINDOW));
    assert_eq!(t.replica.status().pending, 10);
}

#[test]
fn no_more_than_sixteen_batches_are_on_their_way_whatever_the_pipeline_is() {
    for pipeline in [1, 64] {
        let mut t = Bench::with(4, PRIMARY, |settings| {
            settings.batch_max_requests = 1;
            settings.pipeline_batches = pipeline;
        });
        for number in 1..=100 {
            let _ = t.ask(1, number);
        }
        assert_eq!(t.replica.status().accepted, SeqNum(16));
        assert!(t.replica.next_deadline() > Some(t.now.monotonic), "nothing is due");
    }
}

#[test]
fn a_primary_s_timestamps_ascend_even_when_its_clock_does_not() {
    let mut t = Bench::with(4, PRIMARY, |settings| settings.batch_max_requests = 1);
    let first = sent(&t.ask(1, 1).effects);
    t.now.wall = START;
    let second = sent(&t.ask(1, 2).effects);
    let time = |sent: &[Content]| match sent {
        [Content::PrePrepare(proposal)] => proposal.batch.timestamp,
        other => panic!("{other:?}"),
    };
    assert_eq!(time(&second), time(&first).plus_ms(1));
}

#[test]
fn bodies_and_proposal_are_logged_before_the_proposal_is_sent() {
    let mut t = Bench::with(4, PRIMARY, |settings| settings.batch_max_requests = 2);
    let _ = t.ask(1, 1);
    let output = t.ask(2, 1);
    let kinds: Vec<_> = output.wal.iter().map(|entry| matches!(entry, WalEntry::Body { .. })).collect();
    assert_eq!(kinds, [true, true, false]);
    assert!(matches!(output.wal[2], WalEntry::Sent(_)));
}

#[test]
fn a_backup_logs_the_bodies_before_its_prepare() {
    let mut t = Bench::new(4, 1);
    let request = t.request(2, 1);
    let _ = t.ask(2, 1);
    let output = t.propose(1, &t.batch(&[request], 5));
    assert!(matches!(&output.wal[..], [WalEntry::Body { .. }, WalEntry::Accepted(_), WalEntry::Sent(_)]));
    assert!(matches!(&sent(&output.effects)[..], [Content::Prepare(_)]));
}

#[test]
fn backup_rejects_second_pre_prepare_for_same_slot() {
    let mut t = Bench::new(4, 1);
    let batches = [t.batch(&[t.request(2, 1)], 5), t.batch(&[t.request(2, 2)], 6)];
    assert_eq!(t.propose(1, &batches[0]).rejected, None);
    let output = t.propose(1, &batches[1]);
    assert_eq!(rejected(&output), Rejected::Equivocation);
    let [Effect::Evidence(_), shown @ ..] = &output.effects[..] else { panic!("{output:?}") };
    let shown = sent(shown);
    let [first, second] = [0, 1].map(|at: usize| pre_prepare(1, &batches[at]));
    assert_eq!(&shown[..2], [first, second], "all others shall see it");
    assert!(matches!(&shown[2..], [Content::ViewChange(_)]), "and the primary is given up");
    assert!(t.propose(1, &batches[1]).effects.is_empty(), "told once");
}

#[test]
fn only_the_primary_proposes_and_only_in_its_view() {
    let mut t = Bench::new(4, 1);
    let batch = t.batch(&[t.request(2, 1)], 5);
    assert_eq!(rejected(&t.hear(2, pre_prepare(1, &batch))), Rejected::NotPrimary);
    let later = PrePrepare { view: View(1), sequence: SeqNum(1), batch };
    assert_eq!(rejected(&t.hear(PRIMARY, Content::PrePrepare(later))), Rejected::OtherView { view: View(0) });
}

#[test]
fn batches_that_no_correct_primary_makes_are_refused() {
    let mut t = Bench::new(4, 1);
    let request = t.request(2, 1);
    let good = t.batch(&[Arc::clone(&request)], 5);
    let bad = [
        t.batch(&[], 5),
        t.batch(&[Arc::clone(&request), request], 5),
        Batch { requests: (0..=MAX_BATCH_REQUESTS).map(hash_of).collect(), ..good.clone() },
        Batch { proposer: t.keys[2].node_id(), ..good.clone() },
        Batch { origin_view: View(4), ..good.clone() },
        Batch { timestamp: Timestamp(u64::MAX), ..good.clone() },
    ];
    for batch in bad {
        assert!(matches!(rejected(&t.propose(1, &batch)), Rejected::InvalidBatch(_)), "{batch:?}");
    }
    assert_eq!(t.propose(1, &good).rejected, None);
}

fn hash_of(number: usize) -> Hash {
    crate::crypto::blake3_plain(&number.to_be_bytes())
}

#[test]
fn proposals_are_taken_only_between_the_watermarks() {
    let mut t = Bench::new(4, 1);
    let batch = t.batch(&[t.request(2, 1)], 5);
    assert_eq!(rejected(&t.propose(0, &batch)), Rejected::BelowWatermark { low: SeqNum(0) });
    let above = rejected(&t.propose(WINDOW + 1, &batch));
    assert_eq!(above, Rejected::AboveWatermark { high: SeqNum(WINDOW) });
    assert_eq!(t.propose(WINDOW, &batch).rejected, None);
}

#[test]
fn proposals_that_come_out_of_order_are_agreed_to_in_order() {
    let mut t = Bench::new(4, 1);
    for number in [1, 2] {
        let _ = t.ask(2, number);
    }
    let batches = [t.batch(&[t.request(2, 1)], 5), t.batch(&[t.request(2, 2)], 6)];
    assert!(sent(&t.propose(2, &batches[1]).effects).is_empty());
    let prepares = sent(&t.propose(1, &batches[0]).effects);
    let sequences: Vec<_> = prepares.iter().map(Content::sequence).collect();
    assert_eq!(sequences, [SeqNum(1), SeqNum(2)]);
}

#[test]
fn a_backup_without_the_bodies_asks_for_them_and_then_votes() {
    let mut t = Bench::new(4, 1);
    let request = t.request(2, 1);
    let batch = t.batch(&[Arc::clone(&request)], 5);
    assert!(t.propose(1, &batch).is_empty());
    let _ = t.hear(3, prepare(1, batch.digest()));
    let effects = t.wait(Duration::from_millis(50));
    let nodes = [t.keys[PRIMARY].node_id(), t.keys[3].node_id()];
    let asked = |from: &[usize]| Effect::FetchRequests {
        digests: vec![request.digest()],
        from: from.iter().map(|at| nodes[*at]).collect(),
    };
    assert_eq!(effects, [asked(&[0, 1])]);
    assert_eq!(t.wait(Duration::from_millis(250)), [asked(&[1, 0])], "another one first");
    let output = t.step(Input::Request { request, source: Source::Fetched });
    assert!(matches!(&sent(&output.effects)[..], [Content::Prepare(_), Content::Commit(_)]));
}

#[test]
fn a_proposal_more_than_five_seconds_ahead_waits_for_the_clock() {
    let mut t = Bench::new(4, 1);
    let _ = t.ask(2, 1);
    let batch = t.batch(&[t.request(2, 1)], 1_000 + 5_010);
    assert!(sent(&t.propose(1, &batch).effects).is_empty());
    assert!(sent(&t.wait(Duration::from_millis(9))).is_empty());
    assert_eq!(sent(&t.wait(Duration::from_millis(1))), [prepare(1, batch.digest())]);
}

#[test]
fn a_proposal_not_above_the_previous_timestamp_gets_no_vote_unless_others_settled_it() {
    let mut t = Bench::new(4, 1);
    for number in [1, 2] {
        let _ = t.ask(2, number);
    }
    let _ = t.propose(1, &t.batch(&[t.request(2, 1)], 5));
    let stale = t.batch(&[t.request(2, 2)], 5);
    assert!(matches!(rejected(&t.propose(2, &stale)), Rejected::InvalidBatch(_)));
    let _ = t.hear(2, commit(2, stale.digest()));
    assert!(sent(&t.wait(Duration::from_millis(20))).is_empty());
    let votes = sent(&t.hear(3, commit(2, stale.digest())).effects);
    assert_eq!(votes, [prepare(2, stale.digest())], "one of two committers is correct");
}

#[test]
fn while_too_much_is_in_flight_nothing_more_is_proposed() {
    let mut t = Bench::with(4, PRIMARY, |settings| settings.batch_max_requests = 1);
    t.replica.settings.inflight_max_bytes = t.request(1, 1).bytes().len() + 1;
    for number in 1..=5 {
        let _ = t.ask(1, number);
    }
    assert_eq!(t.replica.status().accepted, SeqNum(2));
}
