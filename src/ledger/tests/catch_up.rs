//! A replica that follows certified blocks comes to the state of those that executed batches.

use super::fixture::{Net, client, execute, node};
use crate::codec::encode;
use crate::ledger::block::{Block, BlockError, CertifiedBlock, MAX_BLOCK_BYTES};
use crate::ledger::certificate::CertificateError;
use crate::ledger::state::State;
use crate::ledger::{ApplyError, Executed, Outcome, Rejection};
use crate::merkle::MAX_LEAVES;
use crate::types::{Hash, Height, MessageSeq, NetworkId};

fn certified(net: &Net, executed: &Executed) -> CertifiedBlock {
    let certificate = net.certify(executed.checkpoint, &[0, 1, 3]);
    CertifiedBlock::verify(executed.block.clone().unwrap(), certificate, &net.network, &net.keys).unwrap()
}

#[test]
fn a_follower_of_blocks_has_the_same_state() {
    let net = Net::new(4);
    let (mut state, mut follower) = (State::genesis(&net.genesis), State::genesis(&net.genesis));
    let message = net.message(1, 1, 20, 3);
    let batches = [
        vec![net.register(1, 1), net.register(2, 2)],
        vec![net.message(9, 1, 20, 1).request(node(1), &[0])],
        vec![message.request(node(1), &[1]), message.request(node(2), &[0, 1])],
        vec![net.revoke(3, 1, 1), net.set_policies(4, 0, "first")],
        vec![net.set_policies(5, 1, "second")],
    ];
    for batch in batches {
        let executed = execute(&mut state, &batch);
        if executed.block.is_none() {
            continue;
        }
        let applied = follower.apply(&certified(&net, &executed)).unwrap();
        assert_eq!(applied.block, executed.block);
        assert_eq!((applied.checkpoint, &applied.changes), (executed.checkpoint, &executed.changes));
        let is_write = |(_, outcome): &&(Hash, Outcome)| matches!(outcome, Outcome::Written { .. });
        assert!(applied.outcomes.iter().eq(executed.outcomes.iter().filter(is_write)));
        assert_eq!(follower, state);
    }
}

#[test]
fn a_follower_skips_batches_without_effect() {
    let net = Net::new(4);
    let (mut state, mut follower) = (State::genesis(&net.genesis), State::genesis(&net.genesis));
    let first = execute(&mut state, &[net.register(1, 1)]);
    follower.apply(&certified(&net, &first)).unwrap();
    execute(&mut state, &[]);
    assert_eq!(follower.skip_to(&state.checkpoint()), Ok(()));
    assert_eq!(follower.checkpoint(), state.checkpoint());
    assert_eq!(follower.skip_to(&first.checkpoint), Ok(()));
    assert_eq!(follower.checkpoint(), state.checkpoint(), "it never goes back");

    let mut other = state.checkpoint();
    other.state = Hash([0; 32]);
    assert_eq!(follower.skip_to(&other), Err(ApplyError::Diverged { height: Height(1) }));
}

#[test]
fn only_the_next_block_is_applied() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let first = certified(&net, &execute(&mut state, &[net.register(1, 1)]));
    let second = certified(&net, &execute(&mut state, &[net.register(2, 2)]));
    let mut follower = State::genesis(&net.genesis);
    let gap = BlockError::Chain { found: Height(2), expected_previous: Height(0) };
    assert_eq!(follower.apply(&second), Err(gap.into()));
    assert_eq!(follower, State::genesis(&net.genesis));
    follower.apply(&first).unwrap();
    let again = BlockError::Chain { found: Height(1), expected_previous: Height(1) };
    assert_eq!(follower.apply(&first), Err(again.into()));
    follower.apply(&second).unwrap();
    assert_eq!(follower, state);
}

#[test]
fn a_follower_whose_state_differs_notices() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let mut other_genesis = net.genesis.clone();
    other_genesis.admins = vec![client_admin()];
    let executed = execute(&mut state, &[net.register(1, 1)]);
    // The same network by name, another state: as if a disk had lied.
    let lying = State::genesis(&other_genesis);
    let mut follower = State::restore(net.network, state_head_of(&net), entries_of(&net, &lying)).unwrap();
    assert_eq!(follower.apply(&certified(&net, &executed)), Err(ApplyError::Diverged { height: Height(1) }));
}

fn client_admin() -> crate::types::PublicKey {
    super::fixture::client_key(50).public()
}

fn state_head_of(net: &Net) -> crate::ledger::Head {
    State::genesis(&net.genesis).head().clone()
}

fn entries_of(net: &Net, state: &State) -> Vec<(Vec<u8>, Vec<u8>)> {
    let network = crate::codec::encode(&net.network);
    state
        .entries()
        .map(|(key, value)| if key == [0] { (key, network.clone()) } else { (key, value) })
        .collect()
}

#[test]
fn a_block_that_was_altered_is_refused() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let executed = execute(&mut state, &[net.register(1, 1), net.register(2, 2)]);
    let good = executed.block.unwrap();
    let certificate = net.certify(executed.checkpoint, &[0, 1, 2]);
    let verify = |block: Block| {
        CertifiedBlock::verify(block, certificate.clone(), &net.network, &net.keys).map(|_| ()).unwrap_err()
    };
    let altered = |alter: &dyn Fn(&mut Block)| {
        let mut block = good.clone();
        alter(&mut block);
        verify(block)
    };
    assert_eq!(altered(&|block| block.header.version = 2), BlockError::Version(2));
    assert_eq!(altered(&|block| block.header.network = NetworkId([9; 32])), BlockError::WrongNetwork);
    assert_eq!(altered(&|block| block.header.height = Height(0)), BlockError::Zero);
    assert_eq!(altered(&|block| block.header.nonce = 1), BlockError::Work);
    assert_eq!(altered(&|block| block.header.difficulty_target = 1), BlockError::Work);
    assert_eq!(altered(&|block| block.header.previous = Hash([1; 32])), BlockError::ForeignCertificate);
    assert_eq!(altered(&|block| block.header.height = Height(2)), BlockError::ForeignCertificate);
    assert_eq!(altered(&|block| block.operations.reverse()), BlockError::Root);
    let short = BlockError::Count { counted: 2, found: 1 };
    assert_eq!(altered(&|block| drop(block.operations.pop())), short);
}

#[test]
fn a_certificate_needs_a_quorum_of_distinct_replicas() {
    let net = Net::new(4);
    let content = State::genesis(&net.genesis).checkpoint();
    let verify = |signers: &[u16]| net.certify(content, signers).verify(&net.network, &net.keys);
    assert_eq!((verify(&[0, 1, 3]), verify(&[0, 1, 2, 3])), (Ok(()), Ok(())));
    assert_eq!(verify(&[0, 3]), Err(CertificateError::NoQuorum { found: 2, quorum: 3 }));
    assert_eq!(verify(&[]), Err(CertificateError::NoQuorum { found: 0, quorum: 3 }));
    let misplaced = Err(CertificateError::Replicas { n: 4 });
    assert_eq!((verify(&[0, 1, 1]), verify(&[1, 0, 2])), (misplaced, misplaced));

    let mut stranger = net.certify(content, &[0, 1, 2]);
    stranger.signatures[2].0 = 4;
    assert_eq!(stranger.verify(&net.network, &net.keys), misplaced);
    let mut swapped = net.certify(content, &[0, 1, 2]);
    swapped.signatures[2].0 = 3;
    assert_eq!(swapped.verify(&net.network, &net.keys), Err(CertificateError::Signature(3)));
    let other = net.certify(content, &[0, 1, 2]);
    assert_eq!(other.verify(&NetworkId([9; 32]), &net.keys), Err(CertificateError::Signature(0)));
}

#[test]
fn a_block_never_grows_beyond_what_can_be_fetched() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    execute(&mut state, &[net.register(1, 1)]);
    let count = u32::try_from(MAX_LEAVES).unwrap();
    let all: Vec<u32> = (0..count).collect();
    let requests: Vec<_> = (1..6).map(|seq| net.message(1, seq, 20, count).request(node(1), &all)).collect();
    assert!(requests.iter().map(|request| request.bytes().len()).sum::<usize>() > MAX_BLOCK_BYTES);
    let executed = execute(&mut state, &requests);
    assert_eq!(executed.outcomes[4].1, Outcome::Rejected(Rejection::BlockFull));
    assert_eq!(state.written(&client(1), MessageSeq(5)), None);
    let operations = executed.block.unwrap().operations;
    assert!(operations.iter().map(|operation| encode(operation).len()).sum::<usize>() <= MAX_BLOCK_BYTES);
}
