//! Each bad message gets the answer that PROTOCOL.md names, and no other message is hurt by it.

use ledgermq::crypto::SecretKey;
use ledgermq::device::codes::{ErrorCode, ForbiddenReason, UnauthReason};
use ledgermq::device::control::FromNode;
use ledgermq::device::encoding::Encoding;
use ledgermq::device::token;
use ledgermq::types::{ClientId, NetworkId, Stream};

use crate::device::{Device, now};
use crate::mqtt::{Connect, Raw};
use crate::network::{TestNetwork, reading};

/// A message that a node refuses, and the code that it says so with.
struct Refused {
    what: &'static str,
    seq: u64,
    wire: Vec<u8>,
    code: ErrorCode,
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_message_gets_its_code_and_good_ones_go_on() {
    let limits = [("mqtt.max_packet_bytes", "1048576"), ("mqtt.unverified_replies_per_minute", "100")];
    let mut network = TestNetwork::start_with(1, &limits).await;
    let key = network.register("devices/iot").await;
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    assert_eq!(device.send(1, &reading(now().0, 1.0, 1)).await, Some(0));
    assert_eq!(device.ack().await.seq.0, 1);
    for refused in bad_messages(&device) {
        assert_eq!(device.publish("env", &refused.wire).await, Some(0), "{}", refused.what);
        let error = device.error().await;
        assert_eq!(error.code, refused.code, "{}: {}", refused.what, error.detail);
        if refused.code != ErrorCode::BadEnvelope && refused.code != ErrorCode::Malformed {
            assert_eq!(error.seq.map(|seq| seq.0), Some(refused.seq), "{}", refused.what);
        }
    }
    bombs_are_too_large_and_cost_no_memory(&network, &mut device).await;
    a_message_sent_again_gets_the_same_ack_again(&mut device).await;
    a_seq_with_another_header_is_a_security_event(&network, &mut device).await;
    let records = network.wait_for_records(0, "client=devices/iot", 4).await;
    assert_eq!(records.len(), 4, "only the two good messages were written: {records:?}");
    assert!(network.local.is_running(0).unwrap());
}

fn bad_messages(device: &Device) -> Vec<Refused> {
    let body = reading(now().0, 1.0, 1);
    let good = device.compose(10, &body);
    let refused = |what, seq, wire, code| Refused { what, seq, wire, code };
    let sealed = |what, seq: u64, content: &[u8], code| refused(what, seq, device.seal(seq, content), code);

    let mut flipped = device.seal(10, &good.content);
    *flipped.last_mut().unwrap() ^= 1;
    let wrong_body = br#"{"count":3,"eventTime":1767225600000,"data":[]}"#;
    let late = String::from_utf8(reading(now().0 + 3_600_000, 1.0, 1)).unwrap();
    let mut elsewhere = good.header.clone();
    elsewhere.stream = Stream::new("other").unwrap();
    let mut somebody_else = good.header.clone();
    somebody_else.client = ClientId::new("devices/two").unwrap();
    let stranger = SecretKey::generate().unwrap();
    let mut wrong_root = good.header.clone();
    wrong_root.items_root = device.header(10, &body).items_root;
    let mut wrong_count = good.header.clone();
    wrong_count.count = 3;
    let mut ahead = device.header(10, late.as_bytes());
    ahead.event_time.0 += 3_600_000;
    let composed_ahead = device.compose(10, late.as_bytes());

    vec![
        refused("garbage", 10, b"garbage".to_vec(), ErrorCode::Malformed),
        refused("nothing", 10, Vec::new(), ErrorCode::Malformed),
        refused("a changed ciphertext", 10, flipped, ErrorCode::BadEnvelope),
        refused("not encrypted", 10, good.content.clone(), ErrorCode::EncryptionRequired),
        sealed("garbage, encrypted", 10, b"garbage", ErrorCode::Malformed),
        sealed(
            "another key's signature",
            10,
            &device.forge(&good.header, &stranger, 0, &body),
            ErrorCode::BadSignature,
        ),
        sealed("a seq that is not the envelope's", 11, &good.content, ErrorCode::BadEnvelope),
        sealed("another stream", 10, &device.forge(&elsewhere, &device.key, 0, &body), ErrorCode::WrongTopic),
        sealed(
            "another client",
            10,
            &device.forge(&somebody_else, &device.key, 0, &body),
            ErrorCode::WrongTopic,
        ),
        sealed(
            "no known encoding",
            10,
            &device.forge(&good.header, &device.key, 9, &body),
            ErrorCode::BadEncoding,
        ),
        sealed("not zstd", 10, &device.forge(&good.header, &device.key, 1, &body), ErrorCode::BadEncoding),
        sealed(
            "another body",
            10,
            &device.forge(&good.header, &device.key, 0, &reading(now().0, 2.0, 1)),
            ErrorCode::BadBody,
        ),
        sealed(
            "no json",
            10,
            &device.forge(&device.header(10, b"{"), &device.key, 0, b"{"),
            ErrorCode::Malformed,
        ),
        sealed(
            "a count that is not that of data",
            10,
            &device.forge(&device.header(10, wrong_body), &device.key, 0, wrong_body),
            ErrorCode::CountMismatch,
        ),
        sealed(
            "a count that is not the header's",
            10,
            &device.forge(&wrong_count, &device.key, 0, &body),
            ErrorCode::CountMismatch,
        ),
        sealed("another root", 10, &device.forge(&wrong_root, &device.key, 0, &body), ErrorCode::BadRoot),
        sealed("an hour ahead", 10, &composed_ahead.content, ErrorCode::ClockAhead),
    ]
}

/// A few kilobytes that become far more than a body may have.
async fn bombs_are_too_large_and_cost_no_memory(network: &TestNetwork, device: &mut Device) {
    const HUGE: usize = 256 << 20;
    let before = network.peak_memory(0);
    for encoding in [Encoding::Zstd, Encoding::Deflate] {
        let bomb = encoding.compress(&vec![b' '; HUGE]).unwrap();
        assert!(bomb.len() < 1 << 20, "{}", bomb.len());
        let content =
            device.forge(&device.header(12, b"unread"), &device.key, encoding.number().into(), &bomb);
        let wire = device.seal(12, &content);
        assert_eq!(device.publish("env", &wire).await, Some(0));
        let error = device.error().await;
        assert_eq!((error.code, error.seq.unwrap().0), (ErrorCode::TooLarge, 12), "{}", error.detail);
    }
    // What the allocator has not given back yet is in it.
    let more = network.peak_memory(0) - before;
    assert!(more < 64 << 20, "{more} bytes more for bombs of {HUGE}");
}

async fn a_message_sent_again_gets_the_same_ack_again(device: &mut Device) {
    let composed = device.compose(13, &reading(now().0, 1.0, 1));
    let wire = device.seal(13, &composed.content);
    let mut acks = Vec::new();
    for _ in 0..3 {
        assert_eq!(device.publish("env", &wire).await, Some(0));
        let ack = device.ack().await;
        acks.push((ack.seq, ack.header, ack.written, ack.height, ack.block));
    }
    assert!(acks.iter().all(|ack| *ack == acks[0]), "{acks:?}");
    assert_eq!(acks[0].2, [0, 1]);
}

async fn a_seq_with_another_header_is_a_security_event(network: &TestNetwork, device: &mut Device) {
    let event = "ledgermq_ingress_security_events_total{kind=\"seq_reused\"}";
    let before = network.metric(0, event).await;
    // A correct client never does this: the same payload key and nonce seal two messages.
    assert_eq!(device.send(13, &reading(now().0, 99.0, 1)).await, Some(0));
    let error = device.error().await;
    assert_eq!((error.code, error.seq.unwrap().0), (ErrorCode::SeqReused, 13));
    assert_eq!(network.metric(0, event).await, before + 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_rights_of_clients_end() {
    let settings = [("mqtt.payload_key_max_messages", "3"), ("mqtt.session_expiry_s", "0")];
    let mut network = TestNetwork::start_with(1, &settings).await;
    a_payload_key_ends_and_a_new_one_takes_its_place(&mut network).await;
    a_session_ends_when_the_settings_say_so(&mut network).await;
    the_sdk_hands_over_new_keys_by_itself(&mut network).await;
    a_stranger_is_told_that_it_is_not_registered(&mut network).await;
    a_stranger_that_goes_on_talking_is_cut_off(&network).await;
    a_stranger_that_is_registered_is_cut_off_and_let_in(&mut network).await;
    a_revoked_client_is_cut_off_and_told(&mut network).await;
}

async fn a_payload_key_ends_and_a_new_one_takes_its_place(network: &mut TestNetwork) {
    let key = network.register("devices/iot").await;
    let mut device = Device::ready(network, 0, "devices/iot", &key, 4).await;
    for seq in 1..=3 {
        assert_eq!(device.send(seq, &reading(now().0, 1.0, 1)).await, Some(0));
        assert_eq!(device.ack().await.seq.0, seq);
    }
    let body = reading(now().0, 4.0, 1);
    let composed = device.compose(4, &body);
    let wire = device.seal(4, &composed.content);
    assert_eq!(device.publish("env", &wire).await, Some(0));
    let forbidden = device.forbidden().await;
    assert_eq!(
        (forbidden.reason, forbidden.nonce, forbidden.last_seq.0),
        (ForbiddenReason::KeyExpired, None, 3)
    );
    assert!(forbidden.last_epoch > 0);
    device.answer(&forbidden).await;
    let again = device.seal(4, &composed.content);
    assert_eq!(device.publish("env", &again).await, Some(0));
    assert_eq!(device.ack().await.header, composed.header_hash);
}

async fn a_session_ends_when_the_settings_say_so(network: &mut TestNetwork) {
    let key = network.register("devices/sleepy").await;
    let mut device = Device::dial(network, 0, "devices/sleepy", &key, 4).await;
    let token = device.token();
    assert!(!device.raw.resume(&Connect::new("devices/sleepy", &token).persistent()).await);
    drop(device);
    network
        .eventually("a session ends with its connection", async || {
            let mut device = Device::dial(network, 0, "devices/sleepy", &key, 4).await;
            let connect = Connect::new("devices/sleepy", &token).persistent();
            (device.raw.connack(&connect).await == Some((false, 0))).then_some(())
        })
        .await;
}

async fn the_sdk_hands_over_new_keys_by_itself(network: &mut TestNetwork) {
    let key = network.register("devices/sdk").await;
    let gateway = network.gateway("devices/sdk", &key, &[0]).await;
    let stream = Stream::new("env").unwrap();
    for number in 0..10 {
        let delivery = gateway.publish(&stream, reading(now().0, 1.0, number)).await.unwrap();
        assert_eq!(delivery.done().await.unwrap().written, [0, 1]);
    }
    let transports = "ledgermq_ingress_key_transports_total{outcome=\"accepted\"}";
    assert!(network.metric(0, transports).await >= 6.0);
    gateway.close().await;
}

async fn unauth(device: &mut Device) -> UnauthReason {
    match device.next().await {
        (_, FromNode::Unauth(unauth)) => unauth.reason,
        other => panic!("unauth was expected: {other:?}"),
    }
}

async fn a_stranger_is_told_that_it_is_not_registered(network: &mut TestNetwork) {
    for level in [4, 5] {
        let mut device = Device::stranger(network, "devices/stranger", level).await;
        device.subscribe().await;
        assert_eq!(unauth(&mut device).await, UnauthReason::NotRegistered);
        for below in ["key", "env"] {
            assert_eq!(device.publish(below, b"let me in").await, Some(0));
            assert_eq!(unauth(&mut device).await, UnauthReason::NotRegistered);
        }
    }
}

async fn a_stranger_that_goes_on_talking_is_cut_off(network: &TestNetwork) {
    let mut device = Device::stranger(network, "devices/chatty", 4).await;
    let mut taken = 0;
    while device.publish("env", b"let me in").await.is_some() {
        taken += 1;
        // At most twice a minute's share, should a minute end just now.
        assert!(taken <= 60, "there is a limit");
    }
    assert!(taken >= 30);
}

async fn a_stranger_that_is_registered_is_cut_off_and_let_in(network: &mut TestNetwork) {
    let mut before = Device::stranger(network, "devices/late", 4).await;
    before.subscribe().await;
    assert_eq!(unauth(&mut before).await, UnauthReason::NotRegistered);
    let key = network.register("devices/late").await;
    assert!(before.next_or_end().await.is_none(), "its session is closed");
    let mut raw = Raw::dial(("127.0.0.1", network.ports(0).mqtt), 4).await;
    assert_eq!(raw.connect(&Connect::stranger("devices/late")).await, Some(5), "without its token");
    let mut device = Device::ready(network, 0, "devices/late", &key, 4).await;
    assert_eq!(device.send(1, &reading(now().0, 1.0, 1)).await, Some(0));
    assert_eq!(device.ack().await.written, [0, 1]);
}

async fn a_revoked_client_is_cut_off_and_told(network: &mut TestNetwork) {
    let key = network.register("devices/lost").await;
    let mut before = Device::ready(network, 0, "devices/lost", &key, 4).await;
    assert_eq!(before.send(1, &reading(now().0, 1.0, 1)).await, Some(0));
    assert_eq!(before.ack().await.written, [0, 1]);
    network.revoke("devices/lost").await;
    assert!(before.next_or_end().await.is_none(), "its session is closed");
    for level in [4, 5] {
        let mut after = Device::connect(network, 0, "devices/lost", &key, level).await;
        assert_eq!(unauth(&mut after).await, UnauthReason::Revoked);
        assert_eq!(after.publish("key", &[]).await, Some(0));
        assert_eq!(unauth(&mut after).await, UnauthReason::Revoked);
        assert_eq!(after.publish("env", b"still here").await, Some(0));
        assert_eq!(unauth(&mut after).await, UnauthReason::Revoked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_keeps_to_its_own_topics_and_leaves_nothing_behind() {
    let mut network = TestNetwork::start(1).await;
    let key = network.register("devices/iot").await;
    let two = network.register("devices/two").await;
    let mut victim = Device::ready(&network, 0, "devices/two", &two, 4).await;
    for topic in
        ["devices/two/env", "devices/two/env/success", "devices/iot/env/success", "devices/iot", "$SYS/x"]
    {
        let mut device = Device::connect(&network, 0, "devices/iot", &key, 5).await;
        let packet_id = device.raw.publish(topic, 1, false, b"forged").await;
        assert_eq!(device.raw.puback(packet_id).await, Some(0x87), "{topic}");
        let mut device = Device::connect(&network, 0, "devices/iot", &key, 4).await;
        let packet_id = device.raw.publish(topic, 1, false, b"forged").await;
        assert_eq!(device.raw.puback(packet_id).await, None, "{topic}");
    }
    for filter in ["#", "devices/two/#", "+/iot/#", "devices/+/env", "$SYS/#", "$share/g/devices/two/#"] {
        let mut device = Device::connect(&network, 0, "devices/iot", &key, 4).await;
        assert!(matches!(device.raw.subscribe(filter).await, None | Some(0x80)), "{filter}");
    }
    wills_and_retained_messages_are_refused(&network, &key).await;
    a_bad_token_neither_gets_in_nor_takes_over(&network, &key, &mut victim).await;
    assert_eq!(victim.send(1, &reading(now().0, 1.0, 1)).await, Some(0));
    assert_eq!(victim.ack().await.seq.0, 1, "nothing else has arrived");
}

async fn wills_and_retained_messages_are_refused(network: &TestNetwork, key: &SecretKey) {
    for level in [4, 5] {
        let mut device = Device::dial(network, 0, "devices/iot", key, level).await;
        let token = device.token();
        let will = Connect { will: Some(("devices/iot/env", false)), ..Connect::new("devices/iot", &token) };
        let answer = device.raw.connect(&will).await;
        assert!(answer.is_none_or(|code| code != 0), "{answer:?}");

        let mut device = Device::ready(network, 0, "devices/iot", key, level).await;
        let composed = device.compose(1, &reading(now().0, 1.0, 1));
        let wire = device.seal(1, &composed.content);
        let packet_id = device.raw.publish("devices/iot/env", 1, true, &wire).await;
        let answer = device.raw.receive().await;
        let refused = answer.as_ref().is_none_or(|packet| {
            packet.head >> 4 == 14 || (packet.body[..2] == packet_id.to_be_bytes() && packet.body[2] >= 0x80)
        });
        assert!(refused, "{answer:?}");
    }
}

async fn a_bad_token_neither_gets_in_nor_takes_over(
    network: &TestNetwork,
    key: &SecretKey,
    victim: &mut Device,
) {
    let thief = SecretKey::generate().unwrap();
    let another = NetworkId([9; 32]);
    for level in [4, 5] {
        let refused = if level == 5 { 0x87 } else { 5 };
        let own = Device::dial(network, 0, "devices/two", &victim.key, level).await.token();
        let tokens = [
            Device::dial(network, 0, "devices/two", &thief, level).await.token(),
            Device::dial(network, 0, "devices/iot", key, level).await.token(),
            token::issue(&victim.key, &another, &victim.client, now(), 600).unwrap(),
            own[..own.len() - 2].to_owned(),
            String::new(),
        ];
        for token in tokens {
            let mut raw = Raw::dial(("127.0.0.1", network.ports(0).mqtt), level).await;
            assert_eq!(raw.connect(&Connect::new("devices/two", &token)).await, Some(refused), "{token}");
        }
    }
    assert!(victim.raw.is_alive().await);
}
