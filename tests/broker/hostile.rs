//! Garbage, oversize and rudeness: only the connection that misbehaves suffers.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use ledgermq::broker::BrokerSettings;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use crate::support::mqtt::string;
use crate::support::{Connect, Event, World, eventually, settings};

const V311: u8 = 4;
const V5: u8 = 5;

#[tokio::test]
async fn an_oversized_packet_ends_its_connection_only() {
    let world = World::with(BrokerSettings { max_packet_bytes: 10_000, ..settings() }).await;
    let mut good = world.join(V311, "devices/two", "secret2").await;
    for level in [V311, V5] {
        let mut client = world.join(level, "devices/iot", "secret").await;
        let packet_id = client.publish("devices/iot/env", 1, false, &[0; 9_000]).await;
        assert!(client.puback(packet_id).await.is_some());
        client.publish("devices/iot/env", 1, false, &[0; 20_000]).await;
        assert!(!client.is_alive().await);
    }
    assert!(good.is_alive().await);
    assert_eq!(world.gate.published().len(), 2);
}

#[tokio::test]
async fn an_oversized_connect_is_not_read() {
    let world = World::with(BrokerSettings { max_packet_bytes: 10_000, ..settings() }).await;
    for level in [V311, V5] {
        let token = "x".repeat(60_000);
        let code = world.raw(level).await.connect(&Connect::new("devices/iot", &token)).await;
        assert_ne!(code, Some(0));
    }
    assert_eq!(world.gate.count(|_| true), 0);
}

#[tokio::test]
async fn nobody_can_have_megabytes_kept_before_they_are_known() {
    let world = World::new().await;
    // A CONNECT, and a PUBLISH before any CONNECT, each of 4 MiB.
    for first in [0x10, 0x30] {
        let mut client = world.raw(V311).await;
        let mut bytes = vec![first, 0x80, 0x80, 0x80, 0x02];
        bytes.extend([0, 4, b'M', b'Q', b'T', b'T', V311, 0xc2, 0, 60, 0, 5]);
        bytes.extend(b"a/bcd");
        client.stream.write_all(&bytes).await.unwrap();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(3), client.receive()).await;
        assert!(matches!(ended, Ok(None)), "{first:#x}: it waits for the rest");
    }
    assert_eq!(world.gate.count(|_| true), 0);
}

#[tokio::test]
async fn a_packet_that_announces_more_than_it_may_is_refused_at_once() {
    let world = World::new().await;
    let mut client = world.join(V311, "devices/iot", "secret").await;
    client.stream.write_all(&[0x30, 0xff, 0xff, 0xff, 0x7f]).await.unwrap();
    assert!(client.receive().await.is_none());
}

#[tokio::test]
async fn nothing_is_taken_before_connect() {
    let world = World::new().await;
    let mut client = world.raw(V311).await;
    client.publish("devices/iot/env", 1, false, b"x").await;
    assert!(client.receive().await.is_none());
    assert_eq!(world.gate.count(|_| true), 0);
}

#[tokio::test]
async fn a_second_connect_ends_the_connection() {
    let world = World::new().await;
    for level in [V311, V5] {
        let mut client = world.join(level, "devices/iot", "secret").await;
        client.connect(&Connect::new("devices/two", "secret2")).await;
        assert!(!client.is_alive().await);
    }
}

#[tokio::test]
async fn a_topic_with_wildcards_or_an_alias_nobody_agreed_on_is_refused() {
    let world = World::new().await;
    for topic in ["devices/iot/+", "devices/iot/#", "#", ""] {
        let mut client = world.join(V311, "devices/iot", "secret").await;
        client.publish(topic, 1, false, b"x").await;
        assert!(!client.is_alive().await, "{topic}");
    }
    let mut client = world.join(V5, "devices/iot", "secret").await;
    let mut body = string("");
    body.extend([0, 9, 3, 0x23, 0, 1]);
    client.send(0x32, &body).await;
    let answer = client.receive().await;
    assert!(answer.is_none_or(|packet| packet.body.get(2).is_some_and(|reason| *reason >= 0x80)));
    assert_eq!(world.gate.published(), []);
}

#[tokio::test]
async fn a_session_does_not_survive_its_client_hanging_up_in_the_handshake() {
    let world = World::with(BrokerSettings {
        handshake_timeout: std::time::Duration::from_millis(100),
        ..settings()
    })
    .await;
    for _ in 0..20 {
        let mut client = world.raw(V311).await;
        client.stream.set_zero_linger().unwrap();
        client.stream.write_all(&connect_bytes()).await.unwrap();
        drop(client);
    }
    eventually("each that came is told gone", || {
        let came = world.gate.count(|event| matches!(event, Event::Connect(_)));
        let gone = world.gate.count(|event| matches!(event, Event::Disconnected(_)));
        world.broker.connections() == 0 && came == gone
    })
    .await;
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let patience = std::time::Duration::from_millis(100);
    let world = World::with(BrokerSettings { handshake_timeout: patience, ..settings() }).await;
    for first in [&b""[..], &[0x10], &connect_bytes()[..13], &connect_bytes()[..15]] {
        let mut client = world.raw(V311).await;
        client.stream.write_all(first).await.unwrap();
        // What is closed without an answer, or answered with "not now", is not waited for.
        let answer = client.receive().await;
        assert!(answer.is_none_or(|packet| packet.body[1] != 0), "{first:?}");
    }
    assert_eq!(world.gate.count(|_| true), 0);
}

#[tokio::test]
async fn silent_connections_cannot_keep_others_out_for_long() {
    let patience = std::time::Duration::from_millis(200);
    let world =
        World::with(BrokerSettings { max_connections: 8, handshake_timeout: patience, ..settings() }).await;
    let mut good = world.join(V311, "devices/two", "secret2").await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(world.raw(V311).await);
    }
    assert!(good.is_alive().await);
    let mut came_in = false;
    for _ in 0..1_000 {
        let mut client = world.raw(V311).await;
        if client.connect(&Connect::new("devices/iot", "secret")).await == Some(0) {
            came_in = true;
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(came_in);
    for mut client in silent {
        assert!(client.receive().await.is_none());
    }
}

#[tokio::test]
async fn a_connection_too_many_is_closed() {
    let world = World::with(BrokerSettings { max_connections: 1, ..settings() }).await;
    let first = world.join(V311, "devices/iot", "secret").await;
    assert!(world.raw(V311).await.connect(&Connect::new("devices/two", "secret2")).await.is_none());
    drop(first);
    eventually("room again", || world.broker.connections() == 0).await;
}

fn connect_bytes() -> Vec<u8> {
    let mut body = string("MQTT");
    body.extend([4, 2, 0, 60]);
    body.extend(string("new/one"));
    let mut packet = vec![0x10, u8::try_from(body.len()).unwrap()];
    packet.extend(body);
    packet
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics of every thread: one in the broker's tasks would end a node that aborts on panic.
fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            report(info);
        }));
    });
}

/// Packets of a connected client that are almost right, MQTT 5: type and flags, then the body.
fn almost_right() -> Vec<(u8, Vec<u8>)> {
    let topic = string("devices/iot/env");
    // Payload format, message expiry, content type, response topic, correlation data, user property.
    let properties: Vec<u8> = [
        &[1, 1, 2, 0, 0, 0, 9, 3][..],
        &string("json"),
        &[8],
        &string("devices/iot/x"),
        &[9],
        &string("abc"),
        &[38],
        &string("k"),
        &string("v"),
    ]
    .concat();
    let with_length = [&[u8::try_from(properties.len()).unwrap()], &properties[..]].concat();
    vec![
        (0x32, [&topic[..], &[0, 7], &with_length, b"payload"].concat()),
        (0x34, [&topic[..], &[0, 8], &with_length, b"payload"].concat()),
        (0x82, [&[0, 9, 2, 11, 5][..], &string("devices/iot/#"), &[1]].concat()),
        (0xa2, [&[0, 10, 0][..], &string("devices/iot/#")].concat()),
        (0x40, vec![0, 7, 0, 0]),
        (0x50, vec![0, 7, 0, 0]),
        (0x62, vec![0, 8, 0, 0]),
        (0x70, vec![0, 8, 0, 0]),
        (0xf0, vec![0, 3, 21, 0, 0]),
        (0xe0, vec![4, 5, 17, 0, 0, 0, 9]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_packet_with_a_few_wrong_bytes_makes_the_broker_panic() {
    count_panics();
    let world = World::new().await;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for round in 0..300 {
        let level = if round % 2 == 0 { V5 } else { V311 };
        let mut client = world.join(level, "devices/iot", "secret").await;
        for (head, mut body) in almost_right() {
            for _ in 0..=random(2) {
                let position = random(body.len());
                body[position] = u8::try_from(random(256)).unwrap();
            }
            client.send(head, &body).await;
        }
        let mut connect = connect_bytes();
        let position = random(connect.len());
        connect[position] = u8::try_from(random(256)).unwrap();
        let mut stranger = world.raw(V311).await;
        let _ = stranger.stream.write_all(&connect).await;
    }
    assert!(world.join(V5, "devices/two", "secret2").await.is_alive().await);
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Whatever comes in, before or after CONNECT, the broker goes on serving others.
    #[test]
    fn garbage_disturbs_nobody_else(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20),
        connected: bool,
        v5: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            let mut good = world.join(V311, "devices/two", "secret2").await;
            let level = if v5 { V5 } else { V311 };
            for garbage in packets {
                let mut client =
                    if connected { world.join(level, "devices/iot", "secret").await } else { world.raw(level).await };
                let _ = client.stream.write_all(&garbage).await;
            }
            assert!(good.is_alive().await);
            world.join(level, "devices/iot", "secret").await;
        });
    }
}
