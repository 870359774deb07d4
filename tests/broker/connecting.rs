//! Who gets in, who takes over from whom, and what is left when a client is closed.

use ledgermq::broker::{Broker, BrokerSettings, Closing, EmbeddedBroker, Standing};
use ledgermq::clock::SystemClock;

use crate::support::{Connect, Event, TestGate, World, eventually, id, settings};

const V311: u8 = 4;
const V5: u8 = 5;

fn not_authorized(level: u8) -> Option<u8> {
    Some(if level == V5 { 0x87 } else { 5 })
}

#[tokio::test]
async fn a_registered_client_without_a_good_token_is_not_authorized() {
    let world = World::new().await;
    for level in [V311, V5] {
        for connect in [Connect::new("devices/iot", "wrong"), Connect::stranger("devices/iot")] {
            assert_eq!(world.raw(level).await.connect(&connect).await, not_authorized(level));
        }
    }
}

#[tokio::test]
async fn a_client_id_that_is_not_group_and_name_is_refused_unasked() {
    let world = World::new().await;
    for level in [V311, V5] {
        for bad in
            ["devices", "devices/+", "+/iot", "#", "devices/iot/x", "verified/x", "$SYS/x", "a/b c", ""]
        {
            let code = world.raw(level).await.connect(&Connect::new(bad, "secret")).await;
            assert_ne!(code, Some(0), "{bad}");
        }
    }
    assert_eq!(world.gate.count(|event| matches!(event, Event::Connect(_))), 0);
}

#[tokio::test]
async fn a_will_is_refused_wherever_it_points() {
    let world = World::new().await;
    for level in [V311, V5] {
        for will in [("devices/iot/env", false), ("devices/two/env", false), ("devices/iot/env", true)] {
            let connect = Connect { will: Some(will), ..Connect::new("devices/iot", "secret") };
            assert_ne!(world.raw(level).await.connect(&connect).await, Some(0), "{will:?}");
        }
    }
    assert_eq!(world.gate.count(|event| matches!(event, Event::Connect(_))), 0);
}

#[tokio::test]
async fn a_bad_token_never_takes_over_and_a_good_one_always_does() {
    let world = World::new().await;
    for level in [V311, V5] {
        let mut first = world.join(level, "devices/iot", "secret").await;
        for clean in [true, false] {
            let intruder = Connect { clean, ..Connect::new("devices/iot", "wrong") };
            assert_eq!(world.raw(level).await.connect(&intruder).await, not_authorized(level));
            let nobody = Connect { clean, ..Connect::stranger("devices/iot") };
            assert_eq!(world.raw(level).await.connect(&nobody).await, not_authorized(level));
            assert!(first.is_alive().await);
        }
        for clean in [true, false] {
            let mut second = world.raw(level).await;
            let connect = Connect { clean, ..Connect::new("devices/iot", "secret") };
            assert_eq!(second.connect(&connect).await, Some(0));
            assert!(!first.is_alive().await);
            first = second;
        }
    }
}

#[tokio::test]
async fn every_connection_that_came_in_is_told_gone_once() {
    let world = World::new().await;
    drop(world.join(V311, "devices/iot", "secret").await);
    drop(world.join(V5, "devices/two", "secret2").await);
    let gone = |event: &Event| matches!(event, Event::Disconnected(_));
    eventually("both gone", || world.gate.count(gone) == 2).await;
    assert_eq!(world.broker.connections(), 0);
}

#[tokio::test]
async fn an_unregistered_client_comes_in_with_a_clean_session_only() {
    let world = World::new().await;
    for level in [V311, V5] {
        for _ in 0..2 {
            let mut stranger = world.raw(level).await;
            assert!(!stranger.resume(&Connect::stranger("new/one").persistent()).await, "no session before");
            assert_eq!(stranger.subscribe("new/one/#").await, Some(1));
            drop(stranger);
            eventually("gone", || world.broker.connections() == 0).await;
        }
    }
    let told = |event: &Event| matches!(event, Event::Subscribed(s) if s.standing == Standing::Unregistered);
    assert_eq!(world.gate.count(told), 4);
}

#[tokio::test]
async fn strangers_cannot_take_all_places() {
    let world = World::with(BrokerSettings { max_strangers: 2, ..settings() }).await;
    let mut strangers = Vec::new();
    for name in ["new/one", "new/two"] {
        let mut stranger = world.raw(V5).await;
        assert_eq!(stranger.connect(&Connect::stranger(name)).await, Some(0));
        strangers.push(stranger);
    }
    assert_eq!(world.raw(V5).await.connect(&Connect::stranger("new/three")).await, not_authorized(V5));
    world.join(V5, "devices/iot", "secret").await;
}

#[tokio::test]
async fn a_session_too_many_is_told_to_come_later() {
    let world = World::with(BrokerSettings { max_sessions: 1, ..settings() }).await;
    let _first = world.join(V5, "devices/iot", "secret").await;
    assert_eq!(world.raw(V5).await.connect(&Connect::new("devices/two", "secret2")).await, Some(0x88));
    assert_eq!(world.raw(V311).await.connect(&Connect::new("devices/two", "secret2")).await, Some(3));
}

#[tokio::test]
async fn erasing_a_client_ends_its_connection_and_its_session() {
    let world = World::new().await;
    for level in [V311, V5] {
        let mut client = world.raw(level).await;
        let connect = Connect::new("devices/iot", "secret").persistent();
        client.resume(&connect).await;
        assert_eq!(client.subscribe("devices/iot/#").await, Some(1));
        world.broker.close_client(&id("devices/iot"), Closing::Erase).await.unwrap();
        assert!(!client.is_alive().await);
        assert!(!world.raw(level).await.resume(&connect).await, "the session is gone");
        world.broker.close_client(&id("devices/iot"), Closing::Erase).await.unwrap();
    }
}

#[tokio::test]
async fn closing_a_client_can_leave_its_session() {
    let world = World::new().await;
    let mut client = world.raw(V311).await;
    let connect = Connect::new("devices/iot", "secret").persistent();
    client.resume(&connect).await;
    world.broker.close_client(&id("devices/iot"), Closing::KeepSession).await.unwrap();
    assert!(!client.is_alive().await);
    assert!(world.raw(V311).await.resume(&connect).await);
}

#[tokio::test]
async fn erasing_a_client_without_a_session_is_no_error() {
    let world = World::new().await;
    world.broker.close_client(&id("no/body"), Closing::Erase).await.unwrap();
}

#[tokio::test]
async fn a_client_erased_during_its_handshake_does_not_stay() {
    let world = World::new().await;
    world.gate.door.forget_permits(usize::MAX);
    let mut stranger = world.raw(V311).await;
    let connecting = async { stranger.connect(&Connect::stranger("new/one")).await };
    let registering = async {
        eventually("asked", || world.gate.count(|e| matches!(e, Event::Connect(_))) == 1).await;
        world.gate.door.add_permits(1);
        // The verdict is on its way; from here on it must not count.
        eventually("admitted", || world.broker.connections() == 1).await;
        world.broker.close_client(&id("new/one"), Closing::Erase).await.unwrap();
    };
    tokio::join!(connecting, registering);
    eventually("closed", || world.broker.connections() == 0).await;
    assert!(!stranger.is_alive().await);
}

#[tokio::test]
async fn a_client_may_do_without_keep_alive() {
    let world = World::new().await;
    for level in [V311, V5] {
        let mut client = world.raw(level).await;
        let connect = Connect { keep_alive: 0, ..Connect::new("devices/iot", "secret") };
        assert_eq!(client.connect(&connect).await, Some(0));
        assert!(client.is_alive().await);
    }
}

#[tokio::test]
async fn stopping_closes_every_connection_and_frees_the_port() {
    let world = World::new().await;
    let mut client = world.join(V311, "devices/iot", "secret").await;
    let mut absent = world.raw(V311).await;
    absent.resume(&Connect::new("devices/two", "secret2").persistent()).await;
    drop(absent);
    world.broker.stop().await;
    assert!(!client.is_alive().await);
    assert_eq!(world.broker.connections(), 0);
    assert!(world.broker.close_client(&id("devices/iot"), Closing::Erase).await.is_err());
    let again = BrokerSettings { listen: world.address(), ..settings() };
    let broker = EmbeddedBroker::start(again, TestGate::new(), SystemClock::shared()).await.unwrap();
    assert_eq!(broker.local_addr(), world.address());
}

#[tokio::test]
async fn a_port_in_use_is_named_in_the_error() {
    let world = World::new().await;
    let same = BrokerSettings { listen: world.address(), ..settings() };
    let error = EmbeddedBroker::start(same, TestGate::new(), SystemClock::shared()).await.err().unwrap();
    let message = error.to_string();
    assert!(message.contains(&world.address().to_string()) && message.contains("in use"), "{message}");
}
