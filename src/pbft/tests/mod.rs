//! Tests of the core, one rule at a time. `tests/sim` runs whole clusters.

#![allow(clippy::unwrap_used)]

mod anything;
mod bytes;
mod catching_up;
mod evidence;
mod forwarded;
mod gate;
mod insight;
mod new_view;
mod proposals;
mod recovery;
mod requests;
mod restart;
mod silence;
mod view_change;
mod votes;
mod witness;

use std::sync::Arc;
use std::time::Duration;

use crate::crypto::SecretKey;
use crate::ledger::{
    AdminAction, AdminOperation, CheckpointContent, ClientSettings, ReplicaSet, Request, VerifiedRequest,
};
use crate::pbft::message::{Batch, Commit, Content, PrePrepare, Prepare, Verified};
use crate::pbft::{
    Effect, Evidence, Input, Now, Output, Rejected, Replica, Restored, Settings, Source, WalEntry,
};
use crate::types::{ClientId, Hash, Height, NetworkId, SeqNum, Timestamp, View};

const NETWORK: NetworkId = NetworkId([7; 32]);
const START: Timestamp = Timestamp(1_767_225_600_000);
const PRIMARY: usize = 0;

/// One replica under test, and the keys of all.
struct Bench {
    keys: Vec<SecretKey>,
    replica: Replica,
    now: Now,
    /// Everything that it has put into its log.
    wal: Vec<WalEntry>,
}

fn keys(n: u8) -> Vec<SecretKey> {
    let mut keys: Vec<_> = (1..=n).map(|at| SecretKey::from_seed(&[at; 32])).collect();
    keys.sort_by_key(SecretKey::node_id);
    keys
}

fn settings(keys: &[SecretKey], at: usize) -> Settings {
    let replicas = ReplicaSet::new(keys.iter().map(SecretKey::node_id).collect()).unwrap();
    let mut settings = Settings::new(NETWORK, replicas, keys[at].clone());
    // Only the tests about it let a primary be given up.
    settings.request_timeout = Duration::from_secs(3600);
    settings.request_timeout_max = Duration::from_secs(3600);
    settings
}

fn genesis() -> CheckpointContent {
    result(0, 0)
}

/// The result of executing up to `sequence`, at `height`.
fn result(sequence: u64, height: u64) -> CheckpointContent {
    let fill = u8::try_from(height % 251).unwrap();
    CheckpointContent {
        sequence: SeqNum(sequence),
        height: Height(height),
        block: Hash([fill; 32]),
        state: Hash([fill; 32]),
    }
}

/// The request number `number` that node `node` admitted.
fn request_of(keys: &[SecretKey], node: usize, number: u64) -> Arc<VerifiedRequest> {
    let action = AdminAction::RegisterClient {
        client: ClientId::new(format!("n{node}/c{number}")).unwrap(),
        key: keys[node].public(),
        settings: ClientSettings::default(),
    };
    let operation = AdminOperation::sign(NETWORK, &keys[0], number, action);
    let request = Request::Admin { node: keys[node].node_id(), operation };
    Arc::new(VerifiedRequest::verify(&NETWORK, request).unwrap())
}

impl Bench {
    /// Replica `at` of `n`.
    fn new(n: u8, at: usize) -> Self {
        Self::with(n, at, |_| {})
    }

    fn with(n: u8, at: usize, change: impl FnOnce(&mut Settings)) -> Self {
        let keys = keys(n);
        let mut settings = settings(&keys, at);
        // As many at a time as a test likes.
        settings.pipeline_batches = 4;
        settings.bundle_delay = Duration::from_millis(2);
        change(&mut settings);
        let replica = Replica::new(settings, Restored::new(genesis(), START)).unwrap();
        let now = Now { wall: START.plus_ms(1_000), monotonic: Duration::from_secs(1) };
        let mut bench = Self { keys, replica, now, wal: Vec::new() };
        assert!(bench.step(Input::Tick).is_empty(), "nothing to do at the start");
        bench
    }

    fn step(&mut self, input: Input) -> Output {
        let output = self.replica.step(self.now, input);
        self.wal.extend(output.wal.iter().cloned());
        output
    }

    /// Time passes, with a tick at each deadline on the way. Gives all effects.
    fn wait(&mut self, time: Duration) -> Vec<Effect> {
        let end = self.now.monotonic + time;
        let mut effects = Vec::new();
        for _ in 0..100_000 {
            let due = self.replica.next_deadline().filter(|due| *due <= end);
            let at = due.unwrap_or(end).max(self.now.monotonic);
            let passed = u64::try_from((at - self.now.monotonic).as_millis()).unwrap();
            self.now = Now { wall: self.now.wall.plus_ms(passed), monotonic: at };
            effects.extend(self.step(Input::Tick).effects);
            if due.is_none() {
                return effects;
            }
        }
        panic!("the deadline never moves on");
    }

    fn hear(&mut self, from: usize, content: Content) -> Output {
        let message = Verified::sign(&self.keys[from], &NETWORK, content);
        self.step(Input::Message(message))
    }

    fn request(&self, node: usize, number: u64) -> Arc<VerifiedRequest> {
        request_of(&self.keys, node, number)
    }

    /// A request that the node under test admits, or that comes in another's bundle.
    fn ask(&mut self, node: usize, number: u64) -> Output {
        let request = self.request(node, number);
        let source = self.source_of(node);
        self.step(Input::Request { request, source })
    }

    /// The batch of these requests, `after_ms` milliseconds after the start.
    fn batch(&self, requests: &[Arc<VerifiedRequest>], after_ms: u64) -> Batch {
        Batch {
            requests: requests.iter().map(|request| request.digest()).collect(),
            timestamp: START.plus_ms(after_ms),
            origin_view: View(0),
            proposer: self.keys[PRIMARY].node_id(),
        }
    }

    fn propose(&mut self, sequence: u64, batch: &Batch) -> Output {
        self.hear(PRIMARY, pre_prepare(sequence, batch))
    }

    /// Everything that makes the batch of one request of node 1 commit at a backup of four.
    fn commit_batch(&mut self, sequence: u64) -> Output {
        let request = self.request(1, sequence);
        let source = self.source_of(1);
        let _ = self.step(Input::Request { request: Arc::clone(&request), source });
        let batch = self.batch(&[request], sequence);
        let digest = batch.digest();
        let _ = self.propose(sequence, &batch);
        let _ = self.hear(2, prepare(sequence, digest));
        let _ = self.hear(3, prepare(sequence, digest));
        let _ = self.hear(PRIMARY, commit(sequence, digest));
        let _ = self.hear(2, commit(sequence, digest));
        self.hear(3, commit(sequence, digest))
    }

    fn source_of(&self, node: usize) -> Source {
        if self.keys[node].node_id() == self.replica.me { Source::Admitted } else { Source::Bundle }
    }
}

fn pre_prepare(sequence: u64, batch: &Batch) -> Content {
    Content::PrePrepare(PrePrepare { view: View(0), sequence: SeqNum(sequence), batch: batch.clone() })
}

fn prepare(sequence: u64, digest: Hash) -> Content {
    Content::Prepare(Prepare { view: View(0), sequence: SeqNum(sequence), digest })
}

fn commit(sequence: u64, digest: Hash) -> Content {
    Content::Commit(Commit { view: View(0), sequence: SeqNum(sequence), digest })
}

/// The evidence in effects.
fn evidence(effects: &[Effect]) -> Vec<Evidence> {
    let evidence = |effect: &Effect| match effect {
        Effect::Evidence(evidence) => Some((**evidence).clone()),
        _ => None,
    };
    effects.iter().filter_map(evidence).collect()
}

/// The contents of the messages that are sent.
fn sent(effects: &[Effect]) -> Vec<Content> {
    let content = |effect: &Effect| match effect {
        Effect::Broadcast(envelope) => Some(envelope.signed.content.clone()),
        _ => None,
    };
    effects.iter().filter_map(content).collect()
}

/// The same, of this sender only.
fn sent_by(sender: &SecretKey, effects: &[Effect]) -> Vec<Content> {
    let own = |effect: &&Effect| matches!(effect, Effect::Broadcast(envelope) if envelope.signed.sender == sender.node_id());
    sent(&effects.iter().filter(own).cloned().collect::<Vec<_>>())
}

fn executions(effects: &[Effect]) -> Vec<u64> {
    let sequence = |effect: &Effect| match effect {
        Effect::Execute { sequence, .. } => Some(sequence.0),
        _ => None,
    };
    effects.iter().filter_map(sequence).collect()
}

fn rejected(output: &Output) -> Rejected {
    output.rejected.unwrap()
}
