//! A reading goes from a gateway to a proof that anyone can check, on four replicas.

use std::process::Command;

use ledgermq::crypto::{SecretKey, random_bytes};
use ledgermq::device::codes::ErrorCode;
use ledgermq::types::Stream;
use serde_json::{Value, json};

use crate::device::{Device, now};
use crate::network::{TestNetwork, reading};

const MESSAGES: u64 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn readings_become_final_records_with_proofs_on_four_replicas() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/iot").await;
    let started = now().0;
    publish_through_the_sdk(&network, &key, started).await;
    every_node_finds_the_records(&network, started).await;
    every_record_is_proven_with_genesis_alone(&network).await;
    let two = network.register("devices/two").await;
    the_first_ack_of_a_stream_is_datas_and_later_ones_are_success(&network, &two).await;
    a_message_near_the_size_limit_is_written_and_proven(&network, &two).await;
    let height = network.assert_same_blocks().await;
    assert!(height >= 3, "{height}");
}

async fn publish_through_the_sdk(network: &TestNetwork, key: &SecretKey, started: u64) {
    let gateway = network.gateway("devices/iot", key, &[0, 1, 2, 3]).await;
    let stream = Stream::new("env").unwrap();
    for number in 0..MESSAGES {
        let body = reading(started + number, 20.5, 40 + i64::try_from(number).unwrap());
        let mut delivery = gateway.publish(&stream, body).await.unwrap();
        delivery.puback().await.unwrap();
        let (seq, header) = (delivery.seq, delivery.header);
        let ack = delivery.done().await.unwrap();
        assert_eq!((ack.seq, ack.header, ack.items, ack.written), (seq, header, 2, vec![0, 1]));
        assert!(ack.height.is_some() && ack.block.is_some());
    }
    gateway.close().await;
}

async fn every_node_finds_the_records(network: &TestNetwork, started: u64) {
    let last = started + MESSAGES - 1;
    let count = usize::try_from(MESSAGES).unwrap();
    for at in 0..network.n() {
        let all = network.wait_for_records(at, "client=devices/iot", 2 * count).await;
        assert_eq!(all.len(), 2 * count);
        let found = async |query: &str| network.records(at, &format!("client=devices/iot&{query}")).await;
        assert_eq!(found("device=th-01&service=humidity&num=2").await.len(), count);
        assert_eq!(found("device=th-01&service=humidity&num=1").await, Vec::<Value>::new());
        assert_eq!(found("device=th-02").await, Vec::<Value>::new());
        let newest = found(&format!("device=th-01&service=humidity&num=2&from={last}")).await;
        assert_eq!(newest.len(), 1);
        assert_eq!((newest[0]["value"].as_i64(), newest[0]["unit"].as_str()), (Some(44), Some("%RH")));
        assert_eq!(found(&format!("from={}", last + 1)).await, Vec::<Value>::new());
    }
    assert_eq!(network.records(0, "client=devices/two").await, Vec::<Value>::new());
}

async fn every_record_is_proven_with_genesis_alone(network: &TestNetwork) {
    for (at, record) in network.records(3, "client=devices/iot").await.iter().enumerate() {
        let path = record["bundle"].as_str().unwrap();
        let bundle = network.get_bytes(at % network.n(), path).await;
        let proven = serde_json::to_string(&network.verify(&bundle).unwrap()).unwrap();
        assert!(proven.contains("devices/iot") && proven.contains("th-01"), "{proven}");
        if at > 0 {
            continue;
        }
        for byte in 0..bundle.len() {
            let mut changed = bundle.clone();
            changed[byte] ^= 1 << (byte % 8);
            assert!(network.verify(&changed).is_err(), "byte {byte} of {} may change", bundle.len());
        }
        the_command_line_agrees(network, &bundle);
    }
}

fn the_command_line_agrees(network: &TestNetwork, bundle: &[u8]) {
    let (good, bad) = (network.path("good.lmqproof"), network.path("bad.lmqproof"));
    std::fs::write(&good, bundle).unwrap();
    let mut changed = bundle.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&bad, changed).unwrap();
    let verify = |path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
        command.arg("verify").arg(path).arg("--genesis").arg(&network.files().genesis).output().unwrap()
    };
    let output = verify(&good);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("temperature"), "{output:?}");
    assert_eq!(verify(&bad).status.code(), Some(1));
}

async fn the_first_ack_of_a_stream_is_datas_and_later_ones_are_success(
    network: &TestNetwork,
    key: &SecretKey,
) {
    for level in [4, 5] {
        let mut device = Device::ready(network, 1, "devices/two", key, level).await;
        for (seq, expected) in [(1, "env/datas"), (2, "env/success")] {
            let (seq, expected) = if level == 4 { (seq, expected) } else { (seq + 2, "env/success") };
            assert_eq!(device.send(seq, &reading(now().0, 1.0, 1)).await, Some(0));
            assert_eq!(device.next().await.0, expected);
        }
    }
}

/// Some 3 MiB of values that do not compress.
async fn a_message_near_the_size_limit_is_written_and_proven(network: &TestNetwork, key: &SecretKey) {
    const ITEMS: u32 = 3_000;
    let item = |num| {
        let noise = hex::encode(random_bytes::<500>().unwrap());
        json!({ "deviceId": "th-01", "serviceId": "waveform", "num": num, "value": noise })
    };
    let data: Vec<Value> = (0..ITEMS).map(item).collect();
    let body = json!({ "count": ITEMS, "eventTime": now().0, "data": data }).to_string();
    let mut device = Device::ready(network, 2, "devices/two", key, 5).await;
    assert_eq!(device.send(5, body.as_bytes()).await, Some(0));
    let ack = device.ack().await;
    assert_eq!(ack.written.len(), 3_000);
    let records = network.wait_for_records(3, "service=waveform&num=2999", 1).await;
    let bundle = network.get_bytes(0, records[0]["bundle"].as_str().unwrap()).await;
    assert_eq!(network.verify(&bundle).unwrap().records.len(), 3_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_never_acknowledges_and_writes_nothing() {
    let mut network = TestNetwork::start(1).await;
    network.set_policies(0, json!({ "rules": [{ "name": "none", "write": "never" }] })).await;
    let key = network.register("devices/iot").await;
    let height = network.certified_height(0).await;
    let body = reading(now().0, 1.0, 1);
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    for seq in 1..=3 {
        assert_eq!(device.send(seq, &body).await, Some(0));
        let ack = device.ack().await;
        assert_eq!((ack.seq.0, ack.items, ack.written), (seq, 2, vec![]));
        assert_eq!((ack.height, ack.block), (None, None));
    }
    // Of these messages the ledger knows nothing; that their seqs are used is in the node's log.
    network.kill(0).await;
    network.spawn(0).await;
    // It may execute the registration anew, and whose registration changes is asked to connect again.
    network.reaches(0, height).await;
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    assert_eq!(device.send(3, &body).await, Some(0));
    assert!(device.ack_of(3).await.written.is_empty());
    assert_eq!(device.send(2, &reading(now().0, 2.0, 2)).await, Some(0));
    assert_eq!(device.error().await.code, ErrorCode::SeqReused);
    assert_eq!(network.certified_height(0).await, height);
    assert_eq!(network.records(0, "client=devices/iot").await, Vec::<Value>::new());
}
