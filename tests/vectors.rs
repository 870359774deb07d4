//! Every construction of docs/PROTOCOL.md against vectors made by other programs, both ways: what
//! this program makes has the vector's bytes, and what the vector has is read as it should be.
//! `tests/vectors/README.md` says what each file holds and how to use it for a client of your own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use coset::{CborSerializable as _, TaggedCborSerializable as _};
use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::Zeroizing;

use ledgermq::crypto::{SecretKey, VerifyingKey, blake3_plain};
use ledgermq::device::body::Body;
use ledgermq::device::codes::ErrorCode;
use ledgermq::device::compose::{Draft, compose};
use ledgermq::device::control::{
    self, Ack, ControlKind, ErrorReply, Fields, Forbidden, KeyFail, KeySuccess, KeyTransport, SignedControl,
    Unauth,
};
use ledgermq::device::encoding::Encoding;
use ledgermq::device::handshake::{self, KemKeyPair, PayloadKey};
use ledgermq::device::header::Header;
use ledgermq::device::ids::{KemKid, Nonce, PayloadKid};
use ledgermq::device::item::{self, Item};
use ledgermq::device::telemetry::{Content, Limits, Message, TelemetryError, Wire, seal};
use ledgermq::device::window::{SeqWindow, Verdict};
use ledgermq::device::{base64url, cose, header, token, topics};
use ledgermq::merkle::Tree;
use ledgermq::types::{ClientId, Hash, MessageSeq, NetworkId, NodeId, Stream, Timestamp};

/// The cases of one file.
fn cases(file: &str) -> Vec<Value> {
    let path = format!("{}/tests/vectors/{file}.json", env!("CARGO_MANIFEST_DIR"));
    let mut document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(document["network_id"], network().to_string(), "{file}");
    assert_eq!(document["client_id"], client().as_str(), "{file}");
    let cases: Vec<Value> = read(document["cases"].take());
    assert!(!cases.is_empty(), "{file}");
    cases
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("{field} in {case}"))
}

fn bytes(case: &Value, field: &str) -> Vec<u8> {
    hex::decode(text(case, field)).unwrap()
}

fn array<const N: usize>(case: &Value, field: &str) -> [u8; N] {
    bytes(case, field).try_into().unwrap()
}

fn number(case: &Value, field: &str) -> u64 {
    case[field].as_u64().unwrap_or_else(|| panic!("{field} in {case}"))
}

fn network() -> NetworkId {
    "f6f2784190be3010f48599a005acef974a452ee6b8ced71a03367ec06f955673".parse().unwrap()
}

fn client() -> ClientId {
    ClientId::new("devices/iot").unwrap()
}

fn key_case(who: &str) -> Value {
    let file = format!("{}/tests/vectors/keys.json", env!("CARGO_MANIFEST_DIR"));
    let document: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    document["cases"].as_array().unwrap().iter().find(|case| case["who"] == who).unwrap().clone()
}

fn secret(who: &str) -> SecretKey {
    SecretKey::from_seed(&array(&key_case(who), "seed"))
}

fn verifying(who: &str) -> VerifyingKey {
    VerifyingKey::parse(&secret(who).public()).unwrap()
}

fn kem_pair(private: [u8; 32], not_after: u64) -> KemKeyPair {
    let node = secret("node").node_id();
    KemKeyPair::new(&node, &Zeroizing::new(private), [0; 8], Timestamp(not_after))
}

#[test]
fn keys_have_their_public_halves() {
    for who in ["client", "node"] {
        assert_eq!(secret(who).public().to_string(), text(&key_case(who), "public"));
    }
    let kem = key_case("kem");
    assert_eq!(hex::encode(kem_pair(array(&kem, "private"), 0).public()), text(&kem, "public"));
}

#[test]
fn merkle_roots() {
    for case in cases("merkle") {
        let leaves: Vec<String> = read(case["leaves_hex"].clone());
        let leaves: Vec<_> = leaves.iter().map(|leaf| hex::decode(leaf).unwrap()).collect();
        assert_eq!(Tree::new(&leaves).unwrap().root().to_string(), text(&case, "root"), "{}", leaves.len());
    }
}

#[test]
fn items_through_the_body_that_reports_them() {
    for case in cases("items") {
        let unit = if case["unit"].is_null() { String::new() } else { format!(",\"unit\":{}", case["unit"]) };
        let json = format!(
            r#"{{"count":1,"eventTime":{},"data":[{{"deviceId":{},"serviceId":{},"num":{},"value":{}{unit}}}]}}"#,
            case["eventTime"],
            case["deviceId"],
            case["serviceId"],
            case["num"],
            text(&case, "value_json"),
        );
        let body = Body::parse(&client(), json.as_bytes()).unwrap();
        assert_eq!(hex::encode(body.items[0].encode()), text(&case, "item"), "{json}");
        assert_eq!(Item::decode(&bytes(&case, "item")).as_ref(), Ok(&body.items[0]), "{json}");
    }
}

/// Reads, compares with the fields of the vector, and signs the vector's own JSON again.
fn check_control<F: Fields + PartialEq + std::fmt::Debug>(case: &Value) -> F {
    let signer = text(case, "signer");
    let wire = bytes(case, "bytes");
    let message = SignedControl::decode(&wire, control::MAX_CONTROL_BYTES).unwrap();
    let fields: F = message.verify(&network(), &client(), &verifying(signer)).unwrap();
    if !case["fields"].is_null() {
        assert_eq!(fields, read::<F>(case["fields"].clone()));
    }
    let json = cose::Sign1::decode(&wire).unwrap().payload;
    let again = control::sign_json(F::KIND, &network(), &client(), &secret(signer), json);
    assert_eq!(hex::encode(again), hex::encode(&wire));
    let own = control::sign(&network(), &client(), &secret(signer), &fields);
    let reread = SignedControl::decode(&own, control::MAX_CONTROL_BYTES).unwrap();
    assert_eq!(reread.verify::<F>(&network(), &client(), &verifying(signer)).as_ref(), Ok(&fields));
    fields
}

#[test]
fn control_messages_of_every_kind() {
    for case in cases("control").into_iter().chain(cases("control_more")) {
        match text(&case, "kind") {
            "unauth" => drop(check_control::<Unauth>(&case)),
            "forbidden" => drop(check_control::<Forbidden>(&case)),
            "key" => drop(check_control::<KeyTransport>(&case)),
            "key/success" => drop(check_control::<KeySuccess>(&case)),
            "key/fail" => drop(check_control::<KeyFail>(&case)),
            "ack" => drop(check_control::<Ack>(&case)),
            "error" => drop(check_control::<ErrorReply>(&case)),
            unknown => panic!("no such kind: {unknown}"),
        }
    }
}

#[test]
fn a_second_cose_library_reads_our_control_messages() {
    let unauth = Unauth {
        reason: ledgermq::device::codes::UnauthReason::Revoked,
        server_time: Timestamp(1_767_225_600_000),
    };
    let node = secret("node");
    let wire = control::sign(&network(), &client(), &node, &unauth);
    let message = coset::CoseSign1::from_tagged_slice(&wire).unwrap();
    let protected = &message.protected.header;
    assert_eq!(
        protected.alg,
        Some(coset::RegisteredLabelWithPrivate::Assigned(coset::iana::Algorithm::EdDSA))
    );
    assert_eq!(protected.key_id, node.public().0);
    assert!(message.unprotected.is_empty());
    let aad = cose::domain(ControlKind::Unauth.as_str(), &network(), Some(client().as_str()));
    let signature = ledgermq::types::Signature(message.signature.clone().try_into().unwrap());
    verifying("node").verify_raw(&message.tbs_data(&aad), &signature).unwrap();
    assert_eq!(message.to_tagged_vec().unwrap(), wire);
}

#[test]
fn the_key_transport_opens_with_the_kem_key() {
    let case = cases("control").into_iter().find(|case| case["kind"] == "key").unwrap();
    let message: KeyTransport = check_control(&case);
    let private = array(&key_case("kem"), "private");
    // The vector's KEM key id has random bytes that `KemKeyPair` takes as an argument.
    let name = message.kem_kid.0[8..].try_into().unwrap();
    let node = secret("node").node_id();
    assert_eq!(KemKid::new(&node, name), message.kem_kid);
    let pair = KemKeyPair::new(&node, &Zeroizing::new(private), name, Timestamp::MAX);
    let now = Timestamp(message.epoch);
    let (kid, key) = pair.accept(&network(), &client(), &message, 0, now).unwrap();
    assert_eq!(hex::encode(key.as_bytes()), text(&case, "payload_key"));
    assert_eq!(kid.to_string(), text(&case, "kid"));
}

#[test]
fn hpke_opens_what_another_implementation_sealed() {
    for case in cases("hpke") {
        let node = NodeId(array(&case, "node"));
        let pair =
            KemKeyPair::new(&node, &Zeroizing::new(array(&case, "kem_private")), [1; 8], Timestamp(10));
        assert_eq!(hex::encode(pair.public()), text(&case, "kem_key"));
        assert_eq!(bytes(&case, "info"), cose::domain("key", &network(), Some(client().as_str())));
        let message = KeyTransport {
            kem_kid: pair.kid(),
            enc: array(&case, "enc"),
            ct: array(&case, "ct"),
            epoch: 1,
            nonce: Nonce([0; 16]),
            time: Timestamp(1),
        };
        let (kid, key) = pair.accept(&network(), &client(), &message, 0, Timestamp(2)).unwrap();
        assert_eq!(hex::encode(key.as_bytes()), text(&case, "payload_key"));
        assert_eq!(kid.to_string(), text(&case, "kid"));

        let sealed =
            handshake::seal(&network(), &client(), pair.public(), &key, &Zeroizing::new([5; 32])).unwrap();
        let ours = KeyTransport { enc: sealed.enc, ct: sealed.ct, ..message };
        assert_eq!(pair.accept(&network(), &client(), &ours, 0, Timestamp(2)).unwrap().1, key);
    }
}

/// A node's whole way with a message; the client of the vectors has to encrypt.
fn take(wire: &[u8], key: &PayloadKey, stream: &Stream, now: Timestamp) -> Result<Message, TelemetryError> {
    let limits = Limits::default();
    let Wire::Encrypted(envelope) = Wire::decode(wire, &limits)? else {
        return Err(TelemetryError::EncryptionRequired);
    };
    envelope
        .decrypt(key, &network(), &client(), stream)?
        .verify(&verifying("client"), &network(), &client(), stream)?
        .check_body(&limits, now)
}

#[test]
fn telemetry_is_taken_as_another_implementation_made_it() {
    for case in cases("telemetry") {
        let stream = Stream::new(text(&case, "stream")).unwrap();
        let key = PayloadKey::new(array(&case, "payload_key"));
        let wire = bytes(&case, "wire");
        let message = take(&wire, &key, &stream, Timestamp(1_767_225_600_000)).unwrap();
        assert_eq!(hex::encode(message.signed().bytes()), text(&case, "header"));
        assert_eq!(message.signed().hash().to_string(), text(&case, "header_hash"));
        assert_eq!(message.header().seq, MessageSeq(number(&case, "seq")));
        assert_eq!(message.body(), text(&case, "body").as_bytes());
        assert_eq!(Header::decode(&bytes(&case, "header")).as_ref(), Ok(message.header()));

        let Ok(Wire::Encrypted(envelope)) = Wire::decode(&wire, &Limits::default()) else { panic!() };
        assert_eq!(envelope.kid().to_string(), text(&case, "kid"));
        let content = envelope.decrypt(&key, &network(), &client(), &stream).unwrap();
        assert_eq!(hex::encode(content.encode()), text(&case, "content"));
        assert_eq!(hex::encode(content.signed_message()), text(&case, "signed"));
        assert_eq!(topics::telemetry(&client(), &stream), text(&case, "topic"));
    }
}

#[test]
fn telemetry_is_made_with_the_bytes_of_another_implementation() {
    for case in cases("telemetry") {
        let (client, stream) = (client(), Stream::new(text(&case, "stream")).unwrap());
        let seq = MessageSeq(number(&case, "seq"));
        let draft = Draft {
            client: &client,
            stream: &stream,
            seq,
            unused_above: Header::decode(&bytes(&case, "header")).unwrap().unused_above,
            body: text(&case, "body").as_bytes(),
            encoding: Encoding::from_number(number(&case, "encoding")).unwrap(),
        };
        let composed = compose(&network(), &secret("client"), &draft).unwrap();
        assert_eq!(hex::encode(composed.header.encode()), text(&case, "header"));
        assert_eq!(composed.header_hash.to_string(), text(&case, "header_hash"));
        let signed = Content::decode(&composed.content).unwrap().signed_message();
        assert_eq!(hex::encode(signed), text(&case, "signed"));
        // Compressors differ, so compressed content is compared after decompression, above.
        let kid = PayloadKid(array(&case, "kid"));
        let key = PayloadKey::new(array(&case, "payload_key"));
        let sealed = |content: &[u8]| {
            hex::encode(seal(content, seq, &kid, &key, &network(), &client, &stream).unwrap())
        };
        assert_eq!(sealed(&bytes(&case, "content")), text(&case, "wire"));
        if draft.encoding == Encoding::Identity {
            assert_eq!(sealed(&composed.content), text(&case, "wire"));
        } else {
            let wire = hex::decode(sealed(&composed.content)).unwrap();
            assert!(take(&wire, &key, &stream, Timestamp::MAX).is_ok());
        }
    }
}

#[test]
fn a_second_cose_library_reads_our_telemetry() {
    let case = cases("telemetry").remove(0);
    let envelope = coset::CoseEncrypt0::from_tagged_slice(&bytes(&case, "wire")).unwrap();
    let protected = &envelope.protected.header;
    assert_eq!(hex::encode(&protected.key_id), text(&case, "kid"));
    assert_eq!(protected.partial_iv, number(&case, "seq").to_be_bytes());
    let signed = coset::CoseSign1::from_tagged_slice(&bytes(&case, "signed")).unwrap();
    let header = bytes(&case, "header");
    assert_eq!(signed.payload.as_ref(), Some(&header));
    let aad = cose::domain("telemetry", &network(), None);
    assert_eq!(signed.tbs_data(&aad), header::signature_input(&network(), &header));
    assert_eq!(blake3_plain(&header).to_string(), text(&case, "header_hash"));
    assert!(signed.to_vec().is_ok());
}

#[test]
fn hostile_telemetry_is_refused_with_its_code() {
    for case in cases("telemetry_refused") {
        let stream = Stream::new(text(&case, "stream")).unwrap();
        let key = PayloadKey::new(array(&case, "payload_key"));
        let expected: Option<ErrorCode> = read(case["code"].clone());
        let taken = take(&bytes(&case, "wire"), &key, &stream, Timestamp(number(&case, "now")));
        assert_eq!(taken.err().map(|error| error.code()), expected, "{}", text(&case, "what"));
    }
}

#[test]
fn bodies_are_read_or_refused() {
    for case in cases("body") {
        let json = text(&case, "body");
        let parsed = Body::parse(&client(), json.as_bytes());
        if let Some(code) = case["code"].as_str() {
            let error = TelemetryError::from(parsed.expect_err(json));
            assert_eq!(error.code().as_str(), code, "{json}");
            continue;
        }
        let body = parsed.unwrap_or_else(|error| panic!("{json}: {error}"));
        assert_eq!(body.event_time, Timestamp(number(&case, "eventTime")), "{json}");
        let values: Vec<Value> = body.items.iter().map(|item| described(&item.value)).collect();
        assert_eq!(Value::from(values), case["values"], "{json}");
    }
}

fn described(value: &item::Value) -> Value {
    match value {
        item::Value::Integer(integer) => serde_json::json!({"integer": integer.to_string()}),
        item::Value::Float(float) => serde_json::json!({"float": hex::encode(float.to_be_bytes())}),
        item::Value::Text(text) => serde_json::json!({"text": text}),
        item::Value::Boolean(boolean) => serde_json::json!({"boolean": boolean}),
    }
}

#[test]
fn tokens_are_taken_or_refused() {
    for case in cases("token") {
        let now = Timestamp(number(&case, "now"));
        let verdict = token::verify(
            text(&case, "token").as_bytes(),
            &verifying("client"),
            &network(),
            &client(),
            now,
            token::DEFAULT_MAX_LIFETIME_S,
        );
        assert_eq!(
            verdict.is_ok(),
            read::<bool>(case["valid"].clone()),
            "{}: {verdict:?}",
            text(&case, "what")
        );
    }
}

#[test]
fn an_issued_token_is_that_of_another_implementation() {
    let case = cases("token").remove(0);
    let issued =
        token::issue(&secret("client"), &network(), &client(), Timestamp(number(&case, "now")), 3600)
            .unwrap();
    assert_eq!(issued, text(&case, "token"));
}

#[test]
fn seqs_are_judged_in_the_order_they_come() {
    let mut window = SeqWindow::new();
    for case in cases("window") {
        let (seq, header) = (MessageSeq(number(&case, "seq")), Hash(array(&case, "header")));
        let verdict = window.judge(seq, &header);
        let name = match verdict {
            Verdict::New => "new",
            Verdict::Seen => "seen",
            Verdict::Reused => "reused",
            Verdict::TooOld => "too_old",
        };
        assert_eq!(name, text(&case, "verdict"), "{case}");
        if verdict == Verdict::New {
            window.record(seq, header);
        }
    }
}

#[test]
fn topics_are_allowed_or_refused() {
    for case in cases("topics") {
        let allowed = match case["publish"].as_str() {
            Some(topic) => topics::may_publish(&client(), topic),
            None => topics::may_subscribe(&client(), text(&case, "subscribe")),
        };
        assert_eq!(allowed, read::<bool>(case["allowed"].clone()), "{case}");
    }
}

#[test]
fn base64url_of_the_vectors_is_strict() {
    for case in cases("control") {
        for (name, value) in case["fields"].as_object().into_iter().flatten() {
            if matches!(name.as_str(), "nonce" | "kem_kid" | "kem_key" | "header" | "block") {
                let text = value.as_str().unwrap();
                assert_eq!(base64url::encode(&base64url::decode(text).unwrap()), text);
            }
        }
    }
}
