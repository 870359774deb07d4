//! Requests that others forward: nobody can use that to hurt a third one, or an honest primary.

use super::view_change::{bare, bench, view_changes};
use super::*;
use crate::device;
use crate::ledger::AdmittedMessage;
use crate::pbft::on_request::{MAX_FORWARDED, MAX_REVIVED};
use crate::pbft::pool::Lane;
use crate::types::{MessageSeq, Stream};

const SECOND: Duration = Duration::from_secs(1);

fn forward(t: &mut Bench, request: &Arc<VerifiedRequest>, by: usize) -> Option<Rejected> {
    let source = Source::Forwarded { by: t.keys[by].node_id() };
    t.step(Input::Request { request: Arc::clone(request), source }).rejected
}

fn waiting(t: &Bench, lane: Lane) -> usize {
    t.replica.pool.pending_in(&lane).0
}

fn of(t: &Bench, node: usize) -> Lane {
    Lane::Of(t.keys[node].node_id())
}

/// A request with so many bytes in its items.
fn large(t: &Bench, node: usize, number: u64, bytes: usize) -> Arc<VerifiedRequest> {
    let items: Vec<Vec<u8>> = (0..bytes.div_ceil(1_000)).map(|_| vec![b'x'; 1_000]).collect();
    let header = device::Header {
        client: ClientId::new("a/b").unwrap(),
        stream: Stream::new("env").unwrap(),
        seq: MessageSeq(number),
        event_time: START,
        count: u32::try_from(items.len()).unwrap(),
        items_root: crate::merkle::Tree::new(&items).unwrap().root(),
        body_hash: Hash([0; 32]),
        unused_above: None,
    };
    let (header_bytes, key) = (header.encode(), SecretKey::from_seed(&[98; 32]));
    let message = AdmittedMessage {
        header: &header,
        header_bytes: &header_bytes,
        signature: device::header::sign(&NETWORK, &header_bytes, &key),
        client_key: key.public(),
        items: &items,
    };
    let all: Vec<u32> = (0..header.count).collect();
    Arc::new(VerifiedRequest::from_admitted(t.keys[node].node_id(), message, &all).unwrap())
}

/// The primary (0) proposes, all agree, and the batch is executed and certified.
fn executed_at_the_primary(t: &mut Bench, sequence: u64) {
    let _ = t.wait(Duration::from_millis(10));
    let slot = t.replica.log.get(SeqNum(sequence), View(0)).unwrap();
    let digest = slot.proposal.as_ref().unwrap().digest;
    for from in [1, 2] {
        let _ = t.hear(from, prepare(sequence, digest));
        let _ = t.hear(from, commit(sequence, digest));
    }
    finish(t, sequence, &[1, 2]);
}

fn finish(t: &mut Bench, sequence: u64, others: &[usize]) {
    let _ = t.step(Input::Executed(result(sequence, sequence)));
    for from in others {
        let _ = t.hear(*from, Content::Checkpoint(result(sequence, sequence)));
    }
}

#[test]
fn a_node_that_gives_its_requests_to_all_but_the_primary_deposes_nobody() {
    // A fifth of the usual pool, and of the time.
    let mut t = Bench::with(4, 1, |settings| {
        settings.request_timeout = SECOND;
        settings.request_age_max = 6 * SECOND;
    });
    for number in 1..=1_638 {
        let _ = t.ask(2, number);
    }
    let mut sequence = 0;
    // An honest primary orders all that it is forwarded.
    for _ in 0..100 {
        let effects = t.wait(SECOND / 10);
        assert!(view_changes(&effects).is_empty(), "after {sequence} batches");
        for effect in effects {
            let Effect::ForwardRequests { requests, .. } = effect else { continue };
            sequence += 1;
            let batch = t.batch(&requests, sequence);
            let _ = t.propose(sequence, &batch);
            for from in [2, 3] {
                let _ = t.hear(from, prepare(sequence, batch.digest()));
                let _ = t.hear(from, commit(sequence, batch.digest()));
            }
            finish(&mut t, sequence, &[2, 3]);
        }
    }
    assert_eq!(waiting(&t, of(&t, 2)), 0);
}

#[test]
fn who_is_no_longer_the_primary_does_not_blame_the_next_one_for_what_it_was_forwarded() {
    let mut t = bench(PRIMARY);
    // On its way to view 4, which it is to lead: it can propose nothing yet.
    for from in [1, 2] {
        let _ = t.hear(from, bare(4));
    }
    // In the name of another, and in its own.
    for node in [2, PRIMARY] {
        let request = t.request(node, 1);
        assert_eq!(forward(&mut t, &request, 3), None);
    }
    assert_eq!(t.replica.pool.pending().0, 2);
    for from in [1, 2] {
        let _ = t.hear(from, bare(5));
    }
    assert_eq!(t.replica.status().view, View(5));
    assert_eq!(t.replica.pool.pending().0, 0, "the next primary need not have them");
}

#[test]
fn a_request_that_its_node_sent_after_it_was_forwarded_and_ordered_outlives_the_view() {
    let mut t = bench(PRIMARY);
    let request = t.request(2, 1);
    assert_eq!(forward(&mut t, &request, 3), None);
    let _ = t.wait(Duration::from_millis(10));
    assert_eq!(t.replica.status().accepted, SeqNum(1));
    assert_eq!(rejected(&t.ask(2, 1)), Rejected::Duplicate);
    for from in [1, 2] {
        let _ = t.hear(from, bare(1));
    }
    assert_eq!(waiting(&t, of(&t, 2)), 1);
}

#[test]
fn a_request_that_was_forwarded_in_this_nodes_name_and_then_admitted_goes_to_all() {
    let mut t = Bench::with(4, PRIMARY, |settings| settings.batch_delay = SECOND);
    let own = t.request(PRIMARY, 1);
    assert_eq!(forward(&mut t, &own, 3), None);
    let admitted = t.step(Input::Request { request: Arc::clone(&own), source: Source::Admitted });
    assert_eq!(admitted.rejected, None);
    let sent = Effect::SendRequests { requests: vec![own] };
    assert!(t.wait(Duration::from_millis(5)).contains(&sent));
    assert_eq!(waiting(&t, of(&t, PRIMARY)), 1);
}

#[test]
fn a_message_whose_request_was_executed_before_it_came_has_its_result_at_once() {
    let mut t = bench(PRIMARY);
    let own = t.request(PRIMARY, 1);
    assert_eq!(forward(&mut t, &own, 3), None);
    executed_at_the_primary(&mut t, 1);
    let admitted = t.step(Input::Request { request: own, source: Source::Admitted });
    assert_eq!(admitted.rejected, None);
    executed_at_the_primary(&mut t, 2);
    assert_eq!(t.replica.pool.pending().0, 0);
}

#[test]
fn what_is_ordered_once_more_has_a_limit_in_bytes_too() {
    let mut t = Bench::with(4, PRIMARY, |settings| settings.batch_max_bytes = 4 << 20);
    let requests: Vec<_> = (1..=3).map(|number| large(&t, 1, number, 3 << 20)).collect();
    for (request, sequence) in requests.iter().zip(1..) {
        let _ = t.step(Input::Request { request: Arc::clone(request), source: Source::Bundle });
        executed_at_the_primary(&mut t, sequence);
    }
    // Nothing else is proposed meanwhile.
    t.replica.settings.in_flight_batches = 0;
    for request in &requests {
        let _ = forward(&mut t, request, 3);
    }
    let lane = Lane::ForwardedBy(t.keys[3].node_id());
    let (count, bytes) = t.replica.pool.pending_in(&lane);
    assert!(count > 0 && bytes <= MAX_FORWARDED.1, "{count} requests of {bytes} bytes");
}

#[test]
fn what_is_ordered_once_more_and_passed_over_does_not_count_for_ever() {
    let mut t = bench(PRIMARY);
    let number = u64::try_from(MAX_REVIVED).unwrap();
    for number in 1..=number + 1 {
        let _ = t.ask(1, number);
    }
    executed_at_the_primary(&mut t, 1);
    for number in 1..=number {
        let request = t.request(1, number);
        assert_eq!(forward(&mut t, &request, 3), None);
    }
    let _ = t.wait(Duration::from_millis(10));
    assert_eq!(t.replica.status().accepted, SeqNum(2));
    // The others executed it, which changed nothing, and this replica hears only of that.
    for from in [1, 2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(2, 1)));
    }
    let _ = t.wait(SECOND);
    assert_eq!(t.replica.status().executed, SeqNum(2));
    let last = t.request(1, number + 1);
    assert_eq!(forward(&mut t, &last, 3), None);
}

#[test]
fn large_requests_of_one_node_do_not_make_the_batches_of_others_small() {
    let mut t = Bench::with(4, 1, |_| {});
    for number in 1..=3 {
        let request = large(&t, 2, number, 2_000);
        let _ = t.step(Input::Request { request, source: Source::Bundle });
    }
    for number in 11..=15 {
        let _ = t.ask(3, number);
        let _ = t.ask(0, number);
    }
    let mut batches = Vec::new();
    for sequence in 1.. {
        let batch = t.replica.pool.next_batch(100, 2_200);
        if batch.is_empty() {
            break;
        }
        let largest = batch.iter().map(|request| request.bytes().len()).max().unwrap();
        batches.push((batch.len(), largest > 2_000));
        t.replica.pool.order(SeqNum(sequence), &batch, Duration::ZERO);
    }
    assert!(batches.len() <= 6, "{batches:?}");
    let with_large = batches[..5].iter().filter(|(_, large)| *large).count();
    assert!(with_large >= 2, "and they have their turn: {batches:?}");
}
