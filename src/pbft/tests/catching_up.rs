//! Being behind: noticing it, and getting over it.

use super::*;
use crate::ledger::Certificate;
use crate::pbft::settings::WINDOW;

fn certificate(content: CheckpointContent) -> Certificate {
    Certificate { content, signatures: Vec::new() }
}

fn fetches(effects: &[Effect]) -> Vec<(Height, SeqNum)> {
    let fetch = |effect: &Effect| match effect {
        Effect::FetchBlocks { above, upto, .. } => Some((*above, *upto)),
        _ => None,
    };
    effects.iter().filter_map(fetch).collect()
}

#[test]
fn one_replica_s_word_is_not_enough_to_be_behind() {
    let mut t = Bench::new(4, 1);
    let _ = t.hear(3, Content::Checkpoint(result(1_000_000, 9)));
    assert!(fetches(&t.wait(Duration::from_secs(5))).is_empty());
}

#[test]
fn what_a_correct_replica_executed_is_fetched_after_a_while_and_again() {
    let mut t = Bench::new(4, 1);
    let _ = t.hear(3, Content::Checkpoint(result(9, 9)));
    let _ = t.hear(2, Content::Checkpoint(result(7, 7)));
    assert!(fetches(&t.wait(Duration::from_millis(499))).is_empty());
    assert_eq!(fetches(&t.wait(Duration::from_millis(1))), [(Height(0), SeqNum(7))]);
    assert_eq!(fetches(&t.wait(Duration::from_millis(250))).len(), 1, "whoever was asked may be dead");
    assert_eq!(fetches(&t.wait(Duration::from_millis(250))).len(), 1);
    assert_eq!(fetches(&t.wait(Duration::from_millis(499))).len(), 0);
    assert_eq!(fetches(&t.wait(Duration::from_millis(1))).len(), 1);
}

#[test]
fn who_is_still_behind_after_blocks_fetches_the_next_at_once() {
    let mut t = Bench::new(4, 1);
    for from in [2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(7, 7)));
    }
    let _ = t.wait(Duration::from_millis(500));
    let synced = Input::BlocksSynced {
        certificate: certificate(result(6, 6)),
        timestamp: START.plus_ms(500),
        requests: Vec::new(),
    };
    assert_eq!(fetches(&t.step(synced).effects), [(Height(6), SeqNum(7))]);
    assert_eq!(fetches(&t.wait(Duration::from_millis(249))).len(), 0);
}

#[test]
fn beyond_the_high_watermark_blocks_are_fetched_at_once() {
    let mut t = Bench::new(4, 1);
    let far = result(WINDOW + 1, 3);
    let _ = t.hear(3, Content::Checkpoint(far));
    let output = t.hear(2, Content::Checkpoint(far));
    let from = vec![t.keys[2].node_id(), t.keys[3].node_id()];
    let mut expected = from.clone();
    expected.sort_unstable();
    let fetch = Effect::FetchBlocks { above: Height(0), upto: far.sequence, from: expected };
    assert_eq!(output.effects, [fetch]);
    assert_eq!(rejected(&output), Rejected::AboveWatermark { high: SeqNum(WINDOW) });
}

#[test]
fn fetched_blocks_move_the_watermarks_and_are_signed_for() {
    let mut t = Bench::new(4, 1);
    let content = result(300, 200);
    let input = Input::BlocksSynced {
        certificate: certificate(content),
        timestamp: START.plus_ms(500),
        requests: Vec::new(),
    };
    let output = t.step(input.clone());
    assert_eq!(sent(&output.effects), [Content::Checkpoint(content)]);
    let status = t.replica.status();
    assert_eq!((status.stable, status.executed, status.accepted), (SeqNum(300), SeqNum(300), SeqNum(300)));
    assert_eq!(rejected(&t.step(input)), Rejected::OutOfOrder { expected: SeqNum(301) });
    // The next proposal is judged against the fetched block's time.
    let _ = t.ask(2, 1);
    let stale = t.batch(&[t.request(2, 1)], 500);
    assert!(matches!(rejected(&t.propose(301, &stale)), Rejected::InvalidBatch(_)));
}

#[test]
fn batches_without_effect_are_passed_over_on_the_word_of_f_plus_one() {
    let mut t = Bench::new(4, 1);
    let same = CheckpointContent { sequence: SeqNum(8), ..genesis() };
    assert!(t.hear(3, Content::Checkpoint(same)).effects.is_empty());
    let output = t.hear(2, Content::Checkpoint(same));
    assert!(output.effects.contains(&Effect::Skip(same)));
    assert_eq!(t.replica.status().executed, SeqNum(8));
    // With the own word there are three of four: a certificate.
    assert_eq!(t.replica.status().stable, SeqNum(8));
}

#[test]
fn they_are_passed_over_too_if_the_block_beyond_cannot_be_certified_without_this_replica() {
    let mut t = Bench::new(4, 1);
    for from in [2, 3] {
        assert!(t.hear(from, Content::Checkpoint(result(9, 1))).effects.is_empty());
    }
    let same = CheckpointContent { sequence: SeqNum(8), ..genesis() };
    assert!(!t.hear(3, Content::Checkpoint(same)).effects.contains(&Effect::Skip(same)), "one may lie");
    assert!(!t.hear(3, Content::Checkpoint(same)).effects.contains(&Effect::Skip(same)), "twice, too");
    assert!(t.hear(2, Content::Checkpoint(same)).effects.contains(&Effect::Skip(same)));
}

#[test]
fn who_is_below_the_watermark_hears_the_checkpoint_of_the_watermark_again() {
    let mut t = Bench::new(4, 1);
    let stable = result(300, 200);
    let (certificate, timestamp) = (certificate(stable), START.plus_ms(500));
    let _ = t.step(Input::BlocksSynced { certificate, timestamp, requests: Vec::new() });
    let _ = t.commit_batch(301);
    let _ = t.step(Input::Executed(result(301, 201)));
    assert_eq!((t.replica.status().stable, t.replica.status().executed), (SeqNum(300), SeqNum(301)));
    let _ = t.wait(Duration::from_secs(5));
    for behind in [result(290, 200), result(7, 7)] {
        let output = t.hear(3, Content::Checkpoint(behind));
        assert!(sent(&output.effects).contains(&Content::Checkpoint(stable)), "{behind:?}");
        let again = t.hear(3, Content::Checkpoint(behind));
        assert!(!sent(&again.effects).contains(&Content::Checkpoint(stable)), "not each time");
        let _ = t.wait(Duration::from_secs(5));
    }
}

#[test]
fn own_requests_that_were_passed_over_are_asked_for_again() {
    let mut t = Bench::new(4, 1);
    let _ = t.ask(1, 1);
    let _ = t.propose(1, &t.batch(&[t.request(1, 1)], 5));
    assert_eq!(t.replica.status().pending, 0);
    let input = Input::BlocksSynced {
        certificate: certificate(result(1, 1)),
        timestamp: START,
        requests: Vec::new(),
    };
    let _ = t.step(input);
    assert_eq!(t.replica.status().pending, 1);
}

#[test]
fn requests_that_fetched_blocks_wrote_are_done_with_wherever_they_stood() {
    let mut t = Bench::new(4, 1);
    // One is in a proposal that is passed over, one waits, one is not written yet.
    for number in 1..=3 {
        let _ = t.ask(1, number);
    }
    let requests: Vec<_> = (1..=3).map(|number| t.request(1, number)).collect();
    let _ = t.propose(1, &t.batch(&requests[..1], 5));
    let written = requests[..2].iter().map(|request| request.digest()).collect();
    let (certificate, timestamp) = (certificate(result(2, 2)), START);
    let _ = t.step(Input::BlocksSynced { certificate, timestamp, requests: written });
    assert_eq!(t.replica.status().pending, 1);
    let sent: Vec<_> = t
        .wait(Duration::from_secs(20))
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::SendRequests { requests } => Some(requests),
            _ => None,
        })
        .flatten()
        .collect();
    assert!(!sent.is_empty() && sent.iter().all(|request| *request == requests[2]), "only what is open");
    for request in &requests[..2] {
        let again = Input::Request { request: Arc::clone(request), source: Source::Admitted };
        assert_eq!(rejected(&t.step(again)), Rejected::Duplicate);
    }
}

#[test]
fn bodies_that_a_later_proposal_needs_stay_although_a_fetched_block_has_them() {
    let mut t = Bench::new(4, 1);
    let _ = t.ask(2, 1);
    let request = t.request(2, 1);
    let skipped = t.batch(&[t.request(3, 9)], 4);
    let _ = t.ask(3, 9);
    let _ = t.propose(1, &skipped);
    let _ = t.propose(2, &t.batch(&[Arc::clone(&request)], 5));
    let (certificate, timestamp) = (certificate(result(1, 1)), START);
    let requests = vec![request.digest()];
    let _ = t.step(Input::BlocksSynced { certificate, timestamp, requests });
    assert_eq!(t.replica.request(&request.digest()), Some(request), "it was promised to others");
}

#[test]
fn checkpoints_of_what_was_passed_over_count_even_above_the_window() {
    let mut t = Bench::new(4, 1);
    let far = CheckpointContent { sequence: SeqNum(WINDOW + 44), ..genesis() };
    for from in [2, 3] {
        let _ = t.hear(from, Content::Checkpoint(far));
    }
    assert_eq!(t.replica.status().executed, far.sequence, "nothing happened up to there");
    for from in [0, 2, 3] {
        let _ = t.hear(from, Content::Checkpoint(far));
    }
    assert_eq!(t.replica.status().stable, far.sequence);
}

#[test]
fn a_certificate_whose_votes_got_lost_is_fetched() {
    let mut t = Bench::new(4, 1);
    for sequence in 1..=2 {
        let _ = t.commit_batch(sequence);
        let _ = t.step(Input::Executed(result(sequence, sequence)));
    }
    for from in [2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(2, 2)));
    }
    let asked = |effects: &[Effect]| {
        let wanted = |effect: &Effect| matches!(effect, Effect::FetchCertificates { heights, .. } if *heights == [Height(1)]);
        effects.iter().any(wanted)
    };
    assert!(asked(&t.wait(Duration::from_secs(10))));
    let _ = t.step(Input::CertificateFetched(certificate(result(1, 1))));
    assert!(!asked(&t.wait(Duration::from_secs(10))));
}

#[test]
fn a_primary_that_is_behind_proposes_nothing() {
    let mut t = Bench::new(4, PRIMARY);
    for from in [2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(9, 9)));
    }
    let _ = t.ask(1, 1);
    let proposals = |effects: &[Effect]| {
        sent(effects).iter().filter(|content| matches!(content, Content::PrePrepare(_))).count()
    };
    assert_eq!(proposals(&t.wait(Duration::from_millis(100))), 0);
    let _ = t.step(Input::BlocksSynced {
        certificate: certificate(result(9, 9)),
        timestamp: START,
        requests: Vec::new(),
    });
    assert_eq!(t.replica.status().pending, 0, "what others asked for may be on the ledger by now");
    let _ = t.ask(1, 1);
    let _ = t.wait(Duration::from_millis(10));
    assert_eq!(t.replica.status().accepted, SeqNum(10), "and goes on above what it learned");
}
