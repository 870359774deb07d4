//! A name with many addresses: nodes on one port of several loopback addresses find each other by it.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::{NetworkSettings, TestNode};
use crate::network::{Resolve, peer_of};
use crate::types::NodeId;

/// Answers in this order, and then the last one for ever; an empty one is an error.
#[derive(Debug, Default)]
struct Script {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
}

impl Resolve for Script {
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.asked.lock().unwrap().push(host.to_owned());
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        let answer = answer.filter(|all| !all.is_empty()).ok_or_else(|| io::Error::other("no such name"));
        async move { answer }.boxed()
    }
}

fn script(answers: &[&[IpAddr]]) -> Arc<Script> {
    Arc::new(Script {
        answers: Mutex::new(answers.iter().map(|all| all.to_vec()).collect()),
        ..Script::default()
    })
}

fn house(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

/// A port that is free at all of these addresses.
fn common_port(at: &[IpAddr]) -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind((at[0], 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        if at[1..].iter().all(|ip| TcpListener::bind((*ip, port)).is_ok()) {
            return port;
        }
    }
    panic!("no port is free at all of {at:?}");
}

fn settings(at: IpAddr, port: u16, resolver: &Arc<Script>) -> NetworkSettings {
    NetworkSettings {
        listen: vec![format!("/ip4/{at}/tcp/{port}").parse().unwrap()],
        bootstrap: vec![format!("/dns4/nodes.test/tcp/{port}").parse().unwrap()],
        resolve_interval: Duration::from_millis(100),
        resolver: Arc::clone(resolver) as Arc<dyn Resolve>,
        ..NetworkSettings::default()
    }
}

/// As `handle.peers()` lists them.
fn others(all: &[&TestNode], of: &TestNode) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = all.iter().map(|node| node.id()).filter(|id| *id != of.id()).collect();
    ids.sort_by_key(peer_of);
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_share_a_name_find_each_other_once_it_resolves() {
    let houses = [house(2), house(3), house(4)];
    let port = common_port(&houses);
    let resolver = script(&[&[], &[], &[], &houses]);
    let mut nodes = Vec::new();
    for (seed, at) in (1..).zip(houses) {
        nodes.push(TestNode::start(seed, settings(at, port, &resolver)).await);
    }
    let all: Vec<&TestNode> = nodes.iter().collect();
    for node in &all {
        node.is_connected_with(&others(&all, node)).await;
        assert_eq!(node.count("ledgermq_network_connections_total", "dial_failed"), 0);
    }
    let failed: u64 = all.iter().map(|node| node.count("ledgermq_network_lookups_total", "failed")).sum();
    assert_eq!(failed, 3, "the name did not resolve at first");
    assert!(resolver.asked.lock().unwrap().iter().all(|host| host == "nodes.test"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_the_name_gets_later_is_found_though_nobody_tells_of_it() {
    let houses = [house(2), house(3)];
    let port = common_port(&houses);
    let resolver = script(&[&houses[..1]]);
    let first = TestNode::start(1, settings(houses[0], port, &resolver)).await;
    first.counted("ledgermq_network_lookups_total", "resolved", 2).await;
    assert!(first.peers().await.is_empty(), "the name has only its own address");

    // The second one knows nobody.
    let alone = NetworkSettings { bootstrap: Vec::new(), ..settings(houses[1], port, &resolver) };
    let second = TestNode::start(2, alone).await;
    resolver.answers.lock().unwrap().push_back(houses.to_vec());
    first.is_connected_with(&[second.id()]).await;
}
