//! Telemetry from a client's side to the node's, and what a node refuses on the way.

use super::*;
use crate::crypto::SecretKey;
use crate::device::compose::{Composed, Draft, compose};
use crate::device::handshake::PayloadKey;
use crate::device::ids::PayloadKid;
use proptest::prelude::*;

const NETWORK: NetworkId = NetworkId([1; 32]);
const KID: PayloadKid = PayloadKid([5; 16]);
const NOW: Timestamp = Timestamp(1_767_225_600_000);
const BODY: &[u8] = br#"{"count":2,"eventTime":1767225600000,"data":[
    {"deviceId":"th-01","serviceId":"temperature","num":1,"value":36.5,"unit":"Cel"},
    {"deviceId":"th-01","serviceId":"humidity","num":2,"value":6,"unit":"%RH"}]}"#;

fn client() -> ClientId {
    ClientId::new("devices/iot").unwrap()
}

fn stream() -> Stream {
    Stream::new("env").unwrap()
}

fn client_key() -> SecretKey {
    SecretKey::from_seed(&[7; 32])
}

fn verifying() -> VerifyingKey {
    VerifyingKey::parse(&client_key().public()).unwrap()
}

fn payload_key() -> PayloadKey {
    PayloadKey::new([9; 32])
}

fn composed(body: &[u8], encoding: Encoding) -> Composed {
    let (client, stream) = (client(), stream());
    let draft =
        Draft { client: &client, stream: &stream, seq: MessageSeq(9), unused_above: None, body, encoding };
    compose(&NETWORK, &client_key(), &draft).unwrap()
}

fn sealed(content: &[u8]) -> Vec<u8> {
    seal(content, MessageSeq(9), &KID, &payload_key(), &NETWORK, &client(), &stream()).unwrap()
}

/// A message whose header was altered and signed again, as a faulty client could.
fn forged(alter: impl FnOnce(&mut Header), encoding: u64, body: Vec<u8>) -> Vec<u8> {
    let mut header = composed(BODY, Encoding::Identity).header;
    alter(&mut header);
    let header = header.encode();
    let signature = header::sign(&NETWORK, &header, &client_key());
    sealed(&Content { header, signature, encoding, body, envelope_seq: None }.encode())
}

/// The whole way of a node.
fn open(wire: &[u8]) -> Result<Message, TelemetryError> {
    let limits = Limits::default();
    let content = match Wire::decode(wire, &limits)? {
        Wire::Encrypted(envelope) => {
            assert_eq!((envelope.kid(), envelope.seq()), (KID, MessageSeq(9)));
            envelope.decrypt(&payload_key(), &NETWORK, &client(), &stream())?
        }
        Wire::Plaintext(_) => return Err(TelemetryError::EncryptionRequired),
    };
    content.verify(&verifying(), &NETWORK, &client(), &stream())?.check_body(&limits, NOW)
}

fn refusal(wire: &[u8]) -> ErrorCode {
    open(wire).unwrap_err().code()
}

#[test]
fn what_a_client_composes_a_node_takes() {
    for encoding in [Encoding::Identity, Encoding::Zstd, Encoding::Deflate] {
        let composed = composed(BODY, encoding);
        let message = open(&sealed(&composed.content)).unwrap();
        assert_eq!(message.header(), &composed.header);
        assert_eq!(message.signed().hash(), composed.header_hash);
        assert_eq!(message.signed().client_key(), client_key().public());
        assert_eq!(message.body(), BODY);
        assert_eq!(message.items().len(), 2);
        assert_eq!(Tree::new(message.item_bytes()).unwrap().root(), composed.header.items_root);
        let expected = Reference { seq: Some(MessageSeq(9)), header: Some(composed.header_hash) };
        assert_eq!(message.reference(), expected);
    }
}

#[test]
fn sealing_is_repeatable() {
    let content = composed(BODY, Encoding::Zstd).content;
    assert_eq!(sealed(&content), sealed(&content));
    assert_eq!(Content::decode(&content).unwrap().encode(), content);
}

#[test]
fn plaintext_is_told_apart_and_verifies_alike() {
    let Composed { content, header_hash, .. } = composed(BODY, Encoding::Zstd);
    let Ok(Wire::Plaintext(plain)) = Wire::decode(&content, &Limits::default()) else {
        panic!("not told apart")
    };
    let expected = Reference { seq: Some(MessageSeq(9)), header: Some(header_hash) };
    assert_eq!(plain.reference(), expected);
    let verified = plain.verify(&verifying(), &NETWORK, &client(), &stream()).unwrap();
    assert!(verified.check_body(&Limits::default(), NOW).is_ok());
    assert_eq!(refusal(&content), ErrorCode::EncryptionRequired);
}

#[test]
fn every_bit_flip_on_the_wire_is_refused() {
    let wire = sealed(&composed(BODY, Encoding::Zstd).content);
    for bit in 0..wire.len() * 8 {
        let mut altered = wire.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let opened = Wire::decode(&altered, &Limits::default()).and_then(|wire| match wire {
            Wire::Encrypted(envelope) => envelope.decrypt(&payload_key(), &NETWORK, &client(), &stream()),
            Wire::Plaintext(content) => Ok(content),
        });
        assert!(opened.is_err(), "bit {bit}");
    }
    for len in 0..wire.len() {
        assert!(open(&wire[..len]).is_err(), "cut to {len}");
    }
}

#[test]
fn every_bit_flip_in_plaintext_is_refused() {
    let content = composed(BODY, Encoding::Identity).content;
    for bit in 0..content.len() * 8 {
        let mut altered = content.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let taken = Content::decode(&altered)
            .and_then(|content| content.verify(&verifying(), &NETWORK, &client(), &stream()))
            .and_then(|verified| verified.check_body(&Limits::default(), NOW));
        assert!(taken.is_err(), "bit {bit}");
    }
}

#[test]
fn an_envelope_is_bound_to_key_network_client_and_stream() {
    let wire = sealed(&composed(BODY, Encoding::Zstd).content);
    let Ok(Wire::Encrypted(envelope)) = Wire::decode(&wire, &Limits::default()) else { panic!() };
    let (other_client, other_stream) = (ClientId::new("devices/x").unwrap(), Stream::new("other").unwrap());
    let bad = Err(TelemetryError::Undecryptable);
    assert_eq!(envelope.decrypt(&PayloadKey::new([8; 32]), &NETWORK, &client(), &stream()), bad);
    assert_eq!(envelope.decrypt(&payload_key(), &NetworkId([2; 32]), &client(), &stream()), bad);
    assert_eq!(envelope.decrypt(&payload_key(), &NETWORK, &other_client, &stream()), bad);
    assert_eq!(envelope.decrypt(&payload_key(), &NETWORK, &client(), &other_stream), bad);
}

#[test]
fn another_clients_signature_is_refused() {
    let content = Content::decode(&composed(BODY, Encoding::Zstd).content).unwrap();
    let other = VerifyingKey::parse(&SecretKey::from_seed(&[8; 32]).public()).unwrap();
    let bad = Err(TelemetryError::BadSignature);
    assert_eq!(content.clone().verify(&other, &NETWORK, &client(), &stream()), bad);
    assert_eq!(content.verify(&verifying(), &NetworkId([2; 32]), &client(), &stream()), bad);
}

#[test]
fn a_header_for_another_topic_or_seq_is_refused() {
    let body = || BODY.to_vec();
    let other_stream = forged(|header| header.stream = Stream::new("other").unwrap(), 0, body());
    assert_eq!(refusal(&other_stream), ErrorCode::WrongTopic);
    let other_client = forged(|header| header.client = ClientId::new("devices/x").unwrap(), 0, body());
    assert_eq!(refusal(&other_client), ErrorCode::WrongTopic);
    assert_eq!(refusal(&forged(|header| header.seq = MessageSeq(10), 0, body())), ErrorCode::BadEnvelope);
    assert_eq!(refusal(&forged(|header| header.count = 0, 0, body())), ErrorCode::Malformed);
}

#[test]
fn a_body_that_is_not_the_signed_one_is_refused() {
    let body = || BODY.to_vec();
    let other = String::from_utf8(body()).unwrap().replace("36.5", "36.6").into_bytes();
    assert_eq!(refusal(&forged(|_| (), 0, other)), ErrorCode::BadBody);
    let of_hash = |json: &[u8]| {
        let hash = crate::crypto::blake3_plain(json);
        refusal(&forged(|header| header.body_hash = hash, 0, json.to_vec()))
    };
    let altered = |from: &str, to: &str| String::from_utf8(body()).unwrap().replace(from, to).into_bytes();
    assert_eq!(of_hash(&altered("36.5", "36.6")), ErrorCode::BadRoot);
    assert_eq!(of_hash(&altered("1767225600000", "1767225600001")), ErrorCode::BadBody);
    assert_eq!(of_hash(&altered("\"count\":2", "\"count\":3")), ErrorCode::CountMismatch);
    assert_eq!(of_hash(&altered("\"num\":2", "\"num\":2,\"num\":2")), ErrorCode::Malformed);
    assert_eq!(of_hash(b"not json"), ErrorCode::Malformed);
    assert_eq!(refusal(&forged(|header| header.count = 3, 0, body())), ErrorCode::CountMismatch);
    assert_eq!(refusal(&forged(|header| header.items_root = Hash([0; 32]), 0, body())), ErrorCode::BadRoot);
}

#[test]
fn encodings_that_are_unknown_or_untrue_are_refused() {
    assert_eq!(refusal(&forged(|_| (), 3, BODY.to_vec())), ErrorCode::BadEncoding);
    assert_eq!(refusal(&forged(|_| (), u64::MAX, BODY.to_vec())), ErrorCode::BadEncoding);
    assert_eq!(refusal(&forged(|_| (), 1, BODY.to_vec())), ErrorCode::BadEncoding);
}

#[test]
fn a_decompression_bomb_is_refused_for_its_size() {
    let bomb = vec![b' '; 20 << 20];
    for encoding in [Encoding::Zstd, Encoding::Deflate] {
        let body = encoding.compress(&bomb).unwrap();
        assert_eq!(refusal(&forged(|_| (), encoding.number().into(), body)), ErrorCode::TooLarge);
    }
}

#[test]
fn the_clock_may_be_five_minutes_ahead_and_any_time_behind() {
    let verified = |now| {
        Content::decode(&composed(BODY, Encoding::Zstd).content)
            .and_then(|content| content.verify(&verifying(), &NETWORK, &client(), &stream()))
            .and_then(|verified| verified.check_body(&Limits::default(), now))
            .map(|_| ())
    };
    assert_eq!(verified(Timestamp::MAX), Ok(()));
    assert_eq!(verified(Timestamp(NOW.0 - 300_000)), Ok(()));
    let ahead = Err(TelemetryError::ClockAhead { ahead_ms: 300_001 });
    assert_eq!(verified(Timestamp(NOW.0 - 300_001)), ahead);
}

#[test]
fn too_long_is_refused_before_anything_else() {
    let limits = Limits { wire_bytes: 10, ..Limits::default() };
    let refused = Wire::decode(&[0; 11], &limits).unwrap_err();
    assert_eq!(refused, TelemetryError::TooLong { len: 11, limit: 10 });
    assert_eq!(refused.code(), ErrorCode::TooLarge);
}

#[test]
fn a_client_does_not_spend_a_seq_on_what_would_be_refused() {
    let (client, stream) = (client(), stream());
    let draft = Draft {
        client: &client,
        stream: &stream,
        seq: MessageSeq(9),
        unused_above: None,
        body: BODY,
        encoding: Encoding::Zstd,
    };
    let refused = |draft: &Draft<'_>| compose(&NETWORK, &client_key(), draft).unwrap_err().code();
    assert_eq!(refused(&Draft { body: b"{}", ..draft }), ErrorCode::Malformed);
    assert_eq!(refused(&Draft { seq: MessageSeq(0), ..draft }), ErrorCode::Malformed);
    assert_eq!(refused(&Draft { unused_above: Some(MessageSeq(9)), ..draft }), ErrorCode::Malformed);
    let huge = vec![b' '; (16 << 20) + 1];
    assert_eq!(refused(&Draft { body: &huge, ..draft }), ErrorCode::TooLarge);
}

proptest! {
    #[test]
    fn arbitrary_wire_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300), first in prop_oneof![Just(0xd0_u8), Just(0x83), any::<u8>()],
    ) {
        let bytes = [&[first][..], &bytes].concat();
        let _ = Wire::decode(&bytes, &Limits::default());
    }

    #[test]
    fn arbitrary_content_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), flip in 1_u8..,
    ) {
        prop_assert!(open(&sealed(&bytes)).is_err());
        let mut content = composed(BODY, Encoding::Zstd).content;
        let at = at.index(content.len());
        content[at] ^= flip;
        // Some bits of a zstd frame mean nothing. Whatever is taken is what was signed.
        if let Ok(message) = open(&sealed(&content)) {
            prop_assert_eq!(message.body(), BODY);
        }
    }
}
