//! Storage: executes committed batches in order, keeps blocks and state, and says what is final.
//!
//! ```text
//! ExecuteBatch ─▶ State::execute ─▶ store.commit ─▶ BatchExecuted ─▶ Consensus (signs CHECKPOINT)
//! Certify      ─▶ store.put_certificate ─▶ FinalMessage ─▶ Ingress (acks); waiting admins
//! ApplyBlocks  ─▶ the same, for blocks that other nodes certified while this one was behind
//! ```
//!
//! The actor is fail-stop: an error of the store ends the node, and the log restores it. What is
//! derived (the record index) is written by a task behind execution (`actors/upkeep.rs`), which
//! also makes the store durable at intervals and then cuts the log.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use actix::{Actor, Context, Handler, Message};
use tokio::sync::oneshot;

use super::view::{LedgerView, RegisteredClient};
use super::{ClientChanged, Fatal, Feeder, FinalMessage, FinalVerdict};
use crate::crypto::VerifyingKey;
use crate::ledger::operation::Operation;
use crate::ledger::request::{Asked, VerifiedRequest};
use crate::ledger::{
    Block, Certificate, CertifiedBlock, CheckpointContent, Executed, Outcome, Rejection, State,
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
#[rtype(result = "Result<CheckpointContent, ApplyError>")]
pub struct ApplyBlocks(pub Vec<CertifiedBlock>);

/// Why fetched blocks were not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Not the next block, not certified, or not what its certificate says.
    #[error("block {height} does not follow from this ledger: {reason}")]
    BadBlock {
        /// Its height.
        height: Height,
        /// What is wrong with it.
        reason: String,
    },
    /// The store failed; the node is stopping.
    #[error("the store failed")]
    Store,
}

/// Asks what the ledger has of a message.
#[derive(Debug, Message)]
#[rtype(result = "FinalVerdict")]
pub struct LookUpMessage {
    /// Its client.
    pub client: ClientId,
    /// Its seq.
    pub seq: MessageSeq,
}

/// Announces that an admin's operation is about to be ordered; `answer` gets its fate when it is final.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub struct AwaitAdmin {
    /// The digest of the request.
    pub digest: Hash,
    /// Takes the outcome.
    pub answer: oneshot::Sender<AdminOutcome>,
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
#[derive(Debug, Clone)]
pub struct StorageOutlets {
    /// Executed batches, to Consensus.
    pub executed: Feeder<BatchExecuted>,
    /// Final messages, to Ingress.
    pub finals: Feeder<FinalMessage>,
    /// Changed clients, to Ingress.
    pub clients: Feeder<ClientChanged>,
}

/// The actor; see the module.
pub struct Storage {
    node: NodeId,
    state: State,
    store: Arc<dyn LedgerStore>,
    view: Arc<LedgerView>,
    outlets: StorageOutlets,
    awaiting: BTreeMap<SeqNum, Awaiting>,
    admins: HashMap<Hash, oneshot::Sender<AdminOutcome>>,
    fatal: Fatal,
}

impl Storage {
    /// Storage of node `node`, going on from `state`, which the store holds.
    pub fn new(
        node: NodeId,
        state: State,
        store: Arc<dyn LedgerStore>,
        view: Arc<LedgerView>,
        outlets: StorageOutlets,
        fatal: Fatal,
    ) -> Self {
        for (client, _) in state.clients() {
            publish_client(&view, &state, client);
        }
        let executed = state.checkpoint();
        view.update_progress(|progress| {
            progress.executed = executed;
            progress.certified_height = store.certified_height();
        });
        Self { node, state, store, view, outlets, awaiting: BTreeMap::new(), admins: HashMap::new(), fatal }
    }

    fn execute(&mut self, sequence: SeqNum, batch: &Batch, requests: &[Arc<VerifiedRequest>]) {
        let executed = self.state.execute(sequence, batch, requests);
        let awaiting = self.own_outcomes(requests, &executed);
        if !self.keep(&executed) {
            return;
        }
        self.note_changes(requests.iter().map(|request| request.asked()));
        self.awaiting.insert(sequence, awaiting);
        self.outlets.executed.put_now(BatchExecuted(executed.checkpoint));
    }

    /// Writes what was executed to the store and tells readers; false if the node has to stop.
    fn keep(&mut self, executed: &Executed) -> bool {
        let head = self.state.head();
        if let Err(error) = self.store.commit(head, executed.block.as_ref(), &executed.changes) {
            self.fatal.stop(anyhow::Error::new(error).context("writing a block"));
            return false;
        }
        self.view.update_progress(|progress| progress.executed = executed.checkpoint);
        true
    }

    /// What this node has to tell about `requests` once they are final.
    fn own_outcomes(&mut self, requests: &[Arc<VerifiedRequest>], executed: &Executed) -> Awaiting {
        let mut awaiting = Awaiting::default();
        for (request, (digest, outcome)) in requests.iter().zip(&executed.outcomes) {
            if request.node() != self.node {
                continue;
            }
            match request.asked() {
                Asked::Write(_, telemetry) => awaiting.messages.push(FinalMessage {
                    client: telemetry.header.client.clone(),
                    stream: telemetry.header.stream.clone(),
                    seq: telemetry.header.seq,
                    header: telemetry.hash,
                    items: telemetry.header.count,
                    verdict: self.verdict(outcome),
                }),
                Asked::Admin(_) => {
                    let waiting = self.admins.remove(digest).zip(admin_outcome(outcome));
                    awaiting.admins.extend(waiting);
                }
            }
        }
        awaiting
    }

    fn verdict(&self, outcome: &Outcome) -> FinalVerdict {
        match outcome {
            Outcome::Written { height, items, block, .. } => {
                FinalVerdict::Written { items: items.clone(), height: *height, block: *block }
            }
            Outcome::AlreadyWritten { height, items } => self.written(items.clone(), *height),
            Outcome::Rejected(rejection) => FinalVerdict::Rejected(*rejection),
            Outcome::AdminExecuted { .. } => FinalVerdict::NotWritten,
        }
    }

    fn written(&self, items: Vec<u32>, height: Height) -> FinalVerdict {
        match self.store.header(height) {
            Ok(Some(header)) => FinalVerdict::Written { items, height, block: header.hash() },
            Ok(None) => FinalVerdict::NotWritten,
            Err(error) => {
                self.fatal.stop(anyhow::Error::new(error).context("reading a header"));
                FinalVerdict::NotWritten
            }
        }
    }

    /// Publishes the clients that admin operations changed, and the highest seqs that were written.
    fn note_changes<'a>(&self, asked: impl Iterator<Item = Asked<'a>>) {
        for asked in asked {
            match asked {
                Asked::Write(_, telemetry) => {
                    if let Some(client) = self.view.client(&telemetry.header.client) {
                        client.note_written(telemetry.header.seq);
                    }
                }
                Asked::Admin(operation) => self.note_client(operation.action.client()),
            }
        }
    }

    fn note_client(&self, client: &ClientId) {
        publish_client(&self.view, &self.state, client);
        self.outlets.clients.put_now(ClientChanged(client.clone()));
    }

    /// What blocks from other nodes tell this node's clients and readers.
    fn note_applied(&mut self, block: &Block) {
        let header = &block.header;
        let hash = header.hash();
        let mut awaiting = Awaiting::default();
        for operation in &block.operations {
            match operation {
                Operation::Admin(operation) => self.note_client(operation.action.client()),
                Operation::Write { request, written } => {
                    let Ok(telemetry) = crate::device::Header::decode(&request.header) else { continue };
                    if let Some(client) = self.view.client(&telemetry.client) {
                        client.note_written(telemetry.seq);
                    }
                    if request.node == self.node {
                        awaiting.messages.push(FinalMessage {
                            header: crate::device::Header::hash_of(&request.header),
                            items: telemetry.count,
                            client: telemetry.client,
                            stream: telemetry.stream,
                            seq: telemetry.seq,
                            verdict: FinalVerdict::Written {
                                items: written.clone(),
                                height: header.height,
                                block: hash,
                            },
                        });
                    }
                }
            }
        }
        self.awaiting.insert(header.sequence, awaiting);
    }

    fn certify(&mut self, certificate: &Certificate) {
        let sequence = certificate.content.sequence;
        if let Err(error) = self.store.put_certificate(certificate) {
            self.fatal.stop(anyhow::Error::new(error).context("writing a certificate"));
            return;
        }
        let later = self.awaiting.split_off(&sequence.next());
        for awaiting in std::mem::replace(&mut self.awaiting, later).into_values() {
            for message in awaiting.messages {
                self.outlets.finals.put_now(message);
            }
            for (answer, outcome) in awaiting.admins {
                let _gave_up = answer.send(outcome);
            }
        }
        let certified_height = self.store.certified_height();
        self.view.update_progress(|progress| {
            progress.certified = progress.certified.max(sequence);
            progress.certified_height = certified_height;
        });
    }

    /// Moves the head over batches that made no block; nothing else changed.
    fn skip(&mut self, content: &CheckpointContent) {
        if content.sequence <= self.state.head().sequence {
            return;
        }
        if let Err(error) = self.state.skip_to(content) {
            return self.fatal.stop(error);
        }
        let checkpoint = self.state.checkpoint();
        self.keep(&Executed { checkpoint, block: None, outcomes: Vec::new(), changes: Vec::new() });
    }

    fn apply(&mut self, blocks: &[CertifiedBlock]) -> Result<CheckpointContent, ApplyError> {
        for certified in blocks {
            let (block, certificate) = (certified.block(), certified.certificate());
            let height = block.header.height;
            if height <= self.state.head().height {
                continue;
            }
            let executed = self
                .state
                .apply(certified)
                .map_err(|error| ApplyError::BadBlock { height, reason: error.to_string() })?;
            if !self.keep(&executed) {
                return Err(ApplyError::Store);
            }
            self.note_applied(block);
            self.certify(certificate);
        }
        Ok(self.state.checkpoint())
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
    type Result = Result<CheckpointContent, ApplyError>;

    fn handle(&mut self, ApplyBlocks(blocks): ApplyBlocks, _: &mut Self::Context) -> Self::Result {
        self.apply(&blocks)
    }
}

impl Handler<LookUpMessage> for Storage {
    type Result = actix::MessageResult<LookUpMessage>;

    fn handle(&mut self, message: LookUpMessage, _: &mut Self::Context) -> Self::Result {
        let entry = self.state.written(&message.client, message.seq);
        actix::MessageResult(match entry {
            Some(entry) => self.written(entry.written.iter().collect(), entry.height),
            None => FinalVerdict::NotWritten,
        })
    }
}

impl Handler<AwaitAdmin> for Storage {
    type Result = bool;

    fn handle(&mut self, message: AwaitAdmin, _: &mut Self::Context) -> bool {
        self.admins.retain(|_, answer| !answer.is_closed());
        let room = self.admins.len() < MAX_WAITING_ADMINS;
        if room {
            self.admins.insert(message.digest, message.answer);
        }
        room
    }
}
