//! Execution: how a batch is judged and becomes a block.
//!
//! Requests are judged one after another against the state that those before them left. What is
//! executed becomes an operation of the block; what is rejected, or was on the ledger already, is
//! consumed and leaves no trace. A batch that leaves nothing makes no block. All of it depends on
//! state, batch and requests alone, so every replica comes to the same block and digest.
//!
//! A write: the first header for (client, seq) wins, and those of its items that are not yet
//! written are written. So whoever strips items from a message cannot keep them out.

use std::sync::Arc;

use crate::codec;
use crate::crypto::HashKind;
use crate::device;
use crate::ledger::block::{Block, CertifiedBlock, HEADER_VERSION, Header, MAX_BLOCK_BYTES};
use crate::ledger::certificate::CheckpointContent;
use crate::ledger::change::{Head, StateChange};
use crate::ledger::digest::HistoryDigest;
use crate::ledger::entry::{ClientRecord, DigestRecord, Entry, WindowEntry};
use crate::ledger::index_set::IndexSet;
use crate::ledger::operation::{AdminAction, AdminOperation, Operation, WriteRequest};
use crate::ledger::outcome::{ApplyError, Executed, Outcome, Rejection};
use crate::ledger::request::{Asked, Telemetry, VerifiedRequest};
use crate::ledger::state::{Client, SEQ_WINDOW, State};
use crate::merkle::{MAX_LEAVES, Tree};
use crate::pbft::message::Batch;
use crate::planted::{Bug, planted};
use crate::policy::PolicySet;
use crate::types::{ClientId, Hash, Height, MessageSeq, NodeId, SeqNum, Timestamp, View};

/// The part of a batch that goes into the header.
#[derive(Debug, Clone, Copy)]
struct Origin {
    sequence: SeqNum,
    timestamp: Timestamp,
    view: View,
    proposer: NodeId,
}

impl State {
    /// Executes a batch. `requests` are those that the batch names, in its order.
    ///
    /// # Panics
    /// If `sequence` was executed before or `requests` are not the batch's: PBFT never does that,
    /// and a replica that went on would diverge.
    pub fn execute(
        &mut self,
        sequence: SeqNum,
        batch: &Batch,
        requests: &[Arc<VerifiedRequest>],
    ) -> Executed {
        assert!(sequence > self.head.sequence, "sequence {sequence} was executed before");
        let digests = requests.iter().map(|request| request.digest());
        assert!(digests.eq(batch.requests.iter().copied()), "the requests are not those of the batch");

        let mut execution = Execution::new(self);
        let mut verdicts = Vec::with_capacity(requests.len());
        for request in requests {
            let verdict = execution.judge(request.asked(), request.bytes());
            verdicts.push((request.digest(), verdict.unwrap_or_else(Verdict::Rejected)));
        }
        let Batch { timestamp, origin_view: view, proposer, .. } = *batch;
        execution.finish(Origin { sequence, timestamp, view, proposer }, verdicts)
    }

    /// Executes the operations of a block that a quorum certified, and checks that the same block
    /// and state come out. The outcomes do not name admins' requests: the digest of such a one
    /// cannot be told from its operation.
    ///
    /// # Errors
    /// [`ApplyError`]: the block is not the next one, or this replica has diverged and must stop.
    pub fn apply(&mut self, certified: &CertifiedBlock) -> Result<Executed, ApplyError> {
        let (block, content) = (certified.block(), &certified.certificate().content);
        let mut executed = self.repeat(block)?;
        self.head.sequence = content.sequence;
        executed.checkpoint = self.checkpoint();
        let diverged = ApplyError::Diverged { height: block.header.height };
        if executed.checkpoint == *content { Ok(executed) } else { Err(diverged) }
    }

    /// Executes the operations of a block whose certificate is not at hand, and checks that the same
    /// block comes out. Whether a quorum agreed to it is for a later block's certificate to say.
    ///
    /// # Errors
    /// As [`State::apply`].
    pub fn repeat(&mut self, block: &Block) -> Result<Executed, ApplyError> {
        let header = &block.header;
        // A quorum's next block is on top of another one than this replica has: fetching again helps nobody.
        if header.height == self.head.height.next() && header.previous != self.head.block {
            return Err(ApplyError::Diverged { height: self.head.height });
        }
        block.check_follows(&self.head)?;
        let diverged = || ApplyError::Diverged { height: header.height };
        let mut execution = Execution::new(self);
        let mut verdicts = Vec::with_capacity(block.operations.len());
        for operation in &block.operations {
            let leaf = codec::encode(operation);
            let bytes = request_bytes(operation, &leaf);
            let verdict = execution.repeat(operation, bytes).ok_or_else(diverged)?;
            if !matches!(operation, Operation::Admin(_)) {
                verdicts.push((HashKind::Request.hash(bytes), verdict));
            }
        }
        let Header { sequence, timestamp, origin_view: view, proposer, .. } = *header;
        let executed = execution.finish(Origin { sequence, timestamp, view, proposer }, verdicts);
        if self.head.block == header.hash() { Ok(executed) } else { Err(diverged()) }
    }

    /// Moves the head to a checkpoint that certified batches without effect lead to.
    ///
    /// # Errors
    /// [`ApplyError::Diverged`] if the checkpoint is of another block or state.
    pub fn skip_to(&mut self, checkpoint: &CheckpointContent) -> Result<(), ApplyError> {
        let CheckpointContent { sequence, height, .. } = *checkpoint;
        if (CheckpointContent { sequence, ..self.checkpoint() }) != *checkpoint {
            return Err(ApplyError::Diverged { height });
        }
        self.head.sequence = self.head.sequence.max(sequence);
        Ok(())
    }
}

/// What became of a request, before the block's hash is known.
enum Verdict {
    Written { operation: u32, items: Vec<u32> },
    AlreadyWritten { height: Height, items: Vec<u32> },
    AdminExecuted { operation: u32 },
    DigestExecuted { operation: u32 },
    Rejected(Rejection),
}

/// What an admin's operation changes.
enum Change<'a> {
    Client(&'a ClientId, ClientRecord),
    Policies(&'a PolicySet),
}

/// A batch in execution.
struct Execution<'a> {
    state: &'a mut State,
    height: Height,
    operations: Vec<Operation>,
    /// The canonical bytes of each operation.
    leaves: Vec<Vec<u8>>,
    leaves_bytes: usize,
    changes: Vec<StateChange>,
}

impl<'a> Execution<'a> {
    fn new(state: &'a mut State) -> Self {
        let height = state.head.height.next();
        Self {
            state,
            height,
            operations: Vec::new(),
            leaves: Vec::new(),
            leaves_bytes: 0,
            changes: Vec::new(),
        }
    }

    /// `bytes` are the request's canonical bytes; of an admin's, they are not looked at.
    fn judge(&mut self, asked: Asked<'_>, bytes: &[u8]) -> Result<Verdict, Rejection> {
        match asked {
            Asked::Write(write, telemetry) => self.write(write, telemetry, bytes),
            Asked::Admin(operation) => self.admin(operation),
            Asked::Digest(digest) => self.digest(digest),
        }
    }

    /// Executes an operation of a block again, whose request has these canonical bytes; nothing if
    /// it cannot be executed.
    fn repeat(&mut self, operation: &Operation, bytes: &[u8]) -> Option<Verdict> {
        match operation {
            Operation::Write { request, .. } => {
                let header = device::Header::decode(&request.header).ok()?;
                let telemetry = Telemetry { header, hash: device::Header::hash_of(&request.header) };
                self.write(request, &telemetry, bytes).ok()
            }
            Operation::Admin(operation) => self.admin(operation).ok(),
            Operation::Digest(digest) => self.digest(digest).ok(),
        }
    }

    fn write(
        &mut self,
        write: &Arc<WriteRequest>,
        telemetry: &Telemetry,
        bytes: &[u8],
    ) -> Result<Verdict, Rejection> {
        let device::Header { client: id, seq, .. } = &telemetry.header;
        let client = self.state.clients.get(id).ok_or(Rejection::UnknownClient)?;
        check_sender(client, write, *seq)?;
        let old = client.window.get(seq);
        if old.is_some_and(|entry| entry.header != telemetry.hash) {
            return Err(Rejection::SeqReused);
        }
        let mut items = old.map_or_else(IndexSet::default, |entry| entry.written.clone());
        let indexes = write.items.iter().map(|item| item.index);
        let again = planted(Bug::DuplicateExecution);
        let written: Vec<u32> = indexes.filter(|index| again || !items.contains(*index)).collect();
        if let (true, Some(entry)) = (written.is_empty(), old) {
            return Ok(Verdict::AlreadyWritten { height: entry.height, items: items.iter().collect() });
        }
        self.check_room(bytes.len() + written_bytes(written.len()))?;

        written.iter().for_each(|index| items.insert(*index));
        let listed = items.iter().collect();
        let entry = WindowEntry { header: telemetry.hash, written: items, height: self.height };
        self.put_written(id, *seq, entry);
        // As `request_bytes` says, the operation's bytes are the request's and the list of items.
        let leaf = [bytes, &codec::encode(&written)].concat();
        let operation = self.push(Operation::Write { request: Arc::clone(write), written }, leaf);
        Ok(Verdict::Written { operation, items: listed })
    }

    fn admin(&mut self, operation: &AdminOperation) -> Result<Verdict, Rejection> {
        let last = self.state.admin_sequence(&operation.admin).ok_or(Rejection::NotAnAdmin)?;
        if operation.sequence <= last {
            return Err(Rejection::StaleAdminSequence { last });
        }
        let change = self.changed(&operation.action)?;
        let executed = Operation::Admin(operation.clone());
        let leaf = codec::encode(&executed);
        self.check_room(leaf.len())?;

        match change {
            Change::Client(id, record) => self.put_record(id, record),
            Change::Policies(set) => self.put_policies(set.clone()),
        }
        self.put_admin(operation, last);
        let operation = self.push(executed, leaf);
        Ok(Verdict::AdminExecuted { operation })
    }

    fn digest(&mut self, digest: &HistoryDigest) -> Result<Verdict, Rejection> {
        if !self.state.replicas.contains(&digest.node) {
            return Err(Rejection::NotAReplica);
        }
        let old = self.state.digests.get(&digest.node).copied();
        let (last, hash) = old.map_or((0, Hash([0; 32])), |old| (old.number, old.hash));
        if last.checked_add(1) != Some(digest.number) || digest.previous != hash {
            return Err(Rejection::DigestOrder { last });
        }
        let executed = Operation::Digest(digest.clone());
        let leaf = codec::encode(&executed);
        self.check_room(leaf.len())?;

        let last_row = digest.first.saturating_add(u64::from(digest.rows) - 1);
        let record =
            DigestRecord { number: digest.number, hash: digest.hash(), last_row, height: self.height };
        self.state.digests.insert(digest.node, record);
        let encode = |record| Entry::Digest(digest.node, record).encode();
        self.change(old.map(encode), Some(encode(record)));
        let operation = self.push(executed, leaf);
        Ok(Verdict::DigestExecuted { operation })
    }

    /// What an admin's action changes.
    fn changed<'b>(&self, action: &'b AdminAction) -> Result<Change<'b>, Rejection> {
        match action {
            AdminAction::RegisterClient { client, key, settings } => match self.state.client(client) {
                Some(record) if record.revoked.is_some() => Err(Rejection::AlreadyRevoked),
                Some(_) => Err(Rejection::AlreadyRegistered),
                None => {
                    let registered = (self.height, self.next_operation());
                    let record = ClientRecord { key: *key, settings: *settings, registered, revoked: None };
                    Ok(Change::Client(client, record))
                }
            },
            AdminAction::RevokeClient { client, last_seq, .. } => match self.state.client(client) {
                Some(record) if record.revoked.is_some() => Err(Rejection::AlreadyRevoked),
                Some(record) => {
                    Ok(Change::Client(client, ClientRecord { revoked: Some(*last_seq), ..*record }))
                }
                None => Err(Rejection::UnknownClient),
            },
            AdminAction::SetPolicies { replaces, policies } => {
                let current = self.state.policies.version;
                let fits = *replaces == current;
                if fits { Ok(Change::Policies(policies)) } else { Err(Rejection::StalePolicies { current }) }
            }
        }
    }

    fn check_room(&self, leaf_bytes: usize) -> Result<(), Rejection> {
        let fits = self.leaves.len() < MAX_LEAVES && self.leaves_bytes + leaf_bytes <= MAX_BLOCK_BYTES;
        if fits { Ok(()) } else { Err(Rejection::BlockFull) }
    }

    fn next_operation(&self) -> u32 {
        u32::try_from(self.operations.len()).unwrap_or(u32::MAX)
    }

    fn push(&mut self, operation: Operation, leaf: Vec<u8>) -> u32 {
        let at = self.next_operation();
        self.operations.push(operation);
        self.leaves_bytes += leaf.len();
        self.leaves.push(leaf);
        at
    }

    /// Replaces what the ledger says about a message, and forgets what has left the window.
    fn put_written(&mut self, id: &ClientId, seq: MessageSeq, entry: WindowEntry) {
        let Some(client) = self.state.clients.get_mut(id) else { return };
        let new = Entry::Written(id.clone(), seq, entry.clone()).encode();
        let old = client.window.insert(seq, entry);
        let old = old.map(|old| Entry::Written(id.clone(), seq, old).encode());
        self.change(old, Some(new));
        while let Some((seq, entry)) = self.pop_outside_window(id) {
            self.change(Some(Entry::Written(id.clone(), seq, entry).encode()), None);
        }
    }

    fn pop_outside_window(&mut self, id: &ClientId) -> Option<(MessageSeq, WindowEntry)> {
        let client = self.state.clients.get_mut(id)?;
        let (lowest, _) = client.window.first_key_value()?;
        let outside = lowest.0 + SEQ_WINDOW < client.highest().0;
        if outside { client.window.pop_first() } else { None }
    }

    fn put_record(&mut self, id: &ClientId, record: ClientRecord) {
        let encode = |record| Entry::Client(id.clone(), record).encode();
        let client = self.state.clients.get_mut(id);
        let old = client.map(|client| std::mem::replace(&mut client.record, record)).map(encode);
        if old.is_none() {
            let window = std::collections::BTreeMap::new();
            self.state.clients.insert(id.clone(), Client { record, window });
        }
        self.change(old, Some(encode(record)));
    }

    fn put_policies(&mut self, set: PolicySet) {
        let place = (self.height, self.next_operation());
        let policies = &mut self.state.policies;
        let old = (policies.version > 0)
            .then(|| Entry::Policies(policies.version, std::mem::take(&mut policies.set)).encode());
        policies.version += 1;
        policies.set.clone_from(&set);
        policies.places.insert(policies.version, place);
        let version = policies.version;
        self.change(old, Some(Entry::Policies(version, set).encode()));
        self.change(None, Some(Entry::PoliciesAt(version, place).encode()));
    }

    fn put_admin(&mut self, operation: &AdminOperation, last: u64) {
        let AdminOperation { admin, sequence, .. } = operation;
        self.state.admins.insert(*admin, *sequence);
        let encode = |sequence| Entry::Admin(*admin, sequence).encode();
        self.change(Some(encode(last)), Some(encode(*sequence)));
    }

    /// Records that an entry is replaced, added or removed.
    fn change(&mut self, old: Option<(Vec<u8>, Vec<u8>)>, new: Option<(Vec<u8>, Vec<u8>)>) {
        if let Some((key, value)) = &old {
            self.state.lattice.remove(key, value);
        }
        if let Some((key, value)) = &new {
            self.state.lattice.add(key, value);
        }
        let change = match (old, new) {
            (_, Some((key, value))) => StateChange { key, value: Some(value) },
            (Some((key, _)), None) => StateChange { key, value: None },
            (None, None) => return,
        };
        self.changes.push(change);
    }

    fn finish(self, origin: Origin, verdicts: Vec<(Hash, Verdict)>) -> Executed {
        let Self { state, height, operations, leaves, changes, .. } = self;
        state.head.sequence = origin.sequence;
        // A batch that a view change carried over may follow one that was proposed later: blocks
        // ascend all the same.
        let timestamp = origin.timestamp.max(state.head.timestamp.plus_ms(1));
        let block = Tree::new(&leaves).ok().map(|tree| {
            let header = Header {
                version: HEADER_VERSION,
                network: state.network,
                height,
                sequence: origin.sequence,
                timestamp,
                previous: state.head.block,
                merkle_root: tree.root(),
                operation_count: u32::try_from(leaves.len()).unwrap_or(u32::MAX),
                next_replica_set: state.replicas_hash,
                origin_view: origin.view,
                proposer: origin.proposer,
                difficulty_target: 0,
                nonce: 0,
            };
            Block { header, operations }
        });
        if let Some(block) = &block {
            state.head.height = height;
            state.head.timestamp = timestamp;
            state.head.block = block.header.hash();
            state.digest = state.lattice.digest();
        }
        let Head { height, block: hash, .. } = state.head;
        let outcomes = verdicts.into_iter().map(|(digest, verdict)| (digest, verdict.outcome(height, hash)));
        Executed { checkpoint: state.checkpoint(), outcomes: outcomes.collect(), block, changes }
    }
}

impl Verdict {
    fn outcome(self, height: Height, block: Hash) -> Outcome {
        match self {
            Self::Written { operation, items } => Outcome::Written { height, block, operation, items },
            Self::AlreadyWritten { height, items } => Outcome::AlreadyWritten { height, items },
            Self::AdminExecuted { operation } => Outcome::AdminExecuted { height, operation },
            Self::DigestExecuted { operation } => Outcome::DigestExecuted { height, operation },
            Self::Rejected(rejection) => Outcome::Rejected(rejection),
        }
    }
}

/// Whether the client may have written a message with this key and seq.
fn check_sender(client: &Client, write: &WriteRequest, seq: MessageSeq) -> Result<(), Rejection> {
    if client.record.key != write.client_key && !planted(Bug::RegistrationNotChecked) {
        return Err(Rejection::WrongKey);
    }
    if let Some(last_seq) = client.record.revoked
        && seq > last_seq
    {
        return Err(Rejection::Revoked { last_seq });
    }
    let highest = client.highest();
    if seq.0.saturating_add(SEQ_WINDOW) < highest.0 {
        return Err(Rejection::SeqTooOld { highest });
    }
    Ok(())
}

/// The canonical bytes of the request that an operation came from, given the operation's: those of
/// Request::Write and Operation::Write begin alike, since the variant's number is 0 in both and the
/// request follows. Of a digest they are the same. Of an admin's operation, where the node is not known, all.
fn request_bytes<'a>(operation: &Operation, leaf: &'a [u8]) -> &'a [u8] {
    let surplus = match operation {
        Operation::Write { written, .. } => written_bytes(written.len()),
        Operation::Admin(_) | Operation::Digest(_) => 0,
    };
    leaf.get(..leaf.len().saturating_sub(surplus)).unwrap_or(leaf)
}

/// The canonical length of a list of so many indexes.
const fn written_bytes(len: usize) -> usize {
    8 + 4 * len
}
