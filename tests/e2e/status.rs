//! Anyone can see whether the network advances, and if not, why.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::device::now;
use crate::network::{PATIENCE, TestNetwork, reading};
use ledgermq::crypto::SecretKey;
use ledgermq::types::{ClientId, Stream};

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
            (code == 0 && report["verdict"] == "healthy" && report["idle"] == true && all).then_some(())
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
    assert_eq!((&stalled["verdict"], &stalled["tolerates"]), (&"halted".into(), &0.into()), "{stalled}");
    assert_eq!(network.get(0, "/v1/consensus").await["verdict"]["code"], "halted");
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
    assert!(told.contains("The network is HALTED") && told.matches("NO ANSWER").count() == 2, "{told}");

    network.local.spawn(2).unwrap();
    network.soon("the message is final", delivery.done()).await.unwrap();
    network
        .eventually("three of four advance", async || {
            let (code, report) = report(&network).await;
            let what = &report["out"][0]["what"];
            (code == 3 && report["advancing"] == true && what == "is not connected").then_some(())
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
    // Not with a number of the future, as most tests take: the command line takes those of the clock.
    let key = SecretKey::generate().unwrap();
    network.local.register(&ClientId::new("devices/iot").unwrap(), key.public()).await.unwrap();
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
    let waits = "warning: nothing became final for 5 s, 1 message waits (1 of this run's are in a node's log): 3 of 4";
    assert!(said.contains(waits), "{said}");
    let left = "1 message is not final, 1 of this run's acknowledged by a node and in its log; run the same";
    assert!(said.contains(left), "{said}");
    assert!(output.stdout.is_empty(), "nothing was measured: {}", String::from_utf8_lossy(&output.stdout));
    // A registration waits for the same reason, and says so.
    let mut register = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
    register.args(["client", "register", "devices/late", "--key"]).arg(&file).arg("--network").arg(&dir);
    let mut waiting =
        register.stderr(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let line = network.soon("it says why it waits", lines.next_line()).await.unwrap().unwrap();
    assert!(
        line.starts_with("warning: it has not become final for ") && line.contains(" 3 of 4 replicas"),
        "{line}"
    );
    // The node says on one line, of each node that is not there, whom it cannot reach and why. It knows
    // who it is if it was once the one that dialed.
    let places = [2, 3].map(|at| format!("/ip4/127.0.0.1/tcp/{}\"", network.ports(at).p2p));
    let told = network
        .eventually("it tells whom it cannot reach", async || {
            let log = network.log(0);
            let told = |place: &String| {
                let about =
                    |line: &&str| line.contains("cannot reach a node") && line.contains(place.as_str());
                log.lines().find(about).map(str::to_owned)
            };
            places.iter().map(told).collect::<Option<Vec<String>>>()
        })
        .await;
    for (line, at) in told.iter().zip([2, 3]) {
        let id = network.files().nodes[at].node.short();
        assert!(line.contains(&id) || line.contains("not known yet"), "{line}");
        assert!(line.contains("connection refused"), "{line}");
        assert!(!line.contains("12D3Koo"), "{line}");
    }
    assert!(!network.log(0).contains("Multiple dial errors"));
    network.spawn_all().await;
    let registered = tokio::time::timeout(PATIENCE, waiting.wait()).await.unwrap().unwrap();
    assert!(registered.success(), "it waited to good purpose");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_is_shown_as_one_without_a_vote_until_it_votes_with_the_others() {
    let mut network = TestNetwork::start(4).await;
    let _key = network.register("devices/iot").await;
    // A view after the first. Its NEW-VIEW names a VIEW-CHANGE of the node that is wiped, which forgets
    // that, and has to enter the view all the same.
    let primary = network.primary().await;
    network.kill(primary).await;
    let _key = network.register("devices/later").await;
    network.spawn(primary).await;
    let wiped = (primary + 2) % 4;
    network.kill(wiped).await;
    std::fs::remove_dir_all(network.local.node_dir(wiped).join("data")).unwrap();
    network.local.spawn(wiped).unwrap();
    let silent = network
        .eventually("it keeps silent", async || {
            let (code, report) = report(&network).await;
            let what = report["out"][0]["what"].as_str().unwrap_or_default();
            (code == 3 && what.starts_with("lost its log and does not vote (again in about "))
                .then_some(report)
        })
        .await;
    assert_eq!((&silent["verdict"], &silent["out"][0]["replica"]), (&"degraded".into(), &wiped.into()));
    assert!(reason(&silent, "this_node_is_silent").unwrap().contains("nothing need be done"), "{silent}");
    network
        .eventually("it is not ready, and says why", async || {
            let answer = reqwest::get(network.url(wiped, "/readyz")).await.ok()?;
            let (status, why) = (answer.status(), answer.text().await.ok()?);
            (status == 503 && why.contains("does not vote")).then_some(())
        })
        .await;
    let told = String::from_utf8(status(&network, &[]).await.stdout).unwrap();
    let line = told.lines().find(|line| line.starts_with(&format!("{wiped} "))).unwrap();
    let view = line.split_whitespace().nth(2).unwrap();
    assert_eq!(view.trim_end_matches('*'), "1", "the view of the others is shown: {told}");
    network
        .eventually("it votes again", async || {
            let consensus = network.get(wiped, "/v1/consensus").await;
            consensus["silent"].is_null().then_some(())
        })
        .await;
    network
        .eventually("all is healthy", async || {
            let (code, report) = report(&network).await;
            (code == 0 && report["verdict"] == "healthy").then_some(())
        })
        .await;
    network
        .eventually("it is ready", async || {
            (reqwest::get(network.url(wiped, "/readyz")).await.ok()?.status() == 200).then_some(())
        })
        .await;
    for at in 0..4 {
        let stands = network.get(at, "/v1/status").await;
        assert_eq!((&stands["view"], &stands["changing"]), (&1.into(), &false.into()), "{stands}");
    }
    // A quorum needs its vote now.
    network.kill(primary).await;
    let _key = network.register("devices/last").await;
    assert_eq!(network.get(wiped, "/v1/status").await["view"], 1);
}
