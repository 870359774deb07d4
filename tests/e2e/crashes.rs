//! Nothing that was acknowledged is lost, whoever is killed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use ledgermq::gateway::Gateway;
use ledgermq::types::{Height, Stream};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::device::{Device, now};
use crate::network::{TestNetwork, reading};

#[tokio::test(flavor = "multi_thread")]
async fn three_of_four_go_on_without_a_backup_which_catches_up_later() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/iot").await;
    network.kill(3).await;
    let mut device = Device::ready(&network, 1, "devices/iot", &key, 4).await;
    for seq in 1..=20 {
        assert_eq!(device.send(seq, &reading(now().0, 20.0, 40)).await, Some(0));
        assert_eq!(device.ack().await.written, [0, 1]);
    }
    network.spawn(3).await;
    network.wait_for_records(3, "client=devices/iot", 40).await;
    network.assert_same_blocks().await;
    let fetched = network.metric(3, r#"ledgermq_consensus_fetches_total{what="blocks"}"#).await;
    assert!(fetched >= 1.0, "the others have no votes on those blocks any more");

    // It votes again: with another backup gone, nothing would be final without it.
    network.kill(2).await;
    assert_eq!(device.send(21, &reading(now().0, 20.0, 40)).await, Some(0));
    assert_eq!(device.ack_of(21).await.written, [0, 1]);
    a_message_that_was_acknowledged_and_nothing_more_becomes_final(network, device).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_killed_is_replaced_again_and_again_and_nothing_is_lost() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0, 1, 2, 3]).await;
    let stream: Stream = "env".parse().unwrap();
    let mut sent = 0;
    for kill in 0..3 {
        let primary = network.primary().await;
        // Half of them are on their way when it dies.
        let mut deliveries = Vec::new();
        for at in 0..20 {
            let body = reading(now().0, 20.0, 40);
            deliveries.push(gateway.publish(&stream, body).await.unwrap());
            sent += 1;
            if at == 10 {
                network.kill(primary).await;
            }
        }
        for delivery in deliveries {
            let ack = network.soon("it is final without the primary", delivery.done()).await.unwrap();
            assert_eq!(ack.written, [0, 1], "after kill {kill}");
        }
        network.spawn(primary).await;
        for at in 0..network.n() {
            let records = network.wait_for_records(at, "client=devices/iot", 2 * sent).await;
            assert_eq!(records.len(), 2 * sent, "each once");
        }
    }
    network.assert_same_blocks().await;
    gateway.close().await;
}

/// Without a quorum nothing can be final, so the PUBACK is all that the client ever gets.
async fn a_message_that_was_acknowledged_and_nothing_more_becomes_final(
    mut network: TestNetwork,
    mut device: Device,
) {
    network.kill(3).await;
    let event_time = now().0;
    assert_eq!(device.send(22, &reading(event_time, 21.0, 41)).await, Some(0));
    network.kill(1).await;
    drop(device);
    let query = format!("client=devices/iot&from={event_time}");
    assert_eq!(network.records(0, &query).await, Vec::<Value>::new());
    network.spawn_all().await;
    for at in 0..network.n() {
        let records = network.wait_for_records(at, &query, 2).await;
        assert_eq!(records.len(), 2, "once, and not twice");
        assert_eq!(records[0]["seq"], 22);
    }
    network.assert_same_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_replicas_are_killed_at_once_or_stop_in_order_and_nothing_is_lost() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0, 1, 2, 3]).await;
    let load = Load::default();
    load.acks_before_the_rest_is_cut_off(&network, &gateway).await;
    network.local.kill_all().await.unwrap();
    network.spawn_all().await;
    load.everything_acknowledged_is_there(&mut network).await;

    load.acks_before_the_rest_is_cut_off(&network, &gateway).await;
    network.local.stop_all().await.unwrap();
    network.spawn_all().await;
    load.everything_acknowledged_is_there(&mut network).await;

    network.soon("nothing is left to be sent", gateway.drained()).await;
    let count = async || (load.acked.lock().unwrap().len() == 2 * MESSAGES).then_some(());
    network.eventually("everything is acknowledged", count).await;
    let records = load.everything_acknowledged_is_there(&mut network).await;
    assert_eq!(records, 4 * MESSAGES, "each once, and not twice");
    network.assert_same_blocks().await;
}

/// Messages of one round.
const MESSAGES: usize = 200;

/// Acknowledged messages with their heights.
#[derive(Default)]
struct Load {
    acked: Arc<Mutex<BTreeSet<(u64, Height)>>>,
}

impl Load {
    /// Publishes a round of messages and returns when half of them are acknowledged, the other half
    /// being on its way.
    async fn acks_before_the_rest_is_cut_off(&self, network: &TestNetwork, gateway: &Gateway) {
        let half = Arc::new(Semaphore::new(0));
        let (gateway, acked, acks) = (gateway.clone(), Arc::clone(&self.acked), Arc::clone(&half));
        tokio::spawn(async move {
            let stream = Stream::new("env").unwrap();
            for _ in 0..MESSAGES {
                let delivery = gateway.publish(&stream, reading(now().0, 20.0, 40)).await.unwrap();
                let (acked, acks) = (Arc::clone(&acked), Arc::clone(&acks));
                tokio::spawn(async move {
                    let ack = delivery.done().await.unwrap();
                    assert_eq!(ack.written, [0, 1]);
                    acked.lock().unwrap().insert((ack.seq.0, ack.height.unwrap()));
                    acks.add_permits(1);
                });
            }
        });
        let enough = half.acquire_many(u32::try_from(MESSAGES / 2).unwrap());
        network.soon("half of the messages are acknowledged", enough).await.unwrap().forget();
    }

    /// Every node has the items of every message that was acknowledged; gives how many records it has.
    async fn everything_acknowledged_is_there(&self, network: &mut TestNetwork) -> usize {
        let acked = self.acked.lock().unwrap().clone();
        let height = acked.iter().map(|(_, height)| *height).max().unwrap();
        network.local.reached(height).await.unwrap();
        let mut count = 0;
        for at in 0..network.n() {
            let records = network.records(at, "client=devices/iot&limit=1000").await;
            count = records.len();
            for (seq, height) in &acked {
                let of_it = |record: &&Value| record["seq"] == *seq && record["height"] == height.0;
                assert_eq!(records.iter().filter(of_it).count(), 2, "seq {seq} at node {at}");
            }
        }
        count
    }
}
