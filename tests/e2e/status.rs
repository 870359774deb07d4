//! Anyone can see whether the network advances, and if not, why.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::Command;

use crate::device::now;
use crate::network::{PATIENCE, TestNetwork, reading};
use ledgermq::types::Stream;

async fn status(network: &TestNetwork, extra: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
    command.args(["status", "--network"]).arg(network.local.dir()).args(extra).kill_on_drop(true);
    tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap()
}

/// Exit code and JSON of `ledgermq status --json`.
async fn report(network: &TestNetwork) -> (i32, Value) {
    let output = status(network, &["--json"]).await;
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

fn reason<'a>(report: &'a Value, code: &str) -> Option<&'a str> {
    let why = report["why"].as_array()?.iter().find(|why| why["code"] == code)?;
    why["text"].as_str()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_status_names_the_missing_and_with_one_again_it_advances() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/iot").await;
    network
        .eventually("all four are well", async || {
            let (code, report) = report(&network).await;
            let ok = |line: &Value| line["state"] == "ok" || line["state"] == "this_node";
            let all =
                report["nodes"].as_array().unwrap().iter().all(|node| {
                    node["answer"]["replicas"].as_array().is_some_and(|lines| lines.iter().all(ok))
                });
            (code == 0 && report["verdict"] == "idle" && all).then_some(())
        })
        .await;
    let consensus = network.get(0, "/v1/consensus").await;
    assert!(consensus["replicas"][1]["rtt_ms"].is_number(), "{consensus}");
    assert_eq!(consensus["replicas"][1]["executed"], consensus["executed"], "{consensus}");
    let gateway = network.gateway("devices/iot", &key, &[0]).await;

    network.kill(2).await;
    network.kill(3).await;
    let stream = Stream::new("readings").unwrap();
    let delivery = gateway.publish(&stream, reading(now().0, 20.0, 40)).await.unwrap();
    let ids: Vec<String> = network.files().nodes.iter().map(|node| node.node.short()).collect();
    let stalled = network
        .eventually("status says that no quorum is there", async || {
            let (code, report) = report(&network).await;
            (code == 1 && reason(&report, "no_quorum_connected").is_some()).then_some(report)
        })
        .await;
    let text = reason(&stalled, "no_quorum_connected").unwrap();
    assert!(text.contains("3 of 4 replicas are needed, 2 are connected"), "{text}");
    assert!(text.contains(&ids[2]) && text.contains(&ids[3]) && !text.contains(&ids[1]), "{text}");
    assert_eq!(stalled["verdict"], "stalled", "{stalled}");
    let ready = network
        .eventually("the node is not ready, for the same reason", async || {
            let answer = reqwest::get(network.url(0, "/readyz")).await.unwrap();
            (answer.status() == 503).then_some(answer)
        })
        .await;
    assert!(ready.text().await.unwrap().contains("3 of 4 replicas are needed"));
    assert_eq!(reqwest::get(network.url(0, "/livez")).await.unwrap().status(), 200);
    let told = status(&network, &[]).await;
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("does NOT advance") && told.matches("NO ANSWER").count() == 2, "{told}");

    network.local.spawn(2).unwrap();
    network.soon("the message is final", delivery.done()).await.unwrap();
    network
        .eventually("three of four advance", async || {
            let (code, report) = report(&network).await;
            (code == 0 && report["advancing"] == true).then_some(())
        })
        .await;
    // The primary may have been replaced meanwhile, which each node has counted and told.
    let view = network.get(0, "/v1/status").await["view"].as_u64().unwrap();
    let changes: f64 = network.metric(0, "ledgermq_consensus_view_change_ms_count").await;
    assert_eq!(changes > 0.0, view > 0);
    assert_eq!(network.log(0).contains("a view has begun"), view > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_publish_says_why_and_gives_up_at_its_limit() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/iot").await;
    let file = network.path("iot.key");
    ledgermq::keyfile::write(&file, &key).unwrap();
    let csv = network.path("one.csv");
    std::fs::write(&csv, "time,temperature\n2026-01-01T00:00:00Z,5\n").unwrap();
    network.kill(2).await;
    network.kill(3).await;
    let dir = network.local.dir().to_owned();
    let publish = |limit: &'static str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
        command.args(["publish", "devices/iot", "--final-timeout", limit, "--csv"]).arg(&csv);
        command.arg("--key").arg(&file).arg("--network").arg(&dir);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    let output = tokio::time::timeout(PATIENCE, publish("8").output()).await.unwrap().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("warning: nothing became final for 5 s, 1 messages wait: 3 of 4"), "{said}");
    assert!(said.contains("1 messages are not acknowledged; the next run with the same --state"), "{said}");
    network.spawn_all().await;
    let output = tokio::time::timeout(PATIENCE, publish("40").output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_answers_probes_while_strangers_hold_all_connections_of_its_api() {
    let probes = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = probes.to_string();
    let network =
        TestNetwork::start_with(1, &[("api.probes_listen", address.as_str()), ("api.max_connections", "8")])
            .await;
    let api = format!("127.0.0.1:{}", network.ports(0).api);
    let mut taken = Vec::new();
    for _ in 0..16 {
        taken.push(tokio::net::TcpStream::connect(&api).await.unwrap());
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = network.soon(path, reqwest::get(format!("http://{address}{path}"))).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    assert_eq!(reqwest::get(format!("http://{address}/v1/status")).await.unwrap().status(), 404);
}
