//! Uplink, its acknowledgement, and downlink.

use bytes::Bytes;
use ledgermq::broker::{Broker, DownlinkQos, Standing};
use rumqttc::{AsyncClient, Event as ClientEvent, MqttOptions, Packet as ClientPacket, QoS};

use crate::support::{Connect, Event, PATIENCE, World, eventually, id};

const V311: u8 = 4;
const V5: u8 = 5;

#[tokio::test]
async fn puback_waits_for_the_gatekeeper() {
    let world = World::new().await;
    for (asked, level) in [V311, V5].into_iter().enumerate() {
        let mut client = world.join(level, "devices/iot", "secret").await;
        world.gate.storage.forget_permits(usize::MAX);
        let packet_id = client.publish("devices/iot/env", 1, false, b"hot").await;
        eventually("asked", || world.gate.published().len() == asked + 1).await;
        let a_while = std::time::Duration::from_millis(100);
        let early = tokio::time::timeout(a_while, client.stream.peek(&mut [0])).await;
        assert!(early.is_err(), "no PUBACK yet: {early:?}");
        world.gate.storage.add_permits(1);
        let reason = client.puback(packet_id).await.unwrap();
        assert!(reason < 0x80, "{reason:#x}");
        world.gate.storage.add_permits(1_000);
    }
    let (session, topic, payload) = world.gate.published().remove(0);
    assert_eq!((session.client, session.standing), (id("devices/iot"), Standing::Registered));
    assert_eq!((topic.as_str(), &payload[..]), ("devices/iot/env", &b"hot"[..]));
}

#[tokio::test]
async fn all_qualities_of_service_reach_the_gatekeeper_in_order() {
    let world = World::new().await;
    for level in [V311, V5] {
        let mut client = world.join(level, "devices/iot", "secret").await;
        client.publish("devices/iot/env", 0, false, b"0").await;
        let one = client.publish("devices/iot/env", 1, false, b"1").await;
        assert!(client.puback(one).await.is_some());
        let two = client.publish("devices/iot/env", 2, false, b"2").await;
        let pubrec = client.receive().await.unwrap();
        assert_eq!((pubrec.head, &pubrec.body[..2]), (0x50, &two.to_be_bytes()[..]));
        client.send(0x62, &two.to_be_bytes()).await;
        assert_eq!(client.receive().await.unwrap().head, 0x70);
    }
    let payloads: Vec<Bytes> = world.gate.published().into_iter().map(|(_, _, payload)| payload).collect();
    assert_eq!(payloads, ["0", "1", "2", "0", "1", "2"]);
}

#[tokio::test]
async fn an_empty_payload_is_a_message_too() {
    let world = World::new().await;
    let mut client = world.join(V311, "devices/iot", "secret").await;
    let packet_id = client.publish("devices/iot/key", 1, false, b"").await;
    assert_eq!(client.puback(packet_id).await, Some(0));
    assert_eq!(world.gate.published()[0].2.len(), 0);
}

#[tokio::test]
async fn a_foreign_topic_is_0x87_on_mqtt_5_and_the_end_on_3_1_1() {
    let world = World::new().await;
    for topic in ["devices/two/env", "devices/iot/env/success", "devices/iot/unauth", "x", "devices/iot2/env"]
    {
        let mut client = world.join(V5, "devices/iot", "secret").await;
        let packet_id = client.publish(topic, 1, false, b"x").await;
        assert_eq!(client.puback(packet_id).await, Some(0x87), "{topic}");
        assert!(client.is_alive().await);
        for qos in [0, 1, 2] {
            let mut client = world.join(V311, "devices/iot", "secret").await;
            client.publish(topic, qos, false, b"x").await;
            assert!(!client.is_alive().await, "{topic} qos {qos}");
        }
    }
    assert_eq!(world.gate.published(), []);
}

#[tokio::test]
async fn a_retained_message_is_refused() {
    let world = World::new().await;
    let mut client = world.join(V5, "devices/iot", "secret").await;
    let packet_id = client.publish("devices/iot/env", 1, true, b"x").await;
    assert_ne!(client.puback(packet_id).await, Some(0));
    let mut client = world.join(V311, "devices/iot", "secret").await;
    client.publish("devices/iot/env", 1, true, b"x").await;
    assert!(!client.is_alive().await);
    assert_eq!(world.gate.published(), []);
}

#[tokio::test]
async fn what_cannot_be_stored_is_not_acknowledged() {
    let world = World::new().await;
    world.gate.cannot_store("devices/iot/env");
    for level in [V311, V5] {
        let mut client = world.join(level, "devices/iot", "secret").await;
        let packet_id = client.publish("devices/iot/env", 1, false, b"x").await;
        match client.receive().await {
            None => {}
            // MQTT 5 may say why it hangs up.
            Some(packet) => assert_eq!(packet.head, 0xe0, "{packet:?} for {packet_id}"),
        }
    }
}

#[tokio::test]
async fn a_subscription_outside_its_own_topics_is_refused() {
    let world = World::new().await;
    for filter in ["#", "+/+/#", "devices/#", "devices/two/#", "devices/+/env", "devices/iot", "$SYS/#"] {
        for (level, refused) in [(V311, 0x80), (V5, 0x87)] {
            let mut client = world.join(level, "devices/iot", "secret").await;
            assert_eq!(client.subscribe(filter).await, Some(refused), "{filter}");
        }
    }
    // A shared subscription is refused too; 3.1.1 may hang up on it.
    let mut client = world.join(V5, "devices/iot", "secret").await;
    assert!(client.subscribe("$share/g/devices/two/#").await.unwrap() >= 0x80);
    assert_eq!(world.gate.count(|event| matches!(event, Event::Subscribed(_))), 0);
}

#[tokio::test]
async fn downlink_reaches_its_client_and_nobody_else() {
    let world = World::new().await;
    for level in [V311, V5] {
        let mut one = world.join(level, "devices/iot", "secret").await;
        let mut two = world.join(level, "devices/two", "secret2").await;
        assert_eq!(one.subscribe("devices/iot/#").await, Some(1));
        assert_eq!(two.subscribe("devices/two/#").await, Some(1));
        let qos = DownlinkQos::AtLeastOnce;
        world
            .broker
            .publish(&id("devices/iot"), "devices/iot/env/success", Bytes::from_static(b"ok"), qos)
            .await
            .unwrap();
        let publish = one.receive().await.unwrap();
        assert_eq!(publish.head & 0xf6, 0x32);
        assert!(publish.body.ends_with(b"ok"));
        assert!(two.is_alive().await);
    }
}

#[tokio::test]
async fn downlink_to_anothers_topic_is_an_error() {
    let world = World::new().await;
    let qos = DownlinkQos::AtLeastOnce;
    let sent = world.broker.publish(&id("devices/iot"), "devices/two/unauth", Bytes::new(), qos).await;
    assert!(sent.unwrap_err().to_string().contains("devices/two/unauth"));
}

#[tokio::test]
async fn downlink_waits_in_the_session_of_an_absent_client() {
    for level in [V311, V5] {
        let world = World::new().await;
        let connect = Connect::new("devices/iot", "secret").persistent();
        let mut client = world.raw(level).await;
        client.resume(&connect).await;
        assert_eq!(client.subscribe("devices/iot/#").await, Some(1));
        drop(client);
        eventually("gone", || world.broker.connections() == 0).await;
        let topic = "devices/iot/env/success";
        let payload = Bytes::from_static(b"later");
        world.broker.publish(&id("devices/iot"), topic, payload, DownlinkQos::AtLeastOnce).await.unwrap();
        let mut client = world.raw(level).await;
        assert!(client.resume(&connect).await);
        assert!(client.receive().await.unwrap().body.ends_with(b"later"));
    }
}

#[tokio::test]
async fn uplink_is_never_routed_even_to_its_own_sender() {
    let world = World::new().await;
    let mut client = world.join(V311, "devices/iot", "secret").await;
    assert_eq!(client.subscribe("devices/iot/#").await, Some(1));
    let packet_id = client.publish("devices/iot/env", 1, false, b"x").await;
    assert_eq!(client.puback(packet_id).await, Some(0));
    client.send(0xc0, &[]).await;
    assert_eq!(client.receive().await.unwrap().head, 0xd0, "the PING is answered with nothing in between");
}

#[tokio::test]
async fn a_stream_of_messages_from_a_client_library_is_acknowledged_whole() {
    const MESSAGES: usize = 300;
    let world = World::new().await;
    let mut options = MqttOptions::new("devices/iot", "127.0.0.1", world.address().port());
    options.set_credentials("account", "secret").set_inflight(50);
    let (client, mut events) = AsyncClient::new(options, 10);
    let publishing = async {
        for n in 0..MESSAGES {
            client.publish("devices/iot/env", QoS::AtLeastOnce, false, n.to_string()).await.unwrap();
        }
    };
    let acknowledged = async {
        let mut count = 0;
        while count < MESSAGES {
            if let ClientEvent::Incoming(ClientPacket::PubAck(_)) = events.poll().await.unwrap() {
                count += 1;
            }
        }
    };
    let both = async { tokio::join!(publishing, acknowledged) };
    tokio::time::timeout(PATIENCE, both).await.unwrap();
    let payloads: Vec<String> = world
        .gate
        .published()
        .into_iter()
        .map(|(_, _, payload)| String::from_utf8(payload.to_vec()).unwrap())
        .collect();
    assert_eq!(payloads, (0..MESSAGES).map(|n| n.to_string()).collect::<Vec<_>>());
}
