//! A network under load that is broken, and audited after each fault.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use ledgermq::ledger::proof::{ProofBundle, Verifier};
use ledgermq::ledger::{Certificate, CheckpointContent, Header, ReplicaSetKeys};
use ledgermq::types::{
    ClientId, Hash, Height, MessageSeq, NetworkId, NodeId, SeqNum, Signature, Timestamp, View,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;

use crate::checker::{self, Body, Chain, ChainBlock, Sent, Told, Violation, Write, Written};
use crate::load::{GATEWAYS, Load};
use crate::network::TestNetwork;
use crate::table::{self, Recovery};

/// Longest that a test waits for anything: a machine that also builds something is slow, and a backlog
/// of messages takes its time. Only a test that fails waits that long.
const PATIENCE: Duration = Duration::from_secs(240);

/// Pause between two questions.
const POLL: Duration = Duration::from_millis(20);

/// Requests to the nodes' APIs at once.
const AT_ONCE: usize = 8;

pub struct Site {
    // Before the network: its clients end first.
    pub load: Load,
    pub network: TestNetwork,
    keys: ReplicaSetKeys,
    written: Written,
    /// Blocks that were looked at, at each node.
    checked: usize,
    audits: usize,
    recoveries: Vec<Recovery>,
}

impl Site {
    /// Four nodes at default settings, and clients that publish.
    pub async fn start() -> Self {
        Self::on(TestNetwork::start(4).await).await
    }

    /// The same on a network that runs.
    pub async fn on(mut network: TestNetwork) -> Self {
        let load = Load::start(&mut network).await;
        let keys = ReplicaSetKeys::new(&network.local.genesis().replicas).unwrap();
        let (written, recoveries) = (Written::default(), Vec::new());
        let mut site = Self { load, network, keys, written, checked: 0, audits: 0, recoveries };
        site.flows().await;
        site
    }

    /// Waits until every client has a new final message.
    pub async fn flows(&mut self) {
        let now = self.load.notebook.now();
        self.wait_for_finals("every client has a new final message", now, GATEWAYS + 1).await;
    }

    /// Waits until so many clients have a final message that was published after the fault; gives the
    /// times of the first and the last of them.
    async fn wait_for_finals(&self, what: &str, since: Duration, clients: usize) -> (Duration, Duration) {
        let notebook = &self.load.notebook;
        self.eventually(what, async || {
            let mut first = BTreeMap::new();
            for message in notebook.finals_since(since) {
                let done = message.done.unwrap();
                let earliest = first.entry(message.client).or_insert(done);
                *earliest = done.min(*earliest);
            }
            let times = first.values();
            (first.len() >= clients).then(|| (*times.clone().min().unwrap(), *times.max().unwrap()))
        })
        .await
    }

    /// Asks `question` again and again until it has an answer.
    pub async fn eventually<T>(&self, what: &str, question: impl AsyncFnMut() -> Option<T>) -> T {
        if let Some(answer) = within(question).await {
            return answer;
        }
        for at in 0..self.network.n() {
            eprintln!("--- node {at}\n{}", self.network.local.last_lines(at));
        }
        panic!("never happened: {what}");
    }

    /// Waits until all clients are served again after a fault that began at `since`, and notes how
    /// long that took.
    pub async fn recovers(&mut self, fault: &str, since: Duration) -> Recovery {
        let what = format!("every client is served again after: {fault}");
        let (first, last) = self.wait_for_finals(&what, since, GATEWAYS + 1).await;
        let (first, all) = (first.saturating_sub(since), last.saturating_sub(since));
        let recovery = Recovery { fault: fault.to_owned(), first, all: Some(all) };
        self.recoveries.push(recovery.clone());
        recovery
    }

    /// Waits until some client has a message final that was published after `since`.
    pub async fn goes_on(&self, fault: &str, since: Duration) -> Duration {
        let what = format!("something becomes final after: {fault}");
        self.wait_for_finals(&what, since, 1).await.0.saturating_sub(since)
    }

    /// Notes a time that was measured otherwise than by [`Self::recovers`].
    pub fn note(&mut self, fault: &str, took: Duration) {
        self.recoveries.push(Recovery { fault: fault.to_owned(), first: took, all: None });
    }

    pub fn now(&self) -> Duration {
        self.load.notebook.now()
    }

    /// The primary of the view that most nodes are in: one that was just started learns it last.
    pub async fn primary(&self) -> usize {
        let mut votes = BTreeMap::<usize, usize>::new();
        for status in self.network.local.statuses().await.into_iter().flatten() {
            let primary = status.replicas.iter().position(|replica| replica.node == status.primary);
            *votes.entry(primary.unwrap()).or_default() += 1;
        }
        votes.into_iter().max_by_key(|(_, votes)| *votes).unwrap().0
    }

    /// SIGKILL; gives when.
    pub async fn kill(&mut self, at: usize) -> Duration {
        let now = self.now();
        self.network.kill(at).await;
        now
    }

    /// SIGSTOP, SIGCONT: a node that is there and does nothing.
    pub fn signal(&self, at: usize, signal: Signal) {
        let pid = i32::try_from(self.network.local.pid(at).unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Starts these nodes in this order; waits until all are ready.
    pub async fn restart(&mut self, nodes: &[usize]) {
        for at in nodes {
            self.network.local.spawn(*at).unwrap();
        }
        for at in nodes {
            self.network.local.ready(*at).await.unwrap();
        }
    }

    /// Lets the load run out, waits until all nodes are equally far, and compares everything with
    /// everything. The load goes on afterwards.
    pub async fn audit(&mut self, after: &str) {
        self.load.pause();
        self.drained(after).await;
        let clock = self.now();
        loop {
            let violations = self.look().await;
            if violations.is_empty() {
                break;
            }
            let may_pass = violations.iter().all(Violation::may_pass) && self.now() < clock + PATIENCE;
            let few: Vec<String> = violations.iter().take(10).map(Violation::to_string).collect();
            assert!(may_pass, "after {after}: {} violations\n{}", violations.len(), few.join("\n"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.load.resume();
    }

    /// Waits until every message of the gateways is final.
    pub async fn drained(&self, after: &str) {
        let drained = async || self.load.is_drained().then_some(());
        self.eventually(&format!("all messages are final after: {after}"), drained).await;
    }

    /// Ends the load, audits for the last time, and tells the times.
    pub async fn end(mut self) {
        self.audit("everything").await;
        self.load.pause();
        let messages = self.load.notebook.messages().len();
        println!(
            "{messages} messages in {} blocks, each block and message checked at each node",
            self.checked
        );
        table::tell(&self.recoveries);
    }

    async fn look(&mut self) -> Vec<Violation> {
        let n = self.network.n();
        // What the plain client is told from here on may be in blocks above those that are looked at.
        let mut sent = self.load.sent();
        let mut chains = Vec::new();
        for at in 0..n {
            chains.push(self.headers(at).await);
        }
        let genesis = self.network.local.genesis();
        let violations = checker::check_chains(genesis, &self.keys, &chains);
        if !violations.is_empty() {
            // What a node that is behind lacks is not lost yet.
            return violations;
        }
        let height = chains[0].blocks.len();
        let new: Vec<usize> = (self.checked..height).collect();
        for chain in &mut chains {
            let bodies = self.bodies(chain.node, &new).await;
            for (at, body) in bodies {
                chain.blocks[at].body = Some(body);
            }
        }
        let mut violations = checker::check_chains(genesis, &self.keys, &chains);
        let hashes: Vec<Hash> = chains[0].blocks.iter().map(|block| block.hash).collect();
        violations.extend(self.proofs(&chains, &new).await);
        for at in new {
            let block = &chains[0].blocks[at];
            for write in &block.body.as_ref().unwrap().writes {
                self.written.add(block.header.height, write);
            }
        }
        (self.checked, self.audits) = (height, self.audits + 1);
        let later = self.load.sent().into_iter().skip(sent.len());
        sent.extend(later.map(|sent| Sent { told: Told::Nothing, ..sent }));
        violations.extend(checker::check_records(&hashes, &self.written, &sent));
        violations
    }

    async fn headers(&self, node: usize) -> Chain {
        let mut blocks = Vec::new();
        loop {
            let page =
                self.network.get(node, &format!("/v1/blocks?from={}&limit=1000", blocks.len() + 1)).await;
            let page: Page = serde_json::from_value(page).unwrap();
            let read =
                |block: BlockJson| ChainBlock { hash: block.hash, header: block.header.into(), body: None };
            blocks.extend(page.blocks.into_iter().map(read));
            if page.next.is_none() {
                return Chain { node, blocks };
            }
        }
    }

    /// Certificates and operations of the blocks at these places.
    async fn bodies(&self, node: usize, places: &[usize]) -> Vec<(usize, Body)> {
        let fetch = async |at: usize| {
            let block = self.network.get(node, &format!("/v1/blocks/{}", at + 1)).await;
            let block: WholeJson = serde_json::from_value(block).unwrap();
            let certificate = block.certificate.map(Certificate::from);
            let writes = (0..).zip(&block.operations).filter_map(|(at, operation)| read_write(at, operation));
            (at, Body { certificate, writes: writes.collect() })
        };
        stream::iter(places).map(|at| fetch(*at)).buffer_unordered(AT_ONCE).collect().await
    }

    /// Verifies the bundle of every write of these blocks with the genesis document alone. Each
    /// audit asks another node, and all nodes must have written the same.
    async fn proofs(&self, chains: &[Chain], places: &[usize]) -> Vec<Violation> {
        let verifier = Verifier::new(self.network.local.genesis()).unwrap();
        let chain = &chains[self.audits % chains.len()];
        let mut violations = Vec::new();
        let mut writes = Vec::new();
        for at in places {
            let block = &chain.blocks[*at];
            let of = |chain: &Chain| chain.blocks[*at].body.as_ref().unwrap().writes.clone();
            for other in chains.iter().filter(|other| of(other) != of(chain)) {
                let nodes = (chain.node, other.node);
                violations.push(Violation::Fork { height: block.header.height, nodes });
            }
            writes.extend(of(chain).into_iter().map(|write| (block.header.height, block.hash, write)));
        }
        let verify = async |(height, hash, write): &(Height, Hash, Write)| {
            let path = format!("/v1/records/{height}/{}/bundle", write.operation);
            let bytes = self.network.get_bytes(chain.node, &path).await;
            let bundle = ProofBundle::decode(&bytes).map_err(|error| error.to_string());
            let proven =
                bundle.and_then(|bundle| verifier.verify(&bundle).map_err(|error| error.to_string()));
            checker::check_proof(*height, *hash, write, &proven)
        };
        let found = stream::iter(&writes).map(verify).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
        violations.extend(found.into_iter().flatten());
        violations
    }
}

/// Asks again and again, for as long as a test waits; none if there is no answer then.
pub async fn within<T>(mut question: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let answered = async {
        loop {
            if let Some(answer) = question().await {
                return answer;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.ok()
}

fn read_write(operation: u32, json: &Value) -> Option<Write> {
    let write: WriteJson = match json["kind"].as_str() {
        Some("write") => serde_json::from_value(json.clone()).unwrap(),
        _ => return None,
    };
    let written = write.items.iter().filter(|item| item.written).map(|item| item.index).collect();
    Some(Write { operation, client: write.client, seq: write.seq, message: write.header, written })
}

#[derive(Deserialize)]
struct Page {
    blocks: Vec<BlockJson>,
    next: Option<Height>,
}

#[derive(Deserialize)]
struct BlockJson {
    hash: Hash,
    header: HeaderJson,
}

#[derive(Deserialize)]
struct WholeJson {
    operations: Vec<Value>,
    certificate: Option<CertificateJson>,
}

#[derive(Deserialize)]
struct WriteJson {
    client: ClientId,
    seq: MessageSeq,
    header: Hash,
    items: Vec<ItemJson>,
}

#[derive(Deserialize)]
struct ItemJson {
    index: u32,
    written: bool,
}

#[derive(Deserialize)]
struct HeaderJson {
    version: u16,
    network: NetworkId,
    height: Height,
    sequence: SeqNum,
    timestamp: Timestamp,
    previous: Hash,
    merkle_root: Hash,
    operation_count: u32,
    next_replica_set: Hash,
    origin_view: View,
    proposer: NodeId,
    difficulty_target: u32,
    nonce: u64,
}

impl From<HeaderJson> for Header {
    fn from(json: HeaderJson) -> Self {
        Self {
            version: json.version,
            network: json.network,
            height: json.height,
            sequence: json.sequence,
            timestamp: json.timestamp,
            previous: json.previous,
            merkle_root: json.merkle_root,
            operation_count: json.operation_count,
            next_replica_set: json.next_replica_set,
            origin_view: json.origin_view,
            proposer: json.proposer,
            difficulty_target: json.difficulty_target,
            nonce: json.nonce,
        }
    }
}

#[derive(Deserialize)]
struct CertificateJson {
    content: ContentJson,
    signatures: Vec<SignatureJson>,
}

#[derive(Deserialize)]
struct ContentJson {
    sequence: SeqNum,
    height: Height,
    block: Hash,
    state: Hash,
}

#[derive(Deserialize)]
struct SignatureJson {
    replica: u16,
    signature: Signature,
}

impl From<CertificateJson> for Certificate {
    fn from(json: CertificateJson) -> Self {
        let ContentJson { sequence, height, block, state } = json.content;
        let signatures = json.signatures.into_iter().map(|at| (at.replica, at.signature)).collect();
        Self { content: CheckpointContent { sequence, height, block, state }, signatures }
    }
}
