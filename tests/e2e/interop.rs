//! Gateways and MQTT tools that share no code with this program. They fail, and are not skipped,
//! where the programs are missing: `.ci/run` installs them.

use std::process::{Output, Stdio};

use ledgermq::crypto::{SecretKey, VerifyingKey};
use ledgermq::device::codes::{ForbiddenReason, UnauthReason};
use ledgermq::device::control::{FromNode, open_from_node};
use ledgermq::device::token;
use ledgermq::device::topics::Downlink;
use ledgermq::types::ClientId;
use serde_json::Value;
use tokio::process::Command;

use crate::device::now;
use crate::network::{PATIENCE, TestNetwork};

const VERSIONS: [&str; 2] = ["mqttv311", "mqttv5"];

/// Runs a program to its end.
async fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends");
    ended.unwrap_or_else(|error| panic!("{command:?}: {error}; .ci/run says how to install it"))
}

fn mosquitto(program: &str, network: &TestNetwork, version: &str, client: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &network.ports(0).mqtt.to_string()]);
    command.args(["-V", version, "-i", client, "-q", "1"]);
    command
}

fn token(network: &TestNetwork, client: &str, key: &SecretKey) -> String {
    token::issue(key, &network.id(), &ClientId::new(client).unwrap(), now(), 600).unwrap()
}

/// Opens what `-F '%t %x'` printed of one message.
fn open(network: &TestNetwork, client: &str, output: &Output) -> FromNode {
    let client = ClientId::new(client).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let (topic, payload) = text.trim().split_once(' ').unwrap_or_else(|| panic!("{output:?}"));
    let nodes = [VerifyingKey::parse(&network.files().nodes[0].node.into()).unwrap()];
    let topic = Downlink::parse(&client, topic).unwrap();
    let payload = hex::decode(payload).unwrap();
    open_from_node(&network.id(), &client, &nodes, &topic, &payload).unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_written_from_the_protocol_page_alone_gets_its_acks() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/python").await;
    let nodes: Vec<String> = network.files().nodes.iter().map(|node| node.node.to_string()).collect();
    let python = std::env::var("INTEROP_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    for (run_number, version) in (0..).zip([None, Some("--v5")]) {
        let mut command = Command::new(&python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/gateway.py"));
        command.args(["--port", &network.ports(1).mqtt.to_string(), "--client", "devices/python"]);
        command.args(["--seed", &hex::encode(key.seed()), "--network", &network.id().to_string()]);
        command.args(["--nodes", &nodes.join(",")]).args(version);
        let output = run(&mut command).await;
        assert!(output.status.success(), "{output:?}");
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut acks = said["acks"].as_array().unwrap().clone();
        // Of the first three on the stream one is told on `datas`; it need not be the first to arrive.
        let first_accepted = acks.iter().filter(|ack| ack["on"] == "datas").count();
        assert_eq!(first_accepted, usize::from(run_number == 0), "{said}");
        // Each is acknowledged when it is final, and nobody promises that this happens in order.
        acks.sort_by_key(|ack| ack["seq"].as_u64());
        let seqs: Vec<_> = acks.iter().map(|ack| ack["seq"].as_u64().unwrap()).collect();
        let first = 3 * run_number + 1;
        assert_eq!(seqs, [first, first + 1, first + 2], "{said}");
        assert!(acks.iter().all(|ack| ack["written"] == serde_json::json!([0, 1])), "{said}");
    }
    for record in network.wait_for_records(3, "client=devices/python", 12).await {
        let bundle = network.get_bytes(3, record["bundle"].as_str().unwrap()).await;
        network.verify(&bundle).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_clients_are_told_where_they_stand() {
    let mut network = TestNetwork::start(1).await;
    let key = network.register("devices/iot").await;
    for version in VERSIONS {
        a_stranger_reads_that_it_is_not_registered(&network, version).await;
        a_registered_client_asks_and_reads_the_answer(&network, version, &key).await;
        a_wrong_password_is_refused(&network, version, &key).await;
    }
}

async fn a_stranger_reads_that_it_is_not_registered(network: &TestNetwork, version: &str) {
    let mut command = mosquitto("mosquitto_sub", network, version, "devices/stranger");
    let output = run(command.args(["-t", "devices/stranger/#", "-C", "1", "-F", "%t %x"])).await;
    assert!(output.status.success(), "{output:?}");
    match open(network, "devices/stranger", &output) {
        FromNode::Unauth(unauth) => assert_eq!(unauth.reason, UnauthReason::NotRegistered),
        other => panic!("{version}: unauth was expected: {other:?}"),
    }
}

/// `mosquitto_rr` subscribes, publishes and reads the answer, all on one connection.
async fn a_registered_client_asks_and_reads_the_answer(
    network: &TestNetwork,
    version: &str,
    key: &SecretKey,
) {
    let mut command = mosquitto("mosquitto_rr", network, version, "devices/iot");
    command.args(["-u", "operator", "-P", &token(network, "devices/iot", key)]);
    command.args(["-t", "devices/iot/key", "-e", "devices/iot/forbidden", "-n", "-F", "%t %x"]);
    let output = run(&mut command).await;
    assert!(output.status.success(), "{output:?}");
    match open(network, "devices/iot", &output) {
        FromNode::Forbidden(forbidden) => {
            assert_eq!((forbidden.reason, forbidden.nonce), (ForbiddenReason::NoKey, None));
        }
        other => panic!("{version}: forbidden was expected: {other:?}"),
    }
}

async fn a_wrong_password_is_refused(network: &TestNetwork, version: &str, key: &SecretKey) {
    let others = token(network, "devices/two", key);
    for password in ["wrong", others.as_str()] {
        let mut command = mosquitto("mosquitto_pub", network, version, "devices/iot");
        let output =
            run(command.args(["-u", "operator", "-P", password, "-t", "devices/iot/env", "-m", "x"])).await;
        assert!(!output.status.success(), "{version}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(said.contains("not authori"), "{version}: {said}");
    }
}
