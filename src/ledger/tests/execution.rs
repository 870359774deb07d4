//! What execution does with each kind of request.

use super::fixture::{Net, client, execute, node, outcomes};
use crate::crypto::SecretKey;
use crate::ledger::operation::{AdminAction, AdminOperation, Operation, Request};
use crate::ledger::request::VerifiedRequest;
use crate::ledger::state::{SEQ_WINDOW, State};
use crate::ledger::{ClientSettings, Outcome, Rejection};
use crate::types::{Hash, Height, MessageSeq, SeqNum};
use std::sync::Arc;

/// A ledger with clients 1 and 2 registered in block 1, as operations 0 and 1.
fn started() -> (Net, State) {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    execute(&mut state, &[net.register(1, 1), net.register(2, 2)]);
    (net, state)
}

fn written(outcome: &Outcome) -> (Height, u32, &[u32]) {
    match outcome {
        Outcome::Written { height, operation, items, .. } => (*height, *operation, items),
        other => panic!("not written: {other:?}"),
    }
}

fn rejected(rejection: Rejection) -> Vec<Outcome> {
    vec![Outcome::Rejected(rejection)]
}

#[test]
fn a_registered_clients_items_are_written_once() {
    let (net, mut state) = started();
    let message = net.message(1, 1, 20, 3);
    let executed = execute(&mut state, &[message.request(node(1), &[0, 2])]);
    let block = executed.block.clone().unwrap();
    assert_eq!(block.check(&net.network), Ok(()));
    assert_eq!(executed.checkpoint, state.checkpoint());
    assert_eq!((block.header.height, block.header.hash()), (Height(2), executed.checkpoint.block));
    assert_eq!(written(&outcomes(executed)[0]), (Height(2), 0, &[0, 2][..]));
    let entry = state.written(&client(1), MessageSeq(1)).unwrap();
    assert_eq!((entry.written.iter().collect::<Vec<_>>(), entry.height), (vec![0, 2], Height(2)));
    assert_eq!(state.highest(&client(1)), MessageSeq(1));
}

#[test]
fn the_same_message_from_several_nodes_is_written_once() {
    let (net, mut state) = started();
    let message = net.message(1, 1, 20, 2);
    let requests = [message.request(node(1), &[0, 1]), message.request(node(2), &[0, 1])];
    let executed = execute(&mut state, &requests);
    assert_eq!(executed.block.as_ref().unwrap().operations.len(), 1);
    let outcomes = outcomes(executed);
    assert_eq!(written(&outcomes[0]).2, [0, 1]);
    assert_eq!(outcomes[1], Outcome::AlreadyWritten { height: Height(2), items: vec![0, 1] });

    let executed = execute(&mut state, &[message.request(node(3), &[1])]);
    assert_eq!((executed.block.is_none(), executed.changes.is_empty()), (true, true));
    assert_eq!(self::outcomes(executed), [Outcome::AlreadyWritten { height: Height(2), items: vec![0, 1] }]);
}

#[test]
fn a_node_that_strips_items_cannot_keep_them_out() {
    let (net, mut state) = started();
    let message = net.message(1, 1, 20, 4);
    execute(&mut state, &[message.request(node(1), &[1])]);
    let executed = execute(&mut state, &[message.request(node(2), &[0, 1, 3])]);
    let Operation::Write { request, written: new } = &executed.block.as_ref().unwrap().operations[0] else {
        panic!("not a write")
    };
    assert_eq!((request.items.len(), new.as_slice()), (3, &[0, 3][..]));
    assert_eq!(written(&outcomes(executed)[0]), (Height(3), 0, &[0, 1, 3][..]));
}

#[test]
fn the_first_header_of_a_seq_wins() {
    let (net, mut state) = started();
    let (first, second) = (net.message(1, 7, 20, 1), net.message(1, 7, 21, 1));
    execute(&mut state, &[first.request(node(1), &[0])]);
    let executed = execute(&mut state, &[second.request(node(2), &[0])]);
    assert_eq!(executed.block, None);
    assert_eq!(outcomes(executed), rejected(Rejection::SeqReused));
}

#[test]
fn unregistered_clients_and_foreign_keys_are_rejected() {
    let (net, mut state) = started();
    let unknown = net.message(3, 1, 20, 1).request(node(1), &[0]);
    assert_eq!(outcomes(execute(&mut state, &[unknown])), rejected(Rejection::UnknownClient));

    let mut forged = net.message(1, 1, 20, 1);
    forged.key = SecretKey::from_seed(&[55; 32]);
    forged.signature = crate::device::header::sign(&net.network, &forged.header_bytes, &forged.key);
    let forged = forged.request(node(1), &[0]);
    assert!(VerifiedRequest::verify(&net.network, forged.request().clone()).is_ok());
    assert_eq!(outcomes(execute(&mut state, &[forged])), rejected(Rejection::WrongKey));
}

#[test]
fn a_client_writes_in_the_batch_that_registers_it_but_not_before() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let write = net.message(1, 1, 20, 1).request(node(1), &[0]);
    let requests = [write.clone(), net.register(1, 1), net.message(1, 2, 20, 1).request(node(1), &[0])];
    let outcomes = outcomes(execute(&mut state, &requests));
    assert_eq!(outcomes[0], Outcome::Rejected(Rejection::UnknownClient));
    assert_eq!(outcomes[1], Outcome::AdminExecuted { height: Height(1), operation: 0 });
    assert_eq!(written(&outcomes[2]), (Height(1), 1, &[0][..]));
    assert_eq!(state.client(&client(1)).unwrap().registered, (Height(1), 0));
}

#[test]
fn a_revoked_client_writes_up_to_its_last_seq_only() {
    let (net, mut state) = started();
    let executed = execute(&mut state, &[net.revoke(3, 1, 5)]);
    assert_eq!(outcomes(executed), [Outcome::AdminExecuted { height: Height(2), operation: 0 }]);
    let last = net.message(1, 5, 20, 1).request(node(1), &[0]);
    let above = net.message(1, 6, 20, 1).request(node(1), &[0]);
    let other = net.message(2, 6, 20, 1).request(node(1), &[0]);
    let outcomes = outcomes(execute(&mut state, &[above, last, other]));
    assert_eq!(outcomes[0], Outcome::Rejected(Rejection::Revoked { last_seq: MessageSeq(5) }));
    assert_eq!((written(&outcomes[1]).1, written(&outcomes[2]).1), (0, 1));

    for again in [net.revoke(4, 1, 3), net.register(5, 1)] {
        let executed = execute(&mut state, &[again]);
        assert_eq!(self::outcomes(executed), rejected(Rejection::AlreadyRevoked));
    }
}

#[test]
fn admin_operations_are_executed_once_in_order_and_by_admins_only() {
    let (net, mut state) = started();
    let replayed = execute(&mut state, &[net.register(2, 2)]);
    assert_eq!(outcomes(replayed), rejected(Rejection::StaleAdminSequence { last: 2 }));
    let twice = execute(&mut state, &[net.register(9, 2)]);
    assert_eq!(outcomes(twice), rejected(Rejection::AlreadyRegistered));
    assert_eq!(state.admin_sequence(&net.admin.public()), Some(2), "a rejected one takes no sequence");
    let unknown = execute(&mut state, &[net.revoke(3, 9, 1)]);
    assert_eq!(outcomes(unknown), rejected(Rejection::UnknownClient));

    let stranger = SecretKey::from_seed(&[98; 32]);
    let (client, settings) = (client(3), ClientSettings::default());
    let action = AdminAction::RegisterClient { client, key: stranger.public(), settings };
    let operation = AdminOperation::sign(net.network, &stranger, 1, action);
    let request = Request::Admin { node: node(1), operation };
    let request = Arc::new(VerifiedRequest::verify(&net.network, request).unwrap());
    assert_eq!(outcomes(execute(&mut state, &[request])), rejected(Rejection::NotAnAdmin));
}

#[test]
fn late_messages_are_written_within_the_window_and_not_below() {
    let (net, mut state) = started();
    let highest = 1000 + SEQ_WINDOW;
    let write = |seq| net.message(1, seq, 20, 1).request(node(1), &[0]);
    execute(&mut state, &[write(1000), write(999), write(highest)]);
    assert_eq!(state.written(&client(1), MessageSeq(999)), None, "it has left the window");
    let outcomes = outcomes(execute(&mut state, &[write(999), write(1000), write(1001)]));
    assert_eq!(outcomes[0], Outcome::Rejected(Rejection::SeqTooOld { highest: MessageSeq(highest) }));
    assert_eq!(outcomes[1], Outcome::AlreadyWritten { height: Height(2), items: vec![0] });
    assert_eq!(written(&outcomes[2]).0, Height(3));
    let last = MessageSeq::MAX.0;
    execute(&mut state, &[write(last)]);
    assert_eq!(state.highest(&client(1)), MessageSeq::MAX);
}

#[test]
fn a_batch_that_leaves_nothing_makes_no_block() {
    let (net, mut state) = started();
    let before = state.checkpoint();
    for requests in [vec![], vec![net.message(9, 1, 20, 1).request(node(1), &[0])]] {
        let executed = execute(&mut state, &requests);
        assert_eq!(executed.block, None);
        assert_eq!(executed.checkpoint.sequence, state.head().sequence);
    }
    let after = state.checkpoint();
    assert_eq!((after.height, after.block, after.state), (before.height, before.block, before.state));
    assert_eq!(after.sequence, SeqNum(before.sequence.0 + 2));
}

#[test]
fn blocks_are_chained_from_genesis_on() {
    let (net, mut state) = started();
    let mut previous = state.head().block;
    for seq in 1..5 {
        let block = execute(&mut state, &[net.message(1, seq, 20, 1).request(node(1), &[0])]).block.unwrap();
        assert_eq!((block.header.previous, block.header.height), (previous, Height(seq + 1)));
        assert_eq!(block.header.next_replica_set, net.genesis.replicas.hash());
        previous = block.header.hash();
    }
    let mut fresh = State::genesis(&net.genesis);
    let first = execute(&mut fresh, &[net.register(1, 1)]).block.unwrap();
    assert_eq!(first.header.previous, Hash(net.network.0));
}

#[test]
fn rejections_have_the_protocols_codes() {
    let highest = MessageSeq(1);
    assert_eq!(Rejection::SeqReused.protocol_code(), Some("seq_reused"));
    assert_eq!(Rejection::SeqTooOld { highest }.protocol_code(), Some("seq_too_old"));
    assert_eq!(Rejection::WrongKey.protocol_code(), Some("bad_signature"));
    assert_eq!(Rejection::BlockFull.protocol_code(), Some("overloaded"));
    assert_eq!(Rejection::UnknownClient.protocol_code(), None);
}
