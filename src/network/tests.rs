//! Real nodes on the loopback interface, and peers that do not play by the rules.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use libp2p::Multiaddr;
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::*;
use crate::clock::SystemClock;
use crate::crypto::SecretKey;
use crate::ledger::{Request, UncheckedRequest, WriteRequest, WrittenItem};
use crate::types::{Hash, Height, NetworkId, NodeId, PublicKey, Signature};

mod adversary;
mod names;

pub(super) const NETWORK: NetworkId = NetworkId([1; 32]);

/// Longer than anything here takes on a busy machine; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// An address at which nobody listens.
const NOWHERE: &str = "/ip4/127.0.0.1/tcp/1";

pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

pub(super) fn loopback() -> NetworkSettings {
    NetworkSettings { listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()], ..NetworkSettings::default() }
}

pub(super) struct TestNode {
    pub(super) handle: NetworkHandle,
    pub(super) events: mpsc::Receiver<NetworkEvent>,
    registry: Registry,
}

impl TestNode {
    pub(super) async fn start(seed: u8, settings: NetworkSettings) -> Self {
        Self::start_in(NETWORK, seed, settings).await
    }

    async fn start_in(network: NetworkId, seed: u8, settings: NetworkSettings) -> Self {
        let registry = Registry::new();
        let key = SecretKey::from_seed(&[seed; 32]);
        let (handle, events) =
            Network::start(settings, &key, network, SystemClock::shared(), &registry).await.unwrap();
        Self { handle, events, registry }
    }

    /// A node that dials the others.
    async fn join(seed: u8, others: &[&Self]) -> Self {
        let bootstrap = others.iter().map(|other| other.address()).collect();
        Self::start(seed, NetworkSettings { bootstrap, ..loopback() }).await
    }

    pub(super) fn id(&self) -> NodeId {
        self.handle.node()
    }

    pub(super) fn address(&self) -> Multiaddr {
        self.handle.listen_addresses()[0].clone()
    }

    fn port(&self) -> u16 {
        match self.address().iter().nth(1).unwrap() {
            libp2p::multiaddr::Protocol::Tcp(port) => port,
            other => panic!("{other}"),
        }
    }

    /// The first event for which `pick` has a result; others are dropped.
    pub(super) async fn next<T>(&mut self, what: &str, mut pick: impl FnMut(NetworkEvent) -> Option<T>) -> T {
        soon(what, async {
            loop {
                let event = self.events.recv().await.expect("the network runs");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        })
        .await
    }

    async fn connected_to(&mut self, node: NodeId) {
        self.next("a connection", |event| {
            matches!(event, NetworkEvent::Connected(at) if at == node).then_some(())
        })
        .await;
    }

    pub(super) async fn disconnected_from(&mut self, node: NodeId) {
        self.next("a disconnection", |event| {
            matches!(event, NetworkEvent::Disconnected(at) if at == node).then_some(())
        })
        .await;
    }

    async fn gossip(&mut self) -> (GossipId, Vec<u8>) {
        self.next("gossip", |event| match event {
            NetworkEvent::Gossip { id, data, topic: Topic::Pbft, .. } => Some((id, data)),
            _ => None,
        })
        .await
    }

    async fn asked(&mut self) -> (NodeId, PeerRequest, Responder) {
        self.next("a request", |event| match event {
            NetworkEvent::Request { from, request, responder } => Some((from, request, responder)),
            _ => None,
        })
        .await
    }

    /// A counter's value by its label.
    #[allow(clippy::cast_possible_truncation)]
    pub(super) fn count(&self, metric: &str, label: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == metric);
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let is_ours =
            |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|pair| pair.value() == label);
        metrics.iter().find(is_ours).map_or(0, |metric| metric.get_counter().value() as u64)
    }

    /// Waits until a counter has at least this value.
    pub(super) async fn counted(&self, metric: &str, label: &str, least: u64) {
        soon(metric, async {
            while self.count(metric, label) < least {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Waits until exactly these nodes are connected.
    pub(super) async fn is_connected_with(&self, nodes: &[NodeId]) {
        soon("these peers and no others", async {
            while self.peers().await != nodes {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    pub(super) async fn peers(&self) -> Vec<NodeId> {
        self.handle.peers().await.unwrap().into_iter().map(|peer| peer.node).collect()
    }
}

/// Broadcasts; the network waits for the first subscriber by itself.
async fn broadcast(from: &TestNode, data: &[u8]) {
    from.handle.broadcast(Topic::Pbft, data.to_vec()).await.unwrap();
}

fn bundled(bytes: usize) -> Bundled {
    Bundled::Received(Box::new(UncheckedRequest::new(write_request(bytes))))
}

fn write_request(bytes: usize) -> Request {
    Request::Write(Arc::new(WriteRequest {
        node: NodeId([9; 32]),
        client_key: PublicKey([2; 32]),
        header: vec![3; 100],
        signature: Signature([4; 64]),
        items: vec![WrittenItem { index: 0, bytes: vec![5; bytes] }],
        proof: vec![Hash([6; 32])],
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_passes_over_a_node_that_accepts_it_and_stops_at_one_that_rejects_it() {
    // A and C announce addresses at which nobody listens, so that only B connects them.
    let hidden = || NetworkSettings { external: vec![NOWHERE.parse().unwrap()], ..loopback() };
    let mut b = TestNode::start(2, loopback()).await;
    let to_b = || NetworkSettings { bootstrap: vec![b.address()], ..hidden() };
    let (a, mut c) = (TestNode::start(1, to_b()).await, TestNode::start(3, to_b()).await);
    b.next("both connected", {
        let mut missing = vec![a.id(), c.id()];
        move |event| {
            if let NetworkEvent::Connected(node) = event {
                missing.retain(|at| *at != node);
            }
            missing.is_empty().then_some(())
        }
    })
    .await;

    for (verdict, data) in [(Verdict::Reject, b"rejected"), (Verdict::Ignore, b"ignored!")] {
        broadcast(&a, data).await;
        let (id, received) = b.gossip().await;
        assert_eq!(received, data);
        b.handle.report(id, verdict).await.unwrap();
    }
    // B may not know yet that C listens: then what it passes on goes nowhere.
    for number in 0_u8.. {
        let accepted = [b"accepted", &[number][..]].concat();
        broadcast(&a, &accepted).await;
        let (id, received) = b.gossip().await;
        assert_eq!(received, accepted);
        b.handle.report(id, Verdict::Accept).await.unwrap();
        if let Ok((_, received)) = tokio::time::timeout(Duration::from_secs(1), c.gossip()).await {
            assert!(received.starts_with(b"accepted"), "it is the first that C hears of: {received:?}");
            return;
        }
    }
    panic!("C hears nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_waits_a_moment_for_somebody_to_listen() {
    let a = TestNode::start(1, loopback()).await;
    broadcast(&a, b"early").await;
    let mut b = TestNode::join(2, &[&a]).await;
    assert_eq!(b.gossip().await.1, b"early");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_large_for_gossip_is_refused_at_once() {
    let a = TestNode::start(1, loopback()).await;
    let len = settings::MAX_GOSSIP_BYTES + 1;
    let refused = a.handle.broadcast(Topic::Pbft, vec![0; len]).await;
    assert_eq!(refused, Err(BroadcastError::TooLarge { len }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_gossip_and_bursts_of_small_ones_arrive() {
    let mut a = TestNode::start(1, loopback()).await;
    let mut b = TestNode::join(2, &[&a]).await;
    b.connected_to(a.id()).await;
    a.connected_to(b.id()).await;
    let mut missing: Vec<Vec<u8>> =
        (0..100_u8).map(|at| vec![at; 100]).chain([vec![255; settings::MAX_GOSSIP_BYTES]]).collect();
    for data in &missing {
        broadcast(&a, data).await;
    }
    while !missing.is_empty() {
        let (id, data) = b.gossip().await;
        missing.retain(|at| *at != data);
        b.handle.report(id, Verdict::Accept).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bundles_arrive_and_are_answered() {
    let mut a = TestNode::start(1, loopback()).await;
    let b = TestNode::join(2, &[&a]).await;
    a.connected_to(b.id()).await;
    let key = SecretKey::from_seed(&[2; 32]);
    let bundle = SignedBundle::sign(&key, &NETWORK, vec![bundled(1_000_000); 11]);
    let request = PeerRequest::Bundle(bundle.clone().into());
    let asking = tokio::spawn({
        let (handle, to) = (b.handle.clone(), a.id());
        async move { handle.request(to, request).await }
    });
    let (from, received, responder) = a.asked().await;
    assert_eq!(from, b.id());
    assert_eq!(received, PeerRequest::Bundle(bundle.into()));
    responder.respond(PeerResponse::Accepted);
    assert_eq!(soon("the answer", asking).await.unwrap(), Ok(PeerResponse::Accepted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetches_are_answered_with_as_much_as_fits() {
    let mut a = TestNode::start(1, loopback()).await;
    let b = TestNode::join(2, &[&a]).await;
    a.connected_to(b.id()).await;
    let asking = tokio::spawn({
        let (handle, to) = (b.handle.clone(), a.id());
        async move { handle.request(to, PeerRequest::FetchRequests(vec![Hash([7; 32]); 20])).await }
    });
    let (_, _, responder) = a.asked().await;
    responder.respond(PeerResponse::requests(vec![write_request(1_000_000); 20]));
    match soon("the answer", asking).await.unwrap() {
        Ok(PeerResponse::Requests(requests)) => assert_eq!(requests.len(), 12),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_fail_with_a_reason() {
    let mut a = TestNode::start(1, loopback()).await;
    let short = NetworkSettings {
        bootstrap: vec![a.address()],
        request_timeout: Duration::from_millis(500),
        ..loopback()
    };
    let b = TestNode::start(2, short).await;
    a.connected_to(b.id()).await;
    let fetch = PeerRequest::FetchBlocks { from: Height(1), max: 1 };
    let ask = |request: PeerRequest, to| {
        let handle = b.handle.clone();
        tokio::spawn(async move { handle.request(to, request).await })
    };

    let stranger = SecretKey::from_seed(&[77; 32]).node_id();
    assert_eq!(ask(fetch.clone(), stranger).await.unwrap(), Err(RequestError::NotConnected));
    let foolish = PeerRequest::FetchBlocks { from: Height(1), max: 0 };
    assert_eq!(ask(foolish, a.id()).await.unwrap(), Err(RequestError::OutOfLimits));
    let key = SecretKey::from_seed(&[2; 32]);
    let huge = SignedBundle::sign(&key, &NETWORK, vec![bundled(13 * 1024 * 1024)]);
    assert_eq!(ask(PeerRequest::Bundle(huge.into()), a.id()).await.unwrap(), Err(RequestError::OutOfLimits));

    let dropped = ask(fetch.clone(), a.id());
    drop(a.asked().await);
    assert_eq!(dropped.await.unwrap(), Ok(PeerResponse::Busy), "a responder that was dropped");

    let slow = ask(fetch.clone(), a.id());
    let (_, _, kept) = a.asked().await;
    assert_eq!(soon("the timeout", slow).await.unwrap(), Err(RequestError::TimedOut));
    kept.respond(PeerResponse::Busy);
    a.is_connected_with(&[b.id()]).await; // Nobody was cut off for any of that.
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_a_few_requests_to_one_node_are_unanswered_at_a_time() {
    let mut a = TestNode::start(1, loopback()).await;
    let b = TestNode::join(2, &[&a]).await;
    a.connected_to(b.id()).await;
    let to = a.id();
    let ask = || {
        let handle = b.handle.clone();
        tokio::spawn(async move { handle.request(to, PeerRequest::FetchRequests(vec![Hash([1; 32])])).await })
    };
    let asking: Vec<_> = (0..settings::OUTBOUND_REQUESTS_PER_PEER).map(|_| ask()).collect();
    let mut responders = Vec::new();
    for _ in &asking {
        responders.push(a.asked().await.2);
    }
    assert_eq!(ask().await.unwrap(), Err(RequestError::Busy));
    for responder in responders {
        responder.respond(PeerResponse::Requests(Vec::new()));
    }
    for answer in asking {
        assert_eq!(soon("an answer", answer).await.unwrap(), Ok(PeerResponse::Requests(Vec::new())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_know_one_node_find_each_other_by_announcements() {
    let a = TestNode::start(1, loopback()).await;
    let mqtt = Some("mqtt://127.0.0.1:1883".to_owned());
    let with_mqtt = NetworkSettings { bootstrap: vec![a.address()], mqtt: mqtt.clone(), ..loopback() };
    let mut b = TestNode::start(2, with_mqtt).await;
    let mut c = TestNode::join(3, &[&a]).await;
    b.connected_to(c.id()).await;
    c.connected_to(b.id()).await;
    soon("the announcement of B", async {
        loop {
            let known = c.handle.announcements().await.unwrap();
            if let Some(found) = known.iter().find(|entry| entry.node == b.id()) {
                assert_eq!(found.mqtt, mqtt);
                assert_eq!(found.addresses, [b.address().to_string()]);
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(!c.handle.announcements().await.unwrap().iter().any(|entry| entry.node == c.id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_restarted_is_connected_again() {
    let mut a = TestNode::start(1, loopback()).await;
    let mut b = TestNode::join(2, &[&a]).await;
    b.connected_to(a.id()).await;
    let listen = vec![a.address()];
    a.handle.shutdown().await;
    assert_eq!(a.handle.broadcast(Topic::Pbft, vec![1]).await, Err(Stopped.into()));
    soon("the events to end", async { while a.events.recv().await.is_some() {} }).await;
    b.disconnected_from(a.id()).await;
    let mut again = TestNode::start(1, NetworkSettings { listen, ..loopback() }).await;
    b.connected_to(again.id()).await;
    again.connected_to(b.id()).await;
    broadcast(&b, b"welcome back").await;
    assert_eq!(again.gossip().await.1, b"welcome back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_troubled_by_its_own_address() {
    let a = TestNode::start(1, loopback()).await;
    let listen = vec![a.address()];
    a.handle.shutdown().await;
    let both = NetworkSettings { bootstrap: listen.clone(), listen, ..loopback() };
    let a = TestNode::start(1, both).await;
    let mut b = TestNode::join(2, &[&a]).await;
    b.connected_to(a.id()).await;
    a.is_connected_with(&[b.id()]).await;
    assert_eq!(a.count("ledgermq_network_connections_total", "dial_failed"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_network_cannot_connect() {
    let a = TestNode::start(1, loopback()).await;
    let to_a = NetworkSettings { bootstrap: vec![a.address()], ..loopback() };
    let stranger = TestNode::start_in(NetworkId([2; 32]), 2, to_a).await;
    stranger.counted("ledgermq_network_connections_total", "dial_failed", 2).await;
    assert_eq!(stranger.count("ledgermq_network_connections_total", "established"), 0);
    assert_eq!(a.count("ledgermq_network_connections_total", "established"), 0);
    assert!(a.peers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_has_the_swarm_key_can_connect() {
    let keyed = |byte| NetworkSettings { swarm_key: Some(SwarmKey::new([byte; 32])), ..loopback() };
    let a = TestNode::start(1, keyed(1)).await;
    let to_a = |settings| NetworkSettings { bootstrap: vec![a.address()], ..settings };
    let other_key = TestNode::start(2, to_a(keyed(2))).await;
    let no_key = TestNode::start(3, to_a(loopback())).await;
    let mut same_key = TestNode::start(4, to_a(keyed(1))).await;
    same_key.connected_to(a.id()).await;
    for stranger in [other_key, no_key] {
        stranger.counted("ledgermq_network_connections_total", "dial_failed", 1).await;
        assert_eq!(stranger.count("ledgermq_network_connections_total", "established"), 0);
    }
    a.is_connected_with(&[same_key.id()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_harms_nobody() {
    let a = TestNode::start(1, loopback()).await;
    for seed in 0..20_u8 {
        let mut socket = TcpStream::connect(("127.0.0.1", a.port())).await.unwrap();
        let garbage: Vec<u8> =
            (0..4096_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect();
        let _cut_off = socket.write_all(&garbage).await;
        let _cut_off = socket.shutdown().await;
        let mut rest = Vec::new();
        let _cut_off = soon("the node to hang up", socket.read_to_end(&mut rest)).await;
    }
    a.counted("ledgermq_network_connections_total", "incoming_failed", 20).await;
    let mut b = TestNode::join(2, &[&a]).await;
    b.connected_to(a.id()).await;
    a.is_connected_with(&[b.id()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_behind_a_line_that_went_dead_is_noticed() {
    let a = TestNode::start(1, loopback()).await;
    let line = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bootstrap =
        vec![format!("/ip4/127.0.0.1/tcp/{}", line.local_addr().unwrap().port()).parse().unwrap()];
    let probing = NetworkSettings { bootstrap, probe_interval: Duration::from_millis(200), ..loopback() };
    // A cannot dial B, so that this line is their only connection.
    let mut b =
        TestNode::start(2, NetworkSettings { external: vec![NOWHERE.parse().unwrap()], ..probing }).await;
    let (mut to_b, _) = soon("B to dial", line.accept()).await.unwrap();
    let mut to_a = TcpStream::connect(("127.0.0.1", a.port())).await.unwrap();
    let (cut, is_cut) = tokio::sync::oneshot::channel::<()>();
    let relay = tokio::spawn(async move {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut to_b, &mut to_a) => {}
            _ = is_cut => {}
        }
        // Nothing moves any more, and nothing is closed.
        std::future::pending::<()>().await;
        drop((to_b, to_a));
    });
    b.connected_to(a.id()).await;
    cut.send(()).unwrap();
    b.disconnected_from(a.id()).await;
    relay.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_reported_with_the_address() {
    let a = TestNode::start(1, loopback()).await;
    let taken = NetworkSettings { listen: vec![a.address()], ..loopback() };
    let key = SecretKey::from_seed(&[2; 32]);
    let started = Network::start(taken, &key, NETWORK, SystemClock::shared(), &Registry::new()).await;
    match started {
        Err(NetworkError::Listen { address, .. }) => assert_eq!(address, a.address()),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_reads_no_events_loses_gossip_but_answers_commands() {
    let a = TestNode::start(1, loopback()).await;
    let mut b = TestNode::join(2, &[&a]).await;
    b.connected_to(a.id()).await;
    a.counted("ledgermq_network_connections_total", "established", 1).await;
    // On a busy machine the sender's own queues lose some, too: it goes on until the receiver has lost one.
    soon("gossip is lost", async {
        for at in 0_u64.. {
            broadcast(&b, &at.to_be_bytes()).await;
            if a.count("ledgermq_network_gossip_total", "dropped_peer_share") > 0 {
                break;
            }
        }
    })
    .await;
    a.is_connected_with(&[b.id()]).await;
    assert_eq!(
        a.count("ledgermq_network_gossip_total", "delivered"),
        u64::try_from(settings::UNJUDGED_GOSSIP_PER_PEER).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_gossip_is_rejected_again_and_again_is_cut_off() {
    let mut a = TestNode::start(1, loopback()).await;
    let mut b = TestNode::join(2, &[&a]).await;
    b.connected_to(a.id()).await;
    for at in 0..8_u8 {
        broadcast(&b, &[at; 32]).await;
        let (id, _) = a.gossip().await;
        a.handle.report(id, Verdict::Reject).await.unwrap();
    }
    b.disconnected_from(a.id()).await;
    b.counted("ledgermq_network_connections_total", "closed", 2).await;
    assert!(a.peers().await.is_empty(), "and it is not let in again soon");
}
