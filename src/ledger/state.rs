//! The state of the ledger: a function of its blocks alone, the same on every replica.
//!
//! ```text
//! genesis ──▶ State ──execute(batch)──▶ block, outcomes, changes, checkpoint
//!               │  └──apply(certified block)──▶ the same, for a replica that catches up
//!               └──entries──▶ storage ──▶ restore
//! ```
//!
//! A rejected request changes nothing, so whoever has only the blocks comes to the same state. The
//! digest is a lattice hash ([`super::lattice`]) over the entries ([`super::entry`]) that each change
//! updates. `execute` and `apply` are in [`super::execute`].

use std::collections::BTreeMap;

use crate::ledger::certificate::CheckpointContent;
use crate::ledger::change::{Head, StateChange};
use crate::ledger::entry::{ClientRecord, DigestRecord, Entry, EntryError, WindowEntry};
use crate::ledger::genesis::{Genesis, ReplicaSet};
use crate::ledger::lattice::Lattice;
use crate::policy::PolicySet;
use crate::types::{ClientId, Hash, Height, MessageSeq, NetworkId, NodeId, PublicKey, SeqNum};

/// How far below a client's highest seq on the ledger a message may still be written. A client's
/// unacknowledged messages span at most as many numbers (PROTOCOL.md section 6).
pub const SEQ_WINDOW: u64 = 256;

/// Why stored entries are not a state of this ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// One of the entries is damaged.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The entries of another ledger.
    #[error("the stored state is of network {found}, not of {expected}: use another data directory")]
    WrongNetwork {
        /// The network that it is of.
        found: NetworkId,
        /// The network of the genesis document.
        expected: NetworkId,
    },
    /// An entry that must be there is not, or one is there twice, or one of an unknown client.
    #[error("the stored state is incomplete: rebuild it from the log and the peers")]
    Incomplete,
}

/// A client's record and its recent messages, at most [`SEQ_WINDOW`] and one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) record: ClientRecord,
    pub(super) window: BTreeMap<MessageSeq, WindowEntry>,
}

impl Client {
    pub(super) fn highest(&self) -> MessageSeq {
        self.window.last_key_value().map_or(MessageSeq(0), |(seq, _)| *seq)
    }
}

/// The write policies in force, and where each version came into force; empty and version 0 at
/// genesis, where all is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    /// The version in force: 0 at genesis, and one more with each change.
    pub version: u64,
    /// The rules in force.
    pub set: PolicySet,
    /// The height and the operation that put each version from 1 on in force.
    pub places: BTreeMap<u64, (Height, u32)>,
}

/// The parts of a state that change.
#[derive(Debug, Default)]
struct Parts {
    admins: BTreeMap<PublicKey, u64>,
    clients: BTreeMap<ClientId, Client>,
    policies: Policies,
    digests: BTreeMap<NodeId, DigestRecord>,
}

/// The state of the ledger after some batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub(super) network: NetworkId,
    pub(super) head: Head,
    pub(super) replicas: ReplicaSet,
    pub(super) replicas_hash: Hash,
    /// Each admin's last executed sequence.
    pub(super) admins: BTreeMap<PublicKey, u64>,
    pub(super) clients: BTreeMap<ClientId, Client>,
    pub(super) policies: Policies,
    /// Each node's last history digest.
    pub(super) digests: BTreeMap<NodeId, DigestRecord>,
    pub(super) lattice: Lattice,
    pub(super) digest: Hash,
}

impl State {
    /// The state before the first batch.
    pub fn genesis(genesis: &Genesis) -> Self {
        let network = genesis.network_id();
        let head = Head {
            sequence: SeqNum(0),
            height: Height(0),
            block: Hash(network.0),
            timestamp: genesis.created,
        };
        let admins = genesis.admins.iter().map(|admin| (*admin, 0)).collect();
        Self::new(network, head, genesis.replicas.clone(), Parts { admins, ..Parts::default() })
    }

    /// The state that [`State::entries`] gave, with the head that storage kept beside it.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn restore<I>(network: NetworkId, head: Head, entries: I) -> Result<Self, RestoreError>
    where
        I: IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
    {
        let (mut found, mut replicas) = (None, None);
        let (mut parts, mut written) = (Parts::default(), Vec::new());
        let Parts { admins, clients, policies, digests } = &mut parts;
        for (key, value) in entries {
            let is_new = match Entry::decode(&key, &value)? {
                Entry::Network(id) => found.replace(id).is_none(),
                Entry::Replicas(set) => replicas.replace(set).is_none(),
                Entry::Admin(admin, sequence) => admins.insert(admin, sequence).is_none(),
                Entry::Client(id, record) => {
                    clients.insert(id, Client { record, window: BTreeMap::new() }).is_none()
                }
                Entry::Written(id, seq, entry) => {
                    written.push((id, seq, entry));
                    true
                }
                Entry::Policies(version, set) => {
                    let is_new = policies.version == 0;
                    (policies.version, policies.set) = (version, set);
                    is_new
                }
                Entry::PoliciesAt(version, place) => policies.places.insert(version, place).is_none(),
                Entry::Digest(node, record) => digests.insert(node, record).is_none(),
            };
            if !is_new {
                return Err(RestoreError::Incomplete);
            }
        }
        let found = found.ok_or(RestoreError::Incomplete)?;
        if found != network {
            return Err(RestoreError::WrongNetwork { found, expected: network });
        }
        for (id, seq, entry) in written {
            let client = clients.get_mut(&id).ok_or(RestoreError::Incomplete)?;
            if client.window.insert(seq, entry).is_some() {
                return Err(RestoreError::Incomplete);
            }
        }
        if !policies.places.keys().copied().eq(1..=policies.version) {
            return Err(RestoreError::Incomplete);
        }
        Ok(Self::new(network, head, replicas.ok_or(RestoreError::Incomplete)?, parts))
    }

    fn new(network: NetworkId, head: Head, replicas: ReplicaSet, parts: Parts) -> Self {
        let (lattice, replicas_hash) = (Lattice::new(), replicas.hash());
        let digest = lattice.digest();
        let Parts { admins, clients, policies, digests } = parts;
        let mut state = Self {
            network,
            head,
            replicas,
            replicas_hash,
            admins,
            clients,
            policies,
            digests,
            lattice,
            digest,
        };
        state.lattice = state.computed_lattice();
        state.digest = state.lattice.digest();
        state
    }

    /// The lattice hash, computed anew over all entries.
    pub(super) fn computed_lattice(&self) -> Lattice {
        let mut lattice = Lattice::new();
        self.entries().for_each(|(key, value)| lattice.add(&key, &value));
        lattice
    }

    /// All entries of the state, as storage keeps them.
    pub fn entries(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        let fixed = [Entry::Network(self.network), Entry::Replicas(self.replicas.clone())];
        let admins = self.admins.iter().map(|(admin, sequence)| Entry::Admin(*admin, *sequence));
        let clients = self.clients.iter().flat_map(|(id, client)| {
            let written = client.window.iter();
            let written = written.map(|(seq, entry)| Entry::Written(id.clone(), *seq, entry.clone()));
            std::iter::once(Entry::Client(id.clone(), client.record)).chain(written)
        });
        let Policies { version, set, places } = &self.policies;
        let policies = (*version > 0).then(|| Entry::Policies(*version, set.clone()));
        let places = places.iter().map(|(version, place)| Entry::PoliciesAt(*version, *place));
        let digests = self.digests.iter().map(|(node, record)| Entry::Digest(*node, *record));
        let entries =
            fixed.into_iter().chain(admins).chain(clients).chain(policies).chain(places).chain(digests);
        entries.map(|entry| entry.encode())
    }

    /// All entries, as the changes that make them out of nothing: what storage is given at genesis.
    pub fn as_changes(&self) -> Vec<StateChange> {
        self.entries().map(|(key, value)| StateChange { key, value: Some(value) }).collect()
    }

    /// The ledger's id.
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// Where the ledger stands.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The digest of all entries.
    pub const fn digest(&self) -> Hash {
        self.digest
    }

    /// What a CHECKPOINT for the last executed batch signs.
    pub const fn checkpoint(&self) -> CheckpointContent {
        let Head { sequence, height, block, .. } = self.head;
        CheckpointContent { sequence, height, block, state: self.digest }
    }

    /// The replicas that vote on the next batch.
    pub const fn replicas(&self) -> &ReplicaSet {
        &self.replicas
    }

    /// The sequence of an admin's last executed operation, if it is an admin: the next one's must
    /// be greater.
    pub fn admin_sequence(&self, admin: &PublicKey) -> Option<u64> {
        self.admins.get(admin).copied()
    }

    /// The write policies in force.
    pub const fn policies(&self) -> &Policies {
        &self.policies
    }

    /// What the ledger says about a node's last history digest.
    pub fn history_digest(&self, node: &NodeId) -> Option<&DigestRecord> {
        self.digests.get(node)
    }

    /// What the ledger says about a client.
    pub fn client(&self, id: &ClientId) -> Option<&ClientRecord> {
        self.clients.get(id).map(|client| &client.record)
    }

    /// All clients that were ever registered, ascending by id.
    pub fn clients(&self) -> impl Iterator<Item = (&ClientId, &ClientRecord)> {
        self.clients.iter().map(|(id, client)| (id, &client.record))
    }

    /// The highest seq of a client that is on the ledger; 0 if none is.
    pub fn highest(&self, id: &ClientId) -> MessageSeq {
        self.clients.get(id).map_or(MessageSeq(0), Client::highest)
    }

    /// What the ledger says about one of a client's recent messages.
    pub fn written(&self, id: &ClientId, seq: MessageSeq) -> Option<&WindowEntry> {
        self.clients.get(id)?.window.get(&seq)
    }
}
