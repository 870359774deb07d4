//! The gateway SDK against the embedded broker and a node's side of the device protocol.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod node;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ledgermq::broker::{Broker, Closing};
use ledgermq::crypto::SecretKey;
use ledgermq::device::codes::ErrorCode;
use ledgermq::gateway::{
    Delivery, Gateway, GatewayError, GatewayOptions, JournalError, Place, PublishError, Status,
};
use ledgermq::types::{ClientId, Hash, MessageSeq, Stream};
use node::{NETWORK, PATIENCE, TestNode};

fn client() -> ClientId {
    ClientId::new("devices/iot").unwrap()
}

fn identity() -> SecretKey {
    SecretKey::from_seed(&[5; 32])
}

fn env() -> Stream {
    Stream::new("env").unwrap()
}

fn body(value: u64) -> Vec<u8> {
    let item = format!(r#"{{"deviceId":"th-01","serviceId":"temperature","num":1,"value":{value}}}"#);
    format!(r#"{{"count":1,"eventTime":1767225600000,"data":[{item}]}}"#).into_bytes()
}

fn options(node: &TestNode, state: &Path) -> GatewayOptions {
    GatewayOptions::new(client(), identity(), NETWORK, state)
        .trust(node.key.node_id())
        .endpoint("127.0.0.1", node.broker().local_addr().port())
}

struct World {
    node: Arc<TestNode>,
    state: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let node = TestNode::start().await;
        node.register(&client(), &identity());
        Self { node, state: tempfile::tempdir().unwrap() }
    }

    async fn gateway(&self) -> Gateway {
        Gateway::connect(options(&self.node, self.state.path())).await.unwrap()
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

async fn publish_all(gateway: &Gateway, values: std::ops::Range<u64>) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for value in values {
        deliveries.push(in_time(gateway.publish(&env(), body(value))).await.unwrap());
    }
    deliveries
}

async fn all_done(deliveries: Vec<Delivery>) {
    for delivery in deliveries {
        let seq = delivery.seq;
        assert_eq!(in_time(delivery.done()).await.unwrap().seq, seq);
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

#[tokio::test]
async fn a_message_is_delivered_and_acknowledged() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    assert_eq!(in_time(gateway.ready(PATIENCE)).await.unwrap(), world.node.key.node_id());
    let mut delivery = in_time(gateway.publish(&env(), body(36))).await.unwrap();
    assert_eq!(delivery.seq, MessageSeq(1));
    in_time(delivery.stored()).await.unwrap();
    in_time(delivery.puback()).await.unwrap();
    in_time(delivery.puback()).await.expect("a fact stays one");
    let header = delivery.header;
    let ack = in_time(delivery.done()).await.unwrap();
    assert_eq!((ack.seq, ack.header, ack.items), (MessageSeq(1), header, 1));
    world.node.with_message(0, |message| assert_eq!(message.body(), body(36)));
    in_time(gateway.drained()).await;
    assert_eq!(gateway.unfinished(), 0);
}

#[tokio::test]
async fn many_messages_arrive_once_and_in_order() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let deliveries = publish_all(&gateway, 0..600).await;
    all_done(deliveries).await;
    assert_eq!(world.node.accepted(), (1..=600).collect::<Vec<_>>());
    assert_eq!(world.node.arrivals().len(), 600);
}

#[tokio::test]
async fn a_large_body_is_delivered_compressed() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let padding = "x".repeat(5_000_000);
    let mut text = String::from_utf8(body(1)).unwrap();
    text.insert_str(1, &format!(r#""msg":"{padding}","#));
    let delivery = in_time(gateway.publish(&env(), text.into_bytes())).await.unwrap();
    in_time(delivery.done()).await.unwrap();
}

#[tokio::test]
async fn a_node_that_forgot_its_keys_gets_everything_again_in_order() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    all_done(publish_all(&gateway, 0..10).await).await;
    for _ in 0..3 {
        world.node.forget_keys();
        let deliveries = publish_all(&gateway, 0..50).await;
        all_done(deliveries).await;
    }
    assert_eq!(world.node.accepted(), (1..=160).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_key_that_is_used_up_is_replaced() {
    let world = World::new().await;
    world.node.faults.lock().unwrap().key_messages = Some(7);
    let gateway = world.gateway().await;
    all_done(publish_all(&gateway, 0..30).await).await;
    assert_eq!(world.node.accepted(), (1..=30).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_refused_key_is_handed_over_again() {
    let world = World::new().await;
    world.node.faults.lock().unwrap().refused_keys = 4;
    let gateway = world.gateway().await;
    all_done(publish_all(&gateway, 0..3).await).await;
}

#[tokio::test]
async fn forged_answers_are_ignored() {
    let world = World::new().await;
    world.node.faults.lock().unwrap().forge = true;
    let gateway = world.gateway().await;
    all_done(publish_all(&gateway, 0..20).await).await;
    assert_eq!(world.node.accepted().len(), 20);
}

#[tokio::test]
async fn an_overloaded_node_gets_the_same_message_later() {
    let world = World::new().await;
    world.node.faults.lock().unwrap().overloads = 2;
    let gateway = world.gateway().await;
    all_done(publish_all(&gateway, 0..3).await).await;
}

#[tokio::test]
async fn a_final_refusal_reaches_the_caller_and_spends_the_number() {
    let world = World::new().await;
    let bad = Stream::new("bad").unwrap();
    world.node.faults.lock().unwrap().refused_streams.insert(bad.clone(), ErrorCode::ClockAhead);
    let gateway = world.gateway().await;
    let delivery = in_time(gateway.publish(&bad, body(1))).await.unwrap();
    match in_time(delivery.done()).await {
        Err(PublishError::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::ClockAhead),
        other => panic!("{other:?}"),
    }
    let next = in_time(gateway.publish(&env(), body(2))).await.unwrap();
    assert_eq!(next.seq, MessageSeq(2));
    in_time(next.done()).await.unwrap();
}

#[tokio::test]
async fn what_a_node_would_refuse_is_refused_before_a_number_is_spent() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    for bad in ["", "{}", r#"{"count":2,"eventTime":1,"data":[]}"#] {
        let error = in_time(gateway.publish(&env(), bad.as_bytes().to_vec())).await.unwrap_err();
        assert!(matches!(error, PublishError::Invalid(_)), "{error}");
    }
    assert_eq!(in_time(gateway.publish(&env(), body(1))).await.unwrap().seq, MessageSeq(1));
}

#[tokio::test]
async fn a_lost_connection_is_made_again_and_nothing_is_lost_or_doubled() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let mut deliveries = Vec::new();
    for round in 0..5 {
        deliveries.extend(publish_all(&gateway, round * 20..round * 20 + 20).await);
        world.node.broker().close_client(&client(), Closing::Erase).await.unwrap();
    }
    all_done(deliveries).await;
    assert_eq!(world.node.accepted(), (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn another_endpoint_is_tried_when_one_is_down() {
    let world = World::new().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut options = options(&world.node, world.state.path());
    options.endpoints.insert(0, ledgermq::gateway::Endpoint { host: "127.0.0.1".to_owned(), port: nobody });
    let gateway = Gateway::connect(options).await.unwrap();
    in_time(gateway.ready(PATIENCE)).await.unwrap();
}

#[tokio::test]
async fn a_node_that_is_replaced_by_another_gets_what_is_not_acknowledged() {
    let world = World::new().await;
    let other = TestNode::start_at("127.0.0.1:0".parse().unwrap(), 8).await;
    other.register(&client(), &identity());
    let mut options = options(&world.node, world.state.path()).trust(other.key.node_id());
    options = options.endpoint("127.0.0.1", other.broker().local_addr().port());
    world.node.faults.lock().unwrap().mute_streams.insert(env());
    let gateway = Gateway::connect(options).await.unwrap();
    let deliveries = publish_all(&gateway, 0..40).await;
    eventually("all at the first node", || world.node.accepted().len() == 40).await;
    world.node.broker().stop().await;
    all_done(deliveries).await;
    assert_eq!(other.accepted(), (1..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_window_of_unacknowledged_messages_holds_the_publisher_back() {
    let world = World::new().await;
    let env = env();
    world.node.faults.lock().unwrap().mute_streams.insert(env.clone());
    let gateway = world.gateway().await;
    let deliveries = publish_all(&gateway, 0..256).await;
    eventually("all at the node", || world.node.accepted().len() == 256).await;
    let next = gateway.publish(&env, body(256));
    tokio::pin!(next);
    let a_while = Duration::from_millis(200);
    assert!(tokio::time::timeout(a_while, &mut next).await.is_err(), "the window is full");
    world.node.faults.lock().unwrap().mute_streams.clear();
    // A new connection sends all of them again, and now each is acknowledged.
    world.node.broker().close_client(&client(), Closing::Erase).await.unwrap();
    all_done(deliveries).await;
    all_done(vec![in_time(next).await.unwrap()]).await;
    assert_eq!(world.node.accepted(), (1..=257).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_at_the_next_start() {
    let world = World::new().await;
    world.node.faults.lock().unwrap().mute_streams.insert(env());
    let gateway = world.gateway().await;
    let deliveries = publish_all(&gateway, 0..10).await;
    eventually("all at the node", || world.node.accepted().len() == 10).await;
    in_time(gateway.close()).await;
    for delivery in deliveries {
        assert!(matches!(in_time(delivery.done()).await, Err(PublishError::Closed)));
    }
    world.node.faults.lock().unwrap().mute_streams.clear();
    let gateway = world.gateway().await;
    assert_eq!(gateway.unfinished(), 10);
    in_time(gateway.drained()).await;
    assert_eq!(in_time(gateway.publish(&env(), body(0))).await.unwrap().seq, MessageSeq(11));
    assert_eq!(world.node.accepted()[..10], (1..=10).collect::<Vec<_>>()[..]);
}

#[tokio::test]
async fn what_an_earlier_run_left_and_a_node_refuses_is_told_and_tried_again_when_asked() {
    let world = World::new().await;
    let place = |at: u8| Place {
        hash: Hash([at; 32]),
        messages: at.into(),
        first: Hash([1; 32]),
        last: Hash([at; 32]),
    };
    let faults = || world.node.faults.lock().unwrap();
    let late = Stream::new("late").unwrap();
    faults().mute_streams.extend([env(), late.clone()]);
    let gateway = world.gateway().await;
    in_time(gateway.publish_from(&env(), body(1), (place(0), place(1)))).await.unwrap();
    in_time(gateway.publish_from(&late, body(2), (place(1), place(2)))).await.unwrap();
    in_time(gateway.publish(&env(), body(3))).await.unwrap();
    eventually("all at the node", || world.node.accepted().len() == 3).await;
    in_time(gateway.close()).await;

    faults().mute_streams.clear();
    faults().refused_streams.extend([(env(), ErrorCode::ClockAhead), (late, ErrorCode::SeqTooOld)]);
    let gateway = world.gateway().await;
    in_time(gateway.drained()).await;
    let refused = gateway.refused_of_earlier_runs();
    let mut refused: Vec<_> = refused.iter().map(|(seq, refusal)| (seq.0, refusal.code)).collect();
    refused.sort_by_key(|(seq, _)| *seq);
    let ahead = ErrorCode::ClockAhead;
    assert_eq!(refused, [(1, ahead), (2, ErrorCode::SeqTooOld), (3, ahead)]);
    in_time(gateway.close()).await;

    // Not the one of which nobody knows whether it is final, and not the one of no source.
    faults().refused_streams.clear();
    let gateway = world.gateway().await;
    let sources = gateway.sources();
    assert!(sources.refusals.iter().eq([&place(1).hash]), "{sources:?}");
    assert_eq!(sources.places, [place(2)]);
    all_done(vec![in_time(gateway.publish_again(&env(), body(1), place(1).hash)).await.unwrap()]).await;
    in_time(gateway.close()).await;
    let gateway = world.gateway().await;
    assert!(gateway.sources().refusals.is_empty(), "{:?}", gateway.sources());
    assert_eq!(gateway.sources().places, [place(2)]);
}

#[tokio::test]
async fn a_client_that_lost_its_memory_goes_on_higher_and_says_so() {
    let world = World::new().await;
    world.node.set_last_seq(&client(), 1_000);
    let gateway = world.gateway().await;
    let deliveries = publish_all(&gateway, 0..2).await;
    assert_eq!(deliveries[0].seq, MessageSeq(1_000 + 65_536));
    all_done(deliveries).await;
    world.node.with_message(0, |m| assert_eq!(m.header().unused_above, Some(MessageSeq(1_000))));
    world.node.with_message(1, |m| assert_eq!(m.header().unused_above, None));
}

#[tokio::test]
async fn state_restored_from_a_backup_never_reuses_a_number() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    all_done(publish_all(&gateway, 0..3).await).await;
    in_time(gateway.close()).await;
    let journal = world.state.path().join("journal");
    let backup = std::fs::read(&journal).unwrap();
    let gateway = world.gateway().await;
    all_done(publish_all(&gateway, 3..6).await).await;
    in_time(gateway.close()).await;
    std::fs::write(&journal, backup).unwrap();
    let gateway = world.gateway().await;
    in_time(gateway.ready(PATIENCE)).await.unwrap();
    let delivery = in_time(gateway.publish(&env(), body(9))).await.unwrap();
    assert_eq!(delivery.seq, MessageSeq(6 + 65_536));
    all_done(vec![delivery]).await;
}

#[tokio::test]
async fn an_unregistered_client_learns_it_and_begins_when_it_is_registered() {
    let node = TestNode::start().await;
    let state = tempfile::tempdir().unwrap();
    let gateway = Gateway::connect(options(&node, state.path())).await.unwrap();
    let mut status = gateway.status();
    in_time(status.wait_for(|status| matches!(status, Status::Unregistered { .. }))).await.unwrap();
    let not_ready = gateway.ready(Duration::from_millis(10)).await.unwrap_err();
    assert!(not_ready.to_string().contains("Unregistered"), "{not_ready}");
    node.register(&client(), &identity());
    node.broker().close_client(&client(), Closing::Erase).await.unwrap();
    in_time(gateway.ready(PATIENCE)).await.unwrap();
    all_done(publish_all(&gateway, 0..1).await).await;
}

#[tokio::test]
async fn a_wrong_key_is_reported_as_not_authorized() {
    let world = World::new().await;
    let mut options = options(&world.node, world.state.path());
    options.key = SecretKey::from_seed(&[6; 32]);
    let gateway = Gateway::connect(options).await.unwrap();
    let refused = |status: &Status| match status {
        Status::Denied { reason } => reason.contains("NotAuthorized"),
        _ => false,
    };
    in_time(gateway.status().wait_for(refused)).await.unwrap();
}

#[tokio::test]
async fn state_belongs_to_one_gateway_at_a_time() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let second = Gateway::connect(options(&world.node, world.state.path())).await;
    assert!(matches!(second, Err(GatewayError::Journal(JournalError::InUse { .. }))));
    in_time(gateway.close()).await;
    world.gateway().await;
}

#[tokio::test]
async fn closing_works_while_nothing_can_be_sent() {
    let state = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = GatewayOptions::new(client(), identity(), NETWORK, state.path())
        .trust(SecretKey::from_seed(&[7; 32]).node_id())
        .endpoint("127.0.0.1", nobody);
    let gateway = Gateway::connect(options).await.unwrap();
    let waiting = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.publish(&env(), body(1)).await.map(|_| ()) }
    });
    in_time(gateway.close()).await;
    assert!(matches!(in_time(waiting).await.unwrap(), Err(PublishError::Closed)));
}

#[tokio::test]
async fn options_without_a_place_to_go_or_somebody_to_believe_are_refused() {
    let state = tempfile::tempdir().unwrap();
    let bare = GatewayOptions::new(client(), identity(), NETWORK, state.path());
    assert!(matches!(Gateway::connect(bare.clone()).await, Err(GatewayError::NoEndpoint)));
    let no_node = bare.endpoint("127.0.0.1", 1);
    assert!(matches!(Gateway::connect(no_node.clone()).await, Err(GatewayError::NoNode)));
    let bad_node = no_node.trust(ledgermq::types::NodeId([0xff; 32]));
    assert!(matches!(Gateway::connect(bad_node).await, Err(GatewayError::BadNode { .. })));
}

#[tokio::test]
async fn a_lost_ack_is_asked_for_again() {
    let world = World::new().await;
    world.node.faults.lock().unwrap().lost_acks = 2;
    let gateway = world.gateway().await;
    all_done(publish_all(&gateway, 0..5).await).await;
    let distinct: BTreeSet<u64> = world.node.arrivals().into_iter().collect();
    assert_eq!(distinct.len(), 5);
    assert_eq!(world.node.accepted().len(), 5);
}
