//! The history of a network of real processes is audited while it runs, after kills and restarts, and
//! after somebody was at its database.

use serde_json::{Value, json};
use sqlx::Connection as _;
use tokio::process::Command;

use crate::device::{Device, now};
use crate::network::{TestNetwork, reading};

/// Runs the audit of a node's history; `chain` says where the ledger comes from. Gives the exit code and the report.
async fn audit(network: &TestNetwork, at: usize, chain: [&str; 2]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
    command.args(["audit", "--json", "--genesis"]).arg(&network.files().genesis).args(chain);
    let output = command.arg("--history").arg(data_dir(network, at)).output().await.unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code().unwrap(), report)
}

fn data_dir(network: &TestNetwork, at: usize) -> std::path::PathBuf {
    network.local.node_dir(at).join("data")
}

async fn clean(network: &TestNetwork, at: usize, chain: [&str; 2]) -> Value {
    let (code, report) = audit(network, at, chain).await;
    // Before the first digest nothing can be proven.
    let is_new = report["rows"] == report["not_yet_proven"];
    let expected = if is_new { (2, "unchecked") } else { (0, "clean") };
    assert_eq!((code, report["verdict"].as_str().unwrap()), expected, "{report:#}");
    assert_eq!(report["findings"], json!([]));
    report["nodes"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_a_running_network_is_clean_and_an_altered_one_is_not() {
    let settings = [("history.digest_interval_s", "1")];
    let mut network = TestNetwork::start_with(4, &settings).await;
    let key = network.register("devices/iot").await;
    let rules =
        json!({ "rules": [{ "name": "t", "service": "temperature", "write": "change", "threshold": 1.0 }] });
    network.set_policies(0, rules).await;
    let start = now().0 - 10_000_000;
    let mut seq = 0;
    let mut send = async |device: &mut Device, count: u64| {
        for _ in 0..count {
            seq += 1;
            let temperature = f64::from(u32::try_from(seq % 7).unwrap()) / 2.0;
            let sent = device.send(seq, &reading(start + seq * 1000, temperature, 50)).await;
            assert_eq!(sent, Some(0));
            device.ack_of(seq).await;
        }
    };
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    send(&mut device, 10).await;
    let url = network.url(1, "");
    clean(&network, 0, ["--node", &url]).await;
    // Killed at any moment, and the client goes on with it.
    network.kill(0).await;
    network.spawn(0).await;
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    send(&mut device, 10).await;
    let covered = async || {
        let node = clean(&network, 0, ["--node", &url]).await;
        (node["covered"] == 20 && node["not_final"] == 0).then_some(node)
    };
    let node = network.eventually("all rows are covered", covered).await;
    assert_eq!((&node["rows"], &node["unjudged"]), (&json!(20), &json!(0)));

    network.local.stop(0).await.unwrap();
    let data = data_dir(&network, 0);
    let data = data.to_str().unwrap();
    assert_eq!(clean(&network, 0, ["--ledger", data]).await["covered"], 20);
    let options =
        sqlx::sqlite::SqliteConnectOptions::new().filename(format!("{data}/history/history.sqlite"));
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let sql = "UPDATE messages SET body = replace(CAST(body AS TEXT), '50', '90') WHERE number = 7";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let (code, report) = audit(&network, 0, ["--ledger", data]).await;
    assert_eq!((code, &report["findings"][0]["row"]), (1, &json!(7)), "{report:#}");
    assert_eq!(report["findings"][0]["what"], json!(["body"]));
}
