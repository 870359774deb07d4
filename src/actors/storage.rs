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
//! derived (the record index) is written by a task behind execution (`actors/upkeep.rs`), which
//! also makes the store durable at intervals and then cuts the log.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use tokio::sync::oneshot;

use super::changed::ChangedClients;
use super::consensus::BlocksSynced;
use super::fatal::Vital;
use super::finals::Finals;
use super::tally::StorageTally;
use super::view::{LedgerView, RegisteredClient};
use super::{Fatal, Feeder, FinalMessage, FinalVerdict};
use crate::clock::SharedClock;
use crate::crypto::HashKind;
use crate::crypto::VerifyingKey;
use crate::ledger::operation::Operation;
use crate::ledger::request::{Asked, VerifiedRequest};
use crate::ledger::{
    self, AdminAction, AdminOperation, Block, BlockError, Certificate, CertifiedBlock, CheckpointContent, Executed,
    Outcome, Rejection, Request, State, WindowEntry, WriteRequest,
};
use crate::pbft::message::Batch;
use crate::store::LedgerStore;
use crate::types::{ClientId, Hash, Height, MessageSeq, NodeId, SeqNum};

/// Messages in the mailbox: the watermark window of executions, as many certificates, and room for
/// questions of the API. Feeders wait when it is full.
const MAILBOX: usize = 1_024;

/// Admin operations that wait to be final; the next one is told to come back later.
const MAX_WAITING_ADMINS: usize = 256;

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

/// Applies blocks that others certified, in order from the next height.
#[derive(Debug, Message)]
#[rtype(result = "Applied")]
pub struct ApplyBlocks(pub Vec<CertifiedBlock>);

/// What became of fetched blocks. Those before a bad one count: a batch that waits for execution
/// may be among them and is not executed any more, so Consensus must hear of them in any case.
#[derive(Debug, Default, actix::MessageResponse)]
pub struct Applied {
    /// Of the last block that the ledger has now; none if none was applied.
    pub synced: Option<BlocksSynced>,
    /// Why the rest was not applied.
    pub error: Option<BlockError>,
}

/// Asks what the ledger has of a message that was final before the last restart; nothing while
/// that is not final.
#[derive(Debug, Message)]
#[rtype(result = "Option<FinalVerdict>")]
pub struct LookUpMessage {
    /// Its client.
    pub client: ClientId,
    /// Its seq.
    pub seq: MessageSeq,
    /// BLAKE3 of its header.
    pub header: Hash,
}

/// A message of before a restart, with whatever verdict: if the ledger knows its fate, its client
/// is told as soon as that is final, and the answer is true. Its request must not be the only way
/// to learn it: what was executed before the restart is not executed again.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub struct TakeUp(pub FinalMessage);

/// Announces that an admin's operation is about to be ordered; `answer` gets its fate when it is final.
#[derive(Debug, Message)]
#[rtype(result = "Awaited")]
pub struct AwaitAdmin {
    /// The operation.
    pub operation: AdminOperation,
    /// Takes the outcome.
    pub answer: oneshot::Sender<AdminOutcome>,
}

/// What becomes of an [`AwaitAdmin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, actix::MessageResponse)]
pub enum Awaited {
    /// The answer comes when the operation is final: submit it.
    Waiting,
    /// The ledger would refuse it now: its signer is no admin, or it has this or a later operation
    /// of that admin already.
    Refused(Rejection),
    /// Too many wait.
    TooMany,
}

/// What became of an admin's operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminOutcome {
    /// Executed, in the block of that height.
    Executed {
        /// The block.
        height: Height,
        /// The operation's index in it.
        operation: u32,
    },
    /// Refused by the ledger.
    Rejected(Rejection),
}

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
        let executed = self.state.execute(sequence, batch, requests);
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
        if let Err(error) = self.parts.store.commit(head, executed.block.as_ref(), &executed.changes) {
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
            Outcome::AdminExecuted { .. } => None,
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
                Asked::Admin(_) => {}
            }
        }
    }

    fn note_admin(&self, action: &AdminAction) {
        match action.client() {
            Some(client) => self.note_client(client),
            None => self.parts.view.put_policies(self.state.policies()),
        }
    }

    fn note_client(&self, client: &ClientId) {
        publish_client(&self.parts.view, &self.state, client);
        self.parts.outlets.clients.note(client.clone());
    }

    /// What blocks from other nodes tell this node's clients, admins and readers.
    fn note_applied(&mut self, block: &Block, executed: &Executed) {
        let mut awaiting = Awaiting::default();
        let mut written = executed.outcomes.iter().map(|(_, outcome)| outcome);
        for (operation, index) in block.operations.iter().zip(0_u32..) {
            match operation {
                Operation::Admin(operation) => {
                    self.note_admin(&operation.action);
                    let digest = self.digest_of(operation);
                    let outcome = AdminOutcome::Executed { height: block.header.height, operation: index };
                    let waiting = self.admins.remove(&digest).unwrap_or_default();
                    awaiting.admins.extend(waiting.into_iter().map(|answer| (answer, outcome.clone())));
                }
                Operation::Write { request, .. } => {
                    awaiting.messages.extend(self.note_written(request, written.next()));
                }
            }
        }
        self.awaiting.insert(block.header.sequence, awaiting);
    }

    /// What a write of a fetched block means for this node's client, if it is one of its messages
    /// that are not final.
    fn note_written(&mut self, request: &WriteRequest, outcome: Option<&Outcome>) -> Option<FinalMessage> {
        let header = telemetry_of(request)?;
        if let Some(client) = self.parts.view.client(&header.header.client) {
            client.note_written(header.header.seq);
        }
        if request.node != self.parts.node {
            return None;
        }
        let verdict = self.verdict(outcome?)?;
        Some(final_message(&header, verdict)).filter(|message| self.parts.outlets.finals.is_pending(message))
    }

    /// The digest of this node's request to execute an operation.
    fn digest_of(&self, operation: &AdminOperation) -> Hash {
        let request = Request::Admin { node: self.parts.node, operation: operation.clone() };
        HashKind::Request.hash(&crate::codec::encode(&request))
    }

    fn certify(&mut self, certificate: &Certificate) {
        let sequence = certificate.content.sequence;
        if let Err(error) = self.parts.store.put_certificate(certificate) {
            return self.fail(error, "writing a certificate");
        }
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

    fn apply(&mut self, blocks: &[CertifiedBlock]) -> Applied {
        let mut applied = Applied::default();
        for certified in blocks {
            let (block, certificate) = (certified.block(), certified.certificate());
            if block.header.height <= self.state.head().height {
                continue;
            }
            let executed = match self.state.apply(certified) {
                Ok(executed) => executed,
                // The state is as it was: somebody sent the wrong block.
                Err(ledger::ApplyError::Block(error)) => {
                    applied.error = Some(error);
                    break;
                }
                // The state is not to be used any more.
                Err(error @ ledger::ApplyError::Diverged { .. }) => {
                    self.fail(error, "applying fetched blocks");
                    break;
                }
            };
            if !self.keep(&executed) {
                break;
            }
            self.note_applied(block, &executed);
            self.certify(certificate);
            let timestamp = block.header.timestamp;
            applied.synced = Some(BlocksSynced { certificate: certificate.clone(), timestamp });
        }
        if self.failed { Applied::default() } else { applied }
    }

    /// What the ledger has of a message of this node, and the height that it rests on.
    fn fate(&mut self, message: &FinalMessage) -> Option<(FinalVerdict, Height)> {
        let entry = self.state.written(&message.client, message.seq)?;
        let WindowEntry { header, written, height } = entry.clone();
        if header != message.header {
            return Some((FinalVerdict::Rejected(Rejection::SeqReused), height));
        }
        self.written(written.iter().collect(), height).map(|verdict| (verdict, height))
    }

    /// See [`TakeUp`].
    fn take_up(&mut self, mut message: FinalMessage) -> bool {
        let Some((verdict, height)) = self.fate(&message) else { return false };
        if let FinalVerdict::Written { items, .. } = &verdict
            && items.len() < message.items as usize
        {
            // Another node wrote a part of it; whether that is all that the policy picks here is
            // for execution to find out.
            return false;
        }
        message.verdict = verdict;
        if height <= self.parts.store.certified_height() {
            self.parts.outlets.finals.tell(message);
            return true;
        }
        // Final with the next certificate at or above its block.
        let header = self.parts.store.header(height).ok().flatten();
        let sequence = header.map_or(self.state.head().sequence, |header| header.sequence);
        self.awaiting.entry(sequence).or_default().messages.push(message);
        true
    }

    /// See [`LookUpMessage`].
    fn look_up(&mut self, asked: LookUpMessage) -> Option<FinalVerdict> {
        let LookUpMessage { client, seq, header } = asked;
        let record = self.state.client(&client).copied();
        if let Some(last_seq) = record.and_then(|record| record.revoked).filter(|last| seq > *last) {
            return Some(FinalVerdict::Rejected(Rejection::Revoked { last_seq }));
        }
        let entry = self.state.written(&client, seq).cloned();
        let Some(WindowEntry { header: written_header, written, height }) = entry else {
            // Below the window the ledger does not tell any more whether it wrote or refused it.
            let highest = self.state.highest(&client);
            if seq.0.saturating_add(ledger::SEQ_WINDOW) < highest.0 {
                return Some(FinalVerdict::Rejected(Rejection::SeqTooOld { highest }));
            }
            return Some(FinalVerdict::NotWritten);
        };
        if written_header != header {
            return Some(FinalVerdict::Rejected(Rejection::SeqReused));
        }
        if height > self.parts.store.certified_height() {
            return None;
        }
        self.written(written.iter().collect(), height)
    }

    fn await_admin(&mut self, AwaitAdmin { operation, answer }: AwaitAdmin) -> Awaited {
        // Signed by somebody is not signed by an admin: what anybody could send in any number is not
        // even ordered.
        let Some(last) = self.state.admin_sequence(&operation.admin) else {
            return Awaited::Refused(Rejection::NotAnAdmin);
        };
        if operation.sequence <= last {
            return Awaited::Refused(Rejection::StaleAdminSequence { last });
        }
        self.admins.retain(|_, answers| {
            answers.retain(|answer| !answer.is_closed());
            !answers.is_empty()
        });
        if self.admins.values().map(Vec::len).sum::<usize>() >= MAX_WAITING_ADMINS {
            return Awaited::TooMany;
        }
        let digest = self.digest_of(&operation);
        self.admins.entry(digest).or_default().push(answer);
        Awaited::Waiting
    }
}

/// The telemetry header of a write that is in a block.
fn telemetry_of(write: &WriteRequest) -> Option<ledger::Telemetry> {
    let header = crate::device::Header::decode(&write.header).ok()?;
    Some(ledger::Telemetry { header, hash: crate::device::Header::hash_of(&write.header) })
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

fn admin_outcome(outcome: &Outcome) -> Option<AdminOutcome> {
    match outcome {
        Outcome::AdminExecuted { height, operation } => {
            Some(AdminOutcome::Executed { height: *height, operation: *operation })
        }
        Outcome::Rejected(rejection) => Some(AdminOutcome::Rejected(*rejection)),
        Outcome::Written { .. } | Outcome::AlreadyWritten { .. } => None,
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

impl Handler<ApplyBlocks> for Storage {
    type Result = Applied;

    fn handle(&mut self, ApplyBlocks(blocks): ApplyBlocks, _: &mut Self::Context) -> Applied {
        if self.failed { Applied::default() } else { self.apply(&blocks) }
    }
}

impl Handler<LookUpMessage> for Storage {
    type Result = actix::MessageResult<LookUpMessage>;

    fn handle(&mut self, message: LookUpMessage, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.look_up(message))
    }
}

impl Handler<TakeUp> for Storage {
    type Result = bool;

    fn handle(&mut self, TakeUp(message): TakeUp, _: &mut Self::Context) -> bool {
        self.take_up(message)
    }
}

impl Handler<AwaitAdmin> for Storage {
    type Result = Awaited;

    fn handle(&mut self, message: AwaitAdmin, _: &mut Self::Context) -> Awaited {
        self.await_admin(message)
    }
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
