//! Nothing that was acknowledged is lost, whoever is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ledgermq::gateway::Gateway;
use ledgermq::types::Stream;
use tokio::task::JoinHandle;

use crate::device::{Device, now};
use crate::network::{TestNetwork, reading};

#[tokio::test(flavor = "multi_thread")]
async fn three_of_four_go_on_without_a_backup_which_catches_up_later() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/iot").await;
    network.kill(3);
    let mut device = Device::ready(&network, 1, "devices/iot", &key, 4).await;
    for seq in 1..=20 {
        assert_eq!(device.send(seq, &reading(now().0, 20.0, 40)).await, Some(0));
        assert_eq!(device.ack().await.written, [0, 1]);
    }
    network.spawn(3);
    network.ready(3).await;
    network.wait_for_records(3, "client=devices/iot", 40).await;
    network.assert_same_blocks().await;

    // It votes again: with another backup gone, nothing would be final without it.
    network.kill(2);
    assert_eq!(device.send(21, &reading(now().0, 20.0, 40)).await, Some(0));
    assert_eq!(device.ack().await.written, [0, 1]);
    a_message_that_was_acknowledged_and_nothing_more_becomes_final(network, device).await;
}

/// Without a quorum nothing can be final, so the PUBACK is all that the client ever gets.
async fn a_message_that_was_acknowledged_and_nothing_more_becomes_final(
    mut network: TestNetwork,
    mut device: Device,
) {
    network.kill(3);
    let event_time = now().0;
    assert_eq!(device.send(22, &reading(event_time, 21.0, 41)).await, Some(0));
    network.kill(1);
    drop(device);
    let query = format!("client=devices/iot&from={event_time}");
    assert_eq!(network.records(0, &query).await, Vec::<serde_json::Value>::new());
    network.spawn_all();
    network.all_ready().await;
    for at in 0..network.n() {
        let records = network.wait_for_records(at, &query, 2).await;
        assert_eq!(records.len(), 2, "once, and not twice");
        assert_eq!(records[0]["seq"], 22);
    }
    network.assert_same_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_replicas_stop_in_order_or_are_killed_at_once_and_nothing_is_lost() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0, 1, 2, 3]).await;
    let (load, acked) = start_load(&gateway);
    for round in 1..=2 {
        let before = acked.load(Ordering::Relaxed);
        let goal = before + 100;
        network.eventually("acks", async || (acked.load(Ordering::Relaxed) >= goal).then_some(())).await;
        if round == 1 {
            network.kill_all();
        } else {
            for at in 0..network.n() {
                let status = network.terminate(at).await;
                assert_eq!(status.code(), Some(0), "{}", network.log(at));
            }
        }
        network.spawn_all();
        network.all_ready().await;
        let known = 2 * usize::try_from(acked.load(Ordering::Relaxed)).unwrap();
        for at in 0..network.n() {
            network.wait_for_records(at, "client=devices/iot&limit=1000", known).await;
        }
    }
    let goal = acked.load(Ordering::Relaxed) + 100;
    network.eventually("acks", async || (acked.load(Ordering::Relaxed) >= goal).then_some(())).await;
    load.abort();
    // The task is over, so it publishes no more.
    let _aborted = load.await;
    network.soon("everything is acknowledged", gateway.drained()).await;
    every_seq_is_written_once(&network).await;
    network.assert_same_blocks().await;
}

/// Publishes as fast as the window allows, until it is aborted; counts what was acknowledged.
fn start_load(gateway: &Gateway) -> (JoinHandle<()>, Arc<AtomicU64>) {
    let acked = Arc::new(AtomicU64::new(0));
    let (counter, gateway) = (Arc::clone(&acked), gateway.clone());
    let load = tokio::spawn(async move {
        let stream = Stream::new("env").unwrap();
        loop {
            let delivery = gateway.publish(&stream, reading(now().0, 20.0, 40)).await.unwrap();
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                assert_eq!(delivery.done().await.unwrap().written, [0, 1]);
                counter.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    (load, acked)
}

async fn every_seq_is_written_once(network: &TestNetwork) {
    let mut seqs: Vec<u64> = Vec::new();
    let last = network.get(0, "/v1/clients/devices/iot").await["highest_seq"].as_u64().unwrap();
    let count = 2 * usize::try_from(last).unwrap();
    for record in network.wait_for_records(0, "client=devices/iot&limit=1000", count).await {
        seqs.push(record["seq"].as_u64().unwrap());
    }
    seqs.sort_unstable();
    let expected: Vec<u64> = (1..=last).flat_map(|seq| [seq, seq]).collect();
    assert_eq!(seqs, expected);
}
