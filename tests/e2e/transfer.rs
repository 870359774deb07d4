//! A node that was away, or lost everything but its key, gets the ledger from the others and takes part
//! again, whoever of them lies and whenever it is killed.

use std::collections::VecDeque;
use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ledgermq::clock::SystemClock;
use ledgermq::gateway::Gateway;
use ledgermq::keyfile;
use ledgermq::network::{
    Multiaddr, Network, NetworkEvent, NetworkHandle, NetworkSettings, PeerRequest, PeerResponse, Responder,
    SwarmKey,
};
use ledgermq::types::{Height, Stream};
use prometheus::Registry;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::device::now;
use crate::network::{TestNetwork, reading};

/// Each message becomes a block of its own.
const ONE_REQUEST_A_BLOCK: (&str, &str) = ("consensus.batch_max_requests", "1");

/// Nobody is replaced because the machine that runs the tests is slow.
const PATIENT: (&str, &str) = ("consensus.request_timeout_ms", "20000");

/// Messages on their way at once.
const AT_ONCE: usize = 8;

/// A wiped node votes again when so many numbers were ordered since (docs/CONSENSUS.md, "A lost log").
const WINDOW: u64 = 256;

fn stream() -> Stream {
    Stream::new("env").unwrap()
}

/// Publishes messages and returns when they are all final.
async fn fill(network: &TestNetwork, gateway: &Gateway, bodies: impl Iterator<Item = Vec<u8>>) {
    let mut deliveries = VecDeque::new();
    for body in bodies {
        deliveries.push_back(gateway.publish(&stream(), body).await.unwrap());
        if deliveries.len() >= AT_ONCE {
            network.soon("a message is final", deliveries.pop_front().unwrap().done()).await.unwrap();
        }
    }
    for delivery in deliveries {
        network.soon("a message is final", delivery.done()).await.unwrap();
    }
}

fn readings(count: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(|_| reading(now().0, 20.0, 40))
}

/// A message whose block has about 2.5 MiB.
fn large() -> Vec<u8> {
    let value = "v".repeat(1_000);
    let item = |num| json!({ "deviceId": "th-01", "serviceId": "note", "num": num, "value": value });
    let data: Vec<_> = (1..=2_300).map(item).collect();
    json!({ "count": data.len(), "eventTime": now().0, "data": data }).to_string().into_bytes()
}

/// Takes everything from a node but its key and its settings.
async fn wipe(network: &mut TestNetwork, at: usize) {
    if network.local.is_running(at).unwrap() {
        network.kill(at).await;
    }
    fs::remove_dir_all(network.local.node_dir(at).join("data")).unwrap();
}

/// Gives one node settings of its own.
fn set(network: &TestNetwork, at: usize, toml: &str) {
    let path = &network.files().nodes[at].config;
    fs::File::options().append(true).open(path).unwrap().write_all(toml.as_bytes()).unwrap();
}

/// A client that publishes without end.
struct Load {
    acked: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Load {
    fn start(gateway: &Gateway) -> Self {
        let (gateway, acked, stop) = (gateway.clone(), Arc::default(), Arc::new(AtomicBool::new(false)));
        let (counter, stopped): (Arc<AtomicU64>, _) = (Arc::clone(&acked), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut deliveries = VecDeque::new();
            while !stopped.load(Ordering::Relaxed) || !deliveries.is_empty() {
                if deliveries.len() < AT_ONCE && !stopped.load(Ordering::Relaxed) {
                    let body = reading(now().0, 20.0, 40);
                    deliveries.push_back(gateway.publish(&stream(), body).await.unwrap());
                } else if let Some(delivery) = deliveries.pop_front() {
                    delivery.done().await.unwrap();
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { acked, stop, task }
    }

    fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    async fn stop(self, network: &TestNetwork) {
        self.stop.store(true, Ordering::Relaxed);
        network.soon("the last message is final", self.task).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_everything_but_its_key_comes_back_while_the_others_go_on() {
    let mut network = TestNetwork::start_with(4, &[ONE_REQUEST_A_BLOCK, PATIENT]).await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0, 1, 2]).await;
    fill(&network, &gateway, readings(40)).await;
    wipe(&mut network, 3).await;
    let load = Load::start(&gateway);
    let (height, before) = (network.certified_height(0).await, load.acked());
    network.local.spawn(3).unwrap();
    // It is not ready before it votes, and answers before that.
    network
        .eventually("it answers", async || reqwest::get(network.url(3, "/livez")).await.is_ok().then_some(()))
        .await;
    network.reaches(3, height).await;
    network.eventually("the others go on", async || (load.acked() > before).then_some(())).await;
    // They are in the ledger before they are counted.
    network
        .eventually("the blocks were fetched", async || {
            (network.metric(3, "ledgermq_transfer_blocks_total").await >= 40.0).then_some(())
        })
        .await;
    network
        .eventually("the transfer is over", async || {
            (network.metric(3, "ledgermq_transfer_active").await < 1.0).then_some(())
        })
        .await;

    load.stop(&network).await;
    network.assert_same_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_voted_keeps_silent_without_its_data_in_a_young_and_idle_cluster_too() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0, 1]).await;
    fill(&network, &gateway, readings(3)).await;
    let mark = network.local.node_dir(3).join("node.key.used");
    assert!(mark.exists(), "it has voted");
    wipe(&mut network, 3).await;
    network.local.spawn(3).unwrap();
    let silent = async |network: &TestNetwork| network.metric(3, "ledgermq_consensus_silent").await > 0.0;
    network.eventually("the node answers", async || network.local.status(3).await.ok()).await;
    network.eventually("it keeps silent", async || silent(&network).await.then_some(())).await;
    network.eventually("it votes again", async || (!silent(&network).await).then_some(())).await;
    network.local.ready(3).await.unwrap();
    // In earnest: without it there is no quorum.
    network.kill(2).await;
    fill(&network, &gateway, readings(1)).await;
    network.spawn(2).await;
    network.assert_same_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_says_how_far_it_is_keeps_silent_and_votes_again() {
    let mut network = TestNetwork::start_with(4, &[ONE_REQUEST_A_BLOCK, PATIENT]).await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0, 1, 2]).await;
    network.kill(3).await;
    fill(&network, &gateway, readings(300)).await;
    wipe(&mut network, 3).await;
    let height = network.certified_height(0).await;
    network.local.spawn(3).unwrap();
    network
        .eventually("it answers", async || reqwest::get(network.url(3, "/livez")).await.is_ok().then_some(()))
        .await;
    network.reaches(3, height).await;
    network
        .eventually("it says so", async || {
            let log = network.log(3);
            (log.contains("behind: fetching blocks") && log.contains("fetched all blocks")).then_some(())
        })
        .await;
    let load = Load::start(&gateway);
    // It keeps silent until it cannot contradict what it said before, and then it votes.
    let voted = r#"ledgermq_consensus_messages_total{direction="out",kind="prepare"}"#;
    for further in (0..=WINDOW).step_by(16) {
        network.reaches(0, height + further).await;
    }
    network.eventually("it votes", async || (network.metric(3, voted).await >= 1.0).then_some(())).await;
    load.stop(&network).await;
    network.kill(2).await;
    fill(&network, &gateway, readings(1)).await;
    network.spawn(2).await;
    network.assert_same_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_beyond_all_limits_are_fetched_within_them_and_a_kill_in_between_costs_little() {
    let mut network = TestNetwork::start_with(
        4,
        &[
            ONE_REQUEST_A_BLOCK,
            PATIENT,
            ("storage.checkpoint_interval_ms", "100"),
            ("transfer.serve_bytes_per_s_each", "4194304"),
        ],
    )
    .await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0, 1, 2]).await;
    // More than the fetching node may hold, three times the longest answer.
    for _ in 0..14 {
        fill(&network, &gateway, [large()].into_iter()).await;
    }
    let height = network.certified_height(0).await;
    wipe(&mut network, 3).await;
    let limits = |mib: u32| {
        format!("\n[transfer]\nmax_buffered_bytes = 25165824\nfetch_bytes_per_s = {}\n", mib << 20)
    };
    let unlimited = fs::read(&network.files().nodes[3].config).unwrap();
    // At this pace the rest takes half a minute after the first blocks.
    set(&network, 3, &limits(1));

    network.local.spawn(3).unwrap();
    let saved = async |network: &TestNetwork| network.metric(3, "ledgermq_storage_checkpoint_ms_count").await;
    network.eventually("the node answers", async || network.local.status(3).await.ok()).await;
    network.reaches(3, 3).await;
    let saves = saved(&network).await;
    network
        .eventually("that much is saved", async || (saved(&network).await >= saves + 2.0).then_some(()))
        .await;
    let reached = network.certified_height(3).await;
    assert!(reached < height, "killed in the middle: {reached} of {height}");
    network.kill(3).await;

    fs::write(&network.files().nodes[3].config, unlimited).unwrap();
    set(&network, 3, &limits(4));
    network.spawn(3).await;
    network.reaches(3, height).await;
    let fetched = network.metric(3, "ledgermq_transfer_blocks_total").await;
    assert!(fetched <= (height - 3) as f64, "{fetched} of {height} blocks are fetched again");
    network.assert_same_blocks().await;
    let bad = network.metric(3, r#"ledgermq_transfer_requests_total{result="bad"}"#).await;
    assert!(bad < 1.0, "nobody lied");
}

/// What a serving peer does wrong.
#[derive(Debug, Clone, Copy)]
enum Lie {
    /// The operations are not those of the header.
    OtherBody,
    /// The certificate is of another block.
    OtherCertificate,
    /// Other blocks than those asked for.
    OtherBlocks,
    /// Never answers.
    Stalls,
    /// Says to be very high, and has nothing.
    Boasts,
}

/// A peer with the key of a replica that gives blocks and lies about them.
struct Liar {
    handle: NetworkHandle,
    asked: Arc<AtomicU64>,
}

impl Liar {
    /// Takes the place of node `at`, which must not run. What it falsifies it has from node 0.
    async fn start(network: &TestNetwork, at: usize, lie: Lie) -> Self {
        let key = keyfile::read(&network.local.node_dir(at).join("node.key")).unwrap();
        let swarm_key = keyfile::read_swarm_key(&network.local.dir().join("swarm.key")).unwrap();
        let address = |at: usize| -> Multiaddr {
            format!("/ip4/127.0.0.1/tcp/{}", network.ports(at).p2p).parse().unwrap()
        };
        let settings = NetworkSettings {
            listen: vec![address(at)],
            bootstrap: (0..network.n()).filter(|other| *other != at).map(address).collect(),
            swarm_key: Some(SwarmKey::new(*swarm_key)),
            ..NetworkSettings::default()
        };
        let (clock, registry) = (SystemClock::shared(), Registry::new());
        let (handle, mut events) =
            Network::start(settings, &key, network.id(), clock, &registry).await.unwrap();
        let (source, honest) = (handle.clone(), network.files().nodes[0].node);
        let liar = Self { handle, asked: Arc::default() };
        let asked = Arc::clone(&liar.asked);
        tokio::spawn(async move {
            let mut kept: Vec<Responder> = Vec::new();
            while let Some(event) = events.recv().await {
                let NetworkEvent::Request { request, responder, .. } = event else { continue };
                let PeerRequest::FetchBlocks { .. } = request else { continue };
                asked.fetch_add(1, Ordering::Relaxed);
                if matches!(lie, Lie::Stalls) {
                    kept.push(responder);
                    continue;
                }
                let answer = source.request(honest, request).await.unwrap_or(PeerResponse::Busy);
                responder.respond(falsified(answer, lie));
            }
        });
        liar
    }
}

fn falsified(answer: PeerResponse, lie: Lie) -> PeerResponse {
    let PeerResponse::Blocks { head, mut blocks } = answer else { return answer };
    match lie {
        Lie::OtherBody => {
            for (block, _) in &mut blocks {
                let again = block.operations.clone();
                block.operations.extend(again);
            }
        }
        Lie::OtherCertificate => {
            let certificates: Vec<_> = blocks.iter().map(|(_, certificate)| certificate.clone()).collect();
            for ((_, certificate), other) in blocks.iter_mut().zip(certificates.into_iter().rev()) {
                certificate.signatures = other.signatures;
            }
        }
        Lie::OtherBlocks => blocks.reverse(),
        Lie::Boasts => return PeerResponse::Blocks { head: Height(u64::MAX), blocks: Vec::new() },
        Lie::Stalls => {}
    }
    PeerResponse::Blocks { head, blocks }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lies_or_stalls_does_not_keep_a_node_from_coming_back() {
    let mut network = TestNetwork::start_with(4, &[ONE_REQUEST_A_BLOCK, PATIENT]).await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0, 1]).await;
    fill(&network, &gateway, readings(40)).await;
    gateway.close().await;
    network.assert_same_blocks().await;
    let height = network.certified_height(0).await;
    network.kill(2).await;
    for lie in [Lie::OtherBody, Lie::OtherCertificate, Lie::OtherBlocks, Lie::Stalls, Lie::Boasts] {
        wipe(&mut network, 3).await;
        let liar = Liar::start(&network, 2, lie).await;
        network
            .eventually("the liar is heard", async || {
                let peers = network.local.status(0).await.ok()?.peers;
                peers.iter().any(|peer| peer.node == liar.handle.node()).then_some(())
            })
            .await;
        network.local.spawn(3).unwrap();
        network.eventually("the node answers", async || network.local.status(3).await.ok()).await;
        network.reaches(3, height).await;
        assert_eq!(network.block_hashes(3, height).await, network.block_hashes(0, height).await, "{lie:?}");
        network
            .eventually("the transfer ends", async || {
                (network.metric(3, "ledgermq_transfer_active").await < 1.0).then_some(())
            })
            .await;
        let asked = liar.asked.load(Ordering::Relaxed);
        let bad = network.metric(3, r#"ledgermq_transfer_requests_total{result="bad"}"#).await;
        assert!(asked >= 1, "{lie:?} was asked");
        if matches!(lie, Lie::OtherBody | Lie::OtherCertificate | Lie::OtherBlocks) {
            assert!(bad >= 1.0, "{lie:?} was found out");
        }
        liar.handle.shutdown().await;
    }
}
