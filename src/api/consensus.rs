//! `GET /v1/consensus`: where this node's replica stands, how it sees the others, and why nothing
//! advances when nothing does.
//!
//! All times are milliseconds up to the moment of the answer, so that nobody's clock matters. The
//! states of replicas and the codes of reasons are those of [`crate::pbft::diagnosis`], which says
//! exactly when each holds.

use actix_web::web::{Data, Json};
use serde::{Deserialize, Serialize};

use super::{Context, Problem};
use crate::types::{Hash, Height, NetworkId, NodeId, SeqNum, View};

/// Where a node's replica stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConsensusView {
    /// Id of the network.
    pub network: NetworkId,
    /// Id of the node.
    pub node: NodeId,
    /// Its number among the replicas.
    pub replica: Option<usize>,
    /// How many replicas there are.
    pub n: usize,
    /// How many of them may be faulty.
    pub f: usize,
    /// How many must agree.
    pub quorum: usize,
    /// The view that the replica is in, or on its way to.
    pub view: View,
    /// That view's primary.
    pub primary: NodeId,
    /// The way to another view, if the replica is on one.
    pub view_change: Option<ViewChangeView>,
    /// The highest view that f+1 others were heard to vote in.
    pub seen_view: Option<View>,
    /// Set while the replica does not vote because it lost its log.
    pub silent: Option<SilentView>,
    /// The low watermark: the last sequence number that is executed and certified.
    pub low_watermark: SeqNum,
    /// The high watermark: no number above it is voted for.
    pub high_watermark: SeqNum,
    /// The last sequence number executed.
    pub executed: SeqNum,
    /// The last sequence number proposed or agreed to.
    pub accepted: SeqNum,
    /// What at least one correct other replica has executed.
    pub known: SeqNum,
    /// Height of the last block executed.
    pub height: Height,
    /// Hash of that block.
    pub block: Hash,
    /// Height of the last block with a certificate.
    pub certified_height: Height,
    /// Batches that are proposed and not executed.
    pub batches: usize,
    /// Requests that wait to be ordered.
    pub pending_requests: usize,
    /// For how long the oldest of them has waited.
    pub oldest_request_ms: Option<u64>,
    /// How long a primary may take now before it is replaced.
    pub timeout_ms: u64,
    /// Since execution moved; none before it did.
    pub last_progress_ms: Option<u64>,
    /// The replicas, in the order of their numbers.
    pub replicas: Vec<ReplicaLine>,
    /// How the network is, as far as this node can know.
    pub verdict: VerdictView,
    /// Whether nothing keeps this node from advancing.
    pub advancing: bool,
    /// Why not, the most telling first; and remarks that do not block.
    pub why: Vec<Why>,
}

/// How a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictCode {
    /// All replicas take part.
    Healthy,
    /// A quorum takes part, and some replica does not.
    Degraded,
    /// Nothing becomes final now.
    Halted,
    /// Too little is known.
    CannotTell,
}

impl VerdictCode {
    /// The word for it in JSON.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Halted => "halted",
            Self::CannotTell => "cannot_tell",
        }
    }
}

/// How the network is, in the eyes of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictView {
    /// In a word.
    pub code: VerdictCode,
    /// How many of the replicas that take part may fail, and it still goes on; none if that is not known.
    pub tolerates: Option<usize>,
    /// In a sentence for people.
    pub text: String,
}

/// The way to another view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewChangeView {
    /// The view that is to begin.
    pub to: View,
    /// Why this replica is on its way to it; a word of `ledgermq_consensus_view_changes_total`.
    pub reason: String,
    /// For how long no view has been in force here.
    pub since_ms: u64,
    /// Whose VIEW-CHANGEs for it, or for later views, are here.
    pub received: Vec<NodeId>,
    /// Whose are not.
    pub missing: Vec<NodeId>,
    /// `view_changes` until those of a quorum are here, `new_view` then.
    pub waits_for: String,
    /// In how long the next view's turn comes; none before a quorum is on the way.
    pub next_view_in_ms: Option<u64>,
}

/// Silence after a lost log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentView {
    /// The low watermark from which on the replica votes; none while it listens to settle that.
    pub until: Option<SeqNum>,
    /// In how long about it votes again if nothing else is ordered; none if the others are no quorum without it.
    pub votes_in_ms: Option<u64>,
}

/// What a replica is to the node that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaStateView {
    /// It is that node.
    ThisNode,
    /// Not connected.
    Disconnected,
    /// Connected, and nothing is heard of it.
    Silent,
    /// It has executed less.
    Behind,
    /// It lost its log and does not vote yet.
    LostLog,
    /// It is in a later view, or on its way to one.
    OtherView,
    /// None of these.
    Ok,
}

/// One replica, as the node that answers sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaLine {
    /// Its id.
    pub node: NodeId,
    /// Its number.
    pub seat: usize,
    /// Whether it is the primary of the node's view.
    pub is_primary: bool,
    /// What it is to the node.
    pub state: ReplicaStateView,
    /// Whether the node is connected to it (or is it).
    pub connected: bool,
    /// For how long it has not been connected.
    pub missing_ms: Option<u64>,
    /// Round-trip time, once measured.
    pub rtt_ms: Option<f64>,
    /// The last sequence number that it said it executed.
    pub executed: Option<SeqNum>,
    /// The height at that number.
    pub height: Option<Height>,
    /// How many numbers that is behind what the node knows to be executed.
    pub behind: u64,
    /// The highest view that it was seen in, or on its way to.
    pub view: Option<View>,
    /// Since a valid PBFT message of it came.
    pub last_heard_ms: Option<u64>,
}

/// A reason, or a remark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// A word that never changes.
    pub code: String,
    /// Whether it keeps the node from advancing.
    pub blocks: bool,
    /// A sentence for people.
    pub text: String,
}

pub(super) async fn consensus(context: Data<Context>) -> Result<Json<ConsensusView>, Problem> {
    Ok(Json(context.node.consensus().await?))
}
