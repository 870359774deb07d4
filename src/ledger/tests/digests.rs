//! History digests at execution: numbered, chained, of replicas only, and part of the state.

use std::sync::Arc;

use super::fixture::{Net, client, execute};
use crate::crypto::SecretKey;
use crate::ledger::digest::{HistoryDigest, ranges_of};
use crate::ledger::operation::{Operation, Request};
use crate::ledger::outcome::{Outcome, Rejection};
use crate::ledger::request::{RequestError, VerifiedRequest};
use crate::ledger::state::State;
use crate::ledger::{CertifiedBlock, DigestError};
use crate::types::{Hash, Height, MessageSeq, NetworkId, SeqNum};

fn digest(net: &Net, key: &SecretKey, number: u64, previous: Hash) -> HistoryDigest {
    let ranges = ranges_of([(client(1), MessageSeq(number))]);
    HistoryDigest::sign(&net.network, key, (number, previous), (number, 1, Hash([5; 32])), ranges)
}

fn request(net: &Net, digest: &HistoryDigest) -> Arc<VerifiedRequest> {
    Arc::new(VerifiedRequest::verify(&net.network, Request::Digest(digest.clone())).unwrap())
}

/// A digest, and the one that follows it.
fn two(net: &Net, key: &SecretKey) -> [HistoryDigest; 2] {
    let first = digest(net, key, 1, Hash([0; 32]));
    let second = digest(net, key, 2, first.hash());
    [first, second]
}

#[test]
fn digests_of_a_node_stand_one_behind_the_other() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let [first, second] = two(&net, &net.replicas[1]);
    let node = net.replicas[1].node_id();
    let executed = execute(&mut state, &[request(&net, &first), request(&net, &second)]);
    let outcomes: Vec<_> = executed.outcomes.iter().map(|(_, outcome)| outcome.clone()).collect();
    let stands = |operation| Outcome::DigestExecuted { height: Height(1), operation };
    assert_eq!(outcomes, [stands(0), stands(1)]);
    assert_eq!(executed.block.unwrap().operations[1], Operation::Digest(second.clone()));
    let record = state.history_digest(&node).unwrap();
    assert_eq!((record.number, record.hash, record.last_row), (2, second.hash(), 2));
    assert_eq!(record.height, Height(1));
}

#[test]
fn a_digest_out_of_order_leaves_no_trace() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let key = &net.replicas[0];
    let [first, second] = two(&net, key);
    let refused = |state: &mut State, digest: &HistoryDigest, last| {
        let before = state.digest();
        let executed = execute(state, &[request(&net, digest)]);
        assert_eq!(executed.outcomes[0].1, Outcome::Rejected(Rejection::DigestOrder { last }));
        assert!(executed.block.is_none() && state.digest() == before);
    };
    refused(&mut state, &second, 0);
    refused(&mut state, &digest(&net, key, 1, Hash([1; 32])), 0);
    execute(&mut state, &[request(&net, &first)]);
    refused(&mut state, &first, 1);
    refused(&mut state, &digest(&net, key, 2, Hash([1; 32])), 1);
    execute(&mut state, &[request(&net, &second)]);
    assert_eq!(state.history_digest(&key.node_id()).unwrap().number, 2);
}

#[test]
fn who_is_no_replica_writes_no_digest() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let [first, _] = two(&net, &SecretKey::from_seed(&[77; 32]));
    let executed = execute(&mut state, &[request(&net, &first)]);
    assert_eq!(executed.outcomes[0].1, Outcome::Rejected(Rejection::NotAReplica));
}

#[test]
fn digests_are_part_of_the_state_and_survive_a_restart() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let before = state.digest();
    let [first, _] = two(&net, &net.replicas[2]);
    execute(&mut state, &[request(&net, &first)]);
    assert_ne!(state.digest(), before);
    let restored = State::restore(net.network, state.head().clone(), state.entries()).unwrap();
    assert_eq!(restored, state);
}

#[test]
fn a_block_with_a_digest_is_repeated_by_a_replica_that_was_away() {
    let net = Net::new(4);
    let (mut one, mut other) = (State::genesis(&net.genesis), State::genesis(&net.genesis));
    let [first, _] = two(&net, &net.replicas[3]);
    let request = request(&net, &first);
    let executed = execute(&mut one, std::slice::from_ref(&request));
    let certificate = net.certify(executed.checkpoint, &[0, 1, 2]);
    let block = executed.block.unwrap();
    let certified = CertifiedBlock::verify(block, certificate, &net.network, &net.keys).unwrap();
    let applied = other.apply(&certified).unwrap();
    assert_eq!(applied.outcomes[0].0, request.digest(), "who waits for the request hears of it");
    assert_eq!(other, one);
    assert_eq!(other.checkpoint().sequence, SeqNum(1));
}

#[test]
fn what_the_node_did_not_sign_is_no_request() {
    let net = Net::new(4);
    let [first, _] = two(&net, &net.replicas[0]);
    let altered = HistoryDigest { root: Hash([6; 32]), ..first.clone() };
    let refused = VerifiedRequest::verify(&net.network, Request::Digest(altered));
    assert!(matches!(refused, Err(RequestError::Digest(DigestError::Signature(_)))));
    let foreign = VerifiedRequest::verify(&NetworkId([9; 32]), Request::Digest(first));
    assert!(foreign.is_err());
}
