//! The correct replicas, driven by hand: every message and every timer is the walk's choice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ledgermq::crypto::SecretKey;
use ledgermq::ledger::{
    AdminAction, AdminOperation, CheckpointContent, ClientSettings, ReplicaSetKeys, Request, VerifiedRequest,
};
use ledgermq::pbft::message::{Batch, Content};
use ledgermq::pbft::{
    Effect, Input, Now, Output, Replica, Restored, Settings, Signed, Source, Verified, WalEntry,
};
use ledgermq::types::{ClientId, Hash, Height, NetworkId, SeqNum, Timestamp, View};

use crate::bounds::{Bounds, REPLICAS, keys, replica_set};
use crate::state::Digest;

pub const NETWORK: NetworkId = NetworkId([7; 32]);
const START: Timestamp = Timestamp(1_767_225_600_000);

/// How long a primary lets requests gather: nothing is proposed unless the walk lets it pass.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// How long a replica waits before it gives the primary up, likewise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1_000);

/// Longer than any walk.
const NEVER: Duration = Duration::from_secs(1_000_000);

/// One correct replica and its surroundings.
#[derive(Clone)]
pub struct Node {
    pub replica: Replica,
    time: Duration,
    wal: Vec<WalEntry>,
    pub executed: CheckpointContent,
}

/// All of them.
pub struct Cluster {
    pub keys: Vec<SecretKey>,
    pub set_keys: ReplicaSetKeys,
    nodes: BTreeMap<usize, Node>,
    byzantine: usize,
    wall: Timestamp,
    requests: BTreeMap<Hash, Arc<VerifiedRequest>>,
    /// Every batch that came up, by number (from 0) and the model's name.
    pub batches: BTreeMap<(usize, Digest), Batch>,
    /// Every CHECKPOINT that a correct replica signed, by its number (from 1).
    pub checkpoints: BTreeMap<(usize, u64), Signed>,
}

impl Cluster {
    pub fn new(bounds: &Bounds) -> Self {
        let mut cluster = Self {
            keys: keys(),
            set_keys: ReplicaSetKeys::new(&replica_set()).unwrap(),
            nodes: BTreeMap::new(),
            byzantine: bounds.byzantine,
            wall: START.plus_ms(1_000_000),
            requests: BTreeMap::new(),
            batches: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
        };
        for number in 0..bounds.numbers {
            cluster.batches.insert((number, Digest::NULL), Batch::null());
        }
        for at in bounds.correct() {
            let replica = cluster.start(at, Restored::new(genesis(), START));
            let node = Node { replica, time: Duration::from_secs(1), wal: Vec::new(), executed: genesis() };
            cluster.nodes.insert(at, node);
            let _ = cluster.step(at, Input::Tick);
        }
        cluster
    }

    fn start(&self, at: usize, restored: Restored) -> Replica {
        let mut settings = Settings::new(NETWORK, replica_set(), self.keys[at].clone());
        settings.batch_delay = BATCH_DELAY;
        settings.pipeline_batches = 1_000;
        settings.request_timeout = REQUEST_TIMEOUT;
        settings.request_timeout_max = REQUEST_TIMEOUT;
        settings.request_age_max = NEVER;
        settings.request_expiry = NEVER;
        settings.request_memory = NEVER;
        Replica::new(settings, restored).unwrap()
    }

    pub fn node(&self, at: usize) -> &Node {
        &self.nodes[&at]
    }

    /// Number (from 1) of the last stable checkpoint.
    pub fn stable(&self, at: usize) -> usize {
        self.node(at).replica.status().stable.0 as usize
    }

    pub fn view(&self, at: usize) -> View {
        self.node(at).replica.status().view
    }

    /// One step, and what execution answers to it. Gives what was logged.
    pub fn step(&mut self, at: usize, input: Input) -> Vec<WalEntry> {
        self.wall = self.wall.plus_ms(1);
        let node = self.nodes.get_mut(&at).unwrap();
        let now = Now { wall: self.wall, monotonic: node.time };
        let Output { wal, effects, .. } = node.replica.step(now, input);
        node.wal.extend(wal.iter().cloned());
        let mut logged = wal;
        for effect in effects {
            match effect {
                Effect::Execute { sequence, batch, .. } => {
                    let content = executed(&node_executed(&self.nodes, at), sequence, &batch);
                    self.nodes.get_mut(&at).unwrap().executed = content;
                    logged.extend(self.step(at, Input::Executed(content)));
                }
                Effect::Skip(content) => self.nodes.get_mut(&at).unwrap().executed = content,
                _ => {}
            }
        }
        logged
    }

    /// Hears a message as from the network: its signature and what it proves are checked first.
    pub fn hear(&mut self, at: usize, message: &Signed) -> Vec<WalEntry> {
        let verified = self.verify(message).expect("a message that is right");
        self.step(at, Input::Message(verified))
    }

    pub fn verify(&self, message: &Signed) -> Option<Verified> {
        message.clone().verify(&self.set_keys, &NETWORK).ok()
    }

    /// Time for the primary to propose what it has.
    pub fn let_gather(&mut self, at: usize) -> Vec<WalEntry> {
        let mut logged = self.ask(at);
        logged.extend(self.pass(at, BATCH_DELAY));
        logged
    }

    /// Time to give the primary up.
    pub fn let_time_out(&mut self, at: usize) -> Vec<WalEntry> {
        let mut logged = self.ask(at);
        logged.extend(self.pass(at, REQUEST_TIMEOUT));
        logged
    }

    fn pass(&mut self, at: usize, time: Duration) -> Vec<WalEntry> {
        self.nodes.get_mut(&at).unwrap().time += time;
        self.step(at, Input::Tick)
    }

    /// A crash, and a start from what is on disk.
    pub fn restart(&mut self, at: usize) -> Vec<WalEntry> {
        let node = self.node(at);
        let entries = node.wal.iter().map(|entry| WalEntry::decode(&NETWORK, &entry.encode()).unwrap());
        let restored = Restored { entries: entries.collect(), ..Restored::new(node.executed, START) };
        let replica = self.start(at, restored);
        self.nodes.get_mut(&at).unwrap().replica = replica;
        self.step(at, Input::Tick)
    }

    /// A request that only the faulty node bundled, so that the walk decides who has it.
    pub fn new_request(&mut self) -> Hash {
        let number = self.requests.len() as u64 + 1;
        let action = AdminAction::RegisterClient {
            client: ClientId::new(format!("model/c{number}")).unwrap(),
            key: self.keys[0].public(),
            settings: ClientSettings::default(),
        };
        let operation = AdminOperation::sign(NETWORK, &self.keys[0], number, action);
        let request = Request::Admin { node: self.keys[self.byzantine].node_id(), operation };
        let request = Arc::new(VerifiedRequest::verify(&NETWORK, request).unwrap());
        let digest = request.digest();
        self.requests.insert(digest, request);
        digest
    }

    /// A new request waits at `at`.
    fn ask(&mut self, at: usize) -> Vec<WalEntry> {
        let digest = self.new_request();
        self.give(at, &[digest])
    }

    fn give(&mut self, at: usize, digests: &[Hash]) -> Vec<WalEntry> {
        let mut logged = Vec::new();
        for digest in digests {
            let request = Arc::clone(&self.requests[digest]);
            logged.extend(self.step(at, Input::Request { request, source: Source::Bundle }));
        }
        logged
    }

    /// Gives a replica a batch and its bodies, as if it had fetched them.
    pub fn supply(&mut self, at: usize, batch: &Batch) -> Vec<WalEntry> {
        let mut logged = self.give(at, &batch.requests);
        logged.extend(self.step(at, Input::Batch(batch.clone())));
        logged
    }

    /// The model's name of a batch.
    pub fn name(&self, number: usize, digest: Hash) -> Option<Digest> {
        let same = |((at, _), batch): &(&(usize, Digest), &Batch)| *at == number && batch.digest() == digest;
        self.batches.iter().find(same).map(|((_, name), _)| *name)
    }

    /// The `nth` batch of the faulty primary of `view` for a number (from 0). Timestamps ascend with
    /// views and numbers, and stay near the clock.
    pub fn lie(&mut self, view: usize, number: usize, nth: usize) -> Batch {
        let name = Digest::fresh(view, nth);
        if let Some(batch) = self.batches.get(&(number, name)) {
            return batch.clone();
        }
        let after = 999_000 + 4_000 * view as u64 + 100 * number as u64 + nth as u64;
        let batch = Batch {
            requests: vec![self.new_request()],
            timestamp: START.plus_ms(after),
            origin_view: View(view as u64),
            proposer: self.keys[self.byzantine].node_id(),
        };
        self.batches.insert((number, name), batch.clone());
        batch
    }

    /// Signs in the name of the faulty replica.
    pub fn sign(&self, content: Content) -> Signed {
        Verified::sign(&self.keys[self.byzantine], &NETWORK, content).signed().clone()
    }

    /// CHECKPOINTs for a number (from 1) that agree, if a quorum can have signed: those of correct
    /// replicas, and that of the faulty one.
    pub fn certifying(&self, number: u64) -> Option<Vec<(usize, Signed)>> {
        let signed = (0..REPLICAS).filter_map(|at| Some((at, self.checkpoints.get(&(at, number))?.clone())));
        let mut signed: Vec<(usize, Signed)> = signed.collect();
        let content = signed.first()?.1.content.clone();
        signed.push((self.byzantine, self.sign(content)));
        signed.sort_by_key(|(at, _)| *at);
        (signed.len() >= replica_set().quorum()).then_some(signed)
    }
}

fn node_executed(nodes: &BTreeMap<usize, Node>, at: usize) -> CheckpointContent {
    nodes[&at].executed
}

fn genesis() -> CheckpointContent {
    CheckpointContent { sequence: SeqNum(0), height: Height(0), block: Hash([0; 32]), state: Hash([0; 32]) }
}

/// What executing a batch gives: a block that its digest decides, or nothing new for the null batch.
fn executed(before: &CheckpointContent, sequence: SeqNum, batch: &Batch) -> CheckpointContent {
    if batch.requests.is_empty() {
        return CheckpointContent { sequence, ..*before };
    }
    let digest = batch.digest();
    CheckpointContent { sequence, height: Height(before.height.0 + 1), block: digest, state: digest }
}
