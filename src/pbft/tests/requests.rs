//! The pool: who may put what into it, and what becomes of it.

use super::*;
use crate::pbft::on_request::MAX_FORWARDED;
use crate::pbft::pool::Lane;

#[test]
fn own_requests_go_out_in_bundles_and_again_until_they_are_ordered() {
    let mut t = Bench::new(4, 1);
    let requests: Vec<_> = (1..=3).map(|number| t.request(1, number)).collect();
    for number in 1..=3 {
        let _ = t.ask(1, number);
    }
    let bundle = Effect::SendRequests { requests: requests.clone() };
    assert_eq!(t.wait(Duration::from_millis(2)), std::slice::from_ref(&bundle));
    assert_eq!(t.wait(Duration::from_millis(510)), [bundle], "in the same order");
    let _ = t.propose(1, &t.batch(&requests, 5));
    let later = t.wait(Duration::from_secs(20));
    assert!(!later.iter().any(|effect| matches!(effect, Effect::SendRequests { .. })));
}

#[test]
fn large_requests_are_split_over_bundles() {
    let mut t = Bench::new(4, 1);
    for number in 1..=1_500 {
        let _ = t.ask(1, number);
    }
    let sizes: Vec<usize> = t
        .wait(Duration::from_millis(2))
        .iter()
        .filter_map(|effect| match effect {
            Effect::SendRequests { requests } => Some(requests.len()),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [512, 512, 476]);
}

#[test]
fn a_request_comes_only_from_the_node_that_it_names() {
    let mut t = Bench::new(4, 1);
    let (own, other) = (t.request(1, 1), t.request(2, 1));
    let taken = |t: &mut Bench, request: &Arc<_>, source| {
        t.step(Input::Request { request: Arc::clone(request), source }).rejected
    };
    assert_eq!(taken(&mut t, &own, Source::Bundle), Some(Rejected::WrongNode));
    assert_eq!(taken(&mut t, &other, Source::Admitted), Some(Rejected::WrongNode));
    assert_eq!(taken(&mut t, &other, Source::Fetched), Some(Rejected::NotWanted));
    assert_eq!(taken(&mut t, &other, Source::Bundle), None);
    assert_eq!(taken(&mut t, &other, Source::Bundle), Some(Rejected::Duplicate));
    let mut stranger = keys(5);
    stranger.retain(|key| !t.keys.iter().any(|known| known.node_id() == key.node_id()));
    let foreign = request_of(&stranger, 0, 1);
    assert_eq!(taken(&mut t, &foreign, Source::Bundle), Some(Rejected::WrongNode));
}

#[test]
fn of_several_requests_each_that_is_refused_is_told() {
    let mut t = Bench::with(4, 1, |settings| settings.pool_max_requests = 3);
    let own: Vec<_> = (1..=4).map(|number| t.request(1, number)).collect();
    assert_eq!(t.replica.room_for(&own), 3);
    let step = |t: &mut Bench, requests: &[Arc<_>]| {
        t.step(Input::Requests { requests: requests.to_vec(), source: Source::Admitted })
    };
    assert_eq!(step(&mut t, &own[..1]).refused, []);
    assert_eq!(t.replica.room_for(&own[1..]), 2);
    let output = step(&mut t, &own);
    let refused = [(own[0].digest(), Rejected::Duplicate), (own[3].digest(), Rejected::PoolFull)];
    assert_eq!((output.rejected, output.refused), (Some(Rejected::Duplicate), refused.to_vec()));
    assert_eq!(t.replica.room_for(&own), 0);
}

#[test]
fn one_node_cannot_fill_the_pool_for_others() {
    let mut t = Bench::with(4, 1, |settings| settings.pool_max_requests = 3);
    for number in 1..=3 {
        assert_eq!(t.ask(2, number).rejected, None);
    }
    assert_eq!(rejected(&t.ask(2, 4)), Rejected::PoolFull);
    assert_eq!(t.ask(3, 1).rejected, None);
    assert!(t.replica.has_room(1));
}

#[test]
fn what_is_forwarded_in_a_nodes_name_takes_none_of_its_room() {
    let mut t = Bench::new(4, 0);
    let node = |t: &Bench, at: usize| t.keys[at].node_id();
    let room = |t: &Bench| t.replica.pool.pending_in(&Lane::Of(node(t, 1))).0;
    let forward = |t: &mut Bench, request: Arc<_>, by: usize| {
        let source = Source::Forwarded { by: node(t, by) };
        t.step(Input::Request { request, source }).rejected
    };
    // Nothing is proposed meanwhile.
    t.replica.settings.in_flight_batches = 0;
    let most = u64::try_from(MAX_FORWARDED.0).unwrap();
    for number in 1..=most {
        let request = t.request(1, number);
        assert_eq!(forward(&mut t, request, 3), None);
    }
    let next = t.request(1, most + 1);
    assert_eq!(forward(&mut t, Arc::clone(&next), 3), Some(Rejected::PoolFull));
    assert_eq!(room(&t), 0);
    assert_eq!(forward(&mut t, next, 2), None, "each forwarder has a queue of its own");
    // The node itself sends one of them, and another: both are its own then.
    assert_eq!(rejected(&t.ask(1, most)), Rejected::Duplicate);
    assert_eq!(t.ask(1, most + 2).rejected, None);
    assert_eq!(room(&t), 2);
    let batch = t.replica.pool.next_batch(5, usize::MAX);
    let mut expected: Vec<_> =
        [1, most, most + 1, most + 2, 2].into_iter().map(|number| t.request(1, number).digest()).collect();
    let mut taken: Vec<_> = batch.iter().map(|request| request.digest()).collect();
    taken.sort_unstable();
    expected.sort_unstable();
    assert_eq!(taken, expected, "all queues in turn");
}

#[test]
fn a_full_pool_still_takes_what_an_open_proposal_lacks() {
    let mut t = Bench::with(4, 1, |settings| settings.pool_max_requests = 1);
    let _ = t.ask(2, 1);
    let lacking = t.request(2, 2);
    let _ = t.propose(1, &t.batch(&[lacking], 5));
    assert_eq!(t.ask(2, 2).rejected, None);
    assert_eq!(t.replica.status().accepted, SeqNum(1));
}

#[test]
fn batches_take_from_the_nodes_in_turn_and_from_each_in_order() {
    let mut t = Bench::with(4, PRIMARY, |settings| settings.batch_max_requests = 6);
    for number in 1..=4 {
        let _ = t.ask(1, number);
    }
    let _ = t.ask(3, 1);
    let proposed = sent(&t.ask(3, 2).effects);
    let [Content::PrePrepare(proposal)] = &proposed[..] else { panic!("{proposed:?}") };
    let order = [(1, 1), (3, 1), (1, 2), (3, 2), (1, 3), (1, 4)];
    let expected: Vec<Hash> = order.iter().map(|(node, number)| t.request(*node, *number).digest()).collect();
    assert_eq!(proposal.batch.requests, expected);
}

#[test]
fn a_request_is_not_ordered_twice() {
    let mut t = Bench::with(1, 0, |settings| settings.batch_max_requests = 1);
    assert_eq!(executions(&t.ask(0, 1).effects), [1]);
    assert_eq!(rejected(&t.ask(0, 1)), Rejected::Duplicate);
    let _ = t.step(Input::Executed(result(1, 1)));
    assert_eq!(t.replica.status().stable, SeqNum(1));
    assert_eq!(rejected(&t.ask(0, 1)), Rejected::Duplicate, "also when it is stable");
}

#[test]
fn a_node_that_passed_an_execution_over_may_ask_again_after_a_while() {
    let mut t = Bench::new(4, 1);
    let request = t.request(2, 1);
    let _ = t.ask(2, 1);
    let digest = t.batch(&[Arc::clone(&request)], 5).digest();
    let _ = t.propose(1, &t.batch(&[request], 5));
    for from in [2, 3] {
        let _ = t.hear(from, prepare(1, digest));
        let _ = t.hear(from, commit(1, digest));
    }
    let _ = t.step(Input::Executed(result(1, 1)));
    for from in [2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(1, 1)));
    }
    let _ = t.wait(Duration::from_secs(20));
    assert_eq!(rejected(&t.ask(2, 1)), Rejected::Duplicate);
    let _ = t.wait(Duration::from_secs(20));
    assert_eq!(t.ask(2, 1).rejected, None);
}

#[test]
fn what_another_node_has_given_up_is_dropped_and_what_it_repeats_is_kept() {
    let mut t = Bench::new(4, 1);
    let _ = t.ask(2, 1);
    let _ = t.ask(2, 2);
    let _ = t.ask(1, 1);
    let _ = t.wait(Duration::from_secs(40));
    let _ = t.ask(2, 2);
    let _ = t.wait(Duration::from_secs(40));
    assert!(t.replica.request(&t.request(2, 1).digest()).is_none());
    assert!(t.replica.request(&t.request(2, 2).digest()).is_some());
    assert!(t.replica.request(&t.request(1, 1).digest()).is_some(), "own ones stay");
}

#[test]
fn bodies_can_be_asked_for_until_their_batch_is_stable() {
    let mut t = Bench::new(4, 1);
    let _ = t.commit_batch(1);
    let _ = t.step(Input::Executed(result(1, 1)));
    let digest = t.request(1, 1).digest();
    assert!(t.replica.request(&digest).is_some());
    for from in [2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(1, 1)));
    }
    assert!(t.replica.request(&digest).is_none());
}
