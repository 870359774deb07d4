//! Write policies on a running network: what the ledger has, and that a restart changes nothing of it.

use serde_json::{Value, json};

use crate::device::{Device, now};
use crate::network::{TestNetwork, reading};
use ledgermq::device::codes::ErrorCode;

fn temperature_by(threshold: f64) -> Value {
    json!({ "rules": [
        { "name": "temperature", "service": "temperature", "write": "change", "threshold": threshold },
        { "name": "humidity", "service": "humidity", "write": "periodic", "interval_ms": 3_600_000 },
    ]})
}

/// Sends a reading; gives the indexes that are on the ledger.
async fn send(device: &mut Device, seq: u64, time: u64, temperature: f64, humidity: i64) -> Vec<u32> {
    assert_eq!(device.send(seq, &reading(time, temperature, humidity)).await, Some(0));
    device.ack_of(seq).await.written
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_follows_the_policies_on_the_ledger_across_a_kill() {
    let mut network = TestNetwork::start(1).await;
    let key = network.register("devices/iot").await;
    network.set_policies(0, temperature_by(1.0)).await;
    let start = now().0 - 10_000_000;
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    assert_eq!(send(&mut device, 1, start, 20.0, 50).await, [0, 1], "the first values");
    assert_eq!(send(&mut device, 2, start + 1_000, 20.5, 70).await, [0_u32; 0]);
    assert_eq!(send(&mut device, 3, start + 2_000, 21.0, 50).await, [0]);
    assert_eq!(
        send(&mut device, 4, start + 1_500, 21.0, 50).await,
        [0, 1][..1],
        "late: not newer than the last"
    );
    network.kill(0).await;
    network.spawn(0).await;
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    assert_eq!(send(&mut device, 2, start + 1_000, 20.5, 70).await, [0_u32; 0], "the same answer as before");
    assert_eq!(send(&mut device, 5, start + 3_000, 20.5, 50).await, [0_u32; 0], "judged against 21.0");
    assert_eq!(send(&mut device, 6, start + 3_600_000, 20.5, 50).await, [1], "an hour after the last");
    network.set_policies(1, temperature_by(0.25)).await;
    assert_eq!(send(&mut device, 7, start + 3_601_000, 20.5, 50).await, [0]);
    let told = network.get(0, "/v1/policies").await;
    assert_eq!(
        (&told["current"]["version"], &told["current"]["rules"][0]["threshold"]),
        (&json!(2), &json!(0.25))
    );
    let versions: Vec<_> = told["history"].as_array().unwrap().iter().map(|one| &one["version"]).collect();
    assert_eq!(versions, [&json!(2), &json!(1)]);
    assert!(network.metric(0, "ledgermq_policy_decisions_total{verdict=\"quiet\"}").await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_beyond_its_quota_of_data_items_is_told_too_many_items() {
    let mut network = TestNetwork::start(1).await;
    let key = network.register("devices/iot").await;
    network.set_policies(0, json!({ "quotas": [{ "client": "devices/*", "max_items": 3 }] })).await;
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 5).await;
    assert_eq!(send(&mut device, 1, now().0, 20.0, 50).await, [0, 1]);
    let other = |nums: [u32; 2]| {
        let data = nums.map(|num| json!({ "deviceId": "th-02", "serviceId": "x", "num": num, "value": 1 }));
        json!({ "count": 2, "eventTime": now().0, "data": data }).to_string()
    };
    assert_eq!(device.send(2, other([1, 2]).as_bytes()).await, Some(0));
    let error = device.error().await;
    assert_eq!(error.code, ErrorCode::TooManyItems);
    assert_eq!(send(&mut device, 3, now().0, 21.0, 51).await, [0, 1], "what it has it may go on sending");
}
