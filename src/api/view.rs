//! What the API needs of a node.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::consensus::ConsensusView;
use crate::ledger::{AdminOperation, Block, Certificate, ClientSettings, Genesis, Header, Policies};
use crate::store::evidence::{EvidenceKey, EvidencePage};
use crate::store::ledger::{RecordPage, RecordQuery};
use crate::types::{
    ClientId, Hash, Height, MessageSeq, NetworkId, NodeId, PublicKey, SeqNum, Timestamp, View,
};

/// Why a node could not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The ledger could not be read.
    #[error("{0}")]
    Failed(String),
    /// The node is about to end.
    #[error("the node is stopping")]
    Stopping,
}

/// Why an operation has no effect, or none that is known yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// It can never be valid: wrong network, bad signature, out of range.
    #[error("{0}")]
    Invalid(String),
    /// It was ordered, and the ledger's state says no.
    #[error("{0}")]
    Rejected(String),
    /// No room in the request pool.
    #[error("the node has too many requests waiting; try again")]
    Overloaded,
    /// Not final in time. It may become so later.
    #[error(
        "the operation is not final yet and may become so later; read the client's entry, or send \
         the same operation again"
    )]
    Timeout,
    /// The node is about to end.
    #[error("the node is stopping; ask another one")]
    Stopping,
}

/// Where an admin's operation stands on the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// The block's height.
    pub height: Height,
    /// 0-based place in the block.
    pub operation: u32,
}

/// A replica, as the node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// Its id.
    pub node: NodeId,
    /// Whether this node is connected to it (or is it).
    pub connected: bool,
}

/// A node that this node is connected to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// Its id.
    pub node: NodeId,
    /// Addresses under which it is known.
    pub addresses: Vec<String>,
    /// Since when.
    pub connected_since: Timestamp,
    /// Round-trip time, once measured.
    pub rtt_ms: Option<f64>,
}

/// What a node says about itself and its network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Id of the network.
    pub network: NetworkId,
    /// Name of the network, from genesis.
    pub name: String,
    /// Id of the node.
    pub node: NodeId,
    /// The node's number among the replicas; none if it has no vote.
    pub replica: Option<u16>,
    /// The replicas, ascending.
    pub replicas: Vec<ReplicaView>,
    /// How many faulty replicas are tolerated.
    pub f: usize,
    /// How many replicas must agree.
    pub quorum: usize,
    /// PBFT view.
    pub view: View,
    /// The view's primary.
    pub primary: NodeId,
    /// Whether that view has not begun at this node: it is on its way to it.
    pub changing: bool,
    /// Whether the node does not vote because it lost its log.
    pub silent: bool,
    /// Highest sequence number executed.
    pub sequence: SeqNum,
    /// Height of the last block executed.
    pub height: Height,
    /// Hash of that block.
    pub block: Hash,
    /// When it was proposed; 0 at height 0.
    pub block_time: Timestamp,
    /// Height of the last block with a certificate.
    pub certified_height: Height,
    /// Height up to which records can be searched.
    pub indexed_height: Height,
    /// Requests that wait to be ordered.
    pub pool_requests: usize,
    /// Address of the MQTT listener.
    pub mqtt: Option<String>,
    /// Since when the node runs.
    pub started: Timestamp,
    /// The node's clock.
    pub time: Timestamp,
    /// Whether the node is ready for clients; `/readyz` says why not.
    pub ready: bool,
    /// The nodes it is connected to.
    pub peers: Vec<PeerView>,
}

/// A client, as the ledger's state has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientView {
    /// Its id.
    pub client: ClientId,
    /// Its identity key.
    pub key: PublicKey,
    /// Its settings.
    pub settings: ClientSettings,
    /// Height of the block that registered it.
    pub registered_height: Height,
    /// Place of that operation in the block.
    pub registered_operation: u32,
    /// The last seq that is accepted, if it was revoked.
    pub revoked_after: Option<MessageSeq>,
    /// The highest seq of which something was written; 0 if nothing was.
    pub highest_seq: MessageSeq,
}

/// A page of clients, ascending by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPage {
    /// The clients.
    pub clients: Vec<ClientView>,
    /// The `after` of the next page, if there is one.
    pub next: Option<ClientId>,
}

/// A node, as the API sees it. The plain functions may read the disk and so block; the API calls
/// those that return a [`ViewError`] on the blocking pool only.
#[async_trait]
pub trait NodeView: Send + Sync + 'static {
    /// The node's clock.
    fn now(&self) -> Timestamp;

    /// The genesis document.
    fn genesis(&self) -> &Genesis;

    /// Whether the node's own loop and disk work, never whether others do: a partition must not
    /// have all nodes restarted.
    ///
    /// # Errors
    /// What does not work.
    fn liveness(&self) -> Result<(), String>;

    /// Whether the node is caught up, connected to a quorum, and orders when there is work.
    ///
    /// # Errors
    /// What is missing.
    fn readiness(&self) -> Result<(), String>;

    /// The node's view of itself.
    async fn status(&self) -> Result<Status, ViewError>;

    /// Where the node's replica stands, how it sees the others, and why nothing advances if so.
    async fn consensus(&self) -> Result<ConsensusView, ViewError>;

    /// A page of the clients whose id is greater than `after`.
    async fn clients(&self, after: Option<ClientId>, limit: usize) -> Result<ClientPage, ViewError>;

    /// One client.
    async fn client(&self, client: &ClientId) -> Result<Option<ClientView>, ViewError>;

    /// The write policies in force, and where each version was set.
    fn policies(&self) -> Arc<Policies>;

    /// Has an operation ordered, and waits until its block is certified.
    async fn submit(&self, operation: AdminOperation) -> Result<Submitted, SubmitError>;

    /// Height of the last block with a certificate: the highest that the API shows.
    fn certified_height(&self) -> Height;

    /// A block's header.
    ///
    /// # Errors
    /// [`ViewError`].
    fn header(&self, height: Height) -> Result<Option<Header>, ViewError>;

    /// A block.
    ///
    /// # Errors
    /// [`ViewError`].
    fn block(&self, height: Height) -> Result<Option<Block>, ViewError>;

    /// A block's certificate.
    ///
    /// # Errors
    /// [`ViewError`].
    fn certificate(&self, height: Height) -> Result<Option<Certificate>, ViewError>;

    /// Records, ascending by event time.
    ///
    /// # Errors
    /// [`ViewError`].
    fn records(&self, query: &RecordQuery) -> Result<RecordPage, ViewError>;

    /// The bytes of the proof bundle of one write operation; none if the block or the operation is
    /// not there, is not a write, or has no certificate yet.
    ///
    /// # Errors
    /// [`ViewError`].
    fn bundle(&self, height: Height, operation: u32) -> Result<Option<Vec<u8>>, ViewError>;

    /// A page of the evidence against replicas that the node keeps, the oldest first; from memory.
    fn evidence(&self, after: Option<EvidenceKey>, limit: usize) -> EvidencePage;

    /// The bytes of one piece of it.
    ///
    /// # Errors
    /// [`ViewError`].
    fn evidence_bytes(&self, id: &Hash) -> Result<Option<Vec<u8>>, ViewError>;
}
