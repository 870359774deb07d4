//! What parts and nodes share: one disk under log and history, and one PostgreSQL under four nodes.

use ledgermq::clock::{Clock as _, SystemClock};
use ledgermq::gateway::Gateway;
use ledgermq::history::Location;
use ledgermq::types::Stream;
use tokio::process::Command;

use crate::full_disk::SmallDisk;
use crate::network::{TestNetwork, reading};
use crate::rows::{all_final, each_once, file_of, publish};
use crate::server::Server;
use crate::turn;

/// Messages that each client of the shared database publishes in each half of the test.
const MESSAGES: usize = 150;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_log_and_history_stops_the_node_and_loses_nothing_acknowledged() {
    let _turn = turn().await;
    let mut network = TestNetwork::create(1, &[("storage.log_segment_bytes", "1048576")]);
    let disk = SmallDisk::mount(&network.local.node_dir(0).join("data"), "192m");
    network.spawn_all().await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0]).await;
    let mut count = 5;
    all_final(&network, publish(&gateway, 5).await).await;
    for round in 1..=2 {
        let before = network.log(0).len();
        // Some are acknowledged, and on their way to the history, when there is no room any more.
        let mut deliveries = publish(&gateway, 5).await;
        deliveries[0].puback().await.unwrap();
        disk.fill();
        deliveries.extend(publish(&gateway, 10).await);
        count += deliveries.len();
        let ended = async || network.local.exited(0).unwrap();
        let status = crate::site::within(ended).await.expect("a node with a full disk stops");
        assert_eq!(status.code(), Some(1), "{}", network.local.last_lines(0));
        let said = network.log(0)[before..].to_owned();
        for words in ["No space left on device", "check the disk", "start the node again"] {
            assert!(said.contains(words), "round {round}: {words:?} is missing in:\n{said}");
        }
        disk.make_room();
        network.spawn(0).await;
        all_final(&network, deliveries).await;
        each_once(&network, 0, &file_of(&network, 0), count).await;
    }
    gateway.close().await;
    network.local.stop_all().await.unwrap();
}

/// Publishes readings through one node; returns when all are final.
async fn load(network: &TestNetwork, gateway: &Gateway) {
    let stream = Stream::new("env").unwrap();
    let mut deliveries = Vec::new();
    for at in 0..MESSAGES {
        let body = reading(SystemClock::new().now().0 + at as u64, 20.0 + at as f64, 40);
        deliveries.push(gateway.publish(&stream, body).await.unwrap());
    }
    all_final(network, deliveries).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_nodes_under_load_share_one_postgresql_and_each_history_is_whole_and_clean() {
    let _turn = turn().await;
    let mut server = Server::start();
    let location = Location::parse(&server.url()).unwrap();
    let url = server.url();
    let mut network =
        TestNetwork::create(4, &[("history.url", url.as_str()), ("history.digest_interval_s", "1")]);
    network.spawn_all().await;
    let mut gateways = Vec::new();
    for at in 0..4 {
        let client = format!("devices/iot-{at}");
        let key = network.register(&client).await;
        gateways.push(network.gateway(&client, &key, &[at]).await);
    }
    let all = || futures::future::join_all(gateways.iter().map(|gateway| load(&network, gateway)));
    all().await;
    // The database dies under them, and comes back.
    let trouble = async {
        server.kill();
        server.start_again();
    };
    futures::future::join(all(), trouble).await;
    for at in 0..4 {
        each_once(&network, at, &location, 2 * MESSAGES).await;
    }
    network
        .eventually("the audit finds all four clean", async || {
            let mut audit = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
            audit.args(["audit", "--json", "--genesis"]).arg(&network.files().genesis);
            audit.args(["--node", &network.url(0, ""), "--history", &url]);
            let output = audit.output().await.unwrap();
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_ne!(output.status.code(), Some(1), "{report:#}");
            let nodes = report["nodes"].as_array().unwrap().len();
            (output.status.code() == Some(0) && nodes == 4).then_some(())
        })
        .await;
    for gateway in gateways {
        gateway.close().await;
    }
    network.local.stop_all().await.unwrap();
}
