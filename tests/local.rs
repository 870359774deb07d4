//! A network of processes as `LocalNetwork` runs it.
#![allow(clippy::unwrap_used)]

use ledgermq::cli::local::{LocalNetwork, LocalNetworkOptions};
use ledgermq::crypto::SecretKey;

fn options(dir: &tempfile::TempDir, replicas: u16) -> LocalNetworkOptions {
    LocalNetworkOptions::new(dir.path().join("net"), replicas)
        .unwrap()
        .program(env!("CARGO_BIN_EXE_ledgermq"))
}

#[tokio::test]
async fn replicas_start_stop_are_killed_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = LocalNetwork::start(options(&dir, 4)).await.unwrap();
    assert!(network.stop(3).await.unwrap().success(), "{}", network.last_lines(3));
    assert_eq!(network.running().unwrap(), [0, 1, 2]);
    let client = "devices/iot".parse().unwrap();
    let submitted = network.register(&client, SecretKey::from_seed(&[7; 32]).public()).await.unwrap();
    assert_eq!(submitted.height.0, 1);
    network.kill(2).await.unwrap();
    assert!(network.statuses().await[2].is_none());
    for replica in [2, 3] {
        network.spawn(replica).unwrap();
    }
    network.all_ready().await.unwrap();
    network.reached(submitted.height).await.unwrap();
    network.stop_all().await.unwrap();
    assert!(network.running().unwrap().is_empty());
}

#[tokio::test]
async fn a_replica_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = LocalNetwork::create(options(&dir, 1)).unwrap();
    std::fs::write(network.node_dir(0).join("node.key"), "no key").unwrap();
    network.spawn(0).unwrap();
    let error = format!("{:#}", network.ready(0).await.unwrap_err());
    assert!(error.contains("replica 0 has ended") && error.contains("node.key"), "{error}");
}
