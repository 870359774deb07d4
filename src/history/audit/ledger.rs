//! The ledger as an audit sees it: replayed from its blocks, with nothing but genesis trusted.
//!
//! ```text
//! block, certificate ─▶ chain, Merkle root, quorum ─▶ executed ─▶ what an audit asks:
//!     keys of clients · policies by version · items by message · history digests · who named which seqs
//! ```
//!
//! What is kept grows with the ledger: some 100 bytes for each written message and 50 for each written
//! item, values included, since any of them may be what a later one was judged against. An audit of one client
//! ([`AuditedLedger::only`]) keeps that client's alone.

use std::collections::{BTreeMap, HashMap};

use super::report::LedgerSummary;
use super::runs::Runs;
use smol_str::SmolStr;

use crate::crypto::VerifyingKey;
use crate::device::{self, Item, Value};
use crate::ledger::index_set::IndexSet;
use crate::ledger::{
    AdminAction, AdminOperation, ApplyError, Block, BlockError, Certificate, CertifiedBlock, Genesis,
    GenesisError, HistoryDigest, Operation, ReplicaSet, ReplicaSetKeys, State, WriteRequest,
};
use crate::policy::{Base, PolicySet};
use crate::types::{ClientId, Hash, Height, MessageSeq, NetworkId, NodeId, Timestamp};

/// Why a ledger cannot be used for an audit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditedLedgerError {
    /// The genesis document is not valid.
    #[error("the genesis document: {0}")]
    Genesis(#[from] GenesisError),
    /// A block, or its certificate, is not good.
    #[error(
        "block {height} of the ledger is not proven: {error}; take the ledger from another node, and check the genesis document"
    )]
    Block {
        /// Its height.
        height: Height,
        /// What is wrong.
        error: BlockError,
    },
    /// Execution comes to another result.
    #[error("the ledger: {0}")]
    Apply(#[from] ApplyError),
    /// An operation of a certified block that no correct quorum agrees to.
    #[error(
        "operation {operation} of block {height} is not valid: {detail}; more than f replicas are faulty"
    )]
    Operation {
        /// The block's height.
        height: Height,
        /// The operation's place in it.
        operation: usize,
        /// What is wrong.
        detail: String,
    },
}

/// A client on the ledger.
#[derive(Debug)]
pub(super) struct ClientFacts {
    pub(super) verifying: VerifyingKey,
    pub(super) registered: Height,
    /// Where it was revoked, and after which seq.
    pub(super) revoked: Option<(Height, MessageSeq)>,
    pub(super) messages: BTreeMap<MessageSeq, LedgerMessage>,
    /// Seqs that the client said it never used.
    pub(super) unused: Runs,
}

/// A message of which items are on the ledger.
#[derive(Debug)]
pub(super) struct LedgerMessage {
    pub(super) header: Hash,
    pub(super) event_time: Timestamp,
    /// Each operation that wrote items of it.
    pub(super) parts: Vec<WrittenPart>,
    /// The written items, ascending by index.
    items: Vec<(u32, NameId, Value)>,
}

#[derive(Debug)]
pub(super) struct WrittenPart {
    pub(super) height: Height,
    /// The node that admitted the message, as the request says.
    pub(super) node: NodeId,
    pub(super) items: IndexSet,
}

impl LedgerMessage {
    /// All items that were written.
    pub(super) fn written(&self) -> IndexSet {
        self.items.iter().map(|(index, _, _)| *index).collect()
    }
}

/// Names `(device, service, num)`.
pub(super) type NameId = u32;

/// A version of the policies.
#[derive(Debug)]
pub(super) struct PolicyVersion {
    pub(super) height: Height,
    pub(super) set: PolicySet,
}

/// A node's digest on the ledger, without its ranges.
#[derive(Debug, Clone, Copy)]
pub(super) struct LedgerDigest {
    pub(super) number: u64,
    pub(super) height: Height,
    pub(super) hash: Hash,
    pub(super) first: u64,
    pub(super) rows: u32,
    pub(super) root: Hash,
}

/// A written item.
#[derive(Debug, Clone)]
pub(super) struct WrittenItem {
    pub(super) base: Base,
    name: NameId,
}

/// See the module.
#[derive(Debug)]
pub struct AuditedLedger {
    pub(super) network: NetworkId,
    replicas: ReplicaSet,
    keys: ReplicaSetKeys,
    state: State,
    certified: Height,
    only: Option<ClientId>,
    names: HashMap<(SmolStr, SmolStr, u32), NameId>,
    pub(super) clients: BTreeMap<ClientId, ClientFacts>,
    pub(super) policies: Vec<PolicyVersion>,
    digests: BTreeMap<NodeId, Vec<LedgerDigest>>,
    /// The seqs that each node's digests name.
    named: BTreeMap<NodeId, BTreeMap<ClientId, Runs>>,
    times: Vec<Timestamp>,
}

impl AuditedLedger {
    /// An empty ledger.
    ///
    /// # Errors
    /// [`AuditedLedgerError::Genesis`].
    pub fn new(genesis: &Genesis) -> Result<Self, AuditedLedgerError> {
        genesis.check()?;
        let keys = ReplicaSetKeys::new(&genesis.replicas).map_err(|_| GenesisError::ReplicaKey)?;
        Ok(Self {
            network: genesis.network_id(),
            replicas: genesis.replicas.clone(),
            keys,
            state: State::genesis(genesis),
            certified: Height(0),
            only: None,
            names: HashMap::new(),
            clients: BTreeMap::new(),
            policies: vec![PolicyVersion { height: Height(0), set: PolicySet::default() }],
            digests: BTreeMap::new(),
            named: BTreeMap::new(),
            times: vec![genesis.created],
        })
    }

    /// The same that keeps messages of this client alone; to be said before the first block.
    #[must_use]
    pub fn only(mut self, client: Option<ClientId>) -> Self {
        self.only = client;
        self
    }

    /// Takes the next block. One without a certificate counts once a later one has one.
    ///
    /// # Errors
    /// [`AuditedLedgerError`]; the ledger is not to be used any more then.
    pub fn add(
        &mut self,
        block: &Block,
        certificate: Option<&Certificate>,
    ) -> Result<(), AuditedLedgerError> {
        let height = block.header.height;
        let failed = |error| AuditedLedgerError::Block { height, error };
        match certificate {
            None => {
                block.check(&self.network).map_err(failed)?;
                self.state.repeat(block)?;
            }
            Some(certificate) => {
                let (block, certificate) = (block.clone(), certificate.clone());
                let certified = CertifiedBlock::verify(block, certificate, &self.network, &self.keys);
                self.state.apply(&certified.map_err(failed)?)?;
                self.certified = height;
            }
        }
        self.times.push(block.header.timestamp);
        for (at, operation) in block.operations.iter().enumerate() {
            self.note(height, at, operation).map_err(|detail| AuditedLedgerError::Operation {
                height,
                operation: at,
                detail,
            })?;
        }
        Ok(())
    }

    /// The height of the last block.
    pub const fn height(&self) -> Height {
        self.state.head().height
    }

    /// The height of the last block that a certificate proves.
    pub const fn certified_height(&self) -> Height {
        self.certified
    }

    /// The network.
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// Whether a client was ever registered.
    pub fn knows(&self, client: &ClientId) -> bool {
        self.clients.contains_key(client)
    }

    /// Whether a node is one of the network's replicas.
    pub(super) fn has_replica(&self, node: &NodeId) -> bool {
        self.replicas.index_of(node).is_some()
    }

    /// What was replayed.
    pub fn summary(&self) -> LedgerSummary {
        let head = self.state.head();
        LedgerSummary {
            network: self.network,
            height: head.height,
            block: head.block,
            time: head.timestamp,
            clients: self.clients.len(),
            policies: self.state.policies().version,
            digests: self.digests.values().map(Vec::len).sum(),
        }
    }

    fn note(&mut self, height: Height, at: usize, operation: &Operation) -> Result<(), String> {
        let place = (height, u32::try_from(at).unwrap_or(u32::MAX));
        match operation {
            Operation::Write { request, written } => self.note_write(height, request, written),
            Operation::Admin(operation) => self.note_admin(place.0, operation),
            Operation::Digest(digest) => self.note_digest(height, digest),
        }
    }

    fn note_write(&mut self, height: Height, request: &WriteRequest, written: &[u32]) -> Result<(), String> {
        let header = device::Header::decode(&request.header).map_err(|error| error.to_string())?;
        if self.only.as_ref().is_some_and(|only| *only != header.client) {
            return Ok(());
        }
        let mut items = Vec::with_capacity(written.len());
        for item in request.items.iter().filter(|item| written.binary_search(&item.index).is_ok()) {
            let index = item.index;
            let item = Item::decode(&item.bytes).map_err(|error| error.to_string())?;
            items.push((index, self.name_id(&item), item.value));
        }
        let Some(client) = self.clients.get_mut(&header.client) else {
            return Err(format!("{} is not registered", header.client));
        };
        if let Some(above) = header.unused_above {
            client.unused.insert(above.0 + 1, header.seq.0 - 1);
        }
        let message = client.messages.entry(header.seq).or_insert_with(|| LedgerMessage {
            header: device::Header::hash_of(&request.header),
            event_time: header.event_time,
            parts: Vec::with_capacity(1),
            items: Vec::new(),
        });
        let part = WrittenPart { height, node: request.node, items: written.iter().copied().collect() };
        message.parts.push(part);
        message.items.extend(items);
        message.items.sort_unstable_by_key(|(index, _, _)| *index);
        message.items.shrink_to_fit();
        Ok(())
    }

    fn name_id(&mut self, item: &Item) -> NameId {
        let next = NameId::try_from(self.names.len()).unwrap_or(NameId::MAX);
        let name = (item.device.clone(), item.service.clone(), item.num);
        *self.names.entry(name).or_insert(next)
    }

    fn note_admin(&mut self, height: Height, operation: &AdminOperation) -> Result<(), String> {
        operation.verify(&self.network).map_err(|error| error.to_string())?;
        match &operation.action {
            AdminAction::RegisterClient { client, key, .. } => {
                let facts = ClientFacts {
                    verifying: VerifyingKey::parse(key).map_err(|error| error.to_string())?,
                    registered: height,
                    revoked: None,
                    messages: BTreeMap::new(),
                    unused: Runs::default(),
                };
                self.clients.insert(client.clone(), facts);
            }
            AdminAction::RevokeClient { client, last_seq, .. } => {
                if let Some(facts) = self.clients.get_mut(client) {
                    facts.revoked = Some((height, *last_seq));
                }
            }
            AdminAction::SetPolicies { policies, .. } => {
                self.policies.push(PolicyVersion { height, set: policies.clone() });
            }
        }
        Ok(())
    }

    fn note_digest(&mut self, height: Height, digest: &HistoryDigest) -> Result<(), String> {
        digest.verify(&self.network).map_err(|error| error.to_string())?;
        let HistoryDigest { node, number, first, rows, root, ref ranges, .. } = *digest;
        let kept = LedgerDigest { number, height, hash: digest.hash(), first, rows, root };
        self.digests.entry(node).or_default().push(kept);
        let named = self.named.entry(node).or_default();
        for (client, runs) in
            ranges.iter().filter(|(client, _)| self.only.as_ref().is_none_or(|only| only == client))
        {
            let seqs = named.entry(client.clone()).or_default();
            runs.iter().for_each(|(first, last)| seqs.insert(first.0, last.0));
        }
        Ok(())
    }

    /// The digests of a node, ascending by number.
    pub(super) fn digests(&self, node: &NodeId) -> &[LedgerDigest] {
        self.digests.get(node).map_or(&[], Vec::as_slice)
    }

    /// How many digests each node has.
    pub(super) fn digests_by_node(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.digests.iter().map(|(node, digests)| (*node, digests.len() as u64))
    }

    /// The seqs of a client that a node's digests name.
    pub(super) fn named_by(&self, node: &NodeId, client: &ClientId) -> Option<&Runs> {
        self.named.get(node)?.get(client)
    }

    /// Whether any node's digests name this message.
    pub(super) fn is_named(&self, client: &ClientId, seq: u64) -> bool {
        self.named.values().any(|of| of.get(client).is_some_and(|runs| runs.contains(seq)))
    }

    /// All seqs of a client that some node's digests name.
    pub(super) fn all_named(&self, client: &ClientId) -> Runs {
        let mut all = Runs::default();
        let runs = self.named.values().filter_map(|of| of.get(client)).flat_map(Runs::iter);
        runs.for_each(|(first, last)| all.insert(first, last));
        all
    }

    /// What the ledger has of a message.
    pub(super) fn message(&self, client: &ClientId, seq: MessageSeq) -> Option<&LedgerMessage> {
        self.clients.get(client)?.messages.get(&seq)
    }

    /// A written item.
    pub(super) fn item(&self, client: &ClientId, seq: MessageSeq, index: u32) -> Option<WrittenItem> {
        let message = self.message(client, seq)?;
        let at = message.items.binary_search_by_key(&index, |(index, _, _)| *index).ok()?;
        let (_, name, value) = &message.items[at];
        let base = Base { event_time: message.event_time, value: value.clone() };
        Some(WrittenItem { base, name: *name })
    }

    /// Whether a written item has the name of this one.
    pub(super) fn same_name(&self, written: &WrittenItem, item: &Item) -> bool {
        let name = (item.device.clone(), item.service.clone(), item.num);
        self.names.get(&name) == Some(&written.name)
    }

    /// When a block was made.
    pub(super) fn time(&self, height: Height) -> Timestamp {
        let at = usize::try_from(height.0).unwrap_or(usize::MAX);
        self.times.get(at).copied().unwrap_or(Timestamp(0))
    }
}
