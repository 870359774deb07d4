//! Blocks: a header that chains and commits, and a body of operations.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::codec;
use crate::crypto::HashKind;
use crate::ledger::operation::Operation;
use crate::types::{Hash, Height, NetworkId, NodeId, SeqNum, Timestamp, View};

/// The version of headers that this program writes and takes.
pub const HEADER_VERSION: u16 = 1;

/// A block's header. Its hash is the block's name and is what the next block points to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Header {
    /// [`HEADER_VERSION`].
    pub version: u16,
    /// The ledger.
    pub network: NetworkId,
    /// 1 for the first block, one more for each.
    pub height: Height,
    /// The PBFT sequence number of the batch that it was made of.
    pub sequence: SeqNum,
    /// When the batch was proposed.
    pub timestamp: Timestamp,
    /// Hash of the previous header; of height 1, the network id.
    pub previous: Hash,
    /// Merkle root over the canonical bytes of the operations.
    pub merkle_root: Hash,
    /// How many operations the body has; at least 1.
    pub operation_count: u32,
    /// Hash of the replica set that certifies the next block.
    pub next_replica_set: Hash,
    /// The view in which the batch was first proposed.
    pub origin_view: View,
    /// The primary that first proposed it.
    pub proposer: NodeId,
    /// Always 0: PBFT has no work to prove. The paper lists the field.
    pub difficulty_target: u32,
    /// Always 0, for the same reason.
    pub nonce: u64,
}

impl Header {
    /// The block's hash.
    pub fn hash(&self) -> Hash {
        HashKind::BlockHeader.hash(&codec::encode(self))
    }
}

/// A block.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Block {
    /// The header.
    pub header: Header,
    /// The operations, in the order in which they were executed.
    pub operations: Vec<Operation>,
}
