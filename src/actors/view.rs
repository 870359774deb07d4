//! What every part of a node may read of the ledger without asking Storage: the registered clients
//! with their parsed keys, and how far the ledger is.
//!
//! Storage alone writes it, right after a batch was executed; everybody else reads. Parsing a key
//! costs a point decompression, so it happens once, here: this is the verifying-key cache.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::crypto::VerifyingKey;
use crate::ledger::{CheckpointContent, ClientSettings, DigestRecord, Policies};
use crate::types::{ClientId, Hash, Height, MessageSeq, NodeId, SeqNum};

/// A client as the ledger has it.
#[derive(Debug)]
pub struct RegisteredClient {
    /// Its identity key, parsed.
    pub key: VerifyingKey,
    /// Its settings.
    pub settings: ClientSettings,
    /// Where it was registered: the block's height and the operation's index in it.
    pub registered: (Height, u32),
    /// The last seq that counts, if it was revoked.
    pub revoked: Option<MessageSeq>,
    /// The highest seq that the ledger has of it.
    highest: AtomicU64,
}

impl RegisteredClient {
    /// A client with nothing written above `highest`.
    pub fn new(
        key: VerifyingKey,
        settings: ClientSettings,
        registered: (Height, u32),
        revoked: Option<MessageSeq>,
        highest: MessageSeq,
    ) -> Self {
        Self { key, settings, registered, revoked, highest: AtomicU64::new(highest.0) }
    }

    /// The highest seq that the ledger has of this client; 0 if none.
    pub fn highest(&self) -> MessageSeq {
        MessageSeq(self.highest.load(Ordering::Relaxed))
    }

    /// Notes that the ledger has `seq`.
    pub fn note_written(&self, seq: MessageSeq) {
        self.highest.fetch_max(seq.0, Ordering::Relaxed);
    }
}

/// How far the ledger is on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The last executed sequence number, the height and hash of the last block, the state digest.
    pub executed: CheckpointContent,
    /// The highest sequence number with a certificate: everything up to it is final.
    pub certified: SeqNum,
    /// The height of the last block that is final.
    pub certified_height: Height,
}

impl Progress {
    /// At genesis.
    pub const fn start() -> Self {
        Self {
            executed: CheckpointContent {
                sequence: SeqNum(0),
                height: Height(0),
                block: Hash([0; 32]),
                state: Hash([0; 32]),
            },
            certified: SeqNum(0),
            certified_height: Height(0),
        }
    }
}

/// The shared view; see the module.
#[derive(Debug)]
pub struct LedgerView {
    clients: RwLock<BTreeMap<ClientId, Arc<RegisteredClient>>>,
    policies: RwLock<Arc<Policies>>,
    digests: RwLock<BTreeMap<NodeId, DigestRecord>>,
    progress: RwLock<Progress>,
}

impl Default for LedgerView {
    fn default() -> Self {
        Self {
            clients: RwLock::default(),
            policies: RwLock::default(),
            digests: RwLock::default(),
            progress: RwLock::new(Progress::start()),
        }
    }
}

impl LedgerView {
    /// The client, if it is registered (revoked ones are, too).
    pub fn client(&self, client: &ClientId) -> Option<Arc<RegisteredClient>> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).get(client).cloned()
    }

    /// Notes a client as it is now on the ledger.
    pub fn put_client(&self, client: ClientId, registered: RegisteredClient) {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        clients.insert(client, Arc::new(registered));
    }

    /// The clients above `after`, ascending by id, `limit` at most.
    pub fn clients(&self, after: Option<&ClientId>, limit: usize) -> Vec<(ClientId, Arc<RegisteredClient>)> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        let bounds = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let page = clients.range::<ClientId, _>(bounds).take(limit);
        page.map(|(client, registered)| (client.clone(), Arc::clone(registered))).collect()
    }

    /// How many clients are registered.
    pub fn client_count(&self) -> usize {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// A node's last history digest, executed here and perhaps not final yet.
    pub fn history_digest(&self, node: &NodeId) -> Option<DigestRecord> {
        self.digests.read().unwrap_or_else(PoisonError::into_inner).get(node).copied()
    }

    /// Notes a node's last history digest.
    pub fn put_digest(&self, node: NodeId, record: DigestRecord) {
        self.digests.write().unwrap_or_else(PoisonError::into_inner).insert(node, record);
    }

    /// The write policies in force.
    pub fn policies(&self) -> Arc<Policies> {
        Arc::clone(&self.policies.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes the write policies that are in force now.
    pub fn put_policies(&self, policies: &Policies) {
        *self.policies.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policies.clone());
    }

    /// How far the ledger is.
    pub fn progress(&self) -> Progress {
        *self.progress.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how far the ledger is.
    pub fn update_progress(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.write().unwrap_or_else(PoisonError::into_inner));
    }
}
