//! What replicas say to each other.
//!
//! Each message is signed by its sender in the domain of its kind and of the network, over the
//! canonical bytes of the content alone. [`Signed`] is what came from the network; only
//! [`Signed::verify`] makes a [`Verified`], and the core takes nothing else.

use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::{HashKind, SignatureKind};
use crate::ledger::CheckpointContent;
use crate::types::{Hash, NodeId, SeqNum, Signature, Timestamp, View};

/// An ordered batch of request digests. Its digest covers all of it, unchanged when a later view
/// proposes it again; an empty batch is PBFT's null request.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Batch {
    /// Digests of the requests, in order of execution.
    pub requests: Vec<Hash>,
    /// When the proposer made it.
    pub timestamp: Timestamp,
    /// The view that first proposed it.
    pub origin_view: View,
    /// The primary that first proposed it.
    pub proposer: NodeId,
}

impl Batch {
    /// The batch's digest: what PREPARE and COMMIT name.
    pub fn digest(&self) -> Hash {
        HashKind::Batch.hash(&codec::encode(self))
    }
}

/// `<PRE-PREPARE, v, n, d>` with the batch in place of its digest (1999, section 4.2).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PrePrepare {
    /// v
    pub view: View,
    /// n
    pub sequence: SeqNum,
    /// The batch, whose digest is d.
    pub batch: Batch,
}

/// `<PREPARE, v, n, d, i>` (1999, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Prepare {
    /// v
    pub view: View,
    /// n
    pub sequence: SeqNum,
    /// d, the batch's digest.
    pub digest: Hash,
}

/// `<COMMIT, v, n, D(m), i>` (1999, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Commit {
    /// v
    pub view: View,
    /// n
    pub sequence: SeqNum,
    /// D(m), the batch's digest.
    pub digest: Hash,
}

/// The content of a PBFT message; the sender stands in [`Signed`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Content {
    /// The primary proposes a batch.
    PrePrepare(PrePrepare),
    /// A backup agrees to the order.
    Prepare(Prepare),
    /// A replica saw it prepared.
    Commit(Commit),
    /// A replica executed up to here.
    Checkpoint(CheckpointContent),
}

impl Content {
    /// The domain in which it is signed.
    pub const fn signature_kind(&self) -> SignatureKind {
        match self {
            Self::PrePrepare(_) => SignatureKind::PrePrepare,
            Self::Prepare(_) => SignatureKind::Prepare,
            Self::Commit(_) => SignatureKind::Commit,
            Self::Checkpoint(_) => SignatureKind::Checkpoint,
        }
    }
}

/// A message as it travels: unverified until [`Signed::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Signed {
    /// Who says so.
    pub sender: NodeId,
    /// What.
    pub content: Content,
    /// The sender's signature over the canonical bytes of the inner content.
    pub signature: Signature,
}
