//! Certificates: a quorum of CHECKPOINT signatures over one block and state.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::types::{Hash, Height, SeqNum, Signature};

/// What a CHECKPOINT signs (Castro and Liskov 1999, section 4.3), in the domain
/// [`crate::crypto::SignatureKind::Checkpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize)]
pub struct CheckpointContent {
    /// The sequence number up to which everything was executed.
    pub sequence: SeqNum,
    /// The height of the last block then.
    pub height: Height,
    /// The hash of that block; at height 0 the network id.
    pub block: Hash,
    /// The digest of the state then.
    pub state: Hash,
}

/// Proof that a quorum of the replica set executed up to `content.sequence` with this result.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Certificate {
    /// What was signed.
    pub content: CheckpointContent,
    /// Replica number in its set, and its signature; ascending, distinct, a quorum or more.
    pub signatures: Vec<(u16, Signature)>,
}
