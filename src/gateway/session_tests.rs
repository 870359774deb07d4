//! The session against a node that is a few lines: every transition without network, disk or clock.

use super::*;
use crate::device::codes::{ErrorCode, ForbiddenReason, UnauthReason};
use crate::device::control::{Fields, Unauth};
use crate::device::handshake::{KemKeyPair, KeyUplink};
use crate::device::telemetry::Wire;
use crate::types::{Hash, Stream, Timestamp};

const NETWORK: NetworkId = NetworkId([1; 32]);
const T0: Duration = Duration::from_secs(100);
const NOW: Timestamp = Timestamp(1_767_225_600_000);

fn client() -> ClientId {
    ClientId::new("devices/iot").unwrap()
}

fn env() -> Stream {
    Stream::new("env").unwrap()
}

fn stored(seq: u64) -> Arc<Stored> {
    let header = Hash([u8::try_from(seq % 251).unwrap(); 32]);
    Arc::new(Stored { seq: MessageSeq(seq), stream: env(), header, content: vec![7; 50] })
}

struct Node {
    key: SecretKey,
    kem: KemKeyPair,
}

impl Node {
    fn new() -> Self {
        let key = SecretKey::from_seed(&[7; 32]);
        let kem = KemKeyPair::new(&key.node_id(), &Zeroizing::new([3; 32]), [4; 8], Timestamp::MAX);
        Self { key, kem }
    }

    fn session(&self, next: Option<u64>) -> Session {
        let identity = Identity {
            network: NETWORK,
            client: client(),
            key: SecretKey::from_seed(&[5; 32]),
            trusted: vec![VerifyingKey::parse(&self.key.public()).unwrap()],
        };
        let remembered = Remembered { next: next.map(MessageSeq), ..Remembered::default() };
        Session::new(identity, Random::new(&Zeroizing::new([9; 32])), remembered)
    }

    fn say<F: Fields>(
        &self,
        session: &mut Session,
        topic: &Downlink,
        fields: &F,
        now: Duration,
    ) -> Vec<Effect> {
        let bytes = control::sign(&NETWORK, &client(), &self.key, fields);
        session.on_downlink(&topic.topic(&client()), &bytes, now)
    }

    fn forbidden(&self, nonce: Option<Nonce>, last_seq: u64) -> Forbidden {
        Forbidden {
            reason: ForbiddenReason::NoKey,
            nonce,
            kem_kid: self.kem.kid(),
            kem_key: *self.kem.public(),
            kem_not_after: Timestamp::MAX,
            last_seq: MessageSeq(last_seq),
            last_epoch: 0,
            server_time: NOW,
        }
    }

    /// Answers a key request; gives the key transport that follows.
    fn answer(&self, session: &mut Session, asked: &[Effect], last_seq: u64) -> KeyTransport {
        let nonce = nonce_of(asked);
        let effects = self.say(session, &Downlink::Forbidden, &self.forbidden(Some(nonce), last_seq), T0);
        let [Effect::Key(bytes)] = &effects[..] else { panic!("{effects:?}") };
        let KeyUplink::Transport(signed) = KeyUplink::parse(bytes).unwrap() else { panic!() };
        signed.unverified().unwrap()
    }

    fn accept(&self, session: &mut Session, message: &KeyTransport, max_messages: u64) -> Vec<Effect> {
        let (kid, _) = self.kem.accept(&NETWORK, &client(), message, 0, NOW).unwrap();
        let success = KeySuccess {
            kid,
            nonce: message.nonce,
            not_after: NOW.plus_ms(3_600_000),
            max_messages,
            last_seq: MessageSeq(0),
            server_time: NOW,
        };
        self.say(session, &Downlink::KeySuccess, &success, T0)
    }

    fn ready(&self, next: u64) -> Session {
        let mut session = self.session(Some(next));
        let asked = session.on_connected(T0);
        let message = self.answer(&mut session, &asked, 0);
        self.accept(&mut session, &message, 1 << 20);
        session
    }

    fn ack(&self, session: &mut Session, stored: &Stored) -> Vec<Effect> {
        let ack = Ack {
            stream: env(),
            seq: stored.seq,
            header: stored.header,
            items: 1,
            written: vec![],
            height: None,
            block: None,
            server_time: NOW,
        };
        self.say(session, &Downlink::Success(env()), &ack, T0)
    }
}

fn nonce_of(effects: &[Effect]) -> Nonce {
    let Some(Effect::Key(bytes)) = effects.last() else { panic!("{effects:?}") };
    Nonce(bytes.as_slice().try_into().unwrap())
}

fn sent(effects: &[Effect]) -> Vec<u64> {
    let seq = |effect: &Effect| match effect {
        Effect::Send { seq, .. } => Some(seq.0),
        _ => None,
    };
    effects.iter().filter_map(seq).collect()
}

fn add_durable(session: &mut Session, seqs: std::ops::Range<u64>) -> Vec<Effect> {
    let mut effects = Vec::new();
    for seq in seqs {
        session.add(&stored(seq));
        effects.extend(session.on_durable(MessageSeq(seq), T0));
    }
    effects
}

#[test]
fn nothing_is_signed_before_a_node_has_said_where_the_numbers_go_on() {
    let node = Node::new();
    let mut session = node.session(None);
    assert_eq!(session.next(), None);
    let asked = session.on_connected(T0);
    node.answer(&mut session, &asked, 0);
    assert_eq!(session.next(), Some(Numbered { seq: MessageSeq(1), unused_above: None }));
}

#[test]
fn a_last_seq_that_would_use_up_all_numbers_is_not_believed() {
    let node = Node::new();
    let mut session = node.session(Some(5));
    let asked = session.on_connected(T0);
    node.answer(&mut session, &asked, MessageSeq::MAX.0 - 1);
    assert_eq!(session.next().unwrap().seq, MessageSeq(5));
}

#[test]
fn a_message_is_sent_only_after_it_is_durable() {
    let mut session = Node::new().ready(1);
    session.add(&stored(1));
    session.add(&stored(2));
    assert_eq!(session.on_durable(MessageSeq(2), T0), vec![], "its predecessor is not durable yet");
    assert_eq!(sent(&session.on_durable(MessageSeq(1), T0)), [1, 2]);
}

#[test]
fn forbidden_with_another_nonce_is_ignored() {
    let node = Node::new();
    let mut session = node.session(Some(1));
    session.on_connected(T0);
    for nonce in [None, Some(Nonce([0; 16]))] {
        let effects = node.say(&mut session, &Downlink::Forbidden, &node.forbidden(nonce, 0), T0);
        assert_eq!(effects, vec![]);
    }
}

#[test]
fn a_key_success_of_another_round_is_ignored() {
    let node = Node::new();
    let mut session = node.session(Some(1));
    let asked = session.on_connected(T0);
    let first = node.answer(&mut session, &asked, 0);
    let asked = session.on_tick(T0 + SILENCE);
    let second = node.answer(&mut session, &asked, 0);
    assert!(second.epoch > first.epoch, "no epoch twice");
    assert_ne!((second.nonce, second.enc), (first.nonce, first.enc));
    assert_eq!(node.accept(&mut session, &first, 10), vec![]);
    assert_eq!(node.accept(&mut session, &second, 10).len(), 1);
}

#[test]
fn what_is_sent_opens_at_the_node_and_resends_under_one_key_are_identical() {
    let node = Node::new();
    let mut session = node.session(Some(1));
    let asked = session.on_connected(T0);
    let message = node.answer(&mut session, &asked, 0);
    let (kid, _) = node.kem.accept(&NETWORK, &client(), &message, 0, NOW).unwrap();
    node.accept(&mut session, &message, 100);
    let first = add_durable(&mut session, 1..2);
    let [Effect::Send { wire, topic, .. }] = &first[..] else { panic!() };
    assert_eq!(topic, "devices/iot/env");
    let Wire::Encrypted(envelope) = Wire::decode(wire, &Default::default()).unwrap() else { panic!() };
    assert_eq!((envelope.kid(), envelope.seq()), (kid, MessageSeq(1)));
    let busy = ErrorReply {
        stream: env(),
        seq: Some(MessageSeq(1)),
        header: None,
        code: ErrorCode::Overloaded,
        detail: String::new(),
        server_time: NOW,
    };
    assert_eq!(node.say(&mut session, &Downlink::Error(env()), &busy, T0), vec![]);
    assert_eq!(session.on_tick(T0 + RETRY_AFTER), first);
}

#[test]
fn an_ack_or_error_for_another_header_finishes_nothing() {
    let node = Node::new();
    let mut session = node.ready(1);
    add_durable(&mut session, 1..2);
    let mut other = (*stored(1)).clone();
    other.header = Hash([0xee; 32]);
    assert_eq!(node.ack(&mut session, &other), vec![]);
    let refused = ErrorReply {
        stream: env(),
        seq: Some(MessageSeq(1)),
        header: Some(Hash([0xee; 32])),
        code: ErrorCode::BadBody,
        detail: String::new(),
        server_time: NOW,
    };
    assert_eq!(node.say(&mut session, &Downlink::Error(env()), &refused, T0), vec![]);
    assert_eq!(session.unfinished(), 1);
    assert!(matches!(&node.ack(&mut session, &stored(1))[..], [Effect::Finish { outcome: Ok(_), .. }]));
}

#[test]
fn no_more_than_the_inflight_limit_is_sent_without_puback() {
    let mut session = Node::new().ready(1);
    assert_eq!(sent(&add_durable(&mut session, 1..101)), (1..=64).collect::<Vec<_>>());
    assert_eq!(sent(&session.on_puback(MessageSeq(1), T0)), [65]);
}

#[test]
fn the_outbox_never_spans_more_than_the_nodes_window() {
    let node = Node::new();
    let mut session = node.ready(1);
    for seq in 1..=SEQ_WINDOW {
        assert_eq!(session.next().unwrap().seq, MessageSeq(seq));
        session.add(&stored(seq));
    }
    assert_eq!(session.next(), None);
    node.ack(&mut session, &stored(2));
    assert_eq!(session.next(), None, "the oldest decides");
    node.ack(&mut session, &stored(1));
    assert_eq!(session.next().unwrap().seq, MessageSeq(SEQ_WINDOW + 1));
}

#[test]
fn forbidden_after_telemetry_leads_to_a_new_key_and_everything_again() {
    let node = Node::new();
    let mut session = node.ready(1);
    add_durable(&mut session, 1..4);
    let asked = node.say(&mut session, &Downlink::Forbidden, &node.forbidden(None, 0), T0);
    let message = node.answer(&mut session, &asked, 0);
    assert_eq!(sent(&node.accept(&mut session, &message, 100)), [1, 2, 3]);
}

#[test]
fn rounds_without_an_ack_are_spaced_out() {
    let node = Node::new();
    let mut session = node.ready(1);
    add_durable(&mut session, 1..2);
    let mut asked_at_once = 0;
    for _ in 0..5 {
        let asked = node.say(&mut session, &Downlink::Forbidden, &node.forbidden(None, 0), T0);
        if !matches!(asked.last(), Some(Effect::Key(_))) {
            break;
        }
        asked_at_once += 1;
        let message = node.answer(&mut session, &asked, 0);
        node.accept(&mut session, &message, 100);
    }
    assert_eq!(asked_at_once, 2);
    assert_eq!(session.on_tick(T0), vec![]);
    assert!(matches!(session.on_tick(T0 + LONGEST_REST).last(), Some(Effect::Key(_))));
}

#[test]
fn silence_is_counted_from_the_oldest_unanswered_message() {
    let mut session = Node::new().ready(1);
    assert_eq!(session.on_tick(T0 + 9 * SILENCE), vec![], "nothing is expected");
    let later = T0 + 9 * SILENCE;
    session.add(&stored(1));
    session.on_durable(MessageSeq(1), later);
    session.on_puback(MessageSeq(1), later);
    session.add(&stored(2));
    session.on_durable(MessageSeq(2), later + SILENCE / 2);
    assert_eq!(session.on_tick(later + SILENCE - Duration::from_millis(1)), vec![]);
    assert!(matches!(session.on_tick(later + SILENCE).last(), Some(Effect::Key(_))));
}

#[test]
fn a_key_ends_with_its_messages_and_with_its_time() {
    let node = Node::new();
    let mut session = node.session(Some(1));
    let asked = session.on_connected(T0);
    let message = node.answer(&mut session, &asked, 0);
    node.accept(&mut session, &message, 2);
    let effects = add_durable(&mut session, 1..4);
    assert_eq!(sent(&effects), [1, 2]);
    assert!(matches!(effects.last(), Some(Effect::Key(_))));
    let mut session = node.ready(1);
    session.add(&stored(1));
    let effects = session.on_durable(MessageSeq(1), T0 + Duration::from_secs(3_601));
    assert!(matches!(&effects[..], [Effect::Status(Status::Handshaking), Effect::Key(_)]), "{effects:?}");
}

#[test]
fn an_unregistered_client_asks_again_after_a_rest() {
    let node = Node::new();
    let mut session = node.session(None);
    session.on_connected(T0);
    let unauth = Unauth { reason: UnauthReason::NotRegistered, server_time: NOW };
    let effects = node.say(&mut session, &Downlink::Unauth, &unauth, T0);
    assert_eq!(effects, vec![Effect::Status(Status::Unregistered { reason: UnauthReason::NotRegistered })]);
    assert!(matches!(session.on_tick(T0 + LONGEST_REST).last(), Some(Effect::Key(_))));
}

#[test]
fn nothing_is_sent_while_disconnected() {
    let mut session = Node::new().ready(1);
    session.on_disconnected("gone".to_owned());
    assert_eq!(sent(&add_durable(&mut session, 1..3)), [] as [u64; 0]);
    assert_eq!(session.on_tick(T0 + 9 * SILENCE), vec![]);
}
