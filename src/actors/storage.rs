//! Storage: executes committed batches in order, keeps blocks and state, and says what is final.
//!
//! ```text
//! ExecuteBatch ─▶ State::execute ─▶ store.commit ─▶ BatchExecuted ─▶ Consensus (signs CHECKPOINT)
//! Certify      ─▶ store.put_certificate ─▶ Finals ─▶ Ingress (acks); waiting admins
//! ApplyBlocks  ─▶ the same, for blocks that other nodes certified while this one was behind
//! TakeUp       ─▶ messages of before a restart: what the ledger has of them
//! ```
//!
//! The actor is fail-stop: an error of the store, or a result that differs from what a quorum
//! certified, ends the node; until it has ended, the actor touches neither state nor store. What is
//! derived (the record index) is written by a task behind the certificates (`actors/upkeep.rs`), which
//! also makes the store durable at intervals and then cuts the log.

mod admin;
mod apply;
mod lookup;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use tokio::sync::oneshot;

use admin::admin_outcome;
pub use admin::{AdminOutcome, AwaitAdmin, Awaited};
pub use apply::{Applied, ApplyBlocks};
pub use lookup::{LookUpMessage, TakeUp};

use super::changed::ChangedClients;
use super::fatal::Vital;
use super::finals::Finals;
use super::tally::StorageTally;
use super::view::{LedgerView, RegisteredClient};
use super::{Fatal, Feeder, FinalMessage, FinalVerdict};
use crate::clock::SharedClock;
use crate::crypto::VerifyingKey;
use crate::ledger::request::{Asked, VerifiedRequest};
use crate::ledger::{self, AdminAction, Certificate, CheckpointContent, Executed, Outcome, State};
use crate::pbft::message::Batch;
use crate::store::LedgerStore;
use crate::types::{ClientId, Hash, Height, NodeId, SeqNum};

/// Messages in the mailbox: the watermark window of executions, as many certificates, and room for
/// questions of the API. Feeders wait when it is full.
const MAILBOX: usize = 1_024;

/// What PBFT wants done, in one order.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum StorageOrder {
    /// Execute a batch.
    Execute(ExecuteBatch),
    /// Keep a certificate.
    Certify(Certificate),
    /// The batches up to here changed nothing.
    Skip(CheckpointContent),
}

/// Executes a batch that PBFT committed; batches come in sequence order.
#[derive(Debug)]
pub struct ExecuteBatch {
    /// Its sequence number.
    pub sequence: SeqNum,
    /// The batch.
    pub batch: Batch,
    /// Its requests, in the batch's order.
    pub requests: Vec<Arc<VerifiedRequest>>,
}

/// A batch was executed with this result.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct BatchExecuted(pub CheckpointContent);

/// The fate of this node's own requests in one executed batch, until it is final.
#[derive(Debug, Default)]
struct Awaiting {
    messages: Vec<FinalMessage>,
    admins: Vec<(oneshot::Sender<AdminOutcome>, AdminOutcome)>,
}

/// Where the actor's results go.
#[derive(Clone)]
pub struct StorageOutlets {
    /// Executed batches, to Consensus.
    pub executed: Feeder<BatchExecuted>,
    /// Final messages, to Ingress.
    pub finals: Finals,
    /// Changed clients, to Ingress.
    pub clients: ChangedClients,
}

/// What the actor works with.
pub struct StorageParts {
    /// This node.
    pub node: NodeId,
    /// The store.
    pub store: Arc<dyn LedgerStore>,
    /// What readers see.
    pub view: Arc<LedgerView>,
    /// Where results go.
    pub outlets: StorageOutlets,
    /// Measures the store.
    pub clock: SharedClock,
    /// Counters.
    pub tally: StorageTally,
    /// Stops the node.
    pub fatal: Fatal,
}

/// The actor; see the module.
pub struct Storage {
    parts: StorageParts,
    state: State,
    awaiting: BTreeMap<SeqNum, Awaiting>,
    admins: HashMap<Hash, Vec<oneshot::Sender<AdminOutcome>>>,
    /// State and store are not to be used any more.
    failed: bool,
    _vital: Vital,
}

impl Storage {
    /// Storage that goes on from `state`, which the store holds.
    pub fn new(parts: StorageParts, state: State) -> Self {
        for (client, _) in state.clients() {
            publish_client(&parts.view, &state, client);
        }
        parts.view.put_policies(state.policies());
        for node in state.replicas().members() {
            if let Some(record) = state.history_digest(node) {
                parts.view.put_digest(*node, *record);
            }
        }
        let executed = state.checkpoint();
        let certified_height = parts.store.certified_height();
        parts.view.update_progress(|progress| {
            progress.executed = executed;
            progress.certified_height = certified_height;
        });
        parts.tally.certified(certified_height);
        let _vital = parts.fatal.vital("Storage");
        Self { parts, state, awaiting: BTreeMap::new(), admins: HashMap::new(), failed: false, _vital }
    }

    /// Stops the node; from here on the actor does nothing.
    fn fail(&mut self, reason: impl Into<anyhow::Error>, what: &'static str) {
        self.failed = true;
        self.parts.fatal.stop(reason.into().context(what));
    }

    fn execute(&mut self, sequence: SeqNum, batch: &Batch, requests: &[Arc<VerifiedRequest>]) {
        let executed = self.parts.tally.execute.of(|| self.state.execute(sequence, batch, requests));
        if !self.keep(&executed) {
            return;
        }
        let awaiting = self.own_outcomes(requests, &executed);
        let outcomes = executed.outcomes.iter().map(|(_, outcome)| outcome);
        self.note_changes(requests.iter().map(|request| request.asked()).zip(outcomes));
        self.parts.tally.executed(executed.outcomes.iter().map(|(_, outcome)| outcome));
        self.awaiting.insert(sequence, awaiting);
        self.parts.outlets.executed.put_now(BatchExecuted(executed.checkpoint));
    }

    /// Writes what was executed to the store and tells readers; false if the node has to stop.
    fn keep(&mut self, executed: &Executed) -> bool {
        let started = self.parts.clock.monotonic();
        let head = self.state.head();
        let commit = || self.parts.store.commit(head, executed.block.as_ref(), &executed.changes);
        if let Err(error) = self.parts.tally.store.of(commit) {
            self.fail(error, "writing a block");
            return false;
        }
        self.parts.tally.stored(executed.block.is_some(), self.since(started));
        self.parts.view.update_progress(|progress| progress.executed = executed.checkpoint);
        true
    }

    fn since(&self, started: Duration) -> Duration {
        self.parts.clock.monotonic().saturating_sub(started)
    }

    /// What this node has to tell about `requests` once they are final.
    fn own_outcomes(&mut self, requests: &[Arc<VerifiedRequest>], executed: &Executed) -> Awaiting {
        let mut awaiting = Awaiting::default();
        for (request, (digest, outcome)) in requests.iter().zip(&executed.outcomes) {
            if request.node() != self.parts.node {
                continue;
            }
            match request.asked() {
                Asked::Write(_, telemetry) => {
                    let verdict = self.verdict(outcome);
                    awaiting.messages.extend(verdict.map(|verdict| final_message(telemetry, verdict)));
                }
                Asked::Admin(_) => {
                    let waiting = self.admins.remove(digest).unwrap_or_default();
                    let outcome = admin_outcome(outcome);
                    awaiting.admins.extend(waiting.into_iter().zip(outcome.into_iter().cycle()));
                }
                // The history looks at the view.
                Asked::Digest(_) => {}
            }
        }
        awaiting
    }

    /// None if the block cannot be read, and the node stops.
    fn verdict(&mut self, outcome: &Outcome) -> Option<FinalVerdict> {
        match outcome {
            Outcome::Written { height, items, block, .. } => {
                Some(FinalVerdict::Written { items: items.clone(), height: *height, block: *block })
            }
            Outcome::AlreadyWritten { height, items } => self.written(items.clone(), *height),
            Outcome::Rejected(rejection) => Some(FinalVerdict::Rejected(*rejection)),
            Outcome::AdminExecuted { .. } | Outcome::DigestExecuted { .. } => None,
        }
    }

    fn written(&mut self, items: Vec<u32>, height: Height) -> Option<FinalVerdict> {
        match self.parts.store.header(height) {
            Ok(Some(header)) => Some(FinalVerdict::Written { items, height, block: header.hash() }),
            Ok(None) => {
                self.fail(anyhow::anyhow!("the ledger store lacks the header of block {height}"), "reading");
                None
            }
            Err(error) => {
                self.fail(error, "reading a header");
                None
            }
        }
    }

    /// Publishes the clients that admin operations changed, and the highest seqs that were written.
    /// What was refused changed nothing: it must not close the sessions of the client that it names.
    fn note_changes<'a>(&self, judged: impl Iterator<Item = (Asked<'a>, &'a Outcome)>) {
        for (asked, outcome) in judged {
            match asked {
                Asked::Write(_, telemetry) => {
                    if let Some(client) = self.parts.view.client(&telemetry.header.client) {
                        client.note_written(self.state.highest(&telemetry.header.client));
                    }
                }
                Asked::Admin(operation) if matches!(outcome, Outcome::AdminExecuted { .. }) => {
                    self.note_admin(&operation.action);
                }
                Asked::Digest(digest) => self.note_digest(&digest.node),
                Asked::Admin(_) => {}
            }
        }
    }

    pub(super) fn note_admin(&self, action: &AdminAction) {
        match action.client() {
            Some(client) => self.note_client(client),
            None => self.parts.view.put_policies(self.state.policies()),
        }
    }

    pub(super) fn note_digest(&self, node: &NodeId) {
        if let Some(record) = self.state.history_digest(node) {
            self.parts.view.put_digest(*node, *record);
        }
    }

    fn note_client(&self, client: &ClientId) {
        publish_client(&self.parts.view, &self.state, client);
        self.parts.outlets.clients.note(client.clone());
    }

    fn certify(&mut self, certificate: &Certificate) {
        let sequence = certificate.content.sequence;
        if let Err(error) = self.parts.tally.store.of(|| self.parts.store.put_certificate(certificate)) {
            return self.fail(error, "writing a certificate");
        }
        self.certified(sequence);
    }

    /// A quorum executed up to `sequence`, and the store has its word: what waited for that is final.
    fn certified(&mut self, sequence: SeqNum) {
        let certified_height = self.parts.store.certified_height();
        self.parts.tally.certified(certified_height);
        self.parts.view.update_progress(|progress| {
            progress.certified = progress.certified.max(sequence);
            progress.certified_height = certified_height;
        });
        let later = self.awaiting.split_off(&sequence.next());
        for awaiting in std::mem::replace(&mut self.awaiting, later).into_values() {
            for message in awaiting.messages {
                self.parts.outlets.finals.tell(message);
            }
            for (answer, outcome) in awaiting.admins {
                let _gave_up = answer.send(outcome);
            }
        }
    }

    /// Moves the head over batches that made no block; nothing else changed.
    fn skip(&mut self, content: &CheckpointContent) {
        if content.sequence <= self.state.head().sequence {
            return;
        }
        if let Err(error) = self.state.skip_to(content) {
            return self.fail(error, "moving over batches without effect");
        }
        let checkpoint = self.state.checkpoint();
        self.keep(&Executed { checkpoint, block: None, outcomes: Vec::new(), changes: Vec::new() });
    }
}

fn final_message(telemetry: &ledger::Telemetry, verdict: FinalVerdict) -> FinalMessage {
    let header = &telemetry.header;
    FinalMessage {
        client: header.client.clone(),
        stream: header.stream.clone(),
        seq: header.seq,
        header: telemetry.hash,
        items: header.count,
        verdict,
    }
}

/// Shows readers a client as it now stands on the ledger.
fn publish_client(view: &LedgerView, state: &State, client: &ClientId) {
    let Some(record) = state.client(client) else { return };
    match VerifyingKey::parse(&record.key) {
        Ok(key) => view.put_client(
            client.clone(),
            RegisteredClient::new(
                key,
                record.settings,
                record.registered,
                record.revoked,
                state.highest(client),
            ),
        ),
        Err(error) => {
            tracing::error!(%client, %error, "registered key does not parse; the client cannot send")
        }
    }
}

impl Actor for Storage {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<StorageOrder> for Storage {
    type Result = ();

    fn handle(&mut self, order: StorageOrder, _: &mut Self::Context) {
        if self.failed {
            return;
        }
        match order {
            // A batch that blocks from other nodes brought already is not executed twice.
            StorageOrder::Execute(ExecuteBatch { sequence, batch, requests }) => {
                if sequence > self.state.head().sequence {
                    self.execute(sequence, &batch, &requests);
                }
            }
            StorageOrder::Certify(certificate) => self.certify(&certificate),
            StorageOrder::Skip(content) => self.skip(&content),
        }
    }
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
