//! A replica that contradicts itself: this test has its key, joins the nodes' own network with it, and
//! says two things. All others keep the proof, which anybody can check, and go on without it.

use std::process::Output;

use ledgermq::clock::SystemClock;
use ledgermq::config::Config;
use ledgermq::crypto::SecretKey;
use ledgermq::keyfile;
use ledgermq::ledger::CheckpointContent;
use ledgermq::network::{Network, NetworkEvent, NetworkHandle, NetworkSettings, SwarmKey, Topic, Verdict};
use ledgermq::pbft::message::{Content, Prepare};
use ledgermq::pbft::{Envelope, Verified};
use ledgermq::types::{Hash, Height, NetworkId, SeqNum, View};
use serde_json::Value;
use tokio::process::Command;

use crate::network::TestNetwork;

/// Replica `at`, as somebody plays it who has its key and nothing else.
struct Impostor {
    key: SecretKey,
    network: NetworkId,
    handle: NetworkHandle,
}

impl Impostor {
    async fn join(network: &TestNetwork, at: usize) -> Self {
        let config = Config::load(&network.files().nodes[at].config).unwrap();
        let key = keyfile::read(&config.node_key).unwrap();
        let swarm_key = keyfile::read_swarm_key(&config.p2p.swarm_key.unwrap()).unwrap();
        let settings = NetworkSettings {
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
            bootstrap: config.p2p.bootstrap,
            swarm_key: Some(SwarmKey::new(*swarm_key)),
            reserved: network.local.genesis().replicas.members().to_vec(),
            ..NetworkSettings::default()
        };
        let registry = prometheus::Registry::new();
        let started = Network::start(settings, &key, network.id(), SystemClock::shared(), &registry).await;
        let (handle, mut events) = started.unwrap();
        let judge = handle.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let NetworkEvent::Gossip { id, .. } = event {
                    let _the_node_ended = judge.report(id, Verdict::Accept).await;
                }
            }
        });
        Self { key, network: network.id(), handle }
    }

    /// Gossips a message; who was not reached hears it the next time.
    async fn say(&self, attempt: u32, content: &Content) {
        let signed = Verified::sign(&self.key, &self.network, content.clone()).signed().clone();
        let _no_peer_yet = self.handle.broadcast(Topic::Pbft, Envelope { attempt, signed }.encode()).await;
    }
}

/// What a node lists; ids and kinds.
async fn listed(network: &TestNetwork, at: usize) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = network.get(at, "/v1/evidence").await;
    let evidence = list["evidence"].as_array().unwrap().iter();
    evidence.map(|piece| (text(&piece["id"]), text(&piece["kind"]))).collect()
}

async fn ledgermq(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ledgermq")).args(args).output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_contradicts_itself_is_proven_faulty_by_all_others_who_go_on_without_it() {
    let mut network = TestNetwork::start(4).await;
    network.register("devices/before").await;
    let faulty = (network.primary().await + 1) % 4;
    network.kill(faulty).await;
    let honest: Vec<usize> = (0..4).filter(|at| *at != faulty).collect();
    let impostor = Impostor::join(&network, faulty).await;

    // Above what the others are at, and within their windows.
    let status = network.get(honest[0], "/v1/status").await;
    let view = View(status["view"].as_u64().unwrap());
    let sequence = SeqNum(status["sequence"].as_u64().unwrap() + 20);
    let vote = |fill| Content::Prepare(Prepare { view, sequence, digest: Hash([fill; 32]) });
    let state = |fill| {
        let hash = Hash([fill; 32]);
        Content::Checkpoint(CheckpointContent { sequence, height: Height(9), block: hash, state: hash })
    };
    let mut attempt = 0;
    network
        .eventually("all others have both proofs", async || {
            attempt += 1;
            for content in [vote(1), vote(2), state(1), state(2)] {
                impostor.say(attempt, &content).await;
            }
            for at in &honest {
                if listed(&network, *at).await.len() < 2 {
                    return None;
                }
            }
            Some(())
        })
        .await;

    let mut expected = listed(&network, honest[0]).await;
    expected.sort();
    let genesis = network.files().genesis.to_str().unwrap().to_owned();
    for at in &honest {
        let mut found = listed(&network, *at).await;
        found.sort();
        assert_eq!(found, expected, "all have the same proofs, each once");
        for kind in ["prepare", "checkpoint"] {
            let name = format!("ledgermq_consensus_evidence_total{{kind=\"{kind}\"}}");
            assert!(network.metric(*at, &name).await >= 1.0);
        }
        let log = network.log(*at);
        assert!(log.contains("a replica is proven faulty: it signed two different PREPAREs"), "{log}");
    }
    for (id, kind) in &expected {
        let file = network.path(&format!("{kind}.lmqevidence"));
        let file = file.to_str().unwrap();
        let api = network.url(honest[1], "");
        let fetched = ledgermq(&["evidence", "fetch", id, "-o", file, "--api", &api]).await;
        assert!(fetched.status.success(), "{fetched:?}");
        let verified = ledgermq(&["evidence", "verify", file, "--genesis", &genesis]).await;
        let said = String::from_utf8(verified.stdout.clone()).unwrap();
        assert!(
            verified.status.success() && said.contains(&format!("replica {faulty} of 4")),
            "{verified:?}"
        );
    }

    // The network orders on, and the proofs outlive a kill.
    network.register("devices/after").await;
    let restarted = honest[2];
    network.kill(restarted).await;
    network.spawn(restarted).await;
    let mut found = listed(&network, restarted).await;
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(network.metric(restarted, "ledgermq_consensus_evidence_stored").await, 2.0);
    network.register("devices/later").await;
    impostor.handle.shutdown().await;
}
